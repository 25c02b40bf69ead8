"""The cost of a study: estimated before it starts, counted when it is done.

    seconds of one core = Σ over runs of  steps × seconds a step + checkpoints × seconds to measure one

The two times are medians over the variant's completed runs or, where there is none, those of a short trial. A run with
a stop rule is counted with all its steps, so an estimate is an upper bound.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mechinterp.config import RunConfig
from mechinterp.studies import processes
from mechinterp.studies.jobs import distinct_jobs, step_signature
from mechinterp.studies.results import Results
from mechinterp.studies.study import Study


@dataclass(frozen=True)
class Speed:
    """Time and disk space of one variant."""

    step: float
    """Seconds a step."""
    checkpoint: float
    """Seconds to measure a checkpoint."""
    checkpoint_bytes: float
    """Bytes of a checkpoint on disk."""


@dataclass(frozen=True)
class Estimate:
    """The cost of the runs of a study that are still to do."""

    runs: int
    """Runs of the study."""
    todo: int
    """Runs that are still to do."""
    untimed: int
    """Of those, the runs of variants that are not timed yet."""
    steps: int
    """Steps, at most."""
    core_seconds: float
    """Seconds of one core, at most; variants that are not timed are left out."""
    kept_bytes: int
    """Bytes that stay on disk, at most; variants that are not timed are left out."""

    def on(self, workers: int | None) -> str:
        """One line that also says how long `workers` take, if their number is known."""
        if not self.todo:
            return f"none of {self.runs} runs to do"
        text, timed = f"{self.todo} of {self.runs} runs to do, at most {self.steps:,} steps", self.todo - self.untimed
        if timed:
            text += f": at most {span(self.core_seconds)} of one core"
            text += f" ({span(self.core_seconds / min(workers, timed))} on {workers})" if workers else ""
            text += f", {size(self.kept_bytes)} kept"
        return text + (f"; not timed yet: {self.untimed} of them (--estimate)" if self.untimed else "")


def estimate(study: Study, outcomes: Results, folder: str | Path, *, clocked: bool, retry: bool = False) -> Estimate:
    """The cost of the runs still to do; those that failed count as such with `retry` only.

    Variants without a completed run are timed by a short trial if `clocked`, otherwise counted as not timed.
    """
    jobs = distinct_jobs(study, Path(folder))
    todo = [run for run, job in jobs if outcomes.awaits(job, retry)]
    variants = {run.variant: run.config for run in todo}
    speeds = _measured_speeds(study, outcomes, folder)
    if clocked:
        speeds |= _clocked_speeds({name: config for name, config in variants.items() if name not in speeds})
    checkpoints = {name: len(config.checkpoints.schedule(config.training.steps)) for name, config in variants.items()}
    steps = untimed = 0
    seconds = kept = 0.0
    for run in todo:
        steps += run.config.training.steps
        if (speed := speeds.get(run.variant)) is None:
            untimed += 1
            continue
        count = checkpoints[run.variant]
        seconds += speed.step * run.config.training.steps + speed.checkpoint * count
        kept += speed.checkpoint_bytes * (1 if study.keep == "last" else count)
    return Estimate(len(jobs), len(todo), untimed, steps, seconds, round(kept))


@dataclass(frozen=True)
class Spent:
    """The cost of the completed runs of a study."""

    runs: int
    """Completed runs."""
    steps: int
    """Their steps."""
    core_seconds: float
    """Seconds of one core, training and measuring; an interrupted run counts as if it had not been interrupted."""
    measuring: float
    """The share of measuring in that time, 0 to 1."""
    disk_bytes: int
    """Their bytes on disk."""

    def __str__(self) -> str:
        if not self.runs:
            return "no run is done yet"
        seconds_per_step = self.core_seconds * (1 - self.measuring) / max(self.steps, 1)
        return (
            f"{self.runs} runs done: {self.steps:,} steps, {span(self.core_seconds)} of one core"
            f" ({1e3 * seconds_per_step:.1f} ms a step, {self.measuring:.0%} for measuring),"
            f" {size(self.disk_bytes)} on disk"
        )


def spent(study: Study, outcomes: Results, folder: str | Path) -> Spent:
    """The cost of the completed runs."""
    rows = [row for _, row in _done(study, outcomes, folder)]
    training = sum((row["steps"] * _seconds_per_step(row) for row in rows), 0.0)
    measuring = sum((row.get("cost.measuring_seconds", 0.0) for row in rows), 0.0)
    kept = [row.get("cost.checkpoints", 1) if row["kept"] == "all" else 1 for row in rows]
    on_disk = sum(n * row.get("cost.checkpoint_bytes", 0) for n, row in zip(kept, rows, strict=True))
    total = training + measuring
    return Spent(len(rows), sum(row["steps"] for row in rows), total, measuring / total if total else 0.0, on_disk)


def _done(study: Study, outcomes: Results, folder: str | Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """The variant and the row of every completed run, once."""
    for run, job in distinct_jobs(study, Path(folder)):
        if row := outcomes.of(job):
            yield run.variant, row


def _seconds_per_step(row: Mapping[str, Any]) -> float:
    """Seconds a step, over the timed steps of a run (those before an interruption are not); 0 if there are none."""
    steps = row.get("cost.steps", 0)
    return row.get("cost.training_seconds", 0.0) / steps if steps else 0.0


def _measured_speeds(study: Study, outcomes: Results, folder: str | Path) -> dict[str, Speed]:
    """The medians over the completed runs of every variant."""
    rows = defaultdict(list)
    for variant, row in _done(study, outcomes, folder):
        if row.get("cost.steps", 0) > 0:
            rows[variant].append(row)
    return {
        variant: Speed(
            median(_seconds_per_step(row) for row in completed),
            median(
                row.get("cost.measuring_seconds", 0.0) / max(row.get("cost.checkpoints", 1), 1) for row in completed
            ),
            float(median(row.get("cost.checkpoint_bytes", 0) for row in completed)),
        )
        for variant, completed in rows.items()
    }


def _clocked_speeds(variants: Mapping[str, RunConfig]) -> dict[str, Speed]:
    """The speeds measured in one short trial per `step_signature`; a variant whose trial fails is left out.

    A trial may diverge. That is no error of an estimate: the run itself will report it.
    """
    signatures = {variant: step_signature(config) for variant, config in variants.items()}
    speeds: dict[str, Speed | None] = {}
    for variant, config in variants.items():
        if signatures[variant] not in speeds:
            reply = processes.ask({"what": "clock", "config": config.model_dump(mode="json"), "cwd": os.getcwd()})
            timed = None if reply["error"] else Speed(reply["step"], reply["checkpoint"], reply["checkpoint_bytes"])
            speeds[signatures[variant]] = timed
    return {variant: speed for variant, signature in signatures.items() if (speed := speeds[signature])}


def span(seconds: float) -> str:
    """A duration as text, in two or three figures."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def size(n_bytes: int) -> str:
    """A number of bytes as text."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= length:
            return f"{n_bytes / length:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"
