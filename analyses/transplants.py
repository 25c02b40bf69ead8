"""Which component is late, and which waits for which? Transplants of every component between checkpoints.

    python -m analyses.transplants RUN [RUN …] [--heads-apart] [--out FOLDER]

Writes ``formation.csv`` (when each component is ready, and by how much its last version alone advances the rise),
``waits.csv`` (every pair), ``chain.csv`` (the rise with the last versions of more and more components),
``across_runs.csv`` (medians over runs), ``verdicts.csv``, ``maps.csv`` (of the first run, at every second checkpoint:
accuracy and loss by component, source and target), and figures of the maps and, of each run, of the chain.

Definitions and the rule by which a number of steps is resolved are those of `mechinterp.comparison.formation`. Of the
default network four questions of our own are judged, "yes" if the rule is met by every run and "no" if by none. The
rules were set after seed 0 had been looked at, which is not judged:

* is layer 1's attention ready last: layer 1 QK is the last component to be ready, after the one before it, resolved;
* does layer 1's attention wait for layer 2's: layer 1 QK waits for layer 2 QK, and is therefore not late by itself;
* would the last version of one component alone, from the start, be enough: with one component at least, accuracy is
  halfway before half the step at which it is in the run;
* do one layer's values have to be learned, all else being learned: values of layer 1 or of layer 2 are needed. Both
  layers' early values together are in ``chain.csv``: the row in which all other components are of the last step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import mechinterp as mi
from analyses._common import RunAnalysis, run_analysis
from analyses.claims.verdicts import Claim, Verdict, format_range, judge, verdict_table
from mechinterp.comparison.formation import Formation
from mechinterp.emergence import median_interval
from mechinterp.figures import formation_curves, transplant_maps
from mechinterp.files import make_folder
from mechinterp.run import Run, open_runs

NOT_JUDGED = 0
"""The seed after which the rules were set."""
FIRST, SECOND = "layer 1 QK", "layer 2 QK"
VALUES = ["layer 1 values", "layer 2 values"]
JUDGED = [FIRST, SECOND, *VALUES]
"""The components that the questions are about."""


@dataclass
class Transplants(RunAnalysis):
    """Which component is late, and which waits for which? Transplants of every component between checkpoints."""

    heads_apart: bool = False
    """The heads of a layer are components of their own."""
    n_sequences: int = 300
    """Sequences of the first evaluation set, from which the order is read."""
    n_sequences_maps: int = 200
    """Sequences of the maps."""
    out: Path = Path("results/transplants")
    """Folder of the tables and figures."""

    def execute(self) -> None:
        make_folder(self.out)
        runs = open_runs(self.runs)
        formations = {name: self._formation(name, run) for name, run in runs.items()}
        components = by_run({name: formation.components for name, formation in formations.items()})
        components.to_csv(self.out / "formation.csv", index=False)
        waits = by_run({name: formation.waits for name, formation in formations.items()})
        waits.to_csv(self.out / "waits.csv", index=False)
        chain = by_run({name: formation.chain for name, formation in formations.items()})
        chain.to_csv(self.out / "chain.csv", index=False)
        summary = across_runs(components)
        summary.to_csv(self.out / "across_runs.csv", index_label="component")
        print(summary.to_string())
        judged = [formations[name] for name, run in runs.items() if is_judged(run, formations[name])]
        if judged:
            verdicts = verdict_table(verdicts_of(judged))
            verdicts.to_csv(self.out / "verdicts.csv", index=False)
            print(verdicts[["sentence", "verdict", "runs", "numbers"]].to_string(index=False))
        else:
            print(f"no verdicts: they are on runs of other seeds than {NOT_JUDGED} with {', '.join(JUDGED)}")
        self._draw_maps(*next(iter(runs.items())))

    def _formation(self, name: str, run: Run) -> Formation:
        formation = mi.locate_formation(run, heads_apart=self.heads_apart, n_sequences=self.n_sequences, progress=True)
        print(f"{name}\n{formation}")
        title = f"{name}: accuracy with the last versions of more and more components"
        self.write(formation_curves(formation.chain_accuracies, title), f"chain_{name}")
        return formation

    def _draw_maps(self, name: str, run: Run) -> None:
        table = mi.transplant(
            run,
            steps=run.steps[::2],
            heads_apart=self.heads_apart,
            n_sequences=self.n_sequences_maps,
            progress=True,
        )
        table.to_csv(self.out / "maps.csv", index=False, float_format="%.4g")
        self.write(transplant_maps(table, f"{name}: accuracy with one component of another step"), "maps")


def is_judged(run: Run, formation: Formation) -> bool:
    """Whether a run counts in the verdicts: trained here, of another seed than `NOT_JUDGED`, with the components."""
    trained = run.origin is None and run.config.seed != NOT_JUDGED
    return trained and {*JUDGED} <= {*formation.components["component"]}


def by_run(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of all runs, with the run's name first and steps without decimals."""
    return pd.concat(tables, names=["run"]).reset_index(level=0).round(0)


