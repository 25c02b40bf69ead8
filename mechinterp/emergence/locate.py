"""The transition of a curve: the step at which it is made, with an interval, or the shape of the curve instead.

A curve y(t) over training steps is fitted, robustly, by a logistic in x = t, or in ln(1 + t) on the log scale, and by a
sum of two. They are compared with a constant and a straight line by the Bayesian information criterion, with the
likelihood of AR(1) noise, as the noise of neighbouring checkpoints is alike. The interval of the midpoint is that of
least squares under AR(1) noise (`emergence.noise`), with Student's t on as many degrees of freedom as there are
independent residuals.

Over rises of 2 to 30 checkpoints, noise from white to AR(0.95), 20 to 300 checkpoints and both scales, intervals that
are reported contain the true midpoint of a logistic in 92 % or more, and in 87 to 92 % in a few cells, most of them
with rises over a third of the run (`python -m benchmarks.emergence`).
Where the curve is no logistic, the fitted midpoint is not where the curve is halfway. That step is given beside it
(`half_rise`), and the shape names a curve that two logistics fit better. Other seeds need other runs
(`compare_emergence`).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from mechinterp.display import facts_table
from mechinterp.emergence.crossing import finite, half_rise
from mechinterp.emergence.logistic import Component, Fit, fit_one, fit_two
from mechinterp.emergence.noise import (
    Array,
    bic,
    bic_polynomial,
    correlation,
    covariance,
    degrees_of_freedom,
    noise_scale,
    robust_factor,
)
from mechinterp.errors import MechinterpError, NamedEnum
from mechinterp.training.spikes import SPIKES

Scale = Literal["step", "log_step"]

MIN_EVIDENCE = 10.0
"""ΔBIC by which a model must beat a simpler one; 10 is "very strong" (Kass & Raftery 1995)."""
MIN_CONTRAST = 4.0
"""|after − before| in units of the residual standard deviation."""
FAR_OFF = 10.0
"""Residual, in units of the noise between neighbouring checkpoints, of a value that is named as far off."""
MIN_SHARE = 0.2
"""The least part of the larger of two changes with which the smaller one counts."""
MAX_WIDTH = 0.5
"""10–90 % width as a fraction of the observed range; a wider rise is a drift, no transition."""
MAX_INTERVAL = 0.25
"""Length of the 95 % interval as a fraction of the observed range; a longer one does not locate the transition."""
MIN_RAMP = 2.0
"""Times that a ramp is wider than the jump in which it ends."""


class Shape(NamedEnum):
    """The shape of a curve."""

    one_step = "one logistic rise or fall"
    several_steps = "two rises, or two falls, one after the other"
    transient = "a rise and a fall, or a fall and a rise, one after the other"
    ramp_then_jump = "a slow rise that ends in a fast one"
    none = "no change that any of these describes better than a constant or a line"


@dataclass(frozen=True, kw_only=True)
class Emergence:
    """The transition of a curve. Steps are training steps; without a transition they are None."""

    transition: bool
    """Whether the curve makes one transition: its shape is one_step or ramp_then_jump, and it is located."""
    shape: str = Shape.none.name
    """A name of `Shape`."""
    reason: str
    """The reason for the verdict, in a sentence."""
    step: float | None = None
    """Midpoint of the fitted logistic."""
    low: float | None = None
    """Lower end of the 95 % interval of `step`."""
    high: float | None = None
    """Upper end of that interval."""
    half_rise: float | None = None
    """The step at which the curve itself is halfway between its first and its last values (`crossing.half_rise`)."""
    width: float | None = None
    """Steps from 10 % to 90 % of the rise."""
    before: float | None = None
    """The plateau before."""
    after: float | None = None
    """The plateau after."""
    change_points: tuple[float, ...] = ()
    """Midpoints of the two changes of a curve that makes two."""
    delta_bic: float = float("nan")
    """BIC of the better of constant and line, minus that of the best logistic model: positive favours a transition."""
    correlation: float = float("nan")
    """ρ of the residuals of neighbouring checkpoints."""
    scale: Scale = "step"
    """Whether the logistic is in the step or in its logarithm."""

    def to_dict(self) -> dict[str, object]:
        """The fields as a dictionary, for JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        facts: dict[str, str] = {"verdict": self.reason, "shape": f"{self.shape}: {Shape[self.shape].value}"}
        if self.change_points:
            facts["changes at"] = ", ".join(f"step {point:,.0f}" for point in self.change_points)
        if self.half_rise is not None:
            facts["curve halfway"] = f"step {self.half_rise:,.0f}"
        if not self.transition:
            return facts_table("No transition", facts)
        interval = f"{self.low:,.0f} to {self.high:,.0f}"
        facts |= {"95 % interval": interval, "10–90 % width": f"{self.width:,.0f} steps"}
        return facts_table(
            f"Transition at step {self.step:,.0f}", facts | {"from, to": f"{self.before:.3f}, {self.after:.3f}"}
        )


