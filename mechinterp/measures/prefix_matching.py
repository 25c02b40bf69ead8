"""Prefix matching: attention from a token to what followed it before (Olsson et al. 2022).

On repeated tokens, the score of a head is ⟨ Σ_{j: t_{j−1} = t_i} p_ij ⟩ over sequences and over the positions i with
the role ``repeat``; in [0, 1]. It is the attention pattern of an induction head: 1 if all of it is on the tokens that
followed earlier occurrences of the current one. With several heads, that of the head with the largest value. A column
for every layer, ``prefix_matching_{layer}``, counted from 1.
"""

from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.config.model import MOST_LAYERS
from mechinterp.measures.base import Observation, Requirement, register


def after_earlier_occurrences(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch query key"]:
    """1 where the token before the key is the same as the query's, and the key is no later than the query."""
    same = tokens[:, :, None] == tokens.roll(1, dims=1)[:, None, :]
    same[:, :, 0] = False
    return same.tril().float()


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
    register(hooks=[f"blocks.{layer}.attn.hook_pattern"], roles=["repeat"], requires=[Requirement.tokens])(measure)


for _layer in range(MOST_LAYERS):
    _of_layer(_layer)
