"""Which statistics of the data favour the induction head over memorising (Reddy 2023, figures 2, A.1, A.3 and A.5)?

    python -m analyses.data_dependence [--workers N] [--paper-scale] [--out FOLDER]

Does the studies ``data_dependence*.toml`` and ``label_count.toml`` and writes, for each, its tables and its page; and
to ``data_dependence/`` the figures, ``race.csv`` (when in-context and in-weights accuracy are acquired, alone
and together), ``turning.csv`` (the K at which figure 2a turns over), ``groups.csv`` (do the seeds near the boundary
fall into two groups?), ``cost.csv`` and ``verdicts.csv``: every claim with what was found of it.
"""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from analyses._common import StudyAnalysis, StudyResult, costs, run_analysis
from analyses._sweep_figures import bands, heat_maps, race, strips
from analyses.claims.verdicts import (
    Verdict,
    all_hold,
    by_seed,
    format_range,
    in_range,
    is_monotone,
    judge,
    largest_gap_test,
    verdict_table,
)
from mechinterp.emergence import acquisition_step
from mechinterp.report.study import variant_curves

IC, IWL = "final_icl_accuracy", "final_iwl_accuracy"
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
        alone, near = self.conducted("data_dependence_race"), self.conducted("data_dependence_boundary")
        counted = self.conducted("label_count")
        sweep, mixed, minimal, boundary = (each.settings(SETTINGS) for each in (done, both, small, near))
        classes = part(sweep, "classes")
        done.write(heat_maps(classes, "K", "B", [IC, IWL], "Figure 2a"), "figure_2a")
        done.write(bands(classes, "K", [IC, IWL], "B", "Figure 2a, over seeds", log_x=True), "figure_2a_seeds")
        done.write(bands(part(sweep, "variability"), "epsilon", [IC, IWL], None, "Figure 2b"), "figure_2b")
        done.write(bands(part(sweep, "frequencies"), "alpha", [IC, IWL], None, "Figure 2c"), "figure_2c")
        done.write(heat_maps(mixed, "p_C", "p_B", [IC, IWL], "Figure A.1"), "figure_a1")
        for name, x in (("classes", "K"), ("burstiness", "B"), ("variability", "epsilon"), ("frequencies", "alpha")):
            title = f"Figure A.3: the minimal model, {name}"
            done.write(bands(part(minimal, name), x, [IC, IWL], None, title, log_x=x == "K"), f"figure_a3_{name}")
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
        costs(done, both, small, alone, near, counted).to_csv(done.out / "cost.csv", index=False)
        found = verdict_table(
            [*figure_2(sweep), *others(mixed, minimal, counted.settings(SETTINGS)), race_verdict(times, ends)]
        )
        found.to_csv(done.out / "verdicts.csv", index=False)
        print(kinds.round(3).to_string(index=False))
        print(found.drop(columns="numbers").to_string(index=False))


def part(table: pd.DataFrame, grid: str) -> pd.DataFrame:
    """The runs of one grid of a study."""
    return table.loc[table["variant"].str.startswith(f"{grid} ")]


