"""How something scales, from runs of several seeds at each setting: power laws, and settings at which it turns over.

Every seed gives an exponent of its own, by least squares through its values at all settings. Seeds are independent of
one another, and their values at different settings are not, as they share initial weights; so intervals are those of
the mean over seeds (Student's t). A power law has one exponent: where the local one changes over the range by more than
its interval allows, there is none (`PowerLaw.is_straight`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.stats import t as student

from mechinterp.emergence import level_crossing
from mechinterp.errors import MechinterpError

FEWEST = 2 / 3
"""The least share of the seeds that must have finite values at all settings."""


@dataclass(frozen=True)
class Mean:
    """The mean over seeds of a quantity, with Student's t interval (95 %)."""

    value: float
    low: float
    high: float
    error: float
    """Standard error."""
    n: int
    """Seeds."""

    @classmethod
    def of(cls, values: Sequence[float] | Float[np.ndarray, "seeds"], shared: float = 0.0) -> "Mean":
        """The mean of independent values, which share a further standard error; one value has no interval."""
        found, n = np.asarray(values, dtype=float), len(values)
        error = float(np.hypot(found.std(ddof=1) / n**0.5, shared)) if n > 1 else np.nan
        half = float(student.ppf(0.975, n - 1)) * error if n > 1 else np.nan
        return cls(float(found.mean()), float(found.mean()) - half, float(found.mean()) + half, error, n)

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class PowerLaw:
    """y = prefactor · x^exponent."""

    prefactor: float
    exponent: Mean
    bend: Mean
    """Change of the local exponent from first to last setting, by a parabola in logarithms; 0 of two settings."""
    local: tuple[float, ...]
    """Exponents between neighbouring settings, of the medians over seeds."""
    slopes: pd.Series
    """The exponent of every seed."""
    shared: float
    """Standard error of the exponent that all seeds have in common."""

    @property
    def is_straight(self) -> bool:
        """Whether the change of the local exponent may be 0."""
        return not (self.bend.low > 1e-9 or self.bend.high < -1e-9)

    def describe(self, x: str) -> str:
        """The law with the intervals of its exponent and of its bend, and local exponents."""
        local = ", ".join(f"{each:.2f}" for each in self.local)
        return (
            f"{self.prefactor:.3g} {x}^{self.exponent}; local exponents {local}, from first to last by"
            f" {self.bend.value:+.2f} ({self.bend.low:+.2f} to {self.bend.high:+.2f})"
        )


def power_law(values: pd.DataFrame, shared: Sequence[float] | None = None) -> PowerLaw:
    """The power law of a table of seeds × settings (`by_seed`), of at least two settings, all positive and ascending.

    `shared` are standard errors of ln y at the settings that all seeds have in common, as `resolution` gives. Seeds
    without a finite positive value at some setting are left out; if more than a third are, MechinterpError.
    """
    x = np.array([float(str(setting)) for setting in values])
    if len(x) < 2 or (x <= 0).any() or (np.diff(x) <= 0).any() or not len(values):
        raise MechinterpError("a power law takes two settings or more, positive and ascending, each with runs")
    table = values.to_numpy(dtype=float)
    whole = np.isfinite(table).all(axis=1) & (table > 0).all(axis=1)
    if whole.mean() < FEWEST:
        odd = next(setting for setting, column in zip(values, table.T, strict=True) if not np.isfinite(column).all())
        raise MechinterpError(f"{(~whole).sum()} of {len(whole)} seeds never got there (first at {odd}); train longer")
    at, y = np.log(x), np.log(table[whole])
    straight, errors = np.linalg.pinv(np.vander(at, 2)), np.zeros(len(at)) if shared is None else np.asarray(shared)
    slope, intercept = straight @ y.T
    bends = 2 * np.linalg.pinv(np.vander(at, 3))[0] * (at[-1] - at[0]) if len(at) > 2 else np.zeros(len(at))
    exponent = Mean.of(slope, float(np.linalg.norm(straight[0] * errors)))
    bend = Mean.of(y @ bends, float(np.linalg.norm(bends * errors)))
    local = np.diff(np.median(y, axis=0)) / np.diff(at)
    slopes = pd.Series(slope, index=values.index[whole])
    common = float(np.linalg.norm(straight[0] * errors))
    return PowerLaw(float(np.exp(intercept.mean())), exponent, bend, tuple(local.tolist()), slopes, common)


