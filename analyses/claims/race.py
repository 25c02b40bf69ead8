"""The claims of Nguyen & Reddy 2024, with the rules by which tables of runs are judged."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.stats import binom, fisher_exact, skewtest

from analyses.claims.scaling import Mean, PowerLaw, power_law, ratio, thresholds
from analyses.claims.verdicts import (
    LEVEL,
    Claim,
    Verdict,
    all_hold,
    by_seed,
    format_range,
    in_range,
    judge,
    judge_interval,
    judge_test,
)
from mechinterp.emergence import first_above
from mechinterp.errors import MechinterpError
from mechinterp.randomness import Stream, generator
from mechinterp.theory.kinetics import Kinetics, other_loss

IC, IWL = "final_icl_accuracy", "final_iwl_accuracy"
LEARNED = 0.75
"""The paper's least IC accuracy of a run that has acquired ICL (figure 6e), halfway from guessing to all."""
LOST = 0.9
"""Its greatest IC accuracy of a run that has lost it (figure A.6)."""
ACQUIRED = 0.99
"""The least IC accuracy that a run must have had to lose it (figure A.6)."""
UNFINISHED = 0.05
"""How much more of I_K(∞) there may be to come, were c₁ to stay as it is for as long again."""
CLOSE = 1.25
"""By how much something may differ from what its theory predicts, as a ratio."""
MOST = 0.9
"""Share of a run's checkpoints in which a relation must hold."""
ALIKE = 0.15
"""By how much exponents may differ that should be the same, as a part."""
SMALL = 0.1
"""Nats. A loss below it is small, as equations 46 and 47 need."""
BENT = 0.2
"""Change of the local exponent over the range that is no power law."""
SHARP = 4.0
"""Factor in K over which a sharp transition goes from IC accuracy 0.6 to 0.9."""
LAST = 5
"""Checkpoints whose median is the end of a run: accuracies jump."""
THEIRS = "the authors'"
"""Beginning of the name of what was trained under the conventions of the authors' code."""
CONVENTIONS = {
    "network": "nguyen2024-fast's",
    "network of width 512": "nguyen2024-fast's",
    "two layers": "nguyen2024-fast's",
    "additive model": "nguyen2024-minimal's",
}


def conventions(what: str) -> str:
    """The conventions of what was trained, in a few words."""
    return "the authors', learning rate 0.03" if what.startswith(THEIRS) else CONVENTIONS.get(what, "nguyen2024-fast's")


def of_diversity(diversity: pd.DataFrame) -> list[Verdict]:
    """Figures 2b, 2c and A.7, and 3a of the additive model."""
    verdicts = []
    for what, runs in diversity.groupby("what", sort=False):
        few, many, sharp, numbers, widths = [], [], [], [], []
        for N, own in runs.groupby("N"):
            ic, iwl = by_seed(own, IC, "K"), by_seed(own, IWL, "K")
            first, last = ic.columns[0], ic.columns[-1]
            few += [in_range(ic[first], high=0.6), in_range(iwl[first], low=0.95)]
            many += [in_range(ic[last], low=0.95), in_range(iwl[last], high=0.75)]
            factor = pd.Series(thresholds(ic, 0.9) / thresholds(ic, 0.6), index=ic.index)
            sharp.append(in_range(factor, high=SHARP))
            widths.append(f"N = {N}: {format_range(factor)}")
            numbers.append(
                f"N = {N}: K = {first}: IC {format_range(ic[first])}, IWL {format_range(iwl[first])};"
                f" K = {last}: IC {format_range(ic[last])}, IWL {format_range(iwl[last])}"
            )
        figure, about = ("3a" if what == "additive model" else "2b, 2c, A.7"), conventions(str(what))
        for sentence, rule, holds, text in (
            (
                "for K ≪ K* the network shows IWL but fails to acquire ICL",
                "at the least K of every N: IC ≤ 0.6, IWL ≥ 0.95",
                all_hold(*few),
                numbers,
            ),
            (
                "for K ≫ K* the network consistently acquires ICL but does not show IWL",
                "at the greatest K of every N: IC ≥ 0.95, IWL ≤ 0.75",
                all_hold(*many),
                numbers,
            ),
            (
                "the transition from IWL to ICL is sharp",
                f"at every N, IC rises from 0.6 to 0.9 within a factor of {SHARP:g} in K",
                all_hold(*sharp),
                widths,
            ),
        ):
            claim = Claim(figure, f"{sentence} ({what})", conventions=about)
            verdicts.append(judge(claim, rule, holds, "; ".join(text)))
    return verdicts


