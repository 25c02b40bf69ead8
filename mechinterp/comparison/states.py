"""The trained parameters of several checkpoints, stacked, and networks in which some components are of another one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.comparison.components import Component, Kind, replaced
from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import Activations, Tap, run_unchecked
from mechinterp.models.network import Network
from mechinterp.run import Run

MEMORY = 8 * 2**20
"""Bytes of the largest activation of the networks that are computed together: they stay in cache."""


@dataclass(frozen=True)
class States:
    """The trained parameters of one network at several steps."""

    config: RunConfig
    steps: tuple[int, ...]
    parameters: dict[str, Float[Tensor, "step ..."]]
    """By name, the steps along the first axis."""

    @classmethod
    def of(cls, config: RunConfig, states: Mapping[int, Mapping[str, Tensor]]) -> "States":
        """The parameters by step, stacked; MechinterpError for parameters that are not the config's."""
        if not states:
            raise MechinterpError("name at least one step")
        for parameters in states.values():
            Network(config, parameters)
        first = next(iter(states.values()))
        return cls(
            config, tuple(states), {name: torch.stack([each[name] for each in states.values()]) for name in first}
        )

    @classmethod
    def of_run(cls, run: Run, steps: Iterable[int]) -> "States":
        """Those of a run at stored steps; of a run that was trained elsewhere, of its `Network`."""
        steps = list(dict.fromkeys(steps))
        if run.origin is None:
            return cls.of(run.config, {step: run.weights(step) for step in steps})
        return cls.of(run.network_config, {step: run.network(step).parameters for step in steps})

    def at(self, index: int) -> dict[str, Tensor]:
        """The parameters at the index-th step."""
        return {name: values[index] for name, values in self.parameters.items()}

    def parts(self, components: Iterable[Component], sources: Sequence[int]) -> dict[tuple[str, str], Tensor]:
        """The components' parts of the parameters at some steps, by index, along the first axis."""
        index = torch.as_tensor(list(sources))
        return {
            (component.name, name): torch.stack([component.part(name, self.parameters[name][i]) for i in index])
            for component in components
            for name in component.parameters
        }


class Target:
    """The network at one step, into which components of others are put: its activations on a batch are computed once.

    Under `components`, what is computed before the first layer that one of them changes is taken from there.
    """

    def __init__(self, states: States, index: int, inputs: Tensor):
        self._states, self._inputs, self._parameters = states, inputs, states.at(index)
        network = Network(states.config, self._parameters)
        self._last = f"blocks.{network.n_layers - 1}.hook_resid_post"
        self._hooks = [f"blocks.{layer}.hook_resid_pre" for layer in range(network.n_layers)] + [self._last]
        positions = [name for name in network.hook_names if name == "hook_pos_embed"]
        self._kept = run_unchecked(network, inputs, Tap(names=[*self._hooks, *positions]), True)

    @cached_property
    def logits(self) -> Float[Tensor, "batch n_labels"]:
        """Its own answers."""
        return self._kept.logits

    def with_components(
        self, components: Sequence[Component], sources: Sequence[int]
    ) -> Float[Tensor, "source batch n_labels"]:
        """Answers of the networks with the components' parameters of every source, by index, and all others its own."""
        start, config = self._start(components), self._states.config
        values = self._kept.values

        def answers(parts: dict[tuple[str, str], Tensor]) -> Tensor:
            network = Network(config, replaced(self._parameters, components, parts))
            if start is None:
                return run_unchecked(network, self._inputs, Tap(fused_attention=False), True).logits
            return Activations(network, values, fused_attention=False).forward_from(start, values[start])

        stacked = self._states.parts(components, sources)
        return torch.func.vmap(answers, chunk_size=self._together)(stacked)

    def _start(self, components: Sequence[Component]) -> str | None:
        """The hook before which none of the components acts; None for the inputs."""
        layers = [_layer(component, len(self._hooks) - 1) for component in components]
        return None if min(layers) < 0 else self._hooks[min(layers)]

    @property
    def _together(self) -> int:
        """How many networks are computed at a time (`MEMORY`)."""
        n, n_pos = self._inputs.shape[:2]
        widths = [values.shape[-1] for values in self._parameters.values() if values.ndim]
        numbers = n * n_pos * max(*widths, n_pos * self._states.config.model.n_heads)
        return max(1, MEMORY // (4 * numbers))


def _layer(component: Component, n_layers: int) -> int:
    """The layer before which a component changes nothing; −1 for the inputs, `n_layers` for the output."""
    if component.layer is not None:
        return component.layer
    return -1 if component.kind in (Kind.embedding, Kind.positions) else n_layers
