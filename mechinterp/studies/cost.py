"""The cost of a run or a study: estimated before it starts, counted when it is done.

    seconds of one core = workers × seconds to start one
                          + Σ over runs of  steps × seconds a step + checkpoints × seconds to write and measure one

Of a variant with completed runs, the times of steps and checkpoints are medians over these; otherwise those of a short
trial, which trains and measures with the engine and the interventions of the run. To start a worker takes the imports,
compilation and the first step and measures; it is timed by a trial alone. A run with a stop rule is counted with all
its steps, so an estimate is an upper bound as far as the machine stays as busy as in the trial.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError
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
    start: float = 0.0
    """Seconds that a worker takes to start; 0 if it is not known."""
    written: float = 0.0
    """Seconds to write a checkpoint; 0 if it is counted with the steps."""
    engine: str = ""
    """The engine that trains; empty if it is not known."""


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
    start_seconds: float = 0.0
    """Seconds of one core that each worker takes to start, as far as a trial has timed it."""

    def on(self, workers: int | None) -> str:
        """One line that also says how long `workers` take, if their number is known."""
        if not self.todo:
            return f"none of {self.runs} runs to do"
        text, timed = f"{self.todo} of {self.runs} runs to do, at most {self.steps:,} steps", self.todo - self.untimed
        if timed:
            active = min(workers or 1, timed)
            text += f": at most {span(self.core_seconds + active * self.start_seconds)} of one core"
            text += f" ({span(self.core_seconds / active + self.start_seconds)} on {workers})" if workers else ""
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
    seconds = kept = start = 0.0
    for run in todo:
        steps += run.config.training.steps
        if (speed := speeds.get(run.variant)) is None:
            untimed += 1
            continue
        count = checkpoints[run.variant]
        start = max(start, speed.start)
        seconds += speed.step * run.config.training.steps + (speed.checkpoint + speed.written) * count
        kept += speed.checkpoint_bytes * (1 if study.keep == "last" else count)
    return Estimate(len(jobs), len(todo), untimed, steps, seconds, round(kept), start)


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
            speeds[signatures[variant]] = None if reply["error"] else _clocked(reply)
    return {variant: speed for variant, signature in signatures.items() if (speed := speeds[signature])}


def _clocked(reply: Mapping[str, Any]) -> Speed:
    """The times of a trial (`studies.worker.clock`)."""
    times = [reply[name] for name in ("step", "checkpoint", "checkpoint_bytes", "start", "written")]
    return Speed(*times, engine=reply["engine"])


@dataclass(frozen=True)
class RunCost:
    """What a run takes, at most."""

    engine: str
    """The engine that trains."""
    steps: int
    """Its steps."""
    checkpoints: int
    """Its checkpoints."""
    seconds: float
    """Seconds to start, train and, if it is to be measured, measure it, on one core."""
    bytes: int
    """Bytes of its file."""

    def __str__(self) -> str:
        return (
            f"at most {span(self.seconds)} on one core as busy as now ({self.steps:,} steps, {self.engine} engine),"
            f" {self.checkpoints:,} checkpoints, {size(self.bytes)} on disk"
        )

    def to_dict(self) -> dict[str, Any]:
        """The numbers, and the engine."""
        return {"engine": self.engine, "seconds": self.seconds, "checkpoints": self.checkpoints, "bytes": self.bytes}


def cost_of_run(config: RunConfig, *, measured: bool) -> RunCost:
    """What a run takes, by a short trial in a process of its own; with its measures at every checkpoint if `measured`.

    MechinterpError if the trial fails, for instance as it diverges.
    """
    try:
        reply = processes.ask({"what": "clock", "config": config.model_dump(mode="json"), "cwd": os.getcwd()})
    finally:
        processes.end()
    if reply["error"]:
        raise MechinterpError(f"the trial has failed: {reply['error']}")
    speed, steps = _clocked(reply), config.training.steps
    count = len(config.checkpoints.schedule(steps))
    each = speed.written + (speed.checkpoint if measured else 0.0)
    seconds = speed.start + speed.step * steps + each * count
    return RunCost(speed.engine, steps, count, seconds, round(speed.checkpoint_bytes * count))


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
