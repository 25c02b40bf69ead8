"""A hooked transformer of modules of our own, with the names and shapes of TransformerLens' HookedTransformer.

TransformerLens 4 has no HookedTransformer, and what it builds from scratch in its place divides scores by √d_head in
any case and does not let them be edited. These modules compute the formulas of `models.layer`, for all parts that
`TransformerConfig` names. Every activation that HookedTransformer has passes through a hook point of the same name.
Unlike there, ln1 normalises once, unless queries, keys and values have inputs of their own.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mechinterp.config import TransformerConfig
from mechinterp.models.hooked_config import HookedConfig
from mechinterp.models.hooked_lens import FactoredMatrix, HookPoint
from mechinterp.models.layer import (
    ACTIVATIONS,
    attention_pattern,
    distance_buckets,
    linear,
    normalized,
    rotated,
    scale_of,
)


class Embed(nn.Module):
    """W_E of tokens."""

    def __init__(self, cfg: HookedConfig):
        super().__init__()
        self.W_E = _zeros(cfg, cfg.d_vocab, cfg.d_model)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return functional.embedding(tokens, self.W_E)


class PosEmbed(nn.Module):
    """The vectors of the first positions, for every sequence."""

    def __init__(self, cfg: HookedConfig):
        super().__init__()
        self.W_pos = _zeros(cfg, cfg.n_ctx, cfg.d_model)

    def forward(self, tokens: Tensor) -> Float[Tensor, "batch pos d_model"]:
        return self.W_pos[: tokens.shape[1]].expand(len(tokens), -1, -1)


class Norm(nn.Module):
    """(x − ⟨x⟩)/σ ⊙ w + b; without w and b (…Pre), or without the mean and b (RMS)."""

    def __init__(self, model: TransformerConfig, cfg: HookedConfig):
        super().__init__()
        self._model, kind = model, model.normalization_type
        self.w = nn.Parameter(torch.ones(cfg.d_model, dtype=cfg.dtype)) if kind in ("LN", "RMS") else None
        self.b = _zeros(cfg, cfg.d_model) if kind == "LN" else None
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        scale = self.hook_scale(scale_of(self._model, x))
        x = self.hook_normalized(normalized(self._model, x, scale))
        x = x if self.w is None else x * self.w
        return x if self.b is None else x + self.b


class Factored:
    """The products of a head's matrices, of everything that has W_Q, W_K, W_V and W_O."""

    W_Q: Any
    W_K: Any
    W_V: Any
    W_O: Any

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ of every head."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head."""
        return FactoredMatrix(self.W_V, self.W_O)


