"""Verdicts count every seed, and say no more than the seeds do."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from analyses.claims.scaling import Mean
from analyses.claims.verdicts import (
    Claim,
    Verdict,
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
    require_numbers,
    sign_test,
    verdict_table,
    with_settings,
)
from mechinterp.errors import MechinterpError
from mechinterp.studies.study import Study

PAPER, ELSEWHERE = Claim("2a", "a claim"), Claim("2a", "a claim", follows="other")
QUESTION = Claim("2a", "is it so?", "our question")
ALL, NONE, SOME = {0: True, 1: True, 2: True}, {0: False, 1: False, 2: False}, {0: True, 1: False, 2: True}


@pytest.mark.parametrize(
    ("claim", "holds", "verdict", "seeds"),
    [
        (PAPER, ALL, "reproduced", "3 of 3"),
        (PAPER, SOME, "undecided", "2 of 3"),
        (PAPER, NONE, "not reproduced", "0 of 3"),
        (PAPER, {0: True, 1: True}, "undecided", "2 of 2"),
        (PAPER, {0: False}, "undecided", "0 of 1"),
        (Claim("2a", "a claim", follows="authors"), NONE, "not reproduced", "0 of 3"),
        (ELSEWHERE, ALL, "reproduced", "3 of 3"),
        (ELSEWHERE, NONE, "another convention", "0 of 3"),
        (QUESTION, ALL, "yes", "3 of 3"),
        (QUESTION, NONE, "no", "0 of 3"),
        (QUESTION, SOME, "undecided", "2 of 3"),
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


def test_a_trend_by_chance_is_that_of_settings_in_random_order():
    """Of 3! orders of three values far apart one rises, the same for all seeds; with three alike, 3! of 4!."""
    rising = pd.DataFrame([[0.1, 0.5, 0.9]] * 3)
    assert judge_trend(PAPER, "", rising, 0.5, "").false_positive == pytest.approx(1 / 6)
    last = pd.DataFrame([[0.1, 0.1, 0.1, 0.9]] * 3)
    found = judge_trend(PAPER, "", last, 0.5, "")
    assert (found.verdict, found.false_positive) == ("reproduced", pytest.approx(0.25))


def test_seeds_that_share_a_wrong_order_show_a_trend_as_often_as_is_said():
    verdicts = [
        judge_trend(PAPER, "", pd.DataFrame(np.tile(order, (3, 1))), 0.5, "")
        for order in permutations([0.1, 0.3, 0.6, 0.9])
    ]
    assert [verdict.verdict for verdict in verdicts].count("reproduced") == 1
    assert verdicts[0].false_positive == pytest.approx(1 / 24)


def mean(low: float, high: float, n: int = 5) -> Mean:
    return Mean((low + high) / 2, low, high, (high - low) / 2 / student.ppf(0.975, n - 1), n)


def test_an_interval_lies_within_bounds_outside_or_neither():
    def verdict(low: float, high: float, bend: tuple[float, float] = (-0.1, 0.1)) -> str:
        means = [(mean(low, high), 0.6, 0.8), (mean(*bend), -0.2, 0.2)]
        return judge_interval(PAPER, "", means, "", "").verdict

    assert [verdict(0.65, 0.75), verdict(0.85, 0.9), verdict(0.1, 0.5)] == [
        "reproduced",
        "not reproduced",
        "not reproduced",
    ]
    assert [verdict(0.5, 0.7), verdict(0.7, 0.9), verdict(0.1, 2.0), verdict(np.nan, np.nan)] == ["undecided"] * 4
    assert verdict(0.65, 0.75, (-0.04, 0.39)) == "undecided", "a bend that may be too large"
    assert verdict(0.65, 0.75, (0.3, 0.5)) == "not reproduced"


@pytest.mark.parametrize(("error", "n"), [(0.02, 3), (0.02, 6), (0.04, 6)])
def test_false_positives_and_power_of_an_interval_are_as_simulated(error, n):
    rng = np.random.default_rng(1)

    def share(truth: float) -> float:
        seeds = truth + error * n**0.5 * rng.standard_normal((4_000, n))
        found = [Mean.of(each) for each in seeds]
        return float(np.mean([each.low >= 0.6 and each.high <= 0.8 for each in found]))

    claimed = judge_interval(PAPER, "", [(Mean(0.7, 0.0, 1.0, error, n), 0.6, 0.8)], "", "")
    assert claimed.power == pytest.approx(share(0.7), abs=0.03)
    assert share(0.6) <= claimed.false_positive + 0.008
    assert share(0.8) <= claimed.false_positive + 0.008


def test_seeds_are_compared_in_pairs():
    more, fewer = pd.Series([3, 3, 2, 3, 3, 3]), pd.Series([1, 1, 1, 2, 1, 2])
    assert sign_test(more, fewer) == pytest.approx((1 / 64, 1.0))
    assert sign_test(fewer, more) == pytest.approx((1.0, 1 / 64))
    assert sign_test(more, more) == (1.0, 1.0)
    assert sign_test(pd.Series([2, 1, 1]), pd.Series([1, 1, 2]))[0] == pytest.approx(0.75), "a tie drops out"


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


def test_what_a_coin_would_say_is_not_said():
    asked = Claim("1", "something", "paper", "paper")
    for chance, word in ((0.5, "undecided"), (1 / 3, "reproduced")):
        assert Verdict.on(asked, "rule", True, "3 of 3", "", false_positive=chance, power=1.0).verdict == word
    assert Verdict.on(asked, "rule", False, "0 of 3", "", false_positive=0.5, power=1.0).verdict == "not reproduced"


def test_two_seeds_decide_no_interval_and_none_is_no_verdict():
    asked = Claim("1", "something", "paper", "paper")
    two = judge_interval(asked, "rule", [(Mean.of([1.0, 1.0001]), 0.5, 1.5)], "2 runs", "")
    assert two.verdict == "undecided"
    three = judge_interval(asked, "rule", [(Mean.of([1.0, 1.0001, 1.0002]), 0.5, 1.5)], "3 runs", "")
    assert three.verdict == "reproduced"
    with pytest.raises(MechinterpError, match="no interval to judge it by"):
        judge_interval(asked, "rule", [], "0 runs", "")


def test_a_run_without_a_number_is_named():
    table = pd.DataFrame({"seed": [0, 1], "variant": ["a", "b"], "final_icl_accuracy": [0.5, np.nan]})
    with pytest.raises(
        MechinterpError, match="no final_icl_accuracy of seed 1, variant b: judge when all runs are done"
    ):
        require_numbers(table, "final_icl_accuracy")
