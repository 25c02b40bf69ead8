"""Scaling laws and thresholds come back as they were put in, and intervals hold them as often as they say."""

import numpy as np
import pytest

from analyses.claims.scaling import line, power_law, threshold
from mechinterp.errors import MechinterpError


def test_an_exact_law_is_found_exactly():
    found = power_law({x: [3 * x**1.43] * 5 for x in (8.0, 16.0, 64.0, 100.0)})
    assert (found.prefactor, found.exponent, found.r2) == pytest.approx((3.0, 1.43, 1.0))
    assert (found.low, found.high) == pytest.approx((1.43, 1.43))
    straight = line({x: [7 + 2.5 * x] * 3 for x in (1.0, 2.0, 10.0)})
    assert (straight.slope, straight.low, straight.high, straight.intercept) == pytest.approx((2.5, 2.5, 2.5, 7.0))
    assert straight.r2 == pytest.approx(1.0)


def test_medians_count_so_that_a_run_that_never_gets_there_does_not_spoil_the_fit():
    found = line({x: [x, 2 * x, np.inf] for x in (1.0, 2.0, 3.0)})
    assert found.slope == pytest.approx(2.0)
    assert found.high == np.inf, "where draws have mostly such runs, nothing bounds the slope"
    with pytest.raises(MechinterpError, match="at 2 the median is inf"):
        line({1.0: [1.0], 2.0: [np.inf], 3.0: [1.0]})


def test_intervals_of_exponents_hold_the_truth_about_as_often_as_they_say():
    rng, held = np.random.default_rng(0), 0
    for _ in range(60):
        samples = {x: list(x**0.7 * np.exp(0.3 * rng.standard_normal(10))) for x in (10.0, 30.0, 100.0, 300.0, 1000.0)}
        found = power_law(samples, n_bootstrap=200)
        held += found.low <= 0.7 <= found.high
    assert 50 <= held <= 60


def test_a_threshold_is_where_runs_turn_over():
    rng, K = np.random.default_rng(1), np.geomspace(100, 10_000, 9)
    mean = 0.5 + 0.5 / (1 + np.exp(-6 * np.log(K / 1_234)))
    exact = threshold({k: [m] * 4 for k, m in zip(K, mean, strict=True)})
    assert (exact.at, exact.sharpness) == pytest.approx((1_234, 6.0), rel=1e-4)
    noisy = threshold({k: list(m + 0.05 * rng.standard_normal(6)) for k, m in zip(K, mean, strict=True)})
    assert noisy.low < 1_234 < noisy.high
    assert noisy.high / noisy.low < 1.4


def test_two_groups_of_runs_have_their_threshold_between_the_settings_where_the_share_changes():
    samples = {100.0: [0.5] * 4, 200.0: [0.5, 0.5, 1.0, 1.0], 400.0: [1.0] * 4}
    assert threshold(samples).at == pytest.approx(200, rel=0.02)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ({1.0: [0.5], 2.0: [0.5]}, "there is no threshold"),
        ({1.0: [1.0], 2.0: [0.5]}, "there is no threshold"),
        ({2.0: [0.5], 1.0: [1.0]}, "ascending"),
        ({1.0: [0.5]}, "2 settings or more"),
    ],
)
def test_what_has_no_threshold_says_so(samples, said):
    with pytest.raises(MechinterpError, match=said):
        threshold(samples)
