"""The claims of Nguyen & Reddy 2024 and what the tables of `analyses.race` say of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact

from analyses.claims.scaling import Line, PowerLaw, line, power_law, threshold_draws
from analyses.claims.verdicts import Verdict, all_hold, by_seed, format_range, in_range, judge, largest_gap_test
from mechinterp.emergence import first_above
from mechinterp.errors import MechinterpError
from mechinterp.theory.kinetics import Kinetics, other_loss

IC, IWL = "final_icl_accuracy", "final_iwl_accuracy"
LEARNED = 0.75
"""The paper's least IC accuracy of a run that has acquired ICL (figure 6e)."""
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
LAST = 5
"""Checkpoints whose median is the end of a run: accuracies jump."""


def samples(table: pd.DataFrame, by: str, column: str) -> dict[float, list[float]]:
    """By a setting, ascending, a column's values."""
    return {float(str(value)): own[column].tolist() for value, own in table.groupby(by)}


def of_diversity(diversity: pd.DataFrame) -> list[Verdict]:
    """Figures 2b, 2c and A.7, and 3a of the additive model."""
    verdicts = []
    for what, runs in diversity.groupby("what", sort=False):
        few, many, numbers = [], [], []
        for N, own in runs.groupby("N"):
            ic, iwl = by_seed(own, IC, "K"), by_seed(own, IWL, "K")
            first, last = ic.columns[0], ic.columns[-1]
            few += [in_range(ic[first], high=0.6), in_range(iwl[first], low=0.95)]
            many += [in_range(ic[last], low=0.95), in_range(iwl[last], high=0.75)]
            numbers.append(
                f"N = {N}: K = {first}: IC {format_range(ic[first])}, IWL {format_range(iwl[first])};"
                f" K = {last}: IC {format_range(ic[last])}, IWL {format_range(iwl[last])}"
            )
        text, figure = "; ".join(numbers), "2b, 2c, A.7" if what == "network" else "3a"
        claim = f"few pairs are memorised, at every N ({what}): IC ≤ 0.6, IWL ≥ 0.95"
        verdicts.append(judge(figure, claim, all_hold(*few), text))
        claim = f"many pairs turn it to ICL, at every N ({what}): IC ≥ 0.95, IWL ≤ 0.75"
        verdicts.append(judge(figure, claim, all_hold(*many), text))
    return verdicts


def of_groups(near: pd.DataFrame) -> Verdict:
    """Figure 6c: many seeds near K*, where some learn in context and some do not."""
    bimodal, text = [], []
    for _, own in near.groupby(["N", "K"]):
        found, learned = largest_gap_test(own[IC].tolist()), int((own[IC] > LEARNED).sum())
        if 0 < learned < len(own):
            bimodal.append(found.bimodal)
        text.append(
            f"N = {own['N'].iloc[0]}, K = {own['K'].iloc[0]}: IC {format_range(own[IC])},"
            f" {found.lower} + {found.upper} runs, gap {found.gap:.2f} of {found.range:.2f} (p {found.p:.2f})"
        )
    word = "undecided" if any(bimodal) != all(bimodal) or not bimodal else _word(all(bimodal))
    return Verdict("6c", "near K* seeds fall into two groups (network)", word, _runs(near), "; ".join(text))


def of_times(times: pd.DataFrame) -> list[Verdict]:
    """Figures 6b, 3b, A.4 and A.5."""
    verdicts = []
    for what, figure in (
        ("network of width 512", "6b"),
        ("network", "6b"),
        ("two layers", "A.5"),
        ("additive model", "eq. 11"),
    ):
        own = times[times["what"] == what]
        claim = f"t_ICL is linear in N ({what}): R² ≥ 0.95, and an exponent of 0.8 to 1.2"
        verdicts.append(_or_why_not(figure, claim, own, partial(_linear, own)))
    additive = times[times["what"] == "additive model"].assign(
        ratio=lambda t: t["time"] / [float(Kinetics(int(N)).learning_integral()) for N in t["N"]]
    )
    ratios = additive["ratio"]
    claim = "t_ICL of the additive model is N √(2π) (β₀ = w₀ = 0), within a quarter"
    near = bool(ratios.between(1 / CLOSE, CLOSE).all())
    verdicts.append(Verdict("eq. 11", claim, _word(near), _runs(additive), f"time / formula {format_range(ratios)}"))
    network = times[times["what"] == "network of width 512"]
    spans = network.groupby("N")["time"].agg(["min", "median", "max"])
    tails = (spans["max"] - spans["median"]) / (spans["median"] - spans["min"])
    text = ", ".join(f"N = {N}: {value:.1f}" for N, value in tails.items())
    claim = "t_ICL has a long tail: the greatest is farther above the median than the least below it, at every N"
    verdicts.append(
        Verdict("A.4", claim, _word(bool((tails > 1).all())), _runs(network), f"(max − median)/(median − min) {text}")
    )
    return verdicts


