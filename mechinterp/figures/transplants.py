"""Figures of transplants: accuracy by source and target, and the rise with the last versions of components."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechinterp.figures.style import PALETTE, styled

MOST = 12
"""The most components that one figure has maps of."""


def transplant_maps(table: pd.DataFrame, title: str, value: str = "accuracy") -> go.Figure:
    """A map for each component of a table of `mi.transplant`: `value` by the component's source (vertical) and the step
    of all else, the target (horizontal); on the dotted diagonal stand the checkpoints themselves. Of more than `MOST`
    components, those first in the table."""
    names = list(dict.fromkeys(table["component"]))[:MOST]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=names,
        shared_xaxes="all",
        shared_yaxes="all",
        horizontal_spacing=0.04,
        vertical_spacing=0.14 / rows,
    )
    low, high = float(table[value].min()), float(table[value].max())
    shared = {"zmin": 0 if value == "accuracy" else low, "zmax": 1 if value == "accuracy" else high}
    for number, name in enumerate(names):
        cells = table[table["component"] == name].pivot(index="source", columns="target", values=value)
        figure.add_heatmap(
            x=cells.columns.to_numpy(),
            y=cells.index.to_numpy(),
            z=cells.to_numpy().round(3),
            row=number // columns + 1,
            col=number % columns + 1,
            colorscale="Viridis",
            showscale=number == 0,
            colorbar={"title": {"text": value, "side": "right"}, "thickness": 12},
            hovertemplate=f"{name} of step %{{y}}, all else of step %{{x}}: %{{z:.3f}}<extra></extra>",
            **shared,
        )
        ends = [cells.columns.min(), cells.columns.max()]
        diagonal = {"x": ends, "y": ends, "mode": "lines", "showlegend": False, "hoverinfo": "skip"}
        figure.add_scatter(
            **diagonal,
            line={"color": "#FFFFFF", "dash": "dot", "width": 1},
            row=number // columns + 1,
            col=number % columns + 1,
        )
    figure = styled(figure, title, None, None).update_layout(height=120 + 280 * rows)
    for number in range(len(names)):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        if number + columns >= len(names):
            figure.update_xaxes(title_text="step of all else", showticklabels=True, **place)
    return figure.update_yaxes(title_text="step of the component", col=1)


def formation_curves(accuracies: pd.DataFrame, title: str) -> go.Figure:
    """Accuracy over steps of the run itself, and with the last versions of more and more components, a column each, as
    `Formation.chain_accuracies` has them; the dotted line is the level halfway between the run's first and last one."""
    figure = go.Figure()
    for number, (name, curve) in enumerate(accuracies.items()):
        label = str(name) if not number else f"with the last version of {name}" if number == 1 else f"and of {name}"
        line = {"color": "#000000", "width": 3} if not number else {"color": PALETTE[(number - 1) % len(PALETTE)]}
        figure.add_scatter(x=curve.index.to_numpy(), y=curve.to_numpy(), mode="lines", name=label, line=line)
    run = accuracies.iloc[:, 0]
    figure.add_hline(y=(run.iloc[0] + run.iloc[-1]) / 2, line={"color": "#999999", "dash": "dot", "width": 1})
    return styled(figure, title, "step of all other components (updates)", "accuracy")
