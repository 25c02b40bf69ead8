"""The layout of a run file (schema version 2): its header, and the records of its checkpoints.

A run file begins with a header: one line ``mechinterp-run 2 LENGTH SHA256`` and LENGTH bytes of JSON, which say where
in the file the rows of every array are. The rest of the file is HDF5 of contiguous arrays. Neither changes after
creation; a checkpoint is written into rows that are there already. docs/run-file.md describes the format.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mechinterp.errors import MechinterpError, RunFileError

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"mechinterp-run "
SCHEMA_VERSION = 2
STATUSES = ("running", "complete", "interrupted", "diverged", "failed")
"""How a run ended, by the number in its end record; `running` without one: it is being written, or was killed."""
SECTOR = 512
"""Bytes that a disk writes whole or not at all."""
FIRST_LINE = len(MAGIC) + len("2 ") + 20 + 1 + 64 + 1
"""Bytes of the header's first line."""
MAX_HEADER = 4 << 20
"""Bytes of the longest header."""
MAX_METRICS = 500
"""Metrics that a checkpoint may have: more do not fit into a description of HDF5."""
MAX_SERIES = 128 << 20
"""Bytes of all series together, since a single checkpoint may commit all their rows."""
_SEAL = 32


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed")
    return text


def _name(text: str) -> str:
    if "/" in text or text in (".", ".."):
        raise ValueError("is no name of an HDF5 dataset")
    return text


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len({*names}) < len(names):
        raise ValueError("has a name twice")
    return names


Offset = Annotated[int, Field(ge=0, lt=1 << 60)]
Count = Annotated[int, Field(ge=0, lt=1 << 40)]
Text = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
Name = Annotated[Text, Field(min_length=1), AfterValidator(_name)]
Metric = Annotated[Text, Field(min_length=1, max_length=80)]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Step = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,17})$")]


