"""The network of Reddy 2023 as a HookedTransformer that reads vectors.

Layer μ adds V_μ Σ_{j≤i} p^μ_ij u_j to token i, with p^μ_ij = softmax_{j≤i}((K_μ u_j)·(Q_μ u_i)): causal, the token
itself included, **no** 1/√d, no LayerNorm, no biases, and a full value matrix (W_O is the identity). A ReLU
classifier reads the last token, the target.

Every standard hook name works (``blocks.0.attn.hook_pattern``, ``blocks.1.hook_resid_post``, …), those that
TransformerLens fires on request only (``hook_result``) after its ``set_use_…``. Of a language model's outer parts only
``hook_embed`` is left: it holds the input vectors. The classifier adds, all at the target:

======================================  ==================
``classifier.hook_in``                  [batch, d_model]
``classifier.layers.{i}.hook_pre``      [batch, width]
``classifier.layers.{i}.hook_post``     [batch, width]
``classifier.hook_logits``              [batch, n_labels]
======================================  ==================
"""

import warnings
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError
from mechinterp.models.conventions import folded, plain
from mechinterp.models.hooks import CheckedHooks, HookedTransformer, HookedTransformerConfig, HookPoint
from mechinterp.models.parameters import initial_parameters, parameter_shapes


class ClassifierLayer(nn.Module):
    """h = ReLU(x W + b), with x [batch, in] and W [in, width]."""

    def __init__(self, fan_in: int, width: int, dtype: torch.dtype):
        super().__init__()
        self.W = nn.Parameter(torch.zeros(fan_in, width, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Float[Tensor, "batch fan_in"]) -> Float[Tensor, "batch width"]:
        pre = self.hook_pre(x @ self.W + self.b)
        return self.hook_post(torch.relu(pre))


class Readout(nn.Module):
    """logits = x W, with W [width, n_labels]; no bias."""

    def __init__(self, fan_in: int, n_labels: int, dtype: torch.dtype):
        super().__init__()
        self.W = nn.Parameter(torch.zeros(fan_in, n_labels, dtype=dtype))

    def forward(self, x: Float[Tensor, "batch fan_in"]) -> Float[Tensor, "batch n_labels"]:
        return x @ self.W


class Classifier(nn.Module):
    """ReLU layers and a linear readout, from the target's residual stream to logits."""

    def __init__(self, d_model: int, width: int, depth: int, n_labels: int, dtype: torch.dtype):
        super().__init__()
        fans = [d_model] + [width] * depth
        self.hook_in = HookPoint()
        self.layers = nn.ModuleList(ClassifierLayer(fan_in, width, dtype) for fan_in in fans[:-1])
        self.readout = Readout(fans[-1], n_labels, dtype)
        self.hook_logits = HookPoint()

    def forward(self, residual: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch n_labels"]:
        x = self.hook_in(residual)
        for layer in self.layers:
            x = layer(x)
        return self.hook_logits(self.readout(x))


class VectorTransformer(CheckedHooks, HookedTransformer):
    """A HookedTransformer from vectors [batch, pos, d_model] to logits [batch, n_labels] at the last token.

    `run_with_cache`, `run_with_hooks` and `hooks` behave as in TransformerLens, except that a hook name that does
    not exist, and in `run_with_hooks` and `run_with_cache` a hook that does not fire, is an error and no silent no-op.
    """

    def __init__(self, config: RunConfig, dtype: torch.dtype = torch.float32, d_model: int | None = None):
        """With a `d_model` above the tokens' width, inputs are padded with zeros (the planted circuits need room)."""
        d_model, n_labels = d_model or config.task.d_model, config.task.n_labels
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # HookedTransformer leaves with TransformerLens 4
            super().__init__(
                HookedTransformerConfig(
                    n_layers=config.model.n_layers,
                    n_heads=config.model.n_heads,
                    d_model=d_model,
                    d_head=d_model,
                    n_ctx=config.task.n_pos,
                    d_vocab=n_labels,
                    attn_only=True,
                    normalization_type=None,
                    use_attn_scale=False,
                    init_weights=False,
                    device="cpu",
                    dtype=dtype,
                )
            )
        for part in ("embed", "pos_embed", "hook_pos_embed", "unembed"):
            delattr(self, part)
        self.classifier = Classifier(
            d_model, config.model.classifier_width, config.model.classifier_depth, n_labels, dtype
        )
        self.trained = tuple(parameter_shapes(config))
        """Names of the trained parameters; everything else is frozen."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name in self.trained)
                parameter.zero_()
                if name.endswith("attn.W_O"):
                    parameter.copy_(torch.eye(d_model, dtype=dtype).expand_as(parameter))
        self.setup()  # names the classifier's hook points

    def forward(  # type: ignore[override]
        self,
        input: Float[Tensor, "batch pos d_model"],
        return_type: str | None = "logits",
        stop_at_layer: int | None = None,
        start_at_layer: int = 0,
    ) -> Tensor | None:
        """Logits at the last token; with `stop_at_layer` the residual stream before that layer, as TransformerLens.

        With `start_at_layer` the input is the residual stream before that layer.
        """
        if return_type not in ("logits", None):
            raise MechinterpError(f"return_type {return_type!r}: this model returns 'logits' or None")
        layers = range(self.cfg.n_layers)[start_at_layer:stop_at_layer]
        if start_at_layer == 0:
            padded = functional.pad(input.to(self.cfg.dtype), (0, self.cfg.d_model - input.shape[-1]))
            residual = self.hook_embed(padded)
        else:
            residual = input
        for layer in layers:
            residual = self.blocks[layer](residual)
        if stop_at_layer is not None:
            return residual
        logits = self.classifier(residual[:, -1])
        return logits if return_type else None


def build_model(config: RunConfig, parameters: Mapping[str, Tensor] | None = None) -> VectorTransformer:
    """The hooked model of a config, with the given parameters (and their dtype) or the initial ones.

    A minimal induction head comes as the HookedTransformer that it compiles into (`models.induction_head`), a network
    of another convention as the plain one that computes the same (`models.conventions`).
    """
    if parameters is None:
        parameters = initial_parameters(config)
    if config.model.kind == "induction_head":
        from mechinterp.models.induction_head import compiled  # builds on this module

        return compiled(config, parameters)
    config, parameters = plain(config), folded(config, parameters)
    first = next(iter(parameters.values()))  # W_Q [head, d_model, d_head]; circuits that are compiled may be wider
    model = VectorTransformer(config, first.dtype, first.shape[1])
    set_parameters(model, parameters)
    return model


def set_parameters(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Copy all trained parameters into a hooked model; a missing or extra name, or another shape, is an error."""
    if odd := sorted(set(parameters) ^ set(model.trained)):
        raise MechinterpError(f"parameters do not fit the model: missing or unexpected {', '.join(odd)}")
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in parameters.items():
            if own[name].shape != value.shape:
                shapes = f"{tuple(value.shape)}, expected {tuple(own[name].shape)}"
                raise MechinterpError(f"parameter {name} has shape {shapes}")
            own[name].copy_(value)
