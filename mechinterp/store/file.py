"""Reading of a run file, which may come from an untrusted source and may still be growing.

The header says where everything is; of the rest of the file, only those bytes are read, and each is compared with a
SHA-256: records with their seal, weights, series and optimizer state with the digests in the record. HDF5 is not
involved. Every read opens the file anew, and goes on in the file that a resumed run has put in its place.

Torch and pandas take seconds to import: only the functions that return their types import them.
"""

import hashlib
import json
import math
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.recfunctions import repack_fields

from mechinterp.config import RunConfig
from mechinterp.errors import ConfigError, MechinterpError, RunFileError
from mechinterp.store.layout import (
    END_TYPE,
    FIRST_LINE,
    STATUSES,
    Array,
    Header,
    Origin,
    digest,
    digested_name,
    header_length,
    is_whole,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

_CHUNK = 4096
"""Records that are read at once."""
_PIECE = 8 << 20
"""Bytes of weights that are read at once to compare their digest."""
_AHEAD = 64
"""Records after the last whole one that are looked at: if one of them is whole, the file is damaged."""
_ATTEMPTS = 3
"""How often such a place is read again, because a writer may be writing there."""


class RunFile:
    """One file of checkpoints: config, steps, weights, digests, metrics, series and status."""

    def __init__(self, path: Path):
        self.path, self._line = path, None
        with self._open():
            pass

    @property
    def config(self) -> RunConfig:
        """The config that the run was trained by."""
        if self._config is None:
            raise RunFileError(
                f"{self.path}: was trained elsewhere, and has no config to resume or replay it by: go on in its own"
                " loop, with mi.record(path, model, resume=True)"
            )
        return self._config

    @property
    def origin(self) -> Origin | None:
        """Where the run comes from that this package has not trained; None for one that it has."""
        return None if self._config else self.header.origin or Origin(how="recorded")

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the latest updates: versions, CPU capability, threads, engine."""
        return self.environment_at(1 << 62)

    def environment_at(self, step: int) -> dict[str, str]:
        """The environment of the update from `step` on; it changes where a run was resumed elsewhere."""
        return self.environments[str(max(start for start in map(int, self.environments) if start <= step))]

    @property
    def steps(self) -> list[int]:
        """The committed steps, ascending."""
        self.refresh()
        return self._records["step"].tolist()

    @property
    def status(self) -> str:
        """How the run ended, or "running"."""
        self.refresh()
        return STATUSES[self._ended[0]] if self._ended else "running"

    def refresh(self) -> None:
        """Look for checkpoints that were committed since the last read."""
        with self._open() as file:
            self._read_records(file)

    def has(self, step: int) -> bool:
        """Whether a step is committed, or was when the file was last read."""
        if self._known(step) is not None:
            return True
        self.refresh()
        return self._known(step) is not None

    def metrics(self) -> "pd.DataFrame":
        """The metrics of the checkpoints, by step."""
        import pandas as pd

        self.refresh()
        names = list(self.header.contents.metrics)
        columns = {name: self._records["metrics"][name] for name in names}
        return pd.DataFrame(columns, index=pd.Index(self._records["step"], name="step"), columns=names, dtype=float)

    def metrics_at(self, step: int) -> dict[str, float]:
        """The metrics of a committed step."""
        with self._open() as file:
            row = self._row(file, step)
        values = self._records["metrics"][row] if self.header.contents.metrics else ()
        return {name: float(value) for name, value in zip(self.header.contents.metrics, values, strict=True)}

    def weights(self, step: int) -> dict[str, "Tensor"]:
        """The parameters at a committed step, by name, in the types in which they are stored."""
        import torch

        with self._open() as file:
            self.require_network()
            row = self._row(file, step)
            arrays = self._weights(file, row)
            if digest(arrays) != self._records["digest"][row].tobytes():
                raise RunFileError(f"the weights of step {step} do not match their digest; it is damaged")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def digest(self, step: int) -> str:
        """The stored SHA-256 of the weights at a committed step (hexadecimal)."""
        with self._open() as file:
            row = self._row(file, step)
        return self._records["digest"][row].tobytes().hex()

    def digests(self) -> dict[int, str]:
        """The stored SHA-256 of the weights at every committed step (hexadecimal)."""
        steps = self.steps
        return {step: row.tobytes().hex() for step, row in zip(steps, self._records["digest"], strict=True)}

    def content_digest(self) -> str:
        """SHA-256 (hexadecimal) of what was trained or recorded and of every record: the steps, the digests of their
        weights and of the rest, and the metrics."""
        self.refresh()
        about = [self.header.config, self.origin and self.origin.model_dump(mode="json"), self._records.dtype.descr]
        about.append(self.header.contents.metrics)
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode() + self._records.tobytes()).hexdigest()

    def optimizer_state(self, step: int) -> dict[str, "Tensor"]:
        """The state of the optimizer at a committed step, by name; empty if that checkpoint has none."""
        import torch

        return {name: torch.from_numpy(array) for name, array in self.rest(step)[1].items()}

    def rest(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What a committed step has besides its weights and metrics: the series since the checkpoint before it, and the
        state of the optimizer."""
        with self._open() as file:
            return self._rest(file, self._row(file, step))

    def series(self, step: int | None = None) -> "pd.DataFrame":
        """The numbers of single updates, by the step that the update led to, up to the last checkpoint.

        With `step`, only those between the checkpoint of that step and the one before it.
        """
        import pandas as pd

        with self._open() as file:
            self._read_records(file)
            rows = range(len(self._records)) if step is None else [self._row(file, step)]
            parts = [self._rest(file, row)[0] for row in rows]
            covered = [np.array(self._series_rows(row), int) for row in rows]
        index = pd.Index((np.concatenate(covered) + 1) * self.header.contents.series_every, name="step")
        columns = {name: np.concatenate([part[name] for part in parts]) for name in self.header.contents.series}
        return pd.DataFrame(columns, index=index, dtype=float)

    def require_network(self) -> None:
        """RunFileError unless the parameters are those of the config's network, if there is a config."""
        if self._config is None or self._network_fits:
            return
        from mechinterp.models.registry import parameter_shapes

        expected, present = parameter_shapes(self._config), self.header.contents.weights
        for name in sorted(expected.keys() ^ present.keys()):
            what = "is missing" if name in expected else "does not belong to the network of its config"
            raise RunFileError(f"{self.path}: the parameter {name} {what}; the file is damaged or from another version")
        for name, shape in expected.items():
            if (present[name].shape, present[name].dtype) != (tuple(shape), "<f4"):
                got = f"{present[name].shape} {present[name].dtype}"
                raise RunFileError(f"{self.path}: the parameter {name} is {got}, expected {tuple(shape)} <f4")
        self._network_fits = True

    def _row(self, file: FileIO, step: int) -> int:
        """The row of a committed step in the file that is open: another one may have taken its place."""
        if (row := self._known(step)) is None:
            self._read_records(file)
            row = self._known(step)
        if row is None:
            raise RunFileError(f"step {step} is not there")
        return row

    def _known(self, step: int) -> int | None:
        """The row of a step among the records that have been read."""
        row = int(np.searchsorted(self._records["step"], step))
        return row if row < len(self._records) and self._records["step"][row] == step else None

    @contextmanager
    def _open(self) -> Iterator[FileIO]:
        """The opened file; if another one is there than before, its header is read, which must be of the same run."""
        try:
            file = open(self.path, "rb", buffering=0, opener=_opened)  # noqa: SIM115
        except (OSError, ValueError) as error:
            what = "is a folder" if os.path.isdir(self.path) else "does not exist"
            if not isinstance(error, FileNotFoundError | IsADirectoryError):
                what = f"cannot be opened ({getattr(error, 'strerror', error)})"
            raise RunFileError(f"{self.path}: {what}; give the path of a run file") from None
        with file:
            try:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise RunFileError("is no file; give the path of a run file")
                line = file.read(FIRST_LINE) or b""
                if line != self._line:
                    self._take_header(file, line)
                yield file
            except MechinterpError as error:
                message = str(error)
                raise type(error)(message if str(self.path) in message else f"{self.path}: {message}") from None
            except OSError as error:
                raise RunFileError(f"{self.path}: cannot be read ({error.strerror})") from None

    def _take_header(self, file: FileIO, line: bytes) -> None:
        """Read the header and forget the records; RunFileError if it is another run's than before."""
        header = Header.from_bytes(line, _read(file, FIRST_LINE, header_length(line)))
        if self._line is not None and header.id != self.header.id:
            raise RunFileError("another run is there now; open it again")
        _require_inside(header, os.fstat(file.fileno()).st_size)
        config = None
        if header.config is not None:
            try:
                config = RunConfig.from_dict(header.config, source="its config")
            except ConfigError as error:
                raise RunFileError(str(error)) from None
        self.header, self._line, self._config, self._ended = header, line, config, None
        self._type = header.record_type
        self._network_fits = False
        self.environments, self.created = header.environments, header.created
        self._records = _without_seal(np.zeros(0, self._type))
        self._read_records(file)

    def _read_records(self, file: FileIO) -> None:
        """Take the records that were committed since the last call; RunFileError for a damaged one among them."""
        if self._ended:
            return
        end, first, count = self._end(file), len(self._records), _AHEAD  # the end first: all its records are then there
        for attempt in range(1 + _ATTEMPTS):
            while (taken := self._take(self._record_bytes(file, len(self._records), count))) == count:
                count = _CHUNK
            gap = self._whole(self._record_bytes(file, len(self._records), _AHEAD), len(self._records))
            if not any(gap):
                break
            if attempt == _ATTEMPTS and not gap[0]:
                raise RunFileError(f"the record of checkpoint {len(self._records)} is damaged, and others follow it")
            time.sleep(0 if taken or gap[0] else 0.01)  # it is being written
        if end and end[1] > len(self._records):
            raise RunFileError(f"has {len(self._records)} of {end[1]} checkpoints; the file is damaged")
        if end:  # one more may have been written, but never acknowledged
            self._records = self._records[: end[1]]
        if not end and len(self._records) > first and not self._fits(file, len(self._records) - 1):
            self._records = self._records[:-1]  # the system went down before all of it was on the disk
        if not len(self._records):  # it got its name with the first
            raise RunFileError("has no whole checkpoint; the file is damaged")
        self._ended = end

    def _record_bytes(self, file: FileIO, first: int, count: int) -> bytearray:
        size = self._type.itemsize
        return _read(file, self.header.checkpoints + first * size, min(count, self.header.capacity - first) * size)

    def _whole(self, content: bytearray, first: int) -> list[bool]:
        """Which records of the content, whose first is that of row `first`, are whole."""
        size, view = self._type.itemsize, memoryview(content)
        return [
            is_whole(self.header.id, first + at // size, view[at : at + size]) for at in range(0, len(content), size)
        ]

    def _take(self, content: bytearray) -> int:
        """Append the whole records at the start of the content; their number. RunFileError if steps do not ascend."""
        count = [*self._whole(content, len(self._records)), False].index(False)
        new = _without_seal(np.frombuffer(content, self._type, count))
        before = np.concatenate([self._records["step"][-1:] if len(self._records) else [-1], new["step"]])[:count]
        if (new["previous"] != before).any() or (new["step"] <= before).any():
            raise RunFileError("its steps do not ascend, or some are missing; the file is damaged")
        self._records = np.concatenate([self._records, new])
        return count

    def _end(self, file: FileIO) -> tuple[int, int] | None:
        """Number of the status and number of checkpoints, by the first whole copy of the end record; None without."""
        content = _read(file, self.header.end, 2 * END_TYPE.itemsize)
        for copy in (content[: END_TYPE.itemsize], content[END_TYPE.itemsize :]):
            if is_whole(self.header.id, -1, copy):
                record = np.frombuffer(copy, END_TYPE)[0]
                number = int(record["status"])
                if not 1 <= number < len(STATUSES):
                    raise RunFileError(
                        f"its status is {number}, expected 1 to {len(STATUSES) - 1}; the file is damaged"
                    )
                return number, int(record["checkpoints"])
        return None

    def _fits(self, file: FileIO, row: int) -> bool:
        """Whether everything that a record commits is there."""
        try:
            self._rest(file, row)
        except RunFileError:
            return False
        sha = hashlib.sha256()  # in pieces: the file is not known to be a sensible one yet
        for name, array in self.header.contents.weights.items():
            sha.update(digested_name(name, array.shape, array.dtype))
            for at in range(0, array.row_bytes, _PIECE):
                start = array.offset + row * array.row_bytes + at
                sha.update(_read(file, start, min(_PIECE, array.row_bytes - at)))
        return sha.digest() == self._records["digest"][row].tobytes()

    def _weights(self, file: FileIO, row: int) -> dict[str, np.ndarray]:
        return {name: _array(file, array, row) for name, array in self.header.contents.weights.items()}

    def _rest(self, file: FileIO, row: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The series that a checkpoint commits, and the state of the optimizer; RunFileError unless the digest fits."""
        contents, span = self.header.contents, self._series_rows(row)
        series = {name: _array(file, array, span.start, len(span)) for name, array in contents.series.items()}
        state, behind = divmod(row, contents.optimizer_every)
        optimizer = {} if behind else {name: _array(file, array, state) for name, array in contents.optimizer.items()}
        if rest_digest(series, optimizer) != self._records["rest_digest"][row].tobytes():
            raise RunFileError(
                f"series or optimizer state of step {self._records['step'][row]} do not match their digest"
            )
        return series, optimizer

    def _series_rows(self, row: int) -> range:
        record = self._records[row]
        return series_rows(self.header, int(record["previous"]), int(record["step"]))


def series_rows(header: Header, previous: int, step: int) -> range:
    """The rows of the series that the checkpoint of `step` commits, after one of step `previous`."""
    if not header.contents.series or previous < 0:
        return range(0)
    every = header.contents.series_every
    return range(previous // every, min(step // every, header.series_rows))


def rest_digest(series: dict[str, np.ndarray], optimizer: dict[str, np.ndarray]) -> bytes:
    """The digest of all that a checkpoint commits besides its weights."""
    named = {f"series/{name}": value for name, value in series.items()}
    return digest(named | {f"optimizer/{name}": value for name, value in optimizer.items()})


def _read(file: FileIO, offset: int, length: int) -> bytearray:
    """Bytes of the file; RunFileError if it ends before."""
    content, done = bytearray(length), 0
    if length:
        file.seek(offset)
    while done < length and (n := file.readinto(memoryview(content)[done:])):  # the system reads 2 GiB at most
        done += n
    if done < length:
        raise RunFileError(f"ends at byte {offset + done}, expected {offset + length}; it is cut off")
    return content


def _array(file: FileIO, array: Array, row: int, count: int | None = None) -> np.ndarray:
    """One row of an array, or so many from there on."""
    shape = array.shape if count is None else (count, *array.shape)
    content = _read(file, array.offset + row * array.row_bytes, array.row_bytes * (1 if count is None else count))
    return np.frombuffer(content, array.dtype).reshape(shape)


def _opened(path: str, flags: int) -> int:
    """The descriptor of a file; a named pipe that nobody writes to is not waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _without_seal(records: np.ndarray) -> np.ndarray:
    """The records but for their seals, in memory of their own."""
    return repack_fields(records[[name for name in records.dtype.names or () if name != "seal"]])


def _require_inside(header: Header, size: int) -> None:
    """RunFileError unless the file is as long as its arrays need."""
    offsets = header.offsets()
    for path, (shape, dtype) in header.datasets().items():
        end = offsets[path] + math.prod(shape) * dtype.itemsize
        if end > size:
            raise RunFileError(f"/{path} ends at byte {end}, and the file at {size}; it is cut off or damaged")
