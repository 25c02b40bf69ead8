"""The claims of Nguyen & Reddy 2024 and what the tables of `analyses.race` say of them. This module is no command."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from mechinterp.emergence import faded, locate_or_say_why
from mechinterp.studies.scaling import Line, PowerLaw, line, power_law, threshold_draws
from mechinterp.studies.verdicts import Verdict, by_seed, every, groups, judge, spread, within
from mechinterp.theory.kinetics import Kinetics, other_loss

IC, IWL = "final_icl_accuracy", "final_iwl_accuracy"
LEARNED = 0.75
"""The paper's least IC accuracy of a run that has acquired ICL (figure 6e)."""
LOST = 0.9
"""Its greatest IC accuracy of a run that has lost it (figure A.6)."""
REST = 0.02
"""What c₁ must have fallen to for I_K to have come to its end."""
CLOSE = 1.25
"""By how much something may differ from what its theory predicts, as a ratio."""
MOST = 0.9
"""Share of checkpoints in which a relation must hold."""


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
            few += [within(ic[first], high=0.6), within(iwl[first], low=0.95)]
            many += [within(ic[last], low=0.95), within(iwl[last], high=0.75)]
            numbers.append(
                f"N = {N}: K = {first}: IC {spread(ic[first])}, IWL {spread(iwl[first])};"
                f" K = {last}: IC {spread(ic[last])}, IWL {spread(iwl[last])}"
            )
        text, figure = "; ".join(numbers), "2b, 2c, A.7" if what == "network" else "3a"
        claim = f"few pairs are memorised, at every N ({what}): IC ≤ 0.6, IWL ≥ 0.95"
        verdicts.append(judge(figure, claim, every(*few), text))
        claim = f"many pairs turn it to ICL, at every N ({what}): IC ≥ 0.95, IWL ≤ 0.75"
        verdicts.append(judge(figure, claim, every(*many), text))
    return verdicts


def of_groups(near: pd.DataFrame) -> Verdict:
    """Figure 6c: many seeds near K*."""
    bimodal, text = [], []
    for _, own in near.groupby(["N", "K"]):
        found = groups(own[IC].tolist())
        bimodal.append(found.bimodal)
        text.append(
            f"N = {own['N'].iloc[0]}, K = {own['K'].iloc[0]}: IC {spread(own[IC])}, {found.lower} + {found.upper} runs,"
            f" gap {found.gap:.2f} of {found.range:.2f} (p {found.p:.2f})"
        )
    word = "reproduced" if all(bimodal) else "undecided" if any(bimodal) else "not reproduced"
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
        straight, law = line(samples(own, "N", "time")), power_law(samples(own, "N", "time"))
        linear = straight.r2 >= 0.95 and abs(law.exponent - 1) <= 0.2
        medians = own.groupby("N")["time"].median()
        numbers = (
            f"{_line(straight)}; {_law(law, 'N')}; medians {', '.join(f'{N}: {t:.0f}' for N, t in medians.items())}"
        )
        claim = f"t_ICL is linear in N ({what}): R² ≥ 0.95, and an exponent of 0.8 to 1.2"
        verdicts.append(Verdict(figure, claim, _word(linear), _runs(own), numbers))
    additive = times[times["what"] == "additive model"].assign(
        ratio=lambda t: t["time"] / [float(Kinetics(int(N)).learning_integral()) for N in t["N"]]
    )
    ratios = additive["ratio"]
    claim = "t_ICL of the additive model is N √(2π) (β₀ = w₀ = 0), within a quarter"
    near = bool(ratios.between(1 / CLOSE, CLOSE).all())
    verdicts.append(Verdict("eq. 11", claim, _word(near), _runs(additive), f"time / formula {spread(ratios)}"))
    network = times[times["what"] == "network of width 512"]
    spans = network.groupby("N")["time"].agg(["min", "median", "max"])
    tails = (spans["max"] - spans["median"]) / (spans["median"] - spans["min"])
    text = ", ".join(f"N = {N}: {value:.1f}" for N, value in tails.items())
    claim = "t_ICL has a long tail: the greatest is farther above the median than the least below it, at every N"
    verdicts.append(
        Verdict("A.4", claim, _word(bool((tails > 1).all())), _runs(network), f"(max − median)/(median − min) {text}")
    )
    return verdicts


