"""QK and OV circuits of heads, by position, content and buffer (Elhage et al. 2021).

    score_blocks, qk_strengths      the query–key interactions, and how much they move attention
    written_blocks, ov_strengths    what a head reads of a token, and the coordinates that it writes to
    singular_directions             the largest singular values of both circuits, and where their vectors lie
    position_profile                scores by distance in position
    composition_scores              Q-, K- and V-composition between heads (Elhage et al. 2021)
    copying_score                   whether a head copies labels, by eigenvalues (Elhage et al. 2021)

With x_i the residual stream before a layer, its scores are S_ij = x_i W_Q W_Kᵀ x_jᵀ. Since x = Σ_a x^a over position,
content and buffer, they are the sum of 9 (in layer 0 of 4) query–key interactions, exactly:

    S_ij = Σ_{a,b} S^{ab}_ij,  S^{ab}_ij = x^a_i W_Q W_Kᵀ x^b_jᵀ.

What a head writes when it attends to token j is likewise x_j W_V W_O = Σ_{a,b} x^a_j W_V W_O Π_b, with Π_b the
projector on the coordinates of position, of content, or on the further coordinates of a planted model.

The notation is that of Elhage et al. 2021, but vectors are rows and scores are not scaled by 1/√d. QK and OV circuits
of induction heads (K-composition, copying) are those of Olsson et al. 2022.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.circuits.activations import network_of
from mechinterp.circuits.subspaces import require_item_label, subspaces, terms
from mechinterp.config import RunConfig
from mechinterp.models.forward import Activations, run_with_cache
from mechinterp.models.network import Network
from mechinterp.tasks.base import Batch, Task
from mechinterp.torch_state import torch_defaults

PARTS = ("position", "content", "buffer")

AnyNetwork = Network | nn.Module


def qk(model: AnyNetwork, layer: int, head: int = 0) -> Float[Tensor, "d_model d_model"]:
    """W_Q W_Kᵀ of a head; S = x (W_Q W_Kᵀ) xᵀ."""
    network = network_of(model)
    return network.matrix_of_head(layer, "Q", head) @ network.matrix_of_head(layer, "K", head).T


def ov(model: AnyNetwork, layer: int, head: int = 0) -> Float[Tensor, "d_model d_model"]:
    """W_V W_O of a head; a token x that it attends to adds x W_V W_O."""
    return network_of(model).ov(layer, head)


def score_blocks(
    model: AnyNetwork, task: Task, inputs: Float[Tensor, "batch pos d_token"], layer: int, head: int = 0
) -> dict[tuple[str, str], Float[Tensor, "batch query key"]]:
    """S^{ab}, by (query part a, key part b). Their sum is the head's scores before the causal mask."""
    network = network_of(model)
    W_Q, W_K = (network.matrix_of_head(layer, name, head) for name in "QK")
    parts = terms(network, task, inputs, layer)
    queries = {name: part @ W_Q for name, part in parts.items()}
    keys = {name: part @ W_K for name, part in parts.items()}
    return {(a, b): queries[a] @ keys[b].transpose(1, 2) for a, b in product(parts, parts)}


def qk_strengths(model: AnyNetwork, batch: Batch, task: Task) -> pd.DataFrame:
    """Strength of every query–key interaction: one row per layer, head, query part and key part.

    ``strength`` is the standard deviation of S^{ab}_ij over the keys j ≤ i of a query, √⟨Var_j S^{ab}_ij⟩_i, in units
    of scores (a difference of 1 makes attention e times larger). A term that is the same for all keys has no effect on
    attention and does not count. Queries are all tokens but the first; in the last layer the target alone, as no other
    is read.
    """
    network, rows = network_of(model), []
    for layer, head in product(range(network.n_layers), range(network.n_heads)):
        for (a, b), block in score_blocks(network, task, batch.inputs, layer, head).items():
            n_pos = block.shape[-1]
            queries = [n_pos - 1] if layer == network.n_layers - 1 else range(1, n_pos)
            variance = torch.stack([block[:, i, : i + 1].var(dim=-1, correction=0).mean() for i in queries]).mean()
            rows.append({"layer": layer, "head": head, "query": a, "key": b, "strength": float(variance.sqrt())})
    return pd.DataFrame(rows)


