"""Circuits planted by hand, whose every activation is known: what the analyses are tested on.

`induction_head` is the minimal induction head of Reddy 2023 (eqs 4 to 6) with the weights of a `VectorTransformer`. Its
residual stream is position ⊕ content ⊕ buffer ⊕ output, P + 3D wide:

    layer 1   q¹_ij ∝ exp(β₁ δ_{i−1,j}),             buffer_i = Σ_{j≤i} q¹_ij content_j
    layer 2   q²_ij ∝ exp(α buffer_j·content_i + β₂ Δ_ij),  output_i = Σ_{j≤i} q²_ij content_j
    readout   logit_ℓ = ξ (dual_ℓ · output_T)

with Δ_ij = 1 iff i − j is odd, and dual_ℓ the dual basis of the label vectors (dual_ℓ·label_m = δ_ℓm), so that a logit
is ξ times the attention that the target pays to a label, plus what items contribute. A twin that lacks one operation
and two decoys, which do without an induction head, show whether an analysis can tell.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mechinterp.config import ItemLabelConfig, RunConfig
from mechinterp.errors import MechinterpError, NamedEnum, member
from mechinterp.models.transformer import VectorTransformer, set_parameters
from mechinterp.tasks.item_label import ItemLabelTask


class Operation(NamedEnum):
    """The operations of an induction head, each with what is left when it is missing."""

    previous_token = "layer 1 looks at the token before; without it, layer 1 attends uniformly (β₁ = 0)"
    write = "layer 1 writes what it sees into the buffer; without it, the buffer stays empty"
    match = "layer 2 looks where the buffer matches the target; without it, content has no part in it (α = 0)"
    copy = "layer 2 copies the content that it sees; without it, the output stays empty"
    readout = "the classifier names the label that was copied; without it, all logits are 0 (ξ = 0)"


def induction_head(
    config: RunConfig,
    *,
    beta1: float = 20.0,
    alpha: float = 40.0,
    beta2: float = 0.0,
    xi: float = 20.0,
    without: Operation | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> VectorTransformer:
    """The minimal induction head, exactly, for the item–label task of `config`; or its twin without an operation.

    A deeper classifier than the linear readout passes the logits on through its ReLU layers as positive and negative
    part, which takes a width of 2L.
    """
    without = None if without is None else member(Operation, without)
    parts, parameters = _blank(config, dtype)
    position, content, buffer, output = (parts[name] for name in ("position", "content", "buffer", "output"))
    n_positions, D = position.stop, content.stop - content.start
    if without is not Operation.previous_token:
        Q, K = parameters["blocks.0.attn.W_Q"][0], parameters["blocks.0.attn.W_K"][0]
        Q[torch.arange(1, n_positions), torch.arange(n_positions - 1)] = beta1  # asks for the position before
        K[position, position] = torch.eye(n_positions, dtype=dtype)
    if without is not Operation.write:
        parameters["blocks.0.attn.W_V"][0][content, buffer] = torch.eye(D, dtype=dtype)
    Q, K = parameters["blocks.1.attn.W_Q"][0], parameters["blocks.1.attn.W_K"][0]
    if without is not Operation.match:
        Q[content, content] = alpha * torch.eye(D, dtype=dtype)
        K[buffer, content] = torch.eye(D, dtype=dtype)
    _attend_to_odd_offsets(Q, K, n_positions, beta2)
    if without is not Operation.copy:
        parameters["blocks.1.attn.W_V"][0][content, output] = torch.eye(D, dtype=dtype)
    if without is not Operation.readout:
        _read_labels(config, parameters, output, xi)
    return _model(config, parameters, dtype)


def random_label_decoy(
    config: RunConfig, *, beta2: float = 20.0, xi: float = 20.0, dtype: torch.dtype = torch.float64
) -> VectorTransformer:
    """Names some label of the context, whichever the target is: layer 2 attends to all labels alike and copies.

    Its accuracy is that of guessing among the context's labels, without any operation of layer 1.
    """
    parts, parameters = _blank(config, dtype)
    content, output = parts["content"], parts["output"]
    Q, K = parameters["blocks.1.attn.W_Q"][0], parameters["blocks.1.attn.W_K"][0]
    _attend_to_odd_offsets(Q, K, parts["position"].stop, beta2)
    parameters["blocks.1.attn.W_V"][0][content, output] = torch.eye(output.stop - output.start, dtype=dtype)
    _read_labels(config, parameters, output, xi)
    return _model(config, parameters, dtype)


def memorising_decoy(config: RunConfig, *, xi: float = 20.0, dtype: torch.dtype = torch.float64) -> VectorTransformer:
    """Knows the label of every trained class by heart and ignores the context: a unit of the classifier per class.

    Unit k fires with the projection of the target's content on μ_k beyond half of |μ_k|². Takes a classifier of depth
    1 or more and a width of K.
    """
    task = _task(config)
    K, depth = task.config.n_classes, config.model.classifier_depth
    if depth < 1 or config.model.classifier_width < K:
        raise MechinterpError(f"memorising {K} classes takes model.classifier_depth ≥ 1 and classifier_width ≥ {K}")
    parts, parameters = _blank(config, dtype)
    means = torch.from_numpy(task.class_means).to(dtype)
    parameters["classifier.layers.0.W"][parts["content"], :K] = means.T
    parameters["classifier.layers.0.b"][:K] = -means.square().sum(dim=1) / 2
    for layer in range(1, depth):
        parameters[f"classifier.layers.{layer}.W"][:K, :K] = torch.eye(K, dtype=dtype)
    parameters["classifier.readout.W"][torch.arange(K), torch.arange(K) % config.task.n_labels] = xi
    return _model(config, parameters, dtype)


def _task(config: RunConfig) -> ItemLabelTask:
    if not isinstance(config.task, ItemLabelConfig):
        raise MechinterpError("circuits are planted for the item–label task; this config has a task of another kind")
    return ItemLabelTask(config.task, seed=config.seed)


def _blank(config: RunConfig, dtype: torch.dtype) -> tuple[dict[str, slice], dict[str, Tensor]]:
    """Where the parts of the residual stream lie, and parameters that are all zero."""
    _task(config)
    assert isinstance(config.task, ItemLabelConfig)
    if config.model.n_layers != 2 or config.model.n_heads != 1:
        raise MechinterpError("circuits are planted into two layers of one head (model.n_layers, model.n_heads)")
    P, D = config.task.position_dim, config.task.content_dim
    edges = np.cumsum([0, P, D, D, D]).tolist()
    names = ("position", "content", "buffer", "output")
    parts = {name: slice(*ends) for name, ends in zip(names, pairwise(edges), strict=True)}
    model = VectorTransformer(config, dtype, d_model=edges[-1])
    own = dict(model.named_parameters())
    return parts, {name: torch.zeros_like(own[name]) for name in model.trained}


def _model(config: RunConfig, parameters: dict[str, Tensor], dtype: torch.dtype) -> VectorTransformer:
    model = VectorTransformer(config, dtype, d_model=parameters["blocks.0.attn.W_V"].shape[-1])
    set_parameters(model, parameters)
    return model


def _attend_to_odd_offsets(Q: Tensor, K: Tensor, n_positions: int, beta2: float) -> None:
    """Adds β₂ Δ_ij = β₂ (1 − π_i π_j)/2 to the scores, π = (−1)^position; uses the head's first two dimensions."""
    parity = torch.ones(n_positions, dtype=Q.dtype)
    parity[1::2] = -1
    Q[:n_positions, 0], K[:n_positions, 0] = beta2 / 2, 1
    Q[:n_positions, 1], K[:n_positions, 1] = -beta2 / 2 * parity, parity


