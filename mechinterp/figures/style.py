"""The style of all figures: colours, names of measures, fonts and size."""

from collections.abc import Sequence
from itertools import cycle

import plotly.graph_objects as go

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

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Dashes of lines, in the order in which they are given to series."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "triangle-down")
"""Markers, in the order in which they are given to series."""


def colours_of(names: Sequence[str]) -> list[str]:
    """A colour for each of several measures: its own (`COLOURS`), or the next of the palette that none of them has."""
    own = [COLOURS.get(name.removeprefix("clamped_")) for name in names]
    free = cycle([colour for colour in PALETTE if colour not in own] or PALETTE)
    return [colour or next(free) for colour in own]


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
