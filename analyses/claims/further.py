"""The claims of further studies, with the rules by which runs are judged.

Runs are tables of measures by step, by seed. All differ from their papers in something that docs/studies.md names.
"""

from collections.abc import Callable, Mapping
from math import log

import pandas as pd

from analyses.claims.verdicts import Claim, Verdict, all_hold, format_range, in_range, judge, judge_trend
from mechinterp.emergence import half_rise, level_crossing

Runs = Mapping[int, pd.DataFrame]
"""Step × measure, by seed."""
RISE = 0.2
"""The least rise of an attention or accuracy that counts as one."""
STRATEGIES = ("kl_to_uniform", "kl_to_unigram", "kl_to_bigram")


def of_induction_tokens(two: Runs, one: Runs) -> list[Verdict]:
    """The claims of Olsson et al. 2022, of networks of two layers and of one.

    The rules were set after seeds 1 to 3, which are not judged: in one of them accuracy was 1 without prefix matching.
    """
    remark = "two attention layers, random tokens"
    accuracy, matching = (_values(two, _end(name)) for name in ("icl_accuracy", "prefix_matching_2"))
    of_one, matching_of_one = (_values(one, _end(name)) for name in ("icl_accuracy", "prefix_matching_1"))
    ratio = _values(two, lambda run: _half(run["prefix_matching_2"]) / _half(run["icl_accuracy"]))
    heads = matching[matching >= 0.5]
    claim = Claim(
        "1",
        "induction heads develop when in-context learning increases sharply",
        follows="other",
        remark=f"{remark}; seeds that have such heads",
    )
    rule = "prefix matching of layer 2 is halfway at 0.67 to 1.5 times the step at which IC accuracy is"
    together = Verdict.on(claim, rule, None, "0 of 0", "no seed has such a head")
    if len(heads):
        numbers = f"ratio {format_range(ratio[heads.index])}"
        together = judge(claim, rule, in_range(ratio[heads.index], 0.67, 1.5), numbers)
    return [
        together,
        judge(
            Claim("1", "one-layer networks have no induction heads", follows="other", remark=remark),
            "at the end IC accuracy ≥ 0.9 with two layers, ≤ 0.4 with one, whose prefix matching is ≤ 0.3",
            all_hold(in_range(accuracy, low=0.9), in_range(of_one, high=0.4), in_range(matching_of_one, high=0.3)),
            f"IC {format_range(accuracy)}; one layer: {format_range(of_one)}, prefix matching"
            f" {format_range(matching_of_one)}",
        ),
        Verdict.on(
            Claim(
                "",
                "does every network that learns the task have a prefix-matching head?",
                "our question",
                remark=remark,
            ),
            "prefix matching of layer 2 ≥ 0.5 in every seed",
            len(heads) == len(matching),
            f"{len(heads)} of {len(matching)}",
            f"prefix matching {format_range(matching)}",
        ),
    ]


def of_chains(chains: Runs, doubly_stochastic: Runs, one_layer: Runs) -> list[Verdict]:
    """The claims of Edelman et al. 2024, of two layers on two kinds of chain, and of one layer."""
    remark = "a number for each distance, learning rate 0.001"
    nearest = {seed: run[list(STRATEGIES)].idxmin(axis=1) for seed, run in chains.items()}
    plateau = pd.Series({seed: float(each.eq("kl_to_unigram").sum()) for seed, each in nearest.items()})
    ends = {seed: (each.iloc[0], each.iloc[-1]) == (STRATEGIES[0], STRATEGIES[2]) for seed, each in nearest.items()}
    formed, without = (
        _values(runs, lambda run: _half(run["prefix_matching_2"])) for runs in (chains, doubly_stochastic)
    )
    ratio, last = without / formed, {seed: run[list(STRATEGIES)].iloc[-1] for seed, run in one_layer.items()}
    gap = pd.Series({seed: row["kl_to_bigram"] - row["kl_to_unigram"] for seed, row in last.items()})
    return [
        judge(
            Claim("2", "predictions are uniform, then unigram, then bigram", follows="other", remark=remark),
            "the nearest strategy is uniform at first, bigram at the end, unigram at 3 checkpoints or more between",
            all_hold(ends, in_range(plateau, low=3)),
            f"unigram nearest at {format_range(plateau, 0)} checkpoints",
        ),
        judge(
            Claim("4", "the head forms sooner where unigrams tell nothing", follows="other", remark=remark),
            "prefix matching of layer 2 is halfway at less than 0.95 times the step",
            in_range(ratio, high=0.95),
            f"ratio {format_range(ratio)}; halfway at step {format_range(formed, 0)}, {format_range(without, 0)}",
        ),
        judge(
            Claim("", "does one layer get beyond unigrams?", "our question", remark=remark),
            "at the end predictions are nearer to bigram than to unigram",
            in_range(gap, high=0.0),
            f"KL to bigram less KL to unigram {format_range(gap, 3)}",
        ),
    ]


