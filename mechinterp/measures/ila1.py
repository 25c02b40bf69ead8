"""ILA1, item–label association in layer 1: attention that a token pays to the token before it.

ILA1 = ⟨ p¹_{i, i−1} ⟩ over sequences and over tokens i; in [0, 1]. Source: Reddy 2023, section 3, which does not
specify the tokens; there are two variants:

* `ila1`: the N label tokens, whose predecessor is their item. Uniform attention gives Σ_{i=1…N} 1/(2i) / N
  (0.170 at N = 8);
* `ila1_all`: all tokens but the first. Uniform attention gives Σ_{i=2…T} 1/i / (T−1) (0.152 at N = 8).

With several heads, that of the head with the largest value.
"""

from jaxtyping import Float
from torch import Tensor

from mechinterp.config import Clamp
from mechinterp.measures.base import Observation, Requirement, register
from mechinterp.measures.manipulations import Manipulations, SideEffect, manipulation

_ATTENTION = (SideEffect.gradient, SideEffect.other_attention)
_MANIPULATIONS = Manipulations(
    hold=manipulation(Clamp(layer=0, head=0, pattern="previous_token"), also=_ATTENTION),
    remove=manipulation(Clamp(layer=0, pattern="uniform"), also=(*_ATTENTION, SideEffect.other_heads)),
)


def previous_token_attention(seen: Observation) -> Float[Tensor, "batch head pos_but_first"]:
    """p¹_{i, i−1} for i from the second token on."""
    return seen.pattern(0).diagonal(offset=-1, dim1=-2, dim2=-1)


@register(
    hooks=["blocks.0.attn.hook_pattern"],
    roles=["label"],
    requires=[Requirement.separate_label_tokens],
    manipulations=_MANIPULATIONS,
)
def ila1(seen: Observation) -> Float[Tensor, ""]:
    """Attention from label tokens to the item before them, layer 1; in [0, 1]."""
    labels = seen.role("label")[:, None, 1:]
    per_head = (previous_token_attention(seen) * labels).sum(dim=(0, 2)) / labels.sum()
    return per_head.max()


@register(hooks=["blocks.0.attn.hook_pattern"], requires=[Requirement.separate_label_tokens])
def ila1_all(seen: Observation) -> Float[Tensor, ""]:
    """Attention from every token but the first to the one before it, layer 1; in [0, 1]."""
    return previous_token_attention(seen).mean(dim=(0, 2)).max()
