"""Emergence on curves whose truth is known: location, coverage, and no false alarms."""

import jaxtyping
import numpy as np
import pandas as pd
import pytest

import mechinterp as mi
from benchmarks.emergence import ar_noise, coverage_of, verdicts_of
from benchmarks.emergence import logistic as rise
from mechinterp.emergence import (
    Emergence,
    acquisition_step,
    emergence_table,
    first_above,
    half_rise,
    level_crossing,
    locate,
    locate_all,
    locate_emergence,
    median_interval,
    steps_around,
)
from mechinterp.emergence.logistic import WIDTH_IN_SCALES, _misfit, _misfit_slopes, fit_one
from mechinterp.emergence.noise import correlation, covariance, noise_scale
from mechinterp.errors import MechinterpError

STEPS = np.arange(0, 6001, 100)


def noise(rng: np.random.Generator, correlation: float, scale: float = 0.03) -> np.ndarray:
    """Stationary AR(1) noise."""
    return ar_noise(rng, len(STEPS), correlation, scale)


def logistic(midpoint: float, width: float) -> np.ndarray:
    return 0.05 + 0.9 / (1 + np.exp(-(STEPS - midpoint) / (width / WIDTH_IN_SCALES)))


def curve(values: np.ndarray) -> pd.Series:
    return pd.Series(values, index=pd.Index(STEPS, name="step"))


def interval(found: Emergence) -> tuple[float, float, float]:
    """Lower end, midpoint and upper end of a transition."""
    assert found.low is not None
    assert found.step is not None
    assert found.high is not None
    return found.low, found.step, found.high


def test_a_noiseless_logistic_is_recovered():
    found = locate_emergence(curve(logistic(3210, 800)))
    assert found.transition
    assert found.step == pytest.approx(3210, abs=1)
    assert found.width == pytest.approx(800, rel=0.01)
    assert (found.before, found.after) == (pytest.approx(0.05, abs=1e-3), pytest.approx(0.95, abs=1e-3))
    low, step, high = interval(found)
    assert low <= step <= high


def test_a_falling_curve_is_located_too():
    found = locate_emergence(curve(1 - logistic(2500, 500)))
    assert found.transition
    assert found.step == pytest.approx(2500, abs=1)
    assert found.before is not None
    assert found.after is not None
    assert found.before > found.after


def test_the_log_scale():
    steps = np.unique(np.geomspace(1, 100_000, 60).astype(int))
    x = np.log1p(steps)
    values = 1 / (1 + np.exp(-(x - np.log1p(900)) / 0.3))
    found = locate_emergence(pd.Series(values, index=steps), scale="log_step")
    assert found.step == pytest.approx(900, rel=0.01)
    with pytest.raises(MechinterpError, match="step -1 has no logarithm"):
        locate_emergence(pd.Series(values, index=steps - 2), scale="log_step")


def test_a_jump_between_two_checkpoints_has_an_interval_that_spans_them():
    found = locate_emergence(curve((STEPS > 3050).astype(float)))
    assert found.transition
    low, _, high = interval(found)
    assert low <= 3000
    assert high >= 3100


@pytest.mark.parametrize(
    ("scale", "n", "width", "correlation"),
    [("step", 61, 3, 0.0), ("step", 61, 15, 0.9), ("log_step", 40, 8, 0.7), ("step", 150, 30, 0.95)],
)
def test_coverage_of_the_95_percent_interval(scale, n, width, correlation):
    """A small part of `benchmarks.emergence`; 25 curves of a true coverage of 0.95 give less than 0.8 once in 170."""
    row = coverage_of(scale, n, width, correlation, 25)
    assert float(str(row["located"])) >= 0.9
    assert float(str(row["coverage"])) >= 0.8


def test_an_interval_that_ignores_correlation_is_seen(monkeypatch):
    monkeypatch.setattr(locate, "correlation", lambda jacobian, residuals: (0.0, float(np.var(residuals))))
    assert float(str(coverage_of("step", 61, 15, 0.9, 25)["coverage"])) < 0.7


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("one step", "one_step"),
        ("one slow step", "one_step"),
        ("two equal steps", "several_steps"),
        ("a small step, a large one", "several_steps"),
        ("a large step, a small one", "several_steps"),
        ("a step and a late jump", "several_steps"),
        ("a transient", "transient"),
        ("a fall at the end", "transient"),
        ("a ramp that ends in a jump", "ramp_then_jump"),
        ("a line", "none"),
        ("a saturating rise", "none"),
        ("AR(0.97) noise", "none"),
        ("a random walk", "none"),
    ],
)
def test_a_curve_is_named_by_its_shape(name, shape):
    row = verdicts_of(name, 61, 20)
    assert float(str(row[shape])) >= 0.7, row
    if shape not in ("one_step", "ramp_then_jump"):
        assert float(str(row["located"])) <= 0.1


