"""The forward pass of a canonical network: with hooks, with a cache, or from any activation onwards.

Hooks have TransformerLens' names (B sequences, T positions, H heads, d = d_model, W classifier width, L labels):

==========================================  ==========================================================
``hook_embed``                              [B, T, d], the tokens (`Network.embed`)
``blocks.{l}.hook_resid_{pre,post}``        [B, T, d], the residual stream before and after a layer
``blocks.{l}.attn.hook_{q,k,v}``            [B, T, H, d]
``blocks.{l}.attn.hook_attn_scores``        [B, H, query, key], −∞ where the key is later
``blocks.{l}.attn.hook_pattern``            [B, H, query, key], rows sum to 1
``blocks.{l}.attn.hook_z``                  [B, query, H, d]
``blocks.{l}.hook_attn_out``                [B, query, d], the sum of z over heads, as W_O is the identity
``classifier.hook_in``                      [B, d], the target's residual stream
``classifier.layers.{i}.hook_{pre,post}``   [B, W]
``classifier.hook_logits``                  [B, L]
==========================================  ==========================================================

Networks with further parts (`models.layer`) also have, where they have the part, with q, k, v and z [B, T, H, d_head]:

==========================================  ==========================================================
``hook_pos_embed``                          [B, T, d], the vectors of positions
``blocks.{l}.ln{1,2}.hook_scale``           [B, T, 1], σ of what attention and the MLP read
``blocks.{l}.ln{1,2}.hook_normalized``      [B, T, d], normalised, before the trained scale and shift
``blocks.{l}.attn.hook_rot_{q,k}``          [B, T, H, d_head], rotated queries and keys
``blocks.{l}.hook_resid_mid``               [B, T, d], the residual stream between attention and the MLP, unless they
                                            are in parallel
``blocks.{l}.mlp.hook_{pre,post}``          [B, T, d_mlp]
``blocks.{l}.hook_mlp_out``                 [B, T, d]
``ln_final.hook_{scale,normalized}``        [B, T, 1] and [B, T, d]; of a classifier [B, 1] and [B, d]
``unembed.hook_out``                        [B, T, L], the logits, in place of the classifier's hooks
==========================================  ==========================================================

Of networks without such parts, activations that are hooked or kept are computed as in the table. Otherwise products
are associated so that value and key matrices act on few vectors, and after the last layer only the target is computed.
Results are those of the hooked model (`models.hooked`), up to rounding.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from mechinterp.errors import unknown_name
from mechinterp.models.classifier import readout
from mechinterp.models.layer import (
    Layer,
    at_target,
    attention_pattern,
    linear,
    normalized,
    normalized_at_once,
    scale_of,
    scaled_and_shifted,
    sinusoidal,
    unchanged_by,
)
from mechinterp.models.network import Network, require_inputs, require_positions

Hooks = Mapping[str, Callable[[Tensor], Tensor | None]]
"""Functions that replace an activation, by hook name; they return the new one, or change the given one in place."""

_UNCHANGED = {"q": ("k", "v"), "k": ("q", "v"), "v": ("pattern",), "attn_scores": ("v",), "pattern": ("v",)}
"""Activations of a layer's attention that do not depend on another one, by short names."""


