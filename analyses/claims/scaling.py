"""How something scales, from runs of several seeds at each setting: power laws, lines and thresholds.

What is fitted are medians over seeds (thresholds: all runs). Intervals are 95 % bootstrap intervals: the seeds of every
setting are drawn anew, with replacement, and all is fitted again. They tell how sure the seeds leave one of the number,
not how well the law holds; for that there is R² and the picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.special import expit

from mechinterp.errors import MechinterpError
from mechinterp.randomness import Stream, generator

Samples = Mapping[float, Sequence[float]]
"""By the setting, what each seed came to; infinite where it never happened."""

SHARPNESS = (0.5, 50.0)
"""Of a threshold: between these."""


@dataclass(frozen=True)
class PowerLaw:
    """y = prefactor · x^exponent."""

    prefactor: float
    exponent: float
    low: float
    """Of the exponent's 95 % interval."""
    high: float
    r2: float
    """Share of the variance of ln y that it explains, of the medians."""


@dataclass(frozen=True)
class Line:
    """y = intercept + slope · x."""

    slope: float
    low: float
    """Of the slope's 95 % interval."""
    high: float
    intercept: float
    r2: float
    """Share of the variance of y that it explains, of the medians."""


@dataclass(frozen=True)
class Threshold:
    """Where values turn from `bottom` to `top`: y = bottom + (top − bottom) σ(sharpness · ln(x / at))."""

    at: float
    low: float
    """Of the 95 % interval of `at`."""
    high: float
    sharpness: float


def power_law(samples: Samples, *, n_bootstrap: int = 1000, seed: int = 0) -> PowerLaw:
    """The power law through the medians over seeds, by least squares in logarithms.

    At least three settings, all positive, with finite positive medians; MechinterpError otherwise.
    """
    x, medians = np.log(_settings(samples, 3)), np.log(_finite_medians(samples))
    (exponent,), (intercept,) = _fit_lines(x, medians[None])
    with np.errstate(invalid="ignore"):
        slopes, _ = _fit_lines(x, np.log(np.median(_drawn(samples, n_bootstrap, seed), axis=-1)))
    low, high = _interval(slopes)
    r2 = _explained(medians, float(intercept) + float(exponent) * x)
    return PowerLaw(float(np.exp(intercept)), float(exponent), low, high, r2)


def line(samples: Samples, *, n_bootstrap: int = 1000, seed: int = 0) -> Line:
    """The straight line through the medians over seeds; at least three settings, MechinterpError otherwise."""
    x, medians = _settings(samples, 3), _finite_medians(samples)
    (slope,), (intercept,) = _fit_lines(x, medians[None])
    with np.errstate(invalid="ignore"):
        slopes, _ = _fit_lines(x, np.median(_drawn(samples, n_bootstrap, seed), axis=-1))
    low, high = _interval(slopes)
    return Line(float(slope), low, high, float(intercept), _explained(medians, float(intercept) + float(slope) * x))


def threshold(samples: Samples, bottom: float = 0.5, top: float = 1.0) -> Threshold:
    """Where values turn from `bottom` to `top`, by least squares over all runs.

    There must be settings whose median is below the middle and later ones above it; MechinterpError otherwise.
    """
    x, medians, middle = _settings(samples, 2), _finite_medians(samples), (bottom + top) / 2
    if not (medians[0] < middle < medians[-1]):
        raise MechinterpError(
            f"there is no threshold: medians go from {medians[0]:.2f} at {x[0]:g} to {medians[-1]:.2f} at {x[-1]:g},"
            f" and must pass {middle:g}; widen the range of settings"
        )
    means = np.array([[float(np.mean(own)) for own in samples.values()]])
    (guess,), (sharp,) = _fit_thresholds(samples, means, bottom, top)
    root = np.array([len(own) ** 0.5 for own in samples.values()])
    found = least_squares(
        lambda p: root * (bottom + (top - bottom) * expit(p[1] * (np.log(x) - p[0])) - means[0]),
        [np.log(guess), sharp],
        bounds=([np.log(x[0]), SHARPNESS[0]], [np.log(x[-1]), SHARPNESS[1]]),
    )
    low, high = _interval(threshold_draws(samples, bottom, top))
    return Threshold(float(np.exp(found.x[0])), low, high, float(found.x[1]))


