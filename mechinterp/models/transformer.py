"""The attention-only network of Reddy 2023 (eqs 2 and 3), and of Nguyen & Reddy 2024 with one layer.

Layer μ adds V_μ Σ_{j≤i} p^μ_ij u_j to token i, with p^μ_ij = softmax_{j≤i}((K_μ u_j)·(Q_μ u_i)): causal, the token
itself included, a full value matrix, no LayerNorm and no biases. A ReLU classifier reads the last token, the target.

The papers leave some conventions open. Under another convention a network has other parameters and gradients, and
computes the same as the canonical network with

    W_Q ← W_Q / √d_head    use_attn_scale,
    W_V ← W_V W_O          output_matrix = "trained",
    b   ← b·1              classifier_bias = "shared",
    W   ← (W/2, −W/2)      readout = "difference", of the classifier's readout.

For one layer and one head the gradient is computed by hand. Only the target's output is read, so there is one query
per sequence. With tokens x_j, the target t = x_T and A = W_Q W_Kᵀ,

    q = Aᵀ t,  s_j = q·x_j,  p = softmax(s),  r = Σ_j p_j x_j,  u = t + W_Vᵀ r          read by the classifier

    ∂ℒ/∂W_V = r ⊗ ∂ℒ/∂u,  ∂ℒ/∂r = W_V ∂ℒ/∂u,  ∂ℒ/∂p_j = x_j·∂ℒ/∂r
    ∂ℒ/∂s_j = p_j (∂ℒ/∂p_j − Σ_k p_k ∂ℒ/∂p_k),  ∂ℒ/∂q = Σ_j ∂ℒ/∂s_j x_j
    ∂ℒ/∂A = t ⊗ ∂ℒ/∂q,  ∂ℒ/∂W_Q = ∂ℒ/∂A W_K,  ∂ℒ/∂W_K = ∂ℒ/∂Aᵀ W_Q

summed over sequences, ℒ being their mean.

With `trained_layer_norm` the tokens are x_j = g ⊙ y_j + h of the task's normalised y_j. As Σ_j ∂ℒ/∂s_j = 0,

    ∂ℒ/∂t = ∂ℒ/∂u + W_Q W_Kᵀ ∂ℒ/∂q,  ∂ℒ/∂h = ∂ℒ/∂t + ∂ℒ/∂r
    ∂ℒ/∂g = ∂ℒ/∂t ⊙ y_T + q ⊙ Σ_j ∂ℒ/∂s_j y_j + ∂ℒ/∂r ⊙ Σ_j p_j y_j
"""

import numpy as np
import torch
from jaxtyping import Float

from mechinterp.config import RunConfig, TransformerConfig
from mechinterp.models.base import Architecture, Canonical, Gradients, Parameters, Shapes, split_difference
from mechinterp.models.classifier import classifier_gradients, require_labels
from mechinterp.tasks.base import Batch

LAYER_NORM = ("blocks.0.ln.w", "blocks.0.ln.b")
"""Scale and shift of the tokens."""
CANONICAL = {
    "use_attn_scale": False,
    "output_matrix": "identity",
    "classifier_bias": "vector",
    "readout": "per_label",
}
"""The conventions of the canonical network."""