@dataclass(frozen=True)
class Activations:
    """Activations of a network on a batch, by TransformerLens hook name."""

    network: Network
    values: dict[str, Tensor]
    fused_attention: bool = True
    """Whether `forward_from` may use torch's fused attention, which has no rule for `torch.func.vmap`."""

    @property
    def logits(self) -> Float[Tensor, "batch n_labels"]:
        """The network's answer at the target."""
        unembedded = self.values.get("unembed.hook_out")
        return self.values["classifier.hook_logits"] if unembedded is None else unembedded[:, -1]

    @property
    def n_layers(self) -> int:
        """Attention layers."""
        return self.network.n_layers

    @property
    def n_heads(self) -> int:
        """Heads in a layer."""
        return self.network.n_heads

    def __getitem__(self, hook: str) -> Tensor:
        if hook not in self.values:
            raise unknown_name("hook", hook, self.values)
        return self.values[hook]

    def forward_from(
        self, hook: str, value: Tensor, also: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "batch n_labels"]:
        """Logits with the activation at `hook` replaced by `value`; activations before it are not computed again.

        `also` has activations of the same layer that are known to follow from `value`, by short name (``q``, ``k``,
        ``v``). Takes the activations of `run_with_cache` at all hooks, or at those of `hooks_to_go_on`.
        """
        if self[hook].shape != value.shape:
            raise ValueError(f"{hook} has shape {tuple(self[hook].shape)}, the replacement {tuple(value.shape)}")
        if not self.network.model.is_classic:
            return self._general_from(hook, value, {f"attn.hook_{name}": of for name, of in (also or {}).items()})
        if hook.startswith("classifier."):
            return _classify(self.network, {hook: value}, self._tap)
        if hook == "hook_embed":
            hook = "blocks.0.hook_resid_pre"
        layer, name = int(hook.split(".")[1]), hook.split("hook_")[1]
        known = {"resid_pre": self[f"blocks.{layer}.hook_resid_pre"]}
        stay = {other: f"blocks.{layer}.attn.hook_{other}" for other in _UNCHANGED.get(name, ())}
        known |= {other: self[kept] for other, kept in stay.items() if kept in self.values}
        tap = self._tap
        residual = _after_layer(self.network, layer, known | {name: value, **(also or {})}, tap)
        for later in range(layer + 1, self.n_layers):
            residual = _after_layer(self.network, later, {"resid_pre": residual}, tap)
        return _classify(self.network, {"classifier.hook_in": residual[:, -1]}, tap)

    @property
    def _tap(self) -> "Tap":
        return Tap(fused_attention=self.fused_attention)

    def _general_from(self, hook: str, value: Tensor, also: Mapping[str, Tensor]) -> Float[Tensor, "batch n_labels"]:
        """`forward_from` of a network with further parts."""
        network, tap, known = self.network, self._tap, dict(self.values) | {hook: value}
        if hook.startswith(("unembed.", "classifier.")):
            return value[:, -1] if hook == "unembed.hook_out" else _classify(network, {hook: value}, tap)
        if hook.startswith("ln_final."):
            of_norm = {name: known[name] for name in known if name.startswith("ln_final.")}
            if hook == "ln_final.hook_scale":
                of_norm.pop("ln_final.hook_normalized")
            last = self[f"blocks.{self.n_layers - 1}.hook_resid_post"]
            return _answer(network, last, tap, of_norm).logits
        start, positions, last = 0, known.get("hook_pos_embed"), self.n_layers - 1
        if hook.startswith("blocks."):
            start = int(hook.split(".")[1])
            prefix = f"blocks.{start}."
            replaced = hook.removeprefix(prefix)
            of_layer = {name.removeprefix(prefix): known[name] for name in known if name.startswith(prefix)}
            of_layer = unchanged_by(network.model, replaced, of_layer) | {replaced: value, **also}
        else:
            of_layer = {"hook_resid_pre": _placed(network, known["hook_embed"], positions), **also}
        for layer in range(start, self.n_layers):
            of_layer = at_target(of_layer) if layer == last else of_layer
            residual = _general_layer(network, layer, of_layer, tap, positions, layer == last)
            of_layer = {"hook_resid_pre": residual}
        residual = of_layer["hook_resid_pre"]
        return _answer(network, residual, tap).logits


def hooks_to_go_on(network: Network, hook: str) -> list[str]:
    """The hooks whose activations `Activations.forward_from` needs to go on from one hook."""
    if hook.startswith(("classifier.", "unembed.")):
        return [hook]
    if hook.startswith("ln_final."):
        return [hook, f"blocks.{network.n_layers - 1}.hook_resid_post"]
    layer = hook.split(".")[1] if hook.startswith("blocks.") else "0"
    needed = {hook, "hook_embed", "hook_pos_embed", f"blocks.{layer}.hook_resid_pre"}
    if hook.endswith("attn.hook_v"):  # whose pattern stays
        needed.add(f"blocks.{layer}.attn.hook_pattern")
    return [name for name in network.hook_names if name in needed]


def forward(
    network: Network,
    inputs: Tensor,
    hooks: Hooks | None = None,
    *,
    target_only: bool = False,
) -> Float[Tensor, "batch n_labels"]:
    """Logits at the last token, the target; see `run_with_cache`."""
    return run_with_cache(network, inputs, (), hooks, target_only=target_only).logits


