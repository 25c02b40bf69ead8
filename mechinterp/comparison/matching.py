"""Symmetries of a network's weights, and the copy of one network whose weights are nearest to another's.

A network computes the same after

* hidden units of the classifier's ReLU layers, or of an MLP, have been **permuted**;
* the heads of a layer have been permuted;
* the dimensions inside a head have been **rotated**: W_Q R, W_K R and b_Q R, b_K R, with R orthogonal, and with a W_O
  also W_V S, Sᵀ W_O and b_V S. Signs and permutations of these dimensions are among them. Rotary positions fix the
  dimensions of queries and keys, which are then left as they are;
* the dimensions of the residual stream have been permuted, where trained embeddings and an unembedding or classifier
  choose them. Where tokens are the task's vectors (``input = "as_is"``), or positions are sinusoidal, the coordinates
  are given, and nothing is done.

`matched` chooses among these the copy whose weights are nearest to another network's, by coordinate descent: each
permutation is the solution of an assignment problem, and each rotation that of Procrustes', given all others, until
none changes (at most `SWEEPS` times). Heads are compared by what does not depend on the rotation inside them, the sum
of the cosines of W_Q W_Kᵀ and of W_V W_O.

Not removed: other linear maps inside a head (W_Q M, W_K M⁻ᵀ with M not orthogonal), scales of ReLU units (a > 0 into a
unit, 1/a out of it), rotations of the residual stream, and that descent finds a local optimum. A barrier that remains
after matching is therefore one for these symmetries.

Sources: Ainsworth, Hayase & Srinivasa 2023 (git re-basin, weight matching); Schönemann 1966 (Procrustes).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mechinterp.comparison.components import head_axis
from mechinterp.config import RunConfig, TransformerConfig
from mechinterp.models.registry import parameter_shapes

SWEEPS = 30
"""The most rounds of the descent."""
_RESIDUAL = "residual"
Axes = dict[str, list[tuple[str, int]]]
"""Parameters and the axis along which a permutation acts, by permutation."""


def matched(config: RunConfig, parameters: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The copy of a network that computes the same and whose weights are nearest to those of `reference`.

    Both are the trained parameters of networks of one config.
    """
    axes, copy, distance = permutation_axes(config), dict(parameters), float("inf")
    for _ in range(SWEEPS):
        for places in axes.values():
            copy = permuted(copy, places, _best(copy, reference, places))
        candidates = [copy, _with_matched_heads(config, copy, reference)]
        turned = [_with_rotated_heads(config, candidate, reference) for candidate in candidates]
        copy, before = min(turned, key=lambda candidate: _distance(candidate, reference)), distance
        distance = _distance(copy, reference)
        if distance >= before * (1 - 1e-9):
            break
    return copy


def permutation_axes(config: RunConfig) -> Axes:
    """The permutations of units, and of the residual stream where it is free, with what they act on; heads apart."""
    shapes, axes = parameter_shapes(config), Axes()
    depth = config.model.classifier_depth
    for i in range(depth if "classifier.readout.W" in shapes else 0):
        after = f"classifier.layers.{i + 1}.W" if i + 1 < depth else "classifier.readout.W"
        places = [(f"classifier.layers.{i}.W", 1), (after, 0)]
        if shapes[f"classifier.layers.{i}.b"] == (config.model.classifier_width,):  # not one that all units share
            places.append((f"classifier.layers.{i}.b", 0))
        axes[f"classifier layer {i}"] = places
    for layer in range(config.model.n_layers):
        units = {f"blocks.{layer}.mlp.W_in": 1, f"blocks.{layer}.mlp.b_in": 0, f"blocks.{layer}.mlp.W_out": 0}
        if places := [(name, axis) for name, axis in units.items() if name in shapes]:
            axes[f"MLP {layer}"] = places
    if _is_free(config):
        reading = "classifier.layers.0.W" if depth else "classifier.readout.W"
        ends = [(reading, 0)] if reading in shapes else []
        axes[_RESIDUAL] = ends + [(name, axis) for name in shapes if (axis := _residual_axis(name)) is not None]
    return axes


def permuted(
    parameters: Mapping[str, Tensor], places: list[tuple[str, int]], order: Int[Tensor, "unit"]
) -> dict[str, Tensor]:
    """The parameters with units in another order at all places of a permutation."""
    return dict(parameters) | {name: parameters[name].index_select(axis, order) for name, axis in places}


def with_heads(parameters: Mapping[str, Tensor], layer: int, order: Int[Tensor, "head"]) -> dict[str, Tensor]:
    """The parameters with the heads of a layer in another order."""
    values, prefix = dict(parameters), f"blocks.{layer}.attn."
    for name in parameters:
        if name.startswith(prefix) and name != f"{prefix}b_O":
            values[name] = parameters[name].index_select(head_axis(name), order)
    return values


