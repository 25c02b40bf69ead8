"""Previous-token attention on tokens (Elhage et al. 2021): attention from a token to the one before it.

⟨ p_{i, i−1} ⟩ over sequences and over all tokens i but the first; in [0, 1]. Uniform attention gives
Σ_{i=2…T} 1/i / (T−1). With several heads, that of the head with the largest value. A column for every layer,
``previous_token_{layer}``, counted from 1. On sequences of vectors it is `ila1_all` that is taken, in layer 1.
"""

from jaxtyping import Float
from torch import Tensor

from mechinterp.config import Clamp
from mechinterp.config.model import MOST_LAYERS
from mechinterp.measures.base import Observation, Requirement, register
from mechinterp.measures.manipulations import Manipulations, SideEffect, manipulation

_ATTENTION = (SideEffect.gradient, SideEffect.other_attention)


def previous_token_attention(seen: Observation, layer: int) -> Float[Tensor, ""]:
    """The value of a layer's best head."""
    return seen.pattern(layer).diagonal(offset=-1, dim1=-2, dim2=-1).mean(dim=(0, 2)).max()


def _of_layer(layer: int) -> None:
    def measure(seen: Observation) -> Float[Tensor, ""]:
        return previous_token_attention(seen, layer)

    measure.__name__ = f"previous_token_{layer + 1}"
    measure.__doc__ = f"Attention from tokens to the one before them, layer {layer + 1}; in [0, 1]."
    manipulations = Manipulations(
        hold=manipulation(Clamp(layer=layer, head=0, pattern="previous_token"), also=_ATTENTION),
        remove=manipulation(
            Clamp(layer=layer, pattern="uniform"),
            also=(*_ATTENTION, SideEffect.other_heads, SideEffect.several_measures),
        ),
    )
    register(hooks=[f"blocks.{layer}.attn.hook_pattern"], requires=[Requirement.tokens], manipulations=manipulations)(
        measure
    )


for _layer in range(MOST_LAYERS):
    _of_layer(_layer)