def run_with_cache(
    network: Network,
    inputs: Tensor,
    names: Collection[str] | None = None,
    hooks: Hooks | None = None,
    *,
    target_only: bool = False,
) -> Activations:
    """Activations at the hooks in `names` (None: at all) and the logits, with `hooks` in place.

    Inputs are vectors [batch, pos, d_token], or tokens [batch, pos] of a network with an embedding. With
    `target_only`, the last layer's queries (of its q, scores, pattern and z) are the target's alone, as training needs
    no others. An unknown hook raises UnknownNameError.
    """
    tap = Tap(hooks or {}, names)
    for name in (*tap.hooks, *(names or ())):
        if name not in network.hook_names:
            raise unknown_name("hook", name, network.hook_names)
    task = network.config.task
    require_inputs(inputs, {task.d_model} | ({network.d_model} if network.model.is_classic else set()), task.d_vocab)
    return run_unchecked(network, inputs, tap, target_only)


def run_unchecked(network: Network, inputs: Tensor, tap: "Tap", target_only: bool) -> Activations:
    """`run_with_cache` on inputs and with hooks that are known to fit; also under `torch.func.vmap`."""
    residual = tap("hook_embed", network.embed(inputs))
    if not network.model.is_classic:
        positions = _positions(network, residual, tap)
        residual = _placed(network, residual, positions)
        for layer in range(network.n_layers):
            last = target_only and layer + 1 == network.n_layers
            before = {"hook_resid_pre": tap(f"blocks.{layer}.hook_resid_pre", residual)}
            residual = _general_layer(network, layer, before, tap, positions, last)
        return _answer(network, residual, tap)
    for layer in range(network.n_layers):
        residual = tap(f"blocks.{layer}.hook_resid_pre", residual)
        residual = _after_layer(network, layer, {"resid_pre": residual}, tap, target_only)
    logits = _classify(network, {"classifier.hook_in": tap("classifier.hook_in", residual[:, -1])}, tap)
    return Activations(network, tap.kept | {"classifier.hook_logits": logits})


def _positions(network: Network, embedded: Tensor, tap: "Tap") -> Float[Tensor, "batch pos d_model"] | None:
    """The vectors of positions, of a network that has such."""
    n_pos = embedded.shape[1]
    if not network.model.has_position_vectors:
        return None
    require_positions(network.config, n_pos)
    if network.model.positional_embedding_type == "sinusoidal":
        vectors = sinusoidal(n_pos, network.d_model, embedded)
    else:
        vectors = network.parameters["pos_embed.W_pos"][:n_pos]
    return tap("hook_pos_embed", vectors.expand_as(embedded))


def _placed(network: Network, embedded: Tensor, positions: Tensor | None) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream before the first layer."""
    shortformer = network.model.positional_embedding_type == "shortformer"
    return embedded if positions is None or shortformer else embedded + positions


def _general_layer(
    network: Network,
    layer: int,
    known: Mapping[str, Tensor],
    tap: "Tap",
    positions: Tensor | None,
    target_only: bool = False,
) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after a layer with further parts, from activations of it, named without the prefix."""
    prefix = f"blocks.{layer}."
    activations = Layer(
        network.model,
        network.of_layer(layer),
        known,
        lambda name, value: tap(prefix + name, value),
        target_only=target_only,
        wants=lambda *names: tap.wants(*(prefix + name for name in names)),
        fused_attention=tap.fused_attention,
        positions=positions if network.model.positional_embedding_type == "shortformer" else None,
    )
    return activations["hook_resid_post"]


def attention_scores(
    network: Network, layer: int, q: Float[Tensor, "batch query head d_head"], k: Float[Tensor, "batch key head d_head"]
) -> Float[Tensor, "batch head query key"]:
    """The scores of a layer's queries, which may be the last ones alone, and keys: masked, with positions and scale."""
    known = {"hook_resid_pre": q.new_empty(len(q), k.shape[1], 0), "attn.hook_q": q, "attn.hook_k": k}
    return Layer(network.model, network.of_layer(layer), known, lambda _, value: value, wants=lambda *_: False)[
        "attn.hook_attn_scores"
    ]