def of_several_heads(
    runs: Runs, strengths: Mapping[int, pd.DataFrame], heads: pd.DataFrame, solved: pd.DataFrame
) -> list[Verdict]:
    """The claims of Singh et al. 2024.

    `strengths` has the induction strength of every head of layer 2, step × head: the mean attention of the target to
    the correct label less that to the other. `heads` has columns seed, induction (number of such heads) and
    without_one, the least accuracy without one head of layer 2 as a share of that with all. `solved` has the steps at
    which the training loss falls through 0.4 ln 2, the threshold of the authors' code: seed × strength of the clamp of
    one head to the token before, and ``all``, of all heads; the last step if it never does.

    The rules on the phase change and on clamps were set after seeds 1 to 3, which are not judged: there attention to
    the correct label alone, and a clamp of all heads, were looked at.
    """
    remark = "Gaussian items, learning rate 0.0001"
    loss = _values(runs, _loss_falls)
    strength = _values(strengths, lambda each: _level(each[each.iloc[-1].idxmax()], 0.1))
    ratio, heads = strength / loss, heads.set_index("seed")
    shares = solved.div(solved[0.0], axis=0)
    return [
        judge(
            Claim("3", "induction heads emerge at the phase change of the loss", follows="other", remark=remark),
            "the strength of the strongest head has made a tenth of its rise at 0.67 to 1.5 times the step at which the"
            " training loss has made a tenth of its fall from ln 2",
            in_range(ratio, 0.67, 1.5),
            f"ratio {format_range(ratio)}; loss at step {format_range(loss, 0)}",
        ),
        judge(
            Claim("3b", "there are several induction heads", follows="other", remark=remark),
            "two or more heads of layer 2 attend to the correct label and matter (`head_roles`)",
            in_range(heads["induction"], low=2),
            f"{format_range(heads['induction'], 0)} heads",
        ),
        judge(
            Claim("4a", "without any one of them the others solve the task", follows="other", remark=remark),
            "without any one head of layer 2 IC accuracy is at least 0.9 of that with all",
            in_range(heads["without_one"], low=0.9),
            f"least share {format_range(heads['without_one'])}",
        ),
        judge_trend(
            Claim("5b", "given a previous-token head, the change comes sooner", follows="other", remark=remark),
            "the step at which the training loss falls through 0.4 ln 2 falls with the strength of the clamp of one"
            " head (0, 0.5, 1), by a tenth or more in all",
            shares[[0.0, 0.5, 1.0]],
            -0.1,
            f"share of the step without: {format_range(shares[[0.0, 0.5, 1.0]])}",
        ),
        judge(
            Claim("", "also if all heads are given it, and learn nothing else?", "our question", remark=remark),
            "the step is less than 0.9 of that without",
            in_range(shares["all"], high=0.9),
            f"share of the step without: {format_range(shares['all'])}",
        ),
    ]


def of_grokking(runs: Mapping[float, Runs]) -> list[Verdict]:
    """The claims of Power et al. 2022 and Nanda et al. 2023; the runs are by weight decay too, among them λ = 1."""
    remark, main = "p = 59, half of the pairs, half the width", runs[1.0]
    learned, general = (
        _values(main, lambda run, n=n, at=at: _passed(run[n], at))
        for n, at in (("train_accuracy", 0.99), ("test_accuracy", 0.9))
    )
    first = _values(main, lambda run: _passed(-run["restricted_loss"], -run["restricted_loss"].iloc[0] / 2))
    later = _values(main, lambda run: _passed(-run["test_loss"], -run["test_loss"].iloc[0] / 2))
    shares = pd.DataFrame(
        {
            decay: _values(each, lambda run: _passed(run["test_accuracy"], 0.9) / run.index[-1]).fillna(1.0)
            for decay, each in runs.items()
        }
    )
    return [
        judge(
            Claim(
                "Power 1", "the training set is memorised long before the rule is found", follows="other", remark=remark
            ),
            "training accuracy passes 0.99 before half the step at which test accuracy passes 0.9",
            in_range(learned / general, high=0.5),
            f"training at step {format_range(learned, 0)}, test at {format_range(general, 0)}",
        ),
        judge(
            Claim("Nanda 7", "the restricted loss falls before the test loss", follows="other", remark=remark),
            "the restricted loss has halved before half the step at which the test loss has",
            in_range(first / later, high=0.5),
            f"restricted loss at step {format_range(first, 0)}, test loss at {format_range(later, 0)}",
        ),
        judge_trend(
            Claim("", "is the rule found sooner, the more weights decay?", "our question", remark=remark),
            "the step at which test accuracy passes 0.9 falls with λ (0.3, 1, 3), by a tenth of the run or more",
            shares,
            -0.1,
            f"share of the run: {format_range(shares)}",
        ),
    ]


def _values(runs: Runs, of: Callable[[pd.DataFrame], float]) -> pd.Series:
    """A number of every run, by seed."""
    return pd.Series({seed: float(of(run)) for seed, run in runs.items()})


def _end(name: str) -> Callable[[pd.DataFrame], float]:
    """The last value of a measure."""
    return lambda run: float(run[name].iloc[-1])


def _half(curve: pd.Series) -> float:
    """The step at which a curve that rises by 0.2 or more is halfway between its plateaus; else not a number."""
    step = half_rise(curve) if curve.iloc[-1] - curve.iloc[0] >= RISE else None
    return float("nan") if step is None else step


def _level(curve: pd.Series, share: float) -> float:
    """The step at which a curve has made a share of its way from its start to its end."""
    return _passed(curve, curve.iloc[0] + share * (curve.iloc[-1] - curve.iloc[0]))


def _loss_falls(run: pd.DataFrame) -> float:
    """The step at which the training loss has made a tenth of its fall from ln 2 to its end."""
    return _passed(-run["train_loss"], -(0.9 * log(2) + 0.1 * run["train_loss"].iloc[-1]))


def _passed(curve: pd.Series, level: float) -> float:
    """The step at which a curve rises through a level; not a number if it does not."""
    step = level_crossing(curve, level)
    return float("nan") if step is None else step
