"""Grokking of modular addition (Power et al. 2022, Nanda et al. 2023) at three strengths of weight decay.

    python -m analyses.grokking [--workers N] [--paper-scale] [--out FOLDER]

Does the study ``grokking.toml`` and writes its tables (of runs and of variants), its page, ``verdicts.csv`` and a
figure of accuracies, losses and the Gini coefficient of the embedding's Fourier components.
"""

from dataclasses import dataclass

from analyses._common import StudyAnalysis, run_analysis
from analyses._figures import by_variant
from analyses.claims.further import of_grokking

ROWS = {
    "accuracy": ["train_accuracy", "test_accuracy"],
    "loss (nats)": ["test_loss", "restricted_loss", "excluded_loss"],
    "Gini coefficient": ["embedding_gini"],
}


@dataclass
class Grokking(StudyAnalysis):
    """Grokking of modular addition (Power et al. 2022, Nanda et al. 2023) at three strengths of weight decay."""

    def execute(self) -> None:
        done = self.conducted("grokking")
        runs = {name: done.by_seed(name) for name in done.study.variants}
        done.write(by_variant(runs, ROWS, "Modular addition, by weight decay"), "grokking")
        done.judged(of_grokking({float(name.removeprefix("λ=")): each for name, each in runs.items()}))


if __name__ == "__main__":
    run_analysis(Grokking)