def _answer(
    network: Network,
    residual: Float[Tensor, "batch pos d_model"],
    tap: "Tap",
    known: Mapping[str, Tensor] | None = None,
) -> Activations:
    """What was kept, and the logits, from the last residual stream."""
    model, known = network.model, known or {}
    x = residual[:, -1] if model.output == "classifier" else residual
    norm = ("ln_final.hook_scale", "ln_final.hook_normalized")
    if model.normalization_type and model.final_norm and not known and not tap.wants(*norm):
        x = normalized_at_once(model, network.parameters, "ln_final", x)
    elif model.normalization_type and model.final_norm:
        scale, after = known.get("ln_final.hook_scale"), known.get("ln_final.hook_normalized")
        if after is None:
            scale = tap("ln_final.hook_scale", scale_of(model, x)) if scale is None else scale
            after = tap("ln_final.hook_normalized", normalized(model, x, scale))
        x = scaled_and_shifted(network.parameters, "ln_final", after)
    if model.output == "classifier":
        logits = _classify(network, {"classifier.hook_in": tap("classifier.hook_in", x)}, tap)
        return Activations(network, tap.kept | {"classifier.hook_logits": logits})
    logits = linear(x, network.parameters["unembed.W_U"], network.parameters.get("unembed.b_U"))
    logits = tap("unembed.hook_out", logits)
    return Activations(network, tap.kept | {"unembed.hook_out": logits})


class Tap:
    """Applies hooks to activations, and keeps those whose names are given (None: all)."""

    def __init__(self, hooks: Hooks | None = None, names: Collection[str] | None = (), *, fused_attention: bool = True):
        """Without `fused_attention`, patterns are computed though nobody asks for them: torch's fused attention has no
        rule for `torch.func.vmap`."""
        self.hooks, self._names, self.fused_attention = hooks or {}, names, fused_attention
        self.kept: dict[str, Tensor] = {}

    def __call__(self, name: str, value: Tensor) -> Tensor:
        if name in self.hooks:
            copy = value.clone()  # a hook may change its argument in place, and `value` may have been kept
            changed = self.hooks[name](copy)
            value = copy if changed is None else changed
        if self._names is None or name in self._names:
            self.kept[name] = value
        return value

    def wants(self, *names: str) -> bool:
        """Whether any of these activations is hooked or kept."""
        return self._names is None or any(name in self.hooks or name in self._names for name in names)


