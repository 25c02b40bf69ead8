"""Loss and accuracies of the minimal induction head over training (Reddy 2023, figure A.2).

    python -m analyses.minimal_model [--workers N] [--paper-scale] [--out FOLDER]

Does the study ``minimal_model.toml`` (K = 512, D = 64, B = 2, no in-context sequences) and writes ``runs.csv``,
``variants.csv``, its page, and figures of the loss and of the in-context, in-weights and swapped accuracies.
"""

from dataclasses import dataclass

from mechinterp.analysis import StudyAnalysis, run_analysis
from mechinterp.report.figures import each_seed


@dataclass
class MinimalModel(StudyAnalysis):
    """Loss and accuracies of the minimal induction head over training (Reddy 2023, figure A.2)."""

    def execute(self) -> None:
        done = self.conducted("minimal_model")
        accuracies = ["icl_accuracy", "iwl_accuracy", "swap_accuracy"]
        for name, measures in (("loss", ["train_loss"]), ("accuracy", accuracies)):
            done.write(each_seed(done.of("minimal"), measures, f"The minimal induction head: {name}"), name)


if __name__ == "__main__":
    run_analysis(MinimalModel)
