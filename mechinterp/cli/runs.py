"""Commands that train runs, rebuild steps of them and check their files."""

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from mechinterp.cli.common import Json, RunPath, Settings, print_result, spikes_result, with_spikes
from mechinterp.config import PRESETS
from mechinterp.errors import MechinterpError

if TYPE_CHECKING:
    Preset = str
else:
    Preset = Literal[tuple(PRESETS)]


@dataclass
class Train:
    """Train a network and write its trajectory."""

    settings: Settings
    preset: Preset = "reddy2023-fast"
    """The config to start from."""
    config: Path | None = None
    """A TOML file to start from, instead of a preset."""
    out: Path | None = None
    """Where the run file goes; by default checkpoints/PRESET-seedS.h5."""
    overwrite: bool = False
    """Replace the run file if it exists."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network is trained."""
    track: Literal["wandb", "trackio", "tensorboard"] | None = None
    """An experiment tracker that gets loss, accuracy and gradient norm; by default none."""
    json: Json = False

    def execute(self) -> None:
        run = self.train()
        engine = run.environment["engine"]
        summary = {"run": str(run.path), "status": run.status, "steps": run.steps[-1], "engine": engine}
        print_result(summary, self.json, f"trained {run.steps[-1]} steps ({engine} engine): {run.path}")

    def train(self):
        from mechinterp.training.runs import train

        return train(self.settings, self.run_path(), device=self.device, overwrite=self.overwrite, track=self.track)

    def run_path(self) -> Path:
        """The path of the run file."""
        name = self.config.stem if self.config else self.preset
        return self.out or Path("checkpoints") / f"{name}-seed{self.settings.seed}.h5"


@dataclass
class Run(Train):
    """The main job: train, measure every checkpoint, locate the emergence, write the report."""

    measure: str | None = None
    """The measure whose transition is the result; by default the accuracy on the task's first evaluation set."""

    def execute(self) -> None:
        from mechinterp.analysis.headline import headline
        from mechinterp.emergence import locate_or_say_why
        from mechinterp.files import replace_text, require_writable
        from mechinterp.measures import columns_for, main_measure, measure
        from mechinterp.report import write_report
        from mechinterp.tasks import build_task
        from mechinterp.tracking import require_tracker
        from mechinterp.training.spikes import spikes_of

        task = build_task(self.settings)
        name = self.measure or main_measure(task)
        columns_for(task, self.settings.model, [name])
        if self.track:
            require_tracker(self.track)
        out = self.run_path()
        csv, report = out.with_suffix(".csv"), out.with_suffix(".html")
        for path in (csv, report):
            if path == out:
                raise MechinterpError(f"{out}: the table and the report go to {csv.name} and {report.name}; use .h5")
            require_writable(path, self.overwrite)
        run = self.train()
        table = measure(run, progress=True)
        emergence, spikes = locate_or_say_why(table[name]), spikes_of(run.file.metrics())
        write_report(run, table, report, measure=name, progress=True)
        replace_text(csv, table.to_csv())
        result = {"run": str(run.path), "measures": str(csv), "report": str(report), "measure": name}
        found = headline(run, table[name], emergence)
        result |= emergence.to_dict() | found.to_dict() | spikes_result(spikes)
        print_result(result, self.json, f"{with_spikes(str(found), spikes)}\nreport: {report}")


@dataclass
class Resume:
    """Go on with a run from its last checkpoint; a file that a killed writer left behind is recovered."""

    run: RunPath
    until: int | None = None
    """The step to stop at; by default the configured end. Beyond it, the run is prolonged."""
    json: Json = False

    def execute(self) -> None:
        from mechinterp.training.runs import resume

        run = resume(self.run, until=self.until)
        summary = {"run": str(run.path), "status": run.status, "steps": run.steps[-1]}
        print_result(summary, self.json, f"trained to step {run.steps[-1]}: {run.path}")


@dataclass
class Replay:
    """Rebuild steps between the saved ones, prove them at the next checkpoint, and keep them beside the run."""

    run: RunPath
    start: Annotated[int | None, tyro.conf.arg(name="from")] = None
    """First step; by default the first saved one."""
    stop: Annotated[int | None, tyro.conf.arg(name="to")] = None
    """Last step; by default the last saved one."""
    every: int = 10
    """Distance of the rebuilt steps."""
    json: Json = False

    def execute(self) -> None:
        from mechinterp.run import open_run

        run = open_run(self.run)
        proof = run.densify(start=self.start, stop=self.stop, every=self.every, progress=True)
        rebuilt = [step for step in run.steps if step not in set(run.file.steps)]
        result = {
            "run": str(run.path),
            "side_file": str(run.dense_path),
            "exact": proof.exact,
            "deviation": proof.deviation,
            "checked": list(proof.checked),
            "digests": {str(step): run.digest(step) for step in rebuilt},
        }
        print_result(result, self.json, f"{proof}\n{len(rebuilt)} rebuilt steps are in {run.dense_path}")


@dataclass
class Verify:
    """Check a run file: format, checksums, digests, and the replay of an interval. Exit code 1 if anything is off."""

    run: RunPath
    interval: int | None = None
    """The saved step whose interval to the next is replayed; by default one chosen at random."""
    json: Json = False

    def execute(self) -> int:
        from mechinterp.verification import verify

        verdict = verify(self.run, interval=self.interval)
        print_result(verdict.to_dict(), self.json, str(verdict))
        return 0 if verdict.sound else 1


@dataclass
class Info:
    """Show a run's config, saved steps and the digest of each checkpoint's weights."""

    run: RunPath
    json: Json = False

    def execute(self) -> None:
        from mechinterp.store import Trajectory

        run = Trajectory(self.run)
        digests = run.digests()
        facts: dict[str, Any] = {
            "run": str(run.path),
            "status": run.status,
            "created": run.created,
            "environment": run.environment,
            "origin": run.origin and run.origin.model_dump(mode="json"),
            "config": None if run.origin else json_module.loads(run.config.canonical_json()),
            "steps": list(digests),
            "digests": {str(step): digest for step, digest in digests.items()},
        }
        shown = [name for name, value in facts.items() if name not in ("steps", "digests") and value is not None]
        lines = [f"{name:12} {facts[name]}" for name in shown]
        lines += [f"step {step:>8,}  {digest}" for step, digest in digests.items()]
        print_result(facts, self.json, "\n".join(lines))
