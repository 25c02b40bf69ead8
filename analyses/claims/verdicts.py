"""Does a study bear a claim out? Verdicts over seeds, each with the numbers behind it.

A claim is a condition on one seed's runs. It is **reproduced** if every seed meets it, **not reproduced** if none does,
and **undecided** otherwise: no seed is left out, and none outweighs another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb

import numpy as np
import pandas as pd

from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.studies.study import Study

TREND_SLACK = 0.05
"""How far a value may go against a trend from one setting to the next."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """The verdict on one claim."""

    figure: str
    """The figure or equation of the paper."""
    claim: str
    """The claim, in a sentence."""
    verdict: str
    """reproduced, not reproduced or undecided."""
    seeds: str
    """Number of seeds that meet it, of all."""
    numbers: str
    """The measured numbers."""


def judge(figure: str, claim: str, holds: Mapping[int, bool], numbers: str) -> Verdict:
    """The verdict from whether each seed meets the claim."""
    if not holds:
        raise MechinterpError(f"{claim}: there is no seed to judge it by")
    met = sum(holds.values())
    verdict = "reproduced" if met == len(holds) else "not reproduced" if met == 0 else "undecided"
    return Verdict(figure, claim, verdict, f"{met} of {len(holds)}", numbers)


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One row per claim."""
    return pd.DataFrame([asdict(each) for each in verdicts])


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
