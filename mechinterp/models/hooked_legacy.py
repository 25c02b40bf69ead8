"""The HookedTransformer of TransformerLens 3.9 with the parts of a network. TransformerLens 4 has none."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mechinterp.config import TransformerConfig
from mechinterp.models.hooked_config import settings
from mechinterp.models.hooked_lens import Attention, HookedTransformer, HookedTransformerConfig
from mechinterp.models.layer import distance_buckets
from mechinterp.models.network import Network


class BucketedAttention(Attention):
    """Attention with a trained number for every bucket of distances, which is added to scores."""

    def __init__(self, cfg: HookedTransformerConfig, layer: int, model: TransformerConfig):
        super().__init__(cfg, "global", layer)
        self._model = model
        self.rel_pos_bias = nn.Parameter(
            torch.zeros(model.relative_attention_num_buckets, model.n_heads, dtype=cfg.dtype)
        )

    def forward(self, query_input: Tensor, *inputs: Any, **named: Any) -> Tensor:  # type: ignore[override]
        buckets = distance_buckets(self._model, query_input.shape[1]).to(query_input.device)
        bias = functional.embedding(buckets, self.rel_pos_bias).permute(2, 0, 1)[None]
        return super().forward(query_input, *inputs, position_bias=bias, **named)


class LensTransformer(HookedTransformer):
    """A HookedTransformer with the layers of a network, without the parts that the network has not."""

    def __init__(self, network: Network):
        model = network.model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # HookedTransformer leaves with TransformerLens 4
            super().__init__(HookedTransformerConfig(**settings(network), init_weights=False))
        unused = ["embed"] * (model.input != "tokens") + ["unembed"] * (model.output == "classifier")
        if not model.has_position_vectors:
            unused += ["pos_embed", "hook_pos_embed"]
        if not model.final_norm:
            unused.append("ln_final")
        for part in unused:
            if hasattr(self, part):
                delattr(self, part)
        if model.positional_embedding_type == "relative_positional_bias":
            for layer, block in enumerate(self.blocks):
                block.attn = BucketedAttention(self.cfg, layer, model)
