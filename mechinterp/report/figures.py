"""Figures, each drawn from a table or from patterns; nothing is computed here but what is drawn."""

from itertools import cycle, product

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import get_colorscale
from plotly.subplots import make_subplots

_PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
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
"""What the papers call the measures."""


def curves(
    table: pd.DataFrame, names: list[str], title: str, emergence: pd.DataFrame | None = None, *, y: str = "fraction"
) -> go.Figure:
    """Measures over training steps; the interval of each located transition is shaded, its step marked."""
    figure = go.Figure()
    for name, other in zip(names, cycle(_PALETTE), strict=False):
        colour = COLOURS.get(name.removeprefix("clamped_"), other)
        figure.add_scatter(x=table.index.to_numpy(), y=table[name].to_numpy(), name=name, line={"color": colour})
        if emergence is None or name not in emergence.index or not emergence.loc[name, "transition"]:
            continue
        found = emergence.loc[name]
        figure.add_vrect(x0=found["low"], x1=found["high"], fillcolor=colour, opacity=0.15, line_width=0)
        figure.add_vline(x=found["step"], line={"color": colour, "dash": "dot", "width": 1})
    return _styled(figure, title, "step (updates)", y)


def aligned(
    tables: dict[str, pd.DataFrame], origins: dict[str, float], names: list[str], title: str, since: str
) -> go.Figure:
    """Measures of the runs that have an origin, against the steps `since` it, as Reddy 2023 has it in figure 4."""
    figure = go.Figure()
    for number, (run, origin) in enumerate(origins.items()):
        table = tables[run]
        for name, other in zip(names, cycle(_PALETTE), strict=False):
            if name not in table:
                continue
            figure.add_scatter(
                x=table.index.to_numpy() - origin,
                y=table[name].to_numpy(),
                name=NAMES.get(name, name),
                legendgroup=name,
                showlegend=number == 0,
                line={"color": COLOURS.get(name.removeprefix("clamped_"), other), "width": 1.5},
                hovertext=run,
            )
    return _styled(figure, title, f"steps since {since}", "fraction")


def loss_and_accuracies(tables: dict[str, pd.DataFrame], title: str) -> go.Figure:
    """Training loss, and IC, IWL and swapped-label accuracy of several runs: pale lines, and dark ones for their means.

    As Reddy 2023 has it in figures 1d and A.2, but with the loss on a logarithmic axis. Means are over the runs that
    have saved a step.
    """
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.09)
    panels = [["train_loss"], ["icl_accuracy", "iwl_accuracy", "swap_accuracy"]]
    for column, name in ((column, name) for column, names in enumerate(panels, start=1) for name in names):
        colour, each = COLOURS[name], pd.DataFrame({run: table[name] for run, table in tables.items()})
        for run, values in each.items():
            line = {"color": colour, "width": 1}
            hover = {"hovertext": f"{run}: {NAMES[name]}", "opacity": 0.35, "legendgroup": name, "showlegend": False}
            x, y = each.index.to_numpy(), values.to_numpy()
            figure.add_scatter(x=x, y=y, mode="lines", line=line, row=1, col=column, **hover)
        mean = {"x": each.index.to_numpy(), "y": each.mean(axis=1).to_numpy(), "legendgroup": name}
        line, named = {"color": colour, "width": 3}, name != "train_loss"  # its axis says what the loss is
        figure.add_scatter(**mean, mode="lines", name=NAMES[name], line=line, showlegend=named, row=1, col=column)
    _styled(figure, title, "step (updates)", None)
    figure.update_yaxes(title_text="loss (nats)", type="log", exponentformat="none", dtick=1, row=1, col=1)
    return figure.update_yaxes(title_text="accuracy", range=[-0.03, 1.03], row=1, col=2)


def each_seed(tables: dict[str, pd.DataFrame], names: list[str], title: str) -> go.Figure:
    """Measures of several runs over training: a colour for each run, or, of several measures, for each measure."""
    figure = go.Figure()
    for (run, table), colour in zip(tables.items(), cycle(_PALETTE), strict=False):
        for name in names:
            figure.add_scatter(
                x=table.index.to_numpy(),
                y=table[name].to_numpy(),
                name=run if len(names) == 1 else name,
                legendgroup=run if len(names) == 1 else name,
                showlegend=len(names) == 1 or run == next(iter(tables)),
                line={"color": colour if len(names) == 1 else COLOURS[name], "width": 1.5},
                hovertext=f"{run}: {name}",
            )
    return _styled(figure, title, "step (updates)", names[0] if len(names) == 1 else "fraction")


