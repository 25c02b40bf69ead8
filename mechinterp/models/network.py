"""Trained networks of any architecture, as circuits, measures and engines take them."""

from collections.abc import Collection, Mapping
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding, pad

from mechinterp.config import ModelConfig, RunConfig, TransformerConfig
from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.models.base import Support
from mechinterp.models.layer import layer_hooks
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
        assert isinstance(self.config.model, TransformerConfig)
        self.model: TransformerConfig = self.config.model
        """Its section of the model."""
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

    def __repr__(self) -> str:
        shape = f"layers: {self.n_layers}, heads in a layer: {self.n_heads}, d_model: {self.d_model}"
        return f"<Network: {shape}, {sum(value.numel() for value in self.parameters.values()):,} parameters>"

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
        return self.model.classifier_depth

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return self.parameters["blocks.0.attn.W_Q"].dtype

    @cached_property
    def hook_names(self) -> tuple[str, ...]:
        """Names of the activations that `forward` can replace or keep, in the order of computation."""
        return hook_names(self.model)

    def matrix(self, layer: int, name: str) -> Float[Tensor, "head d_model d_head"]:
        """W_Q, W_K or W_V of a layer, by its last letter."""
        if layer not in range(self.n_layers):
            raise unknown_name("layer", layer, range(self.n_layers))
        return self.parameters[f"blocks.{layer}.attn.W_{name}"]

    def matrix_of_head(self, layer: int, name: str, head: int) -> Float[Tensor, "d_model d_head"]:
        """W_Q, W_K or W_V of a head."""
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

    def of_layer(self, layer: int) -> dict[str, Tensor]:
        """The parameters of a layer, without the layer's prefix."""
        prefix = f"blocks.{layer}."
        return {name.removeprefix(prefix): value for name, value in self.parameters.items() if name.startswith(prefix)}

    def embed(self, inputs: Tensor) -> Float[Tensor, "*any d_model"]:
        """The embedding of tokens, or of vectors [any, d_token]: mapped, or padded with zeros and, with a trained
        LayerNorm, scaled and shifted."""
        if self.model.input == "tokens":
            return embedding(inputs, self.parameters["embed.W_E"])  # whose gradient, unlike indexing's, has fixed bits
        if self.model.input == "projected":
            embedded, b = inputs.to(self.dtype) @ self.parameters["embed.W_E"], self.parameters.get("embed.b_E")
            return embedded if b is None else embedded + b
        padded = inputs if inputs.shape[-1] == self.d_model else pad(inputs, (0, self.d_model - inputs.shape[-1]))
        residual = padded.to(self.dtype)
        if "blocks.0.ln.w" not in self.parameters:
            return residual
        return residual * self.parameters["blocks.0.ln.w"] + self.parameters["blocks.0.ln.b"]

    def _versions(self, layer: int) -> list[int] | None:
        """The numbers of changes in place of a layer's matrices; None of inference tensors, which do not count them."""
        matrices = [self.matrix(layer, name) for name in "QKV"]
        return None if any(matrix.is_inference() for matrix in matrices) else [matrix._version for matrix in matrices]

    def folded(
        self, layer: int, name: str, head: int
    ) -> tuple[Float[Tensor, "d_model d_head"], Float[Tensor, "d_head"]]:
        """W and b of a head's query, key or value, x W/σ + b, of the residual stream x with the scale σ.

        The trained scale and shift of the normalisation, and LayerNorm's subtraction of the mean, are multiplied in.
        """
        W, block = self.matrix_of_head(layer, name, head), f"blocks.{layer}"
        biases = self.parameters.get(f"{block}.attn.b_{name}")
        b = W.new_zeros(W.shape[1]) if biases is None else biases[head]
        shift, scale = (self.parameters.get(f"{block}.ln1.{part}") for part in "bw")
        b = b if shift is None else b + shift @ W
        W = W if scale is None else scale[:, None] * W
        return (W - W.mean(dim=0) if str(self.model.normalization_type).startswith("LN") else W), b

    def ov(self, layer: int, head: int = 0) -> Float[Tensor, "d_model d_model"]:
        """W_V W_O of a head, with W_V as in `folded`."""
        (W_V, _), W_O = self.folded(layer, "V", head), self.parameters.get(f"blocks.{layer}.attn.W_O")
        return W_V if W_O is None else W_V @ W_O[head]


def hook_names(model: ModelConfig) -> tuple[str, ...]:
    """Names of the activations of a model's canonical network, in the order of computation."""
    general = model if isinstance(model, TransformerConfig) and not model.is_classic else None
    names = ["hook_embed"]
    if general and general.has_position_vectors:
        names.append("hook_pos_embed")
    of_layer = layer_hooks(general or TransformerConfig())
    names += [f"blocks.{layer}.{hook}" for layer in range(model.n_layers) for hook in of_layer]
    if general and general.normalization_type and general.final_norm:
        names += ["ln_final.hook_scale", "ln_final.hook_normalized"]
    if general and general.output != "classifier":
        return (*names, "unembed.hook_out")
    hidden = [f"classifier.layers.{i}.hook_{name}" for i in range(model.classifier_depth) for name in ("pre", "post")]
    return (*names, "classifier.hook_in", *hidden, "classifier.hook_logits")


def require_positions(config: RunConfig, n_pos: int) -> None:
    """MechinterpError for more positions than a network has vectors for."""
    if n_pos > config.task.n_pos:
        raise MechinterpError(
            f"inputs have {n_pos} positions; this network has vectors for {config.task.n_pos} (task.n_pos)"
        )


def require_inputs(inputs: Tensor, widths: Collection[int], d_vocab: int = 0) -> None:
    """MechinterpError unless the inputs are vectors [batch, pos, width] of one of the widths, or with a vocabulary
    tokens [batch, pos]."""
    if not isinstance(inputs, Tensor):
        raise MechinterpError(f"inputs are a {type(inputs).__name__}; expected a torch.Tensor (torch.from_numpy)")
    got = f"inputs are {tuple(inputs.shape)} {inputs.dtype}"
    if d_vocab:
        if inputs.ndim != 2 or inputs.is_floating_point() or not bool(((inputs >= 0) & (inputs < d_vocab)).all()):
            raise MechinterpError(f"{got}; expected tokens [batch, pos] from 0 to {d_vocab - 1}")
    elif inputs.ndim != 3 or not inputs.is_floating_point() or inputs.shape[-1] not in widths:
        raise MechinterpError(f"{got}; expected vectors [batch, pos, {' or '.join(map(str, sorted(widths)))}]")


def _require_fit(config: RunConfig, parameters: Mapping[str, Tensor]) -> None:
    """MechinterpError for parameters that are not those of the config, or of a wider planted network."""
    expected = parameter_shapes(config)
    if odd := sorted(set(parameters) ^ set(expected)):
        raise MechinterpError(f"parameters do not fit the model: missing or unexpected {', '.join(odd)}")
    width, wider = config.task.d_model, 0
    planted = not isinstance(config.model, TransformerConfig) or config.model.is_classic
    if planted and "blocks.0.attn.W_Q" in parameters and parameters["blocks.0.attn.W_Q"].ndim == 3:
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
