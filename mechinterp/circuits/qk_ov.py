"""QK and OV circuits of heads, by the parts of what they read (Elhage et al. 2021).

    score_blocks, qk_strengths      the query–key interactions, and how much they move attention
    written_blocks, ov_strengths    what a head reads of a token, and the coordinates that it writes to
    singular_directions             the largest singular values of both circuits, and where their vectors lie
    position_profile                scores by distance in position
    composition_scores              Q-, K- and V-composition between heads (Elhage et al. 2021)
    copying_score                   whether a head copies labels, by eigenvalues (Elhage et al. 2021)

With x_i the residual stream before a layer, its scores are S_ij = x_i W_Q W_Kᵀ x_jᵀ. Since x = Σ_a x^a over its terms
(`subspaces.terms`: position, content and buffer, or token and buffer), they are the sum of query–key interactions,
exactly:

    S_ij = Σ_{a,b} S^{ab}_ij,  S^{ab}_ij = x^a_i W_Q W_Kᵀ x^b_jᵀ.

What a head writes when it attends to token j is likewise x_j W_V W_O = Σ_{a,b} x^a_j W_V W_O Π_b, with Π_b the
projector on the coordinates of position, of content, or on the further coordinates of a planted model. Of networks
whose residual stream has no such coordinates, b is the whole ``residual`` stream.

Normalisation divides all terms by the scale σ of their sum. Its trained scale and shift, biases of queries and keys and
biases by distance are a term of their own, ``bias``; in the matrices of circuits, trained scales and LayerNorm's
subtraction of the mean are multiplied in (folded). Rotary positions make W_Q W_Kᵀ depend on the distance of query and
key; an attention scale divides it.

The notation is that of Elhage et al. 2021, but vectors are rows and scores are not scaled by 1/√d unless the network
scales them. QK and OV circuits of induction heads (K-composition, copying) are those of Olsson et al. 2022.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.circuits.activations import network_of
from mechinterp.circuits.subspaces import read_terms, require_item_label, subspaces
from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import run_with_cache
from mechinterp.models.layer import distance_buckets, rotated, sinusoidal
from mechinterp.models.network import Network
from mechinterp.tasks.base import Batch, Task
from mechinterp.torch_state import torch_defaults

PARTS = ("position", "content", "buffer")

AnyNetwork = Network | nn.Module


def qk(model: AnyNetwork, layer: int, head: int = 0, *, distance: int = 0) -> Float[Tensor, "d_model d_model"]:
    """W_Q W_Kᵀ of a head, folded; S = x (W_Q W_Kᵀ) xᵀ. With rotary positions, of a key `distance` positions before."""
    network = network_of(model)
    (W_Q, _), (W_K, _) = (network.folded(layer, name, head) for name in "QK")
    if network.model.positional_embedding_type == "rotary":
        W_Q = rotated(network.model, W_Q[:, None, None], distance + 1)[:, 0, 0]
    return _scale(network) * W_Q @ W_K.T


def _scale(network: Network) -> float:
    """The factor of scores."""
    return network.matrix(0, "Q").shape[-1] ** -0.5 if network.model.use_attn_scale else 1.0


def ov(model: AnyNetwork, layer: int, head: int = 0) -> Float[Tensor, "d_model d_model"]:
    """W_V W_O of a head, folded; a token x that it attends to adds x W_V W_O (divided by its scale)."""
    return network_of(model).ov(layer, head)


def score_blocks(
    model: AnyNetwork, task: Task, inputs: Tensor, layer: int, head: int = 0
) -> dict[tuple[str, str], Float[Tensor, "batch query key"]]:
    """S^{ab}, by (query part a, key part b). Their sum is the head's scores before the causal mask."""
    network = network_of(model)
    settings, attn, n_pos = network.model, f"blocks.{layer}.attn", inputs.shape[1]
    parts: dict[str, dict[str, Tensor]] = {}
    for name in "QK":
        W, b = network.matrix_of_head(layer, name, head), network.parameters.get(f"{attn}.b_{name}")
        parts[name] = {part: x @ W for part, x in read_terms(network, task, inputs, layer, name).items()}
        if b is not None:
            parts[name]["bias"] = parts[name].get("bias", 0) + b[head].expand(len(inputs), n_pos, -1)
        if settings.positional_embedding_type == "rotary":
            parts[name] = {part: rotated(settings, x[:, :, None], n_pos)[:, :, 0] for part, x in parts[name].items()}
    scale = _scale(network)
    blocks = {(a, b): scale * q @ k.transpose(1, 2) for a, q in parts["Q"].items() for b, k in parts["K"].items()}
    if settings.positional_embedding_type == "relative_positional_bias":
        by_distance = network.parameters[f"{attn}.rel_pos_bias"][distance_buckets(settings, n_pos), head]
        for pair in product([*parts["Q"], "bias"], [*parts["K"], "bias"]):  # a whole table of parts
            blocks.setdefault(pair, by_distance.new_zeros(len(inputs), n_pos, n_pos))
        blocks["bias", "bias"] = blocks["bias", "bias"] + by_distance
    return blocks


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
            first = block.shape[-1] - 1 if layer == network.n_layers - 1 else 1
            seen = torch.ones(block.shape[1:], dtype=block.dtype).tril()[first:]
            mean = (block[:, first:] * seen).sum(dim=-1, keepdim=True) / seen.sum(dim=-1, keepdim=True)
            squares = (block[:, first:] - mean).square() * seen
            variance = (squares.sum(dim=-1) / seen.sum(dim=-1)).mean()
            rows.append({"layer": layer, "head": head, "query": a, "key": b, "strength": float(variance.sqrt())})
    return pd.DataFrame(rows)