def locate_emergence(curve: pd.Series, *, scale: Scale = "step") -> Emergence:
    """The transition of `curve`, a series of values indexed by training step.

    A transition is one rise or fall that a logistic explains better than constant and line by MIN_EVIDENCE, with a
    contrast of MIN_CONTRAST residual standard deviations, whose part from 10 to 90 % lies inside the observed steps and
    takes at most MAX_WIDTH of them, and whose interval takes at most MAX_INTERVAL. A curve that two logistics explain
    better by MIN_EVIDENCE, with a second change of at least MIN_SHARE of the first, makes several steps, is a
    transient, or a ramp that ends in a jump; only of the last the transition is located.

    At least 8 finite points at ascending steps are needed; MechinterpError otherwise.
    """
    steps, values = _enough(curve)
    x, noise = _to_scale(steps, scale), np.array([noise_scale(values)])
    (one,), (two,) = fit_one(x, values[None], noise), fit_two(x, values[None], noise)
    return _judge(steps, values, one, two, scale)


def locate_all(curves: Mapping[str, pd.Series]) -> dict[str, Emergence]:
    """`locate_emergence` of several curves, fitted at once; one that is too short has no transition for that reason."""
    located, by_steps = dict[str, Emergence](), defaultdict[bytes, dict[str, tuple[Array, Array]]](dict)
    for name, curve in curves.items():
        try:
            points = _enough(curve)
            by_steps[points[0].tobytes()][name] = points
        except MechinterpError as error:
            located[name] = Emergence(transition=False, reason=str(error))
    for alike in by_steps.values():
        steps, values = next(iter(alike.values()))[0], np.stack([values for _, values in alike.values()])
        noise = np.array([noise_scale(y) for y in values])
        fits = zip(alike, values, fit_one(steps, values, noise), fit_two(steps, values, noise), strict=True)
        located |= {name: _judge(steps, y, one, two, "step") for name, y, one, two in fits}
    return {name: located[name] for name in curves}


def _enough(curve: pd.Series) -> tuple[Array, Array]:
    """Steps and finite values of a curve; MechinterpError if they are too few."""
    steps, values = finite(curve)
    if len(steps) < 8:
        raise MechinterpError(f"locating a transition needs 8 checkpoints, this curve has {len(steps)}; save more")
    return steps, values


