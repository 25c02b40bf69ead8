"""Figures of sweeps: what runs come to, against what was varied. Each is drawn from a table of runs."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import cycle

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from analyses.claims.scaling import power_law
from mechinterp.errors import MechinterpError
from mechinterp.figures import COLOURS
from mechinterp.labels import measure_name

SERIES = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
"""Colours of series that have no meaning of their own, after Okabe & Ito."""


def heat_maps(table: pd.DataFrame, x: str, y: str, columns: Sequence[str], title: str) -> go.Figure:
    """The median over seeds of every column, 0 to 1, by two settings; one map beside another, the values written in."""
    names = [measure_name(column.removeprefix("final_")) for column in columns]
    figure = make_subplots(cols=len(columns), subplot_titles=names, shared_yaxes=True, horizontal_spacing=0.04)
    for col, column in enumerate(columns, start=1):
        values = table.pivot_table(index=y, columns=x, values=column, aggfunc="median")
        figure.add_heatmap(
            z=values.to_numpy(),
            x=[str(each) for each in values.columns],
            y=[str(each) for each in values.index],
            zmin=0,
            zmax=1,
            colorscale="Viridis",
            texttemplate="%{z:.2f}",
            colorbar={"title": "median"},
            showscale=col == len(columns),
            row=1,
            col=col,
        )
        figure.update_xaxes(title=x, type="category", row=1, col=col)
    figure.update_yaxes(title=y, type="category", row=1, col=1)
    return figure.update_layout(template="plotly_white", title=title, height=380, width=120 + 400 * len(columns))


def bands(
    table: pd.DataFrame, x: str, columns: Sequence[str], panels: str | None, title: str, *, log_x: bool = False
) -> go.Figure:
    """Every column against a setting: the median over seeds, in a band from least to greatest; a panel for each value
    of another setting."""
    parts = [("", table)]
    if panels is not None:
        parts = [(f"{panels} = {value}", own) for value, own in table.groupby(panels)]
    figure = make_subplots(cols=len(parts), subplot_titles=[name for name, _ in parts], shared_yaxes=True)
    for col, (_, part) in enumerate(parts, start=1):
        for column in columns:
            found = part.groupby(x)[column].agg(["min", "median", "max"])
            at, name = found.index.to_numpy(dtype=float), column.removeprefix("final_")
            colour = COLOURS.get(name, "#0072B2")
            figure.add_scatter(
                x=np.concatenate([at, at[::-1]]),
                y=np.concatenate([found["max"].to_numpy(), found["min"].to_numpy()[::-1]]),
                fill="toself",
                fillcolor=colour,
                opacity=0.2,
                mode="lines",
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                row=1,
                col=col,
            )
            figure.add_scatter(
                x=at,
                y=found["median"].to_numpy(),
                name=measure_name(name),
                legendgroup=name,
                showlegend=col == 1,
                mode="lines+markers",
                line={"color": colour},
                row=1,
                col=col,
            )
        figure.update_xaxes(title=x, row=1, col=col)
        if log_x:
            ticks = sorted(part[x].unique())
            figure.update_xaxes(type="log", tickvals=ticks, ticktext=[str(each) for each in ticks], row=1, col=col)
    figure.update_yaxes(range=[-0.02, 1.02])
    figure.update_yaxes(title="at the end: median, least to greatest", row=1, col=1)
    return figure.update_layout(template="plotly_white", title=title, height=420, width=max(560, 330 * len(parts)))


def strips(table: pd.DataFrame, x: str, columns: Sequence[str], title: str, *, y: str = "at the end") -> go.Figure:
    """Every run as a point: columns against a setting, nothing averaged, so that groups of seeds are seen."""
    figure, places = go.Figure(), {value: i for i, value in enumerate(sorted(table[x].unique()))}
    for number, column in enumerate(columns):
        name = column.removeprefix("final_")
        shift = (number - (len(columns) - 1) / 2) * 0.18
        within = table.groupby(x).cumcount().to_numpy() / max(table.groupby(x).size().max() - 1, 1) - 0.5
        figure.add_scatter(
            x=np.array([places[value] for value in table[x]]) + shift + 0.12 * within,
            y=table[column].to_numpy(),
            name=measure_name(name),
            mode="markers",
            text=[f"{x} = {value}, seed {seed}" for value, seed in zip(table[x], table["seed"], strict=True)],
            marker={"color": COLOURS.get(name, "#0072B2"), "size": 8, "opacity": 0.75},
        )
    figure.update_xaxes(title=x, tickvals=list(places.values()), ticktext=[str(value) for value in places])
    figure.update_yaxes(title=y)
    return figure.update_layout(template="plotly_white", title=title, height=420)


def race(table: pd.DataFrame, alone: pd.DataFrame, title: str) -> go.Figure:
    """Steps by which in-weights learning (alone, B = 0) and in-context learning (alone, p_C = 1) are there, against K;
    and how much of the answer comes from the context where both may be learned.

    `alone` has ``K`` and ``iwl`` (steps) of the one, ``B`` and ``icl`` of the other; `table` has ``K``, ``B`` and
    ``share``, IC / (IC + IWL) at the end.
    """
    titles = ["each by itself", "both possible: what is learned"]
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.08, subplot_titles=titles)
    memorised = alone.dropna(subset=["iwl"]).groupby("K")["iwl"].agg(["min", "median", "max"])
    figure.add_scatter(
        x=memorised.index.to_numpy(dtype=float),
        y=memorised["median"].to_numpy(),
        name="IWL alone (B = 0)",
        mode="lines+markers",
        line={"color": COLOURS["iwl_accuracy"]},
        row=1,
        col=1,
    )
    dashes = {1: "solid", 2: "dash", 4: "dot"}
    for B, part in alone.dropna(subset=["icl"]).groupby("B"):
        dash = dashes.get(int(str(B)), "dashdot")
        step = float(part["icl"].median())
        where = table[table["B"] == B].groupby("K")["share"].agg(["min", "median", "max"])
        line = {"color": COLOURS["icl_accuracy"], "dash": dash}
        span = [float(table["K"].min()), float(table["K"].max())]
        figure.add_scatter(x=span, y=[step, step], name=f"ICL alone, B = {B}", mode="lines", line=line, row=1, col=1)
        figure.add_scatter(
            x=where.index.to_numpy(dtype=float),
            y=where["median"].to_numpy(),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (where["max"] - where["median"]).to_numpy(),
                "arrayminus": (where["median"] - where["min"]).to_numpy(),
            },
            name=f"B = {B}",
            mode="lines+markers",
            line=line,
            showlegend=False,
            row=2,
            col=1,
        )
    ticks = sorted(int(str(each)) for each in memorised.index)
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[str(each) for each in ticks])
    figure.update_xaxes(title="K", row=2, col=1)
    round_steps = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
    labels = [f"{step:,}" for step in round_steps]
    figure.update_yaxes(title="acquired at step", type="log", row=1, col=1)
    figure.update_yaxes(tickvals=round_steps, ticktext=labels, row=1, col=1)
    figure.update_yaxes(title="IC / (IC + IWL)", range=[-0.02, 1.02], row=2, col=1)
    return figure.update_layout(template="plotly_white", title=title, height=640, width=760)


def laws(tables: Mapping[str, pd.DataFrame], x: str, y: str, title: str) -> go.Figure:
    """Something against a setting on logarithmic axes: every run as a point, and the power law of its seeds.

    By name, tables of seeds × settings, each in a colour of its own (of eight, in turn); values that are not finite are
    left out, and a law that cannot be fitted.
    """
    figure = go.Figure()
    for (name, own), colour in zip(tables.items(), cycle(SERIES)):
        at = np.tile([float(str(setting)) for setting in own], len(own))
        values = own.to_numpy(dtype=float).ravel()
        shown, marker = np.isfinite(values), {"color": colour, "opacity": 0.6, "size": 7}
        figure.add_scatter(x=at[shown], y=values[shown], mode="markers", marker=marker, name=name, legendgroup=name)
        with suppress(MechinterpError):
            law = power_law(own)
            span = np.array([at.min(), at.max()])
            text = f"∝ {x}^{law.exponent}" if len(own) > 1 else f"∝ {x}^{law.exponent.value:.2f}"
            line = {"color": colour, "width": 1.5, "dash": "solid" if law.is_straight else "dot"}
            height = law.prefactor * span**law.exponent.value
            figure.add_scatter(x=span, y=height, mode="lines", line=line, name=text, legendgroup=name)
    ticks = sorted({float(str(setting)) for own in tables.values() for setting in own})
    figure.update_xaxes(title=x, type="log", tickvals=ticks, ticktext=[f"{each:g}" for each in ticks])
    figure.update_yaxes(title=y, type="log")
    return figure.update_layout(template="plotly_white", title=title, height=460, width=760)


def clouds(
    panels: Mapping[str, tuple[pd.DataFrame, str, str]],
    curve: tuple[NDArray[np.float64], NDArray[np.float64]],
    title: str,
) -> go.Figure:
    """Checkpoints as points, x logarithmic, a colour for each variant, and what theory says; a panel for each table,
    with the names of the columns that are its x and y."""
    figure = make_subplots(cols=len(panels), subplot_titles=list(panels), horizontal_spacing=0.08)
    names = list(dict.fromkeys(str(name) for table, _, _ in panels.values() for name in table["variant"]))
    colours, shown = dict(zip(names, cycle(SERIES[1:]))), set()
    for col, (table, x, y) in enumerate(panels.values(), start=1):
        for variant, own in table.groupby("variant", sort=False):
            name = str(variant)
            marker = {"size": 4, "opacity": 0.6, "color": colours[name]}
            figure.add_scatter(
                x=own[x].to_numpy(),
                y=own[y].to_numpy(),
                mode="markers",
                marker=marker,
                name=name,
                legendgroup=name,
                showlegend=name not in shown,
                row=1,
                col=col,
            )
            shown.add(name)
        line, first = {"color": SERIES[0], "width": 1.5}, col == 1
        figure.add_scatter(
            x=curve[0], y=curve[1], mode="lines", line=line, name="theory", showlegend=first, row=1, col=col
        )
        figure.update_xaxes(title=x, type="log", row=1, col=col).update_yaxes(title=y, row=1, col=col)
    return figure.update_layout(template="plotly_white", title=title, height=460, width=220 + 420 * len(panels))


def paths(
    panels: Mapping[str, Mapping[str, Sequence[pd.Series]]], title: str, *, log: Collection[str] = ()
) -> go.Figure:
    """Curves of runs by panel and name, a series for every seed, against its index. Axes of the panels in `log` are
    logarithmic, that of time too; series of one name share a colour."""
    figure = make_subplots(cols=len(panels), subplot_titles=list(panels), horizontal_spacing=0.05)
    names = list(dict.fromkeys(name for each in panels.values() for name in each))
    colours, shown = dict(zip(names, cycle(SERIES))), set()
    for col, (panel, each) in enumerate(panels.items(), start=1):
        for name, runs in each.items():
            for run in runs:
                figure.add_scatter(
                    x=run.index.to_numpy(dtype=float),
                    y=run.to_numpy(dtype=float),
                    mode="lines",
                    line={"color": colours[name], "width": 1.5},
                    name=name,
                    legendgroup=name,
                    showlegend=name not in shown,
                    row=1,
                    col=col,
                )
                shown.add(name)
                figure.update_xaxes(title=str(run.index.name), row=1, col=col)
        if panel in log:
            figure.update_xaxes(type="log", row=1, col=col)
            figure.update_yaxes(type="log", row=1, col=col)
    return figure.update_layout(template="plotly_white", title=title, height=420, width=max(560, 330 * len(panels)))


def differences(table: pd.DataFrame, panels: str, rows: str, title: str) -> go.Figure:
    """How each row of a comparison differs from its baseline: the ratio of times, and shifts of IC and IWL accuracy,
    with their extremes over seeds (columns ``ratio``, ``IC_shift``, ``IWL_shift``, each with ``_low`` and ``_high``).
    """
    parts = list(table.groupby(panels, sort=False))
    shown = {"ratio": "time / baseline's", "IC_shift": "IC − baseline's", "IWL_shift": "IWL − baseline's"}
    figure = make_subplots(
        rows=len(parts),
        cols=len(shown),
        row_heights=[len(part) + 1 for _, part in parts],
        vertical_spacing=0.06,
        horizontal_spacing=0.03,
        shared_yaxes=True,
        column_titles=list(shown.values()),
        row_titles=[str(name) for name, _ in parts],
    )
    for row, (_, part) in enumerate(parts, start=1):
        for col, column in enumerate(shown, start=1):
            figure.add_scatter(
                x=part[column].to_numpy(),
                y=part[rows].to_numpy(),
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": (part[f"{column}_high"] - part[column]).to_numpy(),
                    "arrayminus": (part[column] - part[f"{column}_low"]).to_numpy(),
                },
                mode="markers",
                marker={"color": "#0072B2", "size": 8},
                showlegend=False,
                row=row,
                col=col,
            )
            figure.add_vline(x=1 if column == "ratio" else 0, line={"color": "#999999", "width": 1}, row=row, col=col)
            if column == "ratio":
                figure.update_xaxes(type="log", row=row, col=col)
        figure.update_yaxes(autorange="reversed", row=row)
    return figure.update_layout(template="plotly_white", title=title, height=220 + 26 * len(table), width=1000)
