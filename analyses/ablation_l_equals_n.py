"""As many labels as pairs: which seeds learn in-context, and how long it takes (Reddy 2023, figures 6c and A.5).

    python -m analyses.ablation_l_equals_n [--workers N] [--paper-scale] [--out FOLDER]

Does the studies ``ablation_l_equals_n.toml`` (the minimal induction head with L > N and L = N, from the origin and from
α < 0) and ``ablation_l_equals_n_full.toml`` (the full network), and writes, in a folder for each, ``runs.csv``,
``variants.csv``, its page, and for each variant the loss and the in-context accuracy of every seed.
"""

from dataclasses import dataclass

from mechinterp.analysis import StudyAnalysis, run_analysis
from mechinterp.report.figures import each_seed


@dataclass
class AblationLEqualsN(StudyAnalysis):
    """As many labels as pairs: which seeds learn in-context, and how long it takes (Reddy 2023, figures 6c and A.5)."""

    def execute(self) -> None:
        for name in ("ablation_l_equals_n", "ablation_l_equals_n_full"):
            done = self.conducted(name)
            for variant in done.study.variants:
                for measure in ("train_loss", "icl_accuracy"):
                    title = f"{variant}: {measure} of {len(done.study.seeds)} seeds"
                    done.write(each_seed(done.of(variant), [measure], title), f"{variant}_{measure}")


if __name__ == "__main__":
    run_analysis(AblationLEqualsN)