class Attention(Factored, nn.Module):
    """Causal attention of several heads. Scores are divided by `attn_scale`; biases, W_O too, are always there."""

    def __init__(self, model: TransformerConfig, cfg: HookedConfig):
        super().__init__()
        self.cfg, self._model = cfg, model
        heads, width = cfg.n_heads, cfg.d_head
        self.W_Q, self.W_K, self.W_V = (_zeros(cfg, heads, cfg.d_model, width) for _ in "QKV")
        self.b_Q, self.b_K, self.b_V = (_zeros(cfg, heads, width) for _ in "QKV")
        self.W_O, self.b_O = _zeros(cfg, heads, width, cfg.d_model), _zeros(cfg, cfg.d_model)
        self.attn_scale = cfg.attn_scale if cfg.use_attn_scale else 1.0
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z, self.hook_result = HookPoint(), HookPoint()
        if model.positional_embedding_type == "rotary":
            self.hook_rot_k, self.hook_rot_q = HookPoint(), HookPoint()
        if model.positional_embedding_type == "shortformer":
            self.hook_attn_input = HookPoint()  # never fires, as in HookedTransformer
        if model.positional_embedding_type == "relative_positional_bias":
            self.rel_pos_bias = _zeros(cfg, model.relative_attention_num_buckets, heads)

    def forward(
        self,
        query_input: Float[Tensor, "batch pos *head d_model"],
        key_input: Float[Tensor, "batch pos *head d_model"],
        value_input: Float[Tensor, "batch pos *head d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the heads write. Inputs may be of every head apart."""
        q = self.hook_q(_projected(query_input, self.W_Q, self.b_Q))
        k = self.hook_k(_projected(key_input, self.W_K, self.b_K))
        v = self.hook_v(_projected(value_input, self.W_V, self.b_V))
        if self._model.positional_embedding_type == "rotary":
            q = self.hook_rot_q(rotated(self._model, q, q.shape[1]))
            k = self.hook_rot_k(rotated(self._model, k, k.shape[1]))
        pattern = self._pattern(self.hook_attn_scores(self._scores(q, k))).to(v.dtype)
        z = self.hook_z((pattern @ v.transpose(1, 2)).transpose(1, 2))
        if self.cfg.use_attn_result:
            result = self.hook_result(torch.einsum("bphk,hkd->bphd", z, self.W_O))
            return result.sum(dim=2) + self.b_O
        return linear(z.flatten(2), self.W_O.flatten(0, 1), self.b_O)

    def _scores(
        self, q: Float[Tensor, "batch pos head d_head"], k: Float[Tensor, "batch pos head d_head"]
    ) -> Float[Tensor, "batch head pos pos"]:
        n_pos = q.shape[1]
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / self.attn_scale
        if self._model.positional_embedding_type == "relative_positional_bias":
            buckets = distance_buckets(self._model, n_pos).to(q.device)
            scores = scores + functional.embedding(buckets, self.rel_pos_bias).permute(2, 0, 1)
        later = torch.ones(n_pos, n_pos, dtype=torch.bool, device=q.device).triu(1)
        return scores.masked_fill(later, -torch.inf)

    def _pattern(self, scores: Float[Tensor, "batch head pos pos"]) -> Float[Tensor, "batch head pos pos"]:
        """The pattern; a query of which a hook has masked all keys attends to none."""
        pattern = attention_pattern(scores)
        return self.hook_pattern(torch.where(pattern.isnan(), torch.zeros_like(pattern), pattern))


class MLP(nn.Module):
    """f(x W_in + b_in) W_out + b_out."""

    def __init__(self, model: TransformerConfig, cfg: HookedConfig):
        super().__init__()
        assert cfg.d_mlp is not None
        self.W_in, self.b_in = _zeros(cfg, cfg.d_model, cfg.d_mlp), _zeros(cfg, cfg.d_mlp)
        self.W_out, self.b_out = _zeros(cfg, cfg.d_mlp, cfg.d_model), _zeros(cfg, cfg.d_model)
        self.act_fn = ACTIVATIONS[model.act_fn]
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        post = self.hook_post(self.act_fn(self.hook_pre(linear(x, self.W_in, self.b_in))))
        return linear(post, self.W_out, self.b_out)


class Block(nn.Module):
    """A layer: attention and, if the network has it, the MLP, each of the normalised residual stream."""

    def __init__(self, model: TransformerConfig, cfg: HookedConfig):
        super().__init__()
        self.cfg = cfg
        norm: Any = Norm if model.normalization_type else lambda *_: nn.Identity()
        self.ln1, self.attn = norm(model, cfg), Attention(model, cfg)
        self.hook_attn_in, self.hook_mlp_in = HookPoint(), HookPoint()
        self.hook_q_input, self.hook_k_input, self.hook_v_input = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_out, self.hook_mlp_out = HookPoint(), HookPoint()
        self.hook_resid_pre, self.hook_resid_post = HookPoint(), HookPoint()
        if not model.attn_only:
            self.ln2, self.mlp = norm(model, cfg), MLP(model, cfg)
            if not model.parallel_attn_mlp:
                self.hook_resid_mid = HookPoint()

    def forward(
        self,
        residual: Float[Tensor, "batch pos d_model"],
        shortformer_pos_embed: Float[Tensor, "batch pos d_model"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after the layer."""
        residual = self.hook_resid_pre(residual)
        out = self.hook_attn_out(self.attn(*self._inputs(residual, shortformer_pos_embed)))
        before, residual = residual, residual + out
        if not self.cfg.attn_only:
            if not self.cfg.parallel_attn_mlp:
                before = residual = self.hook_resid_mid(residual)
            read = self.hook_mlp_in(before.clone()) if self.cfg.use_hook_mlp_in else before
            residual = residual + self.hook_mlp_out(self.mlp(self.ln2(read)))
        return self.hook_resid_post(residual)

    def _inputs(self, residual: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What queries, keys and values are computed from; on request of every head apart, behind hook points."""
        if self.cfg.use_attn_in or self.cfg.use_split_qkv_input:
            positions = None if positions is None else positions[:, :, None]
        else:
            x = self.ln1(residual)
            placed = x if positions is None else x + positions
            return placed, placed, x
        of_heads = residual[:, :, None].expand(-1, -1, self.cfg.n_heads, -1)
        together = self.hook_attn_in(of_heads.clone()) if self.cfg.use_attn_in else None
        if self.cfg.use_split_qkv_input:
            points = self.hook_q_input, self.hook_k_input, self.hook_v_input
            q, k, v = (self.ln1(point(of_heads.clone())) for point in points)
        else:
            q = k = v = self.ln1(together)
        return (q, k, v) if positions is None else (q + positions, k + positions, v)


class Unembed(nn.Module):
    """x W_U + b_U, the logits."""

    def __init__(self, cfg: HookedConfig):
        super().__init__()
        self.W_U, self.b_U = _zeros(cfg, cfg.d_model, cfg.d_vocab_out), _zeros(cfg, cfg.d_vocab_out)
        self.hook_in, self.hook_out = HookPoint(), HookPoint()

    def forward(self, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        return self.hook_out(linear(self.hook_in(residual), self.W_U, self.b_U))


def _zeros(cfg: HookedConfig, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape, dtype=cfg.dtype))


def _projected(
    x: Float[Tensor, "batch pos *head d_model"],
    W: Float[Tensor, "head d_model d_head"],
    b: Float[Tensor, "head d_head"],
) -> Float[Tensor, "batch pos head d_head"]:
    """x W + b of every head."""
    if x.ndim == 4:
        return torch.einsum("bphd,hdk->bphk", x, W) + b
    return linear(x, W.transpose(0, 1).flatten(1), b.flatten()).unflatten(-1, b.shape)