def _linear(times: pd.DataFrame) -> tuple[str, str]:
    """Whether t_ICL is linear in N, and the fits."""
    straight, law = line(samples(times, "N", "time")), power_law(samples(times, "N", "time"))
    medians = ", ".join(f"{N}: {t:.0f}" for N, t in times.groupby("N")["time"].median().items())
    word = _inside(law.low, law.high, 0.8, 1.2) if straight.r2 >= 0.95 else "not reproduced"
    return word, f"{_line(straight)}; {_law(law, 'N')}; medians {medians}"


def of_abruptness(curves: Mapping[tuple[str, int, int], pd.Series]) -> list[Verdict]:
    """Figures 2d and 3b. Runs end where ICL is acquired, so that a rise is timed between two levels, not fitted."""
    rows = [{"what": what, "N": N, "seed": seed, "share": _rise(curve)} for (what, N, seed), curve in curves.items()]
    verdicts, table = [], pd.DataFrame(rows)
    for what, figure in (("network of width 512", "2d"), ("additive model", "3b")):
        own = table[table["what"] == what]
        longest = own[own["N"] == own["N"].max()].set_index("seed")["share"]
        by_length = "; ".join(f"N = {N}: {format_range(each['share'])}" for N, each in own.groupby("N"))
        claim = f"ICL is acquired abruptly ({what}): at the greatest N, IC rises from 0.55 to 0.95 within t_ICL/2"
        verdicts.append(judge(figure, claim, in_range(longest, high=0.5), f"rise / t_ICL {by_length}"))
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
        law, left = power_law(samples(own, "K", "I_K")), unfinished(own)
        numbers = (
            f"{_law(law, 'K')}; K = {own['K'].min()} to {own['K'].max()}; c₁ at the end {format_range(own['c1'], 4)}"
        )
        claim = f"I_K(∞) ~ K^ν with ν ≈ 0.7 (MLP of the {what}): 0.6 to 0.8"
        word = _inside(law.low, law.high, 0.6, 0.8) if left <= UNFINISHED else "undecided"
        verdicts.append(Verdict("5, A.3", claim, word, _runs(own), numbers))
    return verdicts


def unfinished(memorised: pd.DataFrame) -> float:
    """How much more of I_K there is to come in the worst of the runs, were c₁ to stay as it is for as long again."""
    return float((2 * memorised["c1"] * memorised["t"] / memorised["I_K"]).max())


def of_thresholds(
    diversity: pd.DataFrame, times: pd.DataFrame, memorised: pd.DataFrame, thresholds: pd.DataFrame
) -> list[Verdict]:
    """Figure 6a, and the race itself."""
    verdicts = []
    for what, found in thresholds.groupby("what", sort=False):
        runs, timed, memory = (table[table["what"] == what] for table in (diversity, times, memorised))
        scaling = partial(_scaling, found, runs, timed, memory)
        for figure, claim, judged in (
            ("6a", f"K* ~ N^{{1/ν}} ({what}): an exponent within 15 % of that", partial(scaling, timed=False)),
            ("6a, eq. 12", f"the exponent of K* is that of t_ICL, as measured, over ν ({what}), within 15 %", scaling),
            (
                "eq. 12",
                f"ICL takes over where t_ICL = I_K(∞) ({what}): K* predicted from both within a factor of 2",
                partial(_predicted, found, memory),
            ),
        ):
            verdicts.append(_or_why_not(figure, claim, runs, judged))
    return verdicts


def _scaling(
    found: pd.DataFrame, runs: pd.DataFrame, times: pd.DataFrame, memory: pd.DataFrame, *, timed: bool = True
) -> tuple[str, str]:
    """Whether K* has the exponent of t_ICL over ν; not `timed`, that of t_ICL is taken to be 1."""
    law, timing = power_law(samples(found, "N", "fitted")), power_law(samples(times, "N", "time"))
    nu, (low, high) = power_law(samples(memory, "K", "I_K")), _exponents(runs)
    target = (timing.exponent if timed else 1.0) / nu.exponent
    word = _inside(low, high, (1 - ALIKE) * target, (1 + ALIKE) * target)
    at = ", ".join(f"{N}: {K:.0f}" for N, K in zip(found["N"], found["fitted"], strict=True))
    return word if unfinished(memory) <= UNFINISHED else "undecided", (
        f"K* at N = {at}; exponent {law.exponent:.2f} ({low:.2f} to {high:.2f}), R² {law.r2:.3f};"
        f" 1/ν = {1 / nu.exponent:.2f}, with the exponent of t_ICL ({timing.exponent:.2f})"
        f" {timing.exponent / nu.exponent:.2f}"
    )