class _Part(BaseModel):
    """A part of the header: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Array(_Part):
    """An array of the file: shape and type of a row, and where the first row is."""

    shape: Annotated[tuple[Annotated[int, Field(ge=1, lt=1 << 40)], ...], Field(max_length=16)]
    dtype: Literal["<f2", "<f4", "<f8", "<i4", "<i8", "|u1"] = "<f4"
    offset: Offset = 0

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


class Contents(_Part):
    """What a run file holds."""

    weights: dict[Name, Array]
    """The parameters of a checkpoint."""
    metrics: Annotated[tuple[Metric, ...], Field(max_length=MAX_METRICS), AfterValidator(_distinct)] = ()
    """Numbers of a checkpoint."""
    series: dict[Name, Array] = {}
    """Numbers of an update, a row for each."""
    series_every: Annotated[int, Field(ge=1, lt=1 << 60)] = 1
    """The series has every so-manyth update only."""
    optimizer: dict[Name, Array] = {}
    """The state of the optimizer at a checkpoint."""
    optimizer_every: Annotated[int, Field(ge=1, lt=1 << 40)] = 1
    """Every so-manyth checkpoint has that state, from the first on."""

    @classmethod
    def checked(cls, path: Path, **parts: Any) -> "Contents":
        """The contents of these parts; MechinterpError for a name or number that the file at `path` cannot have."""
        try:
            return cls(**parts)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, fault["loc"]))[:200]
            raise MechinterpError(f"{path}: {where}: {fault['msg']}; choose another name or number") from None


class Origin(_Part):
    """Where checkpoints come from that this package has not trained."""

    how: Literal["recorded", "imported"]
    """recorded: by the loop that trained the network, through `mi.record`. imported: from files of checkpoints."""
    network: dict[str, Any] | None = None
    """The network as circuit analyses take it (`models.foreign`); null if it is none of those that are known."""
    unknown: Text = ""
    """Why it is none of them."""
    left_out: Annotated[tuple[Text, ...], Field(max_length=100_000)] = ()
    """Constants of the module that were not stored, as masks of attention are."""


class Header(_Part):
    """What a file says of itself."""

    id: RunId
    """Of the run; a copy of its file with more room has the same."""
    created: Text
    config: dict[str, Any] | None
    """The config of the run; null if it was not trained by this package."""
    origin: Origin | None = None
    """Where the run comes from, if it was not; there is no such key in the header of other runs."""
    environments: dict[Step, dict[Text, Text]]
    """Versions, processor and threads of the updates, by the step from which on."""
    side_of: RunId | None = None
    """The run whose rebuilt steps the file holds."""
    kept: Literal["all", "last"] = "all"
    """Whether all checkpoints of the run are there, or the last one only."""
    capacity: Annotated[int, Field(ge=1, lt=1 << 40)]
    """Checkpoints that there is room for."""
    series_rows: Count = 0
    """Rows that there is room for in each series."""
    contents: Contents
    checkpoints: Offset = 0
    """Where the record of the first checkpoint is."""
    end: Offset = 0
    """Where the two copies of the end record are."""

    def arrays(self) -> dict[str, tuple[int, Array]]:
        """Rows and layout of every array but the records, by its path in the file."""
        contents, states = self.contents, -(-self.capacity // self.contents.optimizer_every)
        groups = (("weights", self.capacity), ("optimizer", states), ("series", self.series_rows))
        return {
            f"{group}/{name}": (n, array) for group, n in groups for name, array in getattr(contents, group).items()
        }

    def placed(self, offsets: Mapping[str, int]) -> "Header":
        """The header with the offsets of the arrays, by path."""
        groups = {
            group: {
                name: array.model_copy(update={"offset": offsets[f"{group}/{name}"]})
                for name, array in getattr(self.contents, group).items()
            }
            for group in ("weights", "optimizer", "series")
        }
        places = {"checkpoints": offsets["checkpoints"], "end": offsets["end"]}
        return self.model_copy(update=places | {"contents": self.contents.model_copy(update=groups)})

    def datasets(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of every HDF5 dataset, by path; there is none of no rows."""
        arrays = {name: ((rows, *array.shape), np.dtype(array.dtype)) for name, (rows, array) in self.arrays().items()}
        records = {"checkpoints": ((self.capacity,), self.record_type), "end": ((2,), END_TYPE)}
        return {name: array for name, array in arrays.items() if array[0][0]} | records

    def offsets(self) -> dict[str, int]:
        """Where every array and record begins, by path."""
        arrays = {name: array.offset for name, (_, array) in self.arrays().items()}
        return arrays | {"checkpoints": self.checkpoints, "end": self.end}

    def attributes(self) -> dict[str, str]:
        """What the HDF5 says of the run, as text."""
        parts = {"id", "created", "config", "environments"} | ({"origin"} if self.origin else set())
        about = self.model_dump(mode="json", include=parts)
        text = {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in about.items()}
        return text | {"format": "mechinterp-run", "schema_version": str(SCHEMA_VERSION)}

    def to_bytes(self) -> bytes:
        """The header as it stands at the beginning of a file."""
        body = self.model_dump_json(exclude=None if self.origin else {"origin"}).encode()
        if len(body) > MAX_HEADER:
            raise RunFileError(f"the header takes {len(body):,} bytes; at most {MAX_HEADER:,} go into a run file")
        line = MAGIC + f"{SCHEMA_VERSION} {len(body):020} {hashlib.sha256(body).hexdigest()}\n".encode()
        return line + body

    @classmethod
    def from_bytes(cls, line: bytes, body: bytes | bytearray) -> "Header":
        """The header of a first line and the JSON after it; RunFileError for one that is damaged or malformed."""
        if hashlib.sha256(body).hexdigest().encode() != line.split()[3]:
            raise RunFileError("its header does not match its checksum; the file is damaged")
        try:
            header = cls.model_validate_json(body)
        except (ValidationError, RecursionError) as error:
            faults = error.errors(include_url=False, include_input=False) if isinstance(error, ValidationError) else []
            where = ".".join(map(str, faults[0]["loc"]))[:100] if faults else ""
            why = f" ({where}: {faults[0]['msg'][:200]})" if faults else ""
            raise RunFileError(f"its header is malformed{why}; the file is damaged") from None
        if "0" not in header.environments:
            raise RunFileError("its header has no environment of step 0; the file is damaged")
        header.require_moderate()
        return header

    def require_moderate(self) -> None:
        """RunFileError if rows, or the series, are longer than a reader takes."""
        if any(array.row_bytes >= 1 << 60 for _, array in self.arrays().values()):
            raise RunFileError("declares rows that no file can hold; the file is damaged")
        size = self.series_rows * sum(array.row_bytes for array in self.contents.series.values())
        if size > MAX_SERIES:
            raise RunFileError(f"series of {size:,} bytes; at most {MAX_SERIES:,} go into a run file (series_every)")

    @property
    def record_type(self) -> np.dtype:
        """The type of a checkpoint's record, in whole sectors."""
        return record_type(self.contents.metrics)


