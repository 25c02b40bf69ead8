"""c₁, c₂ and c₃: what an MLP has memorised (Nguyen & Reddy 2024, eqs 8 to 10, 29 and 30).

With φ⁺ the classifier's logit for the correct one of two labels, of targets of the training set without attention:

    c₁ = ⟨σ(−φ⁺)⟩,  c₂ = 1 − ⟨σ(−φ⁺)²⟩ / c₁,  c₃ = ⟨e^{−φ⁺}⟩

c₁, in [0, 1], is ½ at the start and 0 where all is memorised; I_K(t) = 2 ∫ c₁ dt (`theory.kinetics.memorised`). They
measure what is memorised where attention adds nothing to the target, or adds to the logit alone (the additive model).
Elsewhere the classifier is trained on targets with attention added, and its answer to the target alone may be wrong: c₁
to c₃ may then stay high, or c₃ rise, in a network that has memorised all items.
"""

from mechinterp.errors import MechinterpError
from mechinterp.measures.base import Observation, register
from mechinterp.models.classifier import require_labels
from mechinterp.models.forward import classify
from mechinterp.models.network import Network
from mechinterp.tasks.base import Batch
from mechinterp.theory.kinetics import OrderParameters, order_parameters


def memory(network: Network, batch: Batch) -> OrderParameters:
    """c₁, c₂ and c₃ of the targets of a batch with two labels."""
    labels = require_labels(batch, 2)
    logits = classify(network, batch.inputs[:, -1])
    if logits.shape[1] != 2:
        raise MechinterpError(f"c1, c2 and c3 are of two labels; this network has {logits.shape[1]} logits")
    plus = (logits[:, 0] - logits[:, 1]) * (1 - 2 * labels)
    return order_parameters(plus.double().numpy())


@register(roles=["copy"], evaluation="train")
def c1(seen: Observation) -> float:
    """c₁, the mean probability of the wrong label; in [0, 1]."""
    return _memory(seen).c1


@register(roles=["copy"], evaluation="train")
def c2(seen: Observation) -> float:
    """c₂, 1 less the mean square of that probability over its mean; in [0, 1]."""
    return _memory(seen).c2


@register(roles=["copy"], evaluation="train")
def c3(seen: Observation) -> float:
    """c₃, the mean odds of the wrong label; 1 at the start, ≥ 0."""
    return _memory(seen).c3


def _memory(seen: Observation) -> OrderParameters:
    if seen.network is None:
        raise MechinterpError("c1, c2 and c3 are measured on a network, which this observation has not")
    return memory(seen.network, seen.batch)
