"""Scaling laws and thresholds come back as they were put in, and intervals hold them as often as they say."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu

from analyses.claims.scaling import Mean, power_law, product, ratio_interval, resolution, thresholds
from mechinterp.errors import MechinterpError


def table(values: dict[float, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(values).rename_axis("seed")


def test_an_exact_law_is_found_exactly():
    found = power_law(table({x: [3 * x**1.43] * 5 for x in (8.0, 16.0, 64.0, 100.0)}))
    assert (found.prefactor, found.exponent.value) == pytest.approx((3.0, 1.43))
    assert (found.exponent.low, found.exponent.high) == pytest.approx((1.43, 1.43))
    assert found.local == pytest.approx((1.43, 1.43, 1.43))
    assert found.bend.value == pytest.approx(0.0, abs=1e-9)
    assert found.is_straight


def test_a_bend_is_the_change_of_the_local_exponent():
    """ln y = ln x + (ln x)²/10 has the local exponent 1 + ln x / 5, which rises by ln(100)/5 from 1 to 100."""
    x = np.geomspace(1, 100, 5)
    found = power_law(table({each: [np.exp(np.log(each) + np.log(each) ** 2 / 10)] * 3 for each in x}))
    assert found.bend.value == pytest.approx(np.log(100) / 5)
    assert not found.is_straight


def test_seeds_that_share_what_they_start_from_are_no_more_than_seeds():
    """A seed that is slow everywhere moves the prefactor, not the exponent; slopes of their own move the exponent."""
    rng, x = np.random.default_rng(0), np.array([10.0, 30.0, 100.0, 300.0])
    held = 0
    for _ in range(300):
        slopes, levels = 0.7 + 0.1 * rng.standard_normal(4), np.exp(rng.standard_normal(4))
        values = levels[:, None] * x ** slopes[:, None] * np.exp(0.05 * rng.standard_normal((4, 4)))
        found = power_law(pd.DataFrame(values, columns=x))
        held += found.exponent.low <= 0.7 <= found.exponent.high
    assert 0.91 <= held / 300 <= 0.985


def test_a_seed_that_never_gets_there_is_left_out_and_most_are_an_error():
    law = {x: [3 * x] * 4 for x in (1.0, 2.0, 4.0)}
    found = power_law(table(law | {4.0: [12.0, 12.0, 12.0, np.inf]}))
    assert (found.exponent.value, found.exponent.n) == (pytest.approx(1.0), 3)
    with pytest.raises(MechinterpError, match=r"2 of 4 seeds never got there \(first at 4.0\)"):
        power_law(table(law | {4.0: [12.0, np.inf, 12.0, np.inf]}))


@pytest.mark.parametrize("values", [{1.0: [1.0]}, {2.0: [1.0], 1.0: [2.0]}, {0.0: [1.0], 1.0: [2.0]}])
def test_settings_that_make_no_law(values):
    with pytest.raises(MechinterpError, match="two settings or more, positive and ascending"):
        power_law(table(values))


def test_one_seed_has_no_interval():
    found = Mean.of([0.7])
    assert found.value == 0.7
    assert np.isnan([found.low, found.high]).all()


def test_a_mean_has_students_interval():
    found = Mean.of([1.0, 2.0, 3.0])
    assert (found.value, found.error) == pytest.approx((2.0, 1 / np.sqrt(3)))
    assert found.high - 2.0 == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)


def test_exponents_of_the_same_seeds_are_multiplied_by_seed():
    """Exponents that vary together: their quotient does not vary."""
    x, slopes = np.array([1.0, 2.0, 4.0]), np.array([1.2, 1.4, 1.6, 1.8])
    first = power_law(pd.DataFrame(x ** slopes[:, None], columns=x))
    second = power_law(pd.DataFrame(x ** (2 * slopes[:, None]), columns=x))
    found = product(first, second, powers=(1, -1))
    assert (found.value, found.low, found.high, found.n) == pytest.approx((0.5, 0.5, 0.5, 4))
    other = power_law(pd.DataFrame(x ** slopes[:, None], columns=x, index=[2, 3, 4, 5]))
    assert product(first, other, powers=(1, 1)).n == 2
    apart = power_law(pd.DataFrame(x ** slopes[:, None], columns=x, index=[6, 7, 8, 9]))
    with pytest.raises(MechinterpError, match="no seed in common"):
        product(first, apart, powers=(1, 1))


def test_a_threshold_is_where_a_seed_turns_over():
    K = np.geomspace(100, 10_000, 9)
    mean = 0.5 + 0.5 / (1 + np.exp(-6 * np.log(K / 1_000)))
    found = thresholds(pd.DataFrame([mean, mean * 0 + 0.5, 0.5 + 0.5 * (K > 999)], columns=K))
    assert found[0] == pytest.approx(1_000, rel=0.01)
    assert np.isnan(found[1]), "nowhere"
    assert found[2] == pytest.approx(np.sqrt(K[3] * K[4]), rel=1e-6), "between the settings, in logarithms"


def test_between_far_settings_a_sharp_threshold_is_known_to_their_distance():
    """A sharp threshold anywhere between two settings: uniform in logarithms, with the distance/√12 for its error."""
    K = np.array([100.0, 200.0, 400.0, 800.0])
    sharp = pd.DataFrame([np.where(K > 300, 1.0, 0.5)] * 3, columns=K)
    assert resolution(sharp) == pytest.approx(np.log(2) / np.sqrt(12))
    assert thresholds(sharp) == pytest.approx([np.sqrt(200 * 400)] * 3)
    graded = pd.DataFrame([[0.5, 0.7, 0.8, 1.0]] * 3, columns=K)
    assert resolution(graded) == pytest.approx(0.2 * np.log(2) / np.sqrt(12))


def test_an_error_that_seeds_share_does_not_average_out():
    rng, x = np.random.default_rng(2), np.array([16.0, 32.0, 64.0])
    held = 0
    for _ in range(300):
        shared = 0.2 * rng.standard_normal(3)
        values = x**1.4 * np.exp(shared + 0.02 * rng.standard_normal((5, 3)))
        found = power_law(pd.DataFrame(values, columns=x), [0.2] * 3)
        held += found.exponent.low <= 1.4 <= found.exponent.high
        assert found.exponent.error > 0.1
    assert held / 300 >= 0.95


@pytest.mark.parametrize("sizes", [(8, 8), (6, 9)])
def test_a_ratio_has_those_in_its_interval_that_the_rank_sum_test_does_not_reject(sizes):
    rng = np.random.default_rng(0)
    first, second = 2 * rng.lognormal(size=sizes[0]), rng.lognormal(size=sizes[1])
    _, low, high = ratio_interval(first, second)
    for ratio, rejected in ((0.999 * low, True), (1.001 * low, False), (0.999 * high, False), (1.001 * high, True)):
        p = mannwhitneyu(first / ratio, second, method="exact").pvalue
        assert bool(p < 0.05) is rejected, ratio


def test_a_ratio_of_a_multiple_is_the_factor_and_few_values_have_no_interval():
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    assert ratio_interval(3 * values, values)[0] == pytest.approx(3)
    assert ratio_interval([*values[:4], np.inf], values)[2] == np.inf, "a seed that never got there"
    assert np.isnan(ratio_interval(values[:3], values[:3])[1:]).all(), "three against three bear no 95 %"
