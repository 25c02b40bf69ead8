"""All measures over all checkpoints of a run, as one table."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.measures.base import MEASURES, Measure, Observation
from mechinterp.models.conventions import folded, plain
from mechinterp.models.functional import forward
from mechinterp.store import Run
from mechinterp.tasks.base import Batch, Task
from mechinterp.training.interventions import Interventions, Under, acts_on_activations

_PART = 250
"""Sequences in one forward pass: their activations stay in cache, which halves the time of a thousand at once."""


@dataclass(frozen=True)
class Column:
    """One column of the table: a measure on an evaluation set."""

    name: str
    measure: Measure
    evaluation: str


def columns_of(run: Run, names: Sequence[str] | None = None) -> list[Column]:
    """The columns that this run's task and model admit; with `names` just those, and an error for any other."""
    return columns_for(run.task, run.config.model.n_layers, names)


def columns_for(task: Task, n_layers: int, names: Sequence[str] | None = None) -> list[Column]:
    """The same before there is a run: what networks of `n_layers` layers on `task` can be measured by."""
    possible = {column.name: column for column in _possible(task, n_layers)}
    if names is None:
        return list(possible.values())
    for name in names:
        if name in MEASURES and name not in possible:
            own = MEASURES[name]
            if any(role in task.sample(task.evaluations[0], 1).roles for role in own.without):
                raise MechinterpError(
                    f"{name} cannot be measured here: it is of tasks whose labels are tokens of their own; on this one,"
                    " whose tokens show an item with its label, take tca1"
                )
            needs = ", ".join([*own.roles, *own.hooks])
            raise MechinterpError(f"{name} cannot be measured here: it needs {needs}")
        if name not in possible:
            raise unknown_name("measure", name, possible)
    return [possible[name] for name in names]


def measure(
    run: Run,
    names: Sequence[str] | None = None,
    *,
    steps: Iterable[int] | None = None,
    n_sequences: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Progress measures of a run: one row per checkpoint (index ``step``), one column per measure.

    Each is the mean over `n_sequences` sequences of an evaluation set, the same ones at every step (`seed` chooses
    others). By default all measures that apply and all saved steps; an unknown name or step raises.
    `progress` shows a bar on a terminal.

    These are measures of the weights alone, released from whatever interventions the run was trained under. Where some
    act on activations, ``clamped_{measure}`` is the same under those of the step, as in training.
    """
    if n_sequences < 1:
        raise MechinterpError(f"n_sequences is {n_sequences}; at least one sequence is needed")
    if names and not acts_on_activations(run.config):
        for name in names:
            if name.startswith("clamped_"):
                raise MechinterpError(
                    f"{run.path}: {name}: nothing is clamped in this run; measure it without clamped_"
                )
    columns = columns_of(run, names and list(dict.fromkeys(name.removeprefix("clamped_") for name in names)))
    wanted = run.steps if steps is None else list(steps)
    batches = {each: run.task.sample(each, n_sequences, seed) for each in dict.fromkeys(c.evaluation for c in columns)}
    rows = [
        _row(run, step, columns, batches)
        for step in tqdm(wanted, unit="checkpoint", disable=None if progress else True)
    ]
    found = [column.name for column in columns]
    if rows and acts_on_activations(run.config):
        found += [name for name in (f"clamped_{each}" for each in found) if name in rows[0]]
    return pd.DataFrame(rows, index=pd.Index(wanted, name="step"), columns=found)


def _row(run: Run, step: int, columns: list[Column], batches: dict[str, Batch]) -> dict[str, float]:
    """All columns at one step: each evaluation set is run once, caching what its measures ask for."""
    weights, row, clamped = folded(run.config, run.weights(step)), {}, {}
    interventions = Interventions(run.config)
    for evaluation, batch in batches.items():
        here = [column for column in columns if column.evaluation == evaluation]
        with torch.no_grad():
            hooks = {hook for column in here for hook in column.measure.hooks}
            seen = _observe(run, weights, batch, hooks)
            row |= {column.name: float(column.measure.compute(seen)) for column in here}
            if acts_on_activations(run.config):
                if interventions.at(step, batch):
                    seen = _forward(weights, batch, bool(hooks), lambda part: interventions.at(step, part))
                clamped |= {
                    f"clamped_{column.name}": float(column.measure.compute(seen))
                    for column in here
                    if all(hook in seen.cache for hook in column.measure.hooks)
                }
    return row | clamped


def _observe(run: Run, weights: dict[str, Tensor], batch: Batch, hooks: set[str]) -> Observation:
    """The model seen on a batch. Attention patterns come from the plain forward pass, any other hook from hooks."""
    if all(hook.endswith("attn.hook_pattern") for hook in hooks):
        return _forward(weights, batch, bool(hooks), lambda part: None)
    from mechinterp.models.transformer import build_model  # imports TransformerLens, which takes seconds

    logits, cache = build_model(plain(run.config), weights).run_with_cache(batch.inputs, names_filter=list(hooks))
    return Observation(batch, logits, cache.cache_dict)


def _forward(
    weights: dict[str, Tensor], batch: Batch, patterns_too: bool, under: Callable[[Batch], Under | None]
) -> Observation:
    """Logits and attention patterns, by the plain forward pass, under interventions on each part of the batch.

    Where nobody asks for patterns, the last layer's queries are the target's alone, which saves a third.
    """
    seen = []
    for part in batch.split(_PART):
        acting = under(part)
        seen.append(forward(weights, part.inputs, acting.hooks() if acting else None, target_only=not patterns_too))
    logits, patterns = zip(*seen, strict=True)
    return Observation(
        batch, torch.cat(logits), {name: torch.cat([each[name] for each in patterns]) for name in patterns[0]}
    )


def _possible(task: Task, n_layers: int) -> Iterable[Column]:
    """Every column whose roles the task has (and none it must not have) and whose hooks the model has."""
    roles = task.sample(task.evaluations[0], 1).roles
    for each in MEASURES.values():
        layers = [int(hook.split(".")[1]) for hook in each.hooks if hook.startswith("blocks.")]
        lacking = any(role not in roles for role in each.roles) or any(role in roles for role in each.without)
        if lacking or any(layer >= n_layers for layer in layers):
            continue
        if each.each_evaluation:
            for evaluation in task.evaluations:
                yield Column(f"{evaluation}_{each.name}", each, evaluation)
        else:
            yield Column(each.name, each, task.evaluations[0])
