"""Emergence: the step at which a curve makes its transition, with an interval, or "no transition".

A curve y(t) over training steps is fitted by a four-parameter logistic

    y(t) = before + (after − before) / (1 + exp(−(x − x₀)/s)),   x = t, or ln(1 + t) on the log scale,

robustly (soft-L1 loss), and compared with a constant and a straight line by the Bayesian information criterion.
Noise between checkpoints is autocorrelated, so the interval comes from a moving-block bootstrap of the residuals.
It is nominal: over 50 synthetic curves of 61 checkpoints, with a rise of 0.9 and noise of 0.03, a "95 %" interval
contained the true step in 90 % (rise over 5 checkpoints, white noise), 84 % (8 checkpoints, AR(0.7) noise), 80 % (25,
white) and 66 % (25, AR(0.7)). It does not cover other seeds, which need other runs (`compare_emergence`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.special import expit

from mechinterp.errors import MechinterpError
from mechinterp.randomness import Stream, generator

Curve = NDArray[np.float64]
Scale = Literal["step", "log_step"]

MIN_EVIDENCE = 10.0
"""ΔBIC by which the logistic must beat the better of constant and line; 10 is "very strong" (Kass & Raftery 1995)."""
MIN_CONTRAST = 4.0
"""|after − before| in units of the residual standard deviation."""
MAX_WIDTH = 0.5
"""10–90 % width as a fraction of the observed range; a wider rise is a drift, no transition."""
MAX_INTERVAL = 0.25
"""Length of the 95 % interval as a fraction of the observed range; a longer one does not locate the transition."""
WIDTH_IN_SCALES = 2 * np.log(9.0)
"""The 10–90 % width of a logistic of scale s is 2 ln 9 · s."""


@dataclass(frozen=True)
class Emergence:
    """The transition of a curve. Steps are training steps; without a transition they are None."""

    transition: bool
    """The verdict."""
    reason: str
    """The reason for the verdict, in a sentence."""
    step: float | None
    """Midpoint of the transition: y is halfway between before and after."""
    low: float | None
    """Lower end of the 95 % interval of `step` (moving-block bootstrap)."""
    high: float | None
    """Upper end of that interval."""
    width: float | None
    """Steps from 10 % to 90 % of the rise."""
    before: float | None
    """The plateau before."""
    after: float | None
    """The plateau after."""
    delta_bic: float
    """BIC of the better of constant and line, minus that of the logistic: positive favours a transition."""
    scale: Scale
    """Whether the logistic is in the step or in its logarithm."""

    def to_dict(self) -> dict[str, object]:
        """The fields as a dictionary, for JSON."""
        return asdict(self)


def locate_emergence(
    curve: pd.Series, *, scale: Scale = "step", n_bootstrap: int = 200, block: int | None = None, seed: int = 0
) -> Emergence:
    """The transition of `curve`, a series of values indexed by training step.

    The verdict is "no transition" unless the logistic beats constant and line by MIN_EVIDENCE, its contrast exceeds
    MIN_CONTRAST residual standard deviations, its rise from 10 to 90 % lies inside the observed steps and takes at
    most MAX_WIDTH of them, and its interval at most MAX_INTERVAL. `block` is the bootstrap's block length (default
    √n, at least 4).

    At least 8 finite points at ascending steps are needed; MechinterpError otherwise.
    """
    steps, values = _finite(curve)
    if len(steps) < 8:
        raise MechinterpError(f"locating a transition needs 8 checkpoints, this curve has {len(steps)}; save more")
    x = _to_scale(steps, scale)
    fit = _fit_logistic(x, values)
    evidence = float(min(_bic_polynomial(x, values, 0), _bic_polynomial(x, values, 1)) - fit.bic)
    if reason := _objection(fit, evidence, x):
        return _no_transition(reason, evidence, scale)
    midpoints = _bootstrap_midpoints(fit, x, values, n_bootstrap, block, seed)
    low, high = np.quantile(np.clip(midpoints, x[0], x[-1]), [0.025, 0.975])
    if high - low > MAX_INTERVAL * (x[-1] - x[0]):
        reason = f"the 95 % interval spans {100 * (high - low) / (x[-1] - x[0]):.0f} % of the observed steps"
        return _no_transition(reason, evidence, scale)
    half = WIDTH_IN_SCALES * fit.slope_scale / 2
    start, step, end = _from_scale([fit.midpoint - half, fit.midpoint, fit.midpoint + half], scale).tolist()
    low, high = _from_scale([low, high], scale).tolist()
    reason = f"a logistic beats constant and line by ΔBIC = {evidence:.0f}"
    return Emergence(True, reason, step, low, high, end - start, fit.before, fit.after, evidence, scale)


def _no_transition(reason: str, evidence: float, scale: Scale) -> Emergence:
    return Emergence(False, reason, None, None, None, None, None, None, evidence, scale)


def compare_emergence(tables: Sequence[pd.DataFrame], measures: Sequence[str], *, reference: str) -> pd.DataFrame:
    """Transitions over several runs: across-seed quantiles of each measure's step, and its lag to `reference`.

    One row per measure: ``n_runs``, ``n_transitions``, quantiles of the step (``step_05``, ``step_50``,
    ``step_95``), the median 10–90 % width (``width_50``), and of the lag step(measure) − step(reference) within a
    run (``lag_50``; ``lag_low`` and ``lag_high``, a 95 % bootstrap interval of the median lag over runs, not a number
    for fewer than 6 runs, which cannot give one). A negative lag: the measure moves first.
    """
    located = [{name: locate_emergence(pd.Series(table[name])) for name in {*measures, reference}} for table in tables]
    rows = {}
    for name in measures:
        steps = [run[name].step for run in located]
        origins = [run[reference].step for run in located]
        lags = [s - o for s, o in zip(steps, origins, strict=True) if s is not None and o is not None]
        present = [step for step in steps if step is not None]
        widths = [width for run in located if (width := run[name].width) is not None]
        row = {"n_runs": len(located), "n_transitions": len(present)}
        row |= {f"step_{q:02d}": np.quantile(present, q / 100) if present else np.nan for q in (5, 50, 95)}
        row["width_50"] = float(np.median(widths)) if widths else np.nan
        row |= dict(zip(("lag_50", "lag_low", "lag_high"), _median_with_interval(np.array(lags)), strict=True))
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("measure")


def emergence_table(table: pd.DataFrame, measures: Sequence[str] | None = None) -> pd.DataFrame:
    """`locate_emergence` of each column of a table of measures: one row per measure."""
    names = list(table.columns) if measures is None else list(measures)
    return pd.DataFrame({name: locate_or_say_why(pd.Series(table[name])).to_dict() for name in names}).T.rename_axis(
        "measure"
    )


def locate_or_say_why(curve: pd.Series) -> Emergence:
    """`locate_emergence` of a curve; one that is too short has no transition, for that reason."""
    try:
        return locate_emergence(curve)
    except MechinterpError as error:
        return _no_transition(str(error), np.nan, "step")


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
    steps, values = _finite(curve)
    above = values >= level
    wrong = np.concatenate([[0], np.cumsum(above)]) + np.concatenate([np.cumsum(~above[::-1])[::-1], [0]])
    first = int(wrong.argmin())  # checkpoints before it count as below; wrong[0]: always above, wrong[-1]: always below
    if wrong[first] >= min(wrong[0], wrong[-1]):
        return None
    share = (level - values[first - 1]) / (values[first] - values[first - 1])
    return float(steps[first - 1] + share * (steps[first] - steps[first - 1]))


def acquisition_step(curve: pd.Series, least: float = 0.3) -> float | None:
    """The step at which an accuracy is acquired for good; None if it is below `least` at the end.

    It is the step of a located transition that leads to `least` or more (`locate_emergence`); without one, as learning
    may be gradual, it is the step at which the accuracy rises through half of its final value (`level_crossing`).
    """
    end = float(curve.dropna().iloc[-1]) if curve.notna().any() else 0.0
    if end < least:
        return None
    emergence = locate_or_say_why(curve)
    if emergence.transition and (emergence.after or 0.0) >= least:
        return emergence.step
    return level_crossing(curve, end / 2)


def first_above(curve: pd.Series, level: float = 0.95) -> float | None:
    """The first step at which `curve`, indexed by training step, is above `level`; None if it never is.

    With IC accuracy and 0.95 it is t_ICL of Nguyen & Reddy 2024, to the spacing of checkpoints. MechinterpError if
    steps do not ascend.
    """
    steps, values = _finite(curve)
    above = np.flatnonzero(values > level)
    return float(steps[above[0]]) if len(above) else None


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


@dataclass(frozen=True)
class _Logistic:
    before: float
    after: float
    midpoint: float
    slope_scale: float
    bic: float
    noise: float

    def __call__(self, x: Curve) -> Curve:
        return self.before + (self.after - self.before) * expit((x - self.midpoint) / self.slope_scale)


def _fit_logistic(x: Curve, y: Curve, start: _Logistic | None = None) -> _Logistic:
    """The best robust fit (least squares, soft-L1) from `start`, or from several guesses along the curve."""
    noise, span, spacing = _noise(y), x[-1] - x[0], np.median(np.diff(x))
    lower = [-np.inf, -np.inf, x[0] - span, spacing / 10]
    upper = [np.inf, np.inf, x[-1] + span, 2 * span]

    if start is None:
        tenth = max(2, len(y) // 10)
        guesses = [
            [np.mean(y[:tenth]), np.mean(y[-tenth:]), at, width * span]
            for at in np.quantile(x, [0.2, 0.35, 0.5, 0.65, 0.8])
            for width in (0.01, 0.05)
        ]
    else:
        guesses = [[start.before, start.after, start.midpoint, start.slope_scale]]
    fits = [
        least_squares(
            _misfit,
            guess,
            _misfit_slopes,  # pyright: ignore[reportArgumentType]  (scipy's stubs know no callable Jacobian)
            bounds=(lower, upper),
            loss="soft_l1",
            max_nfev=60,
            args=(x, y, noise),
        )
        for guess in np.clip(guesses, lower, upper)
    ]
    best = min(fits, key=lambda fit: fit.cost)
    before, after, midpoint, slope_scale = best.x
    residuals = y - (before + (after - before) * expit((x - midpoint) / slope_scale))
    return _Logistic(*map(float, best.x), bic=_bic(residuals, noise, 4), noise=float(np.std(residuals)))


def _misfit(p: Curve, x: Curve, y: Curve, noise: float) -> Curve:
    """Logistic minus curve, in units of the noise; p is before, after, midpoint and scale."""
    return (p[0] + (p[1] - p[0]) * expit((x - p[2]) / p[3]) - y) / noise


def _misfit_slopes(p: Curve, x: Curve, y: Curve, noise: float) -> Curve:
    """The Jacobian of `_misfit`."""
    rise = expit((x - p[2]) / p[3])
    slope = (p[1] - p[0]) * rise * (1 - rise) / p[3]
    return np.stack([1 - rise, rise, -slope, -slope * (x - p[2]) / p[3]], axis=1) / noise


def _bic_polynomial(x: Curve, y: Curve, degree: int) -> float:
    centred = (x - x.mean()) / (x[-1] - x[0])
    residuals = y - np.polynomial.Polynomial.fit(centred, y, degree)(centred)
    return _bic(residuals, _noise(y), degree + 1)


def _bic(residuals: Curve, noise: float, n_parameters: int) -> float:
    """n ln(RSS/n) + k ln n; the variance has a floor, so that a perfect fit to noiseless data stays finite."""
    n = len(residuals)
    variance = max(float(np.mean(residuals**2)), (noise / 10) ** 2)
    return n * np.log(variance) + n_parameters * np.log(n)


def _noise(y: Curve) -> float:
    """Standard deviation of the point-to-point noise, from the median absolute difference.

    At least 1 % of the curve's range, for accuracies that stay at exactly 0 or 1.
    """
    spread = float(np.median(np.abs(np.diff(y)))) / (0.6745 * np.sqrt(2))
    return max(spread, 1e-2 * float(np.ptp(y)), 1e-12)


def _objection(fit: _Logistic, evidence: float, x: Curve) -> str | None:
    """The first criterion of a transition that a fit does not meet, in words; None if it meets all."""
    half = WIDTH_IN_SCALES * fit.slope_scale / 2
    contrast = abs(fit.after - fit.before) / max(fit.noise, 1e-300)
    if evidence < MIN_EVIDENCE:
        return f"a logistic explains the curve no better than a constant or a line (ΔBIC = {evidence:.1f})"
    if contrast < MIN_CONTRAST:
        return f"the rise is only {contrast:.1f} standard deviations of the noise"
    if fit.midpoint - half < x[0] or fit.midpoint + half > x[-1]:
        return "the rise is not over within the observed steps, or had begun before them"
    if 2 * half > MAX_WIDTH * (x[-1] - x[0]):
        return f"the rise takes {200 * half / (x[-1] - x[0]):.0f} % of the observed steps: a drift"
    return None


def _bootstrap_midpoints(fit: _Logistic, x: Curve, y: Curve, n_bootstrap: int, block: int | None, seed: int) -> Curve:
    """Midpoints of refits to the fitted curve plus resampled blocks of residuals.

    A transition as sharp as the spacing of checkpoints may lie anywhere between two of them, so these two are added.
    """
    n = len(x)
    length = min(n, block or max(4, round(n**0.5)))
    rng = generator(seed, Stream.BOOTSTRAP)
    expected = fit(x)
    residuals = (y - expected) * np.sqrt(n / (n - 4))  # four parameters were fitted
    midpoints = []
    for _ in range(n_bootstrap):
        starts = rng.integers(0, n - length + 1, size=-(-n // length))
        resampled = residuals[(starts[:, None] + np.arange(length)).ravel()[:n]]
        midpoints.append(_fit_logistic(x, expected + resampled, start=fit).midpoint)
    after = min(max(int(np.searchsorted(x, fit.midpoint)), 1), n - 1)
    if WIDTH_IN_SCALES * fit.slope_scale < 2 * (x[after] - x[after - 1]):
        midpoints += [x[after - 1], x[after]] * max(1, n_bootstrap // 20)
    return np.array(midpoints)


def _finite(curve: pd.Series) -> tuple[Curve, Curve]:
    """The steps and values of a curve, without values that are not finite; MechinterpError if steps do not ascend."""
    steps, values = np.asarray(curve.index, dtype=float), np.asarray(curve, dtype=float)
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if not (np.diff(steps) > 0).all():
        raise MechinterpError("the curve's steps are not ascending; sort it by step")
    return steps, values


def _to_scale(steps: ArrayLike, scale: Scale) -> Curve:
    if scale not in ("step", "log_step"):
        raise MechinterpError(f"scale {scale!r}: use 'step' or 'log_step'")
    return np.log1p(np.asarray(steps, float)) if scale == "log_step" else np.asarray(steps, float)


def _from_scale(x: ArrayLike, scale: Scale) -> Curve:
    return np.expm1(np.asarray(x, float)) if scale == "log_step" else np.asarray(x, float)


def _median_with_interval(values: Curve, n_bootstrap: int = 2000) -> tuple[float, float, float]:
    """Median over runs and its 95 % bootstrap interval, from 6 runs on: the range of 5 covers a median by 94 % only."""
    if len(values) < 6:
        return float(np.median(values)) if len(values) else np.nan, np.nan, np.nan
    rng = generator(0, Stream.BOOTSTRAP, 1)
    medians = np.median(rng.choice(values, size=(n_bootstrap, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)
