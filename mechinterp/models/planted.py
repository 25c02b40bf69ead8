"""Networks with weights set by hand, whose activations are known: the analyses are tested on them.

`induction_head` has the weights of `models.induction_head.write_induction_head`, in a residual stream of position ⊕
content ⊕ buffer ⊕ output, P + 3D wide:

    layer 1   q¹_ij ∝ exp(β₁ δ_{i−1,j}),             buffer_i = Σ_{j≤i} q¹_ij content_j
    layer 2   q²_ij ∝ exp(α buffer_j·content_i + β₂ Δ_ij),  output_i = Σ_{j≤i} q²_ij content_j
    readout   logit_ℓ = ξ (dual_ℓ · output_T)

with Δ_ij = 1 iff i − j is odd, and dual_ℓ the dual basis of the label vectors (dual_ℓ·label_m = δ_ℓm), so that a logit
is ξ times the attention that the target pays to a label, plus what items contribute. A twin that lacks one
operation, four decoys without an induction head, and an induction head of the other kind (`q_composition_head`) test
whether an analysis tells them apart.

`token_induction_head` is an induction head on tokens, with LayerNorm, rotary positions and W_O. Its stream holds V
numbers for the token, for the token before, and for the output, and their negatives, so that LayerNorm subtracts 0:

    layer 1   p¹_ij ∝ exp(β Σ_m cos θ_m (i − j − 1)) of the angles θ_m of rotation: the token before
    layer 2   p²_ij ∝ exp(α token_i·before_j / σ_i σ_j), in dimensions of the head that are not rotated
    logits    ξ output / σ,  with σ of the residual stream that is read
"""

import torch
from torch import Tensor

from mechinterp.config import ItemLabelConfig, RunConfig, TransformerConfig
from mechinterp.errors import MechinterpError, NamedEnum, member
from mechinterp.models.induction_head import Layout, write_induction_head
from mechinterp.models.layer import rotated
from mechinterp.models.network import Network
from mechinterp.models.registry import parameter_shapes
from mechinterp.tasks.item_label import ItemLabelTask


class Operation(NamedEnum):
    """The operations of an induction head, and what remains without them."""

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
) -> Network:
    """The minimal induction head for the item–label task of `config`, or its twin without an operation.

    A deeper classifier than the linear readout passes the logits on through its ReLU layers as positive and negative
    part, which takes a width of 2L.
    """
    without = None if without is None else member(Operation, without)
    layout, parameters = _blank(config, dtype)
    beta1 = 0.0 if without is Operation.previous_token else beta1
    alpha = 0.0 if without is Operation.match else alpha
    strengths = (torch.tensor([value], dtype=dtype) for value in (beta1, alpha, beta2))
    parameters |= write_induction_head(layout, *strengths)
    if without is Operation.write:
        parameters["blocks.0.attn.W_V"].zero_()
    if without is Operation.copy:
        parameters["blocks.1.attn.W_V"].zero_()
    if without is not Operation.readout:
        _read_labels(config, parameters, layout.output, xi)
    return Network(config, parameters)


def random_label_decoy(
    config: RunConfig, *, beta2: float = 20.0, xi: float = 20.0, dtype: torch.dtype = torch.float64
) -> Network:
    """A network that names some label of the context: layer 2 attends to all labels alike and copies.

    Its accuracy is that of guessing among the context's labels, without any operation of layer 1.
    """
    layout, parameters = _blank(config, dtype)
    zero = torch.zeros(1, dtype=dtype)
    written = write_induction_head(layout, zero, zero, torch.tensor([beta2], dtype=dtype))
    parameters |= {name: matrix for name, matrix in written.items() if name.startswith("blocks.1.")}
    _read_labels(config, parameters, layout.output, xi)
    return Network(config, parameters)


def excluding_decoy(
    config: RunConfig,
    *,
    beta1: float = 20.0,
    alpha: float = -40.0,
    beta2: float = 20.0,
    xi: float = -20.0,
    dtype: torch.dtype = torch.float64,
) -> Network:
    """A network that excludes: layer 2 attends to all labels but the correct one, whose logits the readout lowers.

    It is right where the context has every label (L = N), and has the previous-token head, the buffer and the match of
    an induction head, but copies nothing.
    """
    return induction_head(config, beta1=beta1, alpha=alpha, beta2=beta2, xi=xi, dtype=dtype)


