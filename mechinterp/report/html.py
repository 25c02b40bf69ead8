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
    names: Mapping[str, str] | None = None
    """What the legend calls a trace, by its name in the table, which the CSV has. By default the same."""
    notes: Mapping[str, str] | None = None
    """What a trace is, in a line, by its name in the table: shown where the pointer rests on the legend."""


@dataclass(frozen=True)
class Scale:
    """The colour bar of heat maps."""

    title: str
    low: float
    high: float
    colours: Sequence[str]
    """From low to high, at equal distances."""


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
    return f'<p class="verdict">{_unbroken(text)}</p>'


def _unbroken(text: str) -> str:
    """Text as markup, in which no line breaks before a percent sign."""
    return html.escape(text).replace(" %", "&nbsp;%")


def note(text: str) -> str:
    """A paragraph that qualifies the main result."""
    return f'<p class="note">{html.escape(text)}</p>'


def paragraph(text: str) -> str:
    """A paragraph of text."""
    return f"<p>{html.escape(text)}</p>"


def told(parts: Mapping[str, str]) -> str:
    """A paragraph of parts, each on a line of its own that begins with what it is about."""
    lines = (f"<span><b>{html.escape(about)}.</b> {_unbroken(text)}</span>" for about, text in parts.items())
    return f'<p class="told">{" ".join(lines)}</p>'


def hint(text: str) -> str:
    """A line in small letters that says how the page is used."""
    return f'<p class="use">{html.escape(text)}</p>'


def terms(meanings: Mapping[str, str]) -> str:
    """A list of terms with their meanings, open where there is room beside the text."""
    items = (f"<div><dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd></div>" for term, text in meanings.items())
    return f'<details class="terms" open><summary>What the words mean</summary><dl>{"".join(items)}</dl></details>'


def columns(*parts: str) -> str:
    """Parts beside each other where there is room, the first one wider."""
    return f'<div class="beside">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def section(title: str, text: str = "") -> str:
    """A heading, and a paragraph below it."""
    return f"<h2>{html.escape(title)}</h2>" + (f"<p>{html.escape(text)}</p>" if text else "")


def folded(title: str, *parts: str) -> str:
    """Parts that are shown when a reader opens them."""
    return f"<details><summary>{html.escape(title)}</summary>{''.join(parts)}</details>"


def commands(explained: Mapping[str, str]) -> str:
    """Commands of a shell, each with what it is for."""
    items = (f"<li>{html.escape(text)}<pre>{html.escape(line)}</pre></li>" for line, text in explained.items())
    return f'<ol class="commands">{"".join(items)}</ol>'


def grid(figures: Iterable[str]) -> str:
    """Figures in two columns where there is room; those that are wide take both."""
    return f'<div class="grid">{"".join(figures)}</div>'


def code(text: str) -> str:
    """Preformatted text."""
    return f"<pre>{html.escape(text)}</pre>"


def figure(
    drawings: go.Figure | Drawing | Sequence[Drawing],
    caption: str,
    *,
    title: str | None = None,
    columns: Mapping[str, str] | None = None,
    scales: Sequence[Scale] = (),
    in_row: int | None = None,
    wide: bool = False,
) -> str:
    """One or several drawings with a title, a legend, a caption, and their numbers as CSV.

    The title is by default that of the first drawing. `columns` names the table's columns x, y and z; by default they
    are named as the axes are. `scales` are the colour bars of its maps. Of several drawings, `in_row` stand in a row
    where there is room. A `wide` figure takes all columns of its grid.
    """
    given = [drawings] if isinstance(drawings, Drawing) or isinstance(drawings, go.Figure) else drawings  # noqa: SIM101
    members = [drawing if isinstance(drawing, Drawing) else Drawing(drawing) for drawing in given]
    several, layout = len(members) > 1, members[0].figure.layout
    titles = [str(drawing.figure.layout.title.text) for drawing in members]  # pyright: ignore[reportAttributeAccessIssue]
    labels = titles if several else [title or titles[0]]
    axes = {"x": layout.xaxis.title.text or "x", "y": layout.yaxis.title.text or "y", "z": "value"}  # pyright: ignore[reportAttributeAccessIssue]
    specs = [_spec(drawing, keep_title=several) for drawing in members]
    places = "".join(f'<div class="drawing" role="group" aria-label="{html.escape(label)}"></div>' for label in labels)
    in_row = in_row or (2 if several else 1)
    sizes = f"{' several' if several else ''}{' small' if in_row > SMALL_FROM else ''}"
    drawn = f'<div class="drawings{sizes}" style="--in-row:{in_row}">{places}</div>' + "".join(map(_bar, scales))
    return _figure(
        "plot wide" if wide else "plot",
        title or titles[0],
        drawn,
        caption,
        {"drawings": specs, "columns": {**axes, **(columns or {})}},
    )


