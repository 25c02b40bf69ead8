"""The table of all measures at all checkpoints of a run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mechinterp.analysis.cache import TableCache
from mechinterp.circuits.activations import parts_of
from mechinterp.config import ModelConfig
from mechinterp.errors import MechinterpError, UnknownNameError, require_integer, unknown_name
from mechinterp.interventions.forward import ForwardInterventions
from mechinterp.measures.base import MEASURES, Measure, Observation
from mechinterp.measures.functions import Function, measure_functions
from mechinterp.measures.weights import WEIGHT_MEASURES, weight_measures
from mechinterp.models.forward import run_with_cache
from mechinterp.models.network import Network, hook_names
from mechinterp.parallel import computed
from mechinterp.progress import Progress
from mechinterp.run import Run, require_run
from mechinterp.tasks.base import Batch, Task
from mechinterp.torch_state import torch_defaults, torch_threads
from mechinterp.training.spikes import SPIKES

_PACKAGE = __name__.rpartition(".")[0]


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

    @property
    def is_built_in(self) -> bool:
        """Whether the measure is one of this package."""
        return self.module.startswith(f"{_PACKAGE}.")

    def value(self, seen: Observation) -> float:
        """The measure of an observation; anything but one number raises MechinterpError."""
        value = self.measure.compute(seen)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise MechinterpError(f"measure {self.measure.name} gave {tuple(value.shape)}; expected one number")
        return float(value)


def columns_of(run: Run, names: Sequence[str] | None = None) -> list[Column]:
    """The columns that a run's task and model admit, or those of `names`; a name that they do not admit raises."""
    return columns_for(run.task, run.network_config.model, names)


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


def main_column(run: Run) -> str:
    """The column whose transition is the result by default: the task's main measure (`main_measure`); of a run that was
    trained elsewhere and cannot be analysed, the first number that was recorded, or else the norm of the weights."""
    if run.can_be_analysed:
        return main_measure(run.task)
    return next(iter(run.metrics), WEIGHT_MEASURES[0])


def measure(
    run: Run,
    names: str | Sequence[str] | Mapping[str, Function] | None = None,
    *,
    steps: int | str | Iterable[int | str] | None = None,
    n_sequences: int = 1000,
    seed: int = 0,
    reference: int | str = "first",
    keep: bool = True,
    progress: bool = False,
) -> pd.DataFrame:
    """Progress measures of a run: one row per checkpoint (index ``step``), one column per measure.

    A measure is the mean over `n_sequences` sequences of an evaluation set, the same ones at every step (`seed` chooses
    others). By default all measures that apply and all saved steps, and ``spikes``, ``spike_step`` and
    ``spike_height``, the loss spikes of training since the checkpoint before (`training.spikes`). Of a run that was
    trained elsewhere, also the numbers that were recorded, and measures of the weights alone (`measures.weights`);
    measures of sequences need its task, and a network that is known. An unknown name or step raises. With `keep`,
    values of the built-in measures are read from and kept in the folder ``RUN.cache`` beside the run file
    (`analysis.cache`), so that none is computed twice. `progress` shows how far it is.

    In place of names, `{"accuracy": f}` takes functions of one's own (`measures.functions`): f(model) of the model at a
    step, or f(model, other) of it and the model at the `reference`: a step, or the ``first``, ``last`` or ``previous``
    one.

    Measures are of the weights, without the interventions of training. Where interventions act on activations,
    ``clamped_{measure}`` is the measure under those of the step, as in training.
    """
    require_run(run)
    require_integer("n_sequences", n_sequences)
    wanted = run.chosen_steps(steps)
    for step in wanted:
        run.digest(step)  # raises for a step that is not stored
    if isinstance(names, Mapping):
        return measure_functions(run, names, wanted, reference, progress=progress)
    if names is not None and not isinstance(names, Sequence):
        raise MechinterpError(f"names is {names!r}; expected a measure, several, or a mapping of names to functions")
    return _table(run, [names] if isinstance(names, str) else names, wanted, n_sequences, seed, keep, progress)


def require_measures(run: Run, names: Sequence[str] | None) -> tuple[list[Column], list[str]]:
    """The named measures of sequences, or all; and the other columns, which are recorded or of the weights alone.

    A name that is none of them, or does not apply to the run, raises.
    """
    recorded = [*run.metrics] if run.origin else [name for name in SPIKES if name in run.metrics and names is None]
    further = [name for name in recorded if names is None or name in names]
    of_weights = [name for name in WEIGHT_MEASURES if name not in recorded]
    further += [name for name in of_weights if (run.origin if names is None else name in names)]
    return _selected(run, further, None if names is None else [name for name in names if name not in further]), further