def _after_layer(
    network: Network, layer: int, known: Mapping[str, Tensor], tap: Tap, target_only: bool = False
) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after a layer, from the given activations of it; of the last layer, at the target."""
    block, attn = f"blocks.{layer}", f"blocks.{layer}.attn"
    last, target = layer == network.n_layers - 1, slice(-1, None)
    after = last and not tap.wants(f"{attn}.hook_z", f"{block}.hook_attn_out", f"{block}.hook_resid_post")
    rows = target if after or (last and target_only) else slice(None)
    residual = known["resid_pre"]
    if "resid_post" in known:
        return known["resid_post"]
    if "attn_out" in known:
        return residual[:, rows] + known["attn_out"][:, rows]
    if "z" in known:
        return residual[:, rows] + _sum_of_heads(known["z"][:, rows])
    asked = tap.wants(f"{attn}.hook_q", f"{attn}.hook_attn_scores", f"{attn}.hook_pattern")
    queries = rows if target_only or not asked else slice(None)
    pattern = known.get("pattern")
    pattern = _attend(network, layer, known, tap, attn, queries) if pattern is None else pattern[:, :, rows]
    columns, z = _read(network, layer, known, tap, attn, pattern, rows)
    if z.shape[-1] < network.d_model and not tap.wants(f"{attn}.hook_z", f"{block}.hook_attn_out"):
        before = residual[:, rows]
        written = before[..., columns] + _sum_of_heads(z)  # not in place: under vmap z alone may be several
        parts = [before[..., : columns.start], written, before[..., columns.stop :]]
        return tap(f"{block}.hook_resid_post", torch.cat(parts, dim=-1))
    if z.shape[-1] < network.d_model:
        z = pad(z, (columns.start, network.d_model - columns.stop))
    z = tap(f"{attn}.hook_z", z)
    out = tap(f"{block}.hook_attn_out", _sum_of_heads(z))
    return tap(f"{block}.hook_resid_post", residual[:, -out.shape[1] :] + out)


def _attend(
    network: Network, layer: int, known: Mapping[str, Tensor], tap: Tap, attn: str, queries: slice
) -> Float[Tensor, "batch head query key"]:
    """The attention pattern of these queries over the keys up to the query."""
    if "attn_scores" in known:
        return attention_pattern(known["attn_scores"][:, :, queries])
    scores = _scores(network, layer, known, tap, attn, queries)
    n_queries, n_pos = scores.shape[2:]
    if n_queries > 1:  # no key is later than the target
        later = torch.ones(n_pos, n_pos, dtype=torch.bool, device=scores.device).triu(1)[-n_queries:]
        scores = scores.masked_fill(later, -torch.inf)
    scores = tap(f"{attn}.hook_attn_scores", scores)
    return tap(f"{attn}.hook_pattern", attention_pattern(scores))


def _scores(
    network: Network, layer: int, known: Mapping[str, Tensor], tap: Tap, attn: str, queries: slice
) -> Float[Tensor, "batch head query key"]:
    """q_i·k_j, unmasked; as x_i (W_Q W_Kᵀ) x_j where neither q nor k is hooked or kept and queries are many."""
    residual = known["resid_pre"]
    asking, q = residual[:, queries], known["q"][:, queries] if "q" in known else None
    few = asking.shape[0] * asking.shape[1] < network.d_model
    keys = "k" in known or tap.wants(f"{attn}.hook_k")
    if q is None and (keys or few or tap.wants(f"{attn}.hook_q")):
        q = tap(f"{attn}.hook_q", torch.einsum("bpd,hdk->bphk", asking, network.matrix(layer, "Q")))
    if q is None:
        rows, columns, product = network.qk(layer)
        sought = torch.einsum("bqd,hde->bhqe", asking[..., rows], product)
        return sought @ residual[..., columns].transpose(1, 2)[:, None]
    if not keys:
        sought = torch.einsum("bqhk,hdk->bhqd", q, network.matrix(layer, "K"))
        return sought @ residual.transpose(1, 2)[:, None]
    k = known["k"] if "k" in known else torch.einsum("bpd,hdk->bphk", residual, network.matrix(layer, "K"))
    return torch.einsum("bqhk,bphk->bhqp", q, k if "k" in known else tap(f"{attn}.hook_k", k))


def _read(
    network: Network,
    layer: int,
    known: Mapping[str, Tensor],
    tap: Tap,
    attn: str,
    pattern: Float[Tensor, "batch head query key"],
    rows: slice,
) -> tuple[slice, Float[Tensor, "batch row head written"]]:
    """z_i = Σ_j p_ij v_j for these rows, and the columns outside of which it is zero.

    It is computed as (Σ_j p_ij x_j) W_V where v is not hooked or kept.
    """
    residual, pattern = known["resid_pre"], pattern[:, :, rows]
    if "v" not in known and not tap.wants(f"{attn}.hook_v"):
        inside, columns, W_V = network.block(layer, "V")
        return columns, torch.einsum("bhqd,hde->bqhe", pattern @ residual[:, None, :, inside], W_V)
    v = known["v"] if "v" in known else torch.einsum("bpd,hdk->bphk", residual, network.matrix(layer, "V"))
    v = v if "v" in known else tap(f"{attn}.hook_v", v)
    return slice(None), torch.einsum("bhqp,bphk->bqhk", pattern, v)


def _sum_of_heads(z: Float[Tensor, "batch pos head written"]) -> Float[Tensor, "batch pos written"]:
    return z[:, :, 0] if z.shape[2] == 1 else z.sum(dim=2)


def _classify(network: Network, known: Mapping[str, Tensor], tap: Tap) -> Float[Tensor, "batch n_labels"]:
    """The classifier's logits from one of its activations."""
    ((hook, x),) = known.items()
    if hook == "classifier.hook_logits":
        return x
    start = 0
    if hook != "classifier.hook_in":
        start = int(hook.split(".")[2]) + 1
        x = torch.relu(x) if hook.endswith("pre") else x
    for i in range(start, network.depth):
        layer = f"classifier.layers.{i}"
        pre = tap(f"{layer}.hook_pre", x @ network.parameters[f"{layer}.W"] + network.parameters[f"{layer}.b"])
        x = tap(f"{layer}.hook_post", torch.relu(pre))
    return tap("classifier.hook_logits", readout(network.parameters, x))


def classify(network: Network, x: Float[Tensor, "batch d_token"]) -> Float[Tensor, "batch n_labels"]:
    """The classifier's logits for targets without attention."""
    return _classify(network, {"classifier.hook_in": network.embed(x)}, Tap())
