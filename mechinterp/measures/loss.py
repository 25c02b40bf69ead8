"""Loss: mean cross-entropy at the target, in nats; at least 0, and ln L for a uniform guess.

Columns ``{icl,iwl,swap,train}_loss``. Source: Reddy 2023, section 2.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mechinterp.measures.base import Observation, register


@register(each_evaluation=True)
def loss(seen: Observation) -> Float[Tensor, ""]:
    """−⟨ln p(correct label)⟩."""
    return functional.cross_entropy(seen.logits, seen.batch.labels)