def written_blocks(
    model: AnyNetwork, task: Task, inputs: Tensor, layer: int, head: int = 0
) -> dict[tuple[str, str], Float[Tensor, "batch key d_model"]]:
    """x^a_j W_V W_O Π_b, by (read part a, written part b). Their sum is what a head writes that attends to token j."""
    network, parts = network_of(model), read_terms(model, task, inputs, layer, "V")
    W_V, W_O = network.matrix_of_head(layer, "V", head), network.parameters.get(f"blocks.{layer}.attn.W_O")
    b_V, circuit = network.parameters.get(f"blocks.{layer}.attn.b_V"), W_V if W_O is None else W_V @ W_O[head]
    places = {"residual": slice(None)}
    if network.model.is_classic and "position" in getattr(task, "token_parts", {}):
        P, width = require_item_label(task).config.position_dim, task.d_model
        places = {"position": slice(0, P), "content": slice(P, width), "other": slice(width, network.d_model)}
    result = {}
    for a, part in parts.items():
        written = part @ circuit
        for b, place in places.items():
            if b == "residual" or place.start < place.stop:
                result[a, b] = torch.zeros_like(written)
                result[a, b][..., place] = written[..., place]
    if b_V is not None:
        by_bias = b_V[head] if W_O is None else b_V[head] @ W_O[head]
        result["bias", "residual"] = result.get(("bias", "residual"), 0) + by_bias.expand(*inputs.shape[:2], -1)
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
    content under head 0 of layer 0; it is not informative for layer 0 itself. Networks whose residual stream does not
    have the coordinates of the task's vectors have no such columns.
    """
    network, rows = network_of(model), []
    known = network.model.is_classic and "position" in getattr(task, "token_parts", {})
    spaces = subspaces(network, task) if known else {}
    spaces = {name: space for name, space in spaces.items() if name in PARTS}
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
    """Scores by the offset i − j = 0 … T−1 of the key from the query, as far as positions alone give them.

    Of position vectors x_i, the mean of x_i W_Q W_Kᵀ x_jᵀ over positions (not divided by the scale of a normalisation);
    of biases by distance, the bias. For a planted previous-token head it is β₁ at offset 1 and 0 elsewhere. Empty for
    networks without either, as with rotary positions, whose scores depend on content.
    """
    network, T, values = network_of(model), task.n_pos, list[float]()
    vectors, settings = _position_vectors(network, task), network.model
    if settings.positional_embedding_type == "relative_positional_bias":
        biases = network.parameters[f"blocks.{layer}.attn.rel_pos_bias"][:, head]
        values = biases[distance_buckets(settings, T)[-1].flip(0)].tolist()
    elif vectors is not None:
        block = vectors @ qk(network, layer, head) @ vectors.T
        values = [float(block.diagonal(-offset).mean()) for offset in range(min(T, len(block)))]
    return pd.Series(values, index=pd.RangeIndex(len(values), name="offset"), name="score", dtype=float)


def _position_vectors(network: Network, task: Task) -> Float[Tensor, "pos d_model"] | None:
    """The vectors of positions in the residual stream, if there are any."""
    settings = network.model
    if settings.positional_embedding_type == "standard":
        return network.parameters["pos_embed.W_pos"]
    if settings.positional_embedding_type == "sinusoidal":
        return sinusoidal(task.n_pos, network.d_model, network.matrix(0, "Q"))
    place = getattr(task, "token_parts", {}).get("position")
    if place is None:
        return None
    one_hot = torch.eye(task.d_model, dtype=network.dtype)[place]
    return network.embed(one_hot) - network.embed(torch.zeros_like(one_hot))


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
    target, in the direction e_ℓ W_V W_O, minus its mean over m, which softmax ignores. e_ℓ is the embedding of label ℓ
    (of tokens: of token ℓ). The output, with its normalisation, is linearised at the batch's targets and averaged. 0 if
    no logit changes relative to the others (to rounding). Of a task on tokens, labels are taken to be its first
    tokens; MechinterpError if it has fewer tokens than labels.
    """
    network = network_of(model)
    if any(weights.is_inference() for weights in network.parameters.values()):  # these know no gradients
        network = Network(network.config, {name: weights.clone() for name, weights in network.parameters.items()})
    hook = f"blocks.{network.n_layers - 1}.hook_resid_post"
    added = _label_embeddings(network, task) @ network.ov(layer, head)
    with torch.no_grad():
        base = run_with_cache(network, batch.inputs)
    with torch.enable_grad():
        target = base[hook][:, -1:].clone().requires_grad_()
        logits = base.forward_from(hook, torch.cat([base[hook][:, :-1], target], dim=1)).sum(dim=0)
        slopes = [torch.autograd.grad(logit, target, retain_graph=True)[0][:, 0].mean(dim=0) for logit in logits]
    raw = (added @ torch.stack(slopes, dim=1)).double()
    effect = raw - raw.mean(dim=1, keepdim=True)
    if bool(raw.any()) and float(effect.abs().max()) <= 1e-6 * float(raw.abs().max()):
        return 0.0
    eigenvalues = np.linalg.eigvals(effect.numpy())
    total = np.abs(eigenvalues).sum()
    return float(eigenvalues.real.sum() / total) if total else float("nan")


def _label_embeddings(network: Network, task: Task) -> Float[Tensor, "n_labels d_model"]:
    """The content of the token that shows a label, in the residual stream."""
    if task.d_model == 0:
        if task.n_labels > network.parameters["embed.W_E"].shape[0]:
            raise MechinterpError(f"task {type(task).__qualname__}: its labels are no tokens, so no head copies them")
        return network.parameters["embed.W_E"][: task.n_labels]
    item_label = require_item_label(task, positions=False)
    tokens = torch.zeros(task.n_labels, task.d_model, dtype=network.dtype)
    tokens[:, item_label.token_parts["content"]] = torch.from_numpy(item_label.label_vectors).to(network.dtype)
    return network.embed(tokens) - network.embed(torch.zeros_like(tokens))