def attention_map(pattern: NDArray, token_names: list[str], title: str) -> go.Figure:
    """One head's pattern, query (row) × key (column)."""
    figure = go.Figure()
    figure.add_heatmap(
        z=pattern,
        x=token_names,
        y=token_names,
        name=title,
        zmin=0,
        zmax=1,
        colorscale=get_colorscale("Viridis"),
        showscale=False,
    )
    every = {"showgrid": False, "dtick": 1, "tickfont": {"size": 9}}
    figure.update_xaxes(every).update_yaxes(every | {"autorange": "reversed"})
    return _styled(figure, title, "key", "query")


def block_map(
    strengths: NDArray, rows: list[str], columns: list[str], title: str, top: float, *, reads: bool
) -> go.Figure:
    """One head's QK circuit, query part × key part, or, unless it `reads`, its OV circuit; the scale ends at `top`."""
    figure = go.Figure()
    figure.add_heatmap(
        z=strengths,
        x=columns,
        y=rows,
        name=title,
        zmin=0,
        zmax=top,
        colorscale=get_colorscale("Viridis"),
        showscale=False,
        texttemplate="%{z:.2f}",
    )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False, autorange="reversed")
    return _styled(figure, title, "key part" if reads else "written", "query part" if reads else "read")


def plane(x: NDArray, y: NDArray, x_title: str, y_title: str) -> go.Figure:
    """The path of two quantities over training."""
    figure = go.Figure()
    figure.add_scatter(x=x, y=y, name="all checkpoints", line={"color": "#0072B2", "width": 1.5})
    return _styled(figure, f"{x_title.split()[0]} and {y_title.split()[0]}", x_title, y_title)


def order_parameters(table: pd.DataFrame, left: dict[str, str], right: tuple[str, str]) -> go.Figure:
    """Columns over training, with their symbols: some on one axis, and one on an axis of its own."""
    figure = go.Figure()
    for (column, name), colour in zip(left.items(), ("#D55E00", "#009E73", "#CC79A7"), strict=False):
        figure.add_scatter(x=table.index.to_numpy(), y=table[column].to_numpy(), name=name, line={"color": colour})
    column, name = right
    figure.add_scatter(
        x=table.index.to_numpy(),
        y=table[column].to_numpy(),
        name=f"{name} (right)",
        line={"color": "#0072B2"},
        yaxis="y2",
    )
    styled = _styled(figure, "Over training", "step (updates)", ", ".join(left.values()))
    axis = {"overlaying": "y", "side": "right", "title": {"text": name}, "showgrid": False, "tickmode": "auto"}
    return styled.update_layout(yaxis2=axis)


def head_name(layer: int, head: int, n_heads: int) -> str:
    """Layers and heads count from 1 in text, and a head is named where there are several."""
    return f"layer {layer + 1}" + (f", head {head + 1}" if n_heads > 1 else "")


def attention_maps(patterns: dict[int, tuple[NDArray, NDArray]], token_names: list[str], title: str) -> go.Figure:
    """Layer 1's pattern [query, key] and the target's row of layer 2 [key] at several steps, for one sequence.

    Keys after their query are left white.
    """
    steps = list(patterns)
    figure = make_subplots(
        rows=2,
        cols=len(steps),
        row_heights=[0.88, 0.12],
        vertical_spacing=0.14,
        horizontal_spacing=0.03,
        shared_yaxes=True,
        subplot_titles=[f"step {step:,}" for step in steps],
    )
    for column, step in enumerate(steps, start=1):
        layer1, target_row = patterns[step]
        layer1 = np.where(np.tri(len(layer1), dtype=bool), layer1, np.nan)
        shared = {"x": token_names, "zmin": 0, "zmax": 1, "colorscale": "Viridis"}
        figure.add_heatmap(z=layer1, y=token_names, showscale=column == 1, row=1, col=column, **shared)
        figure.add_heatmap(z=target_row[None], y=["target"], showscale=False, row=2, col=column, **shared)
    figure.update_xaxes(showgrid=False, tickangle=-90).update_yaxes(showgrid=False, autorange="reversed")
    figure.update_yaxes(title_text="layer 1: query", row=1, col=1).update_yaxes(title_text="layer 2", row=2, col=1)
    figure.update_xaxes(title_text="key", row=2)
    return _styled(figure, title, None, None).update_layout(height=600, margin={"t": 90})


