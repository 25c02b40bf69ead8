"""The claims of Reddy 2023 on what in the data favours which solution, with the rules by which runs are judged."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import binom, fisher_exact, spearmanr

from analyses.claims.verdicts import (
    LEVEL,
    MET,
    Claim,
    Verdict,
    all_hold,
    by_seed,
    format_range,
    in_range,
    judge,
    judge_test,
    judge_trend,
    require_numbers,
    sign_test,
)

IC, IWL = "final_icl_accuracy", "final_iwl_accuracy"
LEARNED = 0.9
"""The least IC accuracy of a run that has learned in context."""
RARE = 0.05
"""Probability of a fate that is no second behaviour."""
QUICK = "learning rate 0.1"
"""In what the quick runs differ: ten times the learning rate, and a tenth of the steps."""


def part(table: pd.DataFrame, grid: str) -> pd.DataFrame:
    """The runs of one grid of a study."""
    return table.loc[table["variant"].str.startswith(f"{grid} ")]


def of_figure_2(sweep: pd.DataFrame) -> list[Verdict]:
    """The claims of figure 2, of the full network."""
    classes, noise, skew = (part(sweep, grid) for grid in ("classes", "variability", "frequencies"))
    one = classes[classes["B"] == 1]
    ic, iwl = by_seed(one, IC, "K"), by_seed(one, IWL, "K")
    iid = by_seed(classes[classes["B"] == 0], IWL, "K")
    few, many = ic.columns[0], ic.columns[-1]
    bursts = {K: by_seed(classes[classes["K"].eq(K) & classes["B"].gt(0)], IC, "B") for K in (512, 1024)}
    alpha_ic, alpha_iwl = by_seed(skew, IC, "alpha"), by_seed(skew, IWL, "alpha")
    steep = [alpha for alpha in alpha_ic if float(str(alpha)) > 1]
    return [
        judge(
            Claim("2a", f"few classes (K = {few}, B = 1) are learned in weights", remark=QUICK),
            "IWL ≥ 0.95 and IC ≤ 0.1",
            all_hold(in_range(iwl[few], low=0.95), in_range(ic[few], high=0.1)),
            f"IWL {format_range(iwl[few])}, IC {format_range(ic[few])}",
        ),
        judge(
            Claim("2a", f"many classes (K = {many}, B = 1) are learned in context", remark=QUICK),
            "IC ≥ 0.95 and IWL ≤ 0.1",
            all_hold(in_range(ic[many], low=0.95), in_range(iwl[many], high=0.1)),
            f"IC {format_range(ic[many])}, IWL {format_range(iwl[many])}",
        ),
        _trend("2a", "IC accuracy rises with K (B = 1)", ic, 0.5, "IC at K"),
        _trend("2a", "IWL accuracy falls with K (B = 1)", iwl, -0.5, "IWL at K"),
        _trend("2a", "IC accuracy rises with B (K = 512)", bursts[512], 0.5, "IC at B"),
        _trend("2a", "IC accuracy rises with B (K = 1024)", bursts[1024], 0.1, "IC at B"),
        judge(
            Claim("2a", "with B = 0 every K is learned in weights", remark=QUICK),
            "IWL ≥ 0.95 at every K",
            all_hold(*(in_range(iid[K], low=0.95) for K in iid)),
            f"IWL at K = {format_range(iid)}",
        ),
        _trend(
            "2b",
            "within-class variability lowers IWL accuracy (ε from 0.1 on)",
            by_seed(noise[noise["epsilon"] >= 0.1], IWL, "epsilon"),
            -0.1,
            "IWL at ε",
        ),
        _trend(
            "2b",
            "within-class variability promotes ICL (ε to 0.7; at 1 the task itself is hardly learned)",
            by_seed(noise[noise["epsilon"] <= 0.7], IC, "epsilon"),
            0.1,
            "IC at ε",
        ),
        judge(
            Claim("2c", "α = 1 keeps both well above chance", remark=QUICK),
            "IC and IWL ≥ 0.5 (chance is 1/32)",
            all_hold(*(in_range(values[1.0], low=0.5) for values in (alpha_ic, alpha_iwl))),
            f"α = 1: IC {format_range(alpha_ic[1.0])}, IWL {format_range(alpha_iwl[1.0])}",
        ),
        judge(
            Claim("2c", "α > 1 ends ICL", remark=QUICK),
            "IC ≤ 0.15 from α = 1.5 on",
            all_hold(*(in_range(alpha_ic[alpha], high=0.15) for alpha in steep)),
            f"IC at α = {format_range(alpha_ic)}; IWL at α = {format_range(alpha_iwl)}",
        ),
    ]


def of_mixtures(mixed: pd.DataFrame) -> Verdict:
    """Figure A.1."""
    require_numbers(mixed, IC, IWL)
    cells = [cell for _, cell in mixed.groupby(["p_B", "p_C"])]
    both = [in_range(cell.set_index("seed")[column], low=LEARNED) for cell in cells for column in (IC, IWL)]
    return judge(
        Claim("A.1", "with 0 < p_B, p_C < 1 both are learned", remark=QUICK),
        f"IC and IWL ≥ {LEARNED} in every cell",
        all_hold(*both),
        f"over all cells and seeds IC {format_range(mixed[IC])}, IWL {format_range(mixed[IWL])}",
    )


def of_minimal(minimal: pd.DataFrame, *, beta2_free: bool = False) -> list[Verdict]:
    """Figure A.3: the dependencies in the minimal model at the paper's 150,000 steps (15,000 at learning rate 0.1).

    The paper's model has β₂ = 0; with β₂ free they are questions of our own.
    """
    ic, iwl = by_seed(part(minimal, "classes"), IC, "K"), by_seed(part(minimal, "classes"), IWL, "K")
    bursty = part(minimal, "burstiness")
    by_burst = by_seed(bursty[bursty["B"] > 0], IC, "B")
    noisy = by_seed(part(minimal, "variability"), IWL, "epsilon")
    skew_ic, skew_iwl = (by_seed(part(minimal, "frequencies"), column, "alpha") for column in (IC, IWL))
    steep = [alpha for alpha in skew_ic if float(str(alpha)) > 1]

    def claim(sentence: str) -> Claim:
        if beta2_free:
            return Claim("A.3", f"with β₂ free: {sentence}?", "our question", "other", QUICK)
        return Claim("A.3", f"in the two-parameter model {sentence}", remark=QUICK)

    return [
        judge_trend(claim("IC rises with K"), "by ≥ 0.3", ic, 0.3, f"IC at K = {format_range(ic)}"),
        judge_trend(claim("IWL falls with K"), "by ≥ 0.3", iwl, -0.3, f"IWL at K = {format_range(iwl)}"),
        judge_trend(claim("IC rises with B"), "by ≥ 0.1", by_burst, 0.1, f"IC at B = {format_range(by_burst)}"),
        judge_trend(claim("IWL falls with ε"), "by ≥ 0.1", noisy, -0.1, f"IWL at ε = {format_range(noisy)}"),
        judge(
            claim("α = 1 keeps both"),
            "IC and IWL > 0.4",
            all_hold(in_range(skew_ic[1.0], low=0.4), in_range(skew_iwl[1.0], low=0.4)),
            f"α = 1: IC {format_range(skew_ic[1.0])}, IWL {format_range(skew_iwl[1.0])}",
        ),
        judge(
            claim("α > 1 ends ICL"),
            "IC ≤ 0.2 from α = 1.5 on",
            all_hold(*(in_range(skew_ic[alpha], high=0.2) for alpha in steep)),
            f"IC at α = {format_range(skew_ic)}; IWL at α = {format_range(skew_iwl)}",
        ),
    ]


def of_label_counts(counted: pd.DataFrame) -> list[Verdict]:
    """Figure A.5: the full network with more labels than pairs, and with as many."""
    require_numbers(counted, IC)
    more, equal = counted[counted["L"] > counted["N"]], counted[counted["L"] == counted["N"]]
    learned = counted.assign(learned=counted[IC] >= LEARNED).groupby(["L", "N"])["learned"].agg(["sum", "count"])
    counts = learned.reset_index().to_dict("records")
    numbers = ", ".join(f"L={row['L']}, N={row['N']}: {row['sum']} of {row['count']}" for row in counts)
    every = all_hold(*(in_range(cell.set_index("seed")[IC], low=LEARNED) for _, cell in more.groupby(["L", "N"])))
    shares = [(cells[IC] >= LEARNED).groupby(cells["seed"]).mean() for cells in (more, equal)]
    p, against = sign_test(*shares)
    none = {int(str(seed)): bool((own[IC] < LEARNED).all()) for seed, own in equal.groupby("seed")}
    unlearned = not (more[IC] >= LEARNED).any()
    return [
        judge_test(
            Claim("A.5", "the full model robustly learns in context for L > N but not when L = N", remark=QUICK),
            "for L > N every seed learns in every cell, and for L = N seeds learn in fewer (exact sign test over seeds,"
            " p < 0.05); in more, or no seed that learns for L > N, speaks against it",
            p if all(every.values()) else 1.0,
            0.0 if unlearned else against,
            f"{len(every)} seeds",
            f"learned (IC ≥ {LEARNED}): {numbers}; p {p:.2g}",
            power=MET ** (2 * len(every)),
        ),
        _abolished(none, f"learned: {numbers}", tested=not unlearned),
    ]


def _abolished(none: Mapping[int, bool], numbers: str, *, tested: bool) -> Verdict:
    """The blog's sentence; where nothing is learned with L > N either, it is not tested."""
    claim = Claim("A.5", "L = N abolishes in-context learning even in the full model", "blog", remark=QUICK)
    rule = f"IC < {LEARNED} in every cell with L = N"
    if not tested:
        return Verdict.on(claim, rule, None, f"{len(none)} seeds", numbers, false_positive=0.5 ** len(none), power=0.0)
    return judge(claim, rule, none, numbers)


