"""What a head looks for and what it moves: its QK and OV circuits, in terms of position, content and buffer.

    score_blocks, qk_strengths      the query–key interactions, and how much each moves attention
    written_blocks, ov_strengths    what is read of a seen token, and where it is written
    singular_directions             the largest singular values of both circuits, and where their vectors lie
    position_profile, composition_scores, copying_score

With x_i the residual stream before a layer, its scores are S_ij = x_i W_Q W_Kᵀ x_jᵀ. Since x = Σ_a x^a over position,
content and buffer, they are the sum of 9 (in layer 0 of 4) query–key interactions, exactly:

    S_ij = Σ_{a,b} S^{ab}_ij,  S^{ab}_ij = x^a_i W_Q W_Kᵀ x^b_jᵀ.

What token j gives when it is seen is likewise x_j W_V W_O = Σ_{a,b} x^a_j W_V W_O Π_b, with Π_b the projector on the
coordinates of position, of content, or on what others a planted model has.

Notation of Elhage et al. 2021; scores are not scaled by 1/√d here.
"""

from collections.abc import Callable
from itertools import product
from typing import cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.circuits.subspaces import require_item_label, subspaces, terms
from mechinterp.config import RunConfig
from mechinterp.models.hooks import FactoredMatrix
from mechinterp.models.transformer import VectorTransformer, build_model
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


def written_blocks(
    model: VectorTransformer, task: Task, inputs: Float[Tensor, "batch pos d_token"], layer: int, head: int = 0
) -> dict[tuple[str, str], Float[Tensor, "batch key d_model"]]:
    """x^a_j W_V W_O Π_b, by (read part a, written part b). Their sum is what each token gives when it is seen."""
    circuit, width = _product(ov(model, layer, head)), require_item_label(task).d_model
    P, d_model = require_item_label(task).config.position_dim, model.cfg.d_model
    places = {"position": slice(0, P), "content": slice(P, width), "other": slice(width, d_model)}
    result = {}
    for a, part in terms(model, task, inputs, layer).items():
        written = part @ circuit
        for b, place in places.items():
            if place.start < place.stop:
                result[a, b] = torch.zeros_like(written)
                result[a, b][..., place] = written[..., place]
    return result


def ov_strengths(model: VectorTransformer, batch: Batch, task: Task) -> pd.DataFrame:
    """How much each OV block writes: one row per layer, head, read part and written part.

    ``strength`` is √⟨|x^a_j W_V W_O Π_b|²⟩ over sequences and tokens, in units of the residual stream, where a token's
    content and its position have length 1.
    """
    rows = []
    for layer, head in product(range(model.cfg.n_layers), range(model.cfg.n_heads)):
        for (a, b), block in written_blocks(model, task, batch.inputs, layer, head).items():
            strength = float(block.square().sum(dim=-1).mean().sqrt())
            rows.append({"layer": layer, "head": head, "read": a, "written": b, "strength": strength})
    return pd.DataFrame(rows)


def singular_directions(model: VectorTransformer, task: Task, *, n: int = 8) -> pd.DataFrame:
    """The n largest singular values of every head's QK and OV circuit, and where their singular vectors lie.

    W = U diag(s) Vᵀ. For QK, u asks (query) and v answers (key); for OV, u is read and v written. ``u_position`` and
    so on are the energies of the vectors in `subspaces`, in [0, 1]: |Π u|² with |u| = 1. The buffer is the image of
    content under head 0 of layer 0, and for layer 0 itself says nothing new.
    """
    spaces = {name: each for name, each in subspaces(model, task).items() if name in PARTS}
    rows = []
    for layer, head in product(range(model.cfg.n_layers), range(model.cfg.n_heads)):
        for name, circuit in (("qk", qk(model, layer, head)), ("ov", ov(model, layer, head))):
            u, s, v = torch.linalg.svd(_product(circuit), full_matrices=False)
            energies = {
                f"{side}_{part}": space.energy(vectors).tolist()
                for side, vectors in (("u", u.T[:n]), ("v", v[:n]))
                for part, space in spaces.items()
            }
            for i, value in enumerate(s[:n].tolist()):
                place = {"layer": layer, "head": head, "circuit": name, "index": i, "value": value}
                rows.append(place | {name: each[i] for name, each in energies.items()})
    return pd.DataFrame(rows)


def null_band(
    config: RunConfig,
    batch: Batch,
    task: Task,
    strengths: Callable[[VectorTransformer, Batch, Task], pd.DataFrame] = qk_strengths,
    *,
    n_networks: int = 20,
) -> pd.DataFrame:
    """`qk_strengths` or `ov_strengths` of untrained networks: mean, 2.5 % and 97.5 % quantile over fresh seeds."""
    drawn = [
        strengths(build_model(config.model_copy(update={"seed": config.seed + 1 + i})), batch, task)
        for i in range(n_networks)
    ]
    index = [name for name in drawn[0] if name != "strength"]
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
