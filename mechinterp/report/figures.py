"""Plotly figures of tables and attention patterns; the numbers are computed elsewhere."""

from collections.abc import Sequence
from itertools import cycle, product
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import get_colorscale

PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
COLOURS = {
    "icl_accuracy": "#000000",
    "iwl_accuracy": "#56B4E9",
    "swap_accuracy": "#E69F00",
    "train_accuracy": "#999999",
    "ila1": "#D55E00",
    "tila2": "#009E73",
    "cla": "#0072B2",
    "tla2": "#CC79A7",
    "icl_loss": "#000000",
    "iwl_loss": "#56B4E9",
    "swap_loss": "#E69F00",
    "train_loss": "#999999",
}
"""Colours by measure (Okabe–Ito, safe for the colour-blind); ILA1, TILA2, CLA and TLA2 as in Reddy 2023, figure 4."""

NAMES = {
    "train_loss": "training loss",
    "icl_accuracy": "IC accuracy",
    "iwl_accuracy": "IWL accuracy",
    "swap_accuracy": "swapped-label accuracy",
    "ila1": "ILA1",
    "tila2": "TILA2",
    "cla": "CLA",
    "tla2": "TLA2",
}
"""The names of the measures in the papers."""


SPIKE_COLOUR = "#D55E00"
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
    """Measures over training steps; the interval of every located transition is shaded, its step marked.

    A row of ticks at the foot marks the steps of `spikes`.
    """
    figure = go.Figure()
    for name, fallback in zip(names, cycle(PALETTE), strict=False):
        colour = COLOURS.get(name.removeprefix("clamped_"), fallback)
        figure.add_scatter(x=table.index.to_numpy(), y=table[name].to_numpy(), name=name, line={"color": colour})
        if emergence is None or name not in emergence.index or not emergence.loc[name, "transition"]:
            continue
        row = emergence.loc[name]
        figure.add_vrect(x0=row["low"], x1=row["high"], fillcolor=colour, opacity=0.15, line_width=0)
        figure.add_vline(x=row["step"], line={"color": colour, "dash": "dot", "width": 1})
    tick: Any = {"type": "line", "yref": "paper", "y0": 0, "y1": 0.04, "line": {"color": SPIKE_COLOUR, "width": 1.5}}
    figure.update_layout(shapes=[*figure.layout.shapes, *({**tick, "x0": step, "x1": step} for step in spikes)])  # pyright: ignore[reportAttributeAccessIssue]
    return styled(figure, title, "step (updates)", y)


def aligned(
    tables: dict[str, pd.DataFrame], origins: dict[str, float], names: list[str], title: str, since: str
) -> go.Figure:
    """Measures of the runs that have an origin, over the steps `since` it, as in Reddy 2023, figure 4."""
    figure = go.Figure()
    for number, (run, origin) in enumerate(origins.items()):
        table = tables[run]
        for name, fallback in zip(names, cycle(PALETTE), strict=False):
            if name not in table:
                continue
            figure.add_scatter(
                x=table.index.to_numpy() - origin,
                y=table[name].to_numpy(),
                name=NAMES.get(name, name),
                legendgroup=name,
                showlegend=number == 0,
                line={"color": COLOURS.get(name.removeprefix("clamped_"), fallback), "width": 1.5},
                hovertext=run,
            )
    return styled(figure, title, f"steps since {since}", "fraction")


def attention_map(pattern: NDArray, token_names: list[str], title: str) -> go.Figure:
    """One head's pattern, query (row) × key (column)."""
    figure = _heat_map(pattern, token_names, token_names, title, 1.0)
    axis = {"showgrid": False, "dtick": 1, "tickfont": {"size": 9}}
    figure.update_xaxes(axis).update_yaxes(axis | {"autorange": "reversed"})
    return styled(figure, title, "key", "query")


def block_map(
    strengths: NDArray, rows: list[str], columns: list[str], title: str, top: float, *, reads: bool
) -> go.Figure:
    """One head's QK circuit, query part × key part, or, unless it `reads`, its OV circuit; the scale ends at `top`."""
    figure = _heat_map(strengths, columns, rows, title, top, texttemplate="%{z:.2f}")
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False, autorange="reversed")
    return styled(figure, title, "key part" if reads else "written", "query part" if reads else "read")


def _heat_map(z: NDArray, x: list[str], y: list[str], name: str, top: float, **options: Any) -> go.Figure:
    """A heat map, row × column, whose colours go from 0 to `top`."""
    colours = {"zmin": 0, "zmax": top, "colorscale": get_colorscale("Viridis"), "showscale": False}
    return go.Figure().add_heatmap(z=z, x=x, y=y, name=name, **colours, **options)


def plane(x: NDArray, y: NDArray, x_title: str, y_title: str) -> go.Figure:
    """The path of two quantities over training, as a curve in their plane."""
    figure = go.Figure()
    figure.add_scatter(x=x, y=y, name="all checkpoints", line={"color": "#0072B2", "width": 1.5})
    return styled(figure, f"{x_title.split()[0]} and {y_title.split()[0]}", x_title, y_title)


def order_parameters(table: pd.DataFrame, left: dict[str, str], right: tuple[str, str]) -> go.Figure:
    """Columns over training, by symbol: those of `left` on the left axis, that of `right` on a second axis."""
    figure = go.Figure()
    for (column, name), colour in zip(left.items(), ("#D55E00", "#009E73", "#CC79A7"), strict=False):
        figure.add_scatter(x=table.index.to_numpy(), y=table[column].to_numpy(), name=name, line={"color": colour})
    column, name = right
    line: Any = {"name": f"{name} (right)", "line": {"color": "#0072B2"}, "yaxis": "y2"}
    figure.add_scatter(x=table.index.to_numpy(), y=table[column].to_numpy(), **line)
    styled(figure, "Over training", "step (updates)", ", ".join(left.values()))
    axis = {"overlaying": "y", "side": "right", "title": {"text": name}, "showgrid": False, "tickmode": "auto"}
    return figure.update_layout(yaxis2=axis)


def head_name(layer: int, head: int, n_heads: int) -> str:
    """The name of a head in text, where layers and heads count from 1: the layer alone if it has one head."""
    return f"layer {layer + 1}" + (f", head {head + 1}" if n_heads > 1 else "")


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
    styles = list(product(("solid", "dash", "dot", "dashdot"), PALETTE))  # colours first, then other dashes
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


def styled(figure: go.Figure, title: str, x: str | None, y: str | None) -> go.Figure:
    """The figure, with the title, axis titles, size and fonts of all figures."""
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "font": {"size": 16}},
        height=420,
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        legend={"orientation": "h", "y": -0.2},
        font={"family": "system-ui, sans-serif"},
    )
    if x:
        figure.update_xaxes(title_text=x)
    if y:
        figure.update_yaxes(title_text=y)
    return figure


def token_names(n_pos: int, roles: dict[str, NDArray[np.bool_]]) -> list[str]:
    """x1, l1, x2, l2, …, target, from the roles of one sequence; the correct label carries a star."""
    names, items, labels = [], 0, 0
    for position in range(n_pos):
        if "item" in roles and roles["item"][position]:
            items += 1
            names.append(f"x{items}")
        elif "label" in roles and roles["label"][position]:
            labels += 1
            correct = "correct_label" in roles and roles["correct_label"][position]
            names.append(f"ℓ{labels}" + ("★" if correct else ""))
        else:
            names.append("target" if position == n_pos - 1 else f"t{position + 1}")
    return names
