"""The claims of Nguyen & Reddy 2024, with the rules by which tables of runs are judged."""

from collections.abc import Hashable, Mapping
from functools import cache
from itertools import combinations, pairwise
from math import comb, factorial
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import norm

from analyses.claims.scaling import PowerLaw, power_law, product, thresholds
from analyses.claims.verdicts import (
    FEWEST,
    LEVEL,
    MET,
    Claim,
    Verdict,
    all_hold,
    by_seed,
    format_range,
    in_range,
    judge,
    judge_interval,
    judge_test,
    sign_test,
)
from mechinterp.emergence import first_above
from mechinterp.errors import MechinterpError, unknown_name
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
LONG = 10
"""How many times as long as the first t_ICL runs must be to tell that none learns late."""
THEIRS = "the authors' network"
"""The name of the network of ``nguyen2024-authors``."""
FOLLOWS: dict[str, tuple[Literal["paper", "authors", "other"], str]] = {
    THEIRS: ("authors", "learning rate 0.03, N ≤ 99"),
    "the authors' MLP on plain items": ("authors", "learning rate 0.03, K ≤ 16,000"),
    "network": ("other", "nguyen2024-fast, width 128"),
    "network, small start": ("other", "nguyen2024-fast, width 128"),
    "network of width 512": ("other", "nguyen2024-fast, width 512"),
    "network of width 512, small start": ("other", "nguyen2024-fast, width 512"),
    "two layers": ("other", "nguyen2024-fast, no MLP between the layers"),
    "additive model": ("other", "nguyen2024-minimal: β₀ = w₀ = 0, the target outside the softmax"),
}
"""What each kind of network follows, and in what it differs."""


def claim(figure: str, sentence: str, what: str, *, ours: bool = False) -> Claim:
    """A claim on a kind of network; `ours`: a question of our own."""
    if what not in FOLLOWS:
        raise unknown_name("network", what, FOLLOWS)
    follows, remark = FOLLOWS[what]
    return Claim(figure, f"{sentence} ({what})", "our question" if ours else "paper", follows, remark)


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
        figure = "3a" if what == "additive model" else "2b, 2c, A.7"
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
            verdicts.append(judge(claim(figure, sentence, str(what)), rule, holds, "; ".join(text)))
    return verdicts


def of_groups(near: pd.DataFrame) -> list[Verdict]:
    """Figure 6c: when many seeds near K* acquire ICL; a row of `near` has what, N, K, seed, time (∞: never) and end.

    If the logarithms of their times were uniform between the first and the end of the runs T, the last of n would be as
    early as it is with probability p = (ln(last/first) / ln(T/first))ⁿ⁻¹. p falls with T; runs that are shorter than
    `LONG` times the first are too short to tell.
    """
    verdicts = []
    for (what, N, K), near_runs in near.groupby(["what", "N", "K"]):
        times, end = np.sort(near_runs["time"].to_numpy(dtype=float)), float(near_runs["end"].max())
        learned = times[np.isfinite(times)]
        n, of = len(learned), f"{len(times)} seeds"
        sentence = f"near K* a seed has a small t_ICL or never acquires ICL, with few intermediates, N = {N}, K = {K}"
        asked = claim("6c", sentence, str(what))
        rule = f"of runs {LONG} times as long as the first t_ICL: a tenth of the seeds or more of each kind, none late,"
        rule += " p < 0.05; p > 0.95 speaks against it"
        text = f"IC above 0.95 in {n} of {len(times)} seeds by t = {end:.0f}"
        unfinished_runs = int((~np.isfinite(near_runs["time"]) & near_runs["end"].lt(end)).sum())
        no_threshold = n < 3 or not 0.1 <= n / len(times) <= 0.9
        if unfinished_runs or no_threshold:
            text += f"; {unfinished_runs} runs ended before, without" if unfinished_runs else ": this K is not near K*"
            verdicts.append(Verdict.on(asked, rule, None, of, text, false_positive=LEVEL, power=0.0))
            continue
        quartiles = ", ".join(f"{t:.0f}" for t in np.quantile(learned, [0, 0.25, 0.5, 0.75, 1]))
        p = float((np.log(learned[-1] / learned[0]) / np.log(end / learned[0])) ** (n - 1))
        text += f", at t = {quartiles} (least, quartiles, greatest); p {p:.2g}"
        if end < LONG * learned[0]:
            text += f", of runs {end / learned[0]:.1f} times as long as the first t_ICL"
            verdicts.append(Verdict.on(asked, rule, None, of, text, false_positive=LEVEL, power=0.0))
            continue
        early = max(float(np.log(end / 4 / learned[0]) / np.log(end / learned[0])), 0.0)
        power = min(1.0, LEVEL / early ** (n - 1)) if early else 1.0
        verdicts.append(judge_test(asked, rule, p, 1 - p, of, f"{text}; power if all learn by T/4", power=power))
    return verdicts


