"""Order parameters of in-context learning: β₁, α, β₂ and ξ of the minimal induction head (Reddy 2023, eqs 4 to 8).

They are the coefficients of least-squares fits of a network's attention scores and logits to the terms that the minimal
model has for them. The explained variance of a fit is how much of the network the minimal model describes.

Scores and logits are bilinear, y_bj = x_b·A z_bj, with A a matrix of weights. A coefficient is linear in them, Σ w_bj
y_bj with the weights w = (XᵀX)⁻¹Xᵀ of least squares, and so linear in A. Its **null** is the standard deviation that it
has over matrices A of independent entries of mean 0, whose size σ_A gives the centred y the mean square that they have:

    null = σ_A ‖Σ w_bj x_b z_bjᵀ‖_F,    σ_A² = Σ ỹ_bj² / Σ ‖x_b‖² ‖z̃_bj‖²    (~: centred over j)

Random weights of the same size thus have a coefficient within ±2 null in about 95 % of networks. Its **error** is the
standard error of Σ_b Σ_j w_bj (y_bj − ŷ_bj) over rows b, of which those are correlated that belong to one sequence or
whose items are of one class (`standard_error`): in layer 1 the item that a token is or follows, in layer 2 the target.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechinterp.attention_patterns import previous_token_mask
from mechinterp.circuits.activations import classic_network_of
from mechinterp.circuits.standard_errors import standard_error
from mechinterp.circuits.subspaces import require_item_label
from mechinterp.errors import MechinterpError
from mechinterp.models.classifier import classifier_depth
from mechinterp.models.forward import run_with_cache
from mechinterp.models.network import Network
from mechinterp.tasks.base import Task


def order_parameters(
    model: Network | nn.Module, task: Task, *, n_sequences: int = 500, seed: int = 0
) -> dict[str, float]:
    """β₁, α, β₂, ξ of a model on in-context sequences, with errors, nulls and explained variances.

    * layer 1, tokens i > 0:   S¹_ij ≈ β₁ δ_{i−1,j}                           → ``beta1``
    * layer 2, the target T:   S²_Tj ≈ α (Σ_m p¹_jm c_m)·c_T + β₂ Δ_Tj        → ``alpha``, ``beta2``
    * logits:                  logit_ℓ ≈ ξ Σ_j p²_Tj [token j shows label ℓ]  → ``xi``

    with c the contents, p the model's patterns and Δ_Tj = 1 iff T − j is odd. Softmax knows scores only up to a
    constant in every row, so rows are centred over the keys j ≤ i (logits over labels) first. Takes two layers of one
    head; the minimal model adds the previous token's content to an empty buffer, as `models.planted` does.

    With every coefficient, in its unit:

    * ``…_error``, ≥ 0: its standard error over sequences and classes of items (above). It says how well these sequences
      determine the coefficient of this network, not whether the network has the circuit;
    * ``…_null``, ≥ 0: its standard deviation over networks of random weights of the same size (above): of W_Q W_Kᵀ of
      the layer, for ξ of the readout. A coefficient within two of them is no sign of the circuit;
    * ``…_explained``, in [0, 1]: the share of variance that the term explains in a fit on its own. α and β₂ belong to
      one fit: ``layer2_explained`` is the share of both, not the sum of the two where the terms are correlated.
    """
    item_label, network = require_item_label(task), classic_network_of(model)
    if network.n_layers != 2 or network.n_heads != 1:
        raise MechinterpError("order parameters are defined for two layers with one head each")
    batch, P = task.sample("icl", n_sequences, seed), item_label.config.position_dim
    depth = classifier_depth(network.parameters)
    read = f"classifier.layers.{depth - 1}.hook_post" if depth else "classifier.hook_in"
    hooks = [f"blocks.{n}.{what}" for n in range(2) for what in ("attn.hook_attn_scores", "attn.hook_pattern")]
    with torch.no_grad():
        cache = run_with_cache(network, batch.inputs, [*hooks, *(f"blocks.{n}.hook_resid_pre" for n in range(2)), read])
    scores = [cache[f"blocks.{layer}.attn.hook_attn_scores"][:, 0].double() for layer in range(2)]
    patterns = [cache[f"blocks.{layer}.attn.hook_pattern"][:, 0].double() for layer in range(2)]
    residual = [cache[f"blocks.{layer}.hook_resid_pre"].double() for layer in range(2)]
    T = task.n_pos
    allowed = torch.ones(T, T, dtype=torch.bool).tril()

    independent = torch.arange(len(batch))[:, None].expand(-1, T)
    classes = independent if batch.token_classes is None else batch.token_classes
    of_target, of_pair = classes[:, -1:], classes.unfold(1, 2, 1).amax(dim=2)  # labels have −1

    previous = previous_token_mask(T).double().expand(len(batch), T, T)
    layer1 = _Fit(scores[0][:, 1:], [previous[:, 1:]], residual[0][:, 1:], residual[0], allowed[1:], of_pair)

    content = batch.inputs[:, :, P:].double()
    match = torch.einsum("bjm,bmd,bd->bj", patterns[0], content, content[:, -1])
    odd = ((T - 1 - torch.arange(T)) % 2).double().expand(len(batch), T)
    terms = [match[:, None], odd[:, None]]
    layer2 = _Fit(scores[1][:, -1:], terms, residual[1][:, -1:], residual[1], allowed[-1:], of_target)

    assert batch.token_labels is not None
    labels = torch.arange(task.n_labels)
    attended = torch.einsum("bj,bjl->bl", patterns[1][:, -1], (batch.token_labels[:, :, None] == labels).double())
    every, one_hot = torch.ones(1, len(labels), dtype=torch.bool), torch.eye(len(labels)).double()
    logits, hidden = cache.logits[:, None].double(), cache[read][:, None].double()
    answer = _Fit(logits, [attended[:, None]], hidden, one_hot.expand(len(batch), -1, -1), every, of_target)
    return {
        **layer1.coefficient("beta1", 0),
        **layer2.coefficient("alpha", 0),
        **layer2.coefficient("beta2", 1),
        "layer2_explained": layer2.explained([0, 1]),
        **answer.coefficient("xi", 0),
    }


@dataclass
class _Fit:
    """Least-squares fit of y_bij = x_bi·A z_bj to directions, centred over the keys j that a row i may have."""

    y: Float[Tensor, "batch row key"]
    directions: list[Float[Tensor, "batch row key"]]
    x: Float[Tensor, "batch row d_x"]
    z: Float[Tensor, "batch key d_z"]
    allowed: Bool[Tensor, "row key"]
    classes: Int[Tensor, "batch row"]
    """The class of the item of a row."""

    def __post_init__(self):
        self._y, self._X = self._centred(self.y), torch.stack([self._centred(x) for x in self.directions], dim=1)
        self._weights = torch.linalg.pinv(self._X)  # [directions, batch · row · key]
        self._coefficients = self._weights @ self._y

    def coefficient(self, name: str, i: int) -> dict[str, float]:
        """The coefficient of direction i, its error, null, and the share that the direction explains alone."""
        residual = self._y - self._X @ self._coefficients
        influence = (self._weights[i] * residual).view_as(self.y).sum(dim=2).flatten()
        sequences = -1 - torch.arange(len(self.y))[:, None].expand_as(self.classes)  # no class has such a number
        groups = torch.stack([self.classes, sequences], dim=2).flatten(0, 1)
        return {
            name: float(self._coefficients[i]),
            f"{name}_error": standard_error(len(influence) * influence, groups),
            f"{name}_null": self._null(self._weights[i].view_as(self.y)),
            f"{name}_explained": self.explained([i]),
        }

    def explained(self, chosen: list[int]) -> float:
        """R² of the fit to some of the directions."""
        X, total = self._X[:, chosen], self._y.square().sum()
        residual = self._y - X @ (torch.linalg.pinv(X) @ self._y)
        return float(1 - residual.square().sum() / total) if total > 0 else 0.0

    def _null(self, weights: Float[Tensor, "batch row key"]) -> float:
        """σ_A ‖Σ w_bij x_bi z_bjᵀ‖_F; weights are centred, so z need not be."""
        of_weights = torch.einsum("bid,bie->de", self.x, weights @ self.z).square().sum()
        allowed = self.allowed.double()
        mean = allowed @ self.z / allowed.sum(dim=1, keepdim=True)
        spread = self.z.square().sum(dim=-1) @ allowed.T - allowed.sum(dim=1) * mean.square().sum(dim=-1)
        size = (self.x.square().sum(dim=-1) * spread).sum()
        return float((self._y.square().sum() / size * of_weights).sqrt()) if size > 0 else 0.0

    def _centred(self, values: Float[Tensor, "batch row key"]) -> Float[Tensor, "entries"]:
        values = torch.where(self.allowed, values, 0.0)  # masked scores are −∞
        mean = values.sum(-1, keepdim=True) / self.allowed.sum(-1, keepdim=True)
        return torch.where(self.allowed, values - mean, 0.0).flatten()
