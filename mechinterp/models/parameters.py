"""The trained parameters: their names (as in TransformerLens), shapes and initial values.

Only these exist in a run file. W_O is the identity and attention has no biases, so those are no parameters; nor are
the embedding and unembedding that a language model would have.

In the paper's notation (Reddy 2023, eqs 2 and 3), for layer μ and one head: Q_μ = W_Qᵀ, K_μ = W_Kᵀ, V_μ = W_Vᵀ.
"""

import torch
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.randomness import Stream, generator


def parameter_shapes(config: RunConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every trained parameter, in the order of the network.

    ``blocks.{layer}.attn.W_{Q,K,V}`` [head, d_model, d_head], ``classifier.layers.{i}.W`` [in, width] and ``.b``
    [width], ``classifier.readout.W`` [width, n_labels]. Vectors multiply from the left: y = x W.
    """
    d_model, heads, width = config.task.d_model, config.model.n_heads, config.model.classifier_width
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(config.model.n_layers):
        for matrix in ("W_Q", "W_K", "W_V"):
            shapes[f"blocks.{layer}.attn.{matrix}"] = (heads, d_model, d_model)
    fan_in = d_model
    for i in range(config.model.classifier_depth):
        shapes[f"classifier.layers.{i}.W"] = (fan_in, width)
        shapes[f"classifier.layers.{i}.b"] = (width,)
        fan_in = width
    shapes["classifier.readout.W"] = (fan_in, config.task.n_labels)
    return shapes


def initial_parameters(config: RunConfig) -> dict[str, Tensor]:
    """The parameters before training (float32), a pure function of the config.

    W_Q, W_K, W_V ~ N(0, 1/D); hidden layers N(0, 2/fan_in), their biases 0; readout N(0, 1/fan_in).
    """
    parameters = {}
    for index, (name, shape) in enumerate(parameter_shapes(config).items()):
        if name.endswith(".b"):
            parameters[name] = torch.zeros(shape)
            continue
        if ".attn." in name:
            std = config.attention_init_std
        elif name == "classifier.readout.W":
            std = shape[0] ** -0.5
        else:
            std = (2 / shape[0]) ** 0.5
        normal = generator(config.seed, Stream.INIT, index).standard_normal(shape)
        parameters[name] = torch.from_numpy(std * normal).float()
    return parameters
