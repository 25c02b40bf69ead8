"""The transitions of all measures: a strip chart aligned with the slider, and a table, both sorted by step."""

import html
from collections.abc import Sequence

import pandas as pd

from mechinterp.emergence import Shape
from mechinterp.labels import measure_label
from mechinterp.report.html import framed, place_on_track
from mechinterp.report.summary import percent_or_number

_SHAPES = {
    Shape.one_step.name: "one step",
    Shape.ramp_then_jump.name: "slow, then fast",
    Shape.several_steps.name: "two steps",
    Shape.transient.name: "there and back",
    Shape.none.name: "none",
}
SMALL = 0.05
"""The least change of a share that is drawn in the strip chart."""
WHAT = (
    "Every measure's curve is fitted with a logistic step. ΔBIC says how much better the step explains the curve than a"
    " constant or a straight line; above 10 is very strong evidence. Intervals are of 95 %, of this run alone; other"
    " seeds may differ."
)
"""What the strip chart and the table show."""


def sorted_by_step(emergence: pd.DataFrame) -> pd.DataFrame:
    """The emergence table with located transitions first, by step."""
    return emergence.sort_values("step", kind="stable", na_position="last")


def interval_text(row: pd.Series, first: int) -> str:
    """A located step and its interval, as "3,438 [3,391, 3,484]".

    An interval that reaches the first checkpoint is open there: "573 [had begun, 773]".
    """
    low = "had begun" if row["low"] <= first else f"{row['low']:,.0f}"
    return f"{row['step']:,.0f} [{low}, {row['high']:,.0f}]"


def strip_chart(emergence: pd.DataFrame, steps: Sequence[int], headline: str) -> str:
    """A row for every located transition: a dot at its step, a bar for the interval, and both in numbers."""
    rows = sorted_by_step(emergence)
    located = rows[rows["transition"].astype(bool)]
    located = located[[_is_large(str(name), row) for name, row in located.iterrows()]]
    if located.empty:
        return ""
    drawn = "".join(_row(str(name), row, steps, str(name) == headline) for name, row in located.iterrows())
    ticks = "".join(
        f'<i style="left:{place_on_track(steps, step):.3%}">{step:,}</i>' for step in _ticks(steps[0], steps[-1])
    )
    axis = _cells("axis", "", ticks, "step [95 % interval]")
    chart = f'<div class="strip">{drawn}{axis}{_cells("over", "", "<b></b>", "")}</div>'
    text = emergence.assign(change_points=[" ".join(map(str, points)) for points in emergence["change_points"]])
    caption = (
        "Dot: the middle of the transition, halfway between the levels before and after, not where it begins; hollow: a"
        " slow rise that ends in a fast one, the middle of both together. Bar and brackets: its 95 % interval. Left"
        f" out: shares that change by less than {100 * SMALL:.0f} points. The step axis is that of the slider, whose"
        " step is marked by the vertical line."
    )
    return framed("strips wide", "When each measure made its transition", chart, caption, text)


def _is_large(name: str, row: pd.Series) -> bool:
    """Whether a transition is drawn: a share changes by `SMALL` or more."""
    return measure_label(name).unit != "share" or abs(float(row["after"]) - float(row["before"])) >= SMALL


def _row(name: str, row: pd.Series, steps: Sequence[int], is_headline: bool) -> str:
    label = measure_label(name)
    low, step, high = (place_on_track(steps, row[end]) for end in ("low", "step", "high"))
    middle = "mid slow" if row["shape"] == Shape.ramp_then_jump.name else "mid"
    bar = f'<i class="bar" style="left:{low:.3%};width:{high - low:.3%}"></i>'
    marks = f'{bar}<i class="{middle}" style="left:{step:.3%}"></i>'
    left, right = html.escape(label.name), html.escape(interval_text(row, steps[0]))
    return _cells("main" if is_headline else "", left, marks, right, html.escape(label.meaning))


def _cells(css_class: str, left: str, inside: str, right: str, title: str = "") -> str:
    """A row of the chart; its parts are markup."""
    return (
        f'<div class="row {css_class}" title="{title}"><span class="left">{left}</span>'
        f'<span class="track"><span class="inside">{inside}</span></span><span class="right">{right}</span></div>'
    )


def _ticks(first: int, last: int) -> list[int]:
    """Some five round steps from the first to the last."""
    span = max(last - first, 1)
    size = 10 ** (len(str(span)) - 1)
    size = next((each for each in (size // 5, size // 2, size, 2 * size) if each and span / each <= 7), 2 * size)
    return [step for step in range(-(-first // size) * size, last + 1, size)]


def table(emergence: pd.DataFrame, steps: Sequence[int]) -> str:
    """The table of all measures: step with interval, width, levels before and after, shape and ΔBIC; of a measure
    without a transition, why."""
    heads = (
        ("measure", "", "What is measured"),
        ("step [95 % interval]", "n", "The middle of the fitted step, in updates"),
        ("10–90 % width, steps", "n", "Steps from 10 % to 90 % of the change"),
        ("from → to", "n", "Fitted levels before and after"),
        ("shape", "", "The shape of the curve"),
        ("ΔBIC", "n", "How much better a step explains the curve than a constant or a line; above 10: very strong"),
    )
    head = "".join(
        f'<th class="{side}" title="{html.escape(more)}">{html.escape(name)}</th>' for name, side, more in heads
    )
    body = "".join(_table_row(str(name), row, steps) for name, row in sorted_by_step(emergence).iterrows())
    return f'<div class="scroll"><table class="emergence"><tr>{head}</tr>{body}</table></div>'


def _table_row(name: str, row: pd.Series, steps: Sequence[int]) -> str:
    label = measure_label(name)
    first = f'<td title="{html.escape(label.meaning)}">{html.escape(label.name)}</td>'
    if not row["transition"]:
        return f'<tr>{first}<td colspan="5" class="why">no transition: {html.escape(str(row["reason"]))}</td></tr>'
    before, after = (percent_or_number(name, float(row[end])) for end in ("before", "after"))
    before = before.removesuffix(f" {label.unit}") if label.unit else before
    cells = (
        (interval_text(row, steps[0]), "n"),
        (f"{row['width']:,.0f}", "n"),
        (f"{before} → {after}", "n"),
        (_SHAPES.get(str(row["shape"]), str(row["shape"])), ""),
        (f"{row['delta_bic']:.0f}", "n"),
    )
    rest = "".join(f'<td class="{side}">{html.escape(text)}</td>' for text, side in cells)
    return f"<tr>{first}{rest}</tr>"
