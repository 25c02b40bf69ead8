"""Replay: any step of a run, rebuilt from the checkpoint before it and checked at the checkpoint after it.

Data and initial weights are pure functions of (seed, stream, step), so on the same build of torch, the same CPU
capability and the same number of threads the rebuilt weights are the trained ones, bit for bit. To check this, a replay
continues to the next saved checkpoint and compares digests.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError, require_integer
from mechinterp.progress import Progress
from mechinterp.store import RunFile, Trajectory, lock_run_file
from mechinterp.store.layout import digest
from mechinterp.tasks.base import Task
from mechinterp.torch_state import recorded_threads, torch_threads
from mechinterp.training.engines import BATCHED, build_engine
from mechinterp.training.loop import TrainingRun, steps_of
from mechinterp.training.optimizers import moments_of
from mechinterp.training.recording import environment, new_side_file

Keep = Callable[[int, dict[str, Tensor], Mapping[str, float]], None]

_BITS_DEPEND_ON = (
    *("mechinterp", "torch", "numpy", "numba", "scipy", "libc"),
    *("machine", "cpu", "cpu_capability", "device"),
)


@dataclass(frozen=True)
class ReplayCheck:
    """Comparison of a replay with the saved checkpoints that follow the rebuilt steps."""

    exact: bool
    """Whether all digests agreed."""
    deviation: float
    """The largest difference of a weight from its stored value; 0 if exact."""
    checked: tuple[int, ...]
    """The saved steps that were compared."""
    environment_changes: tuple[str, ...]
    """Differences between this environment and that of training."""
    relative_deviation: float = 0.0
    """The deviation, as a share of the largest change of a weight between the two checkpoints."""
    wrong_metrics: int | None = None
    """The first saved step whose metrics or series are not those of an exact replay of the interval before it."""

    def __str__(self) -> str:
        where = ", ".join(f"{step:,}" for step in self.checked[:3]) + (", …" if len(self.checked) > 3 else "")
        if self.exact:
            return f"exact: digests agree at step {where}" if self.checked else "exact: every step was stored"
        why = "; ".join(self.environment_changes) or "in the same environment"
        return f"approximate: weights deviate by up to {self.deviation:.2g} at step {where} ({why})"


def replay_steps(
    trajectory: Trajectory, task: Task, steps: Iterable[int], keep: Keep, *, progress: bool = False
) -> ReplayCheck:
    """Rebuild `steps` in ascending order and pass them to `keep` (step, weights, metrics since the one before).

    Saved steps are passed as saved. A step beyond the last saved one cannot be checked and raises: resume the run
    instead.
    """
    file, wanted = trajectory.file, sorted({require_integer("step", step, 0) for step in steps})
    saved = file.steps
    if wanted and wanted[0] < saved[0]:
        raise MechinterpError(f"{trajectory.path}: step {wanted[0]} is before the first saved one ({saved[0]})")
    if wanted and wanted[-1] > saved[-1]:
        raise MechinterpError(
            f"{trajectory.path}: step {wanted[-1]} is beyond the saved ones (last: {saved[-1]}); resume the run"
        )
    checked, deviation, relative, wrong, changes = [], 0.0, 0.0, list[int](), dict[str, None]()
    intervals = _intervals(saved, wanted)
    with Progress("step", sum(stop - start for start, stop in intervals), shown=progress) as bar:
        for start, stop in intervals:
            recorded, stored = file.environment_at(start), file.weights(start)
            changes |= dict.fromkeys(environment_changes(recorded))
            state = moments_at(file, task, start)
            device = usable_device(recorded)
            engine = build_engine(trajectory.config, stored, recorded.get("engine"), device, state)
            every = file.header.contents.series_every
            run = TrainingRun(trajectory.config, task, engine.parameters, start, stop, file.metrics_at(start), every)
            kept = [step for step in wanted if start <= step < stop]
            with torch_threads(recorded_threads(recorded)):
                for step in steps_of(engine, run):
                    if step in kept:
                        rebuilt = {name: value.detach().to("cpu", copy=True) for name, value in run.parameters.items()}
                        keep(step, rebuilt, run.pop_metrics())
                    bar.advance()
            checked.append(stop)
            if digest(engine.parameters).hex() != file.digest(stop):
                rebuilt = {name: value.detach().cpu() for name, value in engine.parameters.items()}
                deviation = max(deviation, _largest_difference(file.weights(stop), rebuilt))
                effective = _with_effect(trajectory.config, file.weights(stop))
                gap, moved = (_largest_difference(effective, other) for other in (rebuilt, stored))
                relative = max(relative, gap / moved if moved else math.inf)
            elif set(kept) <= {start} and not _as_recorded(run, file, stop):
                wrong.append(stop)
        if wanted and wanted[-1] == saved[-1]:
            keep(saved[-1], file.weights(saved[-1]), file.metrics_at(saved[-1]))
    first_wrong = wrong[0] if wrong else None
    return ReplayCheck(not deviation, deviation, tuple(checked), tuple(changes), relative, first_wrong)


def densify(trajectory: Trajectory, task: Task, steps: range, *, progress: bool = False) -> ReplayCheck:
    """Rebuild the steps of a range that are not stored yet, and write a new side file with them.

    Only exact steps are stored: if a digest differs, MechinterpError tells the deviation and nothing is written.
    """
    with lock_run_file(trajectory.dense_path) as lock:
        trajectory.open_side_file()  # another process may have written it meanwhile
        if trajectory.side_file is None and os.path.exists(trajectory.dense_path):
            raise MechinterpError(
                f"{trajectory.dense_path}: is a run of its own, or has steps of another run; move it away or delete it"
            )
        side, saved = trajectory.side_file, {*trajectory.file.steps}
        already = side.steps if side else []
        missing = [step for step in steps if step not in {*already} | saved]
        if not missing:
            return ReplayCheck(True, 0.0, (), ())
        with new_side_file(trajectory.dense_path, trajectory.file, len(already) + len(missing), lock) as writer:

            def copy_before(limit: int | float) -> None:
                while side and already and already[0] < limit:
                    step = already.pop(0)
                    writer.append(step, side.weights(step), side.metrics_at(step))

            def keep(step: int, weights: dict[str, Tensor], since: Mapping[str, float]) -> None:
                copy_before(step)
                writer.append(step, weights, since)

            check = replay_steps(trajectory, task, missing, keep, progress=progress)
            if not check.exact:
                raise MechinterpError(f"{trajectory.path}: the replay is {check}; only exact steps are stored")
            copy_before(float("inf"))
    return check


def moments_at(file: RunFile, task: Task, step: int) -> dict[str, Tensor]:
    """The optimizer's moments at a stored step, where it has any: as stored, or rebuilt from the last ones stored."""
    contents, recorded = file.header.contents, file.environment_at(step)
    if not moments_of(file.config.training):
        return {}
    if not contents.optimizer:
        raise MechinterpError(f"{file.path}: has no moments of the optimizer at step {step}: train it anew to go on")
    *_, start = [saved for saved in file.steps[:: contents.optimizer_every] if saved <= step]
    state = file.optimizer_state(start)
    if start == step:
        return state
    engine = build_engine(file.config, file.weights(start), recorded.get("engine"), usable_device(recorded), state)
    with torch_threads(recorded_threads(recorded)):
        for _ in steps_of(engine, TrainingRun(file.config, task, engine.parameters, start, step)):
            pass
    return engine.states[0]