def of_times(times: pd.DataFrame) -> list[Verdict]:
    """Figures 6b and A.5, and eq. 11."""
    verdicts, figures = [], {"two layers": "A.5", "additive model": "eq. 11"}
    for what, own in times.groupby("what", sort=False):
        figure = figures.get(str(what), "6b")
        verdicts += _of_law(figure, "t_ICL scales linearly with N", str(what), own, ("N", "time"), (0.8, 1.2))
    additive = times[times["what"].eq("additive model") & times["N"].ge(16)]
    if len(additive):
        quotient = additive["time"] / [float(Kinetics(int(N)).learning_integral()) for N in additive["N"]]
        near = quotient.between(1 / CLOSE, CLOSE).groupby(additive["seed"]).all()
        holds = {int(str(seed)): bool(met) for seed, met in near.items()}
        asked = claim("eq. 11", "is t_ICL = N √(2π), where N ≥ 16?", "additive model", ours=True)
        text = f"time / formula {format_range(quotient)}"
        verdicts.append(judge(asked, f"within a factor of {CLOSE:g} at every N", holds, text))
    return verdicts


def of_tail(times: pd.DataFrame) -> list[Verdict]:
    """Figures A.4 and A.5: the distribution of t_ICL over many independent seeds; columns what, N, seed, time and end.

    Seeds that never learn count as the latest, at the end of their runs.
    """
    verdicts = []
    for (what, N), own in times.groupby(["what", "N"], sort=False):
        figure = "A.5" if what == "two layers" else "A.4"
        asked = claim(figure, f"the distribution of t_ICL is long-tailed, N = {N}", str(what))
        rule = (
            "ln t_ICL is skewed to the right by the triples test, p < 0.05; t_ICL itself to the left speaks against it"
        )
        values = own["time"].where(np.isfinite(own["time"]), own["end"]).to_numpy(dtype=float)
        z, never = triples_statistic(np.log(values)), int((~np.isfinite(own["time"])).sum())
        text = ", ".join(f"{t:.0f}" for t in np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
        text = f"t_ICL {text} (least, quartiles, greatest), {never} never; skewness of t"
        text += f" {float(pd.Series(values).skew()):.2f}, of ln t {float(pd.Series(np.log(values)).skew()):.2f};"
        text += f" z {z:.2f}; power for ln t of Gumbel's law"
        p, against = float(norm.sf(z)), float(norm.cdf(triples_statistic(values))) if not never else 1.0
        power = triples_power(len(values))
        verdicts.append(judge_test(asked, rule, p, against, f"{len(own)} seeds", text, power=power))
    return verdicts


def triples_statistic(values: Float[np.ndarray, "seeds"]) -> float:
    """z of the triples test of symmetry (Randles et al. 1980): positive where the law is skewed to the right.

    A triple is right if its middle value is nearer to the least than to the greatest. With h = ±1/3 (0 in a tie), z is
    the mean η of h over triples, over its standard error by the authors' estimate Var η = Σ_c C(3, c) C(n − 3, 3 − c)
    ζ_c / C(n, 3): ζ₁ and ζ₂ are the variances about η of h's mean over the triples of each value and of each pair, and
    ζ₃ = 1/9 − η². It needs no moments, and no normal law. Not a number for fewer than 8 values.
    """
    x = np.sort(np.asarray(values, dtype=float))
    n = len(x)
    if n < 8:
        return np.nan
    i, j, k = np.array(list(combinations(range(n), 3))).T
    h = np.sign(x[i] + x[k] - 2 * x[j]) / 3
    mean = float(h.mean())
    of_values = np.sum([np.bincount(one, h, n) for one in (i, j, k)], axis=0) / comb(n - 1, 2)
    of_pairs = np.sum([np.bincount(one * n + other, h, n * n) for one, other in ((i, j), (i, k), (j, k))], axis=0)
    pairs = of_pairs.reshape(n, n)[np.triu_indices(n, 1)] / (n - 2)
    zeta = (np.mean((of_values - mean) ** 2), np.mean((pairs - mean) ** 2), 1 / 9 - mean**2)
    variance = sum(comb(3, c) * comb(n - 3, 3 - c) * zeta[c - 1] for c in (1, 2, 3)) / comb(n, 3)
    return mean / float(np.sqrt(variance)) if variance > 0 else 0.0


@cache
def triples_power(n: int, draws: int = 300) -> float:
    """How often the test finds Gumbel's law (skewness 1.14) skewed, of n values; simulated."""
    samples = generator(0, Stream.BOOTSTRAP).gumbel(size=(draws, n))
    return float(np.mean([norm.sf(triples_statistic(sample)) < LEVEL for sample in samples]))


def of_abruptness(curves: Mapping[tuple[str, int, int], pd.Series]) -> list[Verdict]:
    """Figures 2d and 3b. Runs end where ICL is acquired, so that a rise is timed between two levels, not fitted."""
    rows = [{"what": what, "N": N, "seed": seed, "share": _rise(curve)} for (what, N, seed), curve in curves.items()]
    verdicts = []
    for what, own in pd.DataFrame(rows).groupby("what", sort=False):
        longest = own[own["N"] == own["N"].max()].set_index("seed")["share"]
        by_length = "; ".join(f"N = {N}: {format_range(each['share'])}" for N, each in own.groupby("N"))
        figure = "3b" if what == "additive model" else "2d"
        asked = claim(figure, "ICL is acquired abruptly", str(what))
        rule = "at the greatest N, IC rises from 0.55 to 0.95 within t_ICL/2"
        verdicts.append(judge(asked, rule, in_range(longest, high=0.5), f"rise / t_ICL {by_length}"))
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
        text = f"; K = {own['K'].min()} to {own['K'].max()}; c₁ at the end {format_range(own['c1'], 4)}"
        done, axes = unfinished(own) <= UNFINISHED, ("K", "I_K")
        verdicts += _of_law("5, A.3", "I_K(∞) ~ K^ν, ν ≈ 0.7", str(what), own, axes, (0.6, 0.8), text, done=done)
    return verdicts


def unfinished(memorised: pd.DataFrame) -> float:
    """How much more of I_K there is to come in the worst of the runs, were c₁ to stay as it is for as long again."""
    return float((2 * memorised["c1"] * memorised["t"] / memorised["I_K"]).max())


def of_thresholds(found: pd.DataFrame, times: pd.DataFrame, memorised: pd.DataFrame) -> list[Verdict]:
    """Figure 6a, and the race itself; `found` has K* of every what, N and seed, and what is predicted of it."""
    verdicts = []
    for what, own in found.groupby("what", sort=False):
        timed, memory = times[times["what"] == what], memorised[memorised["what"] == what]
        bounds = (1 - ALIKE, 1 + ALIKE)
        wanted = (1.41 * bounds[0], 1.41 * bounds[1])
        verdicts += _of_law("6a", "K* ~ N^1.41", str(what), own, ("N", "fitted"), wanted)
        asked = (
            claim("6a, eq. 13", "K* ~ N^{1/ν}", str(what)),
            claim("6a, eq. 12", "is the exponent of K* that of t_ICL over ν?", str(what), ours=True),
        )
        rule = f"exponent of K* times ν (and over that of t_ICL) is 1 ± {ALIKE:g}"
        try:
            if unfinished(memory) > UNFINISHED:
                raise MechinterpError("I_K has not come to its end")
            K = power_law(by_seed(own, "fitted", "N"), own.groupby("N")["resolution"].first().tolist())
            nu, t = power_law(by_seed(memory, "I_K", "K")), power_law(by_seed(timed, "time", "N"))
            quotients = product(K, nu, powers=(1, 1)), product(K, nu, t, powers=(1, 1, -1))
        except MechinterpError as error:
            verdicts += [
                Verdict.on(each, rule, None, _runs(own), str(error), false_positive=0.025, power=0.0) for each in asked
            ]
        else:
            for each, quotient in zip(asked, quotients, strict=True):
                text = f"exponents: K* {K.exponent}, ν {nu.exponent}, t_ICL {t.exponent}; their quotient {quotient}"
                verdicts.append(judge_interval(each, rule, [(quotient, *bounds)], _runs(own), text))
        quotient = (own["predicted"] / own["fitted"]).groupby(own["N"])
        text = "; ".join(f"N = {N}: {format_range(each)}" for N, each in quotient)
        ratios = own.assign(ratio=own["predicted"] / own["fitted"])
        near = ratios["ratio"].between(0.5, 2).groupby(ratios["seed"]).all()
        met = claim("eq. 12", "is K* where t_ICL = I_K(∞)?", str(what), ours=True)
        rule = "predicted within a factor of 2 of K*, at every N"
        if np.isfinite(ratios["ratio"]).all():
            holds = {int(str(seed)): bool(each) for seed, each in near.items()}
            verdicts.append(judge(met, rule, holds, f"predicted / fitted {text}"))
        else:
            verdicts.append(Verdict.on(met, rule, None, _runs(own), "there is no threshold, or no law, at some N"))
    return verdicts


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
    """Figures 2e (3c of the additive model) and A.6, of every run up to its first loss spike.

    A run that a spike ends before ICL is lost is cut: whether it would have kept or lost it is not known.
    """
    figure, rows = "2e" if what == "network" else "3c", []
    for row in fading.to_dict("records"):
        whole = curves[row["variant"], row["seed"]]
        table = before_spikes(whole)
        curve, lost = table["icl_accuracy"], lost_at(table["icl_accuracy"])
        cut = len(table) < len(whole) and (lost is None or np.isinf(lost))
        end = float(curve.iloc[-LAST:].median())
        about = {"decay": float(row["decay"]), "seed": int(row["seed"]), "last": float(curve.index[-1])}
        rows.append(about | {"top": float(curve.max()), "end": end, "lost": lost, "cut": cut})
    table = pd.DataFrame(rows).astype({"lost": float})
    text = "; ".join(
        f"λ = {decay:g}: at most {format_range(own['top'])}, at the end {format_range(own['end'])}, lost at step"
        f" {', '.join(_when(each) for each in own.to_dict('records'))}"
        for decay, own in table.groupby("decay")
    )
    known = table[~table["cut"]]
    acquired = known[known["lost"].notna()]
    kept = {
        int(row["seed"]): bool(np.isinf(row["lost"])) for row in acquired[acquired["decay"] == 0].to_dict("records")
    }
    gone = {row["seed"] for row in acquired.to_dict("records") if row["decay"] > 0 and np.isfinite(row["lost"])}
    seeds = sorted(set(acquired.loc[acquired["decay"] > 0, "seed"]))
    stays = claim(figure, "without decay of attention ICL is not transient", what)
    fades = claim(figure, "ICL is transient where attention is regularised more than the MLP", what)
    sooner = claim("A.6", "the more attention decays, the sooner ICL is lost", what)
    kept_rule = f"IC ≥ {ACQUIRED} is reached, and IC > {LOST} at the end"
    gone_rule = f"with some decay IC ≥ {ACQUIRED} is reached, and IC ≤ {LOST} in the end"
    order, chance = _sooner(known)
    rule = "of decays with which most seeds acquire ICL: the median step of its loss falls"
    return [
        _judge_or_none(stays, kept_rule, kept, text),
        _judge_or_none(fades, gone_rule, {int(seed): seed in gone for seed in seeds}, text),
        Verdict.on(sooner, rule, order, _runs(known), text, false_positive=chance, power=MET),
    ]


def _when(row: Mapping[Hashable, Any]) -> str:
    """When a run lost ICL, in a word."""
    if row["cut"]:
        return f"> {row['last']:.0f}"
    return "–" if pd.isna(row["lost"]) else "never" if np.isinf(row["lost"]) else f"{row['lost']:.0f}"


def _judge_or_none(asked: Claim, rule: str, holds: Mapping[int, bool], text: str) -> Verdict:
    """The verdict over seeds; undecided without any."""
    if not holds:
        return Verdict.on(asked, rule, None, "0 of 0", text, false_positive=1.0, power=0.0)
    return judge(asked, rule, holds, text)


def _sooner(table: pd.DataFrame) -> tuple[bool | None, float]:
    """Whether the median step at which ICL is lost falls with decay, and with what probability by chance.

    Of the decays with three known seeds or more, of which most acquire ICL and at least one loses it.
    """
    medians = []
    for _, own in table[table["decay"] > 0].groupby("decay"):
        acquired = own["lost"].dropna()
        if len(own) >= FEWEST and len(acquired) > len(own) / 2:
            medians.append(float(acquired.median()))
    finite = sum(np.isfinite(each) for each in medians)
    if finite < 2:
        return None, 1.0
    return all(a > b or np.isinf(a) for a, b in pairwise(medians)), 1 / factorial(finite)


def of_rest(resting: pd.DataFrame) -> Verdict:
    """Equation 45: in each run with ICL, of its checkpoints after the greatest w, as w must come there first."""
    ratios: dict[tuple[float, int], pd.Series] = {}
    for (decay, seed), own in resting.groupby(["decay", "seed"]):
        after = own.iloc[int(own["w"].to_numpy().argmax()) :]
        quotient = (after["w"] / after["rest"])[after["icl_accuracy"] >= LOST]
        if float(own["icl_accuracy"].max()) >= ACQUIRED and len(quotient) >= LAST:
            ratios[float(decay), int(seed)] = quotient
    return _of_ratios(claim("eq. 45", "after ICL is acquired, w tracks W(c₃/λ)", "additive model"), ratios, "w / W")


def of_losses(losses: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Figure 6d: in each run, of its checkpoints with ICL, and of those after it was lost (tables of `phases`)."""
    verdicts = []
    for what, table in losses.items():
        for phase, x, y, figure, sentence in (
            ("with ICL", "icl_loss", "iwl_loss", "6d, eq. 46", "with ICL, L_IWL ≈ −½ log L_ICL"),
            ("after ICL", "iwl_loss", "icl_loss", "6d, eq. 47", "after ICL, L_ICL ≈ −½ log L_IWL"),
        ):
            own = table[table["phase"].eq(phase) & table[x].lt(SMALL)]
            ratios = {
                (str(variant), int(str(seed))): pd.Series(each[y] / other_loss(each[x].to_numpy(dtype=float)))
                for (variant, seed), each in own.groupby(["variant", "seed"])
            }
            verdicts.append(_of_ratios(claim(figure, sentence, what), ratios, "ratio"))
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
    """Figure 6e: at how many K each seed learns, with balanced contexts and with labels at random."""
    both = [by_seed(balanced[balanced["balanced"].eq(flag)], IC, "K") for flag in (False, True)]
    if not (both[0].index.equals(both[1].index) and both[0].columns.equals(both[1].columns)):
        raise MechinterpError(
            "balanced contexts and labels at random have other seeds or K: judge when all runs are done"
        )
    learned = balanced.assign(learned=balanced[IC] > LEARNED)
    counts = learned.pivot_table(index="seed", columns="balanced", values="learned", aggfunc="sum")
    p, against = sign_test(counts[False], counts[True])
    text = []
    for K, own in learned.groupby("K"):
        half, free = (own.loc[own["balanced"].eq(flag), "learned"] for flag in (True, False))
        text.append(f"K = {K}: {half.sum()} of {len(half)}, at random {free.sum()} of {len(free)}")
    asked = claim("6e, A.8", "with N/2 labels of each kind many more runs fail to acquire ICL", "network")
    rule = "seeds learn at fewer K (exact sign test over seeds, p < 0.05); at more K speaks against it"
    numbers = f"{'; '.join(text)}; p {p:.2g}"
    return judge_test(asked, rule, p, against, f"{len(counts)} seeds", numbers, power=MET ** len(counts))


def _of_ratios(asked: Claim, ratios: Mapping[tuple[Any, int], pd.Series], name: str) -> Verdict:
    """The verdict on ratios of checkpoints by (setting, seed): a seed meets the rule if all its runs do."""
    rule = f"within a factor of {CLOSE:g} in 90 % of the checkpoints of each of a seed's runs"
    if not ratios:
        return Verdict.on(asked, rule, None, "0 runs", "no run has such checkpoints", false_positive=1.0, power=0.0)
    holds: dict[int, bool] = {}
    for (_, seed), quotient in ratios.items():
        holds[seed] = holds.get(seed, True) and bool(quotient.between(1 / CLOSE, CLOSE).mean() >= MOST)
    each, every = (
        pd.Series([float(quotient.median()) for quotient in ratios.values()]),
        pd.concat(list(ratios.values())),
    )
    text = f"{name}: medians of {len(ratios)} runs {format_range(each)}, of all {format_range(every)}"
    return judge(asked, rule, holds, f"{text}; {len(every)} checkpoints")


def _of_law(
    figure: str,
    sentence: str,
    what: str,
    runs: pd.DataFrame,
    axes: tuple[str, str],
    bounds: tuple[float, float],
    text: str = "",
    *,
    done: bool = True,
) -> list[Verdict]:
    """The verdicts on a power law of y over x, the `axes`: on the law, which has no bend, and on the mean exponent."""
    (x, y), (least, most) = axes, bounds
    mean = f"exponent of {least:.2f} to {most:.2f}"
    rule = f"{mean}, and the local exponent changes by less than {BENT:g} from first to last"
    asked, fitted = claim(figure, sentence, what), claim(figure, f"is {mean} the mean?", what, ours=True)
    try:
        shared = runs.groupby(x)["resolution"].first().tolist() if "resolution" in runs else None
        law: PowerLaw = power_law(by_seed(runs, y, x), shared)
        if not done:
            raise MechinterpError(f"{law.describe(x)}{text}; {y} has not come to its end")
    except MechinterpError as error:
        return [
            Verdict.on(each, each_rule, None, _runs(runs), str(error), false_positive=0.025, power=0.0)
            for each, each_rule in ((asked, rule), (fitted, mean))
        ]
    numbers, exponent = law.describe(x) + text, (law.exponent, least, most)
    straight = judge_interval(asked, rule, [exponent, (law.bend, -BENT, BENT)], _runs(runs), numbers)
    if len(law.local) < 2:  # two settings cannot bend
        straight = Verdict.on(asked, rule, None, _runs(runs), numbers, false_positive=0.025, power=0.0)
    return [
        straight,
        judge_interval(fitted, mean, [exponent], _runs(runs), numbers),
    ]


def _runs(table: pd.DataFrame) -> str:
    return f"{len(table)} runs"
