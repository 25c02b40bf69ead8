"""Named parts of the residual stream: its subspaces, and the terms whose sum it is.

A vector of the item–label task is position ⊕ content. The sum of what layers have added to it is called the buffer
here. For two layers that is the output of layer 1, which in an induction head carries the content of the token before.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.circuits.activations import classic_network_of, network_of
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import run_with_cache
from mechinterp.models.layer import normalized
from mechinterp.models.network import Network
from mechinterp.tasks.base import Task
from mechinterp.tasks.item_label import ItemLabelTask


@dataclass(frozen=True)
class Subspace:
    """A named subspace of the residual stream."""

    name: str
    basis: Float[Tensor, "dim d_model"]
    """Orthonormal rows that span it."""

    @property
    def dim(self) -> int:
        """Its dimension."""
        return len(self.basis)

    @property
    def projector(self) -> Float[Tensor, "d_model d_model"]:
        """The orthogonal projector Π = BᵀB, for rows: x ↦ x Π."""
        return self.basis.T @ self.basis

    def energy(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """|x Π|² / |x|², in [0, 1]; not a number for x = 0."""
        return (x @ self.basis.T).square().sum(dim=-1) / x.square().sum(dim=-1)


def subspaces(model: Network | nn.Module, task: Task, *, layer: int = 0, head: int = 0) -> dict[str, Subspace]:
    """The named subspaces of a model's residual stream, which need not be orthogonal.

    * ``position``: the P dimensions of the one-hot position;
    * ``content``: the D dimensions of the content, split into
    * ``labels``: the span of the label vectors, and
    * ``content_rest``: what is left of the content;
    * ``buffer``: the image of the content under W_V W_O of the given layer and head.

    Raises for tasks whose tokens are not position ⊕ content.
    """
    item_label, network = require_item_label(task), classic_network_of(model)
    position, content = _coordinates(network, item_label)
    labels = torch.zeros(item_label.n_labels, network.d_model, dtype=network.dtype)
    labels[:, content] = torch.from_numpy(item_label.label_vectors).to(network.dtype)
    eye = torch.eye(network.d_model, dtype=network.dtype)
    span = _span(labels)
    with torch.no_grad():
        image = eye[content] @ network.ov(layer, head)
    bases = {
        "position": eye[position],
        "content": eye[content],
        "labels": span,
        "content_rest": _orthogonal(span, eye[content]),
        "buffer": _span(image),
    }
    return {name: Subspace(name, basis) for name, basis in bases.items()}


def terms(
    model: Network | nn.Module, task: Task, inputs: Tensor, layer: int
) -> dict[str, Float[Tensor, "batch pos d_model"]]:
    """The terms of the residual stream before a layer, whose sum it is.

    The parts of vectors (position, content, as the task's ``token_parts`` name them), or the ``token``; the
    ``position`` of networks that add vectors of positions; the ``buffer``, the sum of the outputs of all layers before,
    of which layer 0 has none; and the ``bias`` of a trained input map. MechinterpError for vectors without
    ``token_parts``.
    """
    network, before = network_of(model), f"blocks.{layer}.hook_resid_pre"
    added = network.model.positional_embedding_type in ("standard", "sinusoidal")
    with torch.no_grad():
        cache = run_with_cache(network, inputs, ["hook_embed", before, *(["hook_pos_embed"] if added else [])])
    result, bias = {"token": cache["hook_embed"]}, network.parameters.get("embed.b_E")
    if task.d_model:
        result = {}
        for name, place in _token_parts(task).items():
            alone = torch.zeros_like(inputs)
            alone[..., place] = inputs[..., place]
            result[name] = network.embed(alone) - (0 if bias is None else bias)
    if added:
        result["position"] = result.get("position", 0) + cache["hook_pos_embed"]
    if bias is not None:
        result["bias"] = bias.expand_as(cache["hook_embed"])
    if layer:
        result["buffer"] = cache[before] - sum(result.values())
    return result


def read_terms(
    model: Network | nn.Module, task: Task, inputs: Tensor, layer: int, through: str
) -> dict[str, Float[Tensor, "batch pos d_model"]]:
    """The terms whose sum a layer's queries, keys or values (``Q``, ``K``, ``V``) read: `terms`, normalised by the
    scale of the whole. The shift of the normalisation is the term ``bias``."""
    network, parts = network_of(model), terms(model, task, inputs, layer)
    settings, ln1, hooks = network.model, f"blocks.{layer}.ln1", [f"blocks.{layer}.ln1.hook_scale"]
    if settings.normalization_type is not None:
        w, b = (network.parameters.get(f"{ln1}.{name}") for name in "wb")
        with torch.no_grad():
            scale = run_with_cache(network, inputs, hooks)[hooks[0]]
        parts = {name: normalized(settings, part, scale) * (1 if w is None else w) for name, part in parts.items()}
        if b is not None:
            parts["bias"] = parts.get("bias", 0) + b.expand_as(next(iter(parts.values())))
    if settings.positional_embedding_type == "shortformer" and through != "V":
        vectors = network.parameters["pos_embed.W_pos"][: inputs.shape[1]].expand(len(inputs), -1, -1)
        parts["position"] = parts.get("position", 0) + vectors
    return parts


def _token_parts(task: Task) -> dict[str, slice]:
    """The dimensions of a vector by what they carry; MechinterpError where the task does not tell."""
    parts = getattr(task, "token_parts", None)
    if not parts:
        raise MechinterpError(
            f"task {type(task).__qualname__}: its vectors are not known to be position ⊕ content or the like"
            " (token_parts); use patch, paths or ablate"
        )
    return parts


def require_item_label(task: Task, *, positions: bool = True) -> ItemLabelTask:
    """The task, if its tokens are position ⊕ content, or at least content; else MechinterpError."""
    if not isinstance(task, ItemLabelTask):
        raise MechinterpError(
            f"task {type(task).__qualname__}: only item–label tokens are known to be position ⊕ content; use patch,"
            " paths or ablate"
        )
    if positions and not task.config.position_dim:
        raise MechinterpError("task.position_dim is 0: tokens are content without position; use patch, paths or ablate")
    return task


def _coordinates(network: Network, task: ItemLabelTask) -> tuple[slice, slice]:
    """The coordinates of position and content; a model may be wider than the tokens."""
    P, width = task.config.position_dim, task.d_model
    if network.d_model < width:
        raise MechinterpError(f"the model's d_model is {network.d_model}, below the task's {width}")
    return slice(0, P), slice(P, width)


def _span(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "dim d_model"]:
    """An orthonormal basis of the rows' span; directions below 10⁻⁶ of the largest do not count."""
    _, size, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[size > 1e-6 * size.max().clamp(min=torch.finfo(rows.dtype).tiny)]


def _orthogonal(
    basis: Float[Tensor, "dim d_model"], within: Float[Tensor, "row d_model"]
) -> Float[Tensor, "rest d_model"]:
    """An orthonormal basis of the complement of a subspace within the span of orthonormal rows."""
    _, _, turned = torch.linalg.svd(basis @ within.T, full_matrices=True)
    return turned[len(basis) :] @ within
