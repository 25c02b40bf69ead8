"""Sums of logistics: the curves that are fitted to a measure over training.

    y(x) = b₀ + Σ_c (b_c − b_{c−1}) / (1 + exp(−(x − m_c)/s_c))

with plateaus b, and the midpoint m and scale s of every component. Fits are robust (soft-L1 loss), and plateaus are
within the curve's range, so that those of a probability are probabilities.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from mechinterp.emergence.noise import Array

WIDTH_IN_SCALES = 2 * float(np.log(9.0))
"""The 10–90 % width of a logistic of scale s is 2 ln 9 · s."""

_MOST_STEPS = 200
"""Steps of a descent, at most."""
_TOLERANCE = 1e-8
"""Gain of a step, relative to the cost, with which a descent ends."""
_HOPE = 0.001
"""The same, relative to the distance from the best of all descents."""
_DAMPING = 0.1
"""The first damping of a descent, relative to the curvature."""
_TINY = 1e-14
"""The same of a cost that is 0, and the least curvature."""


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


def fit_one(x: Array, curves: Array, noise: Array) -> list[Fit]:
    """The best fit of one logistic to every curve [curve, n], whose noise is [curve], from several guesses along it."""
    tenth, span = max(2, len(x) // 10), x[-1] - x[0]
    places = np.quantile(x, [0.2, 0.35, 0.5, 0.65, 0.8])
    guesses = [
        [[y[:tenth].mean(), y[-tenth:].mean(), at, width * span] for at in places for width in (0.01, 0.05)]
        for y in curves
    ]
    return _fit(x, curves, noise, np.array(guesses))


def fit_two(x: Array, curves: Array, noise: Array) -> list[Fit]:
    """The best fit of two logistics: from the best three constants in a row, and from a ramp that ends in a jump."""
    return _fit(x, curves, noise, np.array([_guesses_of_two(x, y) for y in curves]))


def _guesses_of_two(x: Array, y: Array) -> list[list[float]]:
    span = x[-1] - x[0]
    first, second = _two_breaks(y)
    low, middle, high = y[:first].mean(), y[first:second].mean(), y[second:].mean()
    breaks = [(x[at - 1] + x[at]) / 2 for at in (first, second)]
    steps = [[low, middle, breaks[0], width * span, high, breaks[1], width * span] for width in (0.01, 0.05)]
    jump, halfway = int(np.argmax(np.abs(y[2:] - y[:-2]))) + 1, (y[0] + y[-1]) / 2
    ramp = [y[0], halfway, x[0] + 0.75 * (x[jump] - x[0]), 0.1 * span, y[-1], x[jump], 0.01 * span]
    return [*steps, ramp]


def _fit(x: Array, curves: Array, noise: Array, guesses: Array) -> list[Fit]:
    """The fit of least cost of every curve, from guesses [curve, guess, p]."""
    n_components, span, spacing = (guesses.shape[2] - 1) // 3, x[-1] - x[0], float(np.median(np.diff(x)))
    low, high = curves.min(axis=1), curves.max(axis=1)
    one = np.ones(len(curves))
    lower = np.stack([low, *[low, (x[0] - span) * one, spacing / 10 * one] * n_components], axis=1)
    upper = np.stack([high, *[high, (x[-1] + span) * one, 2 * span * one] * n_components], axis=1)
    upper += 1e-9 * np.maximum(1, np.abs(upper))  # a constant curve has a range too
    fits = []
    for best, y in zip(_descend(guesses, lower, upper, x, curves, noise), curves, strict=True):
        plateaus = [best[0], *best[1::3]]
        components = tuple(
            Component(float(plateaus[c]), float(plateaus[c + 1]), float(best[3 * c + 2]), float(best[3 * c + 3]))
            for c in range(n_components)
        )
        fits.append(Fit(components, -_misfit(best, x, y, np.ones(1)), _misfit_slopes(best, x, np.ones(1))))
    return fits


def _descend(guesses: Array, lower: Array, upper: Array, x: Array, curves: Array, noise: Array) -> Array:
    """The parameters [curve, p] within bounds of least cost Σ √(1 + r²) − 1 at which descents from all guesses end.

    r is the misfit. All descents, of all curves, are made at once, by the method of Levenberg (1944) and Marquardt
    (1963). The Hessian is JᵀWJ with W = (1 + r²)^(−3/2), the second derivative of the loss. A parameter at a bound
    stays there while its slope points out of it.
    """
    (n_curves, n_guesses, n_parameters), eye = guesses.shape, np.eye(guesses.shape[2])
    curve = np.repeat(np.arange(n_curves), n_guesses)  # of a descent
    lower, upper, y, unit = lower[curve], upper[curve], curves[curve], noise[curve, None]
    p = np.clip(guesses.reshape(-1, n_parameters), lower, upper)
    residuals = _misfit(p, x, y, unit)
    cost, damping, at = _soft_l1(residuals), np.full(len(p), _DAMPING), np.arange(len(p))
    for _ in range(_MOST_STEPS):
        here, root, J = p[at], np.sqrt(1 + residuals[at] ** 2), _misfit_slopes(p[at], x, unit[at])
        slope = np.einsum("gnp,gn->gp", J, residuals[at] / root)
        free = ~((here <= lower[at]) & (slope > 0) | (here >= upper[at]) & (slope < 0))
        J *= free[:, None, :]
        H = np.swapaxes(J, 1, 2) @ (J / root[..., None] ** 3)
        H += eye * (damping[at, None] * np.einsum("gpp->gp", H) + _TINY)[:, None, :]
        step = np.linalg.solve(H, (-slope * free)[..., None])[..., 0]
        there = np.clip(here + step, lower[at], upper[at])
        misfit = _misfit(there, x, y[at], unit[at])
        gain = cost[at] - _soft_l1(misfit)
        behind = cost[at] - cost.reshape(n_curves, n_guesses).min(axis=1)[curve[at]]
        better, least = gain > 0, _TOLERANCE * cost[at] + _TINY + _HOPE * behind
        moved = at[better]
        p[moved], residuals[moved] = there[better], misfit[better]
        cost[moved] -= gain[better]
        damping[at] *= np.where(better, 0.2, 5.0)
        at = at[np.where(better, gain > least, damping[at] < 1e6)]
        if not len(at):
            break
    best = cost.reshape(n_curves, n_guesses).argmin(axis=1)
    return p.reshape(guesses.shape)[np.arange(n_curves), best]


def _soft_l1(residuals: Array) -> Array:
    """Σ √(1 + r²) − 1 over the last axis."""
    return (np.sqrt(1 + residuals**2) - 1).sum(axis=-1)


def _misfit(p: Array, x: Array, y: Array, noise: Array) -> Array:
    """Fit minus curve [..., n], in units of the noise; p [..., 1 + 3 components] has b₀, and b, m, s of a component."""
    rises, plateaus = _rises(p, x), p[..., [0, *range(1, p.shape[-1], 3)]]
    heights = np.diff(plateaus, axis=-1)
    return (p[..., :1] + np.einsum("...c,...cn->...n", heights, rises) - y) / noise


def _misfit_slopes(p: Array, x: Array, noise: Array) -> Array:
    """The Jacobian [..., n, 1 + 3 components] of `_misfit`."""
    rises, plateaus = _rises(p, x), p[..., [0, *range(1, p.shape[-1], 3)]]
    heights, midpoint, scale = np.diff(plateaus, axis=-1)[..., None], p[..., 2::3, None], p[..., 3::3, None]
    slope = heights * rises * (1 - rises) / scale
    J = np.empty((*p.shape, len(x)))
    J[..., 0, :] = 1 - rises[..., 0, :]
    J[..., 1::3, :] = rises
    J[..., 1:-3:3, :] -= rises[..., 1:, :]
    J[..., 2::3, :] = -slope
    J[..., 3::3, :] = -slope * (x - midpoint) / scale
    return np.swapaxes(J, -1, -2) / noise[..., None]


def _rises(p: Array, x: Array) -> Array:
    """Every component [..., component, n], from 0 to 1."""
    return expit((x - p[..., 2::3, None]) / p[..., 3::3, None])


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
