"""The recorder: checkpoints of any torch module, from a loop of one's own, in a run file.

with mi.record("x.h5", model, schedule=mi.Schedule(every=100, per_decade=20), optimizer=optimizer) as recorder:
    for step in range(recorder.last_step + 1, steps):
        ...                                  # your loss, your optimizer
        recorder(step, loss=loss.item())     # saves where the schedule says

Every checkpoint is on the disk when the call returns. A step has the number under which the loop calls.
"""

import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mechinterp.config.training import logarithmic_step
from mechinterp.errors import MechinterpError, RunFileError, require_integer, require_number
from mechinterp.exchange.modules import (
    constants_of,
    layout_of,
    load_optimizer,
    load_weights,
    optimizer_state,
    parameter_names,
    require_constant,
    stored_state,
)
from mechinterp.exchange.origin import new_header, origin_of
from mechinterp.models.foreign import recognise, settings_of
from mechinterp.store import Contents, RunFile, RunWriter, lock_run_file
from mechinterp.torch_state import unwrapped
from mechinterp.tracking import TrackerName, start_tracker
from mechinterp.training.recording import environment

_MOST = 1 << 60
"""No step is as large."""
_FIRST_ROOM, _FIRST_BYTES = 64, 256 << 20
"""The most checkpoints, and bytes, for which room is made first; it doubles where it is used up."""


@dataclass(frozen=True)
class Schedule:
    """The steps that a recorder saves: the union of the rules, and the last step of the loop."""

    every: int | None = 100
    """Multiples of this number, and step 0."""
    per_decade: int | None = None
    """So many logarithmically spaced steps per decade."""
    at: tuple[int, ...] = ()
    """These very steps."""

    def __post_init__(self) -> None:
        for name in ("every", "per_decade"):
            if getattr(self, name) is not None:
                require_integer(f"Schedule.{name}", getattr(self, name))
        if not isinstance(self.at, Iterable):
            raise MechinterpError(f"Schedule.at is {self.at!r}; give the steps as a tuple")
        object.__setattr__(self, "at", tuple(require_integer("a step of Schedule.at", step, 0) for step in self.at))
        if not (self.every or self.per_decade or self.at):
            raise MechinterpError("Schedule saves no step; give every, per_decade or at")

    def saves(self, step: int) -> bool:
        """Whether a step is saved."""
        if step == 0 or step in self.at or (self.every and step % self.every == 0):
            return True
        if not self.per_decade:
            return False
        near = int(self.per_decade * math.log10(step))
        return any(logarithmic_step(index, self.per_decade) == step for index in (near, near + 1))


def record(
    path: str | Path,
    model: nn.Module,
    *,
    schedule: Schedule | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    resume: bool = False,
    overwrite: bool = False,
    network: object | None = None,
    track: TrackerName | None = None,
) -> "Recorder":
    """A recorder of a module's checkpoints; use it as a context, or call its `close` at the end.

    The file at `path` appears with the first checkpoint. An existing one is refused, unless `overwrite` replaces it, or
    `resume` goes on with it: the last checkpoint is then loaded into `model` and `optimizer`, and `last_step` is its
    step (−1 where there is no file yet). The state of random numbers, data loaders and learning-rate schedulers is the
    loop's own affair.

    A HookedTransformer, a GPT-2 or a GPT-NeoX is recognised by its parameters and settings (`models.foreign`), and the
    run opens with all circuit analyses. `network` gives the settings where the module does not have them as ``cfg`` or
    ``config``. `track` sends the numbers of every checkpoint to an experiment tracker (`mechinterp.tracking`).
    """
    if not isinstance(model, nn.Module):
        raise MechinterpError(f"record takes a torch.nn.Module; got a {type(model).__name__}")
    if resume and overwrite:
        raise MechinterpError("resume and overwrite exclude each other; give one of them")
    schedule = Schedule() if schedule is None else schedule
    for name, value, kind in (("schedule", schedule, Schedule), ("optimizer", optimizer, torch.optim.Optimizer)):
        if value is not None and not isinstance(value, kind):
            raise MechinterpError(f"{name} is {str(value)[:80]}; expected a {kind.__module__}.{kind.__qualname__}")
    return Recorder(
        Path(path), model, schedule, optimizer, resume=resume, overwrite=overwrite, network=network, track=track
    )