def of_saddle(runs: pd.DataFrame, n_labels: int) -> list[Verdict]:
    """Figure 6c: the two-parameter model with L = N; columns sigma, seed, alpha (at the start) and the ends of runs.

    A run has learned in context at an accuracy of 0.9 or more. It excludes labels where α < 0 and its loss is 0.4 nats
    or more below that of guessing, ln L, at a lower accuracy. The others have learned nothing yet.
    """
    verdicts = []
    for sigma, own in runs.groupby("sigma"):
        learned = own[IC] >= LEARNED
        excluding = ~learned & (own["alpha_end"] < 0) & (own["final_icl_loss"] <= np.log(n_labels) - 0.4)
        positive, ends = own["alpha"] > 0, []
        for name, which in (("learned", learned), ("excluding", excluding), ("neither", ~learned & ~excluding)):
            loss, accuracy = (format_range(own.loc[which, column]) for column in ("final_icl_loss", IC))
            ends.append(f"{name} {which.sum()}" + (f" (loss {loss}, accuracy {accuracy})" if which.any() else ""))
        asked = Claim(
            "6c",
            "with L = N there are two behaviours, ICL and slow convergence to a sub-optimal minimum",
            remark=f"α, β₁ ~ N(0, {sigma:g}²) at the start, which the paper does not give; learning rate 0.1",
        )
        of, text = f"{learned.sum()} + {excluding.sum()} of {len(own)}", f"{len(own)} seeds: {'; '.join(ends)}"
        both = True if min(learned.sum(), excluding.sum()) >= 2 else None
        chance = float(1 - binom.cdf(1, len(own), RARE) - binom.cdf(1, len(own), 1 - RARE))
        power = max(float(1 - binom.cdf(1, len(own), 1 / 3) - binom.cdf(1, len(own), 2 / 3)), 0.0)
        rule = f"two seeds or more of each; by chance: one of them has a probability of {RARE:g}, in truth of 1/3"
        verdicts.append(Verdict.on(asked, rule, both, of, text, false_positive=max(chance, 0.0), power=power))
        if positive.any() and (~positive).any():
            table = [[(learned & which).sum(), (~learned & which).sum()] for which in (positive, ~positive)]
            p, against = (float(fisher_exact(table, alternative=side)[1]) for side in ("greater", "less"))
            question = Claim(
                "6c", "is the fate of a seed the sign of α at the start?", "our question", remark=asked.remark
            )
            text = f"learned with α > 0: {table[0][0]} of {sum(table[0])}, with α < 0: {table[1][0]} of {sum(table[1])}"
            power = fisher_power(int((~positive).sum()), int(positive.sum()))
            rule, numbers = "Fisher's exact test, p < 0.05", f"{text}; p {p:.2g}; power for 0.9 against 0.2"
            verdicts.append(judge_test(question, rule, p, against, f"{len(own)} seeds", numbers, power=power))
    return verdicts


