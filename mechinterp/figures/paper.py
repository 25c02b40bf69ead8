"""The style of figures in papers: as wide as a column, text of 8 points, curves that differ in grey."""

import math
from typing import Any

import plotly.graph_objects as go

from mechinterp.errors import NamedEnum
from mechinterp.figures.style import DASHES, SYMBOLS

PIXELS = 96
"""Pixels of CSS in an inch."""
TEXT = 8 / 72 * PIXELS
"""Size of text, 8 points, in pixels."""
FONT = "Arial, Helvetica, 'Liberation Sans', 'DejaVu Sans', sans-serif"
_LETTER, _LEGEND_ROW = 0.53 * TEXT, 19
"""Mean width of a letter; height of a row of the legend. Pixels."""
_MARKS = 7
"""Markers on a curve."""
_LEFT, _RIGHT, _BOTTOM, _TOP = 44, 10, 38, 6
"""Margins, in pixels."""
_ROW = 17
"""Height of a row of a strip chart."""
_BESIDE, _BELOW = 72, 72
"""Between maps, for their labels: beside each other, and above each other."""


class Column(NamedEnum):
    """The width of a figure in a paper."""

    single = "one column, 3.25 in (8.25 cm)"
    double = "two columns, 6.75 in (17.1 cm)"

    @property
    def pixels(self) -> int:
        """The width in pixels of CSS."""
        return round((3.25 if self is Column.single else 6.75) * PIXELS)


def paper(figure: go.Figure, column: Column = Column.single) -> go.Figure:
    """A copy of a figure as it stands in a paper: `column` wide, all text 8 pt, no title, a legend above the axes.

    Curves that the legend names differ in dashes and markers too, so that they can be told apart in grey. Labels of a
    map's rows and columns are thinned where they would overlap. Panels lie in a grid of equal parts.
    """
    drawn, width = go.Figure(figure), column.pixels
    layout: dict[str, Any] = figure.to_dict()["layout"]
    right = _LEFT if "yaxis2" in layout and layout["yaxis2"].get("side") == "right" else _RIGHT
    left = max([_LEFT, *(8 + round(_LETTER * len(name)) for name in _labels(drawn, layout))])
    below = _BOTTOM + (30 if _row_names(layout) == [] and drawn.data and drawn.data[0]["type"] == "heatmap" else 0)
    inner = float(width - left - right)
    _distinguish(drawn)
    _set_text(drawn)
    rows = _legend_rows(drawn, inner)
    above = _TOP + rows * _LEGEND_ROW + (TEXT + 8 if layout.get("annotations") else 0)
    height = _arrange(drawn, inner)
    legend: dict[str, Any] = {
        "orientation": "h",
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "tracegroupgap": 0,
    }
    drawn.update_layout(
        title=None,
        width=width,
        height=round(height + above + below),
        margin={"l": left, "r": right, "t": above, "b": below, "pad": 0, "autoexpand": False},
        legend={**legend, "font": {"size": TEXT}, "itemwidth": 30, "tracegroupgap": 0},
        paper_bgcolor="white",
        plot_bgcolor="white",
    )
    return drawn


def _row_names(layout: dict[str, Any]) -> list[str]:
    """The names on the left axis of a strip chart."""
    return list(layout.get("yaxis", {}).get("categoryarray") or ())


def _labels(drawn: go.Figure, layout: dict[str, Any]) -> list[str]:
    """All names on left axes."""
    on_maps = [f"{name}..." for each in drawn.data if each["type"] == "heatmap" for name in each["y"]]
    return [*_row_names(layout), *on_maps]


def _distinguish(drawn: go.Figure) -> None:
    """Give curves of different names different dashes and markers."""
    curves = [trace for trace in drawn.data if trace["type"] == "scatter" and "lines" in (trace["mode"] or "lines")]
    names = list(dict.fromkeys(trace["legendgroup"] or trace["name"] for trace in curves))
    thin = len(curves) > len(names)
    for trace in curves:
        number = names.index(trace["legendgroup"] or trace["name"])
        trace.update(line_width=0.8 if thin else 1.3)
        if len(names) > 1:
            marker = {"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 4 if thin else 5, "maxdisplayed": _MARKS}
            trace.update(line_dash=DASHES[number % len(DASHES)], mode="lines+markers", marker=marker)
    drawn.update_shapes(line_width=0.8, selector={"type": "line"})
    drawn.update_traces(marker_size=6, error_x_thickness=1.3, error_x_width=3, selector={"mode": "markers"})


def _set_text(drawn: go.Figure) -> None:
    """All text in 8 points, axes in thin black lines."""
    drawn.update_layout(template="plotly_white", font={"size": TEXT, "family": FONT, "color": "black"})
    drawn.update_annotations(font_size=TEXT)
    drawn.update_traces(textfont_size=TEXT, showscale=False, selector={"type": "heatmap"})
    title: dict[str, Any] = {"font": {"size": TEXT}, "standoff": 3}
    lines = {"showline": True, "linecolor": "black", "linewidth": 0.8, "ticks": "outside", "ticklen": 3}
    axis: dict[str, Any] = {**lines, "tickwidth": 0.8, "gridcolor": "#e5e5e5", "gridwidth": 0.5, "zeroline": False}
    axis |= {"tickfont": {"size": TEXT}, "title": title, "automargin": False}
    drawn.update_xaxes(axis).update_yaxes(axis)


def _legend_rows(drawn: go.Figure, inner: float) -> int:
    """Rows that the legend takes: one, or else columns as wide as its widest entry."""
    shown = [trace for trace in drawn.data if trace["type"] == "scatter" and trace["showlegend"] is not False]
    if len(shown) < 2:
        drawn.update_layout(showlegend=False)
        return 0
    widths = [44 + _LETTER * len(str(trace["name"])) for trace in shown]
    return 1 if sum(widths) <= inner else math.ceil(len(widths) / max(1, int(inner // max(widths))))


def _arrange(drawn: go.Figure, inner: float) -> float:
    """Lay the panels of maps out as squares, with room for their labels; the height of all that is drawn."""
    layout = drawn.to_dict()["layout"]
    names, maps = _row_names(layout), [trace for trace in drawn.data if trace["type"] == "heatmap"]
    if not maps:
        return _ROW * len(names) + 10 if names else 0.62 * inner
    across = (layout.get("meta") or {}).get("across", 1)
    down = math.ceil(len(maps) / across)
    cell = (inner - _BESIDE * (across - 1)) / across
    height = cell * down + _BELOW * (down - 1)
    for number, trace in enumerate(maps):
        left, top = (number % across) * (cell + _BESIDE) / inner, 1 - (number // across) * (cell + _BELOW) / height
        name = str(number + 1) if number else ""
        step = math.ceil((TEXT + 1) * len(trace["x"]) / cell)
        shown = {"tickvals": list(range(0, len(trace["x"]), step)), "ticktext": list(trace["x"][::step])}
        own = {"tickvals": list(range(0, len(trace["y"]), step)), "ticktext": list(trace["y"][::step])}
        x = {"domain": [left, min(1, left + cell / inner)], **shown, "dtick": None}
        y = {"domain": [max(0, top - cell / height), top], **own, "dtick": None}
        drawn.update_layout({f"xaxis{name}": x, f"yaxis{name}": y})
        if number < len(layout.get("annotations", ())):
            drawn.layout.annotations[number].update(x=left + cell / inner / 2, y=top)  # pyright: ignore[reportAttributeAccessIssue]
    return height
