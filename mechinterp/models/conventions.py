"""Conventions that the paper leaves unsaid, and the plain network that computes the same.

Reddy 2023 scales no scores, has no separate output matrix, and does not say whether a hidden layer of the classifier
has one bias or a vector of them; Nguyen & Reddy 2024 have one logit for two labels. A config may choose otherwise; such
a network has other parameters and is trained otherwise, but it computes what a plain one does, with

    W_Q ← W_Q / √d_head    use_attn_scale,
    W_V ← W_V W_O          output_matrix = "trained",
    b   ← b·1              classifier_bias = "shared",
    W   ← (W/2, −W/2)      readout = "difference", of the classifier's readout.

and the additive model is a plain network with tied weights (`models.additive`). Whatever analyses a checkpoint reads
that plain network, so every analysis applies unchanged.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mechinterp.config import RunConfig, TransformerConfig
from mechinterp.models.additive import as_transformer, untied

_PLAIN = {"use_attn_scale": False, "output_matrix": "identity", "classifier_bias": "vector", "readout": "per_label"}


def plain(config: RunConfig) -> RunConfig:
    """The config of the plain network; the same config if it is one."""
    if config.model.kind == "additive":
        return as_transformer(config)
    if not isinstance(config.model, TransformerConfig):
        return config
    model = config.model.model_copy(update=_PLAIN)
    return config if model == config.model else config.model_copy(update={"model": model})


def folded(config: RunConfig, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of the plain network that computes what `config` with these does; differentiable."""
    if config.model.kind == "additive":
        return untied(config, parameters)
    model, found = config.model, dict(parameters)
    if not isinstance(model, TransformerConfig):
        return found
    for layer in range(model.n_layers):
        attn = f"blocks.{layer}.attn"
        if model.use_attn_scale:
            found[f"{attn}.W_Q"] = found[f"{attn}.W_Q"] * attn_scale(found[f"{attn}.W_Q"])
        if model.output_matrix == "trained":
            found[f"{attn}.W_V"] = found[f"{attn}.W_V"] @ found.pop(f"{attn}.W_O")
    if model.classifier_bias == "shared":
        for i in range(model.classifier_depth):
            found[f"classifier.layers.{i}.b"] = found[f"classifier.layers.{i}.b"].expand(model.classifier_width)
    if model.readout == "difference":
        half = found["classifier.readout.W"] / 2
        found["classifier.readout.W"] = torch.cat([half, -half], dim=1)
    return found


def attn_scale(W_Q: Tensor) -> float:
    """1/√d_head, of a matrix [head, d_model, d_head]."""
    return W_Q.shape[-1] ** -0.5
