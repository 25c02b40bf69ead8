"""How near a network's predictions are to strategies of predicting Markov chains in context (Edelman et al. 2024).

With q the prediction of a strategy and p that of the network, Σ_j q_j ln(q_j / p_j) = KL(q ‖ p), the mean over all
positions and sequences of the first evaluation set, nats; ≥ 0, and 0 if the network predicts as the strategy does. It
is the direction of the authors' code. The strategies are those of `theory.markov_chains`, with the task's α:

* ``kl_to_uniform``: all tokens are equally likely;
* ``kl_to_unigram``: as often as they have occurred in the sequence;
* ``kl_to_bigram``: as often as they have followed the present token: nearly the best prediction.
"""

from jaxtyping import Float
from torch import Tensor

from mechinterp.errors import MechinterpError
from mechinterp.measures.base import Observation, register
from mechinterp.tasks.markov_chains import MarkovChainsTask
from mechinterp.theory.markov_chains import bigram, uniform, unigram

_LOGITS = "unembed.hook_out"


@register(hooks=[_LOGITS], task=MarkovChainsTask)
def kl_to_uniform(seen: Observation) -> Float[Tensor, ""]:
    """KL(uniform ‖ network), nats."""
    return divergence(uniform(seen.batch.inputs, seen.logits.shape[1]), seen.cache[_LOGITS])


@register(hooks=[_LOGITS], task=MarkovChainsTask)
def kl_to_unigram(seen: Observation) -> Float[Tensor, ""]:
    """KL(unigram ‖ network), nats."""
    return divergence(unigram(seen.batch.inputs, seen.logits.shape[1], _alpha(seen)), seen.cache[_LOGITS])


@register(hooks=[_LOGITS], task=MarkovChainsTask)
def kl_to_bigram(seen: Observation) -> Float[Tensor, ""]:
    """KL(bigram ‖ network), nats."""
    return divergence(bigram(seen.batch.inputs, seen.logits.shape[1], _alpha(seen)), seen.cache[_LOGITS])


def divergence(strategy: Float[Tensor, "batch pos k"], logits: Float[Tensor, "batch pos k"]) -> Float[Tensor, ""]:
    """⟨KL(strategy ‖ softmax of the logits)⟩, nats; the strategy is positive everywhere."""
    return (strategy * (strategy.log() - logits.double().log_softmax(dim=-1))).sum(dim=-1).mean()


def _alpha(seen: Observation) -> float:
    """The concentration of the task's Dirichlet distributions."""
    if not isinstance(seen.task, MarkovChainsTask):
        raise MechinterpError("kl_to_unigram and kl_to_bigram take α from the task, which this observation has not")
    return seen.task.config.concentration