@torch_defaults()
def _table(
    run: Run, names: Sequence[str] | None, steps: list[int], n_sequences: int, seed: int, keep: bool, progress: bool
) -> pd.DataFrame:
    """The table of the named measures, or of all, at some steps."""
    metrics = run.metrics
    columns, further = require_measures(run, names)
    measured = _measured(run, steps, columns, n_sequences, seed, keep, progress) if columns else {}
    rows = list[dict[str, float]]()
    for step in steps:
        rows.append(measured.get(step, {}))
        if any(name in WEIGHT_MEASURES for name in further):
            first, before = run.steps[0], max((stored for stored in run.steps if stored < step), default=step)
            rows[-1] |= weight_measures(*(run.weights(at) for at in (step, first, before)))
    released = [column.name for column in columns]
    clamped = [f"clamped_{name}" for name in released if rows and f"clamped_{name}" in rows[0]]
    of_weights = [name for name in further if name in WEIGHT_MEASURES and not (run.origin and name in metrics)]
    table = pd.DataFrame(rows, index=pd.Index(steps, name="step"), columns=[*released, *clamped, *of_weights])
    return table.join(metrics[[name for name in further if name not in of_weights]])[[*released, *clamped, *further]]


def _selected(run: Run, further: list[str], names: Sequence[str] | None) -> list[Column]:
    """The columns of measures of sequences: those of `names`, or all but those of the same name as `further` ones."""
    if names is None:
        return [column for column in columns_of(run) if column.name not in further] if run.can_be_analysed else []
    for name in names if not run.has_clamps else ():
        if name.startswith("clamped_"):
            raise MechinterpError(f"{run.path}: {name}: nothing is clamped in this run; measure it without clamped_")
    if names and not run.can_be_analysed:
        unknown = unknown_name("measure", names[0], [*run.metrics, *WEIGHT_MEASURES])
        raise UnknownNameError(f"{unknown}; measures of sequences do not apply: {run.why_not_analysed}")
    return columns_of(run, list(dict.fromkeys(name.removeprefix("clamped_") for name in names))) if names else []


def _measured(
    run: Run, steps: list[int], columns: list[Column], n_sequences: int, seed: int, keep: bool, progress: bool
) -> dict[int, dict[str, float]]:
    """All columns, and those of the same name under clamps, by step; those that have been kept are not computed."""
    arguments, batches = {"n_sequences": n_sequences, "seed": seed}, dict[str, Batch]()
    kept = TableCache(run.path, run.network_config, "measures", _PACKAGE, arguments, keep=keep)
    rows = dict[int, dict[str, Any]]()
    names = [column.name for column in columns]
    wanted = [*names, *(f"clamped_{name}" for name in names if run.has_clamps)]
    own, keys = {column.name for column in columns if not column.is_built_in}, dict[int, str]()
    for step in steps:
        keys[step] = f"{run.digest(step)}, step {step}" if run.has_clamps else run.digest(step)
        rows[step] = kept.tables[keys[step]].iloc[0].to_dict() if keys[step] in kept.tables else {}
    missing = {step: [column for column in columns if column.name not in rows[step]] for step in rows}
    missing = {step: lacking for step, lacking in missing.items() if lacking}
    for evaluation in {column.evaluation for lacking in missing.values() for column in lacking}:
        batches[evaluation] = run.task.sample(evaluation, n_sequences, seed)

    def row_at(step: int) -> dict[str, float]:
        with torch_threads(1):
            return _row(run, step, missing[step], batches)

    # A function of the user's may keep what it has seen, which it cannot in another process.
    cores = 1 if any(column.name in own for lacking in missing.values() for column in lacking) else None
    try:
        with Progress("checkpoint", len(rows), done=len(rows) - len(missing), shown=progress) as shown:
            for step, row in zip(missing, computed(row_at, list(missing), cores=cores), strict=True):
                rows[step] |= row
                if any(column.name not in own for column in missing[step]):
                    built_in = {
                        name: rows[step][name] for name in rows[step] if name.removeprefix("clamped_") not in own
                    }
                    kept.add(keys[step], pd.DataFrame([built_in]))
                shown.advance()
    finally:
        kept.save()
    return {step: {name: row[name] for name in wanted} for step, row in rows.items()}


def _row(run: Run, step: int, columns: list[Column], batches: dict[str, Batch]) -> dict[str, float]:
    """All columns at one step, by name; one forward pass per evaluation set."""
    network, released, clamped = run.network(step), {}, {}
    for evaluation, batch in batches.items():
        selected = [column for column in columns if column.evaluation == evaluation]
        if not selected:
            continue
        hooks = {hook for column in selected for hook in column.measure.hooks}
        with torch.no_grad():
            seen = observe(network, batch, hooks, task=run.task)
            released |= {column.name: column.value(seen) for column in selected}
            if run.has_clamps:
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
    hooks, logits, cache = list(hooks), list[Tensor](), dict[str, Tensor]()
    for rows in parts_of(len(batch), network, batch.n_pos):
        part = batch.take(rows)
        acting = ForwardInterventions.at(run.config, step, part) if run else None
        answered = run_with_cache(
            network, part.inputs, hooks, acting.hooks() if acting else None, target_only=not hooks
        )
        logits.append(answered.logits)
        for hook in hooks:
            of_part = answered[hook]
            if hook not in cache:
                cache[hook] = of_part.new_empty(len(batch), *of_part.shape[1:])
            cache[hook][rows] = of_part
    return Observation(batch, torch.cat(logits), cache, network, task)


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
