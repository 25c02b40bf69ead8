"""What is known of the runs in a folder: the outcome of each, or why it failed; and an index of all of them.

Whoever does a run writes ``{id}.json`` (its outcome) or ``{id}.failed.json``, beside ``{id}.h5`` (the run) and
``{id}.csv`` (step × measure). Those are the record. ``index.parquet`` repeats it in columns, one row a run, so that a
study of ten thousand runs is looked through without opening ten thousand files; whatever in it is missing or out of
date is read from the record, and an index that is lost is made anew.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from mechinterp.errors import MechinterpError
from mechinterp.files import plain_json, replace_text, replacing
from mechinterp.studies.jobs import Job

FORMAT = 1
"""Raised when outcomes come to mean something else; older ones are then measured anew."""
INDEX = "index.parquet"
_OUTCOME, _FAILED = ".json", ".failed.json"


def file_of(job: Job, ending: str) -> Path:
    """The run's file of that ending."""
    return Path(job["folder"]) / f"{job['id']}{ending}"


def write_outcome(job: Job, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Record what became of a run; a failure recorded before is forgotten."""
    plain = plain_json({"format": FORMAT, **outcome})
    replace_text(file_of(job, _OUTCOME), json.dumps(plain))
    file_of(job, _FAILED).unlink(missing_ok=True)
    return plain


def write_failure(job: Job, error: str, output: str) -> None:
    """Record why a run failed. Where there is no room even for that, the run counts as not done."""
    with contextlib.suppress(OSError):
        replace_text(file_of(job, _FAILED), json.dumps({"error": error, "output": output[-10_000:]}))


def forget_failure(job: Job) -> None:
    """A run that is tried again has not failed."""
    file_of(job, _FAILED).unlink(missing_ok=True)


def recorded(job: Job) -> dict[str, Any] | None:
    """The outcome of a job's run, read from its own file, whether or not it is all that the job asks for."""
    outcome = _read(file_of(job, _OUTCOME))
    return outcome if outcome is not None and outcome.get("format") == FORMAT else None


def done(job: Job) -> dict[str, Any] | None:
    """The outcome of a job that is done, read from its own files; None if it is not done."""
    outcome = recorded(job)
    there = file_of(job, ".h5").exists() and file_of(job, ".csv").exists()
    return outcome if outcome is not None and there and _suffices(outcome, job) else None


def _suffices(outcome: Mapping[str, Any], job: Job) -> bool:
    """Whether an outcome, or its row of the index, is what a job asks for."""
    located = all(f"{name}.transition" in outcome or name in outcome.get("transitions", ()) for name in job["measures"])
    kept = outcome.get("kept") == "all" or job["keep"] == "last"
    return located and kept and outcome.get("format") == FORMAT


class Outcomes:
    """The outcomes of the runs in a folder, from its index, brought up to date."""

    def __init__(self, folder: Path):
        if folder.exists() and not folder.is_dir():
            raise MechinterpError(f"{folder}: is a file; give the folder of the runs")
        found = {entry.name: entry for entry in os.scandir(folder)} if folder.exists() else {}
        self._names = set(found)
        known, rows = _read_index(folder / INDEX), {}
        for name, entry in found.items():
            if not name.endswith(_OUTCOME):
                continue
            id, failed = name.partition(".")[0], name.endswith(_FAILED)
            if failed and f"{id}{_OUTCOME}" in found:
                continue  # what is done counts
            try:
                stamp = entry.stat().st_mtime_ns
            except FileNotFoundError:
                continue  # it is being tried again at this moment
            before = known.get(id)
            if before is not None and (before.get("stamp"), before.get("failed")) == (stamp, failed):
                rows[id] = before
            elif (record := _read(folder / name)) is not None:
                rows[id] = {"failed": failed, "stamp": stamp, **_flat(record)}
        self._rows = rows
        if rows != known:
            _write_index(rows, folder / INDEX)

    def of(self, job: Job) -> dict[str, Any] | None:
        """The row of a job that is done: its outcome, what it has of ``transitions`` as ``{measure}.{what}``."""
        row, id = self._rows.get(job["id"]), job["id"]
        if row is None or row["failed"] or not _suffices(row, job):
            return None
        return row if {f"{id}.h5", f"{id}.csv"} <= self._names else None

    def error(self, job: Job) -> str | None:
        """Why a run failed, if it did."""
        row = self._rows.get(job["id"])
        return str(row.get("error", "its record does not say why")) if row is not None and row["failed"] else None

    def awaits(self, job: Job, retry: bool) -> bool:
        """Whether a job is to be done: it is not, and it has not failed, or is to be tried again."""
        return not self.of(job) and (retry or self.error(job) is None)

    def begun(self, job: Job) -> bool:
        """Whether there is a run file."""
        return f"{job['id']}.h5" in self._names


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """An outcome as one row, without what is null: of each measure's transition ``{measure}.{what}``, at the end
    ``final.{measure}``, of what it cost ``cost.{what}``."""
    row = {name: value for name, value in record.items() if name not in ("transitions", "final", "output", "cost")}
    for measure, found in record.get("transitions", {}).items():
        row |= {f"{measure}.{name}": value for name, value in found.items()}
    row |= {f"final.{name}": value for name, value in record.get("final", {}).items()}
    row |= {f"cost.{name}": value for name, value in record.get("cost", {}).items()}
    return {name: value for name, value in row.items() if value is not None}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    parts = [record.get("transitions", {}), record.get("final", {}), record.get("cost", {})]
    tables = [*parts, *(parts[0].values() if isinstance(parts[0], dict) else ())]
    return record if all(isinstance(each, dict) for each in tables) else None


def _read_index(path: Path) -> dict[str, dict[str, Any]]:
    """The rows by id; none where there is no index that can be read."""
    try:
        rows = parquet.read_table(path).to_pylist()
        return {row.pop("id"): {name: value for name, value in row.items() if value is not None} for row in rows}
    except (OSError, ValueError, KeyError):  # pyarrow's errors are of these kinds
        return {}


def _write_index(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Where the folder cannot be written, the disk is full, or somebody's record has odd types, the index stays as it
    was: it can be made again."""
    names = sorted({name for row in rows.values() for name in row})
    columns = {"id": sorted(rows)} | {name: [rows[id].get(name) for id in sorted(rows)] for name in names}
    with contextlib.suppress(OSError, pyarrow.ArrowException), replacing(path) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary)