def test_the_changes_of_a_curve_of_two_steps_are_given():
    values = 0.05 + 0.45 * rise(STEPS, 1500, 300) + 0.45 * rise(STEPS, 4500, 300)
    found = locate_emergence(curve(values + noise(np.random.default_rng(1), 0.5, 0.01)))
    assert (found.transition, found.step) == (False, None)
    assert found.change_points == (pytest.approx(1500, abs=40), pytest.approx(4500, abs=40))
    assert "at steps 1," in found.reason


def test_the_half_rise_is_where_the_curve_is_halfway_whatever_the_fit():
    ramp = 0.2 + 0.4 * np.clip((STEPS - 1000) / 2400, 0, 1) + 0.4 * rise(STEPS, 3450, 150)
    found = locate_emergence(curve(ramp))
    assert found.shape == "ramp_then_jump"
    assert found.half_rise == pytest.approx(float(np.interp(0.6, ramp, STEPS)), abs=30)
    assert found.change_points[1] == pytest.approx(3450, abs=60)
    falling = locate_emergence(curve(1 - logistic(2500, 500)))
    assert falling.half_rise == pytest.approx(2500, abs=5)
    assert half_rise(curve(0.5 + noise(np.random.default_rng(0), 0.0))) is None


def test_plateaus_are_within_the_range_of_the_curve():
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = np.clip(0.3 + 0.7 * np.clip((STEPS - 1000) / 3000, 0, 1) ** 2 + noise(rng, 0.5), 0, 1)
        (fit,) = fit_one(STEPS.astype(float), values[None], np.array([0.03]))
        (component,) = fit.components
        assert values.min() - 1e-6 <= component.before <= values.max() + 1e-6
        assert values.min() - 1e-6 <= component.after <= values.max() + 1e-6


def test_slopes_of_two_logistics_are_those_of_their_values():
    x, p = np.linspace(0, 10, 40), np.array([0.1, 0.6, 3.0, 0.5, 0.9, 7.0, 0.8])
    slopes = _misfit_slopes(p, x, np.ones(1))
    for i, unit in enumerate(np.eye(7) * 1e-6):
        numeric = (
            _misfit(p + unit, x, np.zeros(40), np.ones(1)) - _misfit(p - unit, x, np.zeros(40), np.ones(1))
        ) / 2e-6
        np.testing.assert_allclose(slopes[:, i], numeric, atol=1e-7)


def test_the_scale_of_noise_is_its_standard_deviation():
    """The median absolute difference of two normal numbers is 0.6745 √2 σ."""
    values = np.random.default_rng(0).normal(scale=0.3, size=100_000)
    assert noise_scale(values) == pytest.approx(0.3, rel=0.01)
    assert noise_scale(np.concatenate([np.zeros(50), np.ones(50)])) == pytest.approx(0.01)


def test_the_correlation_and_variance_of_a_linear_model_are_found():
    rng, n = np.random.default_rng(0), 4000
    J = np.stack([np.ones(n), np.linspace(-1, 1, n)], axis=1)
    e = ar_noise(rng, n, 0.8, 2.0)
    residuals = e - J @ np.linalg.lstsq(J, e, rcond=None)[0]
    rho, variance = correlation(J, residuals)
    assert rho == pytest.approx(0.8, abs=0.051)
    assert variance == pytest.approx(4 * (1 - 0.8**2), rel=0.1)
    spread = covariance(np.ones((n, 1)), 0.8, 4 * (1 - 0.8**2))[0, 0]
    assert spread == pytest.approx(4 / n * 1.8 / 0.2, rel=0.01), "variance of the mean of an AR(1) process"


