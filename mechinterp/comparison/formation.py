"""In which order the components of a network form: which is late, and which waits for which.

With S a set of components, a_S(j) is the accuracy of checkpoint j with the components in S of the last checkpoint, and
h_S the step at which a_S rises through the level halfway between the first and the last accuracy of the run
(`emergence.level_crossing`; the first step if a_S is above it from the start). h_∅ is the rise of the run itself.

    ready     r_c = step at which the last checkpoint with c of step j reaches the level: from then on c does its part
    advance   A_c = h_∅ − h_c: by how many steps the rise would come earlier, had c been there from the start
    given     A_c|b = h_b − h_bc: the same, had b been there from the start
    synergy   A_c|b − A_c = h_b + h_c − h_bc − h_∅, by how much c helps more once b is there; symmetric in b and c
    chain     h of the component that is ready last, of the last two, …: who held up the rise, and how long

A number of steps is **resolved** if the lower end of its 95 % interval is above half the distance of two checkpoints
(the median distance). The rules, which were fixed before any trained network was looked at:

* c is **needed** if r_c lies after the first checkpoint, resolved: the last network fails with c's first version, all
  other components being its own. Of two that are not needed, the first versions together may still not do;
* c is **late** if A_c is resolved: its last version alone makes the rise come earlier;
* c **waits for** b if the synergy is resolved and c is not late: c helps more once b is there, and by itself not by a
  resolved number of steps. Two that both wait for each other formed together. b is then **awaited**.

Intervals are bootstraps over sequences, or over classes where sequences share a target's class, in which the level is
computed anew; where the level is not reached in a resample the interval has no ends, and nothing is resolved. They do
not cover what another seed of training would change. A transplant that fails may do so as parts have adapted to each
other (`comparison.transplants`): `ready` is then the step from which the part fits the last network, which is no
earlier than the step at which its function is there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mechinterp.comparison.components import Component, chosen_components, components_of
from mechinterp.comparison.states import States, Target
from mechinterp.comparison.transplants import prepared, resampled, scores
from mechinterp.emergence.crossing import crossings
from mechinterp.errors import MechinterpError, require_integer
from mechinterp.progress import tracked
from mechinterp.run import Run
from mechinterp.tasks.base import Batch
from mechinterp.torch_state import torch_defaults, torch_threads

Array = NDArray[np.float64]
Names = frozenset[str]
"""A set S of components, by name."""
RUN: Names = frozenset()
"""No component is of the last checkpoint: the run itself."""
LEAST_RISE = 0.1
"""The least rise of accuracy in which components are read."""


@dataclass(frozen=True)
class Formation:
    """The order in which components form; see the module's docstring."""

    components: pd.DataFrame
    """A row per component, in the order in which they are ready: ``component``, ``ready`` and ``advance`` (steps), each
    with ``_low`` and ``_high``, ``needed``, ``late`` and ``awaited``, ``after_previous``: whether it is ready after the
    component of the row before, resolved."""
    waits: pd.DataFrame
    """A row per ordered pair: ``component``, ``for``, ``given`` and ``synergy`` (steps), the synergy's ``low`` and
    ``high``, and ``waits``."""
    chain: pd.DataFrame
    """The rise with the last versions of more and more components, the last one ready first: ``with`` (the component
    that is added), ``rise`` (step) with ``low`` and ``high``, ``held_up``, the steps by which it is earlier than
    without, and whether that is ``resolved``."""
    accuracies: Mapping[Names, pd.Series]
    """a_S by step, of the sets S of no component (`RUN`), one, two, and those of the chain."""
    early_accuracies: pd.DataFrame
    """Step × component: accuracy of the last checkpoint with the component of the step."""
    rise: float
    """h_∅, the step at which the run's accuracy is halfway."""
    resolution: float
    """Half the median distance of two checkpoints, above which a number of steps is resolved."""

    @property
    def chain_accuracies(self) -> pd.DataFrame:
        """Step × ``the run itself``, and each component of the chain: a_S with it and those before it in S."""
        names = list(self.chain["with"])
        curves = {name: self.accuracies[frozenset(names[: number + 1])] for number, name in enumerate(names)}
        return pd.DataFrame({"the run itself": self.accuracies[RUN], **curves})

    def __str__(self) -> str:
        order = [
            f"{row['component']} from the start" for row in self.components.to_dict("records") if not row["needed"]
        ]
        for number, row in enumerate(_records(self.components, "needed")):
            then = "" if not number else "then " if row["after_previous"] else "or at the same time "
            order.append(f"{then}{row['component']} at {row['ready']:,.0f}")
        late = [f"{row['component']} ({row['advance']:,.0f} steps)" for row in _records(self.components, "late")]
        waiting = [f"{row['component']} for {row['for']}" for row in _records(self.waits, "waits")]
        return "\n".join(
            [
                f"ready: {'; '.join(order)}",
                f"late: {', '.join(late) or 'none'}",
                f"waiting: {', '.join(waiting) or 'none'}",
                f"halfway at {self.rise:,.0f}",
            ]
        )


