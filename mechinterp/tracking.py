"""Experiment trackers: Weights & Biases, trackio and TensorBoard get the numbers of a run while it trains.

None is used unless it is asked for, and each writes to this machine: wandb offline unless WANDB_MODE says otherwise,
trackio to its local database, TensorBoard to the folder ``RUN.tensorboard`` beside the run file. What a tracker does
never reaches the run: one that fails is given up, with a line on standard error.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.progress import say

TrackerName = Literal["wandb", "trackio", "tensorboard"]

PROJECT = "mechinterp"
"""The project of runs in wandb and trackio; WANDB_PROJECT names another one of wandb."""
MOST_POINTS = 1_000
"""The most updates of a run whose numbers are sent, beside those of its checkpoints."""


@runtime_checkable
class _Backend(Protocol):
    """A tracker that has been started."""

    def log(self, step: int, values: Mapping[str, float]) -> object: ...

    def finish(self) -> object: ...


class Tracker:
    """A started tracker. Its failure is said once, and it is then left alone."""

    def __init__(self, name: str, backend: _Backend):
        self._name, self._backend = name, backend
        self._failed = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers of a training step, by name; steps ascend. Those that are not finite are left out."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        if finite:
            self._attempt(lambda: self._backend.log(step, finite))

    def finish(self) -> None:
        """End the tracker's run, so that all that was sent is written."""
        self._attempt(self._backend.finish)

    def _attempt(self, call: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            with redirect_stdout(sys.stderr):  # results alone are on standard output
                call()
        except Exception as error:
            self._failed = True
            say(f"{self._name}: {type(error).__name__}: {error}; the run goes on without it")


def start_tracker(name: TrackerName, run_path: str | Path, config: Mapping[str, Any]) -> Tracker:
    """The tracker of a run, started with the run's config. One that cannot be started raises MechinterpError."""
    start = require_tracker(name)
    try:
        with redirect_stdout(sys.stderr):
            return Tracker(name, start(Path(run_path), dict(config)))
    except Exception as error:
        raise MechinterpError(
            f"{name} cannot be started ({type(error).__name__}: {error}); mend that, or train without track"
        ) from None


@contextmanager
def tracking(name: TrackerName | None, run_path: str | Path, config: Mapping[str, Any]) -> Iterator[Tracker | None]:
    """The tracker of a run, which is finished when the run ends, however it ends; None without a name."""
    tracker = start_tracker(name, run_path, config) if name else None
    try:
        yield tracker
    finally:
        if tracker:
            tracker.finish()


def require_tracker(name: str) -> Callable[[Path, dict[str, Any]], _Backend]:
    """What starts a tracker; MechinterpError for an unknown one, or one whose package is not installed."""
    if name not in _TRACKERS:
        raise unknown_name("tracker", name, _TRACKERS)
    if name not in sys.modules and find_spec(name) is None:
        raise MechinterpError(f"{name} is not installed; run: pip install 'mechinterp[{name}]'")
    return _TRACKERS[name]


class _Wandb:
    """A run of Weights & Biases in the folder ``wandb`` beside the run file."""

    def __init__(self, run_path: Path, config: dict[str, Any]):
        wandb = import_module("wandb")
        run_path.parent.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_path.stem,
            dir=str(run_path.parent),
            config=config,
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(console="off"),  # which would take over standard output
        )

    def log(self, step: int, values: Mapping[str, float]) -> object:
        return self._run.log(dict(values), step=step)

    def finish(self) -> object:
        return self._run.finish()


class _Trackio:
    """A run in trackio's local database, which ``trackio show`` displays."""

    def __init__(self, run_path: Path, config: dict[str, Any]):
        self._trackio = import_module("trackio")
        self._trackio.init(project=PROJECT, name=run_path.stem, config=config, embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> object:
        return self._trackio.log(dict(values), step=step)

    def finish(self) -> object:
        return self._trackio.finish()


class _TensorBoard:
    """An event file, which ``tensorboard --logdir FOLDER`` displays."""

    def __init__(self, run_path: Path, config: dict[str, Any]):
        folder = run_path.with_suffix(".tensorboard")
        self._writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder))
        self._writer.add_text("config", "\n".join(f"    {name} = {value}" for name, value in config.items()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> object:
        return self._writer.close()


_TRACKERS: dict[str, Callable[[Path, dict[str, Any]], _Backend]] = {
    "wandb": _Wandb,
    "trackio": _Trackio,
    "tensorboard": _TensorBoard,
}