def _predicted(found: pd.DataFrame, memory: pd.DataFrame) -> tuple[str, str]:
    """Whether K* is where it is predicted."""
    if not np.isfinite(found[["fitted", "predicted"]]).all(axis=None):
        raise MechinterpError("there is no threshold, or no prediction, at some N")
    ratios = found["predicted"] / found["fitted"]
    each = ", ".join(f"N = {N:.0f}: {ratio:.2f}" for N, ratio in zip(found["N"], ratios, strict=True))
    word = _word(bool(ratios.between(0.5, 2).all())) if unfinished(memory) <= UNFINISHED else "undecided"
    return word, f"predicted / fitted {each}"


def lost_at(curve: pd.Series) -> float | None:
    """The step from which on ICL is lost, of a run that had it: the first after the last with an accuracy above 0.9.

    Infinite for one that keeps it, by the median of its last checkpoints, and None for one that never had it. The
    first fall below 0.9 is not taken: accuracies dip and come back.
    """
    if curve.max() < ACQUIRED:
        return None
    if curve.iloc[-LAST:].median() > LOST:
        return np.inf
    above = np.flatnonzero((curve > LOST).to_numpy())
    return float(curve.index[min(above[-1] + 1, len(curve) - 1)])


def of_transience(what: str, fading: pd.DataFrame, curves: Mapping[tuple[str, int], pd.DataFrame]) -> list[Verdict]:
    """Figures 2e (3c of the additive model) and A.6."""
    figure = "2e" if what == "network" else "3c"
    rows = [
        {
            "decay": float(row["decay"]),
            "seed": int(row["seed"]),
            "top": float(curve.max()),
            "end": float(curve.iloc[-LAST:].median()),
            "lost": lost_at(curve),
        }
        for row in fading.to_dict("records")
        for curve in [curves[row["variant"], row["seed"]]["icl_accuracy"]]
    ]
    table = pd.DataFrame(rows).astype({"lost": float})
    text = "; ".join(
        f"λ = {decay:g}: at most {format_range(own['top'])}, at the end {format_range(own['end'])}, lost at step"
        f" {', '.join('–' if pd.isna(step) else 'never' if np.isinf(step) else f'{step:.0f}' for step in own['lost'])}"
        for decay, own in table.groupby("decay")
    )
    kept = {row["seed"]: bool(np.isinf(row["lost"])) for row in table.to_dict("records") if row["decay"] == 0}
    gone = {row["seed"] for row in table.to_dict("records") if row["decay"] > 0 and np.isfinite(row["lost"])}
    lost = {seed: seed in gone for seed in kept}
    claim = f"with some decay of attention alone ICL is acquired (≥ 0.99) and lost again (≤ 0.9) ({what})"
    return [
        judge(figure, f"without decay of attention ICL is acquired and stays ({what})", kept, text),
        judge(figure, claim, lost, text),
        Verdict("A.6", f"the more decay, the sooner it is lost ({what})", _sooner(table), _runs(table), text),
    ]


def _sooner(table: pd.DataFrame) -> str:
    """Of all decays with which most seeds acquire ICL: whether the median step at which it is lost falls with decay."""
    medians = []
    for _, own in table[table["decay"] > 0].groupby("decay"):
        acquired = own["lost"].dropna()
        if len(acquired) > len(own) / 2:
            medians.append(float(acquired.median()))
    if sum(np.isfinite(each) for each in medians) < 2:
        return "undecided"
    return _word(all(a > b or np.isinf(a) for a, b in pairwise(medians)))


def of_rest(resting: pd.DataFrame) -> Verdict:
    """Equation 45: in each run with ICL, of its checkpoints after the greatest w, as w must come there first."""
    shares, ratios = {}, []
    for run, (_, own) in enumerate(resting.groupby(["decay", "seed"])):
        after = own.iloc[int(own["w"].to_numpy().argmax()) :]
        ratio = (after["w"] / after["rest"])[after["icl_accuracy"] >= LOST]
        if float(own["icl_accuracy"].max()) >= ACQUIRED and len(ratio):
            shares[run] = bool(ratio.between(1 / CLOSE, CLOSE).mean() >= MOST)
            ratios.append(ratio)
    claim = f"after ICL, w is W(c₃/λ) (additive model), within a factor of {CLOSE:g} in 90 % of each run's checkpoints"
    return _of_runs("eq. 45", claim, shares, ratios, "w / W")


