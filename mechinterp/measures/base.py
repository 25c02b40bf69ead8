"""What a progress measure is, and the registry of them.

A measure is a function from an `Observation` (a model seen on one evaluation set) to a number. To add one:

    @mi.register(hooks=["blocks.1.attn.hook_pattern"])
    def target_to_itself(seen):
        return seen.pattern(1)[..., -1, -1].mean()

`mi.measure(run)` then has a column of that name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.errors import MechinterpError
from mechinterp.tasks.base import Batch


@dataclass(frozen=True)
class Observation:
    """A model seen on sequences of one evaluation set."""

    batch: Batch
    """The sequences, their labels and roles."""
    logits: Float[Tensor, "batch n_labels"]
    """What the model answered."""
    cache: Mapping[str, Tensor]
    """The activations at the hooks that the measure asked for."""

    def pattern(self, layer: int) -> Float[Tensor, "batch head query key"]:
        """The attention pattern of a layer, counted from 0: rows sum to 1."""
        return self.cache[f"blocks.{layer}.attn.hook_pattern"]

    def role(self, name: str) -> Bool[Tensor, "batch pos"]:
        """Which positions play a role."""
        return self.batch.roles[name]


@dataclass(frozen=True)
class Measure:
    """A registered measure and what it needs."""

    name: str
    compute: Callable[[Observation], Tensor | float]
    hooks: tuple[str, ...]
    roles: tuple[str, ...]
    without: tuple[str, ...]
    each_evaluation: bool


MEASURES: dict[str, Measure] = {}
"""Every measure, by name."""


def register(
    *,
    hooks: Sequence[str] = (),
    roles: Sequence[str] = (),
    without: Sequence[str] = (),
    each_evaluation: bool = False,
) -> Callable[[Callable[[Observation], Tensor | float]], Callable[[Observation], Tensor | float]]:
    """Add the decorated function to the measures, under its own name.

    `hooks` are the activations it reads, `roles` the positions it asks for; a model or task without them is not
    measured by it, nor a task with one of the roles `without`, where it would say nothing. It is taken on the task's
    first evaluation set, or with `each_evaluation` on every one; its columns are then called ``{evaluation}_{name}``.
    """

    def add(compute: Callable[[Observation], Tensor | float]) -> Callable[[Observation], Tensor | float]:
        name = compute.__name__
        if name in MEASURES and MEASURES[name].compute.__module__ != compute.__module__:
            raise MechinterpError(f"a measure named {name!r} exists already; choose another name")
        MEASURES[name] = Measure(name, compute, tuple(hooks), tuple(roles), tuple(without), each_evaluation)
        return compute

    return add
