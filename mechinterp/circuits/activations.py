"""Activations of the model that a circuit analysis is given: a `Network`, or a hooked model.

A hooked model that a `Network` represents is analysed as that network, by the fast forward pass. A model with further
parts (a scale, another W_O, biases, hooks, additional layers, a forward method of its own) is run by its forward method
with hooks, which is several times slower; an analysis that needs the weights refuses it with the reason.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.models.forward import Activations, forward, run_with_cache
from mechinterp.models.network import Network
from mechinterp.randomness import Stream, generator

_N_NUMBERS = 2**19
"""Numbers of one activation of the sequences that are passed at once, two mebibytes: more leave the cache, and with
fewer the calls take most of the time."""
_LEAST_AT_ONCE = 8
"""Sequences that are passed at once where they are long."""
_OF_MODULES_AT_ONCE = 64
"""Sequences that are passed at once through a hooked model."""
_N_COMPARED = 8
"""Random sequences on which a model's logits are compared with its network's."""

_FURTHER_PARTS = (
    "does not answer as its attention and classifier weights alone do (an attention scale, another W_O, biases or"
    " layers of its own); this analysis needs the network that run.network(step) gives"
)


@dataclass(frozen=True)
class ModelActivations:
    """Activations of a hooked model, by its forward method; the interface of `models.forward.Activations`."""

    model: Any
    inputs: Tensor
    values: Mapping[str, Tensor]
    logits: Float[Tensor, "batch n_labels"]

    @property
    def n_layers(self) -> int:
        """Attention layers."""
        return _dimension(self.model, "n_layers")

    @property
    def n_heads(self) -> int:
        """Heads in a layer."""
        return _dimension(self.model, "n_heads")

    def __getitem__(self, hook: str) -> Tensor:
        if hook not in self.values:
            raise unknown_name("hook", hook, self.values)
        return self.values[hook]

    def forward_from(
        self, hook: str, value: Tensor, also: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "batch n_labels"]:
        """Logits with the activation at `hook` replaced by `value`."""
        if self[hook].shape != value.shape:
            raise ValueError(f"{hook} has shape {tuple(self[hook].shape)}, the replacement {tuple(value.shape)}")
        return _at_target(self.model.run_with_hooks(self.inputs, fwd_hooks=[(hook, lambda *_, **__: value)]))


AnyActivations = Activations | ModelActivations


def activations_of(
    model: Network | nn.Module, hooks: Collection[str] | None = None, *, target_only: bool = False
) -> Callable[[Tensor], AnyActivations]:
    """A function from inputs [batch, pos, d_token] to all activations of a model, or at least those at `hooks`.

    With `target_only`, the last layer's queries, and what follows from them, may be the target's alone.
    Raises MechinterpError for what is neither a network nor a hooked model, and for a model that does not answer
    vectors [batch, pos, d_token] with logits [batch, n_labels].
    """
    network, reason = _represented(model)
    if network is not None:
        return lambda inputs: run_with_cache(network, inputs, hooks, target_only=target_only)
    if not isinstance(model, nn.Module) or not hasattr(model, "run_with_hooks"):
        raise MechinterpError(f"{_name(model)} {reason}")
    _require_torch_hooks_at_points(model)
    return lambda inputs: _by_hooks(model, inputs)


def parts_of(n: int, model: Network | nn.Module, n_pos: int) -> list[slice]:
    """So many sequences in parts that are passed at once: about as many in each, so that their activations stay in the
    cache, and memory is bounded."""
    at_once = _OF_MODULES_AT_ONCE
    if isinstance(model, Network):
        at_once = max(_N_NUMBERS // (n_pos * max(model.d_model, n_pos * model.n_heads)), _LEAST_AT_ONCE)
    size = math.ceil(n / math.ceil(n / at_once))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def network_of(model: Network | nn.Module) -> Network:
    """The network that a model computes; where none does, MechinterpError tells the reason."""
    network, reason = _represented(model)
    if network is None:
        raise MechinterpError(f"{_name(model)} {reason}")
    return network


def classic_network_of(model: Network | nn.Module) -> Network:
    """`network_of` a model, if its residual stream has the coordinates of the task's vectors; else MechinterpError."""
    network = network_of(model)
    if not network.model.is_classic:
        raise MechinterpError(
            "this analysis reads the residual stream in the coordinates of the task's vectors, of attention without"
            " W_O, biases, normalisation and MLPs, which this network has not: use patch, paths, ablate or qkov"
        )
    return network


