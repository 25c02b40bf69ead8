"""The hooked transformer of our own modules: its parts, weights and cache under HookedTransformer's names."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechinterp.errors import MechinterpError
from mechinterp.models.hooked_config import HookedConfig, settings
from mechinterp.models.hooked_lens import (
    ActivationCache,
    HookedRootModule,
    HookPoint,
    composition_scores,
)
from mechinterp.models.hooked_modules import Block, Embed, Factored, Norm, PosEmbed, Unembed
from mechinterp.models.network import Network

_ON_REQUEST = {
    "attn.hook_result": "use_attn_result",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
}


def _of_all_layers(name: str) -> property:
    """A property: the parameter of this name of every layer, [layer, …]."""
    return property(lambda model: torch.stack([block.get_parameter(name) for block in model.blocks]))


class Transformer(Factored, HookedRootModule):
    """The embedding, layers, final normalisation and unembedding that a network has.

    What comes before and after them, and the forward pass, is added by `models.hooked`.
    """

    def __init__(self, network: Network):
        super().__init__()
        model = network.model
        self.cfg = HookedConfig(**settings(network))
        self.hook_embed = HookPoint()
        if model.input == "tokens":
            self.embed = Embed(self.cfg)
        if model.has_position_vectors:
            self.pos_embed = PosEmbed(self.cfg)
            self.hook_pos_embed = HookPoint()
        self.blocks: Any = nn.ModuleList(Block(model, self.cfg) for _ in range(network.n_layers))
        if model.normalization_type and model.final_norm:
            self.ln_final = Norm(model, self.cfg)
        if model.output != "classifier":
            self.unembed = Unembed(self.cfg)

    def run_with_cache(
        self, *inputs: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **options: Any
    ) -> Any:
        """The output and an ActivationCache, or a dict of activations without `return_cache_object`."""
        output, cache = super().run_with_cache(*inputs, remove_batch_dim=remove_batch_dim, **options)
        return output, ActivationCache(cache, self, not remove_batch_dim) if return_cache_object else cache

    def check_hooks_to_add(self, hook_point: Any, hook_point_name: str, *arguments: Any, **options: Any) -> None:
        """MechinterpError for a hook that does not fire unless it is requested."""
        for ending, switch in _ON_REQUEST.items():
            if hook_point_name.endswith(ending) and not getattr(self.cfg, switch):
                raise MechinterpError(f"hook {hook_point_name!r} fires after model.set_{switch}(True) only")

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Whether what every head writes is computed apart, for ``hook_result``."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Whether every head's queries, keys and values have inputs of their own, for ``hook_q_input`` (k, v)."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Whether every head has an input of its own, for ``hook_attn_in``."""
        self.cfg.use_attn_in = use_attn_in

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Whether MLPs have an input of their own, for ``hook_mlp_in``."""
        if self.cfg.attn_only:
            raise MechinterpError("hook_mlp_in: this model has no MLP in its layers")
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    @property
    def W_E(self) -> Float[Tensor, "d_in d_model"]:
        """The embedding."""
        return self.embed.W_E

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """The vectors of positions."""
        return self.pos_embed.W_pos

    @property
    def W_E_pos(self) -> Float[Tensor, "any d_model"]:
        """The embedding and the vectors of positions."""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding."""
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"]:
        """Its bias."""
        return self.unembed.b_U

    W_Q, b_Q = _of_all_layers("attn.W_Q"), _of_all_layers("attn.b_Q")
    W_K, b_K = _of_all_layers("attn.W_K"), _of_all_layers("attn.b_K")
    W_V, b_V = _of_all_layers("attn.W_V"), _of_all_layers("attn.b_V")
    W_O, b_O = _of_all_layers("attn.W_O"), _of_all_layers("attn.b_O")
    W_in, b_in = _of_all_layers("mlp.W_in"), _of_all_layers("mlp.b_in")
    W_out, b_out = _of_all_layers("mlp.W_out"), _of_all_layers("mlp.b_out")

    def all_head_labels(self) -> list[str]:
        """L0H0, L0H1, …"""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    def all_composition_scores(self, mode: str) -> Float[Tensor, "layer head layer head"]:
        """Q-, K- or V-composition of pairs of heads (Elhage et al. 2021); 0 unless the first is in a lower layer."""
        if mode not in ("Q", "K", "V"):
            raise MechinterpError(f"mode {mode!r}: choose Q, K or V")
        read = {"Q": self.QK, "K": self.QK.T, "V": self.OV}[mode]
        scores, layers = composition_scores(self.OV, read, broadcast_dims=True), torch.arange(self.cfg.n_layers)
        lower = (layers[:, None] < layers)[:, None, :, None].to(scores.device)
        return scores.where(lower, 0)

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, "d_model"]:
        """The sum of what biases write before a layer; with `mlp_input`, before its MLP."""
        total = torch.zeros_like(self.b_O[0])
        for block in self.blocks[: layer + mlp_input]:
            total = total + block.attn.b_O
        for block in self.blocks[:layer] if include_mlp_biases and not self.cfg.attn_only else ():
            total = total + block.mlp.b_out
        return total

    def tokens_to_residual_directions(self, tokens: int | Int[Tensor, "*any"]) -> Float[Tensor, "*any d_model"]:
        """The columns of the unembedding, of labels."""
        return self.W_U.T[tokens]
