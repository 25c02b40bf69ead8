"""How something scales, from runs of several seeds at each setting: power laws, lines and thresholds.

What is fitted are medians over seeds (thresholds: all runs). Intervals are 95 % bootstrap intervals: the seeds of every
setting are drawn anew, with replacement, and all is fitted again. They tell how sure the seeds leave one of the number,
not how well the law holds; for that there is R² and the picture.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.special import expit

from mechinterp.errors import MechinterpError
from mechinterp.randomness import Stream, generator

Samples = Mapping[float, Sequence[float]]
"""By the setting, what each seed came to; infinite where it never happened."""


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
    x = _settings(samples, 3)

    def fit(drawn: Sequence[Sequence[float]]) -> tuple[float, float, float]:
        return _fit_line(np.log(x), np.log(_medians(drawn, samples)))

    intercept, exponent, r2 = fit(list(samples.values()))
    low, high = _interval(samples, lambda drawn: fit(drawn)[1], n_bootstrap, seed)
    return PowerLaw(float(np.exp(intercept)), exponent, low, high, r2)


def line(samples: Samples, *, n_bootstrap: int = 1000, seed: int = 0) -> Line:
    """The straight line through the medians over seeds; at least three settings, MechinterpError otherwise."""
    x = _settings(samples, 3)

    def fit(drawn: Sequence[Sequence[float]]) -> tuple[float, float, float]:
        return _fit_line(x, _medians(drawn, samples))

    intercept, slope, r2 = fit(list(samples.values()))
    low, high = _interval(samples, lambda drawn: fit(drawn)[1], n_bootstrap, seed)
    return Line(slope, low, high, intercept, r2)


def threshold(
    samples: Samples, bottom: float = 0.5, top: float = 1.0, *, n_bootstrap: int = 200, seed: int = 0
) -> Threshold:
    """Where values turn from `bottom` to `top`, by least squares over all runs; the sharpness is at most 50.

    There must be settings whose median is below the middle and later ones above it; MechinterpError otherwise.
    """
    x = _settings(samples, 2)
    medians, middle = _medians(list(samples.values()), samples), (bottom + top) / 2
    if not (medians[0] < middle < medians[-1]):
        raise MechinterpError(
            f"there is no threshold: medians go from {medians[0]:.2f} at {x[0]:g} to {medians[-1]:.2f} at {x[-1]:g},"
            f" and must pass {middle:g}; widen the range of settings"
        )
    start = float(np.log(x)[np.flatnonzero(medians > middle)[0]])

    def fit(drawn: Sequence[Sequence[float]]) -> tuple[float, float]:
        at = np.concatenate([np.full(len(own), np.log(place)) for place, own in zip(x, drawn, strict=True)])
        y = np.concatenate([np.asarray(own, dtype=float) for own in drawn])

        def residuals(p: Float[np.ndarray, "2"]) -> Float[np.ndarray, "runs"]:
            return bottom + (top - bottom) * expit(p[1] * (at - p[0])) - y

        lowest, highest = np.log(x[0]), np.log(x[-1])
        found = [
            least_squares(residuals, [np.clip(start, lowest, highest), sharp], bounds=([lowest, 0.1], [highest, 50.0]))
            for sharp in (2.0, 10.0)
        ]
        best = min(found, key=lambda each: each.cost).x
        return float(np.exp(best[0])), float(best[1])

    at, sharpness = fit(list(samples.values()))
    low, high = _interval(samples, lambda drawn: fit(drawn)[0], n_bootstrap, seed)
    return Threshold(at, low, high, sharpness)


def _settings(samples: Samples, least: int) -> Float[np.ndarray, "settings"]:
    x = np.array(list(samples), dtype=float)
    if len(x) < least or (x <= 0).any() or (np.diff(x) <= 0).any() or not all(len(own) for own in samples.values()):
        raise MechinterpError(f"a fit takes {least} settings or more, positive and ascending, each with runs")
    return x


def _medians(drawn: Sequence[Sequence[float]], samples: Samples) -> Float[np.ndarray, "settings"]:
    found = np.array([np.median(np.asarray(own, dtype=float)) for own in drawn])
    for setting, value in zip(samples, found, strict=True):
        if not np.isfinite(value):
            raise MechinterpError(f"at {setting:g} the median is {value}: most runs never got there; train them longer")
    return found


def _fit_line(x: Float[np.ndarray, "settings"], y: Float[np.ndarray, "settings"]) -> tuple[float, float, float]:
    slope, intercept = np.polyfit(x, y, 1)
    left, total = ((y - intercept - slope * x) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    return float(intercept), float(slope), float(1 - left / total) if total else 1.0


def _interval(
    samples: Samples, of: Callable[[list[Sequence[float]]], float], n_bootstrap: int, seed: int
) -> tuple[float, float]:
    """95 % of what is found when the seeds of every setting are drawn anew; draws without a finite answer count as
    infinite on both sides."""
    rng, found = generator(seed, Stream.BOOTSTRAP), []
    for _ in range(n_bootstrap):
        drawn = [list(rng.choice(np.asarray(own, dtype=float), len(own))) for own in samples.values()]
        try:
            found.append(of(drawn))
        except MechinterpError:
            found.append(np.nan)
    finite = np.array(found)
    lost = np.isnan(finite)
    low, high = (
        np.quantile(np.where(lost, side, finite), q, method="nearest")
        for side, q in ((-np.inf, 0.025), (np.inf, 0.975))
    )
    return float(low), float(high)
