"""The report of a run: one HTML file that works offline, with a slider over all of its checkpoints."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechinterp.analysis.checkpoints import analyse
from mechinterp.analysis.headline import headline as headline_of
from mechinterp.emergence import emergence_table, level_crossing
from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.files import require_place
from mechinterp.measures.table import main_column
from mechinterp.measures.weights import WEIGHT_MEASURES
from mechinterp.report import checkpoints, figures, html
from mechinterp.run import Run
from mechinterp.training.spikes import SPIKES, Spikes, spikes_of

_SIZES: dict[str, dict[str, int]] = {
    "circuit": {"n_pairs": 128},
    "paths": {"n_pairs": 64},
    "qkov": {"n_sequences": 50},
    "order_parameters": {"n_sequences": 200},
    "ablate": {"n_sequences": 100},
}
"""Sequences on which analyses of all checkpoints are measured; fewer than for a single checkpoint."""
_PROGRESS = ["icl_accuracy", "ila1", "tila2", "cla", "tla2", "tca1", "tca2"]
_MEANS = {
    "icl_accuracy": "right answers on novel classes, which only the context can give",
    "ila1": "attention of labels to the token before, in layer 1",
    "tila2": "attention of the target to its correct label, in layer 2",
    "cla": "answers that are labels of the context",
    "tla2": "attention of the target to all labels, in layer 2",
    "tca1": "attention of the target to its copy, in layer 1",
    "tca2": "attention of the target to its copy, in layer 2",
}
_SLIDER = (
    "Drag the slider, or press the arrow keys (with shift, ten at a time), Home, End, or space to play. The band on it"
    " is the 95 % interval of the located transition."
)
_MOST_READ = 6
"""So many recorded numbers stand beside the slider."""
_VARIANTS = ("ila1_all", "cla_mass")
"""Measures that differ little from another one: in the emergence table only."""
_SETS = (
    "The sets: train, as trained; icl, what was never seen; iwl, contexts that do not help; swap, what is known"
    " with other labels, where the context is right."
)


def write_report(
    run: Run,
    table: pd.DataFrame,
    path: str | Path,
    *,
    measure: str | None = None,
    others: Mapping[str, pd.DataFrame] | None = None,
    progress: bool = False,
) -> html.Page:
    """The path of a run's page, written from its table of measures; in a notebook it shows the page.

    `measure` is the column whose transition is the headline, by default the run's main one. `others` are the tables of
    other runs, by name, which are drawn over this run, aligned where that measure crosses 50 %. With `progress`, bars
    show the progress of the analyses.

    A slider over the table's checkpoints moves attention, the circuit, the QK and OV circuits and the order parameters,
    and marks its step on all curves. The emergence table and the config follow. Parts that do not apply to the run's
    task or network are left out, and the page says why. An existing page is replaced; a run file never is.
    """
    require_place(Path(path))
    if table.empty:
        raise MechinterpError(f"{run.path}: holds no checkpoint; train it anew")
    headline = measure or (name if (name := main_column(run)) in table else str(table.columns[0]))
    if headline not in table:
        raise unknown_name("measure", headline, list(table.columns))
    if run.path.stem in (others or {}):
        raise MechinterpError(f"{run.path.stem} names two runs; give the other one another name")
    page = _RunPage(run, table, emergence_table(table), headline, others or {}, progress)
    views, views_omitted = _applicable(page.at_a_step())
    curves, curves_omitted = _applicable(page.over_training())
    why = f"Circuits and attention: {run.why_not_analysed}." if not run.can_be_analysed else ""
    omitted = " ".join([*filter(None, [why]), *views_omitted, *curves_omitted])
    parts = [
        html.lead(f"{headline_of(run, table[headline], page.emergence.loc[headline])}."),
        *([html.note(f"{spikes}.")] if (spikes := page.spikes) else []),
        html.scrubber(page.steps, table[page.readout()], page.emergence.loc[headline].to_dict()),
        *([html.section("At this step", _SLIDER), html.grid(views, uneven=True)] if views else []),
        html.section("Over training", "The vertical line is the step that the slider shows; a click goes to another."),
        html.grid(curves),
        *([html.section("Not shown", omitted)] if omitted else []),
        html.section(
            "Emergence",
            "A four-parameter logistic in the step, against a constant, a line and two logistics; 95 % interval under"
            " AR(1) noise. The interval says nothing of other seeds.",
        ),
        html.table(page.emergence),
        html.section("What was run"),
        html.table(_facts(run)),
        html.code((run.origin or run.config).model_dump_json(indent=2)),
    ]
    return html.write_page(Path(path), f"Run {run.path.name}", parts)


Part = Callable[[], str]


def _applicable(parts: Mapping[str, Part]) -> tuple[list[str], list[str]]:
    """The parts that apply to a run, and the reasons for which the others do not."""
    drawn, reasons = [], []
    for name, part in parts.items():
        try:
            drawn.append(part())
        except MechinterpError as error:
            reasons.append(f"{name}: {error}.")
    return drawn, reasons


@dataclass(frozen=True)
class _RunPage:
    """The figures of a run's page."""

    run: Run
    table: pd.DataFrame
    emergence: pd.DataFrame
    headline: str
    others: Mapping[str, pd.DataFrame]
    progress: bool

    @property
    def steps(self) -> list[int]:
        return list(self.table.index)

    @property
    def spikes(self) -> Spikes | None:
        return spikes_of(self.run.file.metrics())

    def curves(self, names: list[str], title: str, caption: str, **options: Any) -> str:
        """Measures over training, with the steps of loss spikes marked."""
        spikes = self.spikes
        if spikes:
            caption += (
                f" Ticks at the foot: loss spikes, the highest between two checkpoints ({spikes.count:,} in all)."
            )
        drawing = figures.curves(self.table, names, title, spikes=spikes.steps if spikes else (), **options)
        return checkpoints.over_training(drawing, caption)

    def readout(self) -> list[str]:
        """The measures whose values are displayed beside the slider."""
        recorded = [*self.run.metrics][:_MOST_READ] if self.run.origin else []
        return self._measured([self.headline, *_PROGRESS, "iwl_accuracy", "train_loss", *recorded])

    def at_a_step(self) -> dict[str, Part]:
        """The figures that the slider moves."""
        run, steps = self.run, self.steps
        if not run.can_be_analysed:
            return {}
        return {
            "Circuit": lambda: checkpoints.circuit(run, steps, _SIZES["circuit"]["n_pairs"], progress=self.progress),
            "Attention": lambda: checkpoints.attention(run, steps),
            "QK and OV circuits": lambda: checkpoints.blocks(
                self._analysed("qkov"), _SIZES["qkov"]["n_sequences"], run.network_config.model.n_heads
            ),
            "Order parameters": lambda: checkpoints.order_parameters(
                self._analysed("order_parameters"), _SIZES["order_parameters"]["n_sequences"]
            ),
        }

    def over_training(self) -> dict[str, Part]:
        """The curves on which the slider's step is marked."""
        parts = self._of_elsewhere() if self.run.origin else dict[str, Part]()
        if self.run.can_be_analysed:
            parts |= self._of_the_task()
        return parts | ({"Runs, aligned": self._aligned} if self.others else {})

    def _of_elsewhere(self) -> dict[str, Part]:
        """The curves of a run that was trained elsewhere."""
        recorded, norm, *moved = [*self.run.metrics], *WEIGHT_MEASURES
        others = [name for name in self.table if name not in {*recorded, norm, *moved}]
        parts = {
            "Recorded": (recorded, "value", "Numbers that the training loop recorded with every checkpoint."),
            "Measures": ([] if self.run.can_be_analysed else others, "value", "The network at every checkpoint."),
            "Change of the weights": (
                moved,
                "share of the norm",
                "The distance of all weights from the first checkpoint, and from the one before, as a share of the norm"
                " there.",
            ),
            "Norm of the weights": ([norm], "norm", "The Euclidean norm of all weights."),
        }
        return {
            title: partial(self.curves, there, title, caption, y=y, emergence=self.emergence)
            for title, (names, y, caption) in parts.items()
            if (there := self._measured(names))
        }

    def _of_the_task(self) -> dict[str, Part]:
        """The curves of measures of sequences, and of circuit analyses."""
        parts: dict[str, Part] = {
            "Progress measures": self._progress_measures,
            "Accuracy": lambda: self._evaluations("accuracy", "Share of right answers on each evaluation set."),
            "Loss": lambda: self._evaluations("loss", "Cross-entropy on each evaluation set, in nats."),
            "Query–key interactions": self._interactions,
            "Paths that carry the pairing": self._paths,
            "What an ablation costs": self._ablations,
        }
        if any(name.startswith("clamped_") for name in self.table):
            parts["Under the interventions"] = self._clamped
        return parts

    def _progress_measures(self) -> str:
        elsewhere = {*self.run.metrics, *WEIGHT_MEASURES} if self.run.origin else {*SPIKES}
        rest = [
            name for name in self.table if not (re.search("_accuracy$|_loss$|^clamped_", name) or name in elsewhere)
        ]
        names = self._measured([self.headline, *_PROGRESS, *(name for name in rest if name not in _VARIANTS)])
        means = "; ".join(f"{name}: {_MEANS[name]}" for name in names if name in _MEANS)
        return self.curves(
            names,
            "Progress measures",
            f"{f'{means}. ' if means else ''}Each is the mean over"
            " sequences of an evaluation set, the same ones at every step. Dotted lines: located transitions; shaded:"
            " their 95 % intervals.",
            emergence=self.emergence,
        )

    def _clamped(self) -> str:
        names = self._measured([f"clamped_{name}" for name in _PROGRESS])
        return self.curves(
            names,
            "Under the interventions",
            "The same measures under the interventions of the step, as in training; those above are of the weights"
            " alone.",
            emergence=self.emergence,
        )

    def _evaluations(self, what: str, caption: str) -> str:
        names = [name for name in self.table if name.endswith(f"_{what}") and not name.startswith("clamped_")]
        if not names:
            raise MechinterpError(f"no {what} was measured")
        if self.run.origin is None and self.run.config.task.kind != "custom":
            caption = f"{caption} {_SETS}"
        return self.curves(names, what.title(), caption, y=what)

    def _interactions(self) -> str:
        from mechinterp.analysis.tables import null_bands

        rows, bands, shaded = _with_names(self._analysed("qkov")), None, ""
        if self.run.origin is None:  # else it is not known how its weights began
            untrained = _with_names(null_bands(self.run, **_SIZES["qkov"]))
            names = _joined(untrained, "head", "block")
            bands = dict(zip(names, zip(untrained["low"], untrained["high"], strict=True), strict=True))
            shaded = "; shaded: 95 % of untrained networks"
        return self._strongest(
            rows[rows["quantity"] == "qk"],
            ("head", "block"),
            "value",
            "Query–key interactions",
            "How strongly each interaction (query part–key part) of each head (layer.head, from 0) moves attention, in"
            f" score units; buffer is what earlier layers wrote. The eight strongest at the end{shaded}.",
            bands,
        )

    def _paths(self) -> str:
        from mechinterp.analysis.tables import path_corruption
        from mechinterp.circuits.patching import mask_unresolved

        rows, corruption = mask_unresolved(self._analysed("paths")), path_corruption(self.run.task).name
        if bool(pd.Series(rows["effect"]).isna().all()):
            raise MechinterpError("at no step is there an answer to restore, beyond two standard errors")
        return self._strongest(
            rows,
            ("sender", "receiver"),
            "effect",
            "Paths that carry the pairing",
            f"Path patching ({corruption}): the share of the answer that one edge (sender, receiver) restores, mean"
            f" over {_SIZES['paths']['n_pairs']} pairs of sequences, where there is an answer to restore (beyond"
            " two standard errors). The eight largest at the end.",
        )

    def _ablations(self) -> str:
        rows = self._analysed("ablate")
        return self._strongest(
            rows.assign(cost=rows["intact"] - rows["value"]),
            ("hook", "ablation"),
            "cost",
            "What an ablation costs",
            f"Accuracy on {_SIZES['ablate']['n_sequences']} sequences of the evaluation set"
            f" “{self.run.task.evaluations[0]}” that is lost when a component is taken out in one way. The eight"
            " largest losses at the end.",
        )

    def _aligned(self) -> str:
        first, tables = self.run.path.stem, {self.run.path.stem: self.table, **self.others}
        drawing, caption, origins = aligned(tables, self.headline)
        if first not in origins:
            raise MechinterpError(f"{self.headline} does not cross 50 % in this run")
        drawing.update_traces(opacity=0.35, selector=lambda trace: trace.hovertext != first)
        return checkpoints.over_training(
            drawing, f"{caption} This run is dark, the others pale.", origin=origins[first]
        )

    def _analysed(self, analysis: str) -> pd.DataFrame:
        sizes: dict[str, Any] = _SIZES[analysis]
        return analyse(self.run, analysis, steps=self.steps, progress=self.progress, **sizes)

    def _strongest(
        self,
        rows: pd.DataFrame,
        labels: tuple[str, str],
        value: str,
        title: str,
        caption: str,
        bands: dict[str, tuple[float, float]] | None = None,
    ) -> str:
        """A figure with a line for every one of the eight labels whose value is largest at the end."""
        rows = rows.assign(label=_joined(rows, *labels))
        finite = rows.dropna(subset=[value])
        end = finite[finite["step"] == finite["step"].max()]
        names = list(end.assign(size=pd.Series(end[value]).abs()).nlargest(8, "size")["label"])
        drawing = figures.trajectories({self.run.path.stem: rows}, "label", value, names, title, bands)
        return checkpoints.over_training(drawing, caption)

    def _measured(self, names: list[str]) -> list[str]:
        """Those of `names` that the table has, without repetition."""
        return [name for name in dict.fromkeys(names) if name in self.table]