def of_groups(near: pd.DataFrame) -> list[Verdict]:
    """Figure 6c: when many seeds near K* acquire ICL; a row of `near` has N, K, seed, time (∞: never) and end.

    If the logarithms of their times were uniform between the first and the end of the runs T, the last of n would be as
    early as it is with probability p = (ln(last/first) / ln(T/first))ⁿ⁻¹.
    """
    verdicts = []
    for (N, K), own in near.groupby(["N", "K"]):
        times, end = np.sort(own["time"].to_numpy(dtype=float)), float(own["end"].max())
        learned = times[np.isfinite(times)]
        share, n = len(learned) / len(times), len(learned)
        claim = Claim(
            "6c",
            f"near K* seeds show either a small t_ICL or do not acquire ICL, with few intermediates (N = {N}, K = {K})",
            conventions=conventions(THEIRS),
        )
        rule = "a tenth of the seeds or more of each kind, and no late ones: p < 0.05; p > 0.95 speaks against it"
        text = f"IC above 0.95 in {n} of {len(times)} seeds by t = {end:.0f}"
        if not 0.1 <= share <= 0.9 or n < 3:
            verdicts.append(Verdict.on(claim, rule, None, f"{len(times)} seeds", f"{text}: this K is not near K*"))
            continue
        span = np.log(end / learned[0])
        p = float((np.log(learned[-1] / learned[0]) / span) ** (n - 1))
        power = min(1.0, LEVEL / (max(np.log(end / 4 / learned[0]), 0.0) / span + 1e-12) ** (n - 1))
        quartiles = ", ".join(f"{t:.0f}" for t in np.quantile(learned, [0, 0.25, 0.5, 0.75, 1]))
        text += f", at t = {quartiles} (least, quartiles, greatest); p {p:.2g}; power if all learn by T/4"
        verdicts.append(judge_test(claim, rule, p, 1 - p, f"{len(times)} seeds", text, power=power))
    return verdicts


def of_times(times: pd.DataFrame) -> list[Verdict]:
    """Figures 6b and A.5, and eq. 11."""
    verdicts = []
    figures = {"two layers": "A.5", "additive model": "eq. 11"}
    for what, own in times.groupby("what", sort=False):
        claim = Claim(
            figures.get(str(what), "6b"), f"t_ICL scales linearly with N ({what})", conventions=conventions(str(what))
        )
        rule = f"exponent of 0.8 to 1.2; the local exponent does not change by more than {BENT:g}"
        verdicts.append(_of_law(claim, rule, own, ("N", "time"), (0.8, 1.2)))
    additive = times[times["what"].eq("additive model") & times["N"].ge(16)]
    if len(additive):
        ratios = additive["time"] / [float(Kinetics(int(N)).learning_integral()) for N in additive["N"]]
        claim = Claim("eq. 11", "is t_ICL = N √(2π) (β₀ = w₀ = 0), where N ≥ 16?", "our question")
        holds = bool(ratios.between(1 / CLOSE, CLOSE).all())
        rule, text = f"every run within a factor of {CLOSE:g}", f"time / formula {format_range(ratios)}"
        verdicts.append(Verdict.on(claim, rule, holds, _runs(additive), text))
    return verdicts


