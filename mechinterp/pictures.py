"""Figures as pictures, PNG, SVG or PDF, by kaleido and a Chromium; nothing is fetched from a network.

Pages and figures need neither: they are HTML. Only who asks for pictures does.
"""

import base64
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args
from xml.etree import ElementTree

import plotly.graph_objects as go

from mechinterp.errors import MechinterpError
from mechinterp.files import replace_text

Format = Literal["png", "svg", "pdf"]

WIDTH, HEIGHT = 1000, 480
"""Size of a picture in pixels of CSS, where the figure does not say."""
SCALE = 2.0
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


def write_pictures(figure: go.Figure, path: Path, formats: Sequence[Format], *, scale: float = SCALE) -> list[Path]:
    """The figure as a picture in each format, at `path` with the format as its suffix; returns the paths."""
    written = [path.with_suffix(f".{each}") for each in dict.fromkeys(formats)]
    return write_all({each: figure for each in written}, scale=scale)


def write_all(figures: Mapping[Path, go.Figure | str], *, scale: float = SCALE) -> list[Path]:
    """Figures and SVG documents as pictures by path, whose suffix is the format; returns the paths.

    One browser draws them all, whether or not an event loop is running. An SVG document that is wanted as SVG is
    written as it is, without a browser. `scale` is the number of a PNG's pixels to one of CSS. In PDFs, the letters
    that are used are embedded; SVGs name their fonts. Raises MechinterpError for another suffix, and where the browser
    is missing or fails.
    """
    for path in figures:
        if path.suffix.removeprefix(".") not in get_args(Format):
            raise MechinterpError(f"{path}: pictures are {', '.join(get_args(Format))}; end the name in one of these")
    ready = {path: each for path, each in figures.items() if isinstance(each, str) and path.suffix == ".svg"}
    for path, svg in ready.items():
        replace_text(path, svg)
    wanted = [
        _wanted(framed(each) if isinstance(each, str) else each, path, scale)
        for path, each in figures.items()
        if path not in ready
    ]
    if wanted:
        require_export()
        from kaleido import write_fig_from_object_sync

        try:  # MathJax would come from a network, and is for formulas in TeX only
            write_fig_from_object_sync(wanted, kopts={"mathjax": False}, cancel_on_error=True)
        except Exception as error:  # kaleido, choreographer and the browser each raise errors of their own
            raise MechinterpError(
                f"{wanted[0]['path']}: the browser could not draw it ({type(error).__name__}: {str(error)[:80]});"
                " set BROWSER_PATH to a Chromium or Chrome that works"
            ) from None
    return list(figures)


def _wanted(figure: go.Figure, path: Path, scale: float) -> dict[str, Any]:
    """What kaleido is asked for."""
    layout = figure.to_dict()["layout"]
    size = {"width": layout.get("width", WIDTH), "height": layout.get("height", HEIGHT)}
    return {"fig": figure, "path": path, "opts": {**size, "scale": scale if path.suffix == ".png" else 1}}


def framed(svg: str) -> go.Figure:
    """An SVG document that states its width and height, as a figure of that size which shows nothing else."""
    root = ElementTree.fromstring(svg)
    source = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    picture = {"source": source, "xref": "paper", "yref": "paper", "x": 0, "y": 1, "sizex": 1, "sizey": 1}
    figure = go.Figure(layout={name: round(float(root.attrib[name])) for name in ("width", "height")})
    figure.add_layout_image(picture, sizing="stretch", layer="above")
    figure.update_layout(margin=dict.fromkeys("ltrb", 0))
    return figure.update_xaxes(visible=False).update_yaxes(visible=False)


def scaled(svg: str, factor: float) -> str:
    """An SVG document that states its width and height, and has a view box, in another size."""
    head, rest = svg.split(">", 1)
    for name in ("width", "height"):
        head = re.sub(rf'\b{name}="([0-9.]+)"', lambda found: _times(found, factor), head, count=1)
    return f"{head}>{rest}"


def _times(attribute: re.Match[str], factor: float) -> str:
    return f'{attribute[0].split("=")[0]}="{float(attribute[1]) * factor:g}"'
