"""The minimal induction head of Reddy 2023 (eqs 4 to 6), with three parameters of attention.

A token's content is c_i; its buffer is empty at first. With Δ_ij = 1 iff i − j is odd:

    layer 1      b_i = Σ_{j≤i} p¹_ij c_j,  p¹_ij ∝ exp(β₁ δ_{i−1,j})
    layer 2      w_i = Σ_{j≤i} p²_ij c_j,  p²_ij ∝ exp(α b_j·c_i + β₂ Δ_ij)
    classifier   logits of c_T ⊕ w_T at the target T, by the same ReLU layers as in the full network

α is the strength of the match, not the exponent of the rank–frequency law, which the paper also calls α. The canonical
network has a residual stream of position ⊕ content ⊕ buffer ⊕ output, P + 3D wide (`write_induction_head`).

Gradient by hand. Layer 2 depends on contents through m_k = c_k·c_T alone, the match of a token with the target T, which
is constant in training. With A the pattern of layer 1 and Δ_j = 1 iff T − j is odd:

    A_jk = e^{β₁ δ_{j−1,k}} / Σ_{l≤j} e^{β₁ δ_{j−1,l}},   r_j = Σ_k A_jk m_k      match of the buffers
    s_j  = α r_j + β₂ Δ_j,  a = softmax(s),  w = Σ_j a_j c_j                       read by the classifier, with c_T

    ∂ℒ/∂a_j = c_j·∂ℒ/∂w,  ∂ℒ/∂s_j = a_j (∂ℒ/∂a_j − Σ_k a_k ∂ℒ/∂a_k)
    ∂ℒ/∂α = Σ_j ∂ℒ/∂s_j r_j,  ∂ℒ/∂β₂ = Σ_j ∂ℒ/∂s_j Δ_j
    ∂ℒ/∂β₁ = Σ_j ∂ℒ/∂s_j α A_{j,j−1} (m_{j−1} − r_j)                                the softmax of layer 1

summed over sequences, ℒ being their mean.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from mechinterp.config import InductionHeadConfig, ItemLabelConfig, RunConfig
from mechinterp.models.base import Architecture, Canonical, Gradients, Parameters, Shapes, canonical_config, diagonal
from mechinterp.models.classifier import classifier_gradients, require_labels
from mechinterp.tasks.base import Batch

STRENGTHS = {"blocks.0.attn.beta1": "beta1", "blocks.1.attn.alpha": "alpha", "blocks.1.attn.beta2": "beta2"}
"""The parameters besides those of the classifier, with the config's field of their initial value."""


@dataclass(frozen=True)
class Layout:
    """The coordinates of the residual stream's parts: position ⊕ content ⊕ buffer ⊕ output."""

    position_dim: int
    content_dim: int

    @property
    def d_model(self) -> int:
        """P + 3D."""
        return self.position_dim + 3 * self.content_dim

    def content_sized(self, index: int) -> slice:
        """The index-th of the three parts of D dimensions."""
        start = self.position_dim + index * self.content_dim
        return slice(start, start + self.content_dim)

    @property
    def position(self) -> slice:
        """The one-hot position, P dimensions."""
        return slice(0, self.position_dim)

    @property
    def content(self) -> slice:
        """A token's content, D dimensions."""
        return self.content_sized(0)

    @property
    def buffer(self) -> slice:
        """What layer 1 writes."""
        return self.content_sized(1)

    @property
    def output(self) -> slice:
        """What layer 2 writes."""
        return self.content_sized(2)


def write_induction_head(layout: Layout, beta1: Tensor, alpha: Tensor, beta2: Tensor) -> dict[str, Tensor]:
    """Attention matrices of the canonical network, all [1, d_model, d_model]; differentiable in the strengths.

    With e_p the one-hot positions and π = (−1)^position:

        W_Q¹ W_K¹ᵀ = β₁ Σ_p e_p ⊗ e_{p−1}                            W_V¹: content → buffer
        W_Q² W_K²ᵀ = α (content → buffer) + β₂ (1 − π_i π_j)/2        W_V²: content → output

    The second term is β₂ Δ_ij; it uses the first two dimensions of the head, which the match does not.
    """
    d, P = layout.d_model, layout.position_dim
    zeros = beta1.new_zeros(d, d)

    def identity(rows: slice, columns: slice) -> Tensor:
        matrix = zeros.clone()
        matrix[rows, columns] = torch.eye(rows.stop - rows.start, dtype=zeros.dtype, device=zeros.device)
        return matrix

    before, parity_Q, parity_K = zeros.clone(), zeros.clone(), zeros.clone()
    before[torch.arange(1, P), torch.arange(P - 1)] = 1
    parity = zeros.new_ones(P)
    parity[1::2] = -1
    parity_Q[:P, 0], parity_Q[:P, 1] = 0.5, -parity / 2
    parity_K[:P, 0], parity_K[:P, 1] = 1, parity
    matrices = {
        "blocks.0.attn.W_Q": beta1 * before,
        "blocks.0.attn.W_K": diagonal(d, layout.position, zeros),
        "blocks.0.attn.W_V": identity(layout.content, layout.buffer),
        "blocks.1.attn.W_Q": alpha * diagonal(d, layout.content, zeros) + beta2 * parity_Q,
        "blocks.1.attn.W_K": identity(layout.buffer, layout.content) + parity_K,
        "blocks.1.attn.W_V": identity(layout.content, layout.output),
    }
    return {name: matrix[None] for name, matrix in matrices.items()}