def threshold_draws(
    samples: Samples, bottom: float = 0.5, top: float = 1.0, *, n_bootstrap: int = 200, seed: int = 0
) -> Float[np.ndarray, "draws"]:
    """Where the threshold is when the seeds of every setting are drawn anew: for intervals of what follows from it."""
    _settings(samples, 2)
    return _fit_thresholds(samples, _drawn(samples, n_bootstrap, seed).mean(axis=-1), bottom, top)[0]


def _fit_thresholds(
    samples: Samples, means: Float[np.ndarray, "draws settings"], bottom: float, top: float
) -> tuple[Float[np.ndarray, "draws"], Float[np.ndarray, "draws"]]:
    """The best of a grid of thresholds and sharpnesses, for every draw.

    The sum over runs of (y − model)² is, but for a constant, that over settings of n (⟨y⟩ − model)².
    """
    x, n = np.log(np.array(list(samples))), np.array([len(own) for own in samples.values()])
    at, sharp = np.meshgrid(np.linspace(x[0], x[-1], 300), np.geomspace(*SHARPNESS, 40), indexing="ij")
    at, sharp = at.ravel(), sharp.ravel()
    model = bottom + (top - bottom) * expit(sharp[:, None] * (x - at[:, None]))
    best = ((model**2) @ n - 2 * (means * n) @ model.T).argmin(axis=-1)
    return np.exp(at[best]), sharp[best]


def _settings(samples: Samples, least: int) -> Float[np.ndarray, "settings"]:
    x = np.array(list(samples), dtype=float)
    if len(x) < least or (x <= 0).any() or (np.diff(x) <= 0).any() or not all(len(own) for own in samples.values()):
        raise MechinterpError(f"a fit takes {least} settings or more, positive and ascending, each with runs")
    return x


def _finite_medians(samples: Samples) -> Float[np.ndarray, "settings"]:
    found = np.array([np.median(np.asarray(own, dtype=float)) for own in samples.values()])
    for setting, value in zip(samples, found, strict=True):
        if not np.isfinite(value):
            raise MechinterpError(f"at {setting:g} the median is {value}: most runs never got there; train them longer")
    return found


def _drawn(samples: Samples, n_bootstrap: int, seed: int) -> Float[np.ndarray, "draws settings runs"]:
    """The seeds of every setting drawn anew; each as often as makes settings with other numbers of runs as long."""
    rng, width = generator(seed, Stream.BOOTSTRAP), np.lcm.reduce([len(own) for own in samples.values()])
    drawn = [rng.choice(np.asarray(own, dtype=float), (n_bootstrap, len(own))) for own in samples.values()]
    return np.stack([np.repeat(values, width // values.shape[1], axis=1) for values in drawn], axis=1)


def _fit_lines(
    x: Float[np.ndarray, "settings"], y: Float[np.ndarray, "draws settings"]
) -> tuple[Float[np.ndarray, "draws"], Float[np.ndarray, "draws"]]:
    """Slope and intercept by least squares."""
    centred = x - x.mean()
    slope = (y * centred).sum(axis=-1) / (centred**2).sum()
    return slope, y.mean(axis=-1) - slope * x.mean()


def _explained(y: Float[np.ndarray, "settings"], fitted: Float[np.ndarray, "settings"]) -> float:
    total = ((y - y.mean()) ** 2).sum()
    return float(1 - ((y - fitted) ** 2).sum() / total) if total else 1.0


def _interval(found: Float[np.ndarray, "draws"]) -> tuple[float, float]:
    """95 % of the draws; those without an answer count as infinite on both sides."""
    lost = ~np.isfinite(found)
    low, high = (
        np.quantile(np.where(lost, side, found), q, method="nearest") for side, q in ((-np.inf, 0.025), (np.inf, 0.975))
    )
    return float(low), float(high)
