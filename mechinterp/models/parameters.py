"""The trained parameters: their names (as in TransformerLens), shapes and initial values.

Only these exist in a run file. W_O is the identity (unless it is trained, `models.conventions`) and attention has no
biases, so those are no parameters; nor are the embedding and unembedding that a language model would have.

In the paper's notation (Reddy 2023, eqs 2 and 3), for layer μ and one head: Q_μ = W_Qᵀ, K_μ = W_Kᵀ, V_μ = W_Vᵀ. The
minimal induction head (eqs 4 to 6) has β₁, α and β₂ instead of matrices, the additive model β and w.
"""

import torch
from torch import Tensor

from mechinterp.config import ItemLabelConfig, RunConfig
from mechinterp.models.additive import ADDITIVE
from mechinterp.randomness import Stream, generator

INDUCTION_HEAD = {"blocks.0.attn.beta1": "beta1", "blocks.1.attn.alpha": "alpha", "blocks.1.attn.beta2": "beta2"}
"""The three parameters of the minimal induction head, and where a config has their initial values."""
STRENGTHS = INDUCTION_HEAD | ADDITIVE
"""Parameters that start as a config says."""


def content_dim(config: RunConfig) -> int:
    """D, the dimensions of a token's content."""
    assert isinstance(config.task, ItemLabelConfig)
    return config.task.content_dim


def parameter_shapes(config: RunConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every trained parameter, in the order of the network.

    ``blocks.{layer}.attn.W_{Q,K,V}`` [head, d_model, d_head], ``classifier.layers.{i}.W`` [in, width] and ``.b``
    [width], ``classifier.readout.W`` [width, n_labels]. By other conventions there are ``W_O`` [head, d_head, d_model]
    after ``W_V``, ``.b`` is [1], and ``classifier.readout.W`` [width, 1]. Vectors multiply from the left: y = x W. The
    minimal induction head has ``blocks.0.attn.beta1``, ``blocks.1.attn.alpha`` and ``blocks.1.attn.beta2`` [head],
    the additive model ``blocks.0.attn.beta`` and ``blocks.0.attn.w``.
    """
    heads, width = config.model.n_heads, config.model.classifier_width
    shapes: dict[str, tuple[int, ...]] = {}
    if config.model.kind == "induction_head":
        shapes = {name: (heads,) for name in INDUCTION_HEAD}
        fan_in = 2 * content_dim(config)
    elif config.model.kind == "additive":
        shapes = {name: (heads,) for name in ADDITIVE}
        fan_in = config.task.d_model - 2  # the item's
    else:
        fan_in = config.task.d_model
        for layer in range(config.model.n_layers):
            for matrix in ("W_Q", "W_K", "W_V", *(["W_O"] if config.model.output_matrix == "trained" else [])):
                shapes[f"blocks.{layer}.attn.{matrix}"] = (heads, fan_in, fan_in)
    shared = config.model.kind == "transformer" and config.model.classifier_bias == "shared"
    for i in range(config.model.classifier_depth):
        shapes[f"classifier.layers.{i}.W"] = (fan_in, width)
        shapes[f"classifier.layers.{i}.b"] = (1,) if shared else (width,)
        fan_in = width
    one_logit = config.model.kind == "additive" or (
        config.model.kind == "transformer" and config.model.readout == "difference"
    )
    shapes["classifier.readout.W"] = (fan_in, 1 if one_logit else config.task.n_labels)
    return shapes


def initial_parameters(config: RunConfig) -> dict[str, Tensor]:
    """The parameters before training (float32), a pure function of the config.

    W_Q, W_K, W_V ~ N(0, 1/D); hidden layers N(0, 2/fan_in), their biases 0; readout N(0, 1/fan_in). The size of the
    first two, β₁, α, β₂, β and w are as configured. W_O, where it is trained, is N(0, 1/d_head); it is drawn last, so
    all others start the same without.
    """
    shapes, parameters = parameter_shapes(config), {}
    drawn = {name: index for index, name in enumerate(sorted(shapes, key=lambda name: name.endswith("W_O")))}
    for name, shape in shapes.items():
        if name in STRENGTHS:
            parameters[name] = torch.full(shape, getattr(config.model, STRENGTHS[name]))
            continue
        if name.endswith(".b"):
            parameters[name] = torch.zeros(shape)
            continue
        if name.endswith("W_O"):
            std = shape[-1] ** -0.5
        elif ".attn." in name:
            std = config.attention_init_std
        elif name == "classifier.readout.W":
            std = shape[0] ** -0.5
        else:
            std = (config.model.classifier_init_variance / shape[0]) ** 0.5
        normal = generator(config.seed, Stream.INIT, drawn[name]).standard_normal(shape)
        parameters[name] = torch.from_numpy(std * normal).float()
    return parameters
