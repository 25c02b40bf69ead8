"""Curves over training: measures of a run, runs aligned, and columns of an analysis."""

from collections.abc import Sequence
from itertools import cycle, product
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechinterp.figures.style import DASHES, PALETTE, colours_of, styled
from mechinterp.labels import measure_name

SPIKE_COLOUR = "#CC79A7"
"""Colour of the ticks that mark loss spikes."""


def curves(
    table: pd.DataFrame,
    names: list[str],
    title: str,
    emergence: pd.DataFrame | None = None,
    *,
    y: str = "fraction",
    spikes: Sequence[int] = (),
) -> go.Figure:
    """Columns of `table` over training steps; the interval of every located transition is shaded, its step marked.

    A row of ticks at the foot marks the steps of `spikes`.
    """
    figure = go.Figure()
    for name, colour in zip(names, colours_of(names), strict=True):
        figure.add_scatter(x=table.index.to_numpy(), y=table[name].to_numpy(), name=name, line={"color": colour})
        if emergence is None or name not in emergence.index or not emergence.loc[name, "transition"]:
            continue
        row = emergence.loc[name]
        figure.add_vrect(x0=row["low"], x1=row["high"], fillcolor=colour, opacity=0.15, line_width=0)
        figure.add_vline(x=row["step"], line={"color": colour, "dash": "dot", "width": 1})
    tick: Any = {"type": "line", "yref": "paper", "y0": 0, "y1": 0.04, "line": {"color": SPIKE_COLOUR, "width": 1.5}}
    figure.update_layout(shapes=[*figure.layout.shapes, *({**tick, "x0": step, "x1": step} for step in spikes)])  # pyright: ignore[reportAttributeAccessIssue]
    return styled(figure, title, "step (updates)", y)


def aligned_curves(
    tables: dict[str, pd.DataFrame], origins: dict[str, float], names: list[str], title: str, since: str
) -> go.Figure:
    """Measures of the runs that have an origin, over the steps `since` it, as in Reddy 2023, figure 4."""
    figure = go.Figure()
    for number, (run, origin) in enumerate(origins.items()):
        table = tables[run]
        for name, colour in zip(names, colours_of(names), strict=True):
            if name not in table:
                continue
            figure.add_scatter(
                x=table.index.to_numpy() - origin,
                y=table[name].to_numpy(),
                name=measure_name(name),
                legendgroup=name,
                showlegend=number == 0,
                line={"color": colour, "width": 1.5},
                hovertext=run,
            )
    return styled(figure, title, f"steps since {since}", "fraction")


def trajectories(
    tables: dict[str, pd.DataFrame],
    label: str,
    value: str,
    names: list[str],
    title: str,
    bands: dict[str, tuple[float, float]] | None = None,
) -> go.Figure:
    """The column `value` over training steps, a line for every one of `names` in the column `label`, in every run.

    A name has the same colour in all runs. `bands` are ranges of values that are expected without training, by name;
    they are shaded in the name's colour.
    """
    figure = go.Figure()
    styles = list(product(DASHES[:4], PALETTE))  # colours first, then other dashes
    for name, (_, colour) in zip(names, cycle(styles), strict=False):
        if bands and name in bands:
            low, high = bands[name]
            figure.add_hrect(y0=low, y1=high, fillcolor=colour, opacity=0.15, line_width=0, layer="below")
    for number, (run, table) in enumerate(tables.items()):
        for name, (dash, colour) in zip(names, cycle(styles), strict=False):
            rows = table.loc[table[label] == name]
            figure.add_scatter(
                x=rows["step"].to_numpy(),
                y=rows[value].to_numpy(),
                name=name,
                legendgroup=name,
                showlegend=number == 0,
                line={"color": colour, "width": 1.5, "dash": dash},
                hovertext=f"{run}: {name}",
            )
    return styled(figure, title, "step (updates)", value)
