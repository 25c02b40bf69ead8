"""Verification of a run file: format, checksums, digests, metrics, and the replay of one interval."""

import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mechinterp.config import CustomTaskConfig
from mechinterp.errors import RunFileError, unknown_name
from mechinterp.run import Run, replay
from mechinterp.store import RunFile
from mechinterp.store.schema import digest


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


def verify(path: str | Path, *, interval: int | None = None) -> Verification:
    """The verification of a run file and its side file: strict format, all checksums and digests, a replayed interval.

    `interval` is the saved step from which to replay to the next one; by default it is chosen at random. A replay in
    another environment is allowed to deviate in the last bits, and is then reported as approximate.
    """
    if not Path(path).is_file():
        Run(path)  # raises, with the reason
    checked, replayed = 0, "was not reached"
    try:
        run = Run(path)
        for file in filter(None, (run.file, run.side_file)):
            checked += _check_file(file)
        replayed = _replay(run, interval)
    except RunFileError as error:
        return Verification(str(path), False, str(error), checked, replayed)
    return Verification(str(path), True, None, checked, replayed)


def _check_file(file: RunFile) -> int:
    """The number of checkpoints, after all data have been read and checked."""
    steps, metrics = file.steps, file.metrics()
    _ = file.status
    for step in steps:
        weights = file.weights(step)
        if digest(weights).hex() != file.digest(step):
            raise RunFileError(f"{file.path}: the weights of step {step} do not match their digest")
        if step != steps[0] and not np.isfinite(metrics.loc[step, ["train_loss", "train_accuracy"]].to_numpy()).all():
            raise RunFileError(f"{file.path}: the metrics of step {step} are not finite")
    return len(steps)


def _replay(run: Run, interval: int | None) -> str:
    """The result of a replay from a saved step to the next."""
    saved = run.file.steps
    if isinstance(run.config.task, CustomTaskConfig):
        return f"was left out: the task {run.config.task.name!r} is not in the file"
    run.require_checkpoint()
    if len(saved) < 2:
        return "was left out: there is only one checkpoint"
    start = secrets.choice(saved[:-1]) if interval is None else interval
    if start not in saved[:-1]:
        raise unknown_name("interval", start, saved[:-1])
    check = replay(run, [start], lambda step, weights, metrics: None)
    if not check.exact and not check.environment_changes:
        raise RunFileError(f"{run.path}: replay from step {start} is {check}")
    return f"from step {start:,} is {check}"
