"""As many labels as pairs in the minimal model: which seeds learn, and how long it takes (Reddy 2023, figure 6c).

    python -m analyses.ablation_l_equals_n [--workers N] [--paper-scale] [--out FOLDER]

Does the studies ``ablation_l_equals_n.toml`` (the minimal induction head with β₂ free, L > N and L = N, from the origin
and from α < 0) and ``ablation_l_equals_n_beta2_fixed.toml`` (the two-parameter model of the figure, β₂ = 0, L = N, from
random α and β₁), and writes their tables (of runs and of variants), their pages, for each variant the loss and the
in-context accuracy of every seed, ``fates.csv`` (α at the start and at the end, and the end of every run with β₂ = 0)
and ``verdicts.csv``. The full network is a part of ``data_dependence``.
"""

from dataclasses import dataclass

import pandas as pd

from analyses._common import StudyAnalysis, StudyResult, run_analysis
from analyses._figures import each_seed
from analyses.claims import data_dependence as claims
from analyses.claims.data_dependence import IC
from analyses.claims.verdicts import verdict_table
from mechinterp.models.registry import initial_parameters
from mechinterp.run import open_run

ALPHA = "blocks.1.attn.alpha"


@dataclass
class AblationLEqualsN(StudyAnalysis):
    """As many labels as pairs in the minimal model: which seeds learn, and when (Reddy 2023, figure 6c)?"""

    def execute(self) -> None:
        free, fixed = self.conducted("ablation_l_equals_n"), self.conducted("ablation_l_equals_n_beta2_fixed")
        for done in (free, fixed):
            for variant in done.study.variants:
                for measure in ("train_loss", "icl_accuracy"):
                    title = f"{variant}: {measure} of {len(done.study.seeds)} seeds"
                    done.write(each_seed(done.of(variant), [measure], title), f"{variant}_{measure}")
        fates = self._fates(fixed)
        fates.to_csv(fixed.out / "fates.csv", index=False, float_format="%.4g")
        found = verdict_table(claims.of_saddle(fates))
        found.to_csv(fixed.out / "verdicts.csv", index=False)
        print(found[["figure", "sentence", "verdict", "runs", "numbers"]].to_string(index=False))

    def _fates(self, done: StudyResult) -> pd.DataFrame:
        """α at the start and at the end, and the end, of every run."""
        rows = []
        for row in done.settings({"sigma": "model.attention_init_std"}).to_dict("records"):
            run = open_run(self.runs / f"{row['run']}.h5")
            ends = {name: row[name] for name in ("sigma", "seed", IC, "final_icl_loss")}
            start, last = initial_parameters(run.config)[ALPHA], run.weights(run.steps[-1])[ALPHA]
            rows.append(ends | {"alpha": float(start), "alpha_end": float(last)})
        return pd.DataFrame(rows)


if __name__ == "__main__":
    run_analysis(AblationLEqualsN)