def aligned(
    tables: Mapping[str, pd.DataFrame], headline: str, title: str = "Runs, aligned"
) -> tuple[go.Figure, str, dict[str, float]]:
    """The progress measures of all runs, aligned where the headline crosses 50 %; the caption; the steps of crossing.

    Runs in which it does not cross 50 % are left out, and the caption says so.
    """
    if headline.endswith("_loss"):
        raise MechinterpError(f"{headline} is no share, of which half could be crossed; choose another --measure")
    if missing := [name for name, table in tables.items() if headline not in table]:
        raise MechinterpError(f"{', '.join(missing)} cannot be measured by {headline}")
    crossed = {name: level_crossing(pd.Series(table[headline])) for name, table in tables.items()}
    origins = {name: origin for name, origin in crossed.items() if origin is not None}
    if not origins:
        raise MechinterpError(f"{headline} crosses 50 % in none of the runs")
    without = [name for name in tables if name not in origins]
    steps = ", ".join(f"{name} at step {origin:,.0f}" for name, origin in origins.items())
    source = ", as in Reddy 2023, figure 4" if headline == "icl_accuracy" else ""
    caption = f"{len(origins)} runs, aligned where {headline} crosses 50 %{source} ({steps})." + (
        f" It never does in {', '.join(without)}." if without else ""
    )
    names = list(dict.fromkeys([headline, *_PROGRESS]))
    drawing = figures.aligned(dict(tables), origins, names, title, f"{headline} crossed 50 %")
    return drawing, caption, origins


def _joined(rows: pd.DataFrame, first: str, second: str) -> pd.Series:
    return rows[first].str.cat(rows[second], sep=" ")


def _with_names(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``qkov`` with columns ``head`` (as in ``qk 0.0``) and ``block`` (as in ``content–buffer``)."""
    records = rows.to_dict("records")
    heads = [f"{row['quantity']} {row['layer']}.{row['head']}" for row in records]
    return rows.assign(head=heads, block=[f"{row['part']}–{row['other']}" for row in records])


def _facts(run: Run) -> pd.DataFrame:
    steps = run.steps
    facts = {"file": run.path.name, "status": run.status, "created": run.created, "saved steps": len(steps)}
    facts |= {"last step": steps[-1], "digest of the last weights": run.digest(steps[-1]), **run.environment}
    return pd.DataFrame({"value": {name: str(value) for name, value in facts.items()}}).rename_axis("fact")
