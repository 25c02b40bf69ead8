"""TILA2, target–item–label association in layer 2: attention that the target pays to its correct label.

TILA2 = ⟨ Σ_{j ∈ correct} p²_{T, j} ⟩ over sequences, where the sum runs over the labels of all copies of the target's
class; in [0, 1]. Uniform attention gives B/T (1/17 at N = 8, B = 1). Source: Reddy 2023, section 3.
With several heads, that of the head with the largest value.
"""

from jaxtyping import Float
from torch import Tensor

from mechinterp.config import Clamp
from mechinterp.measures.base import Observation, Requirement, register
from mechinterp.measures.manipulations import Manipulations, SideEffect, manipulation

_ATTENTION = (SideEffect.gradient, SideEffect.other_attention)
_MANIPULATIONS = Manipulations(
    hold=manipulation(Clamp(layer=1, head=0, pattern="correct_label"), also=(*_ATTENTION, SideEffect.answer)),
    remove=manipulation(
        Clamp(layer=1, pattern="uniform"), also=(*_ATTENTION, SideEffect.other_heads, SideEffect.several_measures)
    ),
)


@register(
    hooks=["blocks.1.attn.hook_pattern"],
    roles=["correct_label"],
    requires=[Requirement.separate_label_tokens],
    manipulations=_MANIPULATIONS,
)
def tila2(seen: Observation) -> Float[Tensor, ""]:
    """Attention from the target to its correct label, layer 2; in [0, 1]."""
    return seen.target_attention(1, "correct_label")