def of_tail(times: pd.DataFrame) -> list[Verdict]:
    """Figures A.4 and A.5: the distribution of t_ICL over many independent seeds; columns what, N, seed and time."""
    verdicts = []
    for (what, N), own in times.groupby(["what", "N"], sort=False):
        finite = np.sort(own.loc[np.isfinite(own["time"]), "time"].to_numpy(dtype=float))
        claim = Claim(
            "A.5" if what == "two layers" else "A.4",
            f"the distribution of t_ICL is long-tailed ({what}, N = {N})",
            conventions=conventions(str(what)),
        )
        rule = "ln t_ICL is skewed to the right (D'Agostino's test, one-sided, p < 0.05); to the left speaks against it"
        logs = np.log(finite)
        skew = float(pd.Series(logs).skew())
        p, against = (float(skewtest(logs, alternative=side).pvalue) for side in ("greater", "less"))
        text = ", ".join(f"{t:.0f}" for t in np.quantile(finite, [0, 0.25, 0.5, 0.75, 1]))
        text = f"t_ICL {text} (least, quartiles, greatest), {len(own) - len(finite)} never; skewness of ln t {skew:.2f}"
        text += f" (p {p:.2g}), of t {float(pd.Series(finite).skew()):.2f}; power for ln t of Gumbel's law"
        verdicts.append(
            judge_test(claim, rule, p, against, f"{len(own)} seeds", text, power=skewness_power(len(finite)))
        )
    return verdicts


def skewness_power(n: int, draws: int = 2000) -> float:
    """How often the test finds Gumbel's law (skewness 1.14) skewed, of n values; simulated."""
    sample = generator(0, Stream.BOOTSTRAP).gumbel(size=(draws, n))
    return float((skewtest(sample, axis=1, alternative="greater").pvalue < LEVEL).mean())


def of_abruptness(curves: Mapping[tuple[str, int, int], pd.Series]) -> list[Verdict]:
    """Figures 2d and 3b. Runs end where ICL is acquired, so that a rise is timed between two levels, not fitted."""
    rows = [{"what": what, "N": N, "seed": seed, "share": _rise(curve)} for (what, N, seed), curve in curves.items()]
    verdicts = []
    for what, own in pd.DataFrame(rows).groupby("what", sort=False):
        longest = own[own["N"] == own["N"].max()].set_index("seed")["share"]
        by_length = "; ".join(f"N = {N}: {format_range(each['share'])}" for N, each in own.groupby("N"))
        figure = "3b" if what == "additive model" else "2d"
        claim = Claim(figure, f"ICL is acquired abruptly ({what})", conventions=conventions(str(what)))
        rule = "at the greatest N, IC rises from 0.55 to 0.95 within t_ICL/2"
        verdicts.append(judge(claim, rule, in_range(longest, high=0.5), f"rise / t_ICL {by_length}"))
    return verdicts


def _rise(curve: pd.Series) -> float:
    """The part of the time until accuracy is above 0.95 in which it rises from 0.55; infinite if it does not."""
    end = first_above(curve)
    if not end:
        return np.inf
    before = curve[(curve < 0.55) & (curve.index < end)]
    return (end - float(before.index[-1] if len(before) else curve.index[0])) / end


def of_memory(memorised: pd.DataFrame) -> list[Verdict]:
    """Figures 5 and A.3."""
    verdicts = []
    for what, own in memorised.groupby("what", sort=False):
        claim = Claim("5, A.3", f"I_K(∞) ~ K^ν with ν ≈ 0.7 (MLP: {what})", conventions=conventions(str(what)))
        rule = f"exponent of 0.6 to 0.8; the local exponent does not change by more than {BENT:g}"
        text = f"; K = {own['K'].min()} to {own['K'].max()}; c₁ at the end {format_range(own['c1'], 4)}"
        done = unfinished(own) <= UNFINISHED
        verdicts.append(_of_law(claim, rule, own, ("K", "I_K"), (0.6, 0.8), text, done=done))
    return verdicts


def unfinished(memorised: pd.DataFrame) -> float:
    """How much more of I_K there is to come in the worst of the runs, were c₁ to stay as it is for as long again."""
    return float((2 * memorised["c1"] * memorised["t"] / memorised["I_K"]).max())


