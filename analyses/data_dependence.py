"""Which statistics of the data favour the induction head over memorising (Reddy 2023, figures 2, A.1, A.3 and A.5)?

    python -m analyses.data_dependence [--workers N] [--paper-scale] [--out FOLDER]

Does the studies ``data_dependence*.toml`` and ``label_count.toml`` and writes, for each, its tables and its page; and
to ``data_dependence/`` the figures, ``race.csv`` (when in-context and in-weights accuracy are acquired, alone
and together), ``turning.csv`` (the K at which figure 2a turns over), ``groups.csv`` (do the seeds near the boundary
fall into two groups?), ``minimal.csv`` (where the minimal model ends, β₂ at 0 and free), ``cost.csv`` and
``verdicts.csv``: every claim with what was found of it.
"""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from analyses._common import StudyAnalysis, StudyResult, costs, run_analysis
from analyses._sweep_figures import bands, heat_maps, race, strips
from analyses.claims import data_dependence as claims
from analyses.claims.data_dependence import IC, IWL, part
from analyses.claims.verdicts import largest_gap_test, verdict_table
from mechinterp.emergence import acquisition_step
from mechinterp.report.study import variant_curves

SETTINGS = {
    "K": "task.n_classes",
    "B": "task.burstiness",
    "epsilon": "task.epsilon",
    "alpha": "task.zipf_exponent",
    "p_B": "task.p_bursty",
    "p_C": "task.p_in_context",
    "L": "task.n_labels",
    "N": "task.n_pairs",
}


@dataclass
class DataDependence(StudyAnalysis):
    """Which statistics of the data favour the induction head over memorising (Reddy 2023, figures 2, A.1, A.3, A.5)?"""

    def execute(self) -> None:
        done = self.conducted("data_dependence")
        both, small = self.conducted("data_dependence_both"), self.conducted("data_dependence_minimal")
        unfixed = self.conducted("data_dependence_minimal_free")
        alone, near = self.conducted("data_dependence_race"), self.conducted("data_dependence_boundary")
        counted = self.conducted("label_count")
        studies = (done, both, small, unfixed, near)
        sweep, mixed, minimal, free, boundary = (each.settings(SETTINGS) for each in studies)
        classes = part(sweep, "classes")
        done.write(heat_maps(classes, "K", "B", [IC, IWL], "Figure 2a"), "figure_2a")
        done.write(bands(classes, "K", [IC, IWL], "B", "Figure 2a, over seeds", log_x=True), "figure_2a_seeds")
        done.write(bands(part(sweep, "variability"), "epsilon", [IC, IWL], None, "Figure 2b"), "figure_2b")
        done.write(bands(part(sweep, "frequencies"), "alpha", [IC, IWL], None, "Figure 2c"), "figure_2c")
        done.write(heat_maps(mixed, "p_C", "p_B", [IC, IWL], "Figure A.1"), "figure_a1")
        for name, x in (("classes", "K"), ("burstiness", "B"), ("variability", "epsilon"), ("frequencies", "alpha")):
            for table, ending, text in ((minimal, "", "β₂ = 0"), (free, "_free", "β₂ free")):
                title = f"Figure A.3: the minimal model ({text}), {name}"
                figure = bands(part(table, name), x, [IC, IWL], None, title, log_x=x == "K")
                done.write(figure, f"figure_a3_{name}{ending}")
        done.write(variant_curves(counted.study, counted.measured, "icl_accuracy"), "figure_a5")
        done.write(strips(boundary, "K", [IC, IWL], "Near the boundary, every seed (B = 1)"), "boundary")
        times = race_table(done, alone, classes, alone.settings(SETTINGS))
        times.to_csv(done.out / "race.csv", index=False, float_format="%.5g")
        ends = pd.concat([cells_of(times), boundary.rename(columns={IC: "IC", IWL: "IWL"})])
        shares = ends.assign(share=ends["IC"] / (ends["IC"] + ends["IWL"]))
        done.write(race(shares, alone_times(times), "Does the faster one win?"), "race")
        kinds = pd.DataFrame(
            [{"K": K, **asdict(largest_gap_test(rows[IC].tolist()))} for K, rows in boundary.groupby("K")]
        )
        kinds.to_csv(done.out / "groups.csv", index=False, float_format="%.4g")
        turning = [{"B": B, "K": turning_point(rows)} for B, rows in ends.groupby("B")]
        pd.DataFrame(turning).to_csv(done.out / "turning.csv", index=False, float_format="%.5g")
        costs(done, both, small, unfixed, alone, near, counted).to_csv(done.out / "cost.csv", index=False)
        columns = ["variant", "seed", "K", "B", "epsilon", "alpha", IC, IWL]
        ended = pd.concat([minimal[columns].assign(beta2="0"), free[columns].assign(beta2="free")])
        ended.to_csv(done.out / "minimal.csv", index=False, float_format="%.4g")
        memorising, contextual = (
            medians(times[times["B"].eq(0)], "K", "t_iwl"),
            medians(times[times["p_C"].eq(1.0)], "B", "t_icl"),
        )
        both_possible = classes[classes["B"].gt(0)]
        found = verdict_table(
            [
                *claims.of_figure_2(sweep),
                claims.of_mixtures(mixed),
                *claims.of_minimal(minimal),
                *claims.of_minimal(free, beta2_free=True),
                *claims.of_label_counts(counted.settings(SETTINGS)),
                claims.of_rates(both_possible, memorising, contextual, int(both_possible["L"].iloc[0])),
            ]
        )
        found.to_csv(done.out / "verdicts.csv", index=False)
        print(kinds.round(3).to_string(index=False))
        print(found[["figure", "sentence", "verdict", "runs", "false_positive", "power"]].to_string(index=False))