def written_blocks(
    model: AnyNetwork, task: Task, inputs: Float[Tensor, "batch pos d_token"], layer: int, head: int = 0
) -> dict[tuple[str, str], Float[Tensor, "batch key d_model"]]:
    """x^a_j W_V W_O Π_b, by (read part a, written part b). Their sum is what a head writes that attends to token j."""
    network = network_of(model)
    circuit, width = network.ov(layer, head), require_item_label(task).d_model
    P, d_model = require_item_label(task).config.position_dim, network.d_model
    places = {"position": slice(0, P), "content": slice(P, width), "other": slice(width, d_model)}
    result = {}
    for a, part in terms(network, task, inputs, layer).items():
        written = part @ circuit
        for b, place in places.items():
            if place.start < place.stop:
                result[a, b] = torch.zeros_like(written)
                result[a, b][..., place] = written[..., place]
    return result


def ov_strengths(model: AnyNetwork, batch: Batch, task: Task) -> pd.DataFrame:
    """Strength of every OV block: one row per layer, head, read part and written part.

    ``strength`` is √⟨|x^a_j W_V W_O Π_b|²⟩ over sequences and tokens, in units of the residual stream, where a token's
    content and its position have length 1.
    """
    network, rows = network_of(model), []
    for layer, head in product(range(network.n_layers), range(network.n_heads)):
        for (a, b), block in written_blocks(network, task, batch.inputs, layer, head).items():
            strength = float(block.square().sum(dim=-1).mean().sqrt())
            rows.append({"layer": layer, "head": head, "read": a, "written": b, "strength": strength})
    return pd.DataFrame(rows)


def singular_directions(model: AnyNetwork, task: Task, *, n: int = 8) -> pd.DataFrame:
    """The n largest singular values of every head's QK and OV circuit, and where their singular vectors lie.

    W = U diag(s) Vᵀ. For QK, u belongs to the query and v to the key; for OV, u is read and v written. ``u_position``
    and so on are the energies of the vectors in `subspaces`, in [0, 1]: |Π u|² with |u| = 1. The buffer is the image of
    content under head 0 of layer 0; it is not informative for layer 0 itself.
    """
    network, rows = network_of(model), []
    spaces = {name: space for name, space in subspaces(network, task).items() if name in PARTS}
    for layer, head in product(range(network.n_layers), range(network.n_heads)):
        for name, circuit in (("qk", qk(network, layer, head)), ("ov", ov(network, layer, head))):
            u, s, v = torch.linalg.svd(circuit, full_matrices=False)
            energies = {
                f"{side}_{part}": space.energy(vectors).tolist()
                for side, vectors in (("u", u.T[:n]), ("v", v[:n]))
                for part, space in spaces.items()
            }
            for i, value in enumerate(s[:n].tolist()):
                place = {"layer": layer, "head": head, "circuit": name, "index": i, "value": value}
                rows.append(place | {name: energy[i] for name, energy in energies.items()})
    return pd.DataFrame(rows)


def null_band(
    config: RunConfig,
    batch: Batch,
    task: Task,
    strengths: Callable[[Network, Batch, Task], pd.DataFrame] = qk_strengths,
    *,
    n_networks: int = 20,
) -> pd.DataFrame:
    """`qk_strengths` or `ov_strengths` of untrained networks: mean, 2.5 % and 97.5 % quantile over fresh seeds."""
    untrained = [
        strengths(Network.initial(config.model_copy(update={"seed": config.seed + 1 + i})), batch, task)
        for i in range(n_networks)
    ]
    index = [name for name in untrained[0] if name != "strength"]
    groups = pd.concat(untrained).groupby(index, sort=False)["strength"]
    return pd.DataFrame(
        {"null_mean": groups.mean(), "null_low": groups.quantile(0.025), "null_high": groups.quantile(0.975)}
    ).reset_index()


