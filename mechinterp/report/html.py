"""Offline pages of HTML and their parts.

A page has headings, tables, and figures with their data as JSON. The script ``page.js`` draws the figures and moves
them with the slider; plotly.js is included once. By its Content-Security-Policy the page can run these two scripts
only, and fetch nothing. All names are escaped.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from mechinterp.display import framed_page
from mechinterp.errors import MechinterpError
from mechinterp.files import plain_json, replace_text, require_place

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src $scripts;
 style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<h1>$title</h1>
$body
<script>$plotly</script>
<script>$script</script>
</body>
</html>
""")


if TYPE_CHECKING:
    _SystemPath = Path
else:
    _SystemPath = type(Path())  # Path itself has no derived classes before Python 3.12


class Page(_SystemPath):
    """The path of a page, which a notebook shows as the page itself, in a frame."""

    def _repr_html_(self) -> str | None:
        is_page = self.suffix == ".html" and self.is_file()  # a path that was derived from this one may be none
        return framed_page(self.read_text(encoding="utf-8")) if is_page else None


@dataclass(frozen=True)
class Drawing:
    """A plotly figure, and the data with which it follows the slider."""

    figure: go.Figure
    frames: NDArray[Any] | None = None
    """[step, row, column]: values of the first trace, a heat map, at every checkpoint."""
    scale: float | None = None
    """Factor from frames of bytes to values; the byte 255 stands for no value."""
    cursor: float | None = None
    """Over training: the step at which the x axis has its zero. The slider's step is marked there by a line."""
    dot: tuple[NDArray[Any], NDArray[Any]] | None = None
    """In a plane: x and y at every checkpoint, marked by a dot."""


def write_page(path: Path, title: str, parts: Iterable[str]) -> Page:
    """The path of a page, after writing it. An existing page is replaced; a run file never is."""
    require_place(path)
    plotly, script = (code.replace("\r\n", "\n") for code in (get_plotlyjs(), _read_asset("page.js")))
    page = _PAGE.substitute(
        title=html.escape(title),
        scripts=f"{_digest(plotly)} {_digest(script)}",
        style=_read_asset("page.css"),
        body="\n".join(parts),
        plotly=plotly,
        script=script,
    )
    try:
        replace_text(path, page)
    except OSError as error:
        raise MechinterpError(f"{path}: cannot be written ({error.strerror}); choose another file") from None
    return Page(path)


def lead(text: str) -> str:
    """The main result, in larger letters."""
    return f'<p class="verdict">{html.escape(text)}</p>'


def note(text: str) -> str:
    """A paragraph that qualifies the main result."""
    return f'<p class="note">{html.escape(text)}</p>'


def section(title: str, text: str = "") -> str:
    """A heading, and a paragraph below it."""
    return f"<h2>{html.escape(title)}</h2>" + (f"<p>{html.escape(text)}</p>" if text else "")


def grid(figures: Iterable[str], *, uneven: bool = False) -> str:
    """Figures in two columns where there is room; if `uneven`, the left one is wider."""
    return f'<div class="grid{" uneven" if uneven else ""}">{"".join(figures)}</div>'


def code(text: str) -> str:
    """Preformatted text."""
    return f"<pre>{html.escape(text)}</pre>"


