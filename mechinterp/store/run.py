"""A run: its trajectory, the task, and the model at any step. Works while the run is still training.

A run file may have a side file beside it (``fast.dense.h5`` beside ``fast.h5``) that holds steps rebuilt between the
saved ones; the two are read as one trajectory.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from torch import Tensor

from mechinterp.config import ConfigError
from mechinterp.errors import MechinterpError, RunFileError, UnknownNameError
from mechinterp.store.file import RunFile
from mechinterp.store.schema import dense_path
from mechinterp.tasks.base import Task

if TYPE_CHECKING:
    from mechinterp.emergence import Emergence
    from mechinterp.models.transformer import VectorTransformer
    from mechinterp.training.replay import Proof


class ApproximateReplayWarning(UserWarning):
    """A step was rebuilt, but not bit for bit."""


def open_run(path: str | Path, *, task: Task | None = None) -> "Run":
    """Open a run file, also while it is being written. A run on a task of your own needs that `task`."""
    return Run(path, task=task)


def open_runs(paths: Sequence[Path]) -> dict[str, "Run"]:
    """The runs, by file name (by path where names repeat); at least one is needed, and each with a checkpoint."""
    if not paths:
        raise MechinterpError("name at least one run file")
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(path.with_suffix("")).replace("/", "-") for path in paths]
    runs = {name: open_run(path) for name, path in zip(names, paths, strict=True)}
    for run in runs.values():
        if not run.steps:
            raise MechinterpError(f"{run.path}: holds no checkpoint; train it anew")
    return runs


class Run:
    """A trajectory: the config of a run and its weights at any step up to the last saved one."""

    def __init__(self, path: str | Path, *, task: Task | None = None):
        self.path = Path(path)
        self.file = RunFile(self.path)
        self.config, self.environment, self.created = self.file.config, self.file.environment, self.file.created
        if task is not None:
            _check_task(self, task)
        self._task = task
        self._dense: RunFile | None = None
        self._dense = self._side_file()

    @property
    def dense_path(self) -> Path:
        """Where the side file of rebuilt steps lies, if there is one."""
        return dense_path(self.path)

    @property
    def steps(self) -> list[int]:
        """The stored steps, ascending. Step s is the state after s updates."""
        return sorted({*self.file.steps, *(self._dense.steps if self._dense else ())})

    @property
    def status(self) -> str:
        """ "complete", "interrupted", "diverged", "failed" or "running" (also: its writer was killed)."""
        return self.file.status

    @property
    def task(self) -> Task:
        """The task that the run was trained on."""
        if self._task is None:
            try:
                self._task = self.config.build_task()
            except ConfigError as error:
                raise ConfigError(f"{self.path}: {error}") from None
        return self._task

    @property
    def metrics(self) -> pd.DataFrame:
        """Training loss and accuracy by step, each the mean since the stored step before."""
        tables = [self.file.metrics()] + ([self._dense.metrics()] if self._dense else [])
        return pd.concat(tables).sort_index()

    def weights(self, step: int) -> dict[str, Tensor]:
        """The trained parameters at a stored step, by name (float32)."""
        return self._holder(step).weights(step)

    def digest(self, step: int) -> str:
        """SHA-256 of the weights at a stored step, as it was stored when they were written (hexadecimal)."""
        return self._holder(step).digest(step)

    def model(self, step: int) -> "VectorTransformer":
        """The hooked model at any step: loaded if the step is stored, else rebuilt by replaying the training.

        A rebuilt step is proved: the replay runs on to the next saved checkpoint and compares digests. If they
        differ (another machine, or another build of torch) an ApproximateReplayWarning tells the deviation.
        """
        from mechinterp.models.transformer import build_model

        if step in self.steps:
            return build_model(self.config, self.weights(step))
        from mechinterp.training.replay import replay

        kept: dict[int, dict[str, Tensor]] = {}
        proof = replay(self, [step], lambda at, weights, metrics: kept.update({at: weights}))
        if not proof.exact:
            warnings.warn(f"{self.path}: step {step} is {proof}", ApproximateReplayWarning, stacklevel=2)
        return build_model(self.config, kept[step])

    def densify(
        self,
        *,
        around: "Emergence | None" = None,
        start: int | None = None,
        stop: int | None = None,
        every: int = 10,
        progress: bool = False,
    ) -> "Proof":
        """Rebuild every `every`-th step of a stretch of the trajectory and keep them in the side file.

        The stretch is `start` to `stop` (both included, by default the whole run), or one 10–90 % width to either
        side of a located transition (`around`). Returns the proof of the replay; from then on `steps` has them.
        """
        from mechinterp.training.replay import densify

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
        proof = densify(self, range(start, stop + 1, every), progress=progress)
        self._dense = self._side_file()
        return proof

    def _side_file(self) -> RunFile | None:
        if not self.dense_path.exists():
            return None
        side = RunFile(self.dense_path)
        if (side.created, side.config.task) != (self.created, self.config.task):
            raise RunFileError(f"{self.dense_path}: holds steps of another run than {self.path.name}; delete it")
        return side

    def _holder(self, step: int) -> RunFile:
        """The file that stores a step."""
        if step in self.file.steps:
            return self.file
        if self._dense and step in self._dense.steps:
            return self._dense
        steps = self.steps
        if not steps:
            raise UnknownNameError(f"{self.path}: no step is saved yet")
        near = min(steps, key=lambda saved: abs(saved - step))
        raise UnknownNameError(
            f"{self.path}: step {step} is not saved; the nearest is {near}"
            f" ({len(steps)} from {steps[0]} to {steps[-1]})"
        )

    def __repr__(self) -> str:
        steps = self.steps
        return f"Run({str(self.path)!r}, {self.status}, {len(steps)} steps up to {steps[-1] if steps else None})"


def _check_task(run: Run, task: Task) -> None:
    ours = {name: getattr(run.config.task, name) for name in ("d_model", "n_pos", "n_labels")}
    theirs = {name: getattr(task, name) for name in ours}
    if ours != theirs:
        raise RunFileError(f"{run.path}: the run was trained on a task with {ours}, the given task has {theirs}")
