"""The minimal induction head with β₂ free and fixed to 0 (Reddy 2023, figures 6a and 6b).

    python -m analyses.ablation_beta2_fixed [--workers N] [--paper-scale] [--out FOLDER]

Does the study ``ablation_beta2_fixed.toml`` and writes ``runs.csv`` (one row per run: step of the transition, lags, …),
``variants.csv``, its page, and for each variant the progress measures aligned at the transition.
"""

from dataclasses import dataclass

from mechinterp.analysis import StudyAnalysis, run_analysis
from mechinterp.report.figures import aligned

SHOWN = ["icl_accuracy", "cla", "tla2", "ila1", "tila2"]


@dataclass
class AblationBeta2Fixed(StudyAnalysis):
    """The minimal induction head with β₂ free and fixed to 0 (Reddy 2023, figures 6a and 6b)."""

    def execute(self) -> None:
        done = self.conducted("ablation_beta2_fixed")
        for variant in done.study.variants:
            title = f"The minimal induction head, β₂ {variant}: aligned at the transition"
            done.write(aligned(done.of(variant), done.steps(variant), SHOWN, title), variant)


if __name__ == "__main__":
    run_analysis(AblationBeta2Fixed)