def position_profile(model: AnyNetwork, task: Task, layer: int = 0, head: int = 0) -> pd.Series:
    """The position–position block of W_Q W_Kᵀ by offset i − j = 0 … T−1: the mean over positions, score units.

    For a previous-token head it is β₁ at offset 1 and 0 elsewhere.
    """
    P, T = require_item_label(task).config.position_dim, task.n_pos
    block = qk(model, layer, head)[:P, :P]
    values = [float(block.diagonal(-offset).mean()) for offset in range(T)]
    return pd.Series(values, index=pd.RangeIndex(T, name="offset"), name="score")


def composition_scores(model: AnyNetwork) -> pd.DataFrame:
    """Composition of every two heads: how much the later reads of the earlier's output through query, key or value.

    ‖W_OV¹ M‖ / (‖W_OV¹‖ ‖M‖) in Frobenius norms, with M = W_QK² for Q, W_QK²ᵀ for K and W_OV² for V; in [0, 1]. Two
    random matrices give about 1/√d_model (Elhage et al. 2021).
    """
    network, rows, norm = network_of(model), [], torch.linalg.matrix_norm
    heads = list(product(range(network.n_layers), range(network.n_heads)))
    for (layer1, head1), (layer2, head2) in product(heads, heads):
        if layer1 < layer2:
            first, circuit = network.ov(layer1, head1), qk(network, layer2, head2)
            for through, second in (("Q", circuit), ("K", circuit.T), ("V", network.ov(layer2, head2))):
                score = float(norm(first @ second) / (norm(first) * norm(second)))
                rows.append(
                    {"from": f"{layer1}.{head1}", "to": f"{layer2}.{head2}", "through": through, "score": score}
                )
    return pd.DataFrame(rows)


@torch_defaults()
def copying_score(model: AnyNetwork, task: Task, batch: Batch, layer: int = 1, head: int = 0) -> float:
    """Σ Re λ / Σ |λ| in [−1, 1]: 1 if attending to a label raises the logit of the same label (Elhage et al. 2021).

    λ are the eigenvalues of C [L, L]: C_ℓm is the derivative of logit_m with respect to what the head writes, at the
    target, in the direction label_ℓ W_V W_O, minus its mean over m, which softmax ignores. The classifier is linearised
    at the batch's targets and averaged. 0 if no logit changes relative to the others (to rounding).
    """
    item_label, network, hook = require_item_label(task), network_of(model), "classifier.hook_in"
    P, width = item_label.config.position_dim, item_label.d_model
    if any(weights.is_inference() for weights in network.parameters.values()):  # these know no gradients
        network = Network(network.config, {name: weights.clone() for name, weights in network.parameters.items()})
    labels = torch.from_numpy(item_label.label_vectors).to(network.dtype)
    added = labels @ network.ov(layer, head)[P:width]
    with torch.no_grad():
        cache = run_with_cache(network, batch.inputs, [hook])
    with torch.enable_grad():
        state = cache[hook].requires_grad_()
        logits = Activations(network, {hook: state}).forward_from(hook, state)
        slopes = [torch.autograd.grad(total, state, retain_graph=True)[0].mean(dim=0) for total in logits.sum(dim=0)]
    raw = (added @ torch.stack(slopes, dim=1)).double()
    effect = raw - raw.mean(dim=1, keepdim=True)
    if bool(raw.any()) and float(effect.abs().max()) <= 1e-6 * float(raw.abs().max()):
        return 0.0
    eigenvalues = np.linalg.eigvals(effect.numpy())
    total = np.abs(eigenvalues).sum()
    return float(eigenvalues.real.sum() / total) if total else float("nan")
