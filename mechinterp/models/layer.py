"""A layer of a transformer with all the parts that `TransformerConfig` names, and what is before and after the layers.

With N the normalisation and x the residual stream, as in TransformerLens:

    y = N(x),  q = y W_Q + b_Q,  k = y W_K + b_K,  v = y W_V + b_V         per head; positions enter q and k, or scores
    s_ij = q_i·k_j / √d_head (if scaled),  p = softmax_{j≤i}(s),  z_i = Σ_j p_ij v_j
    x ← x + Σ_heads z W_O + b_O
    x ← x + f(N(x) W_in + b_in) W_out + b_out                               with an MLP

With `parallel_attn_mlp` the MLP reads the x that attention reads, and both are added to it.

Normalisation is (x − ⟨x⟩)/σ ⊙ w + b with σ² = ⟨(x − ⟨x⟩)²⟩ + ε (LN), or without the mean and b (RMS).

Sources: Vaswani et al. 2017 (sinusoidal positions), Ba et al. 2016 (LayerNorm), Zhang & Sennrich 2019 (RMSNorm), Su et
al. 2021 (rotary), Press et al. 2021 (shortformer), Raffel et al. 2020 (buckets of distances), Wang & Komatsuzaki 2021
(attention and MLP in parallel, GPT-J).
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mechinterp.config import TransformerConfig

EPSILON = 1e-5
"""ε of normalisations."""
SHORT = 128
"""The most positions of which patterns are computed though nobody asks for them: so few, torch's fused attention is
slower (benchmarks/README.md)."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}
_INPUTS = {
    "ln1.hook_scale": ("hook_resid_pre",),
    "ln1.hook_normalized": ("hook_resid_pre", "ln1.hook_scale"),
    "attn.hook_q": ("hook_resid_pre", "ln1.hook_normalized"),
    "attn.hook_k": ("hook_resid_pre", "ln1.hook_normalized"),
    "attn.hook_v": ("hook_resid_pre", "ln1.hook_normalized"),
    "attn.hook_rot_q": ("attn.hook_q",),
    "attn.hook_rot_k": ("attn.hook_k",),
    "attn.hook_attn_scores": ("attn.hook_q", "attn.hook_k", "attn.hook_rot_q", "attn.hook_rot_k"),
    "attn.hook_pattern": ("attn.hook_attn_scores",),
    "attn.hook_z": ("attn.hook_pattern", "attn.hook_v"),
    "hook_attn_out": ("attn.hook_z",),
    "hook_resid_mid": ("hook_resid_pre", "hook_attn_out"),
    "ln2.hook_scale": ("hook_resid_mid",),
    "ln2.hook_normalized": ("hook_resid_mid", "ln2.hook_scale"),
    "mlp.hook_pre": ("hook_resid_mid", "ln2.hook_normalized"),
    "mlp.hook_post": ("mlp.hook_pre",),
    "hook_mlp_out": ("mlp.hook_post",),
    "hook_resid_post": ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out"),
}
"""What the activations of a layer are computed from, in the order of computation."""
_INPUTS_PARALLEL = {
    name: tuple("hook_resid_pre" if other == "hook_resid_mid" else other for other in inputs)
    for name, inputs in _INPUTS.items()
    if name != "hook_resid_mid"
}
"""The same where attention and the MLP are in parallel."""


_OF_ALL = ("hook_resid_pre", "ln1.hook_scale", "ln1.hook_normalized", "attn.hook_k", "attn.hook_rot_k", "attn.hook_v")
"""The activations of a layer that answers at the target need at all positions."""


def layer_hooks(model: TransformerConfig) -> list[str]:
    """Names of the activations of a layer, without the layer's prefix, in the order of computation."""
    left_out = set()
    if model.normalization_type is None:
        left_out |= {"ln1.", "ln2."}
    if model.positional_embedding_type != "rotary":
        left_out |= {"attn.hook_rot_q", "attn.hook_rot_k"}
    if model.attn_only:
        left_out |= {"hook_resid_mid", "ln2.", "mlp.", "hook_mlp_out"}
    return ["hook_resid_pre", *(name for name in _inputs(model) if not name.startswith(tuple(left_out)))]


