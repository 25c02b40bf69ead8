"""When does the network become an induction head? The facts that together only one shows, over training.

    python -m analyses.induction_head_evidence RUN [RUN …] [--out FOLDER]

Writes ``{run}.csv`` (step × fact: value, holds), ``summary.csv`` (the first saved step at which each fact holds, and
from which on it holds), and a figure of the facts over training.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analyses._common import RunAnalysis, analyse_runs, run_analysis
from mechinterp.figures import trajectories


@dataclass
class InductionHeadEvidence(RunAnalysis):
    """When does the network become an induction head? The facts that together only one shows, over training."""

    n_pairs: int = 256
    """Clean–corrupt pairs of sequences."""
    out: Path = Path("results/induction_head_evidence")
    """Folder of the tables and figures."""

    def execute(self) -> None:
        tables = analyse_runs(self.runs, "evidence", self.out, n_pairs=self.n_pairs)
        summary = pd.concat({name: _since(table) for name, table in tables.items()}, names=["run"]).reset_index()
        summary.to_csv(self.out / "summary.csv", index=False)
        print(summary.to_string(index=False))
        shown = list(next(iter(tables.values()))["fact"].unique())
        title = "What only an induction head shows, over training (where it is beyond two standard errors)"
        figure = trajectories(tables, "fact", "value", shown, title)
        self.write(figure, "induction_head_evidence")


def _since(table: pd.DataFrame) -> pd.DataFrame:
    """For every fact: the first step at which it holds, and since when it does; or nothing."""
    wide = table.pivot_table(index="step", columns="fact", values="holds", sort=False).astype(bool)
    first = {fact: steps[steps].index.min() for fact, steps in wide.items()}
    broken = {fact: steps[~steps].index.max() for fact, steps in wide.items()}
    since = {
        fact: steps.index[steps.index > broken[fact]].min() if (~steps).any() else first[fact]
        for fact, steps in wide.items()
    }
    return pd.DataFrame({"first_holds": first, "holds_since": since}).rename_axis("fact")


if __name__ == "__main__":
    run_analysis(InductionHeadEvidence)
