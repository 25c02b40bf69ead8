"""Order parameters: over training, and as a path in a plane."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from mechinterp.figures.style import styled


def plane(x: NDArray, y: NDArray, x_title: str, y_title: str) -> go.Figure:
    """The path of two quantities over training, as a curve in their plane."""
    figure = go.Figure()
    figure.add_scatter(x=x, y=y, name="all checkpoints", line={"color": "#0072B2", "width": 1.5})
    return styled(figure, f"{x_title.split()[0]} and {y_title.split()[0]}", x_title, y_title)


def order_parameter_curves(table: pd.DataFrame, left: dict[str, str], right: tuple[str, str]) -> go.Figure:
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
