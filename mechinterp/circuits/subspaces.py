"""Named parts of the residual stream: its subspaces, and the terms whose sum it is.

A token is position ⊕ content. The sum of what layers have added to it is called the buffer here. For two layers that is
the output of layer 1, which in an induction head carries the content of the token before.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.circuits.activations import network_of
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import run_with_cache
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
    item_label, network = require_item_label(task), network_of(model)
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
    model: Network | nn.Module, task: Task, inputs: Float[Tensor, "batch pos d_token"], layer: int
) -> dict[str, Float[Tensor, "batch pos d_model"]]:
    """The terms of the residual stream before a layer: position + content + buffer.

    The buffer is the sum of the outputs of all layers before; before layer 0 there is none.
    """
    network = network_of(model)
    position, content = _coordinates(network, require_item_label(task))
    before = f"blocks.{layer}.hook_resid_pre"
    with torch.no_grad():
        cache = run_with_cache(network, inputs, ["hook_embed", before])
    tokens = cache["hook_embed"]
    result = {}
    for name, part in (("position", position), ("content", content)):
        result[name] = torch.zeros_like(tokens)
        result[name][..., part] = tokens[..., part]
    if layer:
        result["buffer"] = cache[before] - tokens
    return result


def require_item_label(task: Task) -> ItemLabelTask:
    """The task, if its tokens are position ⊕ content; else MechinterpError."""
    if not isinstance(task, ItemLabelTask):
        raise MechinterpError(
            f"task {type(task).__qualname__}: only item–label tokens are known to be position ⊕ content; use patch,"
            " paths or ablate"
        )
    if not task.config.position_dim:
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
