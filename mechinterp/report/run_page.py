"""The figures of a run's page, and its summary: from the run's table of measures and analyses of its checkpoints."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechinterp import figures, labels
from mechinterp.analysis.checkpoints import analyse
from mechinterp.analysis.tables import path_corruption
from mechinterp.circuits.patching import mask_unresolved
from mechinterp.errors import MechinterpError
from mechinterp.labels import measure_label, measure_name
from mechinterp.measures.weights import WEIGHT_MEASURES
from mechinterp.report import checkpoints
from mechinterp.report.summary import Summary, summarise
from mechinterp.run import Run
from mechinterp.training.spikes import Spikes, spikes_of

TRANSITION = "#D55E00"
"""The colour of the headline's transition, on the slider and in all curves."""
MOST_LINES = 6
"""Lines of a figure that draws the strongest of many."""
_PROGRESS = ["icl_accuracy", "ila1", "tila2", "cla", "tla2", "tca1", "tca2"]
_WIDE = 100.0
"""The ratio of the largest and the smallest value of a measure from which on its axis is logarithmic."""
_MOST_READ = 6
"""So many recorded numbers stand beside the slider."""
Part = Callable[[], str]


@dataclass(frozen=True)
class RunPage:
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

    def curves(self, names: list[str], title: str, caption: str, *, log_y: bool = False, **options: Any) -> str:
        """Measures over training, with the steps of loss spikes marked."""
        spikes = self.spikes
        if spikes:
            caption += (
                f" Ticks at the foot: loss spikes, the highest between two checkpoints ({spikes.count:,} in all)."
            )
        drawing = figures.curves(self.table, names, title, spikes=spikes.steps if spikes else (), **options)
        self._mark_transition(drawing)
        labels = {name: measure_label(name) for name in names}
        shares = all(label.unit == "share" for label in labels.values())
        if log_y:
            drawing.update_yaxes(type="log")
        if shares:
            drawing.update_yaxes(range=[-0.03, 1.03])
        return checkpoints.over_training(
            drawing,
            caption,
            names={name: label.name for name, label in labels.items()},
            notes={name: label.meaning for name, label in labels.items()},
        )

    def _mark_transition(self, drawing: go.Figure) -> None:
        """Shade the interval of the headline's transition, and name it above."""
        row = self.emergence.loc[self.headline]
        if not row["transition"]:
            return
        drawing.add_vrect(
            x0=row["low"],
            x1=row["high"],
            fillcolor=TRANSITION,
            opacity=0.35,
            line_width=1,
            line_color=TRANSITION,
            layer="below",
        )
        left = row["step"] > (self.steps[0] + self.steps[-1]) / 2
        drawing.add_annotation(
            x=row["low"] if left else row["high"],
            xanchor="right" if left else "left",
            y=1,
            yref="paper",
            yanchor="bottom",
            text=f"{measure_name(self.headline)}: {row['step']:,.0f}",
            showarrow=False,
            font={"size": 11, "color": TRANSITION},
        )

    def summary(self) -> Summary:
        """What the run has come to, in words."""
        found = dict[str, pd.DataFrame]()
        for analysis in ("ablate", "paths") if self.run.can_be_analysed else ():
            with suppress(MechinterpError):
                found[analysis] = self._analysed(analysis)
        if "paths" in found:
            found["paths"] = mask_unresolved(found["paths"])
        curve, row = pd.Series(self.table[self.headline]), self.emergence.loc[self.headline]
        return summarise(self.run, curve, row, ablations=found.get("ablate"), paths=found.get("paths"))

    def readout(self) -> list[str]:
        """The measures whose values are displayed beside the slider."""
        recorded = [*self.run.metrics][:_MOST_READ] if self.run.origin else []
        return self._measured([self.headline, *_PROGRESS, "iwl_accuracy", "train_loss", *recorded])

    def at_a_step(self) -> dict[str, Part]:
        """The figures that the slider moves."""
        run, steps, sizes = self.run, self.steps, figures.SIZES
        if not run.can_be_analysed:
            return {}
        return {
            "Circuit": lambda: checkpoints.circuit(run, steps, sizes["circuit"]["n_pairs"], progress=self.progress),
            "Attention": lambda: checkpoints.attention(run, steps),
            "QK and OV circuits": lambda: checkpoints.blocks(
                self._analysed("qkov"), sizes["qkov"]["n_sequences"], run.network_config.model.n_heads
            ),
            "Order parameters": lambda: checkpoints.order_parameters(
                self._analysed("order_parameters"), sizes["order_parameters"]["n_sequences"]
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
            title: partial(self.curves, there, title, caption, y=y)
            for title, (names, y, caption) in parts.items()
            if (there := self._measured(names))
        }

    def _of_the_task(self) -> dict[str, Part]:
        """The curves of measures of sequences, and of circuit analyses."""
        parts: dict[str, Part] = {
            "Progress measures": self._progress_measures,
            **({"Further measures": self._further_measures} if all(self._shares_and_rest()) else {}),
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
        names, rest = self._shares_and_rest()
        names = names or rest
        units = {measure_label(name).unit for name in names}
        located = self.emergence.loc[self.headline, "transition"]
        shaded = f" Shaded: the 95 % interval of the transition of {measure_name(self.headline)}." if located else ""
        return self.curves(
            names,
            "Progress measures",
            f"{_meanings(names)}Each is the mean over sequences of an evaluation set, the same ones at every"
            f" step.{shaded}",
            y="share" if units == {"share"} else "value",
        )

    def _further_measures(self) -> str:
        _, names = self._shares_and_rest()
        ranges = self.table[names].agg(["min", "max"])
        wide = bool((ranges.loc["min"] > 0).all() and (ranges.loc["max"] > _WIDE * ranges.loc["min"]).any())
        return self.curves(names, "Further measures", _meanings(names), y="value", log_y=wide)

    def _shares_and_rest(self) -> tuple[list[str], list[str]]:
        """The progress measures that are shares, and those that are not."""
        recorded = {*self.run.metrics} if self.run.origin else set[str]()
        found = figures.progress_columns(self.table, self.headline)
        names = [name for name in found if name not in recorded and not name.endswith("_loss")]
        shares = [name for name in names if measure_label(name).unit == "share"]
        return shares, [name for name in names if name not in shares]

    def _clamped(self) -> str:
        names = self._measured([f"clamped_{name}" for name in _PROGRESS])
        return self.curves(
            names,
            "Under the interventions",
            "The same measures under the interventions of the step, as in training; those above are of the weights"
            " alone.",
        )

    def _evaluations(self, what: str, caption: str) -> str:
        names = [name for name in self.table if name.endswith(f"_{what}") and not name.startswith("clamped_")]
        if not names:
            raise MechinterpError(f"no {what} was measured")
        sets = [labels.set_label(name.removesuffix(f"_{what}")) for name in names]
        caption += "".join(f" {each.name}: {each.meaning}." for each in sets if each.meaning)
        return self.curves(names, what.title(), caption, y=f"{what} (nats)" if what == "loss" else what)

    def _interactions(self) -> str:
        shaded = "" if self.run.origin else "; shaded: 95 % of untrained networks"
        return self._analysed_curves(
            figures.interactions(self.run, most=MOST_LINES),
            "How strongly each interaction (query part → key part) moves attention, in units of the scores; buffer is"
            f" what earlier layers wrote. The strongest at the end{shaded}.",
        )

    def _paths(self) -> str:
        corruption = labels.role_name(path_corruption(self.run.task).name)
        return self._analysed_curves(
            figures.paths(self.run, most=MOST_LINES),
            f"Path patching: of the answer that is lost by corrupting sequences ({corruption}), the share that one edge"
            f" alone restores; mean over {figures.SIZES['paths']['n_pairs']} pairs of sequences, where there is an"
            f" answer to restore (beyond two standard errors). Shown: the {MOST_LINES} edges with the largest share at"
            " the end; 0: the edge carries nothing of what this corruption changes.",
        )

    def _ablations(self) -> str:
        return self._analysed_curves(
            figures.ablation(self.run, most=MOST_LINES),
            f"Accuracy on {figures.SIZES['ablate']['n_sequences']} sequences of the evaluation set"
            f" “{labels.set_label(self.run.task.evaluations[0]).name}” that is lost when a component is taken out,"
            " by averaging it over sequences or by taking attention from the token before. Shown: the"
            f" {MOST_LINES} largest losses at the end; curves that are the same are drawn once.",
        )

    def _analysed_curves(self, drawing: go.Figure, caption: str) -> str:
        """A figure of an analysis over training, with the headline's transition marked."""
        self._mark_transition(drawing)
        return checkpoints.over_training(drawing, caption)

    def _aligned(self) -> str:
        first, tables = self.run.path.stem, {self.run.path.stem: self.table, **self.others}
        drawing, caption, origins = aligned(tables, self.headline)
        if first not in origins:
            raise MechinterpError(f"{measure_name(self.headline)} does not cross 50 % in this run")
        drawing.update_traces(opacity=0.35, selector=lambda trace: trace.hovertext != first)
        return checkpoints.over_training(
            drawing, f"{caption} This run is dark, the others pale.", origin=origins[first]
        )

    def _analysed(self, analysis: str) -> pd.DataFrame:
        sizes: Mapping[str, Any] = figures.SIZES[analysis]
        return analyse(self.run, analysis, steps=self.steps, progress=self.progress, **sizes)

    def _measured(self, names: list[str]) -> list[str]:
        """Those of `names` that the table has, without repetition."""
        return [name for name in dict.fromkeys(names) if name in self.table]


def _meanings(names: list[str]) -> str:
    """What measures are, in a sentence each."""
    return "".join(f"{label.name}: {label.meaning}. " for label in map(measure_label, names) if label.meaning)


def aligned(
    tables: Mapping[str, pd.DataFrame], headline: str, title: str = "Runs, aligned"
) -> tuple[go.Figure, str, dict[str, float]]:
    """The progress measures of all runs, aligned where the headline crosses 50 %; the caption; the steps of crossing.

    Runs in which it does not cross 50 % are left out, and the caption says so.
    """
    origins = figures.crossings(tables, headline)
    without = [name for name in tables if name not in origins]
    steps = ", ".join(f"{name} at step {origin:,.0f}" for name, origin in origins.items())
    source = ", as in Reddy 2023, figure 4" if headline == "icl_accuracy" else ""
    caption = f"{len(origins)} runs, aligned where {measure_name(headline)} crosses 50 %{source} ({steps})." + (
        f" It never does in {', '.join(without)}." if without else ""
    )
    names = list(dict.fromkeys([headline, *_PROGRESS]))
    drawing = figures.aligned_curves(dict(tables), origins, names, title, figures.since(headline))
    return drawing, caption, origins
