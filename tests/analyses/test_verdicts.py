"""Verdicts count every seed, and say no more than the seeds do."""

import numpy as np
import pandas as pd
import pytest

from analyses.claims.verdicts import (
    Claim,
    all_hold,
    by_seed,
    format_range,
    in_range,
    is_monotone,
    judge,
    judge_interval,
    judge_test,
    judge_trend,
    largest_gap_test,
    verdict_table,
    with_settings,
)
from mechinterp.errors import MechinterpError
from mechinterp.studies.study import Study

PAPER, ELSEWHERE = Claim("2a", "a claim"), Claim("2a", "a claim", conventions="ours")
QUESTION = Claim("2a", "is it so?", "our question")


@pytest.mark.parametrize(
    ("claim", "holds", "verdict", "seeds"),
    [
        (PAPER, {0: True, 1: True}, "reproduced", "2 of 2"),
        (PAPER, {0: True, 1: False}, "undecided", "1 of 2"),
        (PAPER, {0: False, 1: False}, "not reproduced", "0 of 2"),
        (ELSEWHERE, {0: True}, "reproduced", "1 of 1"),
        (ELSEWHERE, {0: False, 1: False}, "another convention", "0 of 2"),
        (QUESTION, {0: True}, "yes", "1 of 1"),
        (QUESTION, {0: False}, "no", "0 of 1"),
        (QUESTION, {0: True, 1: False}, "undecided", "1 of 2"),
    ],
)
def test_a_verdict_counts_the_seeds_and_tells_whose_claim_and_conventions(claim, holds, verdict, seeds):
    found = judge(claim, "a rule", holds, "numbers")
    assert (found.verdict, found.runs) == (verdict, seeds)
    assert found.false_positive == 0.5 ** len(holds)
    assert found.power == pytest.approx(0.95 ** len(holds))
    assert verdict_table([found]).to_dict("records")[0]["verdict"] == verdict


def test_no_seed_is_no_verdict():
    with pytest.raises(MechinterpError, match="no seed"):
        judge(PAPER, "a rule", {}, "")


def test_a_trend_by_chance_is_that_of_values_in_random_order():
    """Of 3! orders of three values far apart, one rises; one of four that are alike but for the last: 3! of 4!."""
    rising = pd.DataFrame([[0.1, 0.5, 0.9]], index=[0])
    assert judge_trend(PAPER, "", rising, 0.5, "").false_positive == pytest.approx(1 / 6)
    both = pd.DataFrame([[0.1, 0.5, 0.9], [0.1, 0.5, 0.9]], index=[0, 1])
    assert judge_trend(PAPER, "", both, 0.5, "").false_positive == pytest.approx(1 / 36)
    last = pd.DataFrame([[0.1, 0.1, 0.1, 0.9]], index=[0])
    found = judge_trend(PAPER, "", last, 0.5, "")
    assert (found.verdict, found.false_positive) == ("reproduced", pytest.approx(0.25))


def test_an_interval_lies_within_bounds_outside_or_neither():
    def verdict(low: float, high: float) -> str:
        return judge_interval(PAPER, "", (low, high), (0.6, 0.8), "", "").verdict

    assert [verdict(0.65, 0.75), verdict(0.85, 0.9), verdict(0.1, 0.5)] == [
        "reproduced",
        "not reproduced",
        "not reproduced",
    ]
    assert [verdict(0.5, 0.7), verdict(0.7, 0.9), verdict(0.1, 2.0), verdict(np.nan, np.nan)] == ["undecided"] * 4


@pytest.mark.parametrize("error", [0.02, 0.04, 0.08])
def test_false_positives_and_power_of_an_interval_are_as_simulated(error):
    rng, half = np.random.default_rng(0), 1.959964 * error

    def share(truth: float) -> float:
        drawn = truth + error * rng.standard_normal(20_000)
        return float(((drawn - half >= 0.6) & (drawn + half <= 0.8)).mean())

    found = judge_interval(PAPER, "", (0.7 - half, 0.7 + half), (0.6, 0.8), "", "")
    assert found.power == pytest.approx(share(0.7), abs=0.012)
    assert share(0.6) <= found.false_positive + 0.003
    assert share(0.8) <= found.false_positive + 0.003


def test_a_test_that_is_not_significant_says_nothing():
    words = [judge_test(PAPER, "", p, against, "", "", power=0.5).verdict for p, against in ((0.01, 0.9), (0.2, 0.8))]
    assert words == ["reproduced", "undecided"]
    assert judge_test(PAPER, "", 0.99, 0.01, "", "", power=0.5).verdict == "not reproduced"