def usable_device(recorded: Mapping[str, str]) -> str:
    """The device of a recorded environment if this machine has one, else the CPU."""
    return "cuda" if recorded.get("device", "cpu") != "cpu" and torch.cuda.is_available() else "cpu"


def environment_changes(recorded: Mapping[str, str]) -> tuple[str, ...]:
    """Differences from a recorded environment that may change bits, other than the number of threads."""
    now, engine = environment(usable_device(recorded)), recorded.get("engine")
    batched = ("it was trained in one batch with others",) if engine in (BATCHED, "together") else ()
    removed = (f"its engine, {engine}, is no longer there",) if engine in ("hooked", "captured") else ()
    changed = [name for name in _BITS_DEPEND_ON if recorded.get(name) != now[name]]
    return *batched, *removed, *(f"{name} was {recorded.get(name)}, is {now[name]}" for name in changed)


def _with_effect(config: RunConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the biases of keys, unless positions are rotary: these move all scores of a query alike, so
    that their gradients are rounding errors, which Adam makes steps of."""
    rotary = getattr(config.model, "positional_embedding_type", None) == "rotary"
    return {name: value for name, value in weights.items() if rotary or not name.endswith("attn.b_K")}


def _largest_difference(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    return max(float((value - others[name]).abs().max()) for name, value in weights.items())


def _as_recorded(run: TrainingRun, file: RunFile, step: int) -> bool:
    """Whether metrics and series of a replayed interval are those that the file has at `step`, its end."""
    recorded, series = file.metrics_at(step), file.series(step)
    replayed = run.pop_series()
    return all(np.array_equal(value, recorded[name], equal_nan=True) for name, value in run.pop_metrics().items()) and (
        all(np.array_equal(replayed[name], column, equal_nan=True) for name, column in series.items())
    )


def _intervals(saved: list[int], wanted: list[int]) -> list[tuple[int, int]]:
    """The intervals between neighbouring saved steps that contain a wanted step."""
    return [(start, stop) for start, stop in pairwise(saved) if any(start <= step < stop for step in wanted)]