def thresholds(values: pd.DataFrame, level: float = 0.75) -> Float[np.ndarray, "seeds"]:
    """Of every seed, the setting at which its values rise through `level`, between those that were run (in logarithms).

    Not a number where they do not (`level_crossing`).
    """
    x = np.log([float(str(setting)) for setting in values])
    found = (level_crossing(pd.Series(row, index=x), level) for row in values.to_numpy(dtype=float))
    return np.array([np.nan if at is None else np.exp(at) for at in found])


def resolution(values: pd.DataFrame, low: float = 0.5, high: float = 1.0, level: float = 0.75) -> float:
    """The standard error of the logarithm of a threshold that comes from the distance of the settings that were run.

    Where values jump from one setting to the next by the share p of their whole rise (`low` to `high`), the threshold
    is known to that share of the distance: p · ln(x₂/x₁) / √12, the median over seeds.
    """
    x, found = np.log([float(str(setting)) for setting in values]), thresholds(values, level)
    errors = []
    for row, at in zip(values.to_numpy(dtype=float), np.log(found), strict=True):
        if np.isfinite(at):
            after = int(np.clip(np.searchsorted(x, at), 1, len(x) - 1))
            share = np.clip((row[after] - row[after - 1]) / (high - low), 0, 1)
            errors.append(share * (x[after] - x[after - 1]) / 12**0.5)
    return float(np.median(errors)) if errors else np.nan


def product(*laws: PowerLaw, powers: Sequence[float]) -> Mean:
    """The product of exponents, each to a power, of the seeds that all laws have: seeds share initial weights, so that
    their exponents are not independent. Errors that seeds have in common are added."""
    seeds = sorted(set.intersection(*(set(law.slopes.index) for law in laws)))
    if not seeds:
        raise MechinterpError("the laws have no seed in common")
    parts = [law.slopes.loc[seeds].to_numpy(float) ** power for law, power in zip(laws, powers, strict=True)]
    values = np.prod(parts, axis=0)
    relative = [power * law.shared / law.exponent.value for law, power in zip(laws, powers, strict=True)]
    return Mean.of(values, abs(float(values.mean())) * float(np.linalg.norm(relative)))


def ratio_interval(values: ArrayLike, reference: ArrayLike) -> tuple[float, float, float]:
    """The median ratio of two samples of independent positive values, infinite ones too, with its interval of 95 %.

    The median over all pairs (Hodges and Lehmann); the interval has the ratios that the exact rank sum test does not
    reject, so that it needs no law of the values. Not a number where the samples are too small for one.
    """
    first, second = np.asarray(values, dtype=float), np.asarray(reference, dtype=float)
    with np.errstate(invalid="ignore"):
        pairs = np.sort((first[:, None] / second).ravel())  # ∞/∞, which tells nothing, comes last
    ways = np.ones(
        1
    )  # over U, the pairs of which the first is smaller: one factor (1 − x^{m+i}) / (1 − x^i) for each i
    for i in range(1, len(second) + 1):
        numerator = np.zeros(len(first) + i + 1)
        numerator[[0, -1]] = 1, -1
        denominator = np.zeros(i + 1)
        denominator[[0, -1]] = 1, -1
        ways = np.round(np.polydiv(np.convolve(ways, numerator)[::-1], denominator[::-1])[0][::-1])
    outside = int(np.searchsorted(np.cumsum(ways) / ways.sum(), 0.025, side="right"))
    if not outside:
        return float(np.median(pairs)), np.nan, np.nan
    return float(np.median(pairs)), float(pairs[outside - 1]), float(pairs[-outside])
