"""What a head looks for and what it moves: its QK and OV circuits, in terms of position, content and buffer.

With x_i the residual stream before a layer, its scores are S_ij = x_i W_Q W_Kᵀ x_jᵀ. Since x = Σ_a x^a over position,
content and buffer, they are the sum of 9 (in layer 0 of 4) query–key interactions, exactly:

    S_ij = Σ_{a,b} S^{ab}_ij,  S^{ab}_ij = x^a_i W_Q W_Kᵀ x^b_jᵀ.

Notation of Elhage et al. 2021; scores are not scaled by 1/√d here.
"""

from itertools import product
from typing import cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.circuits.subspaces import require_item_label, terms
from mechinterp.config import RunConfig
from mechinterp.models.transformer import FactoredMatrix, VectorTransformer, build_model
from mechinterp.tasks.base import Batch, Task

PARTS = ("position", "content", "buffer")


def qk(model: VectorTransformer, layer: int, head: int = 0) -> FactoredMatrix:
    """W_Q W_Kᵀ of a head, [d_model, d_model], as a product of two factors; S = x (W_Q W_Kᵀ) xᵀ."""
    return FactoredMatrix(model.W_Q[layer, head].detach(), model.W_K[layer, head].detach().T)


def ov(model: VectorTransformer, layer: int, head: int = 0) -> FactoredMatrix:
    """W_V W_O of a head, [d_model, d_model], as a product of two factors; what a seen token x adds is x W_V W_O."""
    return FactoredMatrix(model.W_V[layer, head].detach(), model.W_O[layer, head].detach())


def _product(circuit: FactoredMatrix) -> Tensor:
    return cast(Tensor, circuit.AB)


def score_blocks(
    model: VectorTransformer, task: Task, inputs: Float[Tensor, "batch pos d_token"], layer: int, head: int = 0
) -> dict[tuple[str, str], Float[Tensor, "batch query key"]]:
    """S^{ab}, by (query part a, key part b). Their sum is the head's scores before the causal mask."""
    parts, circuit = terms(model, task, inputs, layer), qk(model, layer, head)
    queries = {name: part @ circuit.A for name, part in parts.items()}
    keys = {name: part @ circuit.B.T for name, part in parts.items()}
    return {(a, b): queries[a] @ keys[b].transpose(1, 2) for a, b in product(parts, parts)}


def qk_strengths(model: VectorTransformer, batch: Batch, task: Task) -> pd.DataFrame:
    """How strongly each query–key interaction moves attention: one row per layer, head, query part and key part.

    ``strength`` is the spread of S^{ab}_ij over the keys j ≤ i that a query may choose from, √⟨Var_j S^{ab}_ij⟩_i, in
    the scores' own unit (a difference of 1 makes attention e times larger). What is the same for all keys has no
    effect on attention and does not count. Queries are all tokens but the first; in the last layer the target, the
    only one that is read.
    """
    rows = []
    for layer, head in product(range(model.cfg.n_layers), range(model.cfg.n_heads)):
        for (a, b), block in score_blocks(model, task, batch.inputs, layer, head).items():
            n_pos = block.shape[-1]
            queries = [n_pos - 1] if layer == model.cfg.n_layers - 1 else range(1, n_pos)
            variance = torch.stack([block[:, i, : i + 1].var(dim=-1, correction=0).mean() for i in queries]).mean()
            rows.append({"layer": layer, "head": head, "query": a, "key": b, "strength": float(variance.sqrt())})
    return pd.DataFrame(rows)


def null_band(config: RunConfig, batch: Batch, task: Task, *, n_networks: int = 20) -> pd.DataFrame:
    """`qk_strengths` of networks as they are before training: mean, 2.5 % and 97.5 % quantile over fresh seeds."""
    drawn = [
        qk_strengths(build_model(config.model_copy(update={"seed": config.seed + 1 + i})), batch, task)
        for i in range(n_networks)
    ]
    index = ["layer", "head", "query", "key"]
    groups = pd.concat(drawn).groupby(index, sort=False)["strength"]
    return pd.DataFrame(
        {"null_mean": groups.mean(), "null_low": groups.quantile(0.025), "null_high": groups.quantile(0.975)}
    ).reset_index()


def position_profile(model: VectorTransformer, task: Task, layer: int = 0, head: int = 0) -> pd.Series:
    """The position–position block of W_Q W_Kᵀ by offset i − j = 0 … T−1: the mean over positions, score units.

    For a previous-token head it is β₁ at offset 1 and 0 elsewhere.
    """
    P, T = require_item_label(task).config.position_dim, task.n_pos
    block = _product(qk(model, layer, head))[:P, :P]
    values = [float(block.diagonal(-offset).mean()) for offset in range(T)]
    return pd.Series(values, index=pd.RangeIndex(T, name="offset"), name="score")


def composition_scores(model: VectorTransformer) -> pd.DataFrame:
    """How much a head reads from an earlier head's output, through its query, key or value.

    ‖W_OV¹ M‖ / (‖W_OV¹‖ ‖M‖) in Frobenius norms, with M = W_QK² for Q, W_QK²ᵀ for K and W_OV² for V; in [0, 1]. Two
    random matrices give about 1/√d_model (Elhage et al. 2021).
    """
    rows = []
    heads = list(product(range(model.cfg.n_layers), range(model.cfg.n_heads)))
    for (layer1, head1), (layer2, head2) in product(heads, heads):
        if layer1 < layer2:
            first, circuit = _product(ov(model, layer1, head1)), _product(qk(model, layer2, head2))
            for through, second in (("Q", circuit), ("K", circuit.T), ("V", _product(ov(model, layer2, head2)))):
                norm = torch.linalg.matrix_norm
                score = float(norm(first @ second) / (norm(first) * norm(second)))
                rows.append(
                    {"from": f"{layer1}.{head1}", "to": f"{layer2}.{head2}", "through": through, "score": score}
                )
    return pd.DataFrame(rows)


def copying_score(model: VectorTransformer, task: Task, batch: Batch, layer: int = 1, head: int = 0) -> float:
    """Whether seeing a label raises that label's own logit: Σ Re λ / Σ |λ| in [−1, 1], 1 for perfect copying.

    λ are the eigenvalues of C [L, L], C_ℓm = ∂ logit_m when the head's output moves along what label ℓ adds to it,
    label_ℓ W_V W_O, at the target; the classifier is linearised at the batch's targets and averaged.
    """
    item_label = require_item_label(task)
    P, width = item_label.config.position_dim, item_label.d_model
    labels = torch.from_numpy(item_label.label_vectors).to(model.cfg.dtype)
    added = labels @ _product(ov(model, layer, head))[P:width]
    with torch.no_grad():
        _, cache = model.run_with_cache(batch.inputs, names_filter="classifier.hook_in")
    with torch.enable_grad():
        state = cache["classifier.hook_in"].requires_grad_()
        totals = model.classifier(state).sum(dim=0)
        slopes = [torch.autograd.grad(total, state, retain_graph=True)[0].mean(dim=0) for total in totals]
    effect = added @ torch.stack(slopes, dim=1)
    eigenvalues = np.linalg.eigvals(effect.double().numpy())
    total = np.abs(eigenvalues).sum()
    return float(eigenvalues.real.sum() / total) if total else float("nan")
