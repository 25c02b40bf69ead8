"""Does a study bear a claim out? Verdicts by rules that are fixed before the runs, each with the numbers behind it.

A claim is a sentence of a paper, or a question of our own. A rule comes to one of three ends: it holds, it does not,
or the runs do not tell. A claim of a paper that holds is **reproduced**. One that does not hold is **not reproduced**
where the runs follow the paper in all that it states, or the authors' code in what the text leaves open, and **another
convention** where they differ in something that may matter. A question is answered **yes** or **no**. All else is
**undecided**: a test that is not significant never says that a claim is wrong.

Every rule comes with the probability that it holds by chance (`false_positive`), and that it holds where the claim is
true (`power`). By chance means:

* seeds: each meets the condition with probability ½, and of n seeds all do; for a trend, the settings are in random
  order, the same for all seeds, as what disturbs one may disturb all. The power is that of seeds that meet it with
  probability 0.95;
* an interval that must lie within bounds: the value is at one of the bounds. The power is that for a value midway;
* a test: its level, 0.05. The power is said beside the test.

Fewer than three seeds decide nothing, nor does a rule that holds by chance in more than one case of three.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from math import comb
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import binom
from scipy.stats import t as student

from analyses.claims.scaling import Mean
from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.studies.study import Study

TREND_SLACK = 0.05
"""How far a value may go against a trend from one setting to the next."""
LEVEL = 0.05
"""The level of tests."""
FEWEST = 3
"""The least number of seeds that decide anything."""
CHANCE = 0.34
"""The greatest probability by chance of a rule whose being met says anything."""
MET = 0.95
"""Probability with which a seed meets a condition where the claim is true."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Claim:
    """What is judged."""

    figure: str
    """The figure, equation or section."""
    sentence: str
    """The sentence of the paper, shortened, or our own question."""
    source: Literal["paper", "blog", "our question"] = "paper"
    follows: Literal["paper", "authors", "other"] = "paper"
    """What the runs follow: the paper in all that it states, its authors' code in what the text leaves open too, or
    other conventions."""
    remark: str = ""
    """In what the runs differ, in a few words."""

    def word(self, holds: bool | None) -> str:
        """The verdict, from whether its rule holds; None: the runs do not tell."""
        if holds is None:
            return "undecided"
        if self.source == "our question":
            return "yes" if holds else "no"
        if holds:
            return "reproduced"
        return "another convention" if self.follows == "other" else "not reproduced"


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim."""

    figure: str
    sentence: str
    source: str
    follows: str
    remark: str
    rule: str
    """When the claim counts as true."""
    verdict: str
    """reproduced, not reproduced, another convention, yes, no or undecided."""
    runs: str
    """Number of seeds that meet the rule, of all, or the number of runs."""
    false_positive: float
    """Probability that the rule holds by chance."""
    power: float
    """Probability that it holds where the claim is true."""
    numbers: str
    """The measured numbers."""

    @classmethod
    def on(
        cls,
        claim: Claim,
        rule: str,
        holds: bool | None,
        runs: str,
        numbers: str,
        *,
        false_positive: float = np.nan,
        power: float = np.nan,
    ) -> "Verdict":
        """The verdict on a claim, from whether its rule holds; undecided where it would by chance (`CHANCE`)."""
        holds = None if holds and false_positive > CHANCE else holds
        return cls(
            **asdict(claim),
            rule=rule,
            verdict=claim.word(holds),
            runs=runs,
            false_positive=false_positive,
            power=power,
            numbers=numbers,
        )


def judge(claim: Claim, rule: str, holds: Mapping[int, bool], numbers: str, *, chance: float | None = None) -> Verdict:
    """The verdict from whether each seed meets a condition: it holds if all do, and does not if none does.

    `chance` is the probability that all meet it by chance, by default ½ for each.
    """
    if not holds:
        raise MechinterpError(f"{claim.sentence}: there is no seed to judge it by")
    met, n = sum(holds.values()), len(holds)
    outcome = None if n < FEWEST or 0 < met < n else met == n
    false_positive = 0.5**n if chance is None else chance
    return Verdict.on(claim, rule, outcome, f"{met} of {n}", numbers, false_positive=false_positive, power=MET**n)


def judge_trend(claim: Claim, rule: str, values: pd.DataFrame, least: float, numbers: str) -> Verdict:
    """The verdict on a trend over settings, which each seed must show (`is_monotone`).

    By chance the settings are in random order, the same for all seeds: the share of all orders in which all show it.
    """
    orders = list(permutations(range(values.shape[1])))
    chance = np.mean([all(is_monotone(values.iloc[:, list(order)], least).values()) for order in orders])
    return judge(claim, rule, is_monotone(values, least), numbers, chance=float(max(chance, 1 / len(orders))))


def judge_interval(
    claim: Claim, rule: str, means: Sequence[tuple[Mean, float, float]], runs: str, numbers: str
) -> Verdict:
    """The verdict from means over seeds with their bounds, (mean, least, most): from their 95 % intervals.

    It holds if all intervals lie within their bounds, and does not if one lies outside. By chance a value is at a
    bound, which a two-sided interval misses with probability 0.025. The power is that for values midway between the
    bounds, with the standard errors and seeds of these means, simulated.
    """
    if not means:
        raise MechinterpError(f"{claim.sentence}: there is no interval to judge it by")
    known = all(np.isfinite([mean.low, mean.high]).all() for mean, _, _ in means)
    within = known and all(least <= mean.low and mean.high <= most for mean, least, most in means)
    outside = any(mean.high < least or mean.low > most for mean, least, most in means)
    few = min(mean.n for mean, _, _ in means) < FEWEST
    holds = None if few else True if within else False if outside else None
    power = float(np.prod([_interval_power(mean, (most - least) / 2) for mean, least, most in means]))
    return Verdict.on(claim, rule, holds, runs, numbers, false_positive=0.025, power=power)


def _interval_power(mean: Mean, half: float, draws: int = 4000) -> float:
    """How often Student's interval lies within ± half of the truth, for normal values with that standard error."""
    degrees = mean.n - 1
    if degrees < 1 or not np.isfinite(mean.error):
        return 0.0
    rng = np.random.default_rng(0)
    estimates, errors = rng.standard_normal(draws), np.sqrt(rng.chisquare(degrees, draws) / degrees)
    reach = mean.error * (np.abs(estimates) + student.ppf(0.975, degrees) * errors)
    return float((reach <= half).mean())


