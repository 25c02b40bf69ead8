"""The outcomes of the runs in a folder, or their errors, and an index of all of them.

The worker that executes a run writes ``{id}.json`` (the outcome) or ``{id}.failed.json`` (the error) beside ``{id}.h5``
(the run) and ``{id}.csv`` (step × measure). These files are the record. ``index.parquet`` repeats the record with one
row per run, so that a study of ten thousand runs is read without opening ten thousand files. Rows of the index that are
missing or out of date are read from the record again.
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow
from pyarrow import parquet
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mechinterp.errors import MechinterpError
from mechinterp.files import plain_json, read_regular, read_sealed_json, replace_bytes, write_sealed_json
from mechinterp.studies.jobs import Job

FORMAT = 2
"""Version of the outcomes' meaning; outcomes of another version are measured anew."""
INDEX = "index.parquet"
_OUTCOME, _FAILED = ".json", ".failed.json"


def _encodable(text: str) -> str:
    text.encode()  # its error is a ValueError
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Number = Annotated[float, Field(gt=-1e15, lt=1e15)]
Amount = Annotated[float, Field(ge=0, lt=1e15)]


class _Part(BaseModel):
    """A part of a record, whose further values are of the types that JSON and the index share."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, bool | Number | Text | list[Number] | None]  # pyright: ignore[reportIncompatibleVariableOverride]


class _Transition(_Part):
    transition: bool
    step: Number | None = None
    low: Number | None = None
    high: Number | None = None
    width: Number | None = None
    before: Number | None = None
    after: Number | None = None


class _Outcome(_Part):
    """What the record of a run must be."""

    kept: Literal["all", "last"]
    steps: Annotated[int, Field(ge=0, lt=1 << 53)]
    transitions: dict[Text, _Transition]
    final: dict[Text, Number | None]
    cost: dict[Text, Amount]
    first_spike: Number | None = None


class _Failure(_Part):
    """What the record of a failure must be."""

    error: Text
    output: Text


def file_of(job: Job, ending: str) -> Path:
    """The path of a run's file: folder, id and ending."""
    return Path(job["folder"]) / f"{job['id']}{ending}"


