"""Architectures: their parameters, initial values and canonical networks.

Parameters have TransformerLens' names. In the paper's notation (Reddy 2023, eqs 2 and 3), for layer μ and one head:
Q_μ = W_Qᵀ, K_μ = W_Kᵀ, V_μ = W_Vᵀ; vectors multiply from the left, y = x W. All architectures end with a
classifier of ReLU layers and a linear readout, which is declared here.

The **canonical** network is the one that `models.forward` computes: causal attention without biases, scores without a
scale, W_O the identity, a vector of biases in every hidden layer of the classifier, and a logit for every label:

    ``blocks.{l}.attn.W_{Q,K,V}``   [head, d_model, d_model]
    ``classifier.layers.{i}.W``     [in, width],  ``classifier.layers.{i}.b``  [width]
    ``classifier.readout.W``        [width, n_labels]
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.config import RunConfig, TransformerConfig
from mechinterp.randomness import Stream, generator
from mechinterp.tasks.base import Batch

Parameters = Mapping[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
Support = Mapping[str, tuple[slice, slice]]
"""The rows and columns outside of which an attention matrix is zero, by name; a matrix that is not in it is dense."""


class Canonical(NamedTuple):
    """The canonical network of an architecture's parameters."""

    config: RunConfig
    parameters: dict[str, Tensor]
    support: Support


class Gradients(NamedTuple):
    """The loss of a batch whose gradient has been computed by a formula."""

    loss: Float[Tensor, ""]
    """Mean cross-entropy at the target, nats."""
    correct: Int[Tensor, ""]
    """Number of targets classified correctly."""


class Architecture(ABC):
    """A form of network. Subclasses are stateless; `models.registry` has one instance of every subclass."""

    @abstractmethod
    def attention_shapes(self, config: RunConfig) -> Shapes:
        """Shapes of the parameters of attention, in the order of the network."""

    @abstractmethod
    def classifier_input(self, config: RunConfig) -> int:
        """Number of dimensions that the classifier reads."""

    @abstractmethod
    def canonical(self, config: RunConfig, parameters: Parameters) -> Canonical:
        """The canonical network that computes the same as `parameters` under `config`; differentiable."""

    def n_logits(self, config: RunConfig) -> int:
        """Number of columns of the readout."""
        return config.task.n_labels

    def n_biases(self, config: RunConfig) -> int:
        """Number of biases of a hidden layer of the classifier."""
        return config.model.classifier_width

    def constant(self, config: RunConfig, name: str) -> float | None:
        """The initial value of a parameter if the config sets it, or None if it is drawn."""
        return None

    def attention_std(self, config: RunConfig, name: str, shape: tuple[int, ...]) -> float:
        """Standard deviation of the initial values of a parameter of attention."""
        return config.attention_init_std

    def has_gradients(self, config: RunConfig) -> bool:
        """Whether `gradients` can be used for this config."""
        return False

    def canonical_has_gradients(self, config: RunConfig) -> bool:
        """Whether the canonical network of this config has `gradients`, though the config itself has none."""
        return False

    def gradients(self, config: RunConfig, parameters: Parameters, batch: Batch, into: Parameters) -> Gradients:
        """Loss of a batch by a formula; ∂ℒ/∂(parameter) is written into `into`."""
        raise NotImplementedError

    def parameter_shapes(self, config: RunConfig) -> Shapes:
        """Shape of every trained parameter, in the order of the network."""
        shapes, fan_in = self.attention_shapes(config), self.classifier_input(config)
        for i in range(config.model.classifier_depth):
            shapes[f"classifier.layers.{i}.W"] = (fan_in, config.model.classifier_width)
            shapes[f"classifier.layers.{i}.b"] = (self.n_biases(config),)
            fan_in = config.model.classifier_width
        return shapes | {"classifier.readout.W": (fan_in, self.n_logits(config))}

    def initial_parameters(self, config: RunConfig) -> dict[str, Tensor]:
        """The parameters before training (float32), a pure function of the config.

        Attention as the architecture says; hidden layers of the classifier N(0, v/fan_in) with
        v = model.classifier_init_variance, their biases 0; the readout N(0, 1/fan_in). W_O is drawn last, so that the
        other parameters are the same with and without it.
        """
        shapes, parameters = self.parameter_shapes(config), {}
        drawn = {name: index for index, name in enumerate(sorted(shapes, key=lambda name: name.endswith("W_O")))}
        for name, shape in shapes.items():
            constant = 0.0 if name.endswith(".b") else self.constant(config, name)
            if constant is not None:
                parameters[name] = torch.full(shape, constant)
                continue
            if name.startswith("blocks."):
                std = self.attention_std(config, name, shape)
            else:
                variance = 1.0 if name == "classifier.readout.W" else config.model.classifier_init_variance
                std = (variance / shape[0]) ** 0.5
            normal = generator(config.seed, Stream.INIT, drawn[name]).standard_normal(shape)
            parameters[name] = torch.from_numpy(std * normal).float()
        return parameters


def canonical_config(config: RunConfig, n_layers: int, n_heads: int, classifier_width: int) -> RunConfig:
    """The config of a canonical network on the same task."""
    model = TransformerConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        classifier_depth=config.model.classifier_depth,
        classifier_width=classifier_width,
    )
    return config.model_copy(update={"model": model})


def diagonal(size: int, ones: slice, like: Tensor) -> Float[Tensor, "size size"]:
    """The matrix with 1 at the given places of its diagonal and 0 elsewhere."""
    entries = like.new_zeros(size)
    entries[ones] = 1
    return entries.diag()