class Transformer(Architecture):
    """Attention layers of vectors, and a classifier on the target."""

    def attention_shapes(self, config: RunConfig) -> Shapes:
        """``blocks.{layer}.attn.W_{Q,K,V}`` [head, d_model, d_head], and ``W_O`` [head, d_head, d_model] if trained.

        Before them, with `trained_layer_norm`, ``blocks.0.ln.w`` and ``blocks.0.ln.b`` [d_model].
        """
        model, d_model = _model(config), config.task.d_model
        matrices = ("W_Q", "W_K", "W_V", *(["W_O"] if model.output_matrix == "trained" else []))
        shapes: Shapes = {name: (d_model,) for name in LAYER_NORM} if model.trained_layer_norm else {}
        return shapes | {
            f"blocks.{layer}.attn.{matrix}": (model.n_heads, d_model, d_model)
            for layer in range(model.n_layers)
            for matrix in matrices
        }

    def classifier_input(self, config: RunConfig) -> int:
        """d_model: the target's residual stream."""
        return config.task.d_model

    def n_logits(self, config: RunConfig) -> int:
        """One if the readout is a difference, else one per label."""
        return 1 if _model(config).readout == "difference" else config.task.n_labels

    def n_biases(self, config: RunConfig) -> int:
        """One if it is shared, else one per unit."""
        return 1 if _model(config).classifier_bias == "shared" else config.model.classifier_width

    def initial_attention(
        self, config: RunConfig, name: str, shape: tuple[int, ...], rng: np.random.Generator
    ) -> float | Float[np.ndarray, "..."]:
        """N(0, 1/d_head) for W_O, the identity for LayerNorm; for the others as configured."""
        if name in LAYER_NORM:
            return 1.0 if name.endswith(".w") else 0.0
        if name.endswith("W_O"):
            return shape[-1] ** -0.5 * rng.standard_normal(shape)
        if _model(config).attention_init == "torch_linear":
            return rng.uniform(-(shape[1] ** -0.5), shape[1] ** -0.5, shape)
        return super().initial_attention(config, name, shape, rng)

    def canonical(self, config: RunConfig, parameters: Parameters) -> Canonical:
        """The network with the scale, W_O, the shared bias and the difference multiplied out."""
        model, canonical = _model(config), dict(parameters)
        for layer in range(model.n_layers):
            attn = f"blocks.{layer}.attn"
            if model.use_attn_scale:
                canonical[f"{attn}.W_Q"] = canonical[f"{attn}.W_Q"] * canonical[f"{attn}.W_Q"].shape[-1] ** -0.5
            if model.output_matrix == "trained":
                canonical[f"{attn}.W_V"] = canonical[f"{attn}.W_V"] @ canonical.pop(f"{attn}.W_O")
        if model.classifier_bias == "shared":
            for i in range(model.classifier_depth):
                bias = f"classifier.layers.{i}.b"
                canonical[bias] = canonical[bias].expand(model.classifier_width)
        if model.readout == "difference":
            for name in [name for name in canonical if name.startswith("classifier.readout.")]:
                canonical[name] = split_difference(canonical[name])
        if model != (conventional := model.model_copy(update=CANONICAL)):
            config = config.model_copy(update={"model": conventional})
        return Canonical(config, canonical, {})

    def has_gradients(self, config: RunConfig) -> bool:
        """Whether it has one layer and one head, under the canonical conventions."""
        return self.canonical_has_gradients(config) and _model(config) == _model(config).model_copy(update=CANONICAL)

    def canonical_has_gradients(self, config: RunConfig) -> bool:
        """Whether it has one layer and one head."""
        return config.model.n_layers == 1 and config.model.n_heads == 1

    def gradients(self, config: RunConfig, parameters: Parameters, batch: Batch, into: Parameters) -> Gradients:
        """The gradient above."""
        labels = require_labels(batch, config.task.n_labels)
        W_Q, W_K, W_V = (parameters[f"blocks.0.attn.W_{matrix}"][0] for matrix in "QKV")
        x = tokens = batch.inputs.to(W_Q.dtype)
        scale, shift = (parameters.get(name) for name in LAYER_NORM)
        if scale is not None and shift is not None:
            x = torch.addcmul(shift, tokens, scale)
        t = x[:, -1]

        q = (t @ W_Q) @ W_K.T
        p = torch.softmax(torch.bmm(x, q[:, :, None])[:, :, 0], dim=-1)
        r = torch.bmm(p[:, None], x)[:, 0]
        u = torch.addmm(t, r, W_V)
        loss, correct, du = classifier_gradients(parameters, into, u, labels)
        torch.mm(r.T, du, out=into["blocks.0.attn.W_V"][0])
        dr = du @ W_V.T
        dp = torch.bmm(x, dr[:, :, None])[:, :, 0]
        ds = p * (dp - (p * dp).sum(dim=1, keepdim=True))
        dq = torch.bmm(ds[:, None], x)[:, 0]
        dA = t.T @ dq
        torch.mm(dA, W_K, out=into["blocks.0.attn.W_Q"][0])
        torch.mm(dA.T, W_Q, out=into["blocks.0.attn.W_K"][0])
        if scale is not None:
            dt = du + (dq @ W_K) @ W_Q.T
            of_scores, of_values = (torch.bmm(weights[:, None], tokens)[:, 0] for weights in (ds, p))
            into["blocks.0.ln.w"][:] = (dt * tokens[:, -1] + q * of_scores + dr * of_values).sum(dim=0)
            into["blocks.0.ln.b"][:] = (dt + dr).sum(dim=0)
        return Gradients(loss, correct)


def _model(config: RunConfig) -> TransformerConfig:
    assert isinstance(config.model, TransformerConfig)
    return config.model
