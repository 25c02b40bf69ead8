"""The table of all measures at all checkpoints of a run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from mechinterp.config import ModelConfig
from mechinterp.errors import MechinterpError, require_integer, unknown_name
from mechinterp.interventions.forward import ForwardInterventions, forward_interventions
from mechinterp.measures.base import MEASURES, Measure, Observation
from mechinterp.models.forward import Activations, run_with_cache
from mechinterp.models.network import Network, hook_names
from mechinterp.progress import tracked
from mechinterp.run import Run
from mechinterp.tasks.base import Batch, Task
from mechinterp.torch_state import torch_defaults
from mechinterp.training.spikes import SPIKES

_PART = 250
"""Sequences in one forward pass: their activations stay in cache, which takes half the time of a thousand at once."""


@dataclass(frozen=True)
class Column:
    """One column of the table: a measure on an evaluation set."""

    name: str
    measure: Measure
    evaluation: str

    @property
    def module(self) -> str:
        """The module of the measure."""
        return self.measure.compute.__module__

    def value(self, seen: Observation) -> float:
        """The measure of an observation; anything but one number raises MechinterpError."""
        value = self.measure.compute(seen)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise MechinterpError(f"measure {self.measure.name} gave {tuple(value.shape)}; expected one number")
        return float(value)


def columns_of(run: Run, names: Sequence[str] | None = None) -> list[Column]:
    """The columns that a run's task and model admit, or those of `names`; a name that they do not admit raises."""
    return columns_for(run.task, run.config.model, names)


def columns_for(task: Task, model: ModelConfig, names: Sequence[str] | None = None) -> list[Column]:
    """The columns for networks of a model section on a task, or those of `names`; see `columns_of`."""
    possible: dict[str, Column] = {}
    for column in _possible(task, model):
        if column.name in possible:
            raise MechinterpError(f"two measures have the column {column.name}; rename the one of {column.module}")
        possible[column.name] = column
    if names is None:
        return list(possible.values())
    for name in names:
        if name in MEASURES and name not in possible:
            measure = MEASURES[name]
            if unmet := measure.unmet(task, task.sample(task.evaluations[0], 1)):
                raise MechinterpError(f"{name} cannot be measured here: it is of tasks {unmet}")
            needs = ", ".join([*measure.roles, *measure.hooks])
            raise MechinterpError(f"{name} cannot be measured here: it needs {needs}")
        if name not in possible:
            raise unknown_name("measure", name, possible)
    return [possible[name] for name in names]


def main_measure(task: Task) -> str:
    """The measure whose transition is the result by default: the accuracy on the task's first evaluation set."""
    return f"{task.evaluations[0]}_accuracy"


@torch_defaults()
def measure(
    run: Run,
    names: str | Sequence[str] | None = None,
    *,
    steps: int | Iterable[int] | None = None,
    n_sequences: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Progress measures of a run: one row per checkpoint (index ``step``), one column per measure.

    A measure is the mean over `n_sequences` sequences of an evaluation set, the same ones at every step (`seed` chooses
    others). By default all measures that apply and all saved steps, and ``spikes``, ``spike_step`` and
    ``spike_height``, the loss spikes of training since the checkpoint before (`training.spikes`). An unknown name or
    step raises.
    `progress` shows how far it is.

    Measures are of the weights, without the interventions of training. Where interventions act on activations,
    ``clamped_{measure}`` is the measure under those of the step, as in training.
    """
    require_integer("n_sequences", n_sequences)
    names = [names] if isinstance(names, str) else names
    if names and not forward_interventions(run.config):
        for name in names:
            if name.startswith("clamped_"):
                raise MechinterpError(
                    f"{run.path}: {name}: nothing is clamped in this run; measure it without clamped_"
                )
    columns = columns_of(run, names and list(dict.fromkeys(name.removeprefix("clamped_") for name in names)))
    wanted = run.chosen_steps(steps)
    evaluations = dict.fromkeys(column.evaluation for column in columns)
    batches = {evaluation: run.task.sample(evaluation, n_sequences, seed) for evaluation in evaluations}
    rows = [_row(run, step, columns, batches) for step in tracked(wanted, "checkpoint", shown=progress)]
    released = [column.name for column in columns]
    clamped = [f"clamped_{name}" for name in released if rows and f"clamped_{name}" in rows[0]]
    table = pd.DataFrame(rows, index=pd.Index(wanted, name="step"), columns=released + clamped)
    metrics = run.metrics
    return table if names else table.join(metrics[[name for name in SPIKES if name in metrics]])


def _row(run: Run, step: int, columns: list[Column], batches: dict[str, Batch]) -> dict[str, float]:
    """All columns at one step, by name; one forward pass per evaluation set."""
    network, released, clamped = Network(run.config, run.weights(step)), {}, {}  # a step that is saved
    for evaluation, batch in batches.items():
        selected = [column for column in columns if column.evaluation == evaluation]
        hooks = {hook for column in selected for hook in column.measure.hooks}
        with torch.no_grad():
            seen = observe(network, batch, hooks, task=run.task)
            released |= {column.name: column.value(seen) for column in selected}
            if forward_interventions(run.config):
                seen = observe(network, batch, hooks, run, step, run.task)
                clamped |= {f"clamped_{column.name}": column.value(seen) for column in selected}
    return released | clamped


def observe(
    network: Network,
    batch: Batch,
    hooks: Iterable[str],
    run: Run | None = None,
    step: int = 0,
    task: Task | None = None,
) -> Observation:
    """A network's logits and activations on a batch, with the interventions of a step if a run is given.

    Without hooks, the last layer's queries are the target's alone, which saves a third of the time.
    """
    hooks, parts = list(hooks), list[Activations]()
    for part in batch.split(_PART):
        acting = ForwardInterventions.at(run.config, step, part) if run else None
        parts.append(
            run_with_cache(network, part.inputs, hooks, acting.hooks() if acting else None, target_only=not hooks)
        )
    logits = torch.cat([part.logits for part in parts])
    cache = {hook: torch.cat([part[hook] for part in parts]) for hook in hooks}
    return Observation(batch, logits, cache, network, task)


def _possible(task: Task, model: ModelConfig) -> Iterable[Column]:
    """Every column whose roles and requirements the task has, and whose hooks the model has."""
    sample, hooks = task.sample(task.evaluations[0], 1), hook_names(model)
    for measure in MEASURES.values():
        lacking = any(role not in sample.roles for role in measure.roles) or measure.unmet(task, sample)
        if lacking or any(hook not in hooks for hook in measure.hooks):
            continue
        if measure.each_evaluation:
            for evaluation in task.evaluations:
                yield Column(f"{evaluation}_{measure.name}", measure, evaluation)
        elif measure.evaluation is None or measure.evaluation in task.evaluations:
            yield Column(measure.name, measure, measure.evaluation or task.evaluations[0])