def of_thresholds(found: pd.DataFrame, times: pd.DataFrame, memorised: pd.DataFrame) -> list[Verdict]:
    """Figure 6a, and the race itself; `found` has K* of every what, N and seed, and what is predicted of it."""
    verdicts = []
    for what, own in found.groupby("what", sort=False):
        timed, memory = times[times["what"] == what], memorised[memorised["what"] == what]
        about = conventions(str(what))
        measured = Claim("6a", f"K* ~ N^1.41 ({what})", conventions=about)
        predicted = Claim("6a, eq. 13", f"K* ~ N^{{1/ν}} ({what})", conventions=about)
        raced = Claim("6a, eq. 12", f"is the exponent of K* that of t_ICL over ν ({what})?", "our question", about)
        met = Claim("eq. 12", f"is K* where t_ICL = I_K(∞) ({what})?", "our question", about)
        alike, bounds = f"their ratio is 1 ± {ALIKE:g}", (1 - ALIKE, 1 + ALIKE)
        within = f"exponent of {1.41 * bounds[0]:.2f} to {1.41 * bounds[1]:.2f}, no bend of more than {BENT:g}"
        verdicts.append(_of_law(measured, within, own, ("N", "fitted"), (1.41 * bounds[0], 1.41 * bounds[1])))
        try:
            K = power_law(by_seed(own, "fitted", "N"), own.groupby("N")["resolution"].first().tolist())
            nu, t = power_law(by_seed(memory, "I_K", "K")), power_law(by_seed(timed, "time", "N"))
        except MechinterpError as error:
            verdicts += [Verdict.on(claim, alike, None, _runs(own), str(error)) for claim in (predicted, raced)]
        else:
            inverse = ratio(Mean(1.0, 1.0, 1.0, 0.0, nu.exponent.n), nu.exponent)
            text = f"exponents: K* {K.exponent}, 1/ν {inverse}, t_ICL {t.exponent}"
            for claim, target in ((predicted, inverse), (raced, ratio(t.exponent, nu.exponent))):
                quotient = ratio(K.exponent, target)
                numbers = f"{text}; ratio {quotient}"
                if unfinished(memory) > UNFINISHED:
                    verdicts.append(
                        Verdict.on(claim, alike, None, _runs(own), f"{numbers}; I_K has not come to its end")
                    )
                    continue
                interval = (quotient.low, quotient.high)
                verdicts.append(judge_interval(claim, alike, interval, bounds, _runs(own), numbers))
        verdicts.append(_predicted(met, own))
    return verdicts


def _predicted(claim: Claim, found: pd.DataFrame) -> Verdict:
    """Whether K* is where it is predicted, at every N."""
    medians = found.groupby("N")[["predicted", "fitted"]].median()
    quotients = medians["predicted"] / medians["fitted"]
    rule, text = "within a factor of 2, at every N", ", ".join(f"N = {N}: {q:.2f}" for N, q in quotients.items())
    holds = bool(quotients.between(0.5, 2).all()) if np.isfinite(quotients).all() else None
    return Verdict.on(claim, rule, holds, _runs(found), f"predicted / fitted {text}")


def before_spikes(table: pd.DataFrame) -> pd.DataFrame:
    """The checkpoints of a run before its first loss spike (column ``spikes``): what comes after may be the spike's."""
    if "spikes" not in table or not (table["spikes"] > 0).any():
        return table
    return table.iloc[: int((table["spikes"] > 0).to_numpy().argmax())]


def lost_at(curve: pd.Series) -> float | None:
    """The step from which on ICL is lost, of a run that had it: the first after the last with an accuracy above 0.9.

    Infinite for one that keeps it, by the median of its last checkpoints, and None for one that never had it. The
    first fall below 0.9 is not taken: accuracies dip and come back.
    """
    if not len(curve) or curve.max() < ACQUIRED:
        return None
    if curve.iloc[-LAST:].median() > LOST:
        return np.inf
    above = np.flatnonzero((curve > LOST).to_numpy())
    return float(curve.index[min(above[-1] + 1, len(curve) - 1)])