def fisher_power(n_fewer: int, n_more: int, fewer: float = 0.2, more: float = 0.9) -> float:
    """How often Fisher's test tells two probabilities apart, exactly."""
    power = 0.0
    for a in range(n_fewer + 1):
        for b in range(n_more + 1):
            if fisher_exact([[a, n_fewer - a], [b, n_more - b]], alternative="less")[1] < LEVEL:
                power += float(binom.pmf(a, n_fewer, fewer) * binom.pmf(b, n_more, more))
    return power


def of_rates(cells: pd.DataFrame, rates: Mapping[int, float], contexts: Mapping[int, float], n_labels: int) -> Verdict:
    """Section 3: do the relative rates determine the fraction of loss that each mechanism explains?

    Of every cell of figure 2a in which both can be learned (K, B, seed and final losses), the share of in-context
    learning is Δ_IC / (Δ_IC + Δ_IWL) with Δ = max(0, ln L − loss) on the set of each; its relative rate is the time of
    memorising K alone over that of in-context learning alone at B. The relative rates are the same for all seeds, so
    that the chance is that of one of them. Where a run explains nothing there is no share, and no verdict.
    """
    explained = {name: (np.log(n_labels) - cells[f"final_{name}_loss"]).clip(lower=0) for name in ("icl", "iwl")}
    table = cells.assign(
        share=explained["icl"] / (explained["icl"] + explained["iwl"]),
        rate=[np.log(rates[K] / contexts[B]) for K, B in zip(cells["K"], cells["B"], strict=True)],
    )
    found = {
        int(str(seed)): float(spearmanr(own["rate"], own["share"]).statistic) for seed, own in table.groupby("seed")
    }
    n = len(table) // max(len(found), 1)
    wrong = table[(table["rate"] > 0) != (table["share"] > 0.5)]
    odd = sorted({(int(K), int(B)) for K, B in zip(wrong["K"], wrong["B"], strict=True)})
    numbers = f"Spearman's ρ {format_range(pd.Series(found))} over {n} cells"
    numbers += f"; the faster one explains less in (K, B) = {odd}"
    question = Claim(
        "2, text", "do the relative rates set the fraction of loss explained?", "our question", remark=QUICK
    )
    holds = {seed: rho >= 0.8 for seed, rho in found.items()}
    rule = "rank correlation of share and relative rate ≥ 0.8"
    if not np.isfinite(list(found.values())).all():
        text = "some runs have learned nothing at all, or all shares are equal"
        return Verdict.on(question, rule, None, f"{len(found)} seeds", text, false_positive=0.0, power=0.0)
    return judge(question, rule, holds, numbers, chance=_spearman_chance(n, 0.8))


def _spearman_chance(n: int, least: float, draws: int = 20_000) -> float:
    """How often ranks in random order correlate so much; simulated, and at least one in the number of draws."""
    rng, ranks = np.random.default_rng(0), np.arange(n) - (n - 1) / 2
    orders = rng.permuted(np.tile(ranks, (draws, 1)), axis=1)
    return max(float((orders @ ranks / (ranks @ ranks) >= least).mean()), 1 / draws)


def _trend(figure: str, sentence: str, values: pd.DataFrame, least: float, name: str) -> Verdict:
    numbers, rule = f"{name} = {format_range(values)}", f"{'by' if least > 0 else 'falls by'} ≥ {abs(least):g}"
    rule += ", nowhere against it by more than 0.05"
    return judge_trend(Claim(figure, sentence, remark=QUICK), rule, values, least, numbers)
