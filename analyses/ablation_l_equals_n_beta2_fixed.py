"""As many labels as pairs in the two-parameter model: the two fates of seeds (Reddy 2023, figure 6c).

    python -m analyses.ablation_l_equals_n_beta2_fixed [--workers N] [--paper-scale] [--out FOLDER]

Does the study ``ablation_l_equals_n_beta2_fixed.toml`` (β₂ = 0, L = N, α and β₁ drawn from N(0, σ²)) and writes its
tables (of runs and of variants), its page, for each σ the in-context accuracy of every seed, ``fates.csv`` (α at the
start and at the end, and the end of every run) and ``verdicts.csv``.
"""

from dataclasses import dataclass

import pandas as pd

from analyses._common import StudyAnalysis, StudyResult, run_analysis
from analyses._figures import each_seed
from analyses.claims import data_dependence as claims
from analyses.claims.data_dependence import IC
from mechinterp.models.registry import initial_parameters
from mechinterp.run import open_run

ALPHA = "blocks.1.attn.alpha"


@dataclass
class AblationLEqualsNBeta2Fixed(StudyAnalysis):
    """As many labels as pairs in the two-parameter model: the two fates of seeds (Reddy 2023, figure 6c)."""

    def execute(self) -> None:
        done = self.conducted("ablation_l_equals_n_beta2_fixed")
        for variant in done.study.variants:
            title = f"L = N, β₂ = 0, {variant.replace('sigma', 'σ')}: every seed"
            done.write(each_seed(done.of(variant), ["icl_accuracy"], title), variant.replace(" ", "").replace("=", "_"))
        fates = self._fates(done)
        fates.to_csv(done.out / "fates.csv", index=False, float_format="%.4g")
        done.judged(claims.of_saddle(fates, done.study.runs[0].config.task.n_labels))

    def _fates(self, done: StudyResult) -> pd.DataFrame:
        """α at the start and at the end, and the end, of every run."""
        rows = []
        for row in done.settings({"sigma": "model.attention_init_std"}).to_dict("records"):
            run = open_run(self.runs / f"{row['run']}.h5")
            ends = {name: row[name] for name in ("sigma", "seed", IC, "final_icl_loss")}
            start, last = initial_parameters(run.config)[ALPHA], run.weights("last")[ALPHA]
            rows.append(ends | {"alpha": float(start), "alpha_end": float(last)})
        return pd.DataFrame(rows)


if __name__ == "__main__":
    run_analysis(AblationLEqualsNBeta2Fixed)