def _read_labels(config: RunConfig, parameters: dict[str, Tensor], output: slice, xi: float) -> None:
    """logit_ℓ = ξ dual_ℓ·output at the target, through whatever ReLU layers there are."""
    labels = torch.from_numpy(_task(config).label_vectors).double()
    L, depth, dtype = len(labels), config.model.classifier_depth, parameters["classifier.readout.W"].dtype
    if torch.linalg.matrix_rank(labels) < L:
        raise MechinterpError(f"{L} labels have no dual basis in {labels.shape[1]} dimensions: raise task.content_dim")
    dual = (xi * torch.linalg.pinv(labels)).to(dtype)  # [D, L]
    readout = parameters["classifier.readout.W"]
    if depth == 0:
        readout[output] = dual
        return
    if config.model.classifier_width < 2 * L:
        raise MechinterpError(f"passing {L} logits through ReLUs takes model.classifier_width ≥ {2 * L}")
    parameters["classifier.layers.0.W"][output, : 2 * L] = torch.cat([dual, -dual], dim=1)
    for layer in range(1, depth):
        parameters[f"classifier.layers.{layer}.W"][: 2 * L, : 2 * L] = torch.eye(2 * L, dtype=dtype)
    readout[:L] = torch.eye(L, dtype=dtype)
    readout[L : 2 * L] = -torch.eye(L, dtype=dtype)
