"""Order parameters of in-context learning: β₁, α, β₂ and ξ of the minimal induction head (Reddy 2023, eqs 4 to 8).

They are the coefficients of least-squares fits of a network's attention scores and logits to the terms that the minimal
model has for them. The explained variance of a fit is how much of the network the minimal model describes.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechinterp.attention_patterns import previous_token_mask
from mechinterp.circuits.activations import network_of
from mechinterp.circuits.subspaces import require_item_label
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import run_with_cache
from mechinterp.models.network import Network
from mechinterp.tasks.base import Task


def order_parameters(
    model: Network | nn.Module, task: Task, *, n_sequences: int = 500, seed: int = 0
) -> dict[str, float]:
    """β₁, α, β₂, ξ of a model, with the explained variance of every fit, on in-context sequences.

    * layer 1, tokens i > 0:   S¹_ij ≈ β₁ δ_{i−1,j}                       → ``beta1``, ``beta1_explained``
    * layer 2, the target T:   S²_Tj ≈ α (Σ_m p¹_jm c_m)·c_T + β₂ Δ_Tj    → ``alpha``, ``beta2``, ``layer2_explained``
    * logits:                  logit_ℓ ≈ ξ Σ_j p²_Tj [token j shows label ℓ]  → ``xi``, ``xi_explained``

    with c the contents, p the model's patterns and Δ_Tj = 1 iff T − j is odd. Softmax knows scores only up to a
    constant in every row, so rows are centred over the keys j ≤ i (logits over labels) first. Explained variance is in
    [0, 1]. Takes two layers of one head; the minimal model adds the previous token's content to an empty buffer, as
    `models.planted` does.
    """
    item_label, network = require_item_label(task), network_of(model)
    if network.n_layers != 2 or network.n_heads != 1:
        raise MechinterpError("order parameters are defined for two layers with one head each")
    batch, P = task.sample("icl", n_sequences, seed), item_label.config.position_dim
    hooks = [f"blocks.{layer}.attn.hook_{what}" for layer in range(2) for what in ("attn_scores", "pattern")]
    with torch.no_grad():
        cache = run_with_cache(network, batch.inputs, hooks)
    scores = [cache[f"blocks.{layer}.attn.hook_attn_scores"][:, 0].double() for layer in range(2)]
    patterns = [cache[f"blocks.{layer}.attn.hook_pattern"][:, 0].double() for layer in range(2)]
    T = task.n_pos
    allowed = torch.ones(T, T, dtype=torch.bool).tril()

    previous = previous_token_mask(T).double().expand(len(batch), T, T)
    (beta1,), beta1_explained = _fit(scores[0][:, 1:], [previous[:, 1:]], allowed[1:])

    content = batch.inputs[:, :, P:].double()
    match = torch.einsum("bjm,bmd,bd->bj", patterns[0], content, content[:, -1])
    odd = ((T - 1 - torch.arange(T)) % 2).double().expand(len(batch), T)
    (alpha, beta2), layer2_explained = _fit(scores[1][:, -1], [match, odd], allowed[-1])

    assert batch.token_labels is not None
    token_labels = batch.token_labels[:, :, None] == torch.arange(task.n_labels)
    attended = torch.einsum("bj,bjl->bl", patterns[1][:, -1], token_labels.double())
    (xi,), xi_explained = _fit(cache.logits.double(), [attended], torch.ones(task.n_labels, dtype=torch.bool))
    return {
        "beta1": beta1,
        "beta1_explained": beta1_explained,
        "alpha": alpha,
        "beta2": beta2,
        "layer2_explained": layer2_explained,
        "xi": xi,
        "xi_explained": xi_explained,
    }


def _fit(
    target: Float[Tensor, "*batch key"],
    directions: list[Float[Tensor, "*batch key"]],
    allowed: Bool[Tensor, "*row key"],
) -> tuple[list[float], float]:
    """Least-squares coefficients of the target on the directions, rows centred over the allowed keys; and their R²."""
    weight = allowed.double().expand_as(target)

    def centred(x: Tensor) -> Tensor:
        x = torch.where(weight > 0, x, 0.0)  # masked scores are −∞
        return ((x - x.sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)) * weight).flatten()

    y, X = centred(target), torch.stack([centred(direction) for direction in directions], dim=1)
    coefficients = torch.linalg.lstsq(X, y[:, None], driver="gelsd").solution[:, 0]
    total = y.square().sum()
    explained = float(1 - (y - X @ coefficients).square().sum() / total) if total > 0 else 0.0
    return coefficients.tolist(), explained
