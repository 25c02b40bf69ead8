"""Strip charts: one row per quantity, a dot for its value, a bar for its interval."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechinterp.emergence import emergence_table
from mechinterp.errors import MechinterpError
from mechinterp.figures.measured import Source, progress_columns
from mechinterp.figures.style import PALETTE, colours_of, styled
from mechinterp.labels import measure_name
from mechinterp.measures.table import measure
from mechinterp.run import Run


def emergence(source: Source) -> go.Figure:
    """All located transitions, a row each, sorted by step: a dot at the step, a bar over its 95 % interval, in updates.

    `source` is a run, its table of measures, or its emergence table (`emergence.emergence_table`). Measures without a
    transition are left out; if there is none at all, MechinterpError says so.
    """
    table = measure(source) if isinstance(source, Run) else source
    if "transition" not in table:
        table = emergence_table(table, [*_measured(table)])
    found = table.loc[table["transition"].eq(True)].sort_values("step", ascending=False)
    if found.empty:
        raise MechinterpError("no measure makes a transition; there is nothing to draw")
    return strip(
        found.set_axis([measure_name(str(name)) for name in found.index]),
        "Transitions",
        "step (updates)",
        colours=colours_of([str(name) for name in found.index]),
    )


def strip(table: pd.DataFrame, title: str, x: str, *, colours: list[str] | None = None) -> go.Figure:
    """A row for every row of a table with the columns ``step``, ``low`` and ``high``, the first at the bottom."""
    at = table["step"].astype(float)
    low, high = (table[end].astype(float).fillna(at) for end in ("low", "high"))
    error: dict[str, Any] = {"type": "data", "symmetric": False, "thickness": 2, "width": 4}
    figure = go.Figure()
    shades = colours or [PALETTE[1]] * len(table)
    for name, step, above, below, colour in zip(table.index, at, high - at, at - low, shades, strict=True):
        figure.add_scatter(
            x=[step],
            y=[name],
            error_x={**error, "array": [above], "arrayminus": [below], "color": colour},
            mode="markers",
            marker={"color": colour, "size": 9},
            showlegend=False,
            name=str(name),
            hovertemplate=f"%{{x:,.0f}} [{step - below:,.0f}, {step + above:,.0f}]",
        )
    styled(figure, title, x, None).update_layout(height=110 + 26 * len(table))
    return figure.update_yaxes(categoryorder="array", categoryarray=list(table.index), automargin=True)


def _measured(table: pd.DataFrame) -> list[str]:
    """Progress measures and accuracies; losses fall, and say the same."""
    accuracies = [str(name) for name in table if str(name).endswith("_accuracy")]
    return list(dict.fromkeys([*accuracies, *progress_columns(table)]))
