"""TLA2, target–labels association in layer 2: total attention that the target pays to the N labels of the context.

TLA2 = ⟨ Σ_{j ∈ labels} p²_{T, j} ⟩ over sequences; in [0, 1]. Uniform attention gives N/T (0.47 at N = 8).
Source: Reddy 2023, section 3. With several heads, that of the head with the largest value.
"""

from jaxtyping import Float
from torch import Tensor

from mechinterp.config import Clamp
from mechinterp.measures.base import Observation, Requirement, register
from mechinterp.measures.manipulations import Manipulations, SideEffect, manipulation

_ATTENTION = (SideEffect.gradient, SideEffect.other_attention)
_MANIPULATIONS = Manipulations(
    hold=manipulation(Clamp(layer=1, head=0, pattern="labels"), also=_ATTENTION),
    remove=manipulation(
        Clamp(layer=1, pattern="uniform"), also=(*_ATTENTION, SideEffect.other_heads, SideEffect.several_measures)
    ),
)


@register(
    hooks=["blocks.1.attn.hook_pattern"],
    roles=["label"],
    requires=[Requirement.separate_label_tokens],
    manipulations=_MANIPULATIONS,
)
def tla2(seen: Observation) -> Float[Tensor, ""]:
    """Attention from the target to all labels, layer 2; in [0, 1]."""
    return seen.target_attention(1, "label")
