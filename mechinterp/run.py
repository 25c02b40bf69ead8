"""Runs: opening them, and the network at any of their steps.

A run can be opened while it is being written.
"""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mechinterp.config import CustomTaskConfig
from mechinterp.errors import ConfigError, MechinterpError, RunFileError
from mechinterp.models.network import Network
from mechinterp.store import Trajectory
from mechinterp.tasks import Task, build_task
from mechinterp.tasks.registry import config_of_task
from mechinterp.torch_state import torch_defaults
from mechinterp.training.replay import Keep, ReplayCheck, densify, replay_steps

if TYPE_CHECKING:
    from mechinterp.emergence import Emergence
    from mechinterp.models.hooked import HookedNetwork


class ApproximateReplayWarning(UserWarning):
    """Warning that a step was rebuilt, but not bit for bit."""


class Run(Trajectory):
    """A trajectory with its task, and the network at any step up to the last saved one."""

    def __init__(self, path: str | Path, *, task: Task | None = None):
        super().__init__(path)
        self.file.require_network()
        if task is not None:
            _require_same_task(self, task)
        self._task = task

    @property
    def task(self) -> Task:
        """The task that the run was trained on."""
        if self._task is None:
            try:
                self._task = build_task(self.config)
            except ConfigError as error:
                raise ConfigError(f"{self.path}: {error}") from None
        return self._task

    @torch_defaults()
    def network(self, step: int) -> Network:
        """The canonical network at any step: read if the step is stored, else rebuilt by replaying the training.

        The replay continues to the next saved checkpoint and compares digests. If they differ (another machine, or
        another build of torch) an ApproximateReplayWarning tells the deviation.
        """
        if step in self.steps:
            return Network(self.config, self.weights(step))
        rebuilt: dict[int, dict[str, Tensor]] = {}
        check = replay(self, [step], lambda at, weights, metrics: rebuilt.update({at: weights}))
        if not check.exact:
            warnings.warn(f"{self.path}: step {step} is {check}", ApproximateReplayWarning, stacklevel=2)
        return Network(self.config, rebuilt[step])

    @torch_defaults()
    def model(self, step: int) -> "HookedNetwork":
        """The HookedTransformer view of `network` at any step."""
        from mechinterp.models.hooked import HookedNetwork  # imports TransformerLens, which takes seconds

        return HookedNetwork(self.network(step))

    @torch_defaults()
    def densify(
        self,
        *,
        around: "Emergence | None" = None,
        start: int | None = None,
        stop: int | None = None,
        every: int = 10,
        progress: bool = False,
    ) -> ReplayCheck:
        """Rebuild every `every`-th step of an interval and keep them in the side file; returns the replay's check.

        The interval is `start` to `stop` (both included, by default the whole run), or one 10–90 % width to either
        side of a located transition (`around`). The rebuilt steps are then among `steps`.
        """
        saved = self.file.steps
        if around is not None:
            if around.step is None or around.width is None:
                raise MechinterpError(f"{self.path}: there is no transition to densify around ({around.reason})")
            start, stop = int(around.step - around.width), int(around.step + around.width)
            start, stop = max(start, saved[0]), min(stop, saved[-1])
        start, stop = saved[0] if start is None else start, saved[-1] if stop is None else stop
        if every < 1 or not saved[0] <= start <= stop <= saved[-1]:
            raise MechinterpError(
                f"{self.path}: cannot rebuild steps {start} to {stop} every {every}; use a stretch within"
                f" {saved[0]} to {saved[-1]} and every at least 1"
            )
        check = densify(self, self.task, range(start, stop + 1, every), progress=progress)
        self.open_side_file()
        return check

    def __repr__(self) -> str:
        steps = self.steps
        return f"Run({str(self.path)!r}, {self.status}, {len(steps)} steps up to {steps[-1] if steps else None})"


def open_run(path: str | Path, *, task: Task | None = None) -> Run:
    """The run of a file, also while it is being written. A run on a custom task needs that `task`."""
    return Run(path, task=task)


def open_runs(paths: Sequence[Path]) -> dict[str, Run]:
    """The runs, by file name (by path where names repeat); at least one is needed."""
    if not paths:
        raise MechinterpError("name at least one run file")
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(path.with_suffix("")).replace("/", "-") for path in paths]
    runs = {name: open_run(path) for name, path in zip(names, paths, strict=True)}
    return runs


@torch_defaults()
def replay(run: Run, steps: Iterable[int], keep: Keep, *, progress: bool = False) -> ReplayCheck:
    """Rebuild steps of a run and pass them to `keep`; see `training.replay.replay_steps`."""
    return replay_steps(run, run.task, steps, keep, progress=progress)


def _require_same_task(run: Run, task: Task) -> None:
    """RunFileError if a run was trained on another task; of a custom one, the file has the name and shape only."""
    ours = {name: getattr(run.config.task, name) for name in ("d_model", "n_pos", "n_labels")}
    theirs = {name: getattr(task, name) for name in ours}
    if ours != theirs:
        raise RunFileError(f"{run.path}: the run was trained on a task with {ours}, the given task has {theirs}")
    if not isinstance(run.config.task, CustomTaskConfig) and config_of_task(task, run.config) != run.config:
        raise RunFileError(f"{run.path}: the given task is not the one of the run's config; leave `task` out")
