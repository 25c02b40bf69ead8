"""Writing of a run file: whole checkpoints, one at a time, in a file that can be read while it grows.

Room for all checkpoints is reserved when the file is made. A checkpoint is then a few writes into rows that are there
already, the last of them its record, and one sync: it counts if its record is whole and its digests fit. Nothing else
of the file changes, except that the end record says how the run ended. What needs another header (more room, another
environment, less room at the end) is a copy that replaces the file.

The writer has the lock of the path. The file appears under its name with its first checkpoint.
"""

import contextlib
import errno
import os
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mechinterp.errors import DivergedError, MechinterpError, RunFileError
from mechinterp.files import (
    FileLock,
    discard,
    is_at,
    make_durable,
    new_beside,
    require_writable,
    sync,
    sync_folder,
    write_at,
)
from mechinterp.store.file import RunFile, rest_digest, series_rows
from mechinterp.store.layout import END_TYPE, STATUSES, Array, Contents, Header, array_of, digest, sealed
from mechinterp.store.trajectory import dense_path

if TYPE_CHECKING:
    from torch import Tensor

_COPY = 8 << 20
"""Bytes that are copied at once."""
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_NOT_RESERVED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class RunWriter:
    """Appends checkpoints to a new run file; a context manager that records how the run ended.

    `lock` is the right to write the file, if the caller has it already; it becomes the writer's. A file that is not
    `live` appears once complete.
    """

    def __init__(
        self,
        path: str | Path,
        header: Header,
        *,
        overwrite: bool = False,
        lock: FileLock | None = None,
        live: bool = True,
    ):
        self.path, self._live, self._broken = _resolved(path), live, False  # a link stays a link
        self._rows, self._last, self._overwrite = 0, -1, overwrite
        require_writable(self.path, overwrite)
        self._lock = lock or lock_run_file(self.path)
        try:
            require_writable(self.path, overwrite)  # nobody else can make it now
            self._replaced = _id_of(self.path)
            self.header, self._temporary, self._file = _made(self.path, header)
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def continuing(
        cls,
        file: RunFile,
        lock: FileLock,
        *,
        checkpoints: int,
        series_rows: int,
        config: dict[str, Any] | None,
        environment: dict[str, str],
    ) -> "RunWriter":
        """The writer that goes on with a file, in place if it has room and its header stays the same.

        There is then room for so many `checkpoints`, and rows of the series, in all.
        """
        writer = cls.__new__(cls)
        writer.path, writer._live, writer._broken = file.path.resolve(), True, False
        writer._lock, writer._replaced, writer._temporary = lock, None, None
        steps, header = file.steps, file.header
        writer.header, writer._rows, writer._last = header, len(steps), steps[-1]
        try:
            writer._file = os.open(writer.path, os.O_RDWR)
        except OSError as error:
            raise _refusal(file.path, error, "another checkpoint") from None
        environments = header.environments
        if file.environment != environment:
            environments = {**environments, str(max(writer._last, 0)): environment}
        changed = {"config": config, "environments": environments}
        fits = checkpoints <= header.capacity and series_rows <= header.series_rows
        if not fits or file.status != "running" or header.model_copy(update=changed) != header:
            room = {"capacity": max(checkpoints, writer._rows, 1), "series_rows": series_rows}
            try:
                writer._move(header.model_copy(update=changed | room))
            except BaseException:
                os.close(writer._file)
                raise
        return writer

    def append(
        self,
        step: int,
        parameters: Mapping[str, "Tensor"],
        metrics: Mapping[str, float],
        *,
        series: Mapping[str, np.ndarray] | None = None,
        optimizer: Mapping[str, "Tensor"] | None = None,
    ) -> None:
        """Commit the checkpoint of `step`: when this returns, it is on the disk. A metric that is not given is NaN.

        `series` has the numbers of the updates since the checkpoint before, `optimizer` the optimizer's state, which
        only some checkpoints store (`Contents.optimizer_every`). Weights that are not finite are refused: nothing is
        written.
        """
        if step <= self._last:
            raise MechinterpError(f"{self.path}: step {step} does not follow step {self._last}, the last checkpoint")
        for name, value in parameters.items():
            if not bool(value.isfinite().all()):
                raise DivergedError(
                    f"{self.path}: {name} is not finite at step {step}; lower the learning rate."
                    " Earlier checkpoints are kept"
                )
        contents = self.header.contents
        if unknown := [name for name in metrics if name not in contents.metrics]:
            raise MechinterpError(f"{self.path}: has no metric {unknown[0]!r}; it has {', '.join(contents.metrics)}")
        weights = self._arrays("parameter", contents.weights, parameters)
        state, behind = divmod(self._rows, contents.optimizer_every)
        moments = {} if behind else self._arrays("optimizer state", contents.optimizer, optimizer or {})
        too_few = bool(contents.series) and step // contents.series_every > self.header.series_rows
        if self._rows == self.header.capacity or too_few:
            rows = max(2 * self.header.series_rows, step // contents.series_every) if contents.series else 0
            self._move(self.header.model_copy(update={"capacity": 2 * self.header.capacity, "series_rows": rows}))
            contents = self.header.contents
        span = series_rows(self.header, self._last, step)
        updates = {
            name: _updates(array, (series or {}).get(name), len(span)) for name, array in contents.series.items()
        }
        record = np.zeros((), self.header.record_type)
        record["step"], record["previous"] = step, self._last
        record["digest"] = np.frombuffer(digest(weights), "u1")
        record["rest_digest"] = np.frombuffer(rest_digest(updates, moments), "u1")
        for name in contents.metrics:
            record["metrics"][name] = metrics.get(name, np.nan)
        with self._writing("another checkpoint"):
            if self._temporary is None:
                self._require_there(self._file)
            for group, at, rows in (
                (contents.weights, self._rows, weights),
                (contents.optimizer, state, moments),
                (contents.series, span.start, updates),
            ):
                for name, row in rows.items():
                    write_at(self._file, row.tobytes(), group[name].offset + at * group[name].row_bytes)
            place = self.header.checkpoints + self._rows * self.header.record_type.itemsize
            write_at(self._file, sealed(self.header.id, self._rows, record), place)
            sync(self._file)
            if self._live:
                self._publish()
        self._rows, self._last = self._rows + 1, step

    def extend(self, metrics: Collection[str], optimizer: Mapping[str, Array]) -> None:
        """Give all checkpoints further metrics, not a number so far, and further numbers of the optimizer, 0 so far."""
        contents = self.header.contents
        names = (*contents.metrics, *(name for name in metrics if name not in contents.metrics))
        state = {**contents.optimizer, **optimizer}
        extended = Contents.checked(self.path, **{**dict(contents), "metrics": names, "optimizer": state})
        self._move(self.header.model_copy(update={"contents": extended}))

    def finish(self, status: str) -> None:
        """Record how the run ended, give back the room that is left, and close the file."""
        if self._file < 0:
            return
        try:
            if self._rows and not self._broken:
                with self._writing("its end"):
                    self._write_end(STATUSES.index(status))
                    if self._rows < self.header.capacity or self._series_length(self.header) < self.header.series_rows:
                        with contextlib.suppress(MechinterpError):  # it stays longer than it need be
                            update = {"capacity": self._rows, "series_rows": self._series_length(self.header)}
                            self._move(self.header.model_copy(update=update), STATUSES.index(status))
                    if status == "complete":
                        self._publish()
        finally:
            if self._temporary is not None:
                discard(self._temporary)
            os.close(self._file)
            self._file = -1
            self._lock.release()

    def close(self, error: BaseException | None = None) -> None:
        """Close the file and record that the run is complete, or how `error` ended it."""
        if error is None:
            self.finish("complete")
            return
        status = "diverged" if isinstance(error, DivergedError) else "failed"
        with contextlib.suppress(MechinterpError):  # the first error is the one to report
            self.finish("interrupted" if isinstance(error, KeyboardInterrupt) else status)

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def _series_length(self, header: Header) -> int:
        """Rows of the series of a file that the checkpoints cover."""
        return min(max(self._last, 0) // header.contents.series_every, header.series_rows)

    def _arrays(self, what: str, layout: Mapping[str, Array], values: Mapping[str, "Tensor"]) -> dict[str, np.ndarray]:
        """The values as contiguous arrays in the layout's order; MechinterpError unless names, types and shapes fit."""
        if layout.keys() != values.keys():
            odd = sorted(layout.keys() ^ values.keys())[0]
            raise MechinterpError(f"{self.path}: {what} {odd} is {'missing' if odd in layout else 'not in the file'}")
        arrays = {}
        for name, array in layout.items():
            value = np.asarray(array_of(values[name]), order="C")
            if value.shape != array.shape or value.dtype != np.dtype(array.dtype):
                got, expected = f"{value.shape} {value.dtype}", f"{array.shape} {np.dtype(array.dtype)}"
                raise MechinterpError(f"{self.path}: {what} {name} is {got}, expected {expected}")
            arrays[name] = value
        return arrays

    def _write_end(self, status: int) -> None:
        """Write both copies of the end record, one after the other."""
        record = np.zeros((), END_TYPE)
        record["status"], record["checkpoints"] = status, self._rows
        for copy in range(2):
            write_at(self._file, sealed(self.header.id, -1, record), self.header.end + copy * END_TYPE.itemsize)
            sync(self._file)

    def _move(self, header: Header, status: int | None = None) -> None:
        """Copy all checkpoints to a file with another header, and the end record if given, which replaces this one."""
        if self._temporary is not None:
            raise RunFileError(f"{self.path}: has no room for another checkpoint, and is not there yet")
        with self._writing("the file with more room"):
            source, old = self._file, self.header
            self.header, temporary, self._file = _made(self.path, header)
            try:
                self._copy_rows(source, old)
                if status is not None:
                    self._write_end(status)
                sync(self._file)
                self._require_there(source)
                os.replace(temporary, self.path)
                sync_folder(self.path.parent)
            except BaseException:
                discard(temporary)
                os.close(self._file)
                self.header, self._file = old, source
                raise
            os.close(source)

    def _copy_rows(self, source: int, old: Header) -> None:
        """Copy the committed rows of all arrays."""
        arrays, states = old.contents, -(-self._rows // old.contents.optimizer_every)
        ranges = []
        if {*self.header.contents.optimizer} == {*arrays.optimizer} and self.header.record_type == old.record_type:
            ranges = [(old.checkpoints, self.header.checkpoints, self._rows * old.record_type.itemsize)]
        else:
            self._convert_records()
        for group, rows in (("weights", self._rows), ("optimizer", states), ("series", self._series_length(old))):
            new = getattr(self.header.contents, group)
            ranges += [(a.offset, new[name].offset, rows * a.row_bytes) for name, a in getattr(arrays, group).items()]
        for start, target, length in ranges:
            for at in range(0, length, _COPY):
                content = os.pread(source, min(_COPY, length - at), start + at)
                if len(content) < min(_COPY, length - at):
                    raise RunFileError(f"{self.path}: is shorter than it was written; it is damaged")
                write_at(self._file, content, target + at)

    def _convert_records(self) -> None:
        """Write the records of all checkpoints into a file with further metrics or numbers of the optimizer."""
        file, contents = RunFile(self.path), self.header.contents
        metrics = file.metrics()
        for row, (previous, step) in enumerate(pairwise([-1, *file.steps])):
            series, state = file.rest(step)
            state |= {
                name: np.zeros(array.shape, array.dtype)
                for name, array in contents.optimizer.items()
                if name not in state and row % contents.optimizer_every == 0
            }
            record = np.zeros((), self.header.record_type)
            record["step"], record["previous"] = step, previous
            record["digest"] = np.frombuffer(bytes.fromhex(file.digest(step)), "u1")
            record["rest_digest"] = np.frombuffer(
                rest_digest(series, {name: state[name] for name in contents.optimizer if name in state}), "u1"
            )
            for name in contents.metrics:
                record["metrics"][name] = metrics[name][step] if name in metrics else np.nan
            place = self.header.checkpoints + row * self.header.record_type.itemsize
            write_at(self._file, sealed(self.header.id, row, record), place)

    def _require_there(self, descriptor: int) -> None:
        """RunFileError if a file is no longer the one at the path."""
        if not is_at(descriptor, self.path):
            self._broken = True
            raise RunFileError(f"{self.path}: was deleted or replaced while it was being written; train it anew")

    def _publish(self) -> None:
        """Give a new file its name."""
        if self._temporary is None:
            return
        if not self._overwrite and self.path.exists():  # it has appeared meanwhile, without a lock
            raise RunFileError(f"{self.path}: exists already; choose another file or pass --overwrite (overwrite=True)")
        os.replace(self._temporary, self.path)
        sync_folder(self.path.parent)
        self._temporary = None
        side = dense_path(self.path)
        if self._replaced and os.path.exists(side) and _id_of(side, side=True) == self._replaced:
            discard(side)

    @contextlib.contextmanager
    def _writing(self, what: str):
        """Context in which an error of the system becomes a RunFileError, after which nothing more is written."""
        try:
            yield
        except OSError as error:
            self._broken = self._broken or error.errno not in _NO_ROOM
            raise _refusal(self.path, error, what) from None


def keep_last(path: Path, lock: FileLock | None = None) -> None:
    """Delete all checkpoints of a complete run but the last. A file with one checkpoint is not touched.

    `lock` is the right to write the file, if the caller has it already; it is given up.
    """
    with lock or lock_run_file(path) as lock:
        file = RunFile(path)
        if len(file.steps) == 1:
            return
        last, contents = file.steps[-1], file.header.contents
        weights, metrics, state = file.weights(last), file.metrics_at(last), file.optimizer_state(last)
        contents = contents.model_copy(update={"series": {}} if state else {"series": {}, "optimizer": {}})
        update = {"kept": "last", "capacity": 1, "series_rows": 0, "contents": contents}
        with RunWriter(path, file.header.model_copy(update=update), overwrite=True, lock=lock, live=False) as writer:
            writer.append(last, weights, metrics, optimizer=state)


def _made(path: Path, header: Header) -> tuple[Header, Path, int]:
    """A new file beside `path` with room for everything: its header with offsets, its path, its descriptor."""
    from mechinterp.store.hdf5 import hdf5_pieces  # imports h5py, which readers do not need

    header.require_moderate()
    anywhere = dict.fromkeys(header.offsets(), (1 << 60) - 1)
    start = max(4096, 1 << (len(header.placed(anywhere).to_bytes()) - 1).bit_length())
    pieces, offsets, size = hdf5_pieces(header, start)
    placed = header.placed(dict.fromkeys(anywhere, 0) | offsets)
    try:
        temporary, descriptor = new_beside(path)
        try:
            _reserve(descriptor, size)
            for offset, piece in [*pieces, (0, placed.to_bytes())]:
                write_at(descriptor, piece, offset)
        except BaseException:
            discard(temporary)
            os.close(descriptor)
            raise
    except OSError as error:
        raise _refusal(path, error, f"{header.capacity:,} checkpoints ({size / 1e6:,.1f} MB)") from None
    return placed, temporary, descriptor


def _reserve(descriptor: int, size: int) -> None:
    """Make the file so long, with its room reserved where the file system can."""
    os.ftruncate(descriptor, size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in _NOT_RESERVED:
                raise


def _updates(array: Array, values: np.ndarray | None, count: int) -> np.ndarray:
    """The last `count` numbers of a series; NaN where there are fewer."""
    row = np.full(count, np.nan, array.dtype)
    if values is not None and count:
        given = np.asarray(values, array.dtype)[-count:]
        row[count - len(given) :] = given
    return row


def _refusal(path: Path, error: OSError, what: str) -> RunFileError:
    """The error for an error of the system while a run file is written."""
    if error.errno in _NO_ROOM:
        return RunFileError(f"{path}: no room for {what}; free some space. Everything committed so far is kept")
    return RunFileError(f"{path}: cannot be written ({error.strerror}). Everything committed so far is kept")


def lock_run_file(path: Path) -> FileLock:
    """The right to write a run file; BusyError if another process has it."""
    path = _resolved(path)
    try:
        make_durable(path.parent)
        return FileLock(path)
    except OSError as error:
        raise RunFileError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def _resolved(path: str | Path) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a name with a zero byte, a loop of links
        raise RunFileError(f"{str(path)!r}: cannot be a file ({error}); choose another name") from None


def _id_of(path: Path, *, side: bool = False) -> str | None:
    """The id of the run at a path, or of the run whose rebuilt steps a side file has; None if there is no such file."""
    try:
        header = RunFile(path).header
    except MechinterpError:
        return None
    return header.side_of if side else header.id
