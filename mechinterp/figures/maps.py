"""Heat maps: attention patterns, and the blocks of QK and OV circuits."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import get_colorscale

from mechinterp.figures.style import styled


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
