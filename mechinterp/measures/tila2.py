"""TILA2, target–item–label association in layer 2: attention that the target pays to its correct label.

TILA2 = ⟨ Σ_{j ∈ correct} p²_{T, j} ⟩ over sequences, where the sum runs over the labels of all copies of the target's
class; in [0, 1]. Uniform attention gives B/T (1/17 at N = 8, B = 1). Source: Reddy 2023, section 3.
With several heads, that of the head which does it most.
"""

from jaxtyping import Float
from torch import Tensor

from mechinterp.measures.base import Observation, register


@register(hooks=["blocks.1.attn.hook_pattern"], roles=["correct_label"], without=["copy"])
def tila2(seen: Observation) -> Float[Tensor, ""]:
    """Attention from the target to its correct label, layer 2; in [0, 1]."""
    from_target = seen.pattern(1)[:, :, -1]
    return (from_target * seen.role("correct_label")[:, None]).sum(dim=-1).mean(dim=0).max()
