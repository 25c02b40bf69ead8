"""Architectures: their parameters, initial values and canonical networks.

Parameters have TransformerLens' names. In the paper's notation (Reddy 2023, eqs 2 and 3), for layer μ and one head:
Q_μ = W_Qᵀ, K_μ = W_Kᵀ, V_μ = W_Vᵀ; vectors multiply from the left, y = x W. All architectures end with a
classifier of ReLU layers and a linear readout, which is declared here.

The **canonical** network is the one that `models.forward` computes: causal attention without biases, scores without a
scale, W_O the identity, a vector of biases in every hidden layer of the classifier, and a logit for every label:

    ``blocks.{l}.attn.W_{Q,K,V}``   [head, d_model, d_model]
    ``classifier.layers.{i}.W``     [in, width],  ``classifier.layers.{i}.b``  [width]
    ``classifier.readout.W``        [width, n_labels]

and, of networks that have them, a bias of the logits and the scale and shift of the tokens' LayerNorm:

    ``classifier.readout.b``        [n_labels]
    ``blocks.0.ln.{w,b}``           [d_model]
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
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


_DRAWN_LAST = ("attn.W_O", "ln.w", "ln.b", "readout.b")
"""Endings of the names of optional parameters."""


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
    def body_shapes(self, config: RunConfig) -> Shapes:
        """Shapes of the parameters of all but the output, in the order of the network."""

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

    def initial_body(
        self, config: RunConfig, name: str, shape: tuple[int, ...], rng: np.random.Generator
    ) -> float | Float[np.ndarray, "..."]:
        """The initial values of such a parameter: N(0, std²), with the config's standard deviation of attention."""
        return config.attention_init_std * rng.standard_normal(shape)

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
        return self.body_shapes(config) | self.output_shapes(config)

    def output_shapes(self, config: RunConfig) -> Shapes:
        """Shapes of the classifier's parameters."""
        shapes, fan_in = Shapes(), self.classifier_input(config)
        for i in range(config.model.classifier_depth):
            shapes[f"classifier.layers.{i}.W"] = (fan_in, config.model.classifier_width)
            shapes[f"classifier.layers.{i}.b"] = (self.n_biases(config),)
            fan_in = config.model.classifier_width
        shapes["classifier.readout.W"] = (fan_in, self.n_logits(config))
        if config.model.readout_bias:
            shapes["classifier.readout.b"] = (self.n_logits(config),)
        return shapes

    def initial_parameters(self, config: RunConfig) -> dict[str, Tensor]:
        """The parameters before training (float32), a pure function of the config.

        Attention as the architecture says; hidden layers of the classifier N(0, v/fan_in) with
        v = model.classifier_init_variance, biases 0; the readout N(0, 1/fan_in). With classifier_init = "torch_linear"
        all of the classifier U(−1/√fan_in, 1/√fan_in). W_O is drawn last, so that the other parameters are the same
        with and without it, and so are LayerNorm and the readout's bias.
        """
        shapes, parameters = self.parameter_shapes(config), {}
        drawn = {name: index for index, name in enumerate(sorted(shapes, key=lambda name: name.endswith(_DRAWN_LAST)))}
        for name, shape in shapes.items():
            rng = generator(config.seed, Stream.INIT, drawn[name])
            if not name.startswith("classifier."):
                values = self.initial_body(config, name, shape, rng)
            else:
                fan_in, of_bias = shapes[name.removesuffix(".b").removesuffix(".W") + ".W"][0], name.endswith(".b")
                if config.model.classifier_init == "torch_linear":
                    values = rng.uniform(-(fan_in**-0.5), fan_in**-0.5, shape)
                else:
                    variance = 1.0 if name == "classifier.readout.W" else config.model.classifier_init_variance
                    values = 0.0 if of_bias else (variance / fan_in) ** 0.5 * rng.standard_normal(shape)
            parameters[name] = torch.from_numpy(np.broadcast_to(values, shape).astype(np.float32))
        return parameters


def canonical_config(config: RunConfig, n_layers: int, n_heads: int, classifier_width: int) -> RunConfig:
    """The config of a canonical network on the same task."""
    model = TransformerConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        classifier_depth=config.model.classifier_depth,
        classifier_width=classifier_width,
        readout_bias=config.model.readout_bias,
    )
    return config.model_copy(update={"model": model})


def split_difference(parameter: Tensor) -> Tensor:
    """Weights, or the bias, of a logit for each of two labels, from those of their difference; along the last axis."""
    half = parameter / 2
    return torch.cat([half, -half], dim=-1)


def diagonal(size: int, ones: slice, like: Tensor) -> Float[Tensor, "size size"]:
    """The matrix with 1 at the given places of its diagonal and 0 elsewhere."""
    entries = like.new_zeros(size)
    entries[ones] = 1
    return entries.diag()
