"""Sums of logistics: the curves that are fitted to a measure over training.

    y(x) = b₀ + Σ_c (b_c − b_{c−1}) / (1 + exp(−(x − m_c)/s_c))

with plateaus b, and the midpoint m and scale s of every component. Fits are robust (soft-L1 loss), and plateaus are
within the curve's range, so that those of a probability are probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit

from mechinterp.emergence.noise import Array

WIDTH_IN_SCALES = 2 * float(np.log(9.0))
"""The 10–90 % width of a logistic of scale s is 2 ln 9 · s."""


@dataclass(frozen=True)
class Component:
    """One logistic of a fit."""

    before: float
    after: float
    midpoint: float
    scale: float

    @property
    def height(self) -> float:
        """The change, negative where the curve falls."""
        return self.after - self.before

    @property
    def width(self) -> float:
        """From 10 to 90 % of the change."""
        return WIDTH_IN_SCALES * self.scale

    @property
    def start(self) -> float:
        """Where 10 % of the change is made."""
        return self.midpoint - self.width / 2

    @property
    def end(self) -> float:
        """Where 90 % of the change is made."""
        return self.midpoint + self.width / 2


@dataclass(frozen=True)
class Fit:
    """A fitted sum of logistics."""

    components: tuple[Component, ...]
    residuals: Array
    jacobian: Array
    """Derivatives [n, 1 + 3 components] by b₀ and every b, m, s."""

    @property
    def n_parameters(self) -> int:
        """Parameters of the curve."""
        return self.jacobian.shape[1]


def fit_one(x: Array, y: Array, noise: float) -> Fit:
    """The best fit of one logistic, from several guesses along the curve."""
    tenth, span = max(2, len(y) // 10), x[-1] - x[0]
    before, after = y[:tenth].mean(), y[-tenth:].mean()
    guesses = [
        [before, after, at, width * span]
        for at in np.quantile(x, [0.2, 0.35, 0.5, 0.65, 0.8])
        for width in (0.01, 0.05)
    ]
    return _fit(x, y, noise, guesses)


def fit_two(x: Array, y: Array, noise: float) -> Fit:
    """The best fit of two logistics: from the best three constants in a row, and from a ramp that ends in a jump."""
    span = x[-1] - x[0]
    first, second = _two_breaks(y)
    low, middle, high = y[:first].mean(), y[first:second].mean(), y[second:].mean()
    breaks = [(x[at - 1] + x[at]) / 2 for at in (first, second)]
    steps = [[low, middle, breaks[0], width * span, high, breaks[1], width * span] for width in (0.01, 0.05)]
    jump, halfway = int(np.argmax(np.abs(y[2:] - y[:-2]))) + 1, (y[0] + y[-1]) / 2
    ramp = [y[0], halfway, x[0] + 0.75 * (x[jump] - x[0]), 0.1 * span, y[-1], x[jump], 0.01 * span]
    return _fit(x, y, noise, [*steps, ramp])


def _fit(x: Array, y: Array, noise: float, guesses: Sequence[Sequence[float]]) -> Fit:
    """The fit of least cost."""
    n_components, span, spacing = (len(guesses[0]) - 1) // 3, x[-1] - x[0], float(np.median(np.diff(x)))
    low, high = float(y.min()), float(y.max())
    lower = np.array([low, *[low, x[0] - span, spacing / 10] * n_components])
    upper = np.array([high, *[high, x[-1] + span, 2 * span] * n_components])
    upper += 1e-9 * np.maximum(1, np.abs(upper))  # a constant curve has a range too
    fits = [
        least_squares(
            _misfit,
            np.clip(guess, lower, upper),
            _misfit_slopes,  # pyright: ignore[reportArgumentType]  (scipy's stubs know no callable Jacobian)
            bounds=(lower, upper),
            loss="soft_l1",
            max_nfev=60,
            args=(x, y, noise),
        )
        for guess in guesses
    ]
    best = min(fits, key=lambda fit: fit.cost).x
    plateaus = [best[0], *best[1::3]]
    components = tuple(
        Component(float(plateaus[c]), float(plateaus[c + 1]), float(best[3 * c + 2]), float(best[3 * c + 3]))
        for c in range(n_components)
    )
    return Fit(components, -_misfit(best, x, y, 1.0), _misfit_slopes(best, x, y, 1.0))


def _misfit(p: Array, x: Array, y: Array, noise: float) -> Array:
    """Fit minus curve, in units of the noise; p is b₀, and b, m, s of every component."""
    heights = np.diff([p[0], *p[1::3]])
    value = p[0] - y
    for height, midpoint, scale in zip(heights, p[2::3], p[3::3], strict=True):
        value = value + height * expit((x - midpoint) / scale)
    return value / noise


def _misfit_slopes(p: Array, x: Array, y: Array, noise: float) -> Array:
    """The Jacobian of `_misfit`."""
    heights = np.diff([p[0], *p[1::3]])
    rises = [expit((x - midpoint) / scale) for midpoint, scale in zip(p[2::3], p[3::3], strict=True)]
    following = [*rises[1:], np.zeros_like(x)]
    columns = [1 - rises[0]]
    for c, rise in enumerate(rises):
        midpoint, scale = p[3 * c + 2], p[3 * c + 3]
        slope = heights[c] * rise * (1 - rise) / scale
        columns += [rise - following[c], -slope, -slope * (x - midpoint) / scale]
    return np.stack(columns, axis=1) / noise


def _two_breaks(y: Array, most: int = 200) -> tuple[int, int]:
    """Where the best three constants in a row begin the second and the third: least squares over at most 200 places."""
    n = len(y)
    at = np.unique(np.linspace(1, n - 1, min(n - 1, most)).round().astype(int))
    sums = np.concatenate([[0.0], np.cumsum(y - y.mean())])
    first, second = at[:, None], at[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = (
            sums[first] ** 2 / first
            + (sums[second] - sums[first]) ** 2 / (second - first)
            + (sums[n] - sums[second]) ** 2 / (n - second)
        )
    explained = np.where(first < second, explained, -np.inf)
    row, column = np.unravel_index(int(np.argmax(explained)), explained.shape)
    return int(at[row]), int(at[column])
