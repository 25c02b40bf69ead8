"""TCA, target–copy association: attention that the target pays to the tokens that show its item with its label.

TCA_μ = ⟨ Σ_{j ∈ copies} p^μ_{T, j} ⟩ over sequences, in layer μ; in [0, 1]. For tasks with an item
and its label in one token (role ``copy``), where this attention is enough to find the label. Uniform attention to N
pairs and the target gives 1/(N+1) for a single copy. With several heads, that of the head with the largest value.
"""

from jaxtyping import Float
from torch import Tensor

from mechinterp.measures.base import Observation, register


@register(hooks=["blocks.0.attn.hook_pattern"], roles=["copy"])
def tca1(seen: Observation) -> Float[Tensor, ""]:
    """Attention from the target to its copies, layer 1; in [0, 1]."""
    return seen.target_attention(0, "copy")


@register(hooks=["blocks.1.attn.hook_pattern"], roles=["copy"])
def tca2(seen: Observation) -> Float[Tensor, ""]:
    """Attention from the target to its copies, layer 2; in [0, 1]."""
    return seen.target_attention(1, "copy")