def figure_2(sweep: pd.DataFrame) -> list[Verdict]:
    """The claims of figure 2, of the full network."""
    classes, noise, skew = (part(sweep, grid) for grid in ("classes", "variability", "frequencies"))
    one = classes[classes["B"] == 1]
    ic, iwl = by_seed(one, IC, "K"), by_seed(one, IWL, "K")
    iid = by_seed(classes[classes["B"] == 0], IWL, "K")
    few, many = ic.columns[0], ic.columns[-1]
    bursts = [by_seed(classes[classes["K"].eq(K) & classes["B"].gt(0)], IC, "B") for K in (512, 1024)]
    alpha_ic, alpha_iwl = by_seed(skew, IC, "alpha"), by_seed(skew, IWL, "alpha")
    return [
        judge(
            "2a",
            f"K = {few}, B = 1 is learned in weights: IWL ≥ 0.95, IC ≤ 0.1",
            all_hold(in_range(iwl[few], low=0.95), in_range(ic[few], high=0.1)),
            f"IWL {format_range(iwl[few])}, IC {format_range(ic[few])}",
        ),
        judge(
            "2a",
            f"K = {many}, B = 1 is learned in context: IC ≥ 0.95, IWL ≤ 0.1",
            all_hold(in_range(ic[many], low=0.95), in_range(iwl[many], high=0.1)),
            f"IC {format_range(ic[many])}, IWL {format_range(iwl[many])}",
        ),
        judge(
            "2a", "IC accuracy rises with K (B = 1), by ≥ 0.5", is_monotone(ic, 0.5), f"IC at K = {format_range(ic)}"
        ),
        judge(
            "2a",
            "IWL accuracy falls with K (B = 1), by ≥ 0.5",
            is_monotone(iwl, -0.5),
            f"IWL at K = {format_range(iwl)}",
        ),
        judge(
            "2a",
            "IC accuracy rises with B at fixed K (512 by ≥ 0.5, 1024 by ≥ 0.1)",
            all_hold(is_monotone(bursts[0], 0.5), is_monotone(bursts[1], 0.1)),
            f"IC at K = 512, B = {format_range(bursts[0])}; at K = 1024, B = {format_range(bursts[1])}",
        ),
        judge(
            "2a",
            "with B = 0 every K is learned in weights (IWL ≥ 0.95)",
            all_hold(*(in_range(iid[K], low=0.95) for K in iid)),
            f"IWL at K = {format_range(iid)}",
        ),
        judge(
            "2b",
            "within-class variability lowers IWL accuracy (ε from 0.1 to 1, by ≥ 0.1)",
            is_monotone(by_seed(noise[noise["epsilon"] >= 0.1], IWL, "epsilon"), -0.1),
            f"IWL at ε = {format_range(by_seed(noise, IWL, 'epsilon'))}",
        ),
        judge(
            "2b",
            "within-class variability promotes ICL (ε from 0 to 0.7, by ≥ 0.1; at 1 the task itself is hardly learned)",
            is_monotone(by_seed(noise[noise["epsilon"] <= 0.7], IC, "epsilon"), 0.1),
            f"IC at ε = {format_range(by_seed(noise, IC, 'epsilon'))}",
        ),
        judge(
            "2c",
            "α = 1 keeps both well above chance (1/32): IC and IWL ≥ 0.5",
            all_hold(*(in_range(values[1.0], low=0.5) for values in (alpha_ic, alpha_iwl))),
            f"α = 1: IC {format_range(alpha_ic[1.0])}, IWL {format_range(alpha_iwl[1.0])}",
        ),
        judge(
            "2c",
            "α > 1 ends ICL (IC ≤ 0.15 from α = 1.5 on)",
            all_hold(*(in_range(alpha_ic[alpha], high=0.15) for alpha in alpha_ic if float(str(alpha)) > 1)),
            f"IC at α = {format_range(alpha_ic)}; IWL at α = {format_range(alpha_iwl)}",
        ),
    ]


