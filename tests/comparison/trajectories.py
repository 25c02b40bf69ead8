"""Trajectories of planted networks: an induction head whose parts are switched on one after the other."""

from collections.abc import Mapping

import torch

import mechinterp as mi
from mechinterp.comparison.components import Component, components_of
from mechinterp.comparison.states import States
from mechinterp.models.planted import Operation, induction_head
from tests.conftest import TINY

STEPS = range(8)
PARTS = {"layer 1 QK": Operation.previous_token, "layer 2 QK": Operation.match, "classifier": Operation.readout}
"""The components that carry an operation, and the operation."""


def config(**changes: object) -> mi.RunConfig:
    return mi.RunConfig().updated({**TINY, "task.n_novel_classes": 500, "model.classifier_depth": 0, **changes})


def switched_on(at: Mapping[str, int]) -> tuple[States, list[Component]]:
    """The states at `STEPS` of an induction head; a component works from its step on, others always."""
    made = config()
    whole = induction_head(made).parameters
    without = {name: induction_head(made, without=operation).parameters for name, operation in PARTS.items()}
    components, states = components_of(made), {}
    for step in STEPS:
        parameters = dict(whole)
        for component in components:
            if step < at.get(component.name, 0):
                parameters |= {name: without[component.name][name] for name in component.parameters}
        states[step] = parameters
    return States.of(made, states), components


def with_idle_head(states: States) -> tuple[States, list[Component]]:
    """The same states with a second head in both layers, whose queries and keys are drawn anew at every step and which
    writes nothing."""
    rng, made, by_step = torch.Generator().manual_seed(0), config(**{"model.n_heads": 2}), {}
    for index, step in enumerate(states.steps):
        by_step[step] = {}
        for name, value in states.at(index).items():
            idle = torch.zeros_like(value)
            if name.endswith(("W_Q", "W_K")):
                idle = torch.randn(value.shape, generator=rng, dtype=value.dtype)
            by_step[step][name] = torch.cat([value, idle]) if name.startswith("blocks.") else value
    return States.of(made, by_step), components_of(made)