class InductionHead(Architecture):
    """α, β₁, β₂ and a classifier that reads the target's content and what layer 2 writes."""

    def body_shapes(self, config: RunConfig) -> Shapes:
        """``blocks.0.attn.beta1``, ``blocks.1.attn.alpha`` and ``blocks.1.attn.beta2``, all [1]."""
        return dict.fromkeys(STRENGTHS, (1,))

    def classifier_input(self, config: RunConfig) -> int:
        """2D: content and output."""
        return 2 * _task(config).content_dim

    def initial_body(
        self, config: RunConfig, name: str, shape: tuple[int, ...], rng: np.random.Generator
    ) -> float | Float[np.ndarray, "..."]:
        """N(m, std²), with the configured α, β₁ or β₂ for m."""
        assert isinstance(config.model, InductionHeadConfig)
        return getattr(config.model, STRENGTHS[name]) + config.model.attention_init_std * rng.standard_normal(shape)

    def canonical(self, config: RunConfig, parameters: Parameters) -> Canonical:
        """The network of two layers and one head with the weights of `write_induction_head`."""
        task = _task(config)
        layout, P, D = Layout(task.position_dim, task.content_dim), task.position_dim, task.content_dim
        strengths = {STRENGTHS[name]: parameters[name] for name in STRENGTHS}
        canonical = write_induction_head(layout, **strengths)
        canonical |= {name: value for name, value in parameters.items() if name.startswith("classifier.")}
        first = "classifier.layers.0.W" if config.model.classifier_depth else "classifier.readout.W"
        from_content, from_output = parameters[first].split(D)
        canonical[first] = torch.cat([pad(from_content, (0, 0, P, D)), from_output])
        both, all_columns = slice(0, P + D), slice(0, layout.d_model)
        support = {
            "blocks.0.attn.W_Q": (layout.position, layout.position),
            "blocks.0.attn.W_K": (layout.position, layout.position),
            "blocks.0.attn.W_V": (layout.content, layout.buffer),
            "blocks.1.attn.W_Q": (both, all_columns),
            "blocks.1.attn.W_K": (slice(0, P + 2 * D), all_columns),
            "blocks.1.attn.W_V": (layout.content, layout.output),
        }
        return Canonical(canonical_config(config, 2, 1, config.model.classifier_width), canonical, support)

    def has_gradients(self, config: RunConfig) -> bool:
        """Always."""
        return True

    def gradients(self, config: RunConfig, parameters: Parameters, batch: Batch, into: Parameters) -> Gradients:
        """The gradient above."""
        labels, D, T = require_labels(batch, config.task.n_labels), _task(config).content_dim, config.task.n_pos
        beta1, alpha, beta2 = (parameters[name] for name in STRENGTHS)
        content = (batch.inputs if batch.table is None else batch.table.contents())[..., -D:].to(beta1.dtype)
        causal, previous = beta1.new_full((T, T), -torch.inf).triu(1), beta1.new_ones(T - 1).diag(-1)
        odd, target = ((T - 1 - torch.arange(T)) % 2).to(beta1.dtype), content[:, -1]

        A = torch.softmax(causal + beta1 * previous, dim=-1)
        to_previous = A.diagonal(-1)
        match = torch.bmm(content, target[:, :, None])[:, :, 0]
        r = match @ A.T
        a = torch.softmax(alpha * r + beta2 * odd, dim=-1)
        w = torch.bmm(a[:, None], content)[:, 0]

        loss, correct, dx = classifier_gradients(parameters, into, torch.cat([target, w], dim=1), labels)
        da = torch.bmm(content, dx[:, D:][:, :, None])[:, :, 0]
        ds = a * (da - (a * da).sum(dim=1, keepdim=True))
        into["blocks.1.attn.alpha"][0] = (ds * r).sum()
        into["blocks.1.attn.beta2"][0] = (ds @ odd).sum()
        into["blocks.0.attn.beta1"][0] = (alpha * ds[:, 1:] * to_previous * (match[:, :-1] - r[:, 1:])).sum()
        return Gradients(loss, correct)


def _task(config: RunConfig) -> ItemLabelConfig:
    assert isinstance(config.task, ItemLabelConfig)
    return config.task
