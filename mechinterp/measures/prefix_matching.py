"""Prefix matching: attention from a token to what followed it before (Olsson et al. 2022).

On repeated tokens, the score of a head is ⟨ Σ_{j: t_{j−1} = t_i} p_ij ⟩ over sequences and over the positions i with
the role ``repeat``; in [0, 1]. It is the attention pattern of an induction head: 1 if all of it is on the tokens that
followed earlier occurrences of the current one. With several heads, that of the head with the largest value. A column
for every layer, ``prefix_matching_{layer}``, counted from 1.
"""

from jaxtyping import Float
from torch import Tensor

from mechinterp.attention_patterns import after_earlier_occurrences
from mechinterp.config import Clamp
from mechinterp.config.model import MOST_LAYERS
from mechinterp.measures.base import Observation, Requirement, register
from mechinterp.measures.manipulations import Manipulations, SideEffect, manipulation

_ATTENTION = (SideEffect.gradient, SideEffect.other_attention)


def prefix_matching(seen: Observation, layer: int) -> Float[Tensor, ""]:
    """The score of a layer's best head."""
    attention = (seen.pattern(layer) * after_earlier_occurrences(seen.batch.inputs)[:, None]).sum(dim=-1)
    repeat = seen.role("repeat")[:, None]
    return ((attention * repeat).sum(dim=(0, 2)) / repeat.sum()).max()


def _of_layer(layer: int) -> None:
    def measure(seen: Observation) -> Float[Tensor, ""]:
        return prefix_matching(seen, layer)

    measure.__name__ = f"prefix_matching_{layer + 1}"
    measure.__doc__ = f"Attention from repeated tokens to what followed them before, layer {layer + 1}; in [0, 1]."
    manipulations = Manipulations(
        hold=manipulation(
            Clamp(layer=layer, head=0, pattern="after_same_token"), also=(*_ATTENTION, SideEffect.answer)
        ),
        remove=manipulation(
            Clamp(layer=layer, pattern="uniform"),
            also=(*_ATTENTION, SideEffect.other_heads, SideEffect.several_measures),
        ),
    )
    register(
        hooks=[f"blocks.{layer}.attn.hook_pattern"],
        roles=["repeat"],
        requires=[Requirement.tokens],
        manipulations=manipulations,
    )(measure)


for _layer in range(MOST_LAYERS):
    _of_layer(_layer)
