"""Figures as pictures, PNG, SVG or PDF, by kaleido and a Chromium; nothing is fetched from a network.

Pages and figures need neither: they are HTML. Only who asks for pictures does.
"""

import base64
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import plotly.graph_objects as go

from mechinterp.errors import MechinterpError

Format = Literal["png", "svg", "pdf"]

WIDTH, HEIGHT = 1000, 480
"""Size of a picture in pixels of CSS, where the figure does not say."""
SCALE = 2
"""Pixels of a PNG to one of CSS, so that it is sharp in print."""


def require_export() -> None:
    """Raise MechinterpError, which says what to install, where no pictures can be made; to be asked in advance."""
    try:
        from choreographer.browsers.chromium import Chromium
        from kaleido import write_fig_from_object_sync  # noqa: F401
    except ImportError:
        raise MechinterpError(
            "pictures are made by kaleido, which is not installed: pip install -c constraints.txt -e '.[export]'"
        ) from None
    browser = Chromium.find_browser(skip_local=False)
    if browser is None or shutil.which(browser) is None:
        found = "there is none" if browser is None else f"{browser} (BROWSER_PATH) is no program"
        raise MechinterpError(
            f"pictures are drawn by Chromium or Chrome, and {found}: install one (apt-get install chromium),"
            " or set BROWSER_PATH to the program"
        )


def write_pictures(figure: go.Figure, path: Path, formats: Sequence[Format]) -> list[Path]:
    """The figure as a picture in each format, at `path` with the format as its suffix; returns the paths."""
    require_export()
    from kaleido import write_fig_from_object_sync

    written = [path.with_suffix(f".{each}") for each in dict.fromkeys(formats)]
    layout = figure.to_dict()["layout"]
    size = {"width": layout.get("width", WIDTH), "height": layout.get("height", HEIGHT)}
    wanted = [
        {"fig": figure, "path": each, "opts": {**size, "scale": SCALE if each.suffix == ".png" else 1}}
        for each in written
    ]
    try:  # MathJax would come from a network, and is for formulas in TeX only
        write_fig_from_object_sync(wanted, kopts={"mathjax": False}, cancel_on_error=True)
    except Exception as error:  # kaleido, choreographer and the browser each raise errors of their own
        raise MechinterpError(
            f"{written[0]}: the browser could not draw it ({type(error).__name__}: {str(error)[:80]});"
            " set BROWSER_PATH to a Chromium or Chrome that works"
        ) from None
    return written


def framed(svg: str) -> go.Figure:
    """An SVG document that states its width and height, as a figure of that size which shows nothing else."""
    root = ElementTree.fromstring(svg)
    source = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    picture = {"source": source, "xref": "paper", "yref": "paper", "x": 0, "y": 1, "sizex": 1, "sizey": 1}
    figure = go.Figure(layout={"width": int(root.attrib["width"]), "height": int(root.attrib["height"])})
    figure.add_layout_image(picture, sizing="stretch", layer="above")
    figure.update_layout(margin=dict.fromkeys("ltrb", 0))
    return figure.update_xaxes(visible=False).update_yaxes(visible=False)