def raising_decoy(
    config: RunConfig, *, raised: float = 20.0, lowered: float = 5.0, dtype: torch.dtype = torch.float64
) -> Network:
    """A network of two heads in layer 2: one raises all labels of the context alike, the other excludes, more weakly.

    The logit of the correct label leads because head 0 lowers the others (ξ = −`lowered`, as in `excluding_decoy`), on
    top of what head 1 gives to all (ξ = `raised`, as in `random_label_decoy`). Values at the correct label carry
    `raised`/`lowered` times as much as the answer needs, and those of other labels take it back.
    """
    if config.model.n_heads != 2:
        raise MechinterpError(f"model.n_heads is {config.model.n_heads}; this network has 2")
    single = config.updated({"model.n_heads": 1})
    excluding, raising = excluding_decoy(single, xi=1.0, dtype=dtype), random_label_decoy(single, xi=1.0, dtype=dtype)
    parameters: dict[str, Tensor] = {}
    for name, matrix in excluding.parameters.items():
        parameters[name] = matrix
        if name.startswith("blocks."):
            second = raising.parameters[name] if name.startswith("blocks.1.") else torch.zeros_like(matrix)
            parameters[name] = torch.cat([matrix, second])
    values = parameters["blocks.1.attn.W_V"]
    values[0] *= -lowered
    values[1] *= raised
    return Network(config, parameters)


def q_composition_head(
    config: RunConfig,
    *,
    alpha: float = 40.0,
    beta: float = 40.0,
    xi: float = 20.0,
    dtype: torch.dtype = torch.float64,
) -> Network:
    """An induction head by Q-composition, in a residual stream of position ⊕ content ⊕ pointer ⊕ output, 2P + 2D wide.

    Layer 1 of a token finds the token of like content that is not itself and writes its position into the pointer;
    layer 2 attends to the position after the pointer and copies its content.
    """
    task = _task(config).config
    P, D = task.position_dim, task.content_dim
    d, position, content = 2 * (P + D), slice(0, P), slice(P, P + D)
    pointer, output = slice(P + D, 2 * P + D), slice(2 * P + D, d)
    parameters = _empty(config, d, dtype)
    eye_P, eye_D = torch.eye(P, dtype=dtype), torch.eye(D, dtype=dtype)
    first, second = ({name: parameters[f"blocks.{layer}.attn.W_{name}"][0] for name in "QKV"} for layer in (0, 1))
    first["Q"][content, content], first["Q"][position, position] = alpha * eye_D, -2 * alpha * eye_P
    first["K"][content, content], first["K"][position, position] = eye_D, eye_P
    first["V"][position, pointer] = eye_P
    second["Q"][pointer, position] = beta * torch.ones(P - 1, dtype=dtype).diag(1)
    second["K"][position, position] = eye_P
    second["V"][content, output] = eye_D
    _read_labels(config, parameters, output, xi)
    return Network(config, parameters)


def memorising_decoy(config: RunConfig, *, xi: float = 20.0, dtype: torch.dtype = torch.float64) -> Network:
    """A network that has memorised the labels of the trained classes, with a classifier unit per class.

    Unit k fires with the projection of the target's content on μ_k beyond half of |μ_k|². Takes a classifier of depth
    1 or more and a width of K.
    """
    task = _task(config)
    K, depth = task.config.n_classes, config.model.classifier_depth
    if depth < 1 or config.model.classifier_width < K:
        raise MechinterpError(f"memorising {K} classes takes model.classifier_depth ≥ 1 and classifier_width ≥ {K}")
    layout, parameters = _blank(config, dtype)
    means = torch.from_numpy(task.class_means).to(dtype)
    parameters["classifier.layers.0.W"][layout.content, :K] = means.T
    parameters["classifier.layers.0.b"][:K] = -means.square().sum(dim=1) / 2
    for layer in range(1, depth):
        parameters[f"classifier.layers.{layer}.W"][:K, :K] = torch.eye(K, dtype=dtype)
    parameters["classifier.readout.W"][torch.arange(K), torch.arange(K) % config.task.n_labels] = xi
    return Network(config, parameters)