def figure(
    drawings: go.Figure | Drawing | Sequence[Drawing],
    caption: str,
    *,
    title: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> str:
    """One or several drawings with a title, a caption, and their numbers as CSV.

    The title is by default that of the first drawing. `columns` names the table's columns x, y and z; by default they
    are named as the axes are.
    """
    given = [drawings] if isinstance(drawings, Drawing) or isinstance(drawings, go.Figure) else drawings  # noqa: SIM101
    members = [drawing if isinstance(drawing, Drawing) else Drawing(drawing) for drawing in given]
    several, layout = len(members) > 1, members[0].figure.layout
    titles = [str(drawing.figure.layout.title.text) for drawing in members]  # pyright: ignore[reportAttributeAccessIssue]
    labels = titles if several else [title or titles[0]]
    axes = {"x": layout.xaxis.title.text or "x", "y": layout.yaxis.title.text or "y", "z": "value"}  # pyright: ignore[reportAttributeAccessIssue]
    specs = [_spec(drawing, keep_title=several) for drawing in members]
    places = "".join(f'<div class="drawing" role="group" aria-label="{html.escape(label)}"></div>' for label in labels)
    drawn = f'<div class="drawings{" several" if several else ""}">{places}</div>'
    return _figure(
        "plot", title or titles[0], drawn, caption, {"drawings": specs, "columns": {**axes, **(columns or {})}}
    )


def panels(svg: str, frames: Sequence[str], caption: str, table: pd.DataFrame, *, title: str) -> str:
    """An SVG whose group of class ``panel`` has the markup of the slider's checkpoint; `table` holds its numbers.

    `svg` and `frames` are markup and stand in the page as they are.
    """
    lines = [frame.split("\n") for frame in frames]
    parts = {line: number for number, line in enumerate(dict.fromkeys(chain.from_iterable(lines)))}
    data = {
        "parts": list(parts),
        "frames": [[parts[line] for line in frame] for frame in lines],
        "csv": [list(table.columns), *plain_json(table.astype(object).to_numpy().tolist())],
    }
    drawn = f'<div class="drawn">{svg}</div>'
    return _figure("panels", title, drawn, caption, data, also='<button class="svg">SVG</button>')


def scrubber(steps: Sequence[int], table: pd.DataFrame, emergence: Mapping[str, Any]) -> str:
    """The slider over all checkpoints, with the values of `table`, and the interval of a located transition."""
    marks = jump = ""
    if emergence["transition"]:
        low, high = np.interp([emergence["low"], emergence["high"]], steps, np.linspace(0, 1, len(steps)))
        marks = (  # the ends of a slider's track lie half a thumb inside of it
            f'<span class="interval" style="left:calc(8px + {low:.5f}*(100% - 16px));'
            f'width:calc({high - low:.5f}*(100% - 16px))"></span>'
        )
        jump = f'<button class="transition" data-step="{emergence["step"]:.0f}">to the transition</button>'
    values = [table[name].reindex(steps).to_numpy(dtype=float) for name in table]
    places = "".join(f"<div><dt>{html.escape(str(name))}</dt><dd></dd></div>" for name in table)
    return f"""<nav class="scrubber" aria-label="Training step">
{_json({"steps": list(steps)})}
<div class="controls"><button class="play" aria-label="Play" title="Play (space)">▶</button>
<span class="track">{marks}<input type="range" min="0" max="{len(steps) - 1}" step="1" aria-label="Checkpoint"></span>
<output class="now" aria-live="off"></output>{jump}</div>
<dl class="readout">{places}{_json([_packed(column.astype(np.float32)) for column in values])}</dl>
</nav>"""


def table(data: pd.DataFrame) -> str:
    """A table, its index first; numbers are rounded, a missing value is a dash."""

    def formatted(value: object) -> str:
        if value is None or value is pd.NA or value != value:
            return "–"
        if not isinstance(value, float):
            return str(value)
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"

    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in [data.index.name or "", *data.columns])
    rows = (
        "<tr>" + "".join(f"<td>{html.escape(formatted(value))}</td>" for value in [index, *row]) + "</tr>"
        for index, row in zip(data.index, data.to_numpy(dtype=object), strict=True)
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _figure(css_class: str, title: str, drawn: str, caption: str, data: Any, *, also: str = "") -> str:
    name = "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
    csv = f'<button class="csv" aria-label="CSV of {html.escape(title)}">CSV</button>'
    return f"""<figure class="{css_class}" data-name="{html.escape(name)}">
<h3>{html.escape(title)}</h3>
{drawn}
<figcaption>{html.escape(caption)} {csv}{also}</figcaption>
{_json(data)}
</figure>"""


def _spec(drawing: Drawing, *, keep_title: bool) -> dict[str, Any]:
    """A drawing as page.js reads it, without the template, size and fonts, which the page sets."""
    spec = json.loads(str(drawing.figure.to_json()))
    layout = spec["layout"]
    for name in ("template", "margin", "height", "font", *(() if keep_title else ("title",))):
        layout.pop(name, None)
    moves = {
        "frames": None if drawing.frames is None else _packed(drawing.frames, drawing.scale),
        "cursor": drawing.cursor,
        "dot": drawing.dot and dict(zip("xy", map(_packed, drawing.dot), strict=True)),
    }
    return {"data": spec["data"], "layout": layout} | moves


def _packed(values: NDArray[Any], scale: float | None = None) -> dict[str, Any]:
    """An array in plotly's format: its type, its shape, and its bytes in base 64."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    packed = {"dtype": little.dtype.str[1:], "shape": list(values.shape), "scale": scale}
    return packed | {"bdata": base64.b64encode(little.tobytes()).decode()}


def _json(data: Any) -> str:
    """Data of a figure as a script element of JSON. No text in it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return f'<script type="application/json">{text.replace("<", chr(92) + "u003c")}</script>'


def _read_asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
