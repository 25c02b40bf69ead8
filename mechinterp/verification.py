"""Verification of a run file: format, checksums, digests, schedule, metrics, and the replay of one interval."""

import secrets
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from mechinterp.config import CustomTaskConfig
from mechinterp.errors import RunFileError, UnknownNameError
from mechinterp.files import require_path
from mechinterp.models.foreign import ForeignNetwork
from mechinterp.run import Run, open_run, replay
from mechinterp.store import RunFile
from mechinterp.store.hdf5 import require_same_hdf5

MOST_DEVIATION = 0.01
"""A replay in another environment may deviate by this share of the largest change of a weight in the interval: last
bits differ by 10⁻⁷, and grow; other data, settings or weights change everything."""
MOST_STEPS = 20_000
"""The longest interval that is replayed without being named: a file may claim any."""


@dataclass(frozen=True)
class Verification:
    """The result of `verify` for a run file."""

    run: str
    """The file."""
    sound: bool
    """Whether no fault was found."""
    fault: str | None
    """The first fault, with its step and name."""
    checkpoints: int
    """Checkpoints whose weights were read and compared with their digests."""
    replay: str
    """The result of the replay, or the reason why there was none."""

    def to_dict(self) -> dict[str, object]:
        """The fields as values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.fault:
            return f"not sound: {self.fault}"
        return f"{self.run}: sound; {self.checkpoints} checkpoints match their digests; replay {self.replay}"


def verify(path: str | Path, *, interval: int | str | None = None) -> Verification:
    """The verification of a run file and its side file: strict format, all checksums and digests, a replayed interval.

    `interval` is the saved step from which to replay to the next one; by default one of at most `MOST_STEPS` is
    chosen at random. A replay in another environment is allowed to deviate a little (`MOST_DEVIATION`), and is then
    reported as approximate.
    """
    if not require_path(path).is_file():
        open_run(path)  # raises, with the reason
    checked, replayed = 0, "was not reached"
    try:
        run = open_run(path)
        for file in filter(None, (run.file, run.side_file)):
            checked += _check_file(file)
        if run.origin is None:
            _check_schedule(run.file)
        replayed = _replay(run, interval)
    except RunFileError as error:
        return Verification(str(path), False, str(error), checked, replayed)
    return Verification(str(path), True, None, checked, replayed)


def _check_file(file: RunFile) -> int:
    """The number of checkpoints, after all data have been read and checked."""
    require_same_hdf5(file.path, file.header)
    steps, metrics = file.steps, file.metrics()
    _ = file.status, file.series()
    for step in steps:
        file.weights(step)  # raises if they do not match their digest
    if file.origin is not None:
        if file.origin.network is not None:
            ForeignNetwork.from_json(file.origin.network)
        return len(steps)  # what its numbers mean is not known
    trained = metrics.loc[metrics.index > steps[0], ["train_loss", "train_accuracy"]]
    for step in trained.index[~np.isfinite(trained.to_numpy()).all(axis=1)][:1]:
        raise RunFileError(f"{file.path}: the metrics of step {step} are not finite")
    return len(steps)


def _check_schedule(file: RunFile) -> None:
    """RunFileError unless the saved steps are those that the config saves."""
    steps, config, last = file.steps, file.config, file.steps[-1]
    end, rules = config.training.steps, (config.training.stop_accuracy, config.training.stop_plateau)
    if last > end:
        raise RunFileError(f"{file.path}: holds step {last}, beyond the last one of its config ({end})")
    if file.status == "complete" and last < end and rules == (None, None):
        raise RunFileError(f"{file.path}: is complete at step {last}, before the last one of its config ({end})")
    missing = {step for step in config.checkpoints.schedule(end) if step <= last} - {*steps}
    if missing and file.header.kept == "all":
        raise RunFileError(f"{file.path}: lacks step {min(missing)}, which its config saves")


def _replay(run: Run, interval: int | str | None) -> str:
    """The result of a replay from a saved step to the next."""
    saved = run.file.steps
    if run.origin is not None:
        return f"was left out: {run.origin.how} elsewhere: no replay"
    if isinstance(run.config.task, CustomTaskConfig):
        return f"was left out: the task {run.config.task.name!r} is not in the file"
    if len(saved) < 2:
        return "was left out: there is only one checkpoint"
    short = [start for start, stop in pairwise(saved) if stop - start <= MOST_STEPS]
    if interval is None and not short:
        return f"was left out: no interval has {MOST_STEPS:,} steps or fewer; name one (--interval {saved[-2]})"
    start = secrets.choice(short) if interval is None else run.numbered(interval)
    if start not in saved[:-1]:
        near = min(saved[:-1], key=lambda step: abs(step - start))
        raise UnknownNameError(f"{run.path}: no interval begins at step {start}; the nearest begins at {near}")
    check = replay(run, [start], lambda step, weights, metrics: None)
    if not check.exact and (not check.environment_changes or check.relative_deviation > MOST_DEVIATION):
        raise RunFileError(f"{run.path}: replay from step {start} is {check}")
    if check.wrong_metrics is not None:
        raise RunFileError(
            f"{run.path}: the metrics or the series of step {check.wrong_metrics} are not those of the replay"
        )
    return f"from step {start:,} is {check}"