def _judge(steps: Array, values: Array, one: Fit, two: Fit, scale: Scale) -> Emergence:
    """The verdict on a curve, from its fits by one logistic and by two."""
    x, noise = _to_scale(steps, scale), noise_scale(values)
    rho, variance = correlation(one.jacobian, one.residuals)
    flat = min(bic_polynomial(x, values, degree, noise) for degree in (0, 1))
    of_one, of_two = (bic(fit.residuals, fit.n_parameters, noise) for fit in (one, two))
    second = _second_change(two, x) if of_one - of_two >= MIN_EVIDENCE else None
    evidence = float(flat - (of_one if second is None else of_two))
    shape = Shape.one_step if second is None else second
    points: tuple[float, ...] = ()
    if second is not None:
        points = tuple(_from_scale(sorted(change.midpoint for change in two.components), scale).tolist())
    low, high = _interval(one, x, rho, variance * robust_factor(one.residuals, noise))
    objection = _objection(one, evidence, x, high - low)
    if objection and (odd := steps[np.abs(one.residuals) > FAR_OFF * noise]).size:
        shown = ", ".join(f"{step:,.0f}" for step in odd[:3]) + (", …" if len(odd) > 3 else "")
        objection += f"; values far off the best one: at step {shown}"
    if evidence < MIN_EVIDENCE:
        shape, points = Shape.none, ()
    elif shape in (Shape.several_steps, Shape.transient):
        objection = f"{shape.value}, at steps {' and '.join(f'{point:,.0f}' for point in points)}"
    elif objection and shape is Shape.one_step:
        shape = Shape.none

    verdict = partial(
        Emergence,
        shape=shape.name,
        half_rise=half_rise(pd.Series(values, index=steps)),
        change_points=points,
        delta_bic=evidence,
        correlation=rho,
        scale=scale,
    )
    if objection:
        return verdict(transition=False, reason=objection)
    (rise,) = one.components
    start, step, end = _from_scale([rise.start, rise.midpoint, rise.end], scale).tolist()
    first, last = _from_scale([low, high], scale).tolist()
    reason = f"a logistic beats constant and line by ΔBIC = {evidence:.0f}"
    if shape is Shape.ramp_then_jump:
        reason = f"{shape.value}, at step {max(points):,.0f}: the midpoint is that of both together"
    return verdict(
        transition=True,
        reason=reason,
        step=step,
        low=first,
        high=last,
        width=end - start,
        before=rise.before,
        after=rise.after,
    )


def describe(name: str, emergence: Emergence | pd.Series) -> str:
    """The transition of a measure in a sentence, from `locate_emergence` or a row of `emergence_table`."""
    if not emergence.transition:
        return f"{name}: no transition: {emergence.reason}"
    numbers = [f"95 % interval {emergence.low:.0f} to {emergence.high:.0f}"]
    if emergence.half_rise is not None and np.isfinite(emergence.half_rise):
        numbers.append(f"halfway at {emergence.half_rise:.0f}")
    numbers.append(f"10–90 % width {emergence.width:.0f} steps")
    numbers.append(f"from {emergence.before:.3f} to {emergence.after:.3f}")
    more = f"; {emergence.reason}" if emergence.shape == Shape.ramp_then_jump.name else ""
    return f"{name}: transition at step {emergence.step:.0f} ({', '.join(numbers)}){more}"