def test_a_trend_is_large_enough_and_nowhere_against_itself():
    values = pd.DataFrame(
        [[0.1, 0.3, 0.9], [0.1, 0.05, 0.9], [0.1, 0.04, 0.9], [0.5, 0.6, 0.7], [0.9, 0.3, 0.1]],
        index=pd.Index(range(5), name="seed"),
        columns=[1, 2, 4],
    )
    assert is_monotone(values, 0.5) == {0: True, 1: True, 2: False, 3: False, 4: False}
    assert is_monotone(values, -0.5) == {0: False, 1: False, 2: False, 3: False, 4: True}
    assert is_monotone(values, 0.2) == {0: True, 1: True, 2: False, 3: True, 4: False}


def test_bounds_include_themselves_and_what_is_no_number_meets_none():
    values = pd.Series([0.1, 0.95, np.nan], index=[3, 4, 5])
    assert in_range(values, low=0.95) == {3: False, 4: True, 5: False}
    assert in_range(values, high=0.1) == {3: True, 4: False, 5: False}
    assert all_hold({3: True, 4: True}, {3: True}) == {3: True, 4: False}


def test_settings_stand_beside_runs_and_seeds_in_rows(tiny_config):
    study = Study.of("s", tiny_config, {"b": {"task.burstiness": 3}, "a": {"task.n_classes": 16}}, [0, 2])
    rows = [(v, s, x) for v, s, x in zip(["b", "b", "a", "a"], [0, 2, 0, 2], [0.1, 0.2, 0.3, 0.4], strict=True)]
    table = with_settings(study, pd.DataFrame(rows, columns=["variant", "seed", "x"]), {"K": "task.n_classes"})
    assert table["K"].tolist() == [8, 8, 16, 16]
    found = by_seed(table, "x", "K")
    assert found.to_numpy().tolist() == [[0.1, 0.3], [0.2, 0.4]]
    assert format_range(found) == "8: 0.10–0.20, 16: 0.30–0.40"
    assert format_range(pd.Series([0.5, 0.501])) == "0.50"


@pytest.mark.parametrize(
    ("values", "bimodal", "lower", "upper"),
    [
        ([0.1, 0.12, 0.9, 0.95, 0.91], True, 2, 3),
        ([0.1, 0.3, 0.5, 0.7, 0.9], False, 1, 4),
        ([0.5, 0.52, 0.6, 0.61], False, 2, 2),  # a gap, but all are alike
        ([0.1, 0.9, 0.91, 0.92, 0.93, 0.95], False, 1, 5),  # one that is odd is no group
        ([0.1, 0.2, 0.6, 0.9], False, 2, 2),  # four of any kind have a gap
    ],
)
def test_groups_of_seeds(values, bimodal, lower, upper):
    found = largest_gap_test(values)
    assert (found.bimodal, found.lower + found.upper) == (bimodal, lower + upper)
    if bimodal:
        assert (found.lower, found.upper) == (lower, upper)
        assert found.range == pytest.approx(0.85)


def test_the_largest_gap_of_evenly_spread_runs_is_as_likely_as_simulated():
    """The broken stick, against 20,000 of eight runs each, of which six lie inside."""
    assert largest_gap_test([0.0, 0.1, 0.6, 1.0]).p == pytest.approx(0.75)  # three gaps, the largest 1/2: 3 (1 − 1/2)²
    inside = np.sort(np.random.default_rng(0).random((20_000, 6)), axis=1)
    largest = np.diff(np.pad(inside, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1))), axis=1).max(axis=1)
    for gap in (0.35, 0.45, 0.6):
        found = largest_gap_test([0.0, *np.linspace(gap, 1.0, 7)])
        assert found.p == pytest.approx((largest >= gap).mean(), abs=0.01)


def test_three_runs_are_no_groups():
    with pytest.raises(MechinterpError, match="at least four runs"):
        largest_gap_test([0.4, 0.5, 0.9])


def test_a_table_of_which_a_run_is_missing_or_that_mixes_settings_is_not_judged():
    table = pd.DataFrame({"seed": [0, 0, 1, 1], "K": [128, 256] * 2, "IC": [0.1, 0.9, 0.2, np.nan]})
    with pytest.raises(MechinterpError, match="no IC of seed 1, K = 256"):
        by_seed(table, "IC", "K")
    with pytest.raises(MechinterpError, match="no IC of seed 1, K = 256"):
        by_seed(table.iloc[:3], "IC", "K")
    with pytest.raises(MechinterpError, match="several runs of one K"):
        by_seed(pd.concat([table, table]), "IC", "K")
    with pytest.raises(MechinterpError, match="unknown column 'ICL'; did you mean 'IC'"):
        by_seed(table, "ICL", "K")
