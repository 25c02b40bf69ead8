"""Crossings: the steps at which a curve passes a level, which need no model of the curve."""

import numpy as np
import pandas as pd

from mechinterp.emergence.noise import Array, noise_scale
from mechinterp.errors import MechinterpError


def level_crossing(curve: pd.Series, level: float = 0.5) -> float | None:
    """The step at which `curve`, indexed by training step, rises through `level`; None if it does not.

    Noise makes a curve cross several times, so that the first crossing comes too early and the last one too late. Of
    all steps c, the crossing is where "below the level before c, at or above it from c on" is true of most
    checkpoints; of several such steps, the first. It is interpolated linearly between the two checkpoints around it.
    A crossing must be true of more checkpoints than "always below" and "always above": a single peak is none, nor is a
    rise that is lost again for more checkpoints than it lasted.

    Unlike the midpoint of `locate_emergence`, it needs no plateaus and no particular shape: Reddy 2023 aligns runs
    where IC accuracy crosses 50 % (figure 4). Values that are not finite are left out; MechinterpError if steps do not
    ascend.
    """
    steps, values = finite(curve)
    if not len(steps):
        return None
    found = float(crossings(steps, values, level))
    return found if np.isfinite(found) else None


def crossings(steps: Array, curves: Array, level: float | Array) -> Array:
    """`level_crossing` of many curves [*curves, step] of one step or more at once, each at its level.

    Where a curve has none, −∞ if it is at or above the level at most steps, else ∞.
    """
    above = curves >= np.asarray(level)[..., None]
    none = np.zeros_like(above[..., :1], dtype=int)
    wrong = np.concatenate([none, np.cumsum(above, axis=-1)], axis=-1)
    wrong = wrong + np.concatenate([np.cumsum(~above[..., ::-1], axis=-1)[..., ::-1], none], axis=-1)
    first = wrong.argmin(axis=-1)  # checkpoints before it count as below; 0: always above, the last: always below
    crosses = wrong.min(axis=-1) < np.minimum(wrong[..., 0], wrong[..., -1])
    after = np.clip(first, 1, len(steps) - 1)
    low, high = (np.take_along_axis(curves, index[..., None], axis=-1)[..., 0] for index in (after - 1, after))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (np.asarray(level) - low) / (high - low)
        found = steps[after - 1] + share * (steps[after] - steps[after - 1])
    return np.where(crosses, found, np.where(wrong[..., 0] <= wrong[..., -1], -np.inf, np.inf))


def half_rise(curve: pd.Series) -> float | None:
    """The step at which a curve crosses the level halfway between its first and its last plateau, up or down.

    Plateaus are medians over the first and last twentieth of the checkpoints, at least three. None if they differ by
    less than four standard deviations of the noise, or if the curve does not cross (`level_crossing`).
    """
    if (levels := plateaus(curve)) is None:
        return None
    before, after = levels
    sign = 1.0 if after > before else -1.0
    return level_crossing(sign * curve, sign * (before + after) / 2)


def plateaus(curve: pd.Series) -> tuple[float, float] | None:
    """The levels of a curve at its ends, of which `half_rise` takes the middle; None if they do not differ enough."""
    _, values = finite(curve)
    few = max(3, len(values) // 20)
    if len(values) < 2 * few:
        return None
    before, after = float(np.median(values[:few])), float(np.median(values[-few:]))
    return None if abs(after - before) < 4 * noise_scale(values) else (before, after)


def first_above(curve: pd.Series, level: float = 0.95) -> float | None:
    """The first step at which `curve`, indexed by training step, is above `level`; None if it never is.

    With IC accuracy and 0.95 it is t_ICL of Nguyen & Reddy 2024, to the spacing of checkpoints. MechinterpError if
    steps do not ascend.
    """
    steps, values = finite(curve)
    above = np.flatnonzero(values > level)
    return float(steps[above[0]]) if len(above) else None


def finite(curve: pd.Series) -> tuple[Array, Array]:
    """The steps and values of a curve, without values that are not finite.

    MechinterpError for anything but a series indexed by step, and if steps do not ascend.
    """
    if not isinstance(curve, pd.Series):
        raise MechinterpError(
            f"a curve is a pandas Series of values indexed by step, not a {type(curve).__name__}: take a column of"
            " mi.measure(run), or pd.Series(values, index=steps)"
        )
    try:
        steps, values = np.asarray(curve.index, dtype=float), np.asarray(curve, dtype=float)
    except (TypeError, ValueError):
        raise MechinterpError("a curve's steps and values are numbers; this one has others") from None
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    if not (np.diff(steps) > 0).all():
        raise MechinterpError("the curve's steps are not ascending; sort it by step")
    return steps, values