def mlp_input(model: TransformerConfig) -> str:
    """The hook of the residual stream that the MLP of a layer reads, without the layer's prefix."""
    return "hook_resid_pre" if model.parallel_attn_mlp else "hook_resid_mid"


def _inputs(model: TransformerConfig) -> dict[str, tuple[str, ...]]:
    return _INPUTS_PARALLEL if model.parallel_attn_mlp else _INPUTS


def unchanged_by(model: TransformerConfig, name: str, activations: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The activations of a layer that do not depend on the one of this name."""
    changed = {name}
    for other, inputs in _inputs(model).items():
        if changed.intersection(inputs):
            changed.add(other)
    return {other: value for other, value in activations.items() if other not in changed}


def at_target(activations: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The activations that a layer needs that answers at the target alone."""
    rows = {name: (..., slice(-1, None), slice(None)) for name in ("attn.hook_attn_scores", "attn.hook_pattern")}
    return {
        name: value if name in _OF_ALL else value[rows.get(name, (slice(None), slice(-1, None)))]
        for name, value in activations.items()
    }


class Layer:
    """The activations of one layer, each computed when it is first asked for, from those that are known."""

    def __init__(
        self,
        model: TransformerConfig,
        parameters: Mapping[str, Tensor],
        known: Mapping[str, Tensor],
        tap: Callable[[str, Tensor], Tensor],
        *,
        wants: Callable[..., bool],
        target_only: bool = False,
        fused_attention: bool = True,
        positions: Tensor | None = None,
    ):
        """`parameters`, `known`, `tap` and `wants` name parameters and activations without the layer's prefix.

        What `tap` does not hook or keep, as `wants` says, may be passed over: patterns with `fused_attention`. With
        `target_only`, queries are the target's alone. `positions` are the vectors of shortformer positions.
        """
        self._model, self._parameters, self._known, self._tap = model, parameters, dict(known), tap
        self._wants, self._target_only, self._fused_attention = wants, target_only, fused_attention
        self._positions, self._products = positions, dict[str, Tensor]()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known:
            compute = getattr(self, "_" + name.replace("hook_", "").replace(".", "_"))
            self._known[name] = self._tap(name, compute())
        return self._known[name]

    def _ln1_scale(self) -> Tensor:
        return scale_of(self._model, self["hook_resid_pre"])

    def _ln1_normalized(self) -> Tensor:
        return normalized(self._model, self["hook_resid_pre"], self["ln1.hook_scale"])

    def _read(self, norm: str, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What attention or the MLP reads of the residual stream."""
        if self._model.normalization_type is None:
            return residual
        if not self._needs(f"{norm}.hook_scale", f"{norm}.hook_normalized"):
            return normalized_at_once(self._model, self._parameters, norm, residual)
        return scaled_and_shifted(self._parameters, norm, self[f"{norm}.hook_normalized"])

    def _needs(self, *names: str) -> bool:
        """Whether any of these activations is given, hooked or kept."""
        return self._wants(*names) or not self._known.keys().isdisjoint(names)

    def _asking(self, x: Float[Tensor, "batch pos _"]) -> Float[Tensor, "batch query _"]:
        return x[:, -1:] if self._target_only else x

    def _projected(self, name: str) -> Float[Tensor, "batch pos head d_head"]:
        """Queries, keys or values: those that are computed of the same vectors by one product."""
        if name not in self._products:
            x, apart = self._read("ln1", self["hook_resid_pre"]), ("Q" if self._target_only else "")
            if self._positions is not None and (name != "V"):
                x = x + self._positions
            apart += "V" if self._positions is not None else ""
            alike = [name] if name in apart else [other for other in "QKV" if other not in apart]
            together = [other for other in alike if f"attn.hook_{other.lower()}" not in self._known]
            W = [self._columns("W", other).transpose(0, 1).flatten(1) for other in together]
            b = [self._columns("b", other).flatten() for other in together if self._model.biases]
            x = self._asking(x) if name == "Q" else x
            product = linear(x, torch.cat(W, dim=1), torch.cat(b) if b else None)
            heads = product.unflatten(-1, (len(together), self._model.n_heads, -1)).unbind(2)
            self._products |= zip(together, heads, strict=True)
        return self._products[name]

    @property
    def _in_pairs(self) -> bool:
        """Whether the dimensions of queries and keys that are rotated together stand beside each other.

        That is one complex product instead of several passes; scores are the same, and nobody sees the order.
        """
        seen = self._needs("attn.hook_q", "attn.hook_k", "attn.hook_rot_q", "attn.hook_rot_k")
        return self._model.positional_embedding_type == "rotary" and self._model.rotary_dim is None and not seen

    def _columns(self, kind: str, name: str) -> Float[Tensor, "head *d_model d_head"]:
        """W or b of queries, keys or values, with columns in the order in which they are used."""
        value = self._parameters[f"attn.{kind}_{name}"]
        if name == "V" or not self._in_pairs:
            return value
        return value.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)

    def _attn_q(self) -> Tensor:
        return self._projected("Q")

    def _attn_k(self) -> Tensor:
        return self._projected("K")

    def _attn_v(self) -> Tensor:
        return self._projected("V")

    def _attn_rot_q(self) -> Tensor:
        return rotated(self._model, self["attn.hook_q"], self["hook_resid_pre"].shape[1])

    def _attn_rot_k(self) -> Tensor:
        return rotated(self._model, self["attn.hook_k"], self["hook_resid_pre"].shape[1])

    @property
    def _queries_and_keys(self) -> tuple[Tensor, Tensor]:
        """[batch, head, pos, d_head]."""
        if self._in_pairs:
            n_pos = self["hook_resid_pre"].shape[1]
            q, k = (rotated_pairs(self._model, self._projected(name), n_pos).transpose(1, 2) for name in "QK")
            return q, k
        rotary = "rot_" if self._model.positional_embedding_type == "rotary" else ""
        q, k = (self[f"attn.hook_{rotary}{name}"].transpose(1, 2) for name in "qk")
        return q, k

    @property
    def _scale(self) -> float:
        return self._parameters["attn.W_Q"].shape[-1] ** -0.5 if self._model.use_attn_scale else 1.0

    def _attn_attn_scores(self) -> Float[Tensor, "batch head query key"]:
        q, k = self._queries_and_keys
        mask, of_heads = self._mask(q, k), q.shape[:2]
        q, k = (q * self._scale).flatten(0, 1), k.flatten(0, 1).transpose(-2, -1)
        mask = None if mask is None else mask.expand(*of_heads, -1, -1).flatten(0, 1)
        return (q @ k if mask is None else torch.baddbmm(mask, q, k)).unflatten(0, of_heads)

    def _mask(self, q: Tensor, k: Tensor) -> Float[Tensor, "#head query key"] | None:
        """What is added to scores: −∞ where the key is later, which no key is than the target, and biases."""
        mask = None if self._target_only else later(k.shape[2], k.dtype, k.device)[-q.shape[2] :]
        if self._model.positional_embedding_type != "relative_positional_bias":
            return mask if mask is None else mask[None]
        buckets = distance_buckets(self._model, k.shape[2]).to(k.device)[-q.shape[2] :]
        biases = functional.embedding(buckets, self._parameters["attn.rel_pos_bias"]).permute(2, 0, 1)
        return biases if mask is None else biases + mask

    def _attn_pattern(self) -> Float[Tensor, "batch head query key"]:
        return attention_pattern(self["attn.hook_attn_scores"])

    def _attn_z(self) -> Float[Tensor, "batch query head d_head"]:
        v = self["attn.hook_v"].transpose(1, 2)
        short = not self._fused_attention or v.shape[2] <= SHORT
        if short or self._needs("attn.hook_attn_scores", "attn.hook_pattern"):
            return (self["attn.hook_pattern"] @ v).transpose(1, 2)
        q, k = self._queries_and_keys
        biased = self._model.positional_embedding_type == "relative_positional_bias"
        mask, causal = self._mask(q, k) if biased else None, not (biased or self._target_only)
        mask = mask if mask is None else mask[None]
        z = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=self._scale)
        return z.transpose(1, 2)

    def _attn_out(self) -> Float[Tensor, "batch query d_model"]:
        z, W_O, b_O = self["attn.hook_z"], self._parameters.get("attn.W_O"), self._parameters.get("attn.b_O")
        if W_O is not None:
            return linear(z.flatten(2), W_O.flatten(0, 1), b_O)
        return z.sum(dim=2) if b_O is None else z.sum(dim=2) + b_O

    def _resid_mid(self) -> Float[Tensor, "batch query d_model"]:
        return self._asking(self["hook_resid_pre"]) + self["hook_attn_out"]

    @property
    def _mlp_input(self) -> Float[Tensor, "batch query d_model"]:
        """The residual stream that the MLP reads."""
        residual = self[mlp_input(self._model)]
        return self._asking(residual) if self._model.parallel_attn_mlp else residual

    def _ln2_scale(self) -> Tensor:
        return scale_of(self._model, self._mlp_input)

    def _ln2_normalized(self) -> Tensor:
        return normalized(self._model, self._mlp_input, self["ln2.hook_scale"])

    def _mlp_pre(self) -> Float[Tensor, "batch query d_mlp"]:
        x = self._read("ln2", self._mlp_input)
        return linear(x, self._parameters["mlp.W_in"], self._parameters.get("mlp.b_in"))

    def _mlp_post(self) -> Float[Tensor, "batch query d_mlp"]:
        return ACTIVATIONS[self._model.act_fn](self["mlp.hook_pre"])

    def _mlp_out(self) -> Float[Tensor, "batch query d_model"]:
        return linear(self["mlp.hook_post"], self._parameters["mlp.W_out"], self._parameters.get("mlp.b_out"))

    def _resid_post(self) -> Float[Tensor, "batch query d_model"]:
        if self._model.attn_only:
            return self._resid_mid()
        after_attention = self._resid_mid() if self._model.parallel_attn_mlp else self["hook_resid_mid"]
        return after_attention + self["hook_mlp_out"]


def linear(x: Float[Tensor, "*any into"], W: Float[Tensor, "into out"], b: Tensor | None) -> Float[Tensor, "*any out"]:
    """x W + b, by one product of two matrices, also under `torch.func.vmap`, and the bias added by it."""
    rows = x.flatten(0, -2)
    return (rows @ W if b is None else torch.addmm(b, rows, W)).unflatten(0, x.shape[:-1])


def scale_of(model: TransformerConfig, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any 1"]:
    """σ, by which a normalisation divides."""
    return (_centred(model, x).square().mean(dim=-1, keepdim=True) + EPSILON).sqrt()


def normalized(
    model: TransformerConfig, x: Float[Tensor, "*any d_model"], scale: Float[Tensor, "*any 1"]
) -> Float[Tensor, "*any d_model"]:
    """(x − ⟨x⟩)/σ, or x/σ of RMSNorm."""
    return _centred(model, x) / scale


def normalized_at_once(
    model: TransformerConfig, parameters: Mapping[str, Tensor], name: str, x: Float[Tensor, "*any d_model"]
) -> Float[Tensor, "*any d_model"]:
    """`scaled_and_shifted` of `normalized`, by torch's fused functions."""
    w, b = parameters.get(f"{name}.w"), parameters.get(f"{name}.b")
    if str(model.normalization_type).startswith("LN"):
        return functional.layer_norm(x, x.shape[-1:], w, b, EPSILON)
    return functional.rms_norm(x, x.shape[-1:], w, EPSILON)


def scaled_and_shifted(
    parameters: Mapping[str, Tensor], name: str, x: Float[Tensor, "*any d_model"]
) -> Float[Tensor, "*any d_model"]:
    """x ⊙ w + b, with the trained parameters that a normalisation has."""
    w, b = parameters.get(f"{name}.w"), parameters.get(f"{name}.b")
    x = x if w is None else x * w
    return x if b is None else x + b


def _centred(model: TransformerConfig, x: Tensor) -> Tensor:
    return x - x.mean(dim=-1, keepdim=True) if str(model.normalization_type).startswith("LN") else x


def attention_pattern(scores: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
    """The pattern of attention scores: a softmax over the keys."""
    return scores.softmax(dim=-1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def later(n_pos: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "query key"]:
    """−∞ where the key is after the query, 0 elsewhere."""
    return torch.full((n_pos, n_pos), -torch.inf, dtype=dtype, device=device).triu(1)


def rotated(
    model: TransformerConfig, x: Float[Tensor, "batch rows head d_head"], n_pos: int
) -> Float[Tensor, "batch rows head d_head"]:
    """Rotary positions: dimensions i and i + r/2 of the first r are rotated by the angle position · base^(−2i/r).

    The rows are the last ones of `n_pos` positions.
    """
    size, width = model.rotary_dim or x.shape[-1], x.shape[-1]
    cos, sin = _rotation(size, width, model.rotary_base, n_pos, x.dtype, x.device)
    first, second, rest = x.split([size // 2, size // 2, width - size], dim=-1)
    turned = torch.cat([second, first, rest], dim=-1)
    return torch.addcmul(x * cos[-x.shape[1] :], turned, sin[-x.shape[1] :])


def rotated_pairs(
    model: TransformerConfig, x: Float[Tensor, "batch rows head d_head"], n_pos: int
) -> Float[Tensor, "batch rows head d_head"]:
    """`rotated` with dimensions i and i + r/2 beside each other, as a product of complex numbers."""
    width = x.shape[-1]
    cos, sin = (table[-x.shape[1] :] for table in _rotation(width, width, model.rotary_base, n_pos, x.dtype, x.device))
    turn = torch.complex(cos[..., : width // 2], sin[..., width // 2 :])
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _rotation(
    size: int, width: int, base: float, n_pos: int, dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "pos 1 width"], Float[Tensor, "pos 1 width"]]:
    """Cosines, which are 1 in the dimensions that are not rotated, and signed sines, which are 0 there."""
    frequency = base ** (-torch.arange(size // 2, dtype=torch.float64) / (size // 2))
    angle = torch.arange(n_pos, dtype=torch.float64)[:, None, None] * frequency
    cos, sin, rest = angle.cos(), angle.sin(), torch.zeros(n_pos, 1, width - size, dtype=torch.float64)
    tables = torch.cat([cos, cos, rest + 1], dim=-1), torch.cat([-sin, sin, rest], dim=-1)
    return tables[0].to(device, dtype), tables[1].to(device, dtype)


def sinusoidal(n_pos: int, d_model: int, like: Tensor) -> Float[Tensor, "pos d_model"]:
    """The positions of Vaswani et al. 2017: sines and cosines of position · 10000^(−2i/d), interleaved."""
    frequency = 10_000 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angle = torch.arange(n_pos, dtype=torch.float64)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(like)


def distance_buckets(model: TransformerConfig, n_pos: int) -> Int[Tensor, "query key"]:
    """The bucket of the distance i − j ≥ 0 of a key from a query: of the first half of the buckets one for every
    distance, of the others one for a range of distances, logarithmically, up to the largest (T5, one direction)."""
    return _buckets(model.relative_attention_num_buckets, model.relative_attention_max_distance, n_pos)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _buckets(n: int, largest: int, n_pos: int) -> Int[Tensor, "query key"]:
    exact = n // 2
    distance = (torch.arange(n_pos)[:, None] - torch.arange(n_pos)).clamp(min=0)
    span = math.log(max(largest / exact, 1 + 1e-9))
    far = exact + (torch.log(distance.clamp(min=1) / exact) / span * (n - exact)).long()
    return torch.where(distance < exact, distance, far.clamp(max=n - 1))