@pytest.mark.parametrize("values", [[0.1, 0.9], np.zeros(20), pd.DataFrame({"a": np.zeros(20)}), None])
def test_anything_but_a_series_is_refused(values, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(MechinterpError, match="a curve is a pandas Series of values indexed by step, not a"):
        locate_emergence(values)


def test_the_interval_of_a_median_is_that_of_order_statistics():
    assert median_interval([3.0, 1.0, 2.0])[0] == 2
    assert np.isnan(median_interval([3.0, 1.0, 2.0])[1])
    assert median_interval(range(6)) == (2.5, 0, 5)  # covers in 1 − 2/2⁶ = 0.97
    assert median_interval(range(8)) == (3.5, 0, 7)  # the second values would cover in 0.93
    assert median_interval(range(9)) == (4, 1, 7)  # 1 − 2·10/2⁹ = 0.96
    rng = np.random.default_rng(0)
    covered = [low <= 0 <= high for _, low, high in (median_interval(rng.standard_normal(12)) for _ in range(500))]
    assert 0.94 <= np.mean(covered) <= 0.985


@pytest.mark.parametrize("correlation", [0.0, pytest.param(0.7, marks=pytest.mark.slow)])
def test_pure_noise_and_a_slow_line_are_no_transition(correlation):
    rng = np.random.default_rng(3)
    for _ in range(30):
        assert not locate_emergence(curve(0.5 + noise(rng, correlation))).transition
        assert not locate_emergence(curve(STEPS / 6000 + noise(rng, correlation))).transition


@pytest.mark.parametrize("constant", [0.0, 0.03125])
def test_a_constant_is_no_transition(constant):
    assert not locate_emergence(curve(np.full(len(STEPS), constant))).transition


def test_a_rise_that_is_not_seen_whole_is_no_transition():
    assert not locate_emergence(curve(1 - np.exp(-STEPS / 800))).transition
    assert not locate_emergence(curve(logistic(5950, 400))).transition


def test_a_drift_over_most_of_the_run_is_no_transition():
    found = locate_emergence(curve(logistic(3000, 4500)))
    assert not found.transition
    assert "drift" in found.reason


def test_too_few_points_and_unsorted_steps():
    with pytest.raises(MechinterpError, match="needs 8 checkpoints, this curve has 5"):
        locate_emergence(curve(STEPS / 1.0)[:5])
    with pytest.raises(MechinterpError, match="not ascending"):
        locate_emergence(curve(STEPS / 1.0)[::-1])


def test_lags_between_measures_over_runs():
    rng, tables = np.random.default_rng(0), []
    for midpoint in (2800, 2900, 3000, 3100, 3200, 3300):
        early, late = logistic(midpoint - 400, 300), logistic(midpoint, 300)
        tables.append(
            pd.DataFrame(
                {"early": early + noise(rng, 0), "late": late + noise(rng, 0), "never": noise(rng, 0)}, index=STEPS
            )
        )
    result = mi.compare_emergence(tables, ["early", "late", "never"], reference="late")
    assert result["n_transitions"].tolist() == [6, 6, 0]
    assert result.loc["late", "step_50"] == pytest.approx(3050, abs=40)
    assert result.loc["early", "lag_50"] == pytest.approx(-400, abs=40)
    assert result.loc["early", "lag_low"] <= -400 <= result.loc["early", "lag_high"] + 30
    assert result.loc["early", "lag_high"] < 0
    assert np.isnan(result.loc["never", "lag_50"])
    few = mi.compare_emergence(tables[:3], ["early"], reference="late")
    assert np.isnan(few.loc["early", "lag_low"]), "three runs cannot give a 95 % interval of a median"


def test_a_crossing_is_interpolated_between_its_two_checkpoints():
    assert level_crossing(pd.Series([0.0, 0.2, 0.6, 1.0], index=[0, 10, 30, 40])) == pytest.approx(10 + 20 * 0.3 / 0.4)
    assert level_crossing(curve(STEPS / 6000), level=0.25) == pytest.approx(1500)
    assert level_crossing(curve(logistic(3210, 800))) == pytest.approx(3210, abs=1)
    first_above = pd.Series([0.1, 0.5, 0.5], index=[0, 100, 200])
    assert level_crossing(first_above) == 100


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ("....####", 3.5),
        (".#..####", 3.5),  # an early peak
        ("..#.####", 1.5),  # two places are as good: the first
        ("....##.#", 3.5),  # a late dip
        (".#......########.#", 7.5),  # both
        ("...##.....", None),  # lost again
        ("...#####..", 2.5),  # lost again, but lasted longer
        ("......#.", None),  # a single peak
        ("........", None),
        ("########", None),
        ("#.######", None),  # a single dip
        (".......#", 6.5),
        (".", None),
        ("", None),
    ],
)
def test_a_crossing_separates_below_from_above(above, expected):
    found = level_crossing(pd.Series([0.75 if mark == "#" else 0.25 for mark in above], dtype=float))
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_crossing_in_noise_is_neither_the_first_nor_the_last():
    rng, truth = np.random.default_rng(5), 3000
    errors, first, last = [], [], []
    for _ in range(40):
        noisy = curve(logistic(truth, 1500) + noise(rng, 0.0, scale=0.2))
        crossing = level_crossing(noisy)
        assert crossing is not None
        errors.append(crossing - truth)
        first.append(STEPS[(noisy >= 0.5).to_numpy().argmax()] - truth)
        last.append(STEPS[np.flatnonzero(noisy < 0.5)[-1]] - truth)
    assert np.mean(np.abs(errors)) < 200
    assert np.mean(first) < -500
    assert np.mean(last) > 500


