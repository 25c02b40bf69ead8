"""The figures of a run's page as files for a paper: SVG, PDF or PNG, one each, under names that stay the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import plotly.graph_objects as go

from mechinterp import figures
from mechinterp.circuits.svg import to_svg
from mechinterp.errors import MechinterpError
from mechinterp.figures.paper import PIXELS, TEXT, Column, paper
from mechinterp.files import make_folder, require_place
from mechinterp.pictures import Format, require_export, scaled, write_all
from mechinterp.run import Run

DOTS = 600
"""Dots per inch of a PNG."""
_CIRCUIT_TEXT = 13
"""Size of the text in drawings of circuits, in pixels."""
_MOST = 6
"""Curves of an analysis in one figure."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    paths: list[Path]
    omitted: dict[str, str]
    """Why a figure is not there, by name: what the task or the network does not admit."""


def write_figures(
    run: Run,
    table: pd.DataFrame,
    folder: str | Path,
    form: Format = "pdf",
    *,
    step: int | str = "last",
    column: Column = Column.single,
    others: Mapping[str, pd.DataFrame] | None = None,
    measure: str | None = None,
) -> Written:
    """Every figure of a run's page as a file in `folder`, in the style of a paper (`figures.paper`).

    `table` holds the run's measures; what moves with the page's slider is drawn at `step`. `others` are tables of other
    runs by name, which are aligned with this one where `measure` crosses 50 %. Files are called ``progress-measures``,
    ``accuracy``, ``loss``, ``transitions``, ``circuit``, ``attention``, ``qk-ov``, ``order-parameters``,
    ``order-parameters-plane``, ``interactions``, ``paths``, ``ablations`` and ``aligned``, and replace those of before.
    A figure that does not apply to the run is left out, with the reason. The circuit is as wide as text of 8 pt makes
    it, at most two columns. A PNG has 600 dots per inch. Raises MechinterpError where no pictures can be made, for an
    unknown step, and if `folder` is a file.
    """
    require_export()
    (at,) = run.chosen_steps(step)
    run.digest(at)  # raises for a step that is not stored
    place, drawn, omitted = make_folder(Path(folder)), dict[Path, go.Figure | str](), dict[str, str]()
    for name, draw in _figures(run, table, at, column, others or {}, measure).items():
        path = require_place(place / f"{name}.{form}")
        try:
            figure = draw()
        except MechinterpError as error:
            omitted[name] = str(error)
            continue
        drawn[path] = paper(figure, column) if isinstance(figure, go.Figure) else figure
    return Written(write_all(drawn, scale=DOTS / PIXELS), omitted)


def _figures(
    run: Run,
    table: pd.DataFrame,
    step: int,
    column: Column,
    others: Mapping[str, pd.DataFrame],
    measure: str | None,
) -> dict[str, Callable[[], go.Figure | str]]:
    """How each figure is drawn, by the name of its file."""
    narrow = column is Column.single
    drawings: dict[str, Callable[[], go.Figure | str]] = {
        "progress-measures": lambda: figures.progress_measures(table),
        "accuracy": lambda: figures.accuracy(table),
        "loss": lambda: figures.loss(table),
        "transitions": lambda: figures.emergence(table),
        "circuit": lambda: _circuit(run, step),
        "attention": lambda: figures.attention(run, step, across=_across(run, narrow)),
        "qk-ov": lambda: figures.qk_ov(run, step, across=2 if narrow else None),
        "order-parameters": lambda: figures.order_parameters(run),
        "order-parameters-plane": lambda: figures.order_parameters(run, in_plane=True),
        "interactions": lambda: figures.interactions(run, most=_MOST),
        "paths": lambda: figures.paths(run, most=_MOST),
        "ablations": lambda: figures.ablation(run, most=_MOST),
    }
    tables = {run.path.stem: table, **others}
    return drawings | ({"aligned": lambda: figures.aligned(tables, measure)} if others else {})


def _across(run: Run, narrow: bool) -> int | None:
    """Maps of attention side by side in a column."""
    if not run.can_be_analysed:
        return None
    heads = run.network_config.model.n_heads
    return (1 if heads == 1 else 2) if narrow else min(heads, 4) if heads > 1 else 2


def _circuit(run: Run, step: int) -> str:
    """The circuit's drawing with text of 8 points, or smaller if it is wider than two columns."""
    svg = to_svg(figures.circuit(run, step), f"Circuit at step {step:,}")
    return scaled(svg, min(TEXT / _CIRCUIT_TEXT, Column.double.pixels / _width(svg)))


def _width(svg: str) -> float:
    return float(ElementTree.fromstring(svg).attrib["width"])
