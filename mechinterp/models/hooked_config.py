"""The sizes and switches of a hooked model, under the names of TransformerLens' HookedTransformerConfig."""

from dataclasses import dataclass
from typing import Any

import torch

from mechinterp.models.layer import EPSILON
from mechinterp.models.network import Network


def settings(network: Network) -> dict[str, Any]:
    """The settings of HookedTransformerConfig that describe a network.

    Positions that HookedTransformer does not know are ``standard``: none at all, and sinusoidal ones, which are frozen.
    """
    model, task, positions = network.model, network.config.task, network.model.positional_embedding_type
    d_head = network.matrix(0, "Q").shape[-1]
    return {
        "n_layers": network.n_layers,
        "n_heads": network.n_heads,
        "d_model": network.d_model,
        "d_head": d_head,
        "d_mlp": model.d_mlp,
        "act_fn": model.act_fn,
        "n_ctx": task.n_pos,
        "d_vocab": task.d_vocab or task.n_labels,
        "d_vocab_out": task.n_labels,
        "attn_only": model.attn_only,
        "parallel_attn_mlp": model.parallel_attn_mlp,
        "normalization_type": model.normalization_type,
        "eps": EPSILON,
        "positional_embedding_type": "standard" if positions in (None, "sinusoidal") else positions,
        "rotary_dim": model.rotary_dim or (d_head if positions == "rotary" else None),
        "rotary_base": model.rotary_base,
        "use_attn_scale": model.use_attn_scale,
        "dtype": network.dtype,
        "device": "cpu",
    }


@dataclass
class HookedConfig:
    """`model.cfg` of a hooked model of our own modules."""

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_mlp: int | None
    act_fn: str
    n_ctx: int
    d_vocab: int
    d_vocab_out: int
    attn_only: bool
    parallel_attn_mlp: bool
    normalization_type: str | None
    eps: float
    positional_embedding_type: str
    rotary_dim: int | None
    rotary_base: float
    use_attn_scale: bool
    dtype: torch.dtype
    device: str
    use_attn_result: bool = False
    use_split_qkv_input: bool = False
    use_hook_mlp_in: bool = False
    use_attn_in: bool = False

    @property
    def attn_scale(self) -> float:
        """√d_head, by which scores are divided with `use_attn_scale`."""
        return self.d_head**0.5