def of_transience(what: str, fading: pd.DataFrame, curves: Mapping[tuple[str, int], pd.DataFrame]) -> list[Verdict]:
    """Figures 2e (3c of the additive model) and A.6, of every run up to its first loss spike."""
    figure, about = "2e" if what == "network" else "3c", conventions(what)
    rows = []
    for row in fading.to_dict("records"):
        table = before_spikes(curves[row["variant"], row["seed"]])
        curve, end = table["icl_accuracy"], float(table["icl_accuracy"].iloc[-LAST:].median())
        about_run = {"decay": float(row["decay"]), "seed": int(row["seed"]), "last": float(curve.index[-1])}
        rows.append(about_run | {"top": float(curve.max()), "end": end, "lost": lost_at(curve)})
    table = pd.DataFrame(rows).astype({"lost": float})
    text = "; ".join(
        f"λ = {decay:g}: at most {format_range(own['top'])}, at the end {format_range(own['end'])}, lost at step"
        f" {', '.join('–' if pd.isna(step) else 'never' if np.isinf(step) else f'{step:.0f}' for step in own['lost'])}"
        f" of {format_range(own['last'], 0)}"
        for decay, own in table.groupby("decay")
    )
    kept = {row["seed"]: bool(np.isinf(row["lost"])) for row in table.to_dict("records") if row["decay"] == 0}
    gone = {row["seed"] for row in table.to_dict("records") if row["decay"] > 0 and np.isfinite(row["lost"])}
    lost = {seed: seed in gone for seed in kept}
    stays = Claim(figure, f"without decay of attention ICL is not transient ({what})", conventions=about)
    fades = Claim(figure, f"ICL is transient where attention is regularised more than the MLP ({what})", "paper", about)
    sooner = Claim("A.6", f"the more attention decays, the sooner ICL is lost ({what})", conventions=about)
    earlier, rule = _sooner(table), "of decays with which most seeds acquire ICL: the median step of its loss falls"
    return [
        judge(stays, f"IC ≥ {ACQUIRED} is reached, and IC > {LOST} at the end", kept, text),
        judge(fades, f"with some decay IC ≥ {ACQUIRED} is reached, and IC ≤ {LOST} in the end", lost, text),
        Verdict.on(sooner, rule, earlier, _runs(table), text),
    ]


def _sooner(table: pd.DataFrame) -> bool | None:
    """Of all decays with which most seeds acquire ICL: whether the median step at which it is lost falls with decay."""
    medians = []
    for _, own in table[table["decay"] > 0].groupby("decay"):
        acquired = own["lost"].dropna()
        if len(acquired) > len(own) / 2:
            medians.append(float(acquired.median()))
    if sum(np.isfinite(each) for each in medians) < 2:
        return None
    return all(a > b or np.isinf(a) for a, b in pairwise(medians))


def of_rest(resting: pd.DataFrame) -> Verdict:
    """Equation 45: in each run with ICL, of its checkpoints after the greatest w, as w must come there first."""
    shares, ratios = {}, []
    for run, (_, own) in enumerate(resting.groupby(["decay", "seed"])):
        after = own.iloc[int(own["w"].to_numpy().argmax()) :]
        quotient = (after["w"] / after["rest"])[after["icl_accuracy"] >= LOST]
        if float(own["icl_accuracy"].max()) >= ACQUIRED and len(quotient):
            shares[run] = bool(quotient.between(1 / CLOSE, CLOSE).mean() >= MOST)
            ratios.append(quotient)
    claim = Claim("eq. 45", "after ICL is acquired, w tracks W(c₃/λ)", conventions=conventions("additive model"))
    return _of_runs(claim, shares, ratios, "w / W")


