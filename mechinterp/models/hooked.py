"""The hooked view of a network, in TransformerLens: a HookedTransformer, or with TransformerLens 4 modules of our own.

All standard hook names work (``blocks.0.attn.hook_pattern``, ``blocks.1.hook_resid_post``, …); hooks that
TransformerLens fires on request only (``hook_result``) need its ``set_use_…``. Of a language model's embedding and
unembedding only ``hook_embed`` is left, for the input vectors. The classifier has the hooks of `models.forward`.

Hook names that do not exist, and hooks that do not fire, are ignored by TransformerLens and raise here. The parts:
`hooked_legacy` has the layers by TransformerLens 3.9, `hooked_transformer` those of our own, `hooked_parts` what is
before and after them, `hooked_checks` the checks of names.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mechinterp.config import RunConfig, TransformerConfig
from mechinterp.errors import MechinterpError
from mechinterp.models.hooked_checks import CheckedHooks
from mechinterp.models.hooked_lens import MAJOR
from mechinterp.models.hooked_parts import Classifier, InputMap, ScaleAndShift
from mechinterp.models.layer import sinusoidal
from mechinterp.models.network import Network, require_inputs, require_positions
from mechinterp.models.registry import parameter_shapes

if TYPE_CHECKING or MAJOR < 4:
    from mechinterp.models.hooked_legacy import LensTransformer as _Transformer
else:
    from mechinterp.models.hooked_transformer import Transformer as _Transformer


class NetworkView(CheckedHooks):
    """A network's computation, of a transformer with HookedTransformer's parts, which the other base class makes.

    From vectors [batch, pos, d_token] or tokens [batch, pos] to logits [batch, n_labels] at the last position, or, of a
    network with an unembedding, [batch, pos, n_labels].
    """

    cfg: Any
    blocks: Any
    embed: Any
    pos_embed: Any
    hook_embed: Any
    hook_pos_embed: Any
    ln_final: Any
    unembed: Any

    def __init__(self, network: Network):
        """A copy of the network's parameters; what is not a parameter is frozen (W_O then is the identity).

        Narrower inputs of a network without a trained input are padded with zeros.
        """
        super().__init__(network)
        config, model, d_model = network.config, network.model, network.d_model
        n_labels = config.task.n_labels
        if model.input == "projected":
            self.embed = InputMap(config.task.d_model, d_model, network.dtype)
        if model.output == "classifier":
            self.classifier = Classifier(
                d_model, model.classifier_width, network.depth, n_labels, network.dtype, model.readout_bias
            )
        if model.trained_layer_norm:
            self.blocks[0].ln = ScaleAndShift(d_model, network.dtype)
        self.config: RunConfig = config
        """The config of the canonical network."""
        self.trained = tuple(parameter_shapes(config))
        """Names of the trained parameters; everything else is frozen."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name in self.trained)
                parameter.zero_()
                if name.endswith("attn.W_O"):
                    parameter.copy_(torch.eye(*parameter.shape[-2:], dtype=network.dtype).expand_as(parameter))
            if model.positional_embedding_type == "sinusoidal":
                self.pos_embed.W_pos.copy_(sinusoidal(config.task.n_pos, d_model, self.pos_embed.W_pos))
        set_parameters(self, network.parameters)
        self.setup()  # names the classifier's hook points
        self.eval()  # which changes nothing, but tools of TransformerLens 4 want it

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        return_type: str | None = "logits",
        stop_at_layer: int | None = None,
        start_at_layer: int = 0,
    ) -> Tensor | None:
        """Logits; with `stop_at_layer` the residual stream before that layer, as TransformerLens.

        With `start_at_layer` the input is the residual stream before that layer.
        """
        if return_type not in ("logits", None):
            raise MechinterpError(f"return_type {return_type!r}: this model returns 'logits' or None")
        n_layers, model = self.cfg.n_layers, self.config.model
        assert isinstance(model, TransformerConfig)
        for name, layer in (("start_at_layer", start_at_layer), ("stop_at_layer", stop_at_layer)):
            if layer is not None and not -n_layers <= layer <= n_layers:
                raise MechinterpError(f"{name} is {layer}; this model has {n_layers} layers")
        layers = range(n_layers)[start_at_layer:stop_at_layer]
        task, shortformer = self.config.task, model.positional_embedding_type == "shortformer"
        if start_at_layer == 0:
            widths = {task.d_model} | ({self.cfg.d_model} if model.is_classic else set())
            require_inputs(input, widths, task.d_vocab)
            residual = self._embedded(input)
        else:
            require_inputs(input, {self.cfg.d_model})
            residual = input.to(self.blocks[0].attn.W_Q.dtype)
        positions = None
        if model.has_position_vectors and (shortformer or start_at_layer == 0):
            require_positions(self.config, residual.shape[1])
            positions = self.hook_pos_embed(self.pos_embed(residual[..., 0]))
            residual = residual if shortformer else residual + positions
        for layer in layers:
            residual = self.blocks[layer](residual, shortformer_pos_embed=positions if shortformer else None)
        if stop_at_layer is not None:
            return residual
        if return_type is None:
            return None
        answered = residual[:, -1] if model.output == "classifier" else residual
        if model.normalization_type and model.final_norm:
            answered = self.ln_final(answered)
        return self.classifier(answered) if model.output == "classifier" else self.unembed(answered)

    def _embedded(self, input: Tensor) -> Float[Tensor, "batch pos d_model"]:
        if self.config.model.input == "tokens":  # type: ignore[attr-defined]
            return self.hook_embed(self.embed(input))
        vectors = input.to(self.blocks[0].attn.W_Q.dtype)
        if hasattr(self, "embed"):
            return self.hook_embed(self.embed(vectors))
        residual = functional.pad(vectors, (0, self.cfg.d_model - input.shape[-1]))
        norm = getattr(self.blocks[0], "ln", None)
        return self.hook_embed(norm(residual) if norm else residual)

    def network(self) -> Network:
        """The network of the trained parameters; other changes of the model are not in it."""
        parameters = dict(self.named_parameters())
        return Network(self.config, {name: parameters[name].detach() for name in self.trained})


class HookedNetwork(NetworkView, _Transformer):  # type: ignore[override]
    """A hooked model that computes a network: a HookedTransformer, or with TransformerLens 4 a HookedRootModule with
    the same hooks, weights and cache.

    `run_with_cache`, `run_with_hooks` and `hooks` behave as in TransformerLens, except that a hook name that does
    not exist raises, and so does a hook that does not fire in `run_with_hooks` or `run_with_cache`.
    """


def set_parameters(model: NetworkView, parameters: Mapping[str, Tensor]) -> None:
    """Copy all trained parameters into a hooked model; a missing or extra name, or another shape, is an error."""
    if odd := sorted(set(parameters) ^ set(model.trained)):
        raise MechinterpError(f"parameters do not fit the model: missing or unexpected {', '.join(odd)}")
    current = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in parameters.items():
            if current[name].shape != value.shape:
                shapes = f"{tuple(value.shape)}, expected {tuple(current[name].shape)}"
                raise MechinterpError(f"parameter {name} has shape {shapes}")
            current[name].copy_(value)
