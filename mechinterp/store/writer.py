"""Writing a run: one checkpoint at a time, readable while it grows, never half a checkpoint.

A checkpoint's weights, metrics and digest are written first; then /step grows by one, which commits them. The file
is in SWMR mode (single writer, many readers) from its first visible moment: it is made under a temporary name and
moved to its own when the first checkpoint is in it.
"""

import contextlib
import json
import os
import resource
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import DivergedError, RunFileError
from mechinterp.store.schema import FORMAT, METRICS, SCHEMA_VERSION, STATUSES, digest, environment, layout

_HEADROOM = 1 << 20
"""Bytes that must stay free beyond a checkpoint's own: HDF5 crashes the interpreter on a full disk."""


class RunWriter:
    """Appends checkpoints to a new run file; a context manager that records how the run ended."""

    def __init__(self, path: str | Path, config: RunConfig, *, overwrite: bool = False, engine: str = ""):
        self.path = Path(path)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._layout = layout(config)
        self._bytes = sum(4 * int(np.prod(dataset.shape)) for dataset in self._layout.values())
        require_writable(self.path, overwrite)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._require_space(self.path.parent)
        self._file = h5py.File(self._temporary, "w", libver=("v110", "v110"))
        try:
            self._create(config, engine)
        except BaseException:
            self._file.close()
            self._temporary.unlink(missing_ok=True)
            raise

    def _create(self, config: RunConfig, engine: str) -> None:
        about = {
            "format": FORMAT,
            "schema_version": str(SCHEMA_VERSION),
            "config": config.canonical_json(),
            "environment": json.dumps({**environment(), "engine": engine}, sort_keys=True),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        for name, text in about.items():
            self._file.attrs[name] = np.bytes_(text.encode())
        for dataset in self._layout.values():
            self._file.create_dataset(
                dataset.name,
                shape=(0, *dataset.shape),
                maxshape=(None, *dataset.shape),
                chunks=(dataset.chunk_rows, *dataset.shape),
                dtype=dataset.dtype,
                fletcher32=True,
            )
        self._file.create_dataset("status", data=np.zeros(1, "<i8"), fletcher32=False)
        self._file.swmr_mode = True

    def append(self, step: int, parameters: Mapping[str, Tensor], metrics: Mapping[str, float]) -> None:
        """Commit the checkpoint of `step`. Weights that are not finite are refused: nothing is written."""
        for name, value in parameters.items():
            if not bool(value.isfinite().all()):
                raise DivergedError(f"{self.path}: {name} is not finite at step {step}; {self._advice()}")
        self._require_space(self._temporary if self._temporary.exists() else self.path)
        for name, value in parameters.items():
            self._extend(f"weights/{name}", value.detach().cpu().numpy())
        for name in METRICS:
            self._extend(f"metrics/{name}", np.float64(metrics[name]))
        self._extend("digest", np.frombuffer(digest(parameters), dtype="u1"))
        self._file.flush()
        self._extend("step", np.int64(step))
        self._sync()
        if self._temporary.exists():
            os.replace(self._temporary, self.path)

    def _extend(self, name: str, row: np.ndarray | np.generic) -> None:
        dataset = self._file[name]
        assert isinstance(dataset, h5py.Dataset)
        dataset.resize(len(dataset) + 1, axis=0)
        dataset[-1] = row

    def finish(self, status: str) -> None:
        """Record how the run ended and close the file."""
        if not self._file:
            return
        status_row = self._file["status"]
        assert isinstance(status_row, h5py.Dataset)
        status_row[0] = STATUSES.index(status)
        self._sync()
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _sync(self) -> None:
        """Hand everything to the disk: HDF5 itself never syncs."""
        self._file.flush()
        os.fsync(self._file.id.get_vfd_handle())

    def _require_space(self, where: Path) -> None:
        needed = 2 * self._bytes + _HEADROOM
        free = shutil.disk_usage(where).free
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit != resource.RLIM_INFINITY and where.is_file():
            free = min(free, limit - where.stat().st_size)
        if free < needed:
            raise RunFileError(
                f"{self.path}: no room for another checkpoint ({needed / 1e6:.1f} MB needed, {max(free, 0) / 1e6:.1f}"
                " MB free); free some space. Everything committed so far is kept"
            )

    def _advice(self) -> str:
        return "lower training.learning_rate. Earlier checkpoints are kept"

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish("complete")
        elif isinstance(error, KeyboardInterrupt):
            self.finish("interrupted")
        else:
            with contextlib.suppress(OSError, RuntimeError):  # the first error is the one to show
                self.finish("diverged" if isinstance(error, DivergedError) else "failed")


def require_writable(path: Path, overwrite: bool) -> None:
    """Refuse a path that exists (unless `overwrite`), is a folder, or whose folder cannot be written."""
    if path.is_dir():
        raise RunFileError(f"{path}: is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise RunFileError(f"{path}: exists already; choose another file or pass --overwrite (overwrite=True)")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise RunFileError(f"{path}: the folder {folder} cannot be written; choose another file")
