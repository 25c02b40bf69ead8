"""Loss and accuracies of the full network over training (Reddy 2023, figure 1d).

    python -m analyses.training_curves [--workers N] [--paper-scale] [--out FOLDER]

Does the study ``training_curves.toml`` (K = 512, B = 2, no in-context sequences) and writes its tables
(of runs and of variants), its page, ``ends.csv`` (loss and accuracies of every run at the end, and the highest
accuracies), and a figure of the loss and of the in-context, in-weights and swapped accuracies.
"""

from dataclasses import dataclass

import pandas as pd

from analyses._common import StudyAnalysis, run_analysis
from analyses._figures import loss_and_accuracies

SHOWN = ["train_loss", "train_accuracy", "icl_accuracy", "iwl_accuracy", "swap_accuracy"]


@dataclass
class TrainingCurves(StudyAnalysis):
    """Loss and accuracies of the full network over training (Reddy 2023, figure 1d)."""

    def execute(self) -> None:
        done = self.conducted("training_curves")
        tables = done.of("full")
        ends = pd.DataFrame({run: table[SHOWN].iloc[-1] for run, table in tables.items()}).T.rename_axis("run")
        for name in SHOWN[1:]:
            ends[f"highest_{name}"] = {run: table[name].max() for run, table in tables.items()}
        ends.to_csv(done.out / "ends.csv", float_format="%.4g")
        print(ends.round(3).to_string())
        done.write(loss_and_accuracies(tables, "The full network, K = 512, B = 2"), "training_curves")


if __name__ == "__main__":
    run_analysis(TrainingCurves)
