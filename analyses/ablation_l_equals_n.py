"""As many labels as pairs in the minimal model: which seeds learn, and how long it takes (Reddy 2023, figure 6c).

    python -m analyses.ablation_l_equals_n [--workers N] [--paper-scale] [--out FOLDER]

Does the study ``ablation_l_equals_n.toml`` (the minimal induction head with L > N and L = N, from the origin and from
α < 0) and writes its tables (of runs and of variants), its page, and for each variant the loss and the in-context
accuracy of every seed. The full network is a part of ``data_dependence``.
"""

from dataclasses import dataclass

from analyses._common import StudyAnalysis, run_analysis
from analyses._figures import each_seed


@dataclass
class AblationLEqualsN(StudyAnalysis):
    """As many labels as pairs in the minimal model: which seeds learn, and when (Reddy 2023, figure 6c)?"""

    def execute(self) -> None:
        done = self.conducted("ablation_l_equals_n")
        for variant in done.study.variants:
            for measure in ("train_loss", "icl_accuracy"):
                title = f"{variant}: {measure} of {len(done.study.seeds)} seeds"
                done.write(each_seed(done.of(variant), [measure], title), f"{variant}_{measure}")


if __name__ == "__main__":
    run_analysis(AblationLEqualsN)