def across_runs(components: pd.DataFrame) -> pd.DataFrame:
    """By component, the median of ready and advance over runs, with the 95 % interval that six runs or more give, and
    in how many runs it is needed, late and awaited."""
    rows = {}
    for component, runs in components.groupby("component", sort=False):
        row: dict[str, float] = {"runs": len(runs)}
        for column in ("ready", "advance"):
            names = (f"{column}_50", f"{column}_low", f"{column}_high")
            row |= dict(zip(names, median_interval(runs[column]), strict=True))
        rows[component] = row | {column: int(runs[column].sum()) for column in ("needed", "late", "awaited")}
    return pd.DataFrame.from_dict(rows, orient="index").round(0)


def verdicts_of(runs: Sequence[Formation]) -> list[Verdict]:
    """The verdicts on the four questions, from the formations of several runs."""
    parts = [formation.components.set_index("component") for formation in runs]
    pairs = [formation.waits.set_index(["component", "for"]).loc[(FIRST, SECOND)] for formation in runs]
    ready = pd.DataFrame([table["ready"] for table in parts])
    earliest = [formation.rise - table["advance"].max() for formation, table in zip(runs, parts, strict=True)]
    share = pd.Series([step / formation.rise for formation, step in zip(runs, earliest, strict=True)])
    synergy = pd.Series([float(pair["synergy"]) for pair in pairs])
    alone = pd.Series([float(table.loc[FIRST, "advance"]) for table in parts])

    def question(sentence: str, rule: str, holds: Callable[[int], object], numbers: str) -> Verdict:
        met = {number: bool(holds(number)) for number in range(len(runs))}
        return judge(Claim("", sentence, "our question"), rule, met, numbers)

    return [
        question(
            "is layer 1's attention ready last?",
            "layer 1 QK is the last component to be ready, after the one before it, resolved",
            lambda run: parts[run].index[-1] == FIRST and parts[run].loc[FIRST, "after_previous"],
            f"ready at {format_range(ready, 0)}",
        ),
        question(
            "does layer 1's attention wait for layer 2's?",
            "layer 1 QK waits for layer 2 QK: the synergy is resolved, and layer 1 QK is not late by itself",
            lambda run: pairs[run]["waits"],
            f"synergy {format_range(synergy, 0)} steps, by itself {format_range(alone, 0)}",
        ),
        question(
            "would the last version of one component, from the start, be enough?",
            "with one component accuracy is halfway before half the step at which it is in the run",
            lambda run: share[run] < 0.5,
            f"halfway at {format_range(share)} of the run's step",
        ),
        question(
            "do one layer's values have to be learned, all else being learned?",
            "values of layer 1 or of layer 2 are needed",
            lambda run: parts[run].loc[VALUES, "needed"].any(),
            f"ready at {format_range(ready[VALUES], 0)}",
        ),
    ]


if __name__ == "__main__":
    run_analysis(Transplants)
