"""Strategies on Markov chains: their predictions, and divergences with analytic values."""

import math

import pytest
import torch

import mechinterp as mi
from mechinterp.config import MarkovChainsConfig
from mechinterp.errors import MechinterpError
from mechinterp.measures import MEASURES
from mechinterp.measures.table import columns_for
from mechinterp.tasks import MarkovChainsTask
from mechinterp.theory.markov_chains import bigram, bigram_counts, uniform, unigram

TOKENS = torch.tensor([[0, 1, 0, 1, 0, 2]])
NAMES = ["kl_to_uniform", "kl_to_unigram", "kl_to_bigram"]
TASK = MarkovChainsTask(MarkovChainsConfig(n_pos=30, concentration=0.5), seed=0)


def divergences(logits: torch.Tensor, batch=None) -> list[float]:
    batch = TASK.sample("icl", len(logits)) if batch is None else batch
    seen = mi.Observation(batch, logits[:, -1], {"unembed.hook_out": logits}, task=TASK)
    return [float(MEASURES[name].compute(seen)) for name in NAMES]


def test_strategies_count_tokens_and_pairs():
    """The paper's add-one counts, by hand."""
    assert uniform(TOKENS, 3)[0].tolist() == [[1 / 3] * 3] * 6
    torch.testing.assert_close(
        unigram(TOKENS, 3)[0, [0, 3]], torch.tensor([[2, 1, 1], [3, 3, 1]]).double() / torch.tensor([[4], [7]])
    )
    after = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 2, 1], [2, 1, 1], [1, 3, 1], [1, 1, 1]]).double()
    torch.testing.assert_close(bigram(TOKENS, 3)[0], after / after.sum(dim=1, keepdim=True))
    assert bigram_counts(TOKENS, 3)[0, 4].tolist() == [0, 2, 0]
    assert bigram_counts(torch.tensor([[1, 1, 1]]), 2)[0].tolist() == [[0, 0], [0, 1], [0, 2]]  # it follows itself
    torch.testing.assert_close(bigram(TOKENS, 3, 0.5)[0, 4], torch.tensor([0.5, 2.5, 0.5]).double() / 3.5)


def test_the_bigram_strategy_has_the_least_loss_on_chains_and_the_unigram_one_on_independent_tokens():
    for evaluation, best in (("icl", bigram), ("unigram", unigram)):
        batch = TASK.sample(evaluation, 2000)
        assert batch.answers is not None
        losses = {}
        for strategy in (unigram, bigram):
            for alpha in (0.1, 0.5, 2.0):
                p = strategy(batch.inputs, 3, alpha).gather(2, batch.answers[..., None])
                losses[strategy, alpha] = -float(p.log().mean())
        assert min(losses, key=lambda name: losses[name]) == (best, 0.5)


@pytest.mark.parametrize("which", range(3))
def test_a_network_that_predicts_as_a_strategy_is_at_no_distance_from_it_alone(which):
    tokens = TASK.sample("icl", 50).inputs
    strategies = [uniform(tokens, 3), unigram(tokens, 3, 0.5), bigram(tokens, 3, 0.5)]
    values = divergences(strategies[which].log() + 7)
    assert values[which] == pytest.approx(0, abs=1e-12)
    assert all(value > 0.05 for i, value in enumerate(values) if i != which)


def test_divergences_are_from_the_strategy_to_the_network():
    """KL(uniform ‖ p) of p = (½, ¼, ¼) is ln(⅓) + (ln 2 + 2 ln 4)/3."""
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(20, 30, 3)
    assert divergences(logits)[0] == pytest.approx(-math.log(3) + (math.log(2) + 2 * math.log(4)) / 3, rel=1e-6)


def test_they_are_of_markov_chains_and_logits_at_every_position_only():
    model = mi.RunConfig().model
    with pytest.raises(MechinterpError, match="of the class MarkovChainsTask"):
        columns_for(mi.build_task(mi.RunConfig()), model, ["kl_to_bigram"])
    with pytest.raises(MechinterpError, match=r"needs unembed\.hook_out"):
        columns_for(TASK, model, ["kl_to_bigram"])
    seen = mi.Observation(TASK.sample("icl", 2), torch.zeros(2, 3), {"unembed.hook_out": torch.zeros(2, 30, 3)})
    with pytest.raises(MechinterpError, match="take α from the task"):
        MEASURES["kl_to_bigram"].compute(seen)
