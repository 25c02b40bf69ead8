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
    def of(cls, values: Sequence[float] | Float[np.ndarray, "seeds"]) -> "Mean":
        """The mean of independent values; one value has no interval."""
        found, n = np.asarray(values, dtype=float), len(values)
        error = float(found.std(ddof=1)) / n**0.5 if n > 1 else np.nan
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


def power_law(values: pd.DataFrame) -> PowerLaw:
    """The power law of a table of seeds × settings (`by_seed`), of at least two settings, all positive and ascending.

    Seeds without a finite positive value at some setting are left out; if more than a third are, MechinterpError.
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
    slope, intercept = np.polyfit(at, y.T, 1)
    bend = 2 * np.polyfit(at, y.T, 2)[0] * (at[-1] - at[0]) if len(at) > 2 else np.zeros(len(y))
    local = np.diff(np.median(y, axis=0)) / np.diff(at)
    return PowerLaw(float(np.exp(intercept.mean())), Mean.of(slope), Mean.of(bend), tuple(local.tolist()))


def thresholds(values: pd.DataFrame, level: float = 0.75) -> Float[np.ndarray, "seeds"]:
    """Of every seed, the setting at which its values rise through `level`, between those that were run (in logarithms).

    Not a number where they do not (`level_crossing`).
    """
    x = np.log([float(str(setting)) for setting in values])
    found = (level_crossing(pd.Series(row, index=x), level) for row in values.to_numpy(dtype=float))
    return np.array([np.nan if at is None else np.exp(at) for at in found])


def ratio(numerator: Mean, denominator: Mean) -> Mean:
    """The ratio of two independent means, by propagation of their standard errors, with Welch's degrees of freedom."""
    value = numerator.value / denominator.value
    terms = [(each.error / each.value) ** 2 for each in (numerator, denominator)]
    error, n = abs(value) * sum(terms) ** 0.5, min(numerator.n, denominator.n)
    if not error > 0:
        return Mean(value, value, value, 0.0, n) if error == 0 else Mean(value, np.nan, np.nan, np.nan, n)
    degrees = sum(terms) ** 2 / sum(
        term**2 / (each.n - 1) for term, each in zip(terms, (numerator, denominator), strict=True)
    )
    half = float(student.ppf(0.975, degrees)) * error
    return Mean(value, value - half, value + half, error, n)