def test_a_crossing_leaves_out_what_is_no_number_and_refuses_unsorted_steps():
    gap = pd.Series([0.0, np.nan, 1.0, 1.0], index=[0, 50, 100, 150])
    assert level_crossing(gap) == 50
    with pytest.raises(MechinterpError, match="not ascending"):
        level_crossing(gap[::-1])


def test_what_is_acquired_for_good():
    steps = pd.Index(range(0, 6_001, 100))
    logistic = pd.Series(1 / (1 + np.exp(-(np.asarray(steps) - 3_000) / 200)), steps)
    assert acquisition_step(logistic) == pytest.approx(3_000, abs=20)
    assert acquisition_step(0.25 * logistic) is None
    assert acquisition_step(0.25 * logistic, least=0.2) == pytest.approx(3_000, abs=20)
    gradual = pd.Series(np.linspace(0, 0.6, len(steps)), steps)  # no transition is located in it
    assert acquisition_step(gradual) == pytest.approx(3_000)
    lost = logistic * (1 - 0.9 * logistic.shift(20, fill_value=0.0))
    assert acquisition_step(lost) is None
    assert acquisition_step(pd.Series([np.nan, np.nan], [0, 1])) is None


def test_steps_around_a_transition():
    found = locate_emergence(curve(logistic(3210, 800)))
    saved = STEPS.tolist()
    assert steps_around(found, saved) == [2400, 4100, 6000]
    assert steps_around(found, saved, during=True) == [2400, 3200, 4100, 6000]
    row = emergence_table(pd.DataFrame({"y": logistic(3210, 800)}, index=STEPS)).loc["y"]
    assert steps_around(row, saved) == [2400, 4100, 6000]
    assert steps_around(found, [3000, 3400]) == [3000, 3400], "nothing is saved that far away"
    never = locate_emergence(curve(np.zeros(len(STEPS))))
    assert steps_around(never, saved, during=True) == [3000, 6000]
    assert steps_around(never, [7]) == [7]


def test_when_a_level_is_reached():
    rise = pd.Series([0.5, 0.96, 0.94, 0.995, 0.91, 0.9, 1.0], index=range(0, 70, 10))
    assert first_above(rise) == 10
    assert first_above(rise, 0.99) == 30
    assert first_above(rise, 1.0) is None
    assert first_above(pd.Series([], dtype=float)) is None


def test_values_far_off_a_rise_are_named():
    """Two checkpoints after a loss spike: AR(1) noise explains them as it explains a step, so nothing is located."""
    steps = np.arange(0, 6001, 100)
    y = 0.05 + 0.9 / (1 + np.exp(-(steps - 3000) / 200)) + np.random.default_rng(0).normal(0, 0.01, len(steps))
    assert "far off" not in mi.locate_emergence(pd.Series(y, index=steps)).reason
    y[49:51] = 0.3
    found = mi.locate_emergence(pd.Series(y, index=steps))
    assert not found.transition
    assert found.reason.endswith("values far off the best one: at step 4,900, 5,000")


def test_a_plateau_of_one_checkpoint_is_not_observed():
    steps = np.arange(0, 6001, 100)
    for curve, transition in (((steps > 50) * 1.0, False), ((steps > 150) * 1.0, True), ((steps > 5950) * 1.0, False)):
        assert mi.locate_emergence(pd.Series(curve, index=steps)).transition is transition


def test_curves_that_are_fitted_at_once_have_the_verdicts_that_they_have_alone():
    """Also of other steps, and with one that is too short among them."""
    steps, later = np.arange(0, 600, 10), np.arange(0, 900, 20)
    noise = np.random.default_rng(0).normal(0, 0.01, 60)
    curves = {
        "rise": pd.Series(1 / (1 + np.exp(-(steps - 250) / 15)) + noise, index=steps),
        "later rise": pd.Series(1 / (1 + np.exp(-(later - 500) / 30)) + noise[: len(later)], index=later),
        "noise": pd.Series(noise, index=steps),
        "short": pd.Series([0.0, 1.0], index=[0, 1]),
    }
    located = locate_all(curves)
    assert [*located] == [*curves]
    assert not located["short"].transition
    for name in ("rise", "later rise", "noise"):
        alone = locate_emergence(curves[name])
        assert located[name].transition == alone.transition == (name != "noise")
        assert located[name].delta_bic == pytest.approx(alone.delta_bic, abs=1e-6)
        assert alone.step is None or located[name].step == pytest.approx(alone.step, rel=1e-9)
