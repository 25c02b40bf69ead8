"""What training records in a run file, and the writers of such files.

At a checkpoint: the parameters, and `METRICS` of the batches since the checkpoint before; for every update: `SERIES`.
"""

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import torch
from llvmlite.binding import get_host_cpu_name

from mechinterp.config import RunConfig
from mechinterp.files import FileLock
from mechinterp.models.registry import parameter_shapes
from mechinterp.store import Array, Contents, Header, RunFile, RunWriter
from mechinterp.training.optimizers import moment_shapes
from mechinterp.training.spikes import SPIKES, STATE

METRICS = ("train_loss", "train_accuracy", *SPIKES, *STATE)
"""Of the training batches since the previous checkpoint: mean loss and accuracy; the number of loss spikes, and step
and loss of the highest, 0 without one; and two means and the variance of the loss, from which spikes are told
(`training.spikes`). Not a number at step 0, except the counts."""
SERIES = ("train_loss", "train_accuracy", "gradient_norm")
"""Of the batch of a single update, as 32-bit floats: the fields of `engines.base.StepResult`, in order."""
_SERIES_ROWS = 1 << 22
"""The longest series: of a longer run, it has every so-manyth update."""
_FIRST_ROOM = 64
"""Checkpoints for which room is made first in a run that its stop rule may end at any of them."""


_version = cache(version)  # it reads files, which takes a millisecond


def environment(device: str = "cpu") -> dict[str, str]:
    """The properties on which the bits of a run depend: package versions, processor and number of threads."""
    return {
        "mechinterp": _version("mechinterp"),
        "torch": torch.__version__,
        **{package: _version(package) for package in ("numpy", "numba", "scipy", "h5py")},
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
        "cpu": get_host_cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "threads": str(torch.get_num_threads()),
    }


def new_run_file(
    path: str | Path, config: RunConfig, *, overwrite: bool = False, engine: str = "", device: str = "cpu"
) -> RunWriter:
    """The writer of a new run's file, with room for the checkpoints of its schedule."""
    steps = config.training.steps
    stops = config.training.stop_accuracy is not None or config.training.stop_plateau is not None
    scheduled = len(config.checkpoints.schedule(steps))
    every = max(1, -(-steps // _SERIES_ROWS))
    moments = moment_shapes(config.training, parameter_shapes(config))
    contents = _contents(config).model_copy(
        update={
            "series": {name: Array(shape=()) for name in SERIES} if steps else {},
            "series_every": every,
            "optimizer": {name: Array(shape=shape) for name, shape in moments.items()},
            "optimizer_every": config.checkpoints.optimizer_every,
        }
    )
    header = Header(
        id=uuid4().hex,
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
        config=json.loads(config.canonical_json()),
        environments={"0": {**environment(device), "engine": engine}},
        capacity=min(scheduled, _FIRST_ROOM) if stops else scheduled,
        series_rows=steps // every,
        contents=contents,
    )
    return RunWriter(path, header, overwrite=overwrite)


def continued_run_file(
    file: RunFile, lock: FileLock, config: RunConfig, end: int, *, engine: str, device: str
) -> RunWriter:
    """The writer that goes on with a run's file, under a config that may prolong it, up to step `end`."""
    last, steps = file.steps[-1], config.training.steps
    more = sum(last < step < end for step in config.checkpoints.schedule(steps)) + (end > last)
    return RunWriter.continuing(
        file,
        lock,
        checkpoints=len(file.steps) + more,
        series_rows=max(end, last) // file.header.contents.series_every if file.header.contents.series else 0,
        config=json.loads(config.canonical_json()),
        environment={**environment(device), "engine": engine},
    )


def new_side_file(path: Path, run: RunFile, n_checkpoints: int, lock: FileLock) -> RunWriter:
    """The writer of the file of a run's rebuilt steps, which appears when it is complete."""
    update = {"side_of": run.header.id, "capacity": n_checkpoints, "series_rows": 0, "contents": _contents(run.config)}
    return RunWriter(path, run.header.model_copy(update=update), overwrite=True, lock=lock, live=False)


def _contents(config: RunConfig) -> Contents:
    shapes: Mapping[str, tuple[int, ...]] = parameter_shapes(config)
    return Contents(weights={name: Array(shape=tuple(shape)) for name, shape in shapes.items()}, metrics=METRICS)
