"""How far the parameters move between stored checkpoints; exact, from the file alone."""

from collections.abc import Iterable
from itertools import pairwise

import pandas as pd
from torch import Tensor

from mechinterp.comparison.components import Component, components_of
from mechinterp.comparison.states import States
from mechinterp.errors import MechinterpError
from mechinterp.run import Run

ALL = "all"
"""The name of all parameters together, among those of components."""


def update_norms(run: Run, steps: Iterable[int | str] | None = None) -> pd.DataFrame:
    """‖θ_c(t′) − θ_c(t)‖ / (t′ − t) of neighbouring checkpoints t < t′, for every component c and all parameters.

    A row per step t′ and component: ``step``, ``component`` (``all``: of all parameters), ``norm`` (per training step)
    and ``relative``, the norm as a share of ‖θ_c(t)‖; infinite or not a number where that is 0. The first step has no
    row. It is the distance that is left of all updates in between: of checkpoints further apart it is smaller, where
    updates undo each other. MechinterpError for less than 2 steps, and for a run without `Network`.
    """
    wanted = sorted(set(run.chosen_steps(steps)))
    if len(wanted) < 2:
        raise MechinterpError(f"{run.path}: update norms are of two checkpoints or more; {len(wanted)} is given")
    components, rows = components_of(run.network_config), []
    for before, after in pairwise(wanted):
        states = States.of_run(run, [before, after])
        start = {name: value[0].double() for name, value in states.parameters.items()}
        moved = {name: value[1].double() - value[0].double() for name, value in states.parameters.items()}
        squares = {component.name: (_square(component, moved), _square(component, start)) for component in components}
        squares = {ALL: tuple(map(sum, zip(*squares.values(), strict=True))), **squares}
        for name, (distance, size) in squares.items():
            norm = distance**0.5 / (after - before)
            relative = norm / size**0.5 if size else float("inf") if norm else float("nan")
            rows.append({"step": after, "component": name, "norm": norm, "relative": relative})
    return pd.DataFrame(rows)


def _square(component: Component, values: dict[str, Tensor]) -> float:
    """The sum of the squares of a component's elements."""
    return sum(float(component.part(name, values[name]).square().sum()) for name in component.parameters)