def of_losses(losses: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Figure 6d: in each run, of its checkpoints with ICL, and of those after it was lost (tables of `phases`)."""
    verdicts = []
    for what, table in losses.items():
        for phase, x, y, figure, claim in (
            ("with ICL", "icl_loss", "iwl_loss", "6d, eq. 46", "with ICL, L_IWL = −½ log L_ICL"),
            ("after ICL", "iwl_loss", "icl_loss", "6d, eq. 47", "after ICL, with all memorised, L_ICL = −½ log L_IWL"),
        ):
            own, shares, ratios = table[table["phase"].eq(phase) & table[x].lt(SMALL)], {}, []
            for run, (_, each) in enumerate(own.groupby(["variant", "seed"])):
                ratio = pd.Series(each[y] / other_loss(each[x].to_numpy(dtype=float)))
                shares[run] = bool(ratio.between(1 / CLOSE, CLOSE).mean() >= MOST)
                ratios.append(ratio)
            claim = f"{claim} ({what}), within a factor of {CLOSE:g} in 90 % of each run's checkpoints"
            verdicts.append(_of_runs(figure, claim, shares, ratios, "ratio"))
    return verdicts


def phases(table: pd.DataFrame) -> pd.DataFrame:
    """The checkpoints of a run with ``phase``: "before" IC accuracy is at least 0.99, "with ICL", and "after ICL"."""
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
        half, free = (own.loc[own["balanced"].eq(flag), "learned"] for flag in (True, False))
        text.append(f"K = {K}: {half.sum()} of {len(half)}, at random {free.sum()} of {len(free)}")
    word = "reproduced" if fewer < 0.05 else "not reproduced" if more < 0.05 else "undecided"
    claim = "with N/2 labels of each kind fewer seeds learn in context (Fisher's exact test, p < 0.05)"
    return Verdict("6e, A.8", claim, word, _runs(balanced), f"{'; '.join(text)}; p {fewer:.1g}")


def _of_runs(figure: str, claim: str, holds: Mapping[int, bool], ratios: Sequence[pd.Series], name: str) -> Verdict:
    """The verdict over runs, none of which outweighs another."""
    if not holds:
        return Verdict(figure, claim, "undecided", "0 runs", "no run has such checkpoints")
    each = pd.Series([float(ratio.median()) for ratio in ratios])
    text = f"{name}: medians of runs {format_range(each)}, of all {format_range(pd.concat(list(ratios)))}"
    return judge(figure, claim, holds, f"{text}; {sum(len(ratio) for ratio in ratios)} checkpoints")


def _or_why_not(figure: str, claim: str, runs: pd.DataFrame, judged: Callable[[], tuple[str, str]]) -> Verdict:
    """The verdict, or that it is undecided, with what could not be fitted."""
    try:
        word, numbers = judged()
    except MechinterpError as error:
        word, numbers = "undecided", str(error)
    return Verdict(figure, claim, word, _runs(runs), numbers)


def _inside(low: float, high: float, least: float, most: float) -> str:
    """Whether an interval lies inside what is claimed, outside of it, or neither."""
    if least <= low and high <= most:
        return "reproduced"
    return "not reproduced" if high < least or low > most else "undecided"


def _exponents(diversity: pd.DataFrame) -> tuple[float, float]:
    """95 % of the exponents of K*(N) when the seeds of every N and K are drawn anew."""
    lengths = np.log(np.array(sorted(diversity["N"].unique()), dtype=float))
    draws = [np.log(threshold_draws(samples(own, "K", IC), seed=int(str(N)))) for N, own in diversity.groupby("N")]
    low, high = np.quantile(np.polyfit(lengths, np.array(draws), 1)[0], [0.025, 0.975])
    return float(low), float(high)


def _word(holds: bool) -> str:
    return "reproduced" if holds else "not reproduced"


def _runs(table: pd.DataFrame) -> str:
    return f"{len(table)} runs"


def _law(law: PowerLaw, x: str) -> str:
    return f"{law.prefactor:.3g} {x}^{law.exponent:.2f} (exponent {law.low:.2f} to {law.high:.2f}), R² {law.r2:.3f}"


def _line(found: Line) -> str:
    return f"slope {found.slope:.2f} ({found.low:.2f} to {found.high:.2f}), R² {found.r2:.3f}"