def emergence_table(table: pd.DataFrame, measures: Sequence[str] | None = None) -> pd.DataFrame:
    """`locate_emergence` of every column of a table of measures: one row per measure."""
    if not isinstance(table, pd.DataFrame):
        raise MechinterpError(f"table is a {type(table).__name__}; expected a DataFrame, as mi.measure(run)")
    names = [name for name in table if name not in SPIKES] if measures is None else list(measures)
    located = locate_all({name: pd.Series(table[name]) for name in names})
    rows = {name: emergence.to_dict() for name, emergence in located.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("measure")


def locate_or_say_why(curve: pd.Series) -> Emergence:
    """`locate_emergence` of a curve; one that is too short has no transition, for that reason."""
    return locate_all({"": curve})[""]


def steps_around(emergence: Emergence | pd.Series, steps: Sequence[int], *, during: bool = False) -> list[int]:
    """The saved steps around a transition: the last before it, the first after it, and the last of all; ascending.

    `emergence` is a transition or its row in `emergence_table`, `steps` the saved steps, ascending. Before and after
    are a 10–90 % width away from the midpoint, where a logistic has made 1 % and 99 % of its rise; if no step that far
    away is saved, the first or the last step is taken. With `during`, also the step nearest to the midpoint. Without a
    transition: the step in the middle, and the last.
    """
    if not emergence.transition:
        return sorted({steps[len(steps) // 2], steps[-1]})
    midpoint, width = emergence.step, emergence.width
    assert midpoint is not None
    assert width is not None
    before = max((step for step in steps if step <= midpoint - width), default=steps[0])
    after = min((step for step in steps if step >= midpoint + width), default=steps[-1])
    midway = {min(steps, key=lambda step: abs(step - midpoint))} if during else set()
    return sorted({before, after, steps[-1]} | midway)


def _second_change(two: Fit, x: Array) -> Shape | None:
    """The shape of a curve that two logistics fit; None if the smaller change does not count or was not observed."""
    first, second = sorted(two.components, key=lambda component: component.midpoint)
    small, large = sorted(abs(component.height) for component in (first, second))
    seen = all(x[0] <= component.midpoint <= x[-1] for component in (first, second))
    if small < MIN_SHARE * large or not seen:
        return None
    if first.height * second.height < 0:
        return Shape.transient
    if first.width >= MIN_RAMP * second.width and second.start - first.end < first.width / 2:
        return Shape.ramp_then_jump
    narrow = all(component.width <= MAX_WIDTH * (x[-1] - x[0]) for component in (first, second))
    from_plateau = first.start >= x[1]  # else the plateau before is not observed
    between = np.count_nonzero((first.end < x) & (x < second.start)) >= 2
    return Shape.several_steps if narrow and from_plateau and between else None


def _interval(fit: Fit, x: Array, rho: float, variance: float) -> tuple[float, float]:
    """The 95 % interval of the midpoint of one logistic, within the observed steps.

    A transition as sharp as the spacing of checkpoints may lie anywhere between two of them, so these two are in it.
    """
    (rise,), n = fit.components, len(x)
    error = float(np.sqrt(covariance(fit.jacobian, rho, variance)[2, 2]))
    half = float(stdtrit(degrees_of_freedom(n, fit.n_parameters, rho), 0.975)) * error  # quantile of Student's t
    low, high = rise.midpoint - half, rise.midpoint + half
    after = min(max(int(np.searchsorted(x, rise.midpoint)), 1), n - 1)
    if rise.width < 3 * (x[after] - x[after - 1]):
        low, high = min(low, x[after - 1]), max(high, x[after])
    return max(low, float(x[0])), min(high, float(x[-1]))


def _objection(fit: Fit, evidence: float, x: Array, interval: float) -> str | None:
    """The first criterion of a transition that a fit does not meet, in words; None if it meets all."""
    rise: Component = fit.components[0]
    change = "rise" if rise.height >= 0 else "fall"
    contrast, span = abs(rise.height) / max(float(np.std(fit.residuals)), 1e-300), x[-1] - x[0]
    if evidence < MIN_EVIDENCE:
        return f"a logistic explains the curve no better than a constant or a line (ΔBIC = {evidence:.1f})"
    if contrast < MIN_CONTRAST:
        return f"the {change} is only {contrast:.1f} standard deviations of the noise"
    before, after = np.count_nonzero(x < rise.midpoint), np.count_nonzero(x > rise.midpoint)
    if rise.start < x[0] or rise.end > x[-1] or min(before, after) < 2:
        return f"the {change} is not over within the observed steps, or had begun before them"
    if rise.width > MAX_WIDTH * span:
        return f"the {change} takes {100 * rise.width / span:.0f} % of the observed steps: a drift"
    if interval > MAX_INTERVAL * span:
        return f"the 95 % interval spans {100 * interval / span:.0f} % of the observed steps"
    return None


def _to_scale(steps: ArrayLike, scale: Scale) -> Array:
    if scale not in ("step", "log_step"):
        raise MechinterpError(f"scale {scale!r}: use 'step' or 'log_step'")
    x = np.asarray(steps, float)
    if scale == "log_step" and (x < 0).any():
        raise MechinterpError(f"step {x.min():g} has no logarithm of step + 1: steps begin at 0, or use scale 'step'")
    return np.log1p(x) if scale == "log_step" else x


def _from_scale(x: ArrayLike, scale: Scale) -> Array:
    return np.expm1(np.asarray(x, float)) if scale == "log_step" else np.asarray(x, float)
