"""Loss and accuracies of the minimal induction head over training (Reddy 2023, figure A.2).

    python -m analyses.minimal_model [--workers N] [--paper-scale] [--out FOLDER]

Does the study ``minimal_model.toml`` (K = 512, D = 64, B = 2, no in-context sequences) and writes its tables
(of runs and of variants), its page, and a figure of the loss and of the in-context, in-weights and swapped accuracies.
"""

from dataclasses import dataclass

from analyses._common import StudyAnalysis, run_analysis
from analyses._figures import loss_and_accuracies


@dataclass
class MinimalModel(StudyAnalysis):
    """Loss and accuracies of the minimal induction head over training (Reddy 2023, figure A.2)."""

    def execute(self) -> None:
        done = self.conducted("minimal_model")
        figure = loss_and_accuracies(done.of("minimal"), "The minimal induction head, K = 512, B = 2")
        done.write(figure, "minimal_model")


if __name__ == "__main__":
    run_analysis(MinimalModel)