def header_length(line: bytes) -> int:
    """Bytes of the header's JSON, from its first line; RunFileError if it is no line of schema version 2."""
    parts = line.split(b" ")
    if line[:8] == b"\x89HDF\r\n\x1a\n":
        raise RunFileError(
            f"is HDF5, but no run file of schema version {SCHEMA_VERSION}; a run file of version 1 must be trained anew"
        )
    if not line.startswith(MAGIC) or len(line) < FIRST_LINE or len(parts) != 4 or not parts[2].isdigit():
        raise RunFileError("is no run file, or is damaged; give the path of a run file")
    if parts[1] != str(SCHEMA_VERSION).encode():
        version = parts[1].decode(errors="replace")[:20]
        raise RunFileError(f"has schema version {version}, expected {SCHEMA_VERSION}; use a matching package")
    if int(parts[2]) > MAX_HEADER:
        raise RunFileError(f"declares a header of {int(parts[2])} bytes; the file is damaged")
    return int(parts[2])


def record_type(metrics: tuple[str, ...]) -> np.dtype:
    """The type of a checkpoint's record: its step and the one before it (−1: none), SHA-256 of its weights and of its
    optimizer state and series, metrics, and the seal (`sealed`)."""
    fields: dict[str, Any] = {
        "step": ("<i8", 0),
        "previous": ("<i8", 8),
        "digest": (("u1", (32,)), 16),
        "rest_digest": (("u1", (32,)), 48),
    }
    if metrics:
        fields["metrics"] = (np.dtype([(name, "<f8") for name in metrics]), 80)
    return _in_sectors(fields, 80 + 8 * len(metrics))


def _in_sectors(fields: dict[str, Any], length: int) -> np.dtype:
    """A record type of these fields, sealed, in whole sectors."""
    size = -(-(length + _SEAL) // SECTOR) * SECTOR
    fields = {**fields, "seal": (("u1", (_SEAL,)), size - _SEAL)}
    formats, offsets = zip(*fields.values(), strict=True)
    return np.dtype({"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": size})


END_TYPE = _in_sectors({"status": ("<i8", 0), "checkpoints": ("<i8", 8)}, 16)
"""The type of the end record: number of the status, number of checkpoints, and the seal."""


def seal(run: str, row: int, record: bytes | bytearray | memoryview) -> bytes:
    """SHA-256 of a run's id, a record's row (−1: the end record), and the record but for its last 32 bytes."""
    sha = hashlib.sha256(bytes.fromhex(run) + row.to_bytes(8, "little", signed=True))
    sha.update(record[:-_SEAL])
    return sha.digest()


def sealed(run: str, row: int, record: np.ndarray) -> bytes:
    """The bytes of a record with its seal."""
    content = record.tobytes()
    return content[:-_SEAL] + seal(run, row, content)


def is_whole(run: str, row: int, record: bytes | bytearray | memoryview) -> bool:
    """Whether the seal of a record fits."""
    return record[-_SEAL:] == seal(run, row, record)


def array_of(value: "Tensor | np.ndarray") -> np.ndarray:
    """A tensor of any device, or array, as an array."""
    return value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()


def digest(parameters: "Mapping[str, Tensor] | Mapping[str, np.ndarray]") -> bytes:
    """SHA-256 of a checkpoint: of the names, shapes and little-endian bytes of its parameters, in order.

    Of a parameter that is not of 32-bit floats, its type follows the shape.
    """
    sha = hashlib.sha256()
    for name, value in parameters.items():
        array = array_of(value)
        kind = _little_endian(array.dtype)
        sha.update(digested_name(name, array.shape, kind))
        sha.update(np.ascontiguousarray(array, kind).data)
    return sha.digest()


@lru_cache(1 << 12)
def _little_endian(dtype: np.dtype) -> str:
    return dtype.newbyteorder("<").str


@lru_cache(1 << 12)
def digested_name(name: str, shape: tuple[int, ...], dtype: str) -> bytes:
    """What stands before the bytes of a parameter in a digest."""
    return f"{name}{shape}{'' if dtype == '<f4' else dtype}".encode()
