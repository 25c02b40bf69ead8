"""A page of HTML that works offline, and the parts it is put together from.

A page is text: headings, tables, and figures whose data lie beside them as JSON. What draws them, and moves them with
the slider, is ``page.js``; plotly.js is in the page, once. The page may run these two scripts and no other, by their
digests, and fetch nothing at all (Content-Security-Policy). All names are escaped.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from mechinterp.errors import MechinterpError
from mechinterp.files import replace_text, require_place

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


@dataclass(frozen=True)
class Drawing:
    """A plotly figure, and how it follows the slider."""

    figure: go.Figure
    frames: NDArray[Any] | None = None
    """[step, row, column]: what the first trace, a heat map, shows at every checkpoint."""
    scale: float | None = None
    """What frames of bytes are to be multiplied by; 255 stands for nothing."""
    cursor: float | None = None
    """Over training: the step at which the x axis has its zero. The slider's step is marked there by a line."""
    dot: tuple[NDArray[Any], NDArray[Any]] | None = None
    """In a plane: x and y at every checkpoint, marked by a dot."""


def write_page(path: Path, title: str, parts: Iterable[str]) -> Path:
    """Write a page and return its path. An existing page is replaced; a run file never is."""
    require_place(path)
    plotly, script = (each.replace("\r\n", "\n") for each in (get_plotlyjs(), _beside("page.js")))
    page = _PAGE.substitute(
        title=html.escape(title),
        scripts=" ".join(_digest(each) for each in (plotly, script)),
        style=_beside("page.css"),
        body="\n".join(parts),
        plotly=plotly,
        script=script,
    )
    try:
        replace_text(path, page)
    except OSError as error:
        raise MechinterpError(f"{path}: cannot be written ({error.strerror}); choose another file") from None
    return path


def lead(text: str) -> str:
    """The main result, in larger letters."""
    return f'<p class="verdict">{html.escape(text)}</p>'


def section(title: str, text: str = "") -> str:
    """A heading, and a paragraph below it."""
    return f"<h2>{html.escape(title)}</h2>" + (f"<p>{html.escape(text)}</p>" if text else "")


def grid(figures: Iterable[str], *, uneven: bool = False) -> str:
    """Figures in two columns where there is room; if `uneven`, the left one is wider."""
    return f'<div class="grid{" uneven" if uneven else ""}">{"".join(figures)}</div>'


def code(text: str) -> str:
    """Text as it is."""
    return f"<pre>{html.escape(text)}</pre>"