def others(mixed: pd.DataFrame, minimal: pd.DataFrame, counted: pd.DataFrame) -> list[Verdict]:
    """The claims of the appendix."""
    cells = [cell for _, cell in mixed.groupby(["p_B", "p_C"])]
    both = [in_range(cell.set_index("seed")[column], low=0.9) for cell in cells for column in (IC, IWL)]
    ic, iwl = by_seed(part(minimal, "classes"), IC, "K"), by_seed(part(minimal, "classes"), IWL, "K")
    bursty = part(minimal, "burstiness")
    by_burst = by_seed(bursty[bursty["B"] > 0], IC, "B")
    noisy = by_seed(part(minimal, "variability"), IWL, "epsilon")
    skew_ic, skew_iwl = (by_seed(part(minimal, "frequencies"), column, "alpha") for column in (IC, IWL))
    more, equal = counted[counted["L"] > counted["N"]], counted[counted["L"] == counted["N"]]
    learned = counted.assign(learned=counted[IC] >= 0.9).groupby(["L", "N"])["learned"].agg(["sum", "count"])
    counts = learned.reset_index().to_dict("records")
    numbers = ", ".join(f"L={row['L']}, N={row['N']}: {row['sum']} of {row['count']}" for row in counts)
    return [
        judge(
            "A.1",
            "with 0 < p_B, p_C < 1 both are learned (IC and IWL ≥ 0.9 in every cell)",
            all_hold(*both),
            f"over all cells and seeds IC {format_range(mixed[IC])}, IWL {format_range(mixed[IWL])}",
        ),
        judge("A.3", "minimal model: IC rises with K, by ≥ 0.3", is_monotone(ic, 0.3), f"IC at K = {format_range(ic)}"),
        judge(
            "A.3",
            "minimal model: IWL falls with K, by ≥ 0.3",
            is_monotone(iwl, -0.3),
            f"IWL at K = {format_range(iwl)}",
        ),
        judge(
            "A.3",
            "minimal model: IC rises with B, by ≥ 0.1",
            is_monotone(by_burst, 0.1),
            f"IC at B = {format_range(by_burst)}",
        ),
        judge(
            "A.3",
            "minimal model: IWL falls with ε, by ≥ 0.1",
            is_monotone(noisy, -0.1),
            f"IWL at ε = {format_range(noisy)}",
        ),
        judge(
            "A.3",
            "minimal model: α = 1 keeps both (> 0.4), α ≥ 1.5 ends ICL (≤ 0.2)",
            all_hold(
                in_range(skew_ic[1.0], low=0.4),
                in_range(skew_iwl[1.0], low=0.4),
                *(in_range(skew_ic[alpha], high=0.2) for alpha in (1.5, 2.0)),
            ),
            f"IC at α = {format_range(skew_ic)}; IWL at α = {format_range(skew_iwl)}",
        ),
        judge(
            "A.5",
            "full network: L > N robustly learns (IC ≥ 0.9 in every cell)",
            all_hold(*(in_range(cell.set_index("seed")[IC], low=0.9) for _, cell in more.groupby(["L", "N"]))),
            f"learned: {numbers}",
        ),
        judge(
            "A.5",
            "full network: L = N does not learn (IC < 0.9 in every cell)",
            all_hold(*(in_range(cell.set_index("seed")[IC], high=0.9) for _, cell in equal.groupby(["L", "N"]))),
            f"learned: {numbers}",
        ),
    ]


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


def race_verdict(times: pd.DataFrame, ends: pd.DataFrame) -> Verdict:
    """In every cell of figure 2a (B ≥ 1), does the one win (at the end) that is faster alone?

    `ends` has the accuracies at the end of these cells, and of others between them that show where they turn over.
    """
    memorising = _medians(times[times["B"].eq(0)], "K", "t_iwl")
    contextual = _medians(times[times["p_C"].eq(1.0)], "B", "t_icl")
    cells = cells_of(times)
    memory, context = cells["K"].map(memorising), cells["B"].map(contextual)
    agree = ((context < memory) == (cells["IC"] > cells["IWL"])) & (context != memory)
    by_seeds = pd.Series(agree.groupby(cells["seed"]).agg(["sum", "count"]).eval("sum / count"))
    right, wrong = pd.Series(agree.groupby(cells["seed"]).sum()), cells.loc[~agree]
    turning = {int(str(B)): turning_point(rows) for B, rows in ends.groupby("B")}
    numbers = "; ".join(
        f"B = {B}: ICL alone at step {contextual.get(B, np.nan):.0f}, {_as_fast_as(contextual.get(B), memorising)};"
        f" IC = IWL at K = {K:.0f}"
        for B, K in turning.items()
    )
    numbers += f"; right in {format_range(right, 0)} of {len(cells) // len(right)} cells,"
    numbers += f" wrong in (K, B) = {sorted(set(zip(wrong['K'], wrong['B'], strict=True)))}"
    holds = {int(str(seed)): bool(share == 1) for seed, share in by_seeds.items()}
    return judge("2, text", "the one that is learned faster by itself wins, in every cell of figure 2a", holds, numbers)


def _medians(alone: pd.DataFrame, by: str, column: str) -> dict[int, float]:
    """Median over seeds of a time, by a setting, ascending; where it is not acquired, it would take for ever."""
    times = alone.assign(time=alone[column].fillna(np.inf))
    return {int(str(value)): float(own["time"].median()) for value, own in times.groupby(by)}


def _as_fast_as(step: float | None, memorising: dict[int, float]) -> str:
    """Of how many classes are memorised in so many steps, between those that were run."""
    classes, steps = list(memorising), list(memorising.values())
    if step is None or not steps or not steps[0] <= step <= steps[-1]:
        return "unlike memorising any K that was run"
    return f"as fast as memorising K = {np.interp(step, steps, classes):.0f}"


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
