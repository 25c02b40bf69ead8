"""Induction heads on repeated random tokens (Olsson et al. 2022), with two layers and with one.

    python -m analyses.induction_tokens [--workers N] [--paper-scale] [--out FOLDER]

Does the study ``induction_tokens.toml`` and writes its tables (of runs and of variants), its page, ``verdicts.csv`` and
a figure of in-context accuracy, loss and prefix matching.
"""

from dataclasses import dataclass

from analyses._common import StudyAnalysis, run_analysis
from analyses._figures import by_variant
from analyses.claims.further import of_induction_tokens

ROWS = {"fraction": ["icl_accuracy", "prefix_matching_1", "prefix_matching_2"], "loss (nats)": ["icl_loss"]}


@dataclass
class InductionTokens(StudyAnalysis):
    """Induction heads on repeated random tokens (Olsson et al. 2022), with two layers and with one."""

    def execute(self) -> None:
        done = self.conducted("induction_tokens")
        runs = {name: done.by_seed(name) for name in done.study.variants}
        done.write(by_variant(runs, ROWS, "Repeated random tokens"), "induction_tokens")
        done.judged(of_induction_tokens(runs["two_layers"], runs["one_layer"]))


if __name__ == "__main__":
    run_analysis(InductionTokens)