def of_abruptness(curves: Mapping[str, Sequence[pd.Series]]) -> list[Verdict]:
    """Figures 2d and 3b."""
    verdicts = []
    for what, figure in (("network of width 512", "2d"), ("additive model", "3b")):
        located = [locate_or_say_why(curve) for curve in curves[what]]
        shares = pd.Series([each.width / each.step for each in located if each.width and each.step])
        abrupt = len(shares) == len(located) and bool((shares <= 0.5).all())
        numbers = f"{len(shares)} of {len(located)} transitions; width / step {spread(shares)}" if len(shares) else "–"
        claim = f"ICL is acquired abruptly ({what}): its 10–90 % width is at most half of its step, in every run"
        verdicts.append(Verdict(figure, claim, _word(abrupt), f"{len(located)} runs", numbers))
    return verdicts


def of_memory(memorised: pd.DataFrame) -> list[Verdict]:
    """Figures 5 and A.3."""
    verdicts = []
    for what, own in memorised.groupby("what", sort=False):
        law = power_law(samples(own, "K", "I_K"))
        done = bool((own["c1"] <= REST).all())
        numbers = f"{_law(law, 'K')}; K = {own['K'].min()} to {own['K'].max()}; c₁ at the end {spread(own['c1'], 3)}"
        claim = f"I_K(∞) ~ K^ν with ν ≈ 0.7 (MLP of the {what}): the interval meets 0.6 to 0.8"
        word = _word(law.low <= 0.8 and law.high >= 0.6) if done else "undecided"
        verdicts.append(Verdict("5, A.3", claim, word, _runs(own), numbers))
    return verdicts


def of_thresholds(
    diversity: pd.DataFrame, times: pd.DataFrame, memorised: pd.DataFrame, thresholds: pd.DataFrame
) -> list[Verdict]:
    """Figure 6a, and the race itself."""
    verdicts = []
    for what, found in thresholds.groupby("what", sort=False):
        runs, timed = diversity[diversity["what"] == what], times[times["what"] == what]
        law = power_law(samples(found, "N", "fitted"))
        nu = power_law(samples(memorised[memorised["what"] == what], "K", "I_K"))
        timing = power_law(samples(timed, "N", "time"))
        low, high = _exponents(runs)
        at = ", ".join(f"{N}: {K:.0f}" for N, K in zip(found["N"], found["fitted"], strict=True))
        numbers = (
            f"K* at N = {at}; exponent {law.exponent:.2f} ({low:.2f} to {high:.2f}), R² {law.r2:.3f};"
            f" 1/ν = {1 / nu.exponent:.2f}, with the exponent of t_ICL ({timing.exponent:.2f})"
            f" {timing.exponent / nu.exponent:.2f}"
        )
        claim = f"K* ~ N^{{1/ν}} ({what}): the interval of the exponent meets that of 1/ν"
        meets = low <= 1 / nu.low and high >= 1 / nu.high
        verdicts.append(Verdict("6a", claim, _word(meets), _runs(runs), numbers))
        claim = f"the exponent of K* is that of t_ICL, as measured, over ν ({what}): its interval meets theirs"
        apart = low > timing.high / nu.low or high < timing.low / nu.high
        verdicts.append(Verdict("6a, eq. 12", claim, _word(not apart), _runs(runs), numbers))
        ratios = found["predicted"] / found["fitted"]
        claim = f"ICL takes over where t_ICL = I_K(∞) ({what}): K* predicted from both within a factor of 2"
        each = ", ".join(f"N = {N:.0f}: {ratio:.2f}" for N, ratio in zip(found["N"], ratios, strict=True))
        near = bool(ratios.between(0.5, 2).all())
        verdicts.append(Verdict("eq. 12", claim, _word(near), _runs(runs), f"predicted / fitted {each}"))
    return verdicts


