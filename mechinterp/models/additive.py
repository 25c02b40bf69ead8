"""The additive model of Nguyen & Reddy 2024 (eqs 2 and 3): the sum of memorisation and in-context learning.

A token is an item x and its label ℓ = ±1, the target an item alone. One logit, for ℓ = +1 against ℓ = −1, is the sum

    z = φ(x_q) + w Σ_j p_j ℓ_j,  p_j ∝ exp(β x_j·x_q)  over the N pairs of the context

(with `target_in_softmax` over the target too, whose label counts as 0)

of what an MLP φ has memorised and what attention retrieves. The sum separates memory and circuit (the paper's first
ansatz); β and w replace KᵀQ and V (its second). The canonical network has one layer and one head with

    W_Q = β on items,  W_K = 1 on items,  W_V = w from the label to the label;

a flag of the target keeps it from attending to itself (but for `target_in_softmax`), and two more units of every hidden
layer carry the logit y of attention past φ, as C + y and C − y with C = 1 + |w| > |y|, so that both ReLUs are linear
there.

Gradient by hand. With m_j = x_j·x_q, r = Σ_j p_j ℓ_j, σ = ±1 the target's label and B sequences,

    z = φ(x_q) + w r,  ℒ = ⟨log(1 + e^{−σ z})⟩,  ∂ℒ/∂z = −σ (1 + e^{σ z})⁻¹ / B
    ∂ℒ/∂w = Σ ∂ℒ/∂z r,  ∂ℒ/∂β = Σ ∂ℒ/∂z w (Σ_j p_j m_j ℓ_j − r Σ_j p_j m_j)

summed over sequences; φ's gradient is that of any classifier. A context enters through the products m_j alone.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad, softplus

from mechinterp.config import AdditiveConfig, RunConfig
from mechinterp.models.base import (
    Architecture,
    Canonical,
    Gradients,
    Parameters,
    Shapes,
    canonical_config,
    diagonal,
    split_difference,
)
from mechinterp.models.classifier import classifier_backward, hidden_layers, readout, require_labels
from mechinterp.tasks.base import Batch

STRENGTHS = {"blocks.0.attn.beta": "beta", "blocks.0.attn.w": "w"}
"""The parameters besides those of φ, with the config's field of their initial value."""

_FLAG_SCORE = 1e4
"""Amount by which the flag lowers the target's score with itself, whose weight is then zero in float32."""


class Additive(Architecture):
    """The additive model: β, w and an MLP φ."""

    def body_shapes(self, config: RunConfig) -> Shapes:
        """``blocks.0.attn.beta`` and ``blocks.0.attn.w``, both [1]."""
        return dict.fromkeys(STRENGTHS, (1,))

    def classifier_input(self, config: RunConfig) -> int:
        """D: the target's item."""
        return config.task.d_model - 2

    def n_logits(self, config: RunConfig) -> int:
        """One, for ℓ = +1 against ℓ = −1."""
        return 1

    def initial_body(
        self, config: RunConfig, name: str, shape: tuple[int, ...], rng: np.random.Generator
    ) -> float | Float[np.ndarray, "..."]:
        """The configured w, and N(β, std²)."""
        model = _model(config)
        return model.beta + model.beta_init_std * rng.standard_normal(shape) if name.endswith("beta") else model.w

    def canonical(self, config: RunConfig, parameters: Parameters) -> Canonical:
        """The network of one layer and one head with the weights of the module's docstring."""
        beta, w, W_out = (parameters[name] for name in (*STRENGTHS, "classifier.readout.W"))
        d_model, depth = config.task.d_model, config.model.classifier_depth
        D = d_model - 2
        items, label, flag = (
            diagonal(d_model, part, W_out) for part in (slice(0, D), slice(D, D + 1), slice(D + 1, D + 2))
        )
        canonical = {
            "blocks.0.attn.W_Q": (beta * items + (0 if _model(config).target_in_softmax else _FLAG_SCORE) * flag)[None],
            "blocks.0.attn.W_K": (items - flag)[None],
            "blocks.0.attn.W_V": (w * label)[None],
        }
        passed, offset = W_out.new_tensor([[1.0, -1.0]]), (1 + w.detach().abs()).expand(2)
        for i in range(depth):
            W, b = parameters[f"classifier.layers.{i}.W"], parameters[f"classifier.layers.{i}.b"]
            past = pad(passed, (0, 0, 0, 1)) if i == 0 else torch.eye(2, dtype=W.dtype, device=W.device)
            canonical[f"classifier.layers.{i}.W"] = _block_diagonal(W, past)
            canonical[f"classifier.layers.{i}.b"] = torch.cat([b, offset if i == 0 else torch.zeros_like(offset)])
        last = passed.T / 2 if depth else pad(torch.ones_like(passed[:, :1]), (0, 0, 0, 1))
        z = torch.cat([W_out, last])
        canonical["classifier.readout.W"] = torch.cat([z, -z], dim=1) / 2
        if config.model.readout_bias:
            canonical["classifier.readout.b"] = split_difference(parameters["classifier.readout.b"])
        return Canonical(canonical_config(config, 1, 1, config.model.classifier_width + 2), canonical, {})

    def has_gradients(self, config: RunConfig) -> bool:
        """Always."""
        return True

    def gradients(self, config: RunConfig, parameters: Parameters, batch: Batch, into: Parameters) -> Gradients:
        """The gradient above."""
        labels = require_labels(batch, 2)
        beta, w = (parameters[name] for name in STRENGTHS)
        tokens = batch.inputs.to(beta.dtype)
        last = tokens.shape[1] if _model(config).target_in_softmax else -1  # the target's own label is 0
        items, context_labels = tokens[:, :last, :-2], tokens[:, :last, -2]
        target, sign = tokens[:, -1, :-2], (1 - 2 * labels).to(beta.dtype)

        m = torch.bmm(items, target[:, :, None])[:, :, 0]
        p = torch.softmax(beta * m, dim=-1)
        r = (p * context_labels).sum(dim=1)
        hidden = hidden_layers(parameters, target)
        z = readout(parameters, hidden[-1])[:, 0] + w * r
        dz = -sign * torch.sigmoid(-sign * z) / len(labels)
        pm = p * m
        into["blocks.0.attn.w"][0] = dz @ r
        into["blocks.0.attn.beta"][0] = w[0] * (dz @ ((pm * context_labels).sum(dim=1) - r * pm.sum(dim=1)))
        classifier_backward(parameters, into, hidden, dz[:, None])
        return Gradients(softplus(-sign * z).mean(), ((z >= 0) == (sign > 0)).sum())


def _model(config: RunConfig) -> AdditiveConfig:
    assert isinstance(config.model, AdditiveConfig)
    return config.model


def _block_diagonal(first: Tensor, second: Tensor) -> Tensor:
    """The first block, and the second below and to the right of it."""
    (n, m), (k, c) = first.shape, second.shape
    return pad(first, (0, c, 0, k)) + pad(second, (m, 0, n, 0))
