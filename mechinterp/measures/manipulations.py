"""Manipulations of measures: the interventions that hold a measure up during training, or keep it down.

A measure that moves before a transition leads it. Whether it is a cause shows when the measure is set and the
transition follows (Pearl 2009, *Causality*; of activations, Vig et al. 2020). A measure declares its manipulations
where it is registered, and `mechinterp.causes.audit` trains networks under them.

An intervention sets more than one measure. What else it changes is part of the declaration (`SideEffect`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mechinterp.config.interventions import Graded, Window
from mechinterp.errors import MechinterpError, NamedEnum


class SideEffect(NamedEnum):
    """What a manipulation changes besides the measure."""

    gradient = "no gradient reaches the replaced part: at strength s it is 1−s of that without the manipulation"
    other_attention = "all attention of these heads is replaced, not only the part that the measure counts"
    other_heads = "all heads of the layer are replaced, also those that do something else"
    several_measures = "another measure of the same layer is removed with it, and the two are not told apart"
    answer = "what is held is the last step of the answer, so that accuracy follows it at once"
    readout = "the answer is read off the attention pattern, without values and classifier"
    bypass = "the measure may still rise by the parameters that are not frozen"


@dataclass(frozen=True)
class Manipulation:
    """Interventions that set a measure, with the window and the strength left open."""

    interventions: tuple[Window, ...]
    """The interventions. Their `start`, `stop` and, where they have one, `strength` are replaced."""
    side_effects: tuple[SideEffect, ...] = ()
    """What they change besides the measure."""

    @property
    def graded(self) -> bool:
        """Whether all of them have a strength. The others are done in whole only."""
        return all(isinstance(intervention, Graded) for intervention in self.interventions)

    def during(self, start: int, stop: int | None, strength: float = 1.0) -> list[dict[str, Any]]:
        """The interventions as values of a config, for the updates from step `start` to `stop`, with a strength."""
        if strength != 1.0 and not self.graded:
            kind = next(each.kind for each in self.interventions if not isinstance(each, Graded))
            raise MechinterpError(f"strength is {strength:g}, and the intervention {kind!r} has none: leave it at 1")
        return [
            intervention.model_dump()
            | {"start": start, "stop": stop}
            | ({"strength": strength} if isinstance(intervention, Graded) else {})
            for intervention in self.interventions
        ]


@dataclass(frozen=True)
class Manipulations:
    """How a measure is held up and how it is removed; None for what cannot be done."""

    hold: Manipulation | None = None
    """What brings the measure to its value in the trained network, at strength 1 to its largest."""
    remove: Manipulation | None = None
    """What keeps the measure at its value before training."""


def manipulation(*interventions: Window, also: Sequence[SideEffect] = ()) -> Manipulation:
    """A `Manipulation` of interventions and their side effects."""
    return Manipulation(interventions, tuple(also))
