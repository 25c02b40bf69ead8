"""Trained networks of any architecture, as circuits, measures and engines take them."""

from collections.abc import Collection, Mapping
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.models.base import Support
from mechinterp.models.registry import architecture_of, parameter_shapes
from mechinterp.torch_state import torch_defaults


class Network:
    """The canonical network (`models.base`) of a config and its parameters.

    `Network(config, parameters)` takes the trained parameters of any architecture, or those of a canonical network that
    is wider than the task's tokens, as planted circuits are; tokens are then padded with zeros. A missing or unexpected
    parameter, or another shape, raises MechinterpError. Differentiable in the parameters.
    """

    def __init__(self, config: RunConfig, parameters: Mapping[str, Tensor]):
        _require_fit(config, parameters)
        canonical = architecture_of(config).canonical(config, parameters)
        self.config: RunConfig = canonical.config
        """The config of the canonical network."""
        self.parameters: dict[str, Tensor] = canonical.parameters
        """The canonical parameters, by TransformerLens' names."""
        self._support: Support = canonical.support
        self._original = [self._versions(layer) for layer in range(self.n_layers)]
        self._qk: dict[int, tuple[list[int] | None, tuple[slice, slice, Tensor]]] = {}

    @classmethod
    @torch_defaults()
    def initial(cls, config: RunConfig) -> "Network":
        """The network before training."""
        return cls(config, architecture_of(config).initial_parameters(config))

    @property
    def n_layers(self) -> int:
        """Attention layers."""
        return self.config.model.n_layers

    @property
    def n_heads(self) -> int:
        """Heads in a layer."""
        return self.config.model.n_heads

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.parameters["blocks.0.attn.W_Q"].shape[1]

    @property
    def depth(self) -> int:
        """ReLU layers of the classifier."""
        return self.config.model.classifier_depth

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return self.parameters["classifier.readout.W"].dtype

    @cached_property
    def hook_names(self) -> tuple[str, ...]:
        """Names of the activations that `forward` can replace or keep, in the order of computation."""
        return hook_names(self.n_layers, self.depth)

    def matrix(self, layer: int, name: str) -> Float[Tensor, "head d_model d_head"]:
        """W_Q, W_K or W_V of a layer, by its last letter."""
        if layer not in range(self.n_layers):
            raise unknown_name("layer", layer, range(self.n_layers))
        return self.parameters[f"blocks.{layer}.attn.W_{name}"]

    def matrix_of_head(self, layer: int, name: str, head: int) -> Float[Tensor, "d_model d_head"]:
        """W_Q, W_K or W_V of a head; its W_O is the identity."""
        if head not in range(self.n_heads):
            raise unknown_name("head", head, range(self.n_heads))
        return self.matrix(layer, name)[head]

    def block(self, layer: int, name: str) -> tuple[slice, slice, Float[Tensor, "head rows columns"]]:
        """Rows and columns outside of which `matrix` is zero, and the matrix within them."""
        rows, columns = slice(None), slice(None)
        versions = self._versions(layer)
        if versions is not None and versions == self._original[layer]:  # else the matrices may have been changed
            rows, columns = self._support.get(f"blocks.{layer}.attn.W_{name}", (rows, columns))
        return rows, columns, self.matrix(layer, name)[:, rows, columns]

    def qk(self, layer: int) -> tuple[slice, slice, Float[Tensor, "head rows columns"]]:
        """Rows and columns outside of which W_Q W_Kᵀ is zero, and the product within them."""
        versions = self._versions(layer)
        if versions is None or layer not in self._qk or self._qk[layer][0] != versions:
            (rows, _, W_Q), (columns, _, W_K) = self.block(layer, "Q"), self.block(layer, "K")
            self._qk[layer] = versions, (rows, columns, W_Q @ W_K.transpose(-2, -1))
        return self._qk[layer][1]

    def embed(self, inputs: Float[Tensor, "*any d_token"]) -> Float[Tensor, "*any d_model"]:
        """The residual stream before the first layer: tokens padded with zeros, and scaled and shifted by LayerNorm."""
        padded = inputs if inputs.shape[-1] == self.d_model else pad(inputs, (0, self.d_model - inputs.shape[-1]))
        residual = padded.to(self.dtype)
        if "blocks.0.ln.w" not in self.parameters:
            return residual
        return residual * self.parameters["blocks.0.ln.w"] + self.parameters["blocks.0.ln.b"]

    def _versions(self, layer: int) -> list[int] | None:
        """The numbers of changes in place of a layer's matrices; None of inference tensors, which do not count them."""
        matrices = [self.matrix(layer, name) for name in "QKV"]
        return None if any(matrix.is_inference() for matrix in matrices) else [matrix._version for matrix in matrices]

    def ov(self, layer: int, head: int = 0) -> Float[Tensor, "d_model d_model"]:
        """W_V W_O of a head; W_O is the identity."""
        return self.matrix_of_head(layer, "V", head)


def hook_names(n_layers: int, depth: int) -> tuple[str, ...]:
    """Names of the activations of a network, from its attention layers and the classifier's ReLU layers."""
    names = ["hook_embed"]
    for layer in range(n_layers):
        names.append(f"blocks.{layer}.hook_resid_pre")
        names += [f"blocks.{layer}.attn.hook_{name}" for name in ("q", "k", "v", "attn_scores", "pattern", "z")]
        names += [f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.hook_resid_post"]
    hidden = [f"classifier.layers.{i}.hook_{name}" for i in range(depth) for name in ("pre", "post")]
    return (*names, "classifier.hook_in", *hidden, "classifier.hook_logits")


def require_inputs(inputs: Tensor, widths: Collection[int]) -> None:
    """MechinterpError unless the inputs are vectors [batch, pos, width] of one of the widths."""
    if not isinstance(inputs, Tensor):
        raise MechinterpError(f"inputs are a {type(inputs).__name__}; expected a torch.Tensor (torch.from_numpy)")
    if inputs.ndim != 3 or not inputs.is_floating_point() or inputs.shape[-1] not in widths:
        expected = " or ".join(map(str, sorted(widths)))
        raise MechinterpError(
            f"inputs are {tuple(inputs.shape)} {inputs.dtype}; expected vectors [batch, pos, {expected}]"
        )


def _require_fit(config: RunConfig, parameters: Mapping[str, Tensor]) -> None:
    """MechinterpError for parameters that are not those of the config, or of a wider planted network."""
    expected = parameter_shapes(config)
    if odd := sorted(set(parameters) ^ set(expected)):
        raise MechinterpError(f"parameters do not fit the model: missing or unexpected {', '.join(odd)}")
    width, wider = config.task.d_model, 0
    if "blocks.0.attn.W_Q" in parameters and parameters["blocks.0.attn.W_Q"].ndim == 3:
        wider = parameters["blocks.0.attn.W_Q"].shape[1]
    reading = "classifier.layers.0.W" if config.model.classifier_depth else "classifier.readout.W"
    for name, shape in expected.items():
        if wider > width and (name.startswith("blocks.") or name == reading):
            heads, rest = shape[: len(shape) - 2], shape[len(shape) - 2 :]
            shape = (*heads, *(wider for _ in rest)) if name.startswith("blocks.") else (wider, rest[1])
        if not parameters[name].is_floating_point() or parameters[name].dtype != parameters[next(iter(expected))].dtype:
            raise MechinterpError(f"parameter {name} is {parameters[name].dtype}; all take one type of floating point")
        if tuple(parameters[name].shape) != shape:
            raise MechinterpError(f"parameter {name} has shape {tuple(parameters[name].shape)}, expected {shape}")