def write_outcome(job: Job, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Record the outcome of a run, as JSON values, which are returned; a recorded failure is deleted."""
    record = plain_json({"format": FORMAT, "id": job["id"], **outcome})
    write_sealed_json(file_of(job, _OUTCOME), record)
    forget_failure(job)
    return record


def write_failure(job: Job, error: str, output: str) -> None:
    """Record the error of a run. If the record cannot be written (a full disk), the run counts as not done."""
    with contextlib.suppress(MechinterpError):
        record = {"id": job["id"], "error": error, "output": output[-10_000:]}
        write_sealed_json(file_of(job, _FAILED), record)


def forget_failure(job: Job) -> None:
    """Delete the record of a failure, before the run is tried again."""
    file_of(job, _FAILED).unlink(missing_ok=True)


def recorded(job: Job) -> dict[str, Any] | None:
    """The recorded outcome of a job's run, even if the job asks for more than it has; None without one."""
    outcome = _read(file_of(job, _OUTCOME))
    return outcome if outcome is not None and outcome.get("format") == FORMAT else None


def done(job: Job) -> dict[str, Any] | None:
    """The recorded outcome of a job that is done; None if it is not done."""
    outcome = recorded(job)
    complete = file_of(job, ".h5").exists() and file_of(job, ".csv").exists()
    return outcome if outcome is not None and complete and _suffices(outcome, job) else None


def _suffices(outcome: Mapping[str, Any], job: Job) -> bool:
    """Whether an outcome, or its row of the index, has all measures and checkpoints that a job asks for."""
    located = all(f"{name}.transition" in outcome or name in outcome.get("transitions", ()) for name in job["measures"])
    kept = outcome.get("kept") == "all" or job["keep"] == "last"
    return located and kept and outcome.get("format") == FORMAT


class Results:
    """The outcomes of the runs in a folder; reading them also updates the folder's index."""

    def __init__(self, folder: Path):
        if folder.exists() and not folder.is_dir():
            raise MechinterpError(f"{folder}: is a file; give the folder of the runs")
        entries = {entry.name: entry for entry in os.scandir(folder)} if folder.exists() else {}
        self._names = set(entries)
        indexed, self._rows = _read_index(folder / INDEX), {}
        for name, entry in entries.items():
            if not name.endswith(_OUTCOME):
                continue
            id, failed = name.partition(".")[0], name.endswith(_FAILED)
            if failed and f"{id}{_OUTCOME}" in entries:
                continue  # an outcome counts, not an earlier failure
            try:
                stamp = entry.stat().st_mtime_ns
            except FileNotFoundError:
                continue  # deleted since the folder was listed: the run is being tried again
            row = indexed.get(id, {})
            if (row.get("stamp"), row.get("failed")) == (stamp, failed):
                self._rows[id] = row
            elif (record := _read(folder / name)) is not None:
                self._rows[id] = {"failed": failed, "stamp": stamp, **_flat(record)}
        if self._rows != indexed:
            _write_index(self._rows, folder / INDEX)

    def of(self, job: Job) -> dict[str, Any] | None:
        """The row of a job that is done: its outcome, with columns ``{measure}.{field}`` for transitions; else None."""
        row, id = self._rows.get(job["id"]), job["id"]
        if row is None or row["failed"] or not _suffices(row, job):
            return None
        return row if {f"{id}.h5", f"{id}.csv"} <= self._names else None

    def error(self, job: Job) -> str | None:
        """The error of a run that failed; None if it did not fail."""
        row = self._rows.get(job["id"])
        return str(row.get("error", "its record does not say why")) if row is not None and row["failed"] else None

    def awaits(self, job: Job, retry: bool) -> bool:
        """Whether a job is still to do: it is not done, and it has not failed unless failures are retried."""
        return not self.of(job) and (retry or self.error(job) is None)

    def begun(self, job: Job) -> bool:
        """Whether there is a run file."""
        return f"{job['id']}.h5" in self._names


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """An outcome as one row without nulls; nested values become ``{measure}.{field}`` (transitions),
    ``final.{measure}`` and ``cost.{field}``."""
    row = {
        name: value for name, value in record.items() if name not in ("id", "transitions", "final", "output", "cost")
    }
    tables = {**record.get("transitions", {}), "final": record.get("final", {}), "cost": record.get("cost", {})}
    row |= {f"{table}.{name}": value for table, values in tables.items() for name, value in values.items()}
    return {name: value for name, value in row.items() if value is not None}


def _read(path: Path) -> dict[str, Any] | None:
    """The record of the run that a path names; None if there is none, it is damaged, or is that of another run."""
    record, (id, _, ending) = read_sealed_json(path), path.name.partition(".")
    try:
        (_Failure if f".{ending}" == _FAILED else _Outcome).model_validate(record)
    except (ValidationError, RecursionError):
        return None
    return record if record.get("id") == id else None


def _read_index(path: Path) -> dict[str, dict[str, Any]]:
    """The rows by id; empty if there is no index or it cannot be read."""
    try:
        table = parquet.read_table(BytesIO(read_regular(path)), use_threads=False)
        if (table.schema.metadata or {}).get(b"sha256") != _digest(table):
            return {}
        columns = table.to_pydict()
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
        return {}
    rows = {id: dict[str, Any]() for id in columns.pop("id")}
    for name, values in columns.items():
        for row, value in zip(rows.values(), values, strict=True):
            if value is not None:
                row[name] = value
    return rows


def _write_index(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the index. If that fails, or values of a column differ in type, it stays as it was: the record has all."""
    names = sorted({name for row in rows.values() for name in row})
    columns = {"id": sorted(rows)} | {name: [rows[id].get(name) for id in sorted(rows)] for name in names}
    with contextlib.suppress(MechinterpError, pyarrow.ArrowException, ValueError, TypeError):
        table, content = pyarrow.table(columns), BytesIO()
        parquet.write_table(table, content)
        as_read = parquet.read_table(content, use_threads=False)
        parquet.write_table(table.replace_schema_metadata({"sha256": _digest(as_read)}), content := BytesIO())
        replace_bytes(path, content.getvalue(), patience=0.0)  # another process writes the same


def _digest(table: pyarrow.Table) -> bytes:
    """SHA-256 of the columns of an index, as they are read (hexadecimal); it is kept in the index's metadata."""
    stream, plain = BytesIO(), table.replace_schema_metadata(None).combine_chunks()
    with pyarrow.ipc.new_stream(stream, plain.schema) as writer:
        writer.write_table(plain)
    return hashlib.sha256(stream.getbuffer()).hexdigest().encode()