@torch_defaults()
def locate_formation(
    run: Run,
    components: Iterable[str] | str | None = None,
    *,
    steps: int | str | Iterable[int | str] | None = None,
    heads_apart: bool = True,
    n_sequences: int = 500,
    evaluation: str | None = None,
    seed: int = 0,
    resamples: int = 500,
    progress: bool = False,
) -> Formation:
    """In which order a run's components form, which is late, and which waits for which.

    Arguments as in `transplant`; C components of S steps take S (C² + 5C) / 2 forward passes. MechinterpError where the
    accuracy does not rise by `LEAST_RISE`, or fewer than 4 steps are given.
    """
    require_integer("resamples", resamples, 20)
    wanted, _, batch = prepared(run, steps, n_sequences, evaluation, seed)
    chosen = chosen_components(components_of(run.network_config, heads_apart=heads_apart), components)
    with torch_threads(1):
        states = States.of_run(run, wanted)
        return formation_of(
            states, chosen, batch, seed=seed, resamples=resamples, place=str(run.path), progress=progress
        )


def formation_of(
    states: States,
    components: Sequence[Component],
    batch: Batch,
    *,
    seed: int = 0,
    resamples: int = 500,
    place: str = "the run",
    progress: bool = False,
) -> Formation:
    """The order in which components of some states form, on the sequences of a batch."""
    if len(states.steps) < 4:
        raise MechinterpError(f"{place}: {len(states.steps)} steps are too few to see an order; give at least 4")
    groups = [(), *((component,) for component in components), *combinations(components, 2)]
    correct = _correct_with_last(states, groups, batch, progress)
    first, last = correct[RUN].mean(axis=1)[[0, -1]]
    if last - first < LEAST_RISE:
        raise MechinterpError(
            f"{place}: accuracy goes from {first:.3f} to {last:.3f}, and components are read where it rises by"
            f" {LEAST_RISE:g} or more; choose other steps, or another evaluation set"
        )
    shares, steps = resampled(batch, seed, resamples), np.array(states.steps, float)
    run_accuracies = shares @ correct[RUN].T
    levels = (run_accuracies[:, 0] + run_accuracies[:, -1]) / 2

    def halfway(answered: NDArray[np.bool_]) -> Array:
        """The steps at which a curve reaches the run's level, in the sample and in every resample."""
        return np.clip(crossings(steps, shares @ answered.T, levels), steps[0], np.inf)

    correct_early = _correct_with_early(states, components, batch)
    ready = {name: halfway(answered) for name, answered in correct_early.items()}
    order = sorted(ready, key=lambda name: ready[name][0])
    latest = sorted(components, key=lambda component: order.index(component.name), reverse=True)
    correct |= _correct_with_last(states, [tuple(latest[:count]) for count in range(3, len(latest) + 1)], batch)
    rises = {names: halfway(answered) for names, answered in correct.items()}
    resolution = float(np.median(np.diff(steps))) / 2
    with np.errstate(invalid="ignore"):  # a resample may not rise: its step is infinite, and differences are no numbers
        parts = _parts(order, ready, rises, steps[0], resolution)
        waits = _waits(list(ready), rises, set(parts.loc[parts["late"], "component"]), resolution)
        chain = _chain(order[::-1], rises, resolution)
    parts["awaited"] = parts["component"].isin(waits.loc[waits["waits"], "for"])
    index = pd.Index(states.steps, name="step")
    return Formation(
        parts,
        waits,
        chain,
        {names: pd.Series(answered.mean(axis=1), index) for names, answered in correct.items()},
        pd.DataFrame({name: answered.mean(axis=1) for name, answered in correct_early.items()}, index),
        float(rises[RUN][0]),
        resolution,
    )