def token_induction_head(
    config: RunConfig,
    *,
    beta: float = 20.0,
    alpha: float = 40.0,
    xi: float = 20.0,
    without: Operation | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> Network:
    """An induction head on tokens, or its twin without an operation (see above).

    Takes two layers with one head, or with more heads that share its work in layer 1 and 2 alike; LN, rotary positions
    in the first `rotary_dim` dimensions of a head, W_O, biases, d_model = 6V and d_head = rotary_dim + V.
    """
    without, model, V = None if without is None else member(Operation, without), config.model, config.task.d_vocab
    assert isinstance(model, TransformerConfig)
    rotary, heads = model.rotary_dim or 0, model.n_heads
    parts = (model.n_layers, model.normalization_type, model.biases, model.output_matrix, model.output)
    fits = parts == (2, "LN", True, "trained", "unembedding") and model.attn_only and not model.use_attn_scale
    if not (fits and V and rotary and (model.d_model, model.d_head) == (6 * V, rotary + V)):
        raise MechinterpError(
            f"the induction head on {V} tokens takes two layers with LN, rotary_dim, biases, W_O, d_model = {6 * V},"
            f" d_head = rotary_dim + {V} and an unembedding, without MLPs and an attention scale"
        )
    parameters = {name: torch.zeros(shape, dtype=dtype) for name, shape in parameter_shapes(config).items()}
    for name in parameters:
        if ".ln" in name or name.startswith("ln_final"):
            parameters[name] += float(name.endswith(".w"))
    content = slice(rotary, rotary + V)
    token, before, output = (_pair(V, place, dtype) for place in range(3))
    parameters["embed.W_E"] += token
    first, second = ({name: parameters[f"blocks.{layer}.attn.{name}"] for name in _ATTENTION} for layer in (0, 1))
    if without is not Operation.previous_token:
        upright = torch.cat([torch.ones(rotary // 2, dtype=dtype), torch.zeros(rotary // 2, dtype=dtype)])
        cos, sin = rotated(model, upright[None, None, None], 2).flatten().chunk(2)  # of the angles θ_m
        first["b_K"][:, :rotary], first["b_Q"][:, :rotary] = beta * upright, torch.cat([cos, -sin])
    for part, place in ((first, before), (second, output)):
        part["W_V"][:, :, content] = token.T / 2
        part["W_O"][:, content] = place / heads
    second["W_Q"][:, :, content] = alpha * token.T / 2
    second["W_K"][:, :, content] = before.T / 2
    if without is Operation.write:
        first["W_O"].zero_()
    if without is Operation.match:
        second["W_Q"].zero_()
    if without is Operation.copy:
        second["W_O"].zero_()
    if without is not Operation.readout:
        parameters["unembed.W_U"] += xi * output.T / 2
    return Network(config, parameters)


_ATTENTION = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K")


def _pair(V: int, place: int, dtype: torch.dtype) -> Tensor:
    """Rows that write V numbers into one of three places of a stream, and their negatives into its other half."""
    rows = torch.zeros(V, 6 * V, dtype=dtype)
    rows[:, place * V : (place + 1) * V] = torch.eye(V, dtype=dtype)
    rows[:, (place + 3) * V : (place + 4) * V] = -torch.eye(V, dtype=dtype)
    return rows


def _task(config: RunConfig) -> ItemLabelTask:
    if not isinstance(config.task, ItemLabelConfig):
        raise MechinterpError("circuits are planted for the item–label task; this config has another task")
    if not config.task.position_dim:
        raise MechinterpError("planted circuits read positions, and task.position_dim is 0: raise it")
    return ItemLabelTask(config.task, seed=config.seed)


def _blank(config: RunConfig, dtype: torch.dtype) -> tuple[Layout, dict[str, Tensor]]:
    """The layout of the residual stream, and parameters that are all zero."""
    task = _task(config).config
    layout = Layout(task.position_dim, task.content_dim)
    return layout, _empty(config, layout.d_model, dtype)


def _empty(config: RunConfig, d_model: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters of a residual stream of this width that are all zero."""
    if config.model.n_layers != 2 or config.model.n_heads != 1:
        raise MechinterpError("circuits are planted into two layers of one head (model.n_layers, model.n_heads)")
    parameters = {}
    reading = "classifier.layers.0.W" if config.model.classifier_depth else "classifier.readout.W"
    for name, shape in parameter_shapes(config).items():
        if name.startswith("blocks."):
            shape = (1, d_model, d_model)
        elif name == reading:
            shape = (d_model, shape[1])
        parameters[name] = torch.zeros(shape, dtype=dtype)
    return parameters


def _read_labels(config: RunConfig, parameters: dict[str, Tensor], output: slice, xi: float) -> None:
    """Set the classifier to logit_ℓ = ξ dual_ℓ·output at the target, with any number of ReLU layers."""
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