def attention_shares(panels: dict[str, pd.DataFrame], title: str) -> go.Figure:
    """What each query pays to each kind of key, as a bar of length 1: one panel for each table of query, key and share.

    Kinds of keys have the colours of the measure that they are: token before, ILA1; correct label, TILA2; other labels,
    with which it makes TLA2.
    """
    figure = make_subplots(
        rows=1, cols=len(panels), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=list(panels)
    )
    for number, table in enumerate(panels.values(), start=1):
        for key, colour in _KEYS.items():
            rows = table[table["key"] == key]
            figure.add_bar(
                x=rows["share"].to_numpy(),
                y=rows["query"].to_numpy(),
                name=key,
                orientation="h",
                legendgroup=key,
                showlegend=number == 1,
                marker={"color": colour, "line": {"color": "white", "width": 1}},
                row=1,
                col=number,
            )
    figure.update_xaxes(range=[0, 1], tickvals=[0, 0.5, 1], title_text="attention")
    figure.update_yaxes(autorange="reversed")
    return _styled(figure, title, None, None).update_layout(
        barmode="stack", height=360, legend={"y": -0.35}, margin={"t": 90}
    )


_KEYS = {
    "itself": "#999999",
    "token before": COLOURS["ila1"],
    "correct item": "#0072B2",
    "other items": "#56B4E9",
    "correct label": COLOURS["tila2"],
    "other labels": COLOURS["tla2"],
}


def trajectories(
    tables: dict[str, pd.DataFrame],
    label: str,
    value: str,
    shown: list[str],
    title: str,
    bands: dict[str, tuple[float, float]] | None = None,
) -> go.Figure:
    """`value` over training steps, a line for each of the `shown` labels; several runs share a label's colour.

    `bands` gives labels the range of values that would be nothing remarkable; it is shaded in the label's colour.
    """
    figure = go.Figure()
    styles = list(product(("solid", "dash", "dot", "dashdot"), _PALETTE))  # colours first, then other dashes
    for each, (_, colour) in zip(shown, cycle(styles), strict=False):
        if bands and each in bands:
            low, high = bands[each]
            figure.add_hrect(y0=low, y1=high, fillcolor=colour, opacity=0.15, line_width=0, layer="below")
    for number, (run, table) in enumerate(tables.items()):
        for each, (dash, colour) in zip(shown, cycle(styles), strict=False):
            rows = table.loc[table[label] == each]
            figure.add_scatter(
                x=rows["step"].to_numpy(),
                y=rows[value].to_numpy(),
                name=each,
                legendgroup=each,
                showlegend=number == 0,
                line={"color": colour, "width": 1.5, "dash": dash},
                hovertext=f"{run}: {each}",
            )
    return _styled(figure, title, "step (updates)", value)


def site_maps(table: pd.DataFrame, rows: str, columns: str, value: str, steps: list[int], title: str) -> go.Figure:
    """A heat map of `value` over rows × columns at each of several steps; blue is negative, red positive.

    What is not a number, or does not exist, is left white.
    """
    places = {axis: list(dict.fromkeys(table[axis])) for axis in (rows, columns)}
    figure = make_subplots(
        rows=1, cols=len(steps), shared_yaxes=True, subplot_titles=[f"step {step:,}" for step in steps]
    )
    for number, step in enumerate(steps, start=1):
        here = table[table["step"] == step].pivot_table(index=rows, columns=columns, values=value, sort=False)
        here = here.reindex(index=places[rows], columns=places[columns])
        figure.add_heatmap(
            x=list(here.columns),
            y=list(here.index),
            z=here.to_numpy(),
            row=1,
            col=number,
            zmin=-1,
            zmax=1,
            colorscale="RdBu_r",
            showscale=number == len(steps),
        )
    figure.update_yaxes(autorange="reversed")
    return _styled(figure, title, None, None).update_layout(height=520)


def _styled(figure: go.Figure, title: str, x: str | None, y: str | None) -> go.Figure:
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
