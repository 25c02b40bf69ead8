"""Figures of measures over training: of a run, of its table of measures, or of several runs."""

import re
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from mechinterp.emergence import emergence_table, level_crossing
from mechinterp.errors import MechinterpError
from mechinterp.figures.lines import aligned_curves, curves
from mechinterp.labels import measure_name
from mechinterp.measures.table import main_column, measure, require_measures
from mechinterp.measures.weights import WEIGHT_MEASURES
from mechinterp.run import Run
from mechinterp.training.spikes import SPIKES, spikes_of

Source = Run | pd.DataFrame
"""A run, which is measured first, or its table of measures (``mi.measure(run)``): step × measure."""

_FIRST = ("icl_accuracy", "ila1", "tila2", "cla", "tla2", "tca1", "tca2")
"""The progress measures that come first in a legend."""
_VARIANTS = ("ila1_all", "cla_mass")
"""Measures that differ little from another one, and are drawn only by name."""


def progress_columns(table: pd.DataFrame, headline: str | None = None) -> list[str]:
    """The columns of a table of measures that are progress measures, the headline first.

    Accuracies and losses are not among them, but for the headline and IC accuracy; nor are measures under
    interventions, loss spikes, measures of weights alone, and the two that differ little from another one.
    """
    others = re.compile("_accuracy$|_loss$|^clamped_")
    rest = [str(name) for name in table if not others.search(str(name))]
    names: list[str] = [*([headline] if headline else []), *_FIRST, *rest]
    return [
        name for name in dict.fromkeys(names) if name in table and name not in {*_VARIANTS, *SPIKES, *WEIGHT_MEASURES}
    ]


def progress_measures(source: Source, names: Sequence[str] | None = None) -> go.Figure:
    """Progress measures over training steps, of a run or a table of measures, with the transitions that are located.

    Dotted lines mark the steps of transitions, bands their 95 % intervals (`emergence.locate_emergence`), and ticks at
    the foot loss spikes. `names` chooses columns; by default those of `progress_columns`. Raises MechinterpError where
    there is none, and for unknown names.
    """
    table = _table(source, names)
    chosen = list(names or progress_columns(table))
    if not chosen:
        raise MechinterpError("the table has no progress measure; give names of its columns")
    spikes = spikes_of(source.file.metrics()) if isinstance(source, Run) else None
    located = emergence_table(table, chosen)
    drawn = curves(table, chosen, "Progress measures", located, y="share", spikes=spikes.steps if spikes else ())
    return _in_words(drawn)


def accuracy(source: Source) -> go.Figure:
    """The share of right answers on every evaluation set, in [0, 1], over training steps."""
    return _evaluations(source, "accuracy", "Accuracy", "accuracy")


def loss(source: Source) -> go.Figure:
    """The cross-entropy on every evaluation set, in nats, over training steps."""
    return _evaluations(source, "loss", "Loss", "loss (nats)")


def aligned(
    runs: Sequence[Run] | Mapping[str, Source], measure: str | None = None, names: Sequence[str] | None = None
) -> go.Figure:
    """Progress measures of several runs over the steps since `measure` crossed 50 % in each, as in Reddy 2023, fig. 4.

    `runs` are runs, or runs or tables of measures by name; `measure` is by default the main one of the first run, or
    the first column. Runs in which it does not cross 50 % are left out; if it does in none, MechinterpError.
    """
    given = dict(runs) if isinstance(runs, Mapping) else {run.path.stem: run for run in runs}
    if not given:
        raise MechinterpError("there are no runs to align; give at least one")
    if len(given) < len(runs):
        raise MechinterpError("two of the runs have the same name; give a mapping of names to runs")
    first = next(iter(given.values()))
    headline = measure or (main_column(first) if isinstance(first, Run) else str(first.columns[0]))
    tables = {name: _table(source, [headline, *names] if names else None) for name, source in given.items()}
    chosen = list(dict.fromkeys([headline, *names])) if names else progress_columns(tables[next(iter(given))], headline)
    return aligned_curves(tables, crossings(tables, headline), chosen, "Runs, aligned", since(headline))


def crossings(tables: Mapping[str, pd.DataFrame], headline: str) -> dict[str, float]:
    """The step at which the headline crosses 50 %, by run; without those in which it does not. Raises if none does."""
    name = measure_name(headline)
    if headline.endswith("_loss"):
        raise MechinterpError(f"{name} is no share, of which half could be crossed; choose another measure")
    if missing := [run for run, table in tables.items() if headline not in table]:
        raise MechinterpError(f"{', '.join(missing)} cannot be measured by {name}")
    crossed = {run: level_crossing(pd.Series(table[headline])) for run, table in tables.items()}
    if origins := {run: origin for run, origin in crossed.items() if origin is not None}:
        return origins
    raise MechinterpError(f"{name} crosses 50 % in none of the runs")


def since(headline: str) -> str:
    """What an axis of steps since the crossing says."""
    return f"{measure_name(headline)} crossed 50 %"


def _evaluations(source: Source, what: str, title: str, y: str) -> go.Figure:
    names = None
    if isinstance(source, Run):
        columns, _ = require_measures(source, None)
        names = [column.name for column in columns if column.name.endswith(f"_{what}")]
    table = _table(source, names)
    found = [str(name) for name in table if str(name).endswith(f"_{what}") and not str(name).startswith("clamped_")]
    if not found:
        raise MechinterpError(f"no {what} was measured; its columns end in _{what}")
    return _in_words(curves(table, found, title, y=y))


def _in_words(figure: go.Figure) -> go.Figure:
    """The figure, whose curves have the names of columns, with their names in text."""
    return figure.for_each_trace(lambda trace: trace.update(name=measure_name(str(trace.name))))


def _table(source: Source, names: Sequence[str] | None) -> pd.DataFrame:
    """The table of measures of a run, or the given one, which must have the columns of `names`."""
    if isinstance(source, Run):
        return measure(source, names)
    if not isinstance(source, pd.DataFrame):
        raise MechinterpError(f"expected a run or a table of mi.measure, got a {type(source).__name__}")
    if source.empty:
        raise MechinterpError("the table of measures is empty")
    if missing := [name for name in names or () if name not in source]:
        raise MechinterpError(f"the table of measures has no column {missing[0]}; it has {', '.join(map(str, source))}")
    return source
