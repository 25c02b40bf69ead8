"""Figures of single runs that only the analyses draw, in the style of the report."""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from mechinterp.figures import COLOURS, PALETTE, styled
from mechinterp.labels import measure_name


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
            hover = {
                "hovertext": f"{run}: {measure_name(name)}",
                "opacity": 0.35,
                "legendgroup": name,
                "showlegend": False,
            }
            x, y = each.index.to_numpy(), values.to_numpy()
            figure.add_scatter(x=x, y=y, mode="lines", line=line, row=1, col=column, **hover)
        mean = {"x": each.index.to_numpy(), "y": each.mean(axis=1).to_numpy(), "legendgroup": name}
        line, named = {"color": colour, "width": 3}, name != "train_loss"  # its axis says what the loss is
        figure.add_scatter(
            **mean, mode="lines", name=measure_name(name), line=line, showlegend=named, row=1, col=column
        )
    styled(figure, title, "step (updates)", None)
    figure.update_yaxes(title_text="loss (nats)", type="log", exponentformat="none", dtick=1, row=1, col=1)
    return figure.update_yaxes(title_text="accuracy", range=[-0.03, 1.03], row=1, col=2)


def by_variant(variants: Mapping[str, Mapping[int, pd.DataFrame]], rows: dict[str, list[str]], title: str) -> go.Figure:
    """Measures of the runs of several variants: a column of panels for each variant, a row for each list of measures.

    Every run is a pale line; the dark one is their mean. `rows` gives the measures by what their axis says.
    """
    figure = make_subplots(
        rows=len(rows),
        cols=len(variants),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.06,
        column_titles=list(variants),
    )
    named = set[str]()
    colours = dict(zip([name for names in rows.values() for name in names], cycle(PALETTE), strict=False))
    for column, tables in enumerate(variants.values(), start=1):
        for row, names in enumerate(rows.values(), start=1):
            for name in (each for each in names if all(each in table for table in tables.values())):
                runs, place = (
                    pd.DataFrame({run: table[name] for run, table in tables.items()}),
                    {"row": row, "col": column},
                )
                line: dict[str, object] = {"color": colours[name], "width": 1}
                x, shared = runs.index.to_numpy(), {"mode": "lines", "legendgroup": name}
                for run, values in runs.items():
                    hover = {"hovertext": f"{run}: {name}", "opacity": 0.35, "showlegend": False}
                    figure.add_scatter(x=x, y=values.to_numpy(), line=line, **shared, **hover, **place)
                label = {"name": measure_name(name), "showlegend": name not in named}
                named.add(name)
                y = runs.mean(axis=1).to_numpy()
                figure.add_scatter(x=x, y=y, line={**line, "width": 3}, **shared, **label, **place)
    for row, name in enumerate(rows, start=1):
        figure.update_yaxes(title_text=name, row=row, col=1)
    figure.update_xaxes(title_text="step (updates)", row=len(rows))
    return styled(figure, title, None, None).update_layout(height=130 + 270 * len(rows), margin={"t": 90})


def each_seed(tables: dict[str, pd.DataFrame], names: list[str], title: str) -> go.Figure:
    """Measures of several runs over training: a colour for each run, or, of several measures, for each measure."""
    figure = go.Figure()
    for (run, table), colour in zip(tables.items(), cycle(PALETTE), strict=False):
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
    return styled(figure, title, "step (updates)", names[0] if len(names) == 1 else "fraction")


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
    return styled(figure, title, None, None).update_layout(height=600, margin={"t": 90})


def attention_shares(panels: dict[str, pd.DataFrame], title: str) -> go.Figure:
    """What each query pays to each kind of key, as a bar of length 1: one panel for each table of query, key and share.

    Kinds of keys have the colours of the measure that they are: token before, ILA1; correct label, TILA2; other labels,
    with which it makes TLA2.
    """
    figure = make_subplots(
        rows=1, cols=len(panels), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=list(panels)
    )
    for number, table in enumerate(panels.values(), start=1):
        for key, colour in _KEY_COLOURS.items():
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
    return styled(figure, title, None, None).update_layout(
        barmode="stack", height=360, legend={"y": -0.35}, margin={"t": 90}
    )


_KEY_COLOURS = {
    "itself": "#999999",
    "token before": COLOURS["ila1"],
    "correct item": "#0072B2",
    "other items": "#56B4E9",
    "correct label": COLOURS["tila2"],
    "other labels": COLOURS["tla2"],
}


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
    return styled(figure, title, None, None).update_layout(height=520)
