"""Run a network again with one activation replaced, computing only what that changes.

Patching and ablation ask for thousands of such runs. From `activations`, everything before the replaced hook is
known; after it, products are associated so that value and key matrices act on few vectors, and of the last layer
only the target's row is computed, which alone is read. The result is that of `model.run_with_hooks` with a hook that
returns the replacement (the tests compare every hook), for any number of layers and heads.

Hooks: ``hook_embed``, ``blocks.{l}.hook_resid_pre``, ``.attn.hook_{q,k,v,attn_scores,pattern,z}``, ``.hook_attn_out``,
``.hook_resid_post``, ``classifier.hook_in``, ``classifier.layers.{i}.hook_{pre,post}``, ``classifier.hook_logits``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mechinterp.errors import unknown_name

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Activations:
    """Every activation of a network on a batch, by TransformerLens hook name."""

    parameters: Parameters
    values: dict[str, Tensor]

    @property
    def logits(self) -> Float[Tensor, "batch n_labels"]:
        """The network's answer."""
        return self.values["classifier.hook_logits"]

    @property
    def n_layers(self) -> int:
        """Attention layers."""
        return sum(name.endswith("attn.W_Q") for name in self.parameters)

    @property
    def n_heads(self) -> int:
        """Heads in each layer."""
        return self.parameters["blocks.0.attn.W_Q"].shape[0]

    def __getitem__(self, hook: str) -> Tensor:
        if hook not in self.values:
            raise unknown_name("hook", hook, self.values)
        return self.values[hook]


def parameters_of(model: Parameters | nn.Module) -> Parameters:
    """The trained parameters of a hooked model, by name; parameters as they are."""
    if not isinstance(model, nn.Module):
        return model
    own = dict(model.named_parameters())
    return {name: own[name].detach() for name in getattr(model, "trained", own)}


def activations(parameters: Parameters | nn.Module, inputs: Float[Tensor, "batch pos d_token"]) -> Activations:
    """All activations on a batch; inputs are padded with zeros to the width of the network."""
    parameters = parameters_of(parameters)
    kind = parameters["classifier.readout.W"]
    width = parameters["blocks.0.attn.W_Q"].shape[1]
    residual = functional.pad(inputs.to(kind.dtype), (0, width - inputs.shape[-1]))
    found = Activations(parameters, {"hook_embed": residual})
    for layer in range(found.n_layers):
        at, attn = f"blocks.{layer}", f"blocks.{layer}.attn"
        W_Q, W_K, W_V = (parameters[f"{attn}.W_{matrix}"] for matrix in "QKV")
        q, k, v = (torch.einsum("bpd,hdk->bphk", residual, W) for W in (W_Q, W_K, W_V))
        scores = _mask(torch.einsum("bqhk,bphk->bhqp", q, k))
        pattern = scores.softmax(dim=-1)
        z = torch.einsum("bhqp,bphk->bqhk", pattern, v)
        found.values[f"{at}.hook_resid_pre"] = residual
        named = {"q": q, "k": k, "v": v, "attn_scores": scores, "pattern": pattern, "z": z}
        found.values.update({f"{attn}.hook_{name}": value for name, value in named.items()})
        found.values[f"{at}.hook_attn_out"] = z.sum(dim=2)  # W_O is the identity
        residual = found.values[f"{at}.hook_resid_post"] = residual + z.sum(dim=2)
    found.values["classifier.hook_in"] = residual[:, -1]
    found.values.update(_classify(parameters, "classifier.hook_in", residual[:, -1]))
    return found


def rerun(
    base: Activations, hook: str, value: Tensor, also: Mapping[str, Tensor] | None = None
) -> Float[Tensor, "batch n_labels"]:
    """Logits of the network on the batch of `base`, with the activation at `hook` replaced by `value`.

    `also` gives activations of the same layer that are known to follow from it, by short name (``q``, ``k``, ``v``),
    which are then not computed.
    """
    if base[hook].shape != value.shape:
        raise ValueError(f"{hook} has shape {tuple(base[hook].shape)}, the replacement {tuple(value.shape)}")
    if hook == "classifier.hook_logits":
        return value
    if hook.startswith("classifier."):
        return _classify(base.parameters, hook, value)["classifier.hook_logits"]
    if hook == "hook_embed":
        hook = "blocks.0.hook_resid_pre"
    layer, name = int(hook.split(".")[1]), hook.split("hook_")[1]
    known = {"resid_pre": base[f"blocks.{layer}.hook_resid_pre"]}
    if name in ("q", "k", "v"):  # the other two stay
        known |= {each: base[f"blocks.{layer}.attn.hook_{each}"] for each in "qkv"}
    elif name in ("attn_scores", "pattern"):
        known["v"] = base[f"blocks.{layer}.attn.hook_v"]
    known |= {name: value, **(also or {})}
    residual = _finish(base, layer, known)
    for later in range(layer + 1, base.n_layers):
        residual = _finish(base, later, {"resid_pre": residual})
    return _classify(base.parameters, "classifier.hook_in", residual[:, -1])["classifier.hook_logits"]


def _finish(base: Activations, layer: int, known: dict[str, Tensor]) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after a layer of which some activations are known; after the last, the target's only."""
    if "resid_post" in known:
        return known["resid_post"]
    last = layer == base.n_layers - 1
    rows = slice(-1, None) if last else slice(None)
    residual = known["resid_pre"]
    if "attn_out" in known:
        return (residual + known["attn_out"])[:, rows]
    W_Q, W_K, W_V = (base.parameters[f"blocks.{layer}.attn.W_{matrix}"] for matrix in "QKV")
    if "z" in known:
        return (residual + known["z"].sum(dim=2))[:, rows]
    if "pattern" in known:
        pattern = known["pattern"][:, :, rows]
    elif "attn_scores" in known:
        pattern = known["attn_scores"][:, :, rows].softmax(dim=-1)
    else:
        q = known["q"][:, rows] if "q" in known else torch.einsum("bpd,hdk->bphk", residual[:, rows], W_Q)
        if "k" in known:
            scores = torch.einsum("bqhk,bphk->bhqp", q, known["k"])
        else:
            scores = torch.einsum("bqhk,hdk->bhqd", q, W_K) @ residual.transpose(1, 2)[:, None]
        pattern = (scores if last else _mask(scores)).softmax(dim=-1)
    if "v" in known:
        out = torch.einsum("bhqp,bphk->bqk", pattern, known["v"])
    else:
        out = torch.einsum("bhqd,hdk->bqk", pattern @ residual[:, None], W_V)
    return residual[:, rows] + out


def _mask(scores: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
    n_pos = scores.shape[-1]
    return scores.masked_fill(torch.ones(n_pos, n_pos, dtype=torch.bool).triu(1), -torch.inf)


def _classify(parameters: Parameters, hook: str, value: Tensor) -> dict[str, Tensor]:
    """The classifier's activations after `hook`, which has the given value."""
    depth = sum(name.endswith(".b") for name in parameters)
    start, found = 0, {}
    if hook.startswith("classifier.layers."):
        start = int(hook.split(".")[2]) + 1
        value = value if hook.endswith("post") else torch.relu(value)
    for i in range(start, depth):
        pre = value @ parameters[f"classifier.layers.{i}.W"] + parameters[f"classifier.layers.{i}.b"]
        value = torch.relu(pre)
        found |= {f"classifier.layers.{i}.hook_pre": pre, f"classifier.layers.{i}.hook_post": value}
    return found | {"classifier.hook_logits": value @ parameters["classifier.readout.W"]}
