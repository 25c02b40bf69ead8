"""The figure of the loss's geometry over training."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

from mechinterp.figures.style import PALETTE, styled
from mechinterp.geometry.over_training import TrainingGeometry
from mechinterp.labels import measure_name

NORMAL = 1.96
"""Standard errors to either end of a 95 % interval."""
_TITLES = {
    "gradient_norm": "gradient norm",
    "gradient_noise_scale": "gradient noise scale (sequences)",
    "hessian_trace": "trace of the Hessian",
    "hessian": "eigenvalues of the Hessian",
    "update_norm": "update norm (per step)",
}
_LEFT_OUT = ("_error", "_residual", "_relative", "_squared_norm", "_noise")
"""Ends of the names of columns that are not drawn."""


def geometry_curves(result: TrainingGeometry, title: str = "Geometry of the loss") -> go.Figure:
    """A panel for the network's accuracy and for every quantity of `mi.training_geometry`, over training steps.

    Bands are 95 % intervals (1.96 standard errors). In all panels, the dotted line is the step of the accuracy's
    transition, if it makes one, and the shaded stretch its 95 % interval.
    """
    panels: dict[str, list[str]] = {result.accuracy: [result.accuracy]}
    for name in map(str, result.table):
        if name != result.accuracy and not name.endswith(_LEFT_OUT):
            panels.setdefault("hessian" if name.startswith(("hessian_top", "hessian_low")) else name, []).append(name)
    n_rows = -(-len(panels) // 2)
    titles = [_TITLES.get(name, measure_name(name)) for name in panels]
    figure = make_subplots(n_rows, 2, subplot_titles=titles, shared_xaxes="all", vertical_spacing=0.2 / n_rows)
    for number, names in enumerate(panels.values()):
        place = {"row": number // 2 + 1, "col": number % 2 + 1}
        for name, colour in zip(names, PALETTE, strict=False):
            _curve(figure, result, name, colour, place)
    emergence = result.emergence.loc[result.accuracy]
    if emergence["transition"]:
        figure.add_vrect(x0=emergence["low"], x1=emergence["high"], fillcolor="#000000", opacity=0.12, line_width=0)
        figure.add_vline(x=emergence["step"], line={"color": "#000000", "dash": "dot", "width": 1})
    figure = styled(figure, title, None, None).update_layout(height=120 + 230 * n_rows, showlegend=False)
    for number in range(len(panels) - 2, len(panels)):
        place = {"row": number // 2 + 1, "col": number % 2 + 1}
        figure.update_xaxes(title_text="step (updates)", showticklabels=True, **place)
    return figure


def _curve(figure: go.Figure, result: TrainingGeometry, name: str, colour: str, place: dict[str, int]) -> None:
    """A column with the band of its standard error, if it has one."""
    values, steps = result.table[name].to_numpy(float), result.table.index.to_numpy()
    label = name.removeprefix("hessian_").replace("_", " ")
    if f"{name}_error" in result.table:
        half = NORMAL * result.table[f"{name}_error"].to_numpy(float)
        red, green, blue = hex_to_rgb(colour)
        shade = f"rgba({red},{green},{blue},0.2)"
        look = {"fill": "toself", "fillcolor": shade, "line": {"color": shade, "width": 1}, "hoverinfo": "skip"}
        x, y = _band(steps, values - half, values + half)
        figure.add_scatter(x=x, y=y, name=f"{label}, 95 % interval", mode="lines", **look, **place)
    style = {"mode": "lines+markers", "line": {"color": colour, "width": 1.5}, "marker": {"size": 3}}
    figure.add_scatter(x=steps, y=values, name=label, connectgaps=False, **style, **place)


def _band(x: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> tuple[list[Any], list[Any]]:
    """The outlines of the stretches in which there are intervals, parted by None."""
    known = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    along, up = list[Any](), list[Any]()
    for part in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
        along += [*x[part], *x[part][::-1], None]
        up += [*low[part], *high[part][::-1], None]
    return along, up