def _correct_with_last(
    states: States, groups: Sequence[tuple[Component, ...]], batch: Batch, progress: bool = False
) -> dict[Names, NDArray[np.bool_]]:
    """Whether each sequence is answered correctly [step, sequence] with groups of components of the last step."""
    last, n = len(states.steps) - 1, len(states.steps)
    correct = {_names(group): np.empty((n, len(batch)), dtype=bool) for group in groups}
    with torch.no_grad():
        for index in tracked(range(n), "checkpoint", shown=progress):
            target = Target(states, index, batch.inputs)
            for group in groups:
                logits = target.with_components(group, [last])[0] if group else target.logits
                correct[_names(group)][index] = scores(logits, batch)[0].numpy() > 0.5
    return correct


def _correct_with_early(states: States, components: Sequence[Component], batch: Batch) -> dict[str, NDArray[np.bool_]]:
    """Whether the last checkpoint answers each sequence correctly with a component of each step [step, sequence]."""
    n = len(states.steps)
    with torch.no_grad():
        target = Target(states, n - 1, batch.inputs)
        return {
            component.name: scores(target.with_components([component], range(n)), batch)[0].numpy() > 0.5
            for component in components
        }


def _names(group: Iterable[Component]) -> Names:
    return frozenset(component.name for component in group)


def _parts(
    order: Sequence[str],
    ready: Mapping[str, Array],
    rises: Mapping[Names, Array],
    first_step: float,
    resolution: float,
) -> pd.DataFrame:
    """The rows of `Formation.components` but ``awaited``, in the order of the names."""
    rows = list[dict[str, object]]()
    for before, name in zip([None, *order], order, strict=False):
        advance = rises[RUN] - rises[frozenset([name])]
        later = None if before is None else ready[name] - ready[before]
        row: dict[str, object] = {"component": name, "ready": ready[name][0]}
        row |= dict(zip(("ready_low", "ready_high"), _interval(ready[name]), strict=True))
        row |= {"advance": advance[0], **dict(zip(("advance_low", "advance_high"), _interval(advance), strict=True))}
        row["needed"] = _interval(ready[name] - first_step)[0] > resolution
        row["late"] = _interval(advance)[0] > resolution
        row["after_previous"] = later is not None and _interval(later)[0] > resolution
        rows.append(row)
    return pd.DataFrame(rows)


def _waits(names: Sequence[str], rises: Mapping[Names, Array], late: set[str], resolution: float) -> pd.DataFrame:
    """The rows of `Formation.waits`."""
    rows = list[dict[str, object]]()
    for pair in combinations(names, 2):
        for waiting, awaited in (pair, pair[::-1]):
            given = rises[frozenset([awaited])] - rises[frozenset(pair)]
            synergy = given - (rises[RUN] - rises[frozenset([waiting])])
            low, high = _interval(synergy)
            row = {"component": waiting, "for": awaited, "given": given[0], "synergy": synergy[0]}
            rows.append(row | {"low": low, "high": high, "waits": low > resolution and waiting not in late})
    columns = ["component", "for", "given", "synergy", "low", "high", "waits"]
    return pd.DataFrame(rows, columns=columns).astype({"waits": bool})


def _chain(latest_first: Sequence[str], rises: Mapping[Names, Array], resolution: float) -> pd.DataFrame:
    """The rows of `Formation.chain`."""
    rows, before = list[dict[str, object]](), rises[RUN]
    for number, name in enumerate(latest_first, start=1):
        after = rises[frozenset(latest_first[:number])]
        low, high = _interval(after)
        row: dict[str, object] = {
            "with": name,
            "rise": after[0],
            "low": low,
            "high": high,
            "held_up": (before - after)[0],
        }
        rows.append(row | {"resolved": _interval(before - after)[0] > resolution})
        before = after
    return pd.DataFrame(rows)


def _interval(samples: Array) -> tuple[float, float]:
    """The 95 % interval of resamples; the first entry is the sample itself."""
    known = samples[1:][np.isfinite(samples[1:])]
    if len(known) < len(samples) - 1:  # where a curve never rises there is no interval
        return -np.inf, np.inf
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def _records(table: pd.DataFrame, column: str) -> list[dict[str, Any]]:
    """The rows in which a column is true."""
    return table[table[column]].to_dict("records")  # pyright: ignore[reportReturnType]