def of_losses(losses: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Figure 6d: in each run, of its checkpoints with ICL, and of those after it was lost (tables of `phases`)."""
    verdicts = []
    for what, table in losses.items():
        for phase, x, y, figure, sentence in (
            ("with ICL", "icl_loss", "iwl_loss", "6d, eq. 46", "with ICL, L_IWL ≈ −½ log L_ICL"),
            ("after ICL", "iwl_loss", "icl_loss", "6d, eq. 47", "after ICL, L_ICL ≈ −½ log L_IWL"),
        ):
            own, shares, ratios = table[table["phase"].eq(phase) & table[x].lt(SMALL)], {}, []
            for run, (_, each) in enumerate(own.groupby(["variant", "seed"])):
                quotient = pd.Series(each[y] / other_loss(each[x].to_numpy(dtype=float)))
                shares[run] = bool(quotient.between(1 / CLOSE, CLOSE).mean() >= MOST)
                ratios.append(quotient)
            claim = Claim(figure, f"{sentence} ({what})", conventions=conventions(what))
            verdicts.append(_of_runs(claim, shares, ratios, "ratio"))
    return verdicts


def phases(table: pd.DataFrame) -> pd.DataFrame:
    """The checkpoints of a run before its first loss spike, with ``phase``.

    "before" IC accuracy is at least 0.99, "with ICL", and "after ICL".
    """
    table = before_spikes(table)
    steps, accuracy = table.index.to_numpy(float), table["icl_accuracy"]
    lost = lost_at(accuracy)
    if lost is None:
        return table.assign(phase="before")
    acquired = float(steps[np.flatnonzero(accuracy.to_numpy() >= ACQUIRED)[0]])
    phase = np.where(steps < acquired, "before", np.where(steps < lost, "with ICL", "after ICL"))
    return table.assign(phase=phase)


def of_balance(balanced: pd.DataFrame) -> Verdict:
    """Figure 6e: seeds that learn, over all K, by Fisher's exact test."""
    learned = balanced.assign(learned=balanced[IC] > LEARNED)
    half, free = (learned.loc[learned["balanced"].eq(flag), "learned"] for flag in (True, False))
    counts = [[half.sum(), (~half).sum()], [free.sum(), (~free).sum()]]
    fewer, more = (float(fisher_exact(counts, alternative=side)[1]) for side in ("less", "greater"))
    text = []
    for K, own in learned.groupby("K"):
        at_half, at_random = (own.loc[own["balanced"].eq(flag), "learned"] for flag in (True, False))
        text.append(f"K = {K}: {at_half.sum()} of {len(at_half)}, at random {at_random.sum()} of {len(at_random)}")
    claim = Claim(
        "6e, A.8", "with N/2 labels of each kind many more runs fail to acquire ICL", conventions=conventions("network")
    )
    rule, power = "Fisher's exact test, one-sided, p < 0.05", fisher_power(len(half), len(free))
    numbers = f"{'; '.join(text)}; p {fewer:.1g}; power for half as many against 0.9"
    return judge_test(claim, rule, fewer, more, _runs(balanced), numbers, power=power)


def fisher_power(n_fewer: int, n_more: int, fewer: float = 0.45, more: float = 0.9) -> float:
    """How often Fisher's test tells two probabilities apart, exactly."""
    power = 0.0
    for a in range(n_fewer + 1):
        for b in range(n_more + 1):
            if fisher_exact([[a, n_fewer - a], [b, n_more - b]], alternative="less")[1] < LEVEL:
                power += float(binom.pmf(a, n_fewer, fewer) * binom.pmf(b, n_more, more))
    return power


def _of_runs(claim: Claim, holds: Mapping[int, bool], ratios: Sequence[pd.Series], name: str) -> Verdict:
    """The verdict over runs, none of which outweighs another."""
    rule = f"within a factor of {CLOSE:g} in 90 % of each run's checkpoints"
    if not holds:
        return Verdict.on(claim, rule, None, "0 runs", "no run has such checkpoints")
    each = pd.Series([float(quotient.median()) for quotient in ratios])
    text = f"{name}: medians of runs {format_range(each)}, of all {format_range(pd.concat(list(ratios)))}"
    return judge(claim, rule, holds, f"{text}; {sum(len(quotient) for quotient in ratios)} checkpoints")


def _of_law(
    claim: Claim,
    rule: str,
    runs: pd.DataFrame,
    axes: tuple[str, str],
    bounds: tuple[float, float],
    text: str = "",
    *,
    done: bool = True,
) -> Verdict:
    """The verdict on the exponent of y over x, the `axes`: none where there is no power law, or y is not `done`."""
    x, y = axes
    try:
        shared = runs.groupby(x)["resolution"].first().tolist() if "resolution" in runs else None
        law: PowerLaw = power_law(by_seed(runs, y, x), shared)
    except MechinterpError as error:
        return Verdict.on(claim, rule, None, _runs(runs), str(error))
    numbers = law.describe(x) + text
    if not done:
        return Verdict.on(claim, rule, None, _runs(runs), f"{numbers}; {y} has not come to its end")
    if law.bend.low > BENT or law.bend.high < -BENT:
        return Verdict.on(claim, rule, False, _runs(runs), f"{numbers}: no power law", false_positive=0.025)
    return judge_interval(claim, rule, (law.exponent.low, law.exponent.high), bounds, _runs(runs), numbers)


def _runs(table: pd.DataFrame) -> str:
    return f"{len(table)} runs"