def _is_free(config: RunConfig) -> bool:
    """Whether the residual stream's coordinates are chosen by training alone."""
    model = config.model
    if not isinstance(model, TransformerConfig) or model.positional_embedding_type == "sinusoidal":
        return False
    return model.input != "as_is" and model.output_matrix == "trained"


def _residual_axis(name: str) -> int | None:
    """The axis of a parameter that is the residual stream's, of a network whose residual stream is free."""
    last = name.rpartition(".")[2]
    if last in ("W_U", "W_in"):
        return 0
    if name.startswith(("ln_final.", "embed.", "pos_embed.")) or ".ln" in name:
        return 1 if last in ("W_E", "W_pos") else 0
    axes = {"W_Q": 1, "W_K": 1, "W_V": 1, "W_O": 2, "b_O": 0, "W_out": 1, "b_out": 0}
    return axes.get(last)


def _best(values: Mapping[str, Tensor], reference: Mapping[str, Tensor], places: list[tuple[str, int]]) -> Tensor:
    """The order of units in which the parameters are nearest to the reference's."""
    alike = torch.zeros((), dtype=torch.float64)
    for name, axis in places:
        given, wanted = (
            parameters[name].double().movedim(axis, 0).reshape(parameters[name].shape[axis], -1)
            for parameters in (values, reference)
        )
        alike = alike + wanted @ given.T
    return _assigned(alike)


def _assigned(alike: Float[Tensor, "wanted given"]) -> Int[Tensor, "wanted"]:
    """Which of the given has each place, so that the sum of the likenesses is largest."""
    return torch.from_numpy(linear_sum_assignment(alike.numpy(), maximize=True)[1])


def _with_matched_heads(
    config: RunConfig, values: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The parameters with the heads of every layer in the order of those of the reference that they are like."""
    aligned = dict(values)
    for layer in range(config.model.n_layers if config.model.n_heads > 1 else 0):
        given, wanted = _circuits(aligned, layer), _circuits(reference, layer)
        alike = torch.stack([b @ a.T for a, b in zip(given, wanted, strict=True)]).sum(dim=0)
        aligned = with_heads(aligned, layer, _assigned(alike))
    return aligned


def _circuits(parameters: Mapping[str, Tensor], layer: int) -> list[Float[Tensor, "head circuit"]]:
    """W_Q W_Kᵀ and W_V W_O of every head, flat and of length 1."""
    Q, K, V = (parameters[f"blocks.{layer}.attn.W_{name}"].double() for name in "QKV")
    W_O = parameters.get(f"blocks.{layer}.attn.W_O")
    products = [Q @ K.transpose(1, 2), V if W_O is None else V @ W_O.double()]
    return [torch.nn.functional.normalize(product.flatten(1), dim=1) for product in products]


def _with_rotated_heads(
    config: RunConfig, values: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The parameters with the dimensions inside every head rotated towards the reference's."""
    aligned, model = dict(values), config.model
    rotary = isinstance(model, TransformerConfig) and model.positional_embedding_type == "rotary"
    for layer in range(model.n_layers):
        attn = f"blocks.{layer}.attn."
        if f"{attn}W_Q" not in aligned:  # the minimal models have no matrices
            continue
        if not rotary:
            _rotate(aligned, reference, [f"{attn}{name}" for name in ("W_Q", "W_K", "b_Q", "b_K")])
        if f"{attn}W_O" in aligned:
            _rotate(aligned, reference, [f"{attn}{name}" for name in ("W_V", "b_V")], f"{attn}W_O")
    return aligned


def _rotate(
    values: dict[str, Tensor], reference: Mapping[str, Tensor], columns: list[str], rows: str | None = None
) -> None:
    """Rotate the last axis of some parameters, and the first after the heads of another, towards the reference's."""
    columns = [name for name in columns if name in values]

    def matrices(parameters: Mapping[str, Tensor]) -> Float[Tensor, "head any d_head"]:
        parts = [parameters[name] if parameters[name].ndim == 3 else parameters[name][:, None] for name in columns]
        return torch.cat([*parts, *([parameters[rows].transpose(1, 2)] if rows else [])], dim=1).double()

    U, _, Vh = torch.linalg.svd(matrices(values).transpose(1, 2) @ matrices(reference))
    R = U @ Vh
    for name in columns:
        value = values[name]
        turned = value.double() @ R if value.ndim == 3 else (value.double()[:, None] @ R)[:, 0]
        values[name] = turned.to(value.dtype)
    if rows:
        values[rows] = (R.transpose(1, 2) @ values[rows].double()).to(values[rows].dtype)


def _distance(values: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """The sum of squares of what two networks' weights differ by."""
    return sum(float((values[name].double() - reference[name].double()).square().sum()) for name in values)