SMALL_FROM = 4
"""Of more maps in a row than that, each is small, without the names of its rows and columns."""


def _bar(scale: Scale) -> str:
    """A colour bar, from its low to its high end."""
    low, high = (f"{end:.2g}" for end in (scale.low, scale.high))
    return (
        f'<p class="scale"><span>{html.escape(scale.title)}</span> <span>{low}</span>'
        f'<i style="background:linear-gradient(90deg,{",".join(scale.colours)})"></i><span>{high}</span></p>'
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
    drawn = f'<p class="hint">Swipe sideways to see all of it.</p><div class="drawn">{svg}</div>'
    return _figure("panels wide", title, drawn, caption, data, also='<button class="svg">SVG</button>')


def scrubber(steps: Sequence[int], table: pd.DataFrame, emergence: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The slider over all checkpoints, with the values of `table`, and the interval of a located transition.

    `names` are what the page calls the columns of `table`.
    """
    marks = jump = ""
    if emergence["transition"]:
        low, high = (place_on_track(steps, emergence[end]) for end in ("low", "high"))
        marks = f'<span class="interval" style="left:{low:.3%};width:{high - low:.3%}"></span>'
        jump = f'<button class="transition" data-step="{emergence["step"]:.0f}">to the transition</button>'
    values = [table[name].reindex(steps).to_numpy(dtype=float) for name in table]
    shown = (html.escape(names.get(str(name), str(name))) for name in table)
    places = "".join(f"<div><dt>{name}</dt><dd></dd></div>" for name in shown)
    return f"""<nav class="scrubber" aria-label="Training step">
{_json({"steps": list(steps)})}
<div class="controls"><span class="left"><button class="play" aria-label="Play" title="Play (space)">▶</button>
<output class="now" aria-live="off"></output></span>
<span class="track"><span class="inside">{marks}</span>\
<input type="range" min="0" max="{len(steps) - 1}" step="1" aria-label="Checkpoint"></span>
<span class="right">{jump}</span></div>
<dl class="readout">{places}{_json([_packed(column.astype(np.float32)) for column in values])}</dl>
</nav>"""


def place_on_track(steps: Sequence[int], step: float | int) -> float:
    """Where a step lies on the slider, which has its checkpoints at equal distances: 0 at the first, 1 at the last."""
    return float(np.interp(step, steps, np.linspace(0, 1, len(steps))))


def table(data: pd.DataFrame, names: Mapping[str, str] | None = None) -> str:
    """A table, its index first; numbers are rounded and stand to the right, a missing value is a dash.

    `names` are what the page calls its columns.
    """

    def formatted(value: object) -> str:
        if value is None or value is pd.NA or value != value:
            return "–"
        if isinstance(value, bool | np.bool_):
            return "yes" if value else "no"
        if not isinstance(value, float):
            return f"{value:,}" if isinstance(value, int | np.integer) else str(value)
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"

    values = [list(data.index), *(list(data.iloc[:, n]) for n in range(data.shape[1]))]
    numeric = [all(not isinstance(value, str) for value in column) for column in values]
    classes = [' class="n"' if is_number else "" for is_number in numeric]
    heads = [str(name) for name in (data.index.name or "", *data.columns)]
    shown = [html.escape((names or {}).get(name, name)) for name in heads]
    head = "".join(f"<th{side}>{name}</th>" for side, name in zip(classes, shown, strict=True))
    rows = (
        "".join(f"<td{side}>{html.escape(formatted(each))}</td>" for side, each in zip(classes, row, strict=True))
        for row in zip(*values, strict=True)
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def framed(css_class: str, title: str, drawn: str, caption: str, table: pd.DataFrame) -> str:
    """A figure of the page's own markup, `drawn`, with the numbers of `table`, index first, as its CSV."""
    flat = table.reset_index()
    data = {"csv": [list(flat.columns), *plain_json(flat.astype(object).to_numpy().tolist())]}
    return _figure(css_class, title, drawn, caption, data)


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
    traces = [str(trace.name) for trace in drawing.figure.data]  # pyright: ignore[reportAttributeAccessIssue]
    moves = {
        "names": [(drawing.names or {}).get(name, name) for name in traces],
        "notes": [(drawing.notes or {}).get(name, "") for name in traces],
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