@dataclass
class Recorder:
    """Saves the checkpoints of a loop; made by `record`."""

    path: Path
    model: nn.Module = field(repr=False)
    schedule: Schedule
    optimizer: torch.optim.Optimizer | None = field(repr=False)
    resume: bool = field(kw_only=True)
    overwrite: bool = field(kw_only=True)
    network: object | None = field(kw_only=True, repr=False)
    track: TrackerName | None = field(kw_only=True)

    def __post_init__(self) -> None:
        self.last_step = -1
        """The last step that the recorder was called with, or that the resumed file has; −1 before the first."""
        self._saved, self._closed, self._process = -1, False, os.getpid()
        self._writer: RunWriter | None = None
        self._metrics: Mapping[str, Any] = {}
        self._names = parameter_names(self.model)
        self._left_out: dict[str, Tensor] | None = None
        self._tracker = None
        if self.resume and self.path.exists():
            self._go_on()
        elif self.path.exists() and not self.overwrite:
            raise RunFileError(
                f"{self.path}: exists already; go on with it (resume=True) or replace it (overwrite=True)"
            )
        try:
            self._tracker = start_tracker(self.track, self.path, {}) if self.track else None
        except MechinterpError as error:
            self.close(error)
            raise

    def __call__(self, step: int, **metrics: Any) -> None:
        """Save the model as it is now, with these numbers, if the schedule saves this step; steps must ascend."""
        if not isinstance(step, int):
            step = require_integer("step", step, 0)
        if not self.last_step < step < _MOST:
            step = require_integer("step", step, 0)
            raise MechinterpError(f"{self.path}: step {step} does not follow step {self.last_step}, the last one")
        self.last_step, self._metrics = step, metrics
        if self.schedule.saves(step):
            self.save()

    def save(self) -> None:
        """Save the model as it is now, under the step of the last call, also where the schedule does not."""
        step = require_integer("step", self.last_step, 0)
        if self._closed:
            raise MechinterpError(
                f"{self.path}: its recorder is closed; go on with mi.record(path, model, resume=True)"
            )
        if step == self._saved:
            return
        state_dict = unwrapped(self.model).state_dict()
        if self._left_out is None:
            names = constants_of(state_dict, self._names.values())
            self._left_out = {name: state_dict[name].detach().cpu().clone() for name in names}
        require_constant(self._left_out, state_dict, f"{self.path}, step {step}")
        values = stored_state(state_dict, self._left_out)
        metrics = {name: require_number(f"the metric {name}", value) for name, value in self._metrics.items()}
        state = optimizer_state(self.optimizer, self._names) if self.optimizer else {}
        if self._writer is None:
            self._writer = self._new_writer(values, (*self._left_out,), tuple(metrics), state)
        contents = self._writer.header.contents
        if "present" in state.keys() & contents.optimizer.keys():
            now, before = len(state["present"]), contents.optimizer["present"].shape[0]
            if now != before:
                raise MechinterpError(
                    f"{self.path}: the optimizer has {now} parameters at step {step}, and had {before}; record what"
                    " follows into another file"
                )
        further = {name: value for name, value in state.items() if name not in contents.optimizer}
        if further or not metrics.keys() <= {*contents.metrics}:
            self._writer.extend(metrics, layout_of(further))
        absent = {
            name: torch.from_numpy(np.zeros(array.shape, array.dtype))
            for name, array in self._writer.header.contents.optimizer.items()
            if name not in state
        }
        self._writer.append(step, values, metrics, optimizer=state | absent)
        self._saved = step
        if self._tracker:
            self._tracker.log(step, metrics)

    def close(self, error: BaseException | None = None) -> None:
        """Save the last step, if it was not, and record that the run is complete, or how `error` ended it.

        Of a process that was forked from the loop's, nothing is closed.
        """
        if os.getpid() != self._process:
            return
        try:
            if error is None and self.last_step > self._saved and not self._closed:
                self.save()
        except BaseException as fault:
            error = fault
            raise
        finally:
            self._closed = True
            if self._writer is not None:
                self._writer.close(error)
                self._writer = None
            if self._tracker is not None:
                self._tracker.finish()
                self._tracker = None

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def _new_writer(
        self,
        values: Mapping[str, Tensor],
        left_out: tuple[str, ...],
        metrics: tuple[str, ...],
        state: dict[str, Tensor],
    ) -> RunWriter:
        """The writer of a new file."""
        contents = Contents.checked(self.path, weights=layout_of(values), metrics=metrics, optimizer=layout_of(state))
        origin = origin_of(
            "recorded",
            values,
            left_out,
            module=self.model,
            settings=self.network,
            given=self.network is not None,
        )
        row = sum(array.row_bytes for array in [*contents.weights.values(), *contents.optimizer.values()])
        room = max(1, min(_FIRST_ROOM, _FIRST_BYTES // max(row, 1)))
        return RunWriter(self.path, new_header(contents, origin, room), overwrite=self.overwrite)

    def _go_on(self) -> None:
        """Load the last checkpoint and go on with its file."""
        lock = lock_run_file(self.path)
        try:
            file = RunFile(self.path)
            if file.origin is None:
                raise RunFileError(f"{self.path}: was trained by this package; go on with mi.resume, or record another")
            last, weights, left_out = file.steps[-1], file.weights(file.steps[-1]), file.origin.left_out
            self._require_same_network(file, left_out)
            if self.optimizer is not None:
                state = file.optimizer_state(last)
                if not state:
                    raise RunFileError(f"{self.path}: has no optimizer state; resume without optimizer")
                load_optimizer(self.optimizer, state, self._names, str(self.path))
            load_weights(self.model, weights, left_out, str(self.path))
            state_dict = unwrapped(self.model).state_dict()
            self._left_out = {name: state_dict[name].detach().cpu().clone() for name in left_out if name in state_dict}
            self._writer = RunWriter.continuing(
                file,
                lock,
                checkpoints=len(file.steps) + 1,
                series_rows=0,
                config=None,
                environment=environment(),
            )
        except BaseException:
            lock.release()
            raise
        self.last_step = self._saved = last

    def _require_same_network(self, file: RunFile, left_out: Collection[str]) -> None:
        """RunFileError if the module has other parameters than the file, or settings of another network."""
        state_dict = unwrapped(self.model).state_dict()
        constants = {*left_out, *constants_of(state_dict, self._names.values())} - file.header.contents.weights.keys()
        there, here = file.header.contents.weights, layout_of(stored_state(state_dict, constants))
        for name in sorted(there.keys() | here.keys()):
            if name not in there or name not in here:
                what = "not in the file" if name in here else "not in the module"
                raise RunFileError(f"{self.path}: {name} is {what}; resume the network that was recorded")
            if (there[name].shape, there[name].dtype) != (here[name].shape, here[name].dtype):
                raise RunFileError(
                    f"{self.path}: {name} is {there[name].shape} {there[name].dtype}, in the module {here[name].shape}"
                    f" {here[name].dtype}; resume the network that was recorded"
                )
        network = file.origin.network if file.origin else None
        settings = self.network if self.network is not None else settings_of(unwrapped(self.model))
        if network is None:
            return
        shapes = {name: tuple(array.shape) for name, array in here.items()}
        if recognise(shapes, settings).to_json() != network:
            raise RunFileError(f"{self.path}: is of a network with other settings; record this one into another file")
