"""Writing of a run file: whole checkpoints, one at a time, in a file that can be read while it grows.

The weights, metrics and digest of a checkpoint are written first; then /step grows by one row, which commits them. The
file is in SWMR mode (single writer, many readers) as soon as it is visible: it is made under a temporary name and
renamed when it has its first checkpoint.
"""

import contextlib
import fcntl
import json
import math
import os
import resource
import shutil
import struct
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import BusyError, DivergedError, MechinterpError, RunFileError
from mechinterp.store.file import RunFile
from mechinterp.store.schema import FORMAT, METRICS, SCHEMA_VERSION, STATUSES, dense_path, digest, environment, layout

_HEADROOM = 1 << 20
"""Bytes that must stay free beyond those of a checkpoint, because HDF5 crashes the interpreter on a full disk."""


class RunWriter:
    """Appends checkpoints to a run file; a context manager that records how the run ended.

    If it `continues` a run file, the committed checkpoints of that file are copied first, of these steps `only` if
    given, and the new file replaces it. Its last step must be `last` when this writer has locked it, else BusyError.
    `created` overrides the date: a side file has that of its run. A file that is not `live` appears once complete.
    """

    def __init__(
        self,
        path: str | Path,
        config: RunConfig,
        *,
        overwrite: bool = False,
        continues: RunFile | None = None,
        last: int | None = None,
        only: Collection[int] | None = None,
        engine: str = "",
        device: str = "cpu",
        created: str | None = None,
        live: bool = True,
    ):
        self.path, self._live = Path(path).resolve(), live  # a link stays a link
        self._fresh = live and continues is None
        self._layout = layout(config)
        self._bytes = sum(dataset.dtype.itemsize * math.prod(dataset.shape) for dataset in self._layout.values())
        require_writable(self.path, overwrite or continues is not None)
        self._temporary = self.path.with_name(f".{self.path.name}.part")
        if self.path.exists():
            require_unwritten(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        copied = () if continues is None else continues.steps if only is None else only
        self._require_space(self.path.parent, 2 + len(copied))
        self._claim = _claim(self._temporary, self.path)
        if continues and last is not None and continues.steps[-1] != last:
            os.close(self._claim)
            raise BusyError(f"{self.path}: another process has gone on with it meanwhile; look at it again")
        self._file = h5py.File(self._temporary, "w", libver=("v110", "v110"))
        try:
            about = continues.created if continues else created
            environments = dict(continues.environments) if continues else {}
            now = {**environment(device), "engine": engine}
            if not continues or continues.environment != now:
                environments[str(continues.steps[-1] if continues else 0)] = now
            self._create(config, environments, about or datetime.now(UTC).isoformat(timespec="microseconds"))
            if continues:
                self._copy(continues, copied)
        except BaseException:
            self._file.close()
            self._temporary.unlink(missing_ok=True)
            os.close(self._claim)
            raise

    def _create(self, config: RunConfig, environments: dict[str, dict[str, str]], created: str) -> None:
        about = {
            "format": FORMAT,
            "schema_version": str(SCHEMA_VERSION),
            "config": config.canonical_json(),
            "environments": json.dumps(environments, sort_keys=True),
            "created": created,
        }
        for name, text in about.items():
            self._file.attrs[name] = np.bytes_(text.encode())
        self._handles = {
            dataset.name: self._file.create_dataset(
                dataset.name,
                shape=(0, *dataset.shape),
                maxshape=(None, *dataset.shape),
                chunks=(dataset.chunk_rows, *dataset.shape),
                dtype=dataset.dtype,
                fletcher32=True,
            ).id
            for dataset in self._layout.values()
        }
        self._file.create_dataset("status", data=np.zeros(1, "<i8"))
        self._file.swmr_mode = True

    def _copy(self, source: RunFile, steps: Collection[int]) -> None:
        """Copy committed checkpoints of a file, and replace it."""
        metrics = source.metrics()
        for step in steps:
            weights = source.weights(step)
            if digest(weights).hex() != source.digest(step):
                raise RunFileError(
                    f"{source.path}: the weights of step {step} do not match their digest; it is damaged"
                )
            self._write(step, weights, metrics.loc[step].to_dict())
        self._publish()

    def append(self, step: int, parameters: Mapping[str, Tensor], metrics: Mapping[str, float]) -> None:
        """Commit the checkpoint of `step`. Weights that are not finite are refused: nothing is written."""
        for name, value in parameters.items():
            if not bool(value.isfinite().all()):
                raise DivergedError(
                    f"{self.path}: {name} is not finite at step {step}; lower training.learning_rate."
                    " Earlier checkpoints are kept"
                )
        self._require_space(self._temporary if self._temporary.exists() else self.path, 2)
        self._write(step, parameters, metrics)
        if self._live:
            self._publish()

    def _write(self, step: int, parameters: Mapping[str, Tensor], metrics: Mapping[str, float]) -> None:
        """Write all of a checkpoint, and then /step."""
        for name, value in parameters.items():
            self._extend(f"weights/{name}", value.detach().cpu().numpy())
        for name in METRICS:
            self._extend(f"metrics/{name}", np.float64(metrics.get(name, math.nan)))
        self._extend("digest", np.frombuffer(digest(parameters), dtype="u1"))
        self._file.flush()
        self._extend("step", np.int64(step))

    def _publish(self) -> None:
        """Sync the file to disk, which HDF5 itself does not do, and give it its name."""
        self._sync()
        if self._temporary.exists():
            if self._fresh:
                dense_path(self.path).unlink(missing_ok=True)  # of the run that is replaced
            os.replace(self._temporary, self.path)

    def _extend(self, name: str, row: np.ndarray | np.generic) -> None:
        """Add a row to a dataset, by its low-level handle: h5py's indexing takes longer than the writing."""
        dataset = self._handles[name]
        length, *shape = dataset.shape
        if np.shape(row) != tuple(shape):
            raise MechinterpError(f"{self.path}: a row of /{name} has shape {np.shape(row)}, expected {tuple(shape)}")
        dataset.set_extent((length + 1, *shape))
        space = dataset.get_space()
        space.select_hyperslab((length, *(0 for _ in shape)), (1, *shape))
        values = np.ascontiguousarray(row, dataset.dtype)
        dataset.write(h5py.h5s.create_simple((1, *shape)), space, values)

    def finish(self, status: str) -> None:
        """Record how the run ended and close the file."""
        if not self._file:
            return
        status_row = self._file["status"]
        assert isinstance(status_row, h5py.Dataset)
        status_row[0] = STATUSES.index(status)
        if status == "complete":
            self._publish()
        else:
            self._sync()
        self._file.close()
        self._temporary.unlink(missing_ok=True)
        os.close(self._claim)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.id.get_vfd_handle())

    def _require_space(self, where: Path, n_checkpoints: int) -> None:
        needed, free = n_checkpoints * self._bytes + _HEADROOM, shutil.disk_usage(where).free
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit != resource.RLIM_INFINITY and where.is_file():
            free = min(free, limit - where.stat().st_size)
        if free < needed:
            raise RunFileError(
                f"{self.path}: no room for another checkpoint ({needed / 1e6:.1f} MB needed, {max(free, 0) / 1e6:.1f}"
                " MB free); free some space. Everything committed so far is kept"
            )

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Close the file and record that the run is complete, or how `error` ended it."""
        if error is None:
            self.finish("complete")
        elif isinstance(error, KeyboardInterrupt):
            self.finish("interrupted")
        else:
            with contextlib.suppress(OSError, RuntimeError):  # the first error is the one to report
                self.finish("diverged" if isinstance(error, DivergedError) else "failed")


def keep_last(path: Path) -> None:
    """Delete all checkpoints of a complete run but the last. A file with one checkpoint is not touched."""
    file = RunFile(path)
    if len(file.steps) > 1:
        last, engine = file.steps[-1], file.environment.get("engine", "")
        RunWriter(path, file.config, continues=file, last=last, only=[last], engine=engine).close()


def require_unwritten(path: Path) -> None:
    """Refuse a file that another process is writing."""
    os.close(_claim(path, path))


def _claim(path: Path, named: Path) -> int:
    """The descriptor of a file that is now locked for its writer; BusyError, which names `named`, if it is locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor)
    except OSError:
        os.close(descriptor)
        raise BusyError(f"{named}: is being written by another process; wait for it to end") from None
    return descriptor


def _lock(descriptor: int) -> None:
    """Lock an open file, where the system has locks of open files (Linux); OSError if another process has locked it.

    The lock does not depend on those of HDF5, which SWMR gives up. It ends with the process, also if that is killed.
    """
    if hasattr(fcntl, "F_OFD_SETLK"):
        request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)


def require_writable(path: Path, overwrite: bool) -> None:
    """Refuse a path that exists (unless `overwrite`), is a folder, or whose folder cannot be written."""
    if path.is_dir():
        raise RunFileError(f"{path}: is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise RunFileError(f"{path}: exists already; choose another file or pass --overwrite (overwrite=True)")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise RunFileError(f"{path}: {folder} is a file, not a folder; choose another place")
    if not os.access(folder, os.W_OK):
        raise RunFileError(f"{path}: the folder {folder} cannot be written; choose another place")