def _represented(model: Any) -> tuple[Network | None, str]:
    """The network that computes the same as a model, or None and the reason why none does."""
    if isinstance(model, Network):
        return model, ""
    if isinstance(model, Mapping):
        raise MechinterpError(
            "weights alone do not say how a network uses them; give run.network(step), Network(config, weights) or a"
            " hooked model"
        )
    if not isinstance(model, nn.Module) or not hasattr(model, "network"):
        return None, "is not a model that run.model(step) gives; this analysis reads a Network or such a model"
    return _by_weights(model)


def _by_weights(model: Any) -> tuple[Network | None, str]:
    """The network of a hooked model's weights, if it computes the same logits, or None and the reason."""
    if type(model).__module__ != "mechinterp.models.hooked":
        return None, "has a class of its own, whose forward method its weights do not show"
    hooked = [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    if hooked:
        return None, f"has a hook at {hooked[0]}, which its weights do not show; this analysis needs them alone"
    for name, parameter in model.named_parameters():
        identity = torch.eye(*parameter.shape[-2:]).to(parameter) if name.endswith("W_O") else parameter.new_zeros(())
        if name not in model.trained and name != "pos_embed.W_pos" and not bool((parameter == identity).all()):
            return None, _FURTHER_PARTS
    network = model.network()
    if not network.model.use_attn_scale and any(block.attn.attn_scale != 1 for block in model.blocks):
        return None, _FURTHER_PARTS
    task, rng = network.config.task, generator(0, Stream.TASK)
    width = network.d_model if network.model.input == "as_is" else task.d_model
    if task.d_vocab:
        inputs = torch.from_numpy(rng.integers(0, task.d_vocab, (_N_COMPARED, task.n_pos)))
    else:
        normal = rng.standard_normal((_N_COMPARED, task.n_pos, width))
        inputs = torch.from_numpy(normal / width**0.5).to(network.dtype)
    with torch.no_grad():
        ours, theirs = forward(network, inputs), _at_target(model(inputs))
    tolerance = (1e-4 if network.dtype == torch.float32 else 1e-8) * float(ours.abs().max())
    if ours.shape != theirs.shape or not bool(((ours - theirs).abs() <= tolerance).all()):
        return None, _FURTHER_PARTS
    return network, ""


def _by_hooks(model: Any, inputs: Tensor) -> ModelActivations:
    try:
        logits, cache = model.run_with_cache(inputs)
    except MechinterpError:
        raise
    except Exception as error:
        raise MechinterpError(
            f"{_name(model)} cannot be run on these inputs, vectors {tuple(inputs.shape)}"
            f" ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'});"
            " give run.network(step) or run.model(step)"
        ) from None
    logits = _at_target(logits)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise MechinterpError(f"{_name(model)} does not answer with logits [batch, n_labels] at the last token")
    return ModelActivations(model, inputs, dict(cache.items()), logits)


def _at_target(logits: Any) -> Any:
    """The logits at the last position, of a model that has them at every position."""
    return logits[:, -1] if isinstance(logits, Tensor) and logits.ndim == 3 else logits


def _dimension(model: Any, name: str) -> int:
    """The number of layers or heads of a hooked model, from its config."""
    number = getattr(getattr(model, "cfg", None), name, None)
    if not isinstance(number, int):
        raise MechinterpError(f"{_name(model)} does not say in cfg.{name} how many it has; name the sites")
    return number


def _require_torch_hooks_at_points(model: nn.Module) -> None:
    """MechinterpError for torch's own hooks, which TransformerLens' `run_with_hooks` leaves out at the model itself."""
    if model._forward_hooks or model._forward_pre_hooks:
        raise MechinterpError(f"{_name(model)} has a torch hook on the whole model; use model.add_hook at a hook point")


def _name(model: object) -> str:
    return f"the {type(model).__name__}"
