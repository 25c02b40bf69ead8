"""The HookedTransformer view of a network. No other module imports TransformerLens, which takes seconds.

All standard hook names work (``blocks.0.attn.hook_pattern``, ``blocks.1.hook_resid_post``, …); hooks that
TransformerLens fires on request only (``hook_result``) need its ``set_use_…``. Of a language model's embedding and
unembedding only ``hook_embed`` is left, for the input vectors. The classifier has the hooks of `models.forward`.

Hook names that do not exist, and hooks that do not fire, are ignored by TransformerLens and raise here.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformer_lens import HookedTransformer as HookedTransformer
    from transformer_lens import HookedTransformerConfig as HookedTransformerConfig
    from transformer_lens.components.attention import Attention
    from transformer_lens.hook_points import HookedRootModule as HookedRootModule
    from transformer_lens.hook_points import HookPoint as HookPoint

from mechinterp.config import RunConfig, TransformerConfig
from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.models.layer import EPSILON, distance_buckets, sinusoidal
from mechinterp.models.network import Network, require_inputs, require_positions
from mechinterp.models.registry import parameter_shapes

NamedHook = tuple[str | Callable[[str], bool], Callable[..., Any]]

_SELDOM = (
    "TransformerLens fires hook_result, hook_attn_in and hook_q_input (k, v) on request only (model.set_use_attn_result"
    " and so on), and a run stopped at a layer ends there"
)


class CheckedHooks(HookedRootModule):
    """`hooks`, `run_with_hooks` and `run_with_cache` of a HookedRootModule, with checks of hook names and firing."""

    def hooks(
        self, fwd_hooks: Sequence[NamedHook] = (), bwd_hooks: Sequence[NamedHook] = (), *options: Any, **named: Any
    ):  # type: ignore[override]
        """As in TransformerLens; an unknown hook name raises with the nearest one."""
        for name, _ in [*fwd_hooks, *bwd_hooks]:
            self._require_hook(name)
        return super().hooks(list(fwd_hooks), list(bwd_hooks), *options, **named)

    def run_with_hooks(self, *inputs: Any, fwd_hooks: Sequence[NamedHook] = (), **options: Any):  # type: ignore[override]
        """As in TransformerLens; a hook that does not exist, or does not fire, raises."""
        fired = [False] * len(fwd_hooks)

        def watched(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def call(*arguments: Any, **named: Any) -> Any:
                fired[number] = True
                return function(*arguments, **named)

            return call

        hooks = [(name, watched(number, function)) for number, (name, function) in enumerate(fwd_hooks)]
        result = super().run_with_hooks(*inputs, fwd_hooks=hooks, **options)
        for (name, _), has_fired in zip(fwd_hooks, fired, strict=True):
            if not has_fired:
                raise _silent(name)
        return result

    def run_with_cache(self, *inputs: Any, names_filter: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """As in TransformerLens; a hook that does not exist, or does not fire, raises."""
        result = super().run_with_cache(*inputs, names_filter=names_filter, **options)
        if callable(names_filter) and not len(result[1]):
            raise _silent(names_filter)
        wanted = [names_filter] if isinstance(names_filter, str) else names_filter
        for name in wanted if isinstance(wanted, list) else ():
            if name not in result[1]:
                raise _silent(name)
        return result

    def get_caching_hooks(self, names_filter: Any = None, *args: Any, **options: Any):  # type: ignore[override]
        """As in TransformerLens; an unknown hook name raises with the nearest one."""
        self._require_filter(names_filter)
        cache, forward, backward = super().get_caching_hooks(names_filter, *args, **options)
        return cache, [(name, _of_a_copy(save)) for name, save in forward], backward

    def add_caching_hooks(self, names_filter: Any = None, *args: Any, **options: Any) -> dict:  # type: ignore[override]
        """As in TransformerLens; an unknown hook name raises with the nearest one."""
        self._require_filter(names_filter)
        return super().add_caching_hooks(names_filter, *args, **options)

    def add_hook(self, name: str | Callable[[str], bool], *arguments: Any, **options: Any) -> None:  # type: ignore[override]
        """As in TransformerLens; an unknown hook name raises with the nearest one."""
        self._require_hook(name)
        super().add_hook(name, *arguments, **options)

    def _require_filter(self, names_filter: Any) -> None:
        names = names_filter if isinstance(names_filter, list) else [names_filter]
        for name in names if names_filter is not None else ():
            if not isinstance(name, str) and not callable(names_filter):
                raise MechinterpError(f"names_filter {names_filter!r}: give a hook name, a list of them or a function")
            self._require_hook(name)

    def _require_hook(self, name: str | Callable[..., Any]) -> None:
        if isinstance(name, str) and name not in self.hook_dict:
            raise unknown_name("hook", name, self.hook_dict)
        if callable(name) and not any(name(known) for known in self.hook_dict):
            raise MechinterpError("the hook filter matches no hook of this model")


def _silent(name: str | Callable[..., Any]) -> MechinterpError:
    what = f"hook {name!r}" if isinstance(name, str) else "a hook given by a filter"
    return MechinterpError(f"{what} did not fire in this run; {_SELDOM}")


def _of_a_copy(save: Callable[..., None]) -> Callable[..., None]:
    """A caching hook that keeps a copy, which no later hook can change in place."""

    def hook(activation: Tensor, *arguments: Any, **options: Any) -> None:
        save(activation.clone(), *arguments, **options)

    return hook


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
    """logits = x W, with W [width, n_labels], or x W + b."""

    def __init__(self, fan_in: int, n_labels: int, dtype: torch.dtype, bias: bool):
        super().__init__()
        self.W = nn.Parameter(torch.zeros(fan_in, n_labels, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(n_labels, dtype=dtype)) if bias else None

    def forward(self, x: Float[Tensor, "batch fan_in"]) -> Float[Tensor, "batch n_labels"]:
        logits = x @ self.W
        return logits if self.b is None else logits + self.b


class ScaleAndShift(nn.Module):
    """x w + b, elementwise: what LayerNorm does to tokens that are normalised already."""

    def __init__(self, d_model: int, dtype: torch.dtype):
        super().__init__()
        self.w = nn.Parameter(torch.ones(d_model, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(d_model, dtype=dtype))

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return x * self.w + self.b


class Classifier(nn.Module):
    """ReLU layers and a linear readout, from the target's residual stream to logits."""

    def __init__(self, d_model: int, width: int, depth: int, n_labels: int, dtype: torch.dtype, bias: bool):
        super().__init__()
        fans = [d_model] + [width] * depth
        self.hook_in = HookPoint()
        self.layers = nn.ModuleList(ClassifierLayer(fan_in, width, dtype) for fan_in in fans[:-1])
        self.readout = Readout(fans[-1], n_labels, dtype, bias)
        self.hook_logits = HookPoint()

    def forward(self, residual: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch n_labels"]:
        x = self.hook_in(residual)
        for layer in self.layers:
            x = layer(x)
        return self.hook_logits(self.readout(x))


class InputMap(nn.Module):
    """x W_E + b_E: the residual stream from vectors, by a trained map."""

    def __init__(self, d_token: int, d_model: int, dtype: torch.dtype):
        super().__init__()
        self.W_E = nn.Parameter(torch.zeros(d_token, d_model, dtype=dtype))
        self.b_E = nn.Parameter(torch.zeros(d_model, dtype=dtype))

    def forward(self, x: Float[Tensor, "batch pos d_token"]) -> Float[Tensor, "batch pos d_model"]:
        return x @ self.W_E + self.b_E


class BucketedAttention(Attention):
    """Attention with a trained number for every bucket of distances, which is added to scores."""

    def __init__(self, cfg: HookedTransformerConfig, layer: int, model: TransformerConfig):
        super().__init__(cfg, "global", layer)
        self._model = model
        self.rel_pos_bias = nn.Parameter(
            torch.zeros(model.relative_attention_num_buckets, model.n_heads, dtype=cfg.dtype)
        )

    def forward(self, query_input: Tensor, *inputs: Any, **named: Any) -> Tensor:  # type: ignore[override]
        buckets = distance_buckets(self._model, query_input.shape[1]).to(query_input.device)
        bias = functional.embedding(buckets, self.rel_pos_bias).permute(2, 0, 1)[None]
        return super().forward(query_input, *inputs, position_bias=bias, **named)


class HookedNetwork(CheckedHooks, HookedTransformer):
    """A HookedTransformer that computes a network: from vectors [batch, pos, d_token] or tokens [batch, pos] to logits
    [batch, n_labels] at the last position, or, of a network with an unembedding, [batch, pos, n_labels].

    `run_with_cache`, `run_with_hooks` and `hooks` behave as in TransformerLens, except that a hook name that does
    not exist raises, and so does a hook that does not fire in `run_with_hooks` or `run_with_cache`.
    """

    def __init__(self, network: Network):
        """A copy of the network's parameters; what is not a parameter is frozen (W_O then is the identity).

        Narrower inputs of a network without a trained input are padded with zeros.
        """
        config, model, d_model = network.config, network.model, network.d_model
        n_labels, positions = config.task.n_labels, model.positional_embedding_type
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # HookedTransformer leaves with TransformerLens 4
            super().__init__(
                HookedTransformerConfig(
                    n_layers=network.n_layers,
                    n_heads=network.n_heads,
                    d_model=d_model,
                    d_head=network.matrix(0, "Q").shape[-1],
                    d_mlp=model.d_mlp,
                    act_fn=model.act_fn,
                    n_ctx=config.task.n_pos,
                    d_vocab=config.task.d_vocab or n_labels,
                    d_vocab_out=n_labels,
                    attn_only=model.attn_only,
                    parallel_attn_mlp=model.parallel_attn_mlp,
                    normalization_type=model.normalization_type,
                    eps=EPSILON,
                    positional_embedding_type="standard" if positions in (None, "sinusoidal") else positions,
                    rotary_dim=model.rotary_dim,
                    rotary_base=model.rotary_base,
                    use_attn_scale=model.use_attn_scale,
                    init_weights=False,
                    device="cpu",
                    dtype=network.dtype,
                )
            )
        unused = ["embed"] * (model.input != "tokens") + ["unembed"] * (model.output == "classifier")
        if not model.has_position_vectors:
            unused += ["pos_embed", "hook_pos_embed"]
        if not model.final_norm:
            unused.append("ln_final")
        for part in unused:
            if hasattr(self, part):
                delattr(self, part)
        if model.input == "projected":
            self.embed = InputMap(config.task.d_model, d_model, network.dtype)
        if model.output == "classifier":
            self.classifier = Classifier(
                d_model, model.classifier_width, network.depth, n_labels, network.dtype, model.readout_bias
            )
        if model.trained_layer_norm:
            self.blocks[0].ln = ScaleAndShift(d_model, network.dtype)
        if positions == "relative_positional_bias":
            for layer, block in enumerate(self.blocks):
                block.attn = BucketedAttention(self.cfg, layer, model)
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
            if positions == "sinusoidal":
                self.pos_embed.W_pos.copy_(sinusoidal(config.task.n_pos, d_model, self.pos_embed.W_pos))
        set_parameters(self, network.parameters)
        self.setup()  # names the classifier's hook points

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
            residual = input.to(self.W_Q.dtype)
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
        vectors = input.to(self.W_Q.dtype)
        if hasattr(self, "embed"):
            return self.hook_embed(self.embed(vectors))
        residual = functional.pad(vectors, (0, self.cfg.d_model - input.shape[-1]))
        norm = getattr(self.blocks[0], "ln", None)
        return self.hook_embed(norm(residual) if norm else residual)

    def network(self) -> Network:
        """The network of the trained parameters; other changes of the model are not in it."""
        parameters = dict(self.named_parameters())
        return Network(self.config, {name: parameters[name].detach() for name in self.trained})


def set_parameters(model: HookedNetwork, parameters: Mapping[str, Tensor]) -> None:
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
