"""The minimal model of Nguyen & Reddy 2024 (eqs 2 and 3): memorising and in-context learning side by side.

A token is an item x and its label ℓ = ±1, the target an item alone. One logit, for ℓ = +1 against ℓ = −1, is the sum

    z = φ(x_q) + w Σ_j p_j ℓ_j,  p_j ∝ exp(β x_j·x_q)  over the N pairs of the context

of what an MLP φ knows by heart and what attention finds. β and w stand for all of KᵀQ and V (the paper's second
ansatz), and the sum keeps memory and circuit apart (its first). It is a network of one layer and one head with tied
weights, and `as_transformer` and `untied` say which: so hooks, measures and circuit analyses apply unchanged. There

    W_Q = β on items,  W_K = 1 on items,  W_V = w from the label to the label,

a flag of the target keeps it from attending to itself, and two more units of each hidden layer carry the attention's
logit y past φ, as C + y and C − y with C = 1 + |w| > |y|, so that neither ReLU bends it (nor its slope at y = 0).
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from mechinterp.config import RunConfig, TransformerConfig

ADDITIVE = {"blocks.0.attn.beta": "beta", "blocks.0.attn.w": "w"}
"""The two parameters beside φ's, and where a config has their initial values."""

_AWAY = 1e4
"""How much the target's flag lowers its score with itself: its weight is then zero in float32."""


def as_transformer(config: RunConfig) -> RunConfig:
    """The config of the plain transformer that computes what the additive model of `config` does."""
    depth, width = config.model.classifier_depth, config.model.classifier_width
    plain = TransformerConfig(n_layers=1, classifier_depth=depth, classifier_width=width + 2)
    return config.model_copy(update={"model": plain})


def untied(config: RunConfig, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of that transformer; differentiable."""
    beta, w, readout = (parameters[name] for name in (*ADDITIVE, "classifier.readout.W"))
    d_model, depth = config.task.d_model, config.model.classifier_depth
    D = d_model - 2
    items, label, flag = (_diagonal(d_model, part, readout) for part in (range(D), [D], [D + 1]))
    found = {
        "blocks.0.attn.W_Q": (beta * items + _AWAY * flag)[None],
        "blocks.0.attn.W_K": (items - flag)[None],
        "blocks.0.attn.W_V": (w * label)[None],
    }
    passed, offset = readout.new_tensor([[1.0, -1.0]]), (1 + w.detach().abs()).expand(2)
    for i in range(depth):
        W, b = (parameters[f"classifier.layers.{i}.{each}"] for each in "Wb")
        past = _below(passed, 1) if i == 0 else torch.eye(2, dtype=W.dtype, device=W.device)
        found[f"classifier.layers.{i}.W"] = _beside(W, past)
        found[f"classifier.layers.{i}.b"] = torch.cat([b, offset if i == 0 else torch.zeros_like(offset)])
    last = passed.T / 2 if depth else _below(torch.ones_like(passed[:, :1]), 1)
    z = torch.cat([readout, last])
    found["classifier.readout.W"] = torch.cat([z, -z], dim=1) / 2
    return found


def _diagonal(size: int, ones: range | list[int], kind: Tensor) -> Tensor:
    entries = [float(i in ones) for i in range(size)]
    return torch.diag(torch.tensor(entries, dtype=kind.dtype, device=kind.device))


def _below(rows: Tensor, zeros: int) -> Tensor:
    """With so many rows of zeros below."""
    return functional.pad(rows, (0, 0, 0, zeros))


def _beside(first: Tensor, second: Tensor) -> Tensor:
    """One block, and the other below and to the right of it."""
    (n, m), (k, c) = first.shape, second.shape
    return functional.pad(first, (0, c, 0, k)) + functional.pad(second, (m, 0, n, 0))
