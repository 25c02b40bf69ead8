"""What a study costs: estimated before it starts, counted when it is done.

    seconds of one core = Σ over runs of  steps × seconds a step + checkpoints × seconds to measure one

A step and a checkpoint of a variant take what they took in its runs that are done, else what they take in a short
trial. Runs that a stop rule may end earlier are counted whole, so an estimate is an upper bound.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mechinterp.config import RunConfig
from mechinterp.studies import processes
from mechinterp.studies.jobs import distinct_jobs, kind_of
from mechinterp.studies.outcomes import Outcomes
from mechinterp.studies.study import Study


@dataclass(frozen=True)
class Speed:
    """What one variant's runs take."""

    step: float
    """Seconds a step."""
    checkpoint: float
    """Seconds to measure a checkpoint."""
    checkpoint_bytes: float
    """Bytes of a checkpoint on disk."""


@dataclass(frozen=True)
class Estimate:
    """What is left of a study."""

    runs: int
    """Runs of the study."""
    todo: int
    """Those that are not done, and would be."""
    untimed: int
    """Of those, how many are of variants of which no time is known yet."""
    steps: int
    """Steps, at most."""
    core_seconds: float
    """Seconds of one core, at most; without those of variants that are not timed."""
    kept_bytes: int
    """Bytes that stay on disk, at most; without those of variants that are not timed."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    def on(self, workers: int | None) -> str:
        """In one line, for so many workers, if their number is known."""
        if not self.todo:
            return f"none of {self.runs} runs to do"
        about, known = f"{self.todo} of {self.runs} runs to do, at most {self.steps:,} steps", self.todo - self.untimed
        if known:
            about += f": at most {span(self.core_seconds)} of one core"
            about += f" ({span(self.core_seconds / min(workers, known))} on {workers})" if workers else ""
            about += f", {size(self.kept_bytes)} kept"
        return about + (f"; not timed yet: {self.untimed} of them (--estimate)" if self.untimed else "")


def estimate(study: Study, outcomes: Outcomes, folder: str | Path, *, clocked: bool, retry: bool = False) -> Estimate:
    """What the runs that are not done will take. Variants without a run that is done are `clocked`, or counted aside.

    Runs that failed are counted with `retry` only.
    """
    jobs = distinct_jobs(study, Path(folder))
    todo = [each for each, job in jobs if outcomes.awaits(job, retry)]
    variants = {each.variant: each.config for each in todo}
    speeds = _measured_speeds(study, outcomes, folder)
    if clocked:
        speeds |= _clocked_speeds({name: config for name, config in variants.items() if name not in speeds})
    checkpoints = {name: len(config.checkpoints.schedule(config.training.steps)) for name, config in variants.items()}
    steps = untimed = 0
    seconds = kept = 0.0
    for each in todo:
        steps += each.config.training.steps
        if (speed := speeds.get(each.variant)) is None:
            untimed += 1
            continue
        count = checkpoints[each.variant]
        seconds += speed.step * each.config.training.steps + speed.checkpoint * count
        kept += speed.checkpoint_bytes * (1 if study.keep == "last" else count)
    return Estimate(len(jobs), len(todo), untimed, steps, seconds, round(kept))


@dataclass(frozen=True)
class Spent:
    """What a study's runs that are done have taken."""

    runs: int
    """Runs that are done."""
    steps: int
    """Steps that they took."""
    core_seconds: float
    """Seconds of one core, training and measuring; of a run that was interrupted, as if it had not been."""
    measuring: float
    """The part of measuring, 0 to 1."""
    disk_bytes: int
    """Bytes that they have on disk."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.runs:
            return "no run is done yet"
        a_step = self.core_seconds * (1 - self.measuring) / max(self.steps, 1)
        return (
            f"{self.runs} runs done: {self.steps:,} steps, {span(self.core_seconds)} of one core ({1e3 * a_step:.1f} ms"
            f" a step, {self.measuring:.0%} for measuring), {size(self.disk_bytes)} on disk"
        )


def spent(study: Study, outcomes: Outcomes, folder: str | Path) -> Spent:
    """What the runs that are done have taken."""
    rows = [row for _, row in _done(study, outcomes, folder)]
    training = sum((row["steps"] * _a_step(row) for row in rows), 0.0)
    measuring = sum((row.get("cost.measuring_seconds", 0.0) for row in rows), 0.0)
    kept = [row.get("cost.checkpoints", 1) if row["kept"] == "all" else 1 for row in rows]
    on_disk = sum(n * row.get("cost.checkpoint_bytes", 0) for n, row in zip(kept, rows, strict=True))
    total = training + measuring
    return Spent(len(rows), sum(row["steps"] for row in rows), total, measuring / total if total else 0.0, on_disk)


def _done(study: Study, outcomes: Outcomes, folder: str | Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Variant and row of every run that is done, each once."""
    for each, job in distinct_jobs(study, Path(folder)):
        if row := outcomes.of(job):
            yield each.variant, row


def _a_step(row: Mapping[str, Any]) -> float:
    """Seconds of a step of a run: what was trained before an interruption was not timed, and perhaps nothing was."""
    steps = row.get("cost.steps", 0)
    return row["cost.training_seconds"] / steps if steps else 0.0


def _measured_speeds(study: Study, outcomes: Outcomes, folder: str | Path) -> dict[str, Speed]:
    """The medians over each variant's runs that are done."""
    rows = defaultdict(list)
    for variant, row in _done(study, outcomes, folder):
        if row.get("cost.steps", 0) > 0:
            rows[variant].append(row)
    return {
        variant: Speed(
            median(_a_step(row) for row in own),
            median(row.get("cost.measuring_seconds", 0.0) / row.get("cost.checkpoints", 1) for row in own),
            float(median(row.get("cost.checkpoint_bytes", 0) for row in own)),
        )
        for variant, own in rows.items()
    }


def _clocked_speeds(variants: Mapping[str, RunConfig]) -> dict[str, Speed]:
    """A short trial of each kind of network and sequence; how often a class appears makes no difference to it."""
    speeds: dict[str, Speed | None] = {}
    for config in variants.values():
        if kind_of(config) not in speeds:
            reply = processes.ask({"what": "clock", "config": config.model_dump(mode="json"), "cwd": os.getcwd()})
            timed = not reply["error"]  # it may diverge, which is for its run to find out
            speeds[kind_of(config)] = _speed(reply) if timed else None
    found = {variant: speeds[kind_of(config)] for variant, config in variants.items()}
    return {variant: speed for variant, speed in found.items() if speed}


def _speed(reply: Mapping[str, Any]) -> Speed:
    return Speed(reply["step"], reply["checkpoint"], reply["checkpoint_bytes"])


def span(seconds: float) -> str:
    """A length of time, in two or three figures."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def size(n_bytes: int) -> str:
    """A number of bytes."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= length:
            return f"{n_bytes / length:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"
