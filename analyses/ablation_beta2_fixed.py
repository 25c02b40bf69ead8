"""The minimal induction head with β₂ free and fixed to 0 (Reddy 2023, figures 6a and 6b).

    python -m analyses.ablation_beta2_fixed [--workers N] [--paper-scale] [--out FOLDER]

Does the study ``ablation_beta2_fixed.toml`` and writes its tables (a row per run: step of the transition, lags, …; and
a row per variant), its page, and for each variant the progress measures aligned where IC accuracy crosses 50 %.
"""

from dataclasses import dataclass

from analyses._common import StudyAnalysis, crossings, run_analysis
from mechinterp.figures import aligned_curves

SHOWN = ["icl_accuracy", "cla", "tla2", "ila1", "tila2"]


@dataclass
class AblationBeta2Fixed(StudyAnalysis):
    """The minimal induction head with β₂ free and fixed to 0 (Reddy 2023, figures 6a and 6b)."""

    def execute(self) -> None:
        done = self.conducted("ablation_beta2_fixed")
        for variant in done.study.variants:
            tables = done.of(variant)
            origins = crossings(tables)
            title = f"The minimal induction head, β₂ {variant}: {len(origins)} seeds, aligned"
            done.write(aligned_curves(tables, origins, SHOWN, title, since="IC accuracy crossed 50 %"), variant)


if __name__ == "__main__":
    run_analysis(AblationBeta2Fixed)