def of_transience(what: str, fading: pd.DataFrame, curves: Mapping[tuple[str, int], pd.DataFrame]) -> list[Verdict]:
    """Figures 2e (3c of the additive model) and A.6. What dips below 0.9 and comes back is not lost."""
    figure = "2e" if what == "network" else "3c"
    steps = {
        key: faded(table["icl_accuracy"]) if table["icl_accuracy"].iloc[-1] <= LOST else None
        for key, table in curves.items()
    }
    tops = {key: float(table["icl_accuracy"].max()) for key, table in curves.items()}
    rows = fading.assign(
        faded=[steps[row["variant"], row["seed"]] for row in fading.to_dict("records")],
        top=[tops[row["variant"], row["seed"]] for row in fading.to_dict("records")],
    )
    of_decay = {float(str(decay)): own for decay, own in rows.groupby("decay")}
    text = "; ".join(
        f"λ = {decay:g}: at most {spread(own['top'])}, at the end {spread(own[IC])}, lost at step"
        f" {', '.join('–' if pd.isna(step) else f'{step:.0f}' for step in own['faded'])}"
        for decay, own in of_decay.items()
    )
    kept = {int(s): bool(pd.isna(v)) for s, v in zip(of_decay[0.0]["seed"], of_decay[0.0]["faded"], strict=True)}
    lost = {
        seed: any(bool(own.loc[own["seed"] == seed, "faded"].notna().any()) for decay, own in of_decay.items() if decay)
        for seed in kept
    }
    medians = [float(own["faded"].astype(float).median()) for decay, own in of_decay.items() if decay]
    seen = [each for each in medians if np.isfinite(each)]
    sooner = _word(all(a > b for a, b in pairwise(seen))) if len(seen) > 1 else "undecided"
    claim = f"with some decay of attention alone ICL is acquired (≥ 0.99) and lost again (≤ 0.9) ({what})"
    return [
        judge(figure, f"without decay of attention ICL stays ({what})", kept, text),
        judge(figure, claim, lost, text),
        Verdict("A.6", f"the more decay, the sooner it is lost ({what})", sooner, _runs(rows), text),
    ]


def of_rest(resting: pd.DataFrame) -> Verdict:
    """Equation 45: of checkpoints with ICL, those after the greatest w of their run, as w must come there first."""
    ratios = []
    for _, own in resting.groupby(["decay", "seed"]):
        after = own.iloc[int(own["w"].to_numpy().argmax()) :]
        ratios.append((after["w"] / after["rest"])[after["icl_accuracy"] >= LOST])
    found = pd.concat(ratios)
    close = float(found.between(1 / CLOSE, CLOSE).mean()) if len(found) else 0.0
    claim = f"after ICL, w is W(c₃/λ) (additive model), within a factor of {CLOSE:g} in 90 % of checkpoints"
    numbers = f"in {100 * close:.0f} % of {len(found)}; w / W {spread(found)}, median {found.median():.2f}"
    return Verdict("eq. 45", claim, _word(close >= MOST), f"{resting.groupby(['decay', 'seed']).ngroups} runs", numbers)


def of_losses(losses: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Figure 6d: of all checkpoints with ICL, and of those after it has faded."""
    verdicts = []
    for what, table in losses.items():
        with_icl = table.loc[(table["icl_loss"] < 0.1) & (table["icl_accuracy"] > 0.99)]
        without = table.loc[(table["iwl_loss"] < 0.1) & (table["iwl_accuracy"] > 0.99)]
        for own, x, y, figure, claim in (
            (with_icl, "icl_loss", "iwl_loss", "6d, eq. 46", "after ICL, L_IWL = −½ log L_ICL"),
            (without, "iwl_loss", "icl_loss", "6d, eq. 47", "with all memorised, L_ICL = −½ log L_IWL"),
        ):
            ratios = pd.Series(own[y] / other_loss(own[x].to_numpy(dtype=float)))
            close = float(ratios.between(1 / CLOSE, CLOSE).mean()) if len(ratios) else 0.0
            numbers = f"in {100 * close:.0f} % of {len(ratios)}"
            if len(ratios):
                numbers += f"; ratio {spread(ratios)}, median {ratios.median():.2f}"
            claim = f"{claim} ({what}), within a factor of {CLOSE:g} in 90 % of checkpoints"
            word = _word(close >= MOST) if len(ratios) else "undecided"
            verdicts.append(Verdict(figure, claim, word, f"{len(own)} checkpoints", numbers))
    return verdicts


def of_balance(balanced: pd.DataFrame) -> Verdict:
    """Figure 6e."""
    learned, text, lower = balanced.assign(learned=balanced[IC] > LEARNED), [], []
    for K, own in learned.groupby("K"):
        half, free = (own.loc[own["balanced"].eq(flag), "learned"] for flag in (True, False))
        text.append(f"K = {K}: {half.sum()} of {len(half)}, at random {free.sum()} of {len(free)}")
        lower.append(float(free.mean() - half.mean()))
    claim = "with N/2 labels of each kind fewer seeds learn in context at some K, and at none more"
    return Verdict("6e, A.8", claim, _word(max(lower) > 0 and min(lower) >= 0), _runs(balanced), "; ".join(text))


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