def race_table(done: StudyResult, alone: StudyResult, *runs: pd.DataFrame) -> pd.DataFrame:
    """When IC and IWL accuracy are acquired in each run of figure 2a, and in those in which all classes are novel."""
    rows = []
    for conducted, table in zip((done, alone), runs, strict=True):
        for row in table.to_dict("records"):
            measures = conducted.measured[row["variant"], row["seed"]]
            times = {f"t_{name}": acquisition_step(measures[f"{name}_accuracy"]) for name in ("icl", "iwl")}
            ends = {"IC": row[IC], "IWL": row[IWL]}
            rows.append({name: row[name] for name in ("K", "B", "p_C", "seed")} | times | ends)
    return pd.DataFrame(rows).astype({"t_icl": float, "t_iwl": float})


def alone_times(times: pd.DataFrame) -> pd.DataFrame:
    """Memorising alone (B = 0) and in-context learning alone (p_C = 1): K, B, iwl and icl, in steps."""
    memorising = times[times["B"].eq(0)].assign(iwl=lambda t: t["t_iwl"], icl=np.nan)
    contextual = times[times["p_C"].eq(1.0)].assign(icl=lambda t: t["t_icl"], iwl=np.nan)
    return pd.concat([memorising, contextual]).loc[:, ["K", "B", "seed", "iwl", "icl"]]


def cells_of(times: pd.DataFrame) -> pd.DataFrame:
    """The runs of figure 2a in which both can be learned (B ≥ 1)."""
    return times.loc[times["B"].gt(0) & times["p_C"].eq(0.0)]


def medians(alone: pd.DataFrame, by: str, column: str) -> dict[int, float]:
    """Median over seeds of a time, by a setting, ascending; where it is not acquired, it would take for ever."""
    times = alone.assign(time=alone[column].fillna(np.inf))
    return {int(str(value)): float(own["time"].median()) for value, own in times.groupby(by)}


def turning_point(rows: pd.DataFrame) -> float:
    """The K at which IC and IWL accuracy are equal, between the Ks that were run (in log K); NaN if nowhere."""
    gap = rows.groupby("K")[["IC", "IWL"]].median().eval("IC - IWL")
    crossed = np.flatnonzero((gap.to_numpy()[:-1] <= 0) & (gap.to_numpy()[1:] > 0))
    if not len(crossed):
        return float("nan")
    i = crossed[0]
    K, g = np.log(gap.index.to_numpy(dtype=float)[i : i + 2]), gap.to_numpy()[i : i + 2]
    return float(np.exp(K[0] - g[0] * (K[1] - K[0]) / (g[1] - g[0])))


if __name__ == "__main__":
    run_analysis(DataDependence)