def figure(
    drawings: go.Figure | Drawing | Sequence[Drawing],
    caption: str,
    *,
    title: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> str:
    """One or several drawings with a title, a caption, and their numbers as CSV.

    The title is by default the drawing's own. `columns` names the table's columns x, y and z; by default they are
    called as the axes are.
    """
    given = [drawings] if isinstance(drawings, go.Figure | Drawing) else list(drawings)
    each = [one if isinstance(one, Drawing) else Drawing(one) for one in given]
    name = title or str(each[0].figure.layout.title.text)  # pyright: ignore[reportAttributeAccessIssue]
    axes = each[0].figure.layout
    found = {"x": axes.xaxis.title.text or "x", "y": axes.yaxis.title.text or "y", "z": "value"}  # pyright: ignore[reportAttributeAccessIssue]
    data = {"drawings": [_spec(one, keep_title=len(each) > 1) for one in each], "columns": found | dict(columns or {})}
    own = [str(one.figure.layout.title.text) for one in each] if len(each) > 1 else [name]  # pyright: ignore[reportAttributeAccessIssue]
    places = "".join(f'<div class="drawing" role="group" aria-label="{html.escape(one)}"></div>' for one in own)
    drawn = f'<div class="drawings{" several" if len(each) > 1 else ""}">{places}</div>'
    return _figure("plot", name, drawn, caption, data)


def panels(svg: str, frames: Sequence[str], caption: str, table: pd.DataFrame, *, title: str) -> str:
    """An SVG whose group of class ``panel`` shows other markup at every checkpoint; `table` is what it was drawn from.

    `svg` and `frames` are markup and stand in the page as they are.
    """
    lines = [line for each in frames for line in each.split("\n")]
    parts = {line: number for number, line in enumerate(dict.fromkeys(lines))}
    data = {
        "parts": list(parts),
        "frames": [[parts[line] for line in each.split("\n")] for each in frames],
        "csv": [list(table.columns), *_plain(table)],
    }
    drawn = f'<div class="drawn">{svg}</div>'
    return _figure("panels", title, drawn, caption, data, also='<button class="svg">SVG</button>')


def scrubber(steps: Sequence[int], table: pd.DataFrame, found: Mapping[str, Any]) -> str:
    """The slider over all checkpoints, with what `table` measures there, and the interval of a located transition."""
    marks = jump = ""
    if found["transition"]:
        low, high = np.interp([found["low"], found["high"]], steps, np.linspace(0, 1, len(steps)))
        marks = (  # a slider's ends lie half a thumb inside of it
            f'<span class="interval" style="left:calc(8px + {low:.5f}*(100% - 16px));'
            f'width:calc({high - low:.5f}*(100% - 16px))"></span>'
        )
        jump = f'<button class="transition" data-step="{found["step"]:.0f}">to the transition</button>'
    values = [table[name].reindex(steps).to_numpy(dtype=float) for name in table]
    places = "".join(f"<div><dt>{html.escape(str(name))}</dt><dd></dd></div>" for name in table)
    return f"""<nav class="scrubber" aria-label="Training step">
{_json({"steps": list(steps)})}
<div class="controls"><button class="play" aria-label="Play" title="Play (space)">▶</button>
<span class="track">{marks}<input type="range" min="0" max="{len(steps) - 1}" step="1" aria-label="Checkpoint"></span>
<output class="now" aria-live="off"></output>{jump}</div>
<dl class="readout">{places}{_json([_packed(each.astype(np.float32)) for each in values])}</dl>
</nav>"""


def _plain(table: pd.DataFrame) -> list[list[Any]]:
    """Rows for JSON; what is no finite number is missing."""
    rows = table.astype(object).to_numpy().tolist()
    return [[None if isinstance(each, float) and not np.isfinite(each) else each for each in row] for row in rows]


def table(data: pd.DataFrame) -> str:
    """A table, its index first; numbers are rounded, what is missing is a dash."""

    def shown(value: object) -> str:
        if value is None or value is pd.NA or value != value:
            return "–"
        if not isinstance(value, float):
            return str(value)
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"

    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in [data.index.name or "", *data.columns])
    rows = (
        "<tr>" + "".join(f"<td>{html.escape(shown(value))}</td>" for value in [index, *row]) + "</tr>"
        for index, row in zip(data.index, data.to_numpy(dtype=object), strict=True)
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _figure(kind: str, title: str, drawn: str, caption: str, data: Any, *, also: str = "") -> str:
    name = "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
    csv = f'<button class="csv" aria-label="CSV of {html.escape(title)}">CSV</button>'
    return f"""<figure class="{kind}" data-name="{html.escape(name)}">
<h3>{html.escape(title)}</h3>
{drawn}
<figcaption>{html.escape(caption)} {csv}{also}</figcaption>
{_json(data)}
</figure>"""


def _spec(drawing: Drawing, *, keep_title: bool) -> dict[str, Any]:
    """A drawing as page.js reads it. Colours and fonts of the page take the place of the figure's template."""
    spec = json.loads(str(drawing.figure.to_json()))
    layout = spec["layout"]
    for ours in ("template", "margin", "height", "font", *(() if keep_title else ("title",))):
        layout.pop(ours, None)
    moves = {
        "frames": None if drawing.frames is None else _packed(drawing.frames, drawing.scale),
        "cursor": drawing.cursor,
        "dot": drawing.dot and dict(zip("xy", map(_packed, drawing.dot), strict=True)),
    }
    return {"data": spec["data"], "layout": layout} | moves


def _packed(values: NDArray[Any], scale: float | None = None) -> dict[str, Any]:
    """An array as plotly packs it: its type, its shape, and its bytes in base 64."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    packed = {"dtype": little.dtype.str[1:], "shape": list(values.shape), "scale": scale}
    return packed | {"bdata": base64.b64encode(little.tobytes()).decode()}


def _json(data: Any) -> str:
    """Data beside a figure. No text in it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return f'<script type="application/json">{text.replace("<", chr(92) + "u003c")}</script>'


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