def sign_test(more: pd.Series, fewer: pd.Series) -> tuple[float, float]:
    """Over seeds, the one-sided p values of "more > fewer" and of the contrary; seeds in which both are equal drop out.

    Exact: seeds are independent, and by chance either is larger with probability ½.
    """
    difference = (more - fewer).to_numpy(float)
    above, n = int((difference > 0).sum()), int((difference != 0).sum())
    if not n:
        return 1.0, 1.0
    return float(binom.sf(above - 1, n, 0.5)), float(binom.cdf(above, n, 0.5))


def judge_test(
    claim: Claim, rule: str, p: float, p_against: float, runs: str, numbers: str, *, power: float
) -> Verdict:
    """The verdict from a test of the claim and one of its contrary: whichever is significant."""
    holds = True if p < LEVEL else False if p_against < LEVEL else None
    return Verdict.on(claim, rule, holds, runs, numbers, false_positive=LEVEL, power=power)


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One row per claim."""
    return pd.DataFrame([asdict(each) for each in verdicts]).round({"false_positive": 4, "power": 3})


def with_settings(study: Study, table: pd.DataFrame, keys: Mapping[str, str]) -> pd.DataFrame:
    """A study's table with columns for settings of each run's config: name → dotted key, as ``task.n_classes``."""
    found = table.copy()
    for name, dotted in keys.items():
        values = {}
        for variant, config in study.variants.items():
            value = config
            for part in dotted.split("."):
                value = getattr(value, part)
            values[variant] = value
        found[name] = found["variant"].map(values)
    return found


def require_numbers(table: pd.DataFrame, *columns: str) -> None:
    """MechinterpError if a run of a table has no number in one of the columns: it is not known what it would say."""
    for column in columns:
        lacking = table[table[column].isna()]
        if len(lacking):
            where = ", ".join(f"{name} {lacking[name].iloc[0]}" for name in ("seed", "variant") if name in table)
            raise MechinterpError(f"there is no {column} of {where}: judge when all runs are done")


def by_seed(table: pd.DataFrame, column: str, over: str) -> pd.DataFrame:
    """One column of a table of runs: a row per seed, a column per value of the setting `over`, ascending.

    Every seed must have one run of each value, with a number in the column; MechinterpError otherwise: a verdict on a
    part of the runs, or on means of different settings, would say something else.
    """
    for name in (column, over):
        if name not in table:
            raise unknown_name("column", name, [str(each) for each in table])
    if table.duplicated(["seed", over]).any():
        raise MechinterpError(f"a seed has several runs of one {over}: choose the rows that differ in nothing else")
    found = table.pivot(index="seed", columns=over, values=column).sort_index(axis=1)
    for seed, value in zip(*np.nonzero(found.isna().to_numpy()), strict=True):
        where = f"seed {found.index[seed]}, {over} = {found.columns[value]}"
        raise MechinterpError(f"there is no {column} of {where}: judge when all runs are done")
    return found


def is_monotone(values: pd.DataFrame, least: float) -> dict[int, bool]:
    """By seed, whether values go from the first column to the last by at least `least` (falling, if it is negative),
    and nowhere against that by more than `TREND_SLACK`."""
    sign = np.sign(least)
    whole = sign * (values.iloc[:, -1] - values.iloc[:, 0]) >= abs(least) - _ROUNDING
    monotone = (sign * values.diff(axis=1).iloc[:, 1:] >= -TREND_SLACK - _ROUNDING).all(axis=1)
    return {int(str(seed)): bool(met) for seed, met in (whole & monotone).items()}


def in_range(values: pd.Series, low: float = -np.inf, high: float = np.inf) -> dict[int, bool]:
    """By seed, whether a value lies between two bounds, themselves included."""
    return {int(str(seed)): bool(low <= value <= high) for seed, value in values.items()}


def all_hold(*conditions: Mapping[int, bool]) -> dict[int, bool]:
    """By seed, whether all conditions hold; a seed that one of them lacks is counted as not meeting it."""
    seeds = sorted({seed for each in conditions for seed in each})
    return {seed: all(each.get(seed, False) for each in conditions) for seed in seeds}


def format_range(values: pd.DataFrame | pd.Series, digits: int = 2) -> str:
    """Least to greatest, over seeds, of every column: ``K=128: 0.02–0.03, K=256: …``."""
    if isinstance(values, pd.Series):
        low, high = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
        return low if low == high else f"{low}–{high}"
    return ", ".join(f"{name}: {format_range(pd.Series(values[name]), digits)}" for name in values)


@dataclass(frozen=True)
class Groups:
    """How the runs of one setting fall into two groups, if they do."""

    bimodal: bool
    """Whether both groups have two runs or more, the range is at least 0.3, and p is below 0.05."""
    lower: int
    """Runs below the largest gap."""
    upper: int
    """Runs above it."""
    gap: float
    """The largest gap between neighbours."""
    range: float
    """Greatest minus least."""
    p: float
    """How often so large a part of the range is a gap where runs are spread evenly at random over it."""


def largest_gap_test(values: Sequence[float]) -> Groups:
    """Are the seeds of two kinds? The largest gap between neighbouring values, and how many lie on either side.

    Of n values between the least and the greatest, n−2 lie inside; if they are uniform there, the largest of their
    m = n−1 gaps takes more than the part g of the range with probability

        p = Σₖ₌₁ (−1)ᵏ⁺¹ C(m, k) (1 − k g)ᵐ⁻¹   over k g < 1   (the broken stick).

    Fewer than four values raise.
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    if len(ordered) < 4:
        raise MechinterpError("at least four runs are needed to see whether they fall into two groups")
    gaps = np.diff(ordered)
    where, span = int(gaps.argmax()), float(ordered[-1] - ordered[0])
    gap, m = float(gaps[where]), len(gaps)
    part = gap / span if span else 0.0
    terms = [(-1) ** (k + 1) * comb(m, k) * max(1 - k * part, 0.0) ** (m - 1) for k in range(1, m + 1)]
    p = float(np.clip(sum(terms), 0.0, 1.0)) if span else 1.0
    lower, upper = where + 1, len(ordered) - where - 1
    return Groups(span >= 0.3 and min(lower, upper) >= 2 and p < 0.05, lower, upper, gap, span, p)
