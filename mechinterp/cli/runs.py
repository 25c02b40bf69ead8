"""Commands that train runs, rebuild steps of them and check their files."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mechinterp.cli.common import Json, RunPath, Settings, Step, print_result
from mechinterp.cli.findings import Question, find
from mechinterp.cli.interventions import Interventions, with_interventions
from mechinterp.cli.known import trained
from mechinterp.cli.own_task import OwnTask, own_task
from mechinterp.config import PRESETS, RunConfig
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
    intervention: Interventions = ()
    track: Literal["wandb", "trackio", "tensorboard"] | None = None
    """An experiment tracker that gets loss, accuracy and gradient norm; by default none."""
    dry_run: bool = False
    """Train nothing: say what would be trained, where it would be written, and what it would take, by a short trial."""
    json: Json = False

    def execute(self) -> None:
        if self.dry_run:
            return self.foretell([self.run_path()])
        run = self.train()
        engine = run.environment["engine"]
        summary = {"run": str(run.path), "status": run.status, "steps": run.steps[-1], "engine": engine}
        lines = [f"trained {run.steps[-1]} steps ({engine} engine): {run.path}", "next:"]
        lines += [f"  mechinterp {command} {run.path}" for command in ("emergence", "report", "info")]
        print_result(summary, self.json, "\n".join(lines))

    def train(self):
        from mechinterp.training.runs import train

        path = self.run_path()
        return train(self.whole_config(), path, device=self.device, overwrite=self.overwrite, track=self.track)

    def whole_config(self) -> RunConfig:
        """The config, with the interventions that options add."""
        return with_interventions(self.settings, self.intervention)

    def foretell(self, files: list[Path]) -> None:
        """Print what the command would do and take."""
        from mechinterp.files import require_writable
        from mechinterp.studies.cost import cost_of_run

        config = self.whole_config()
        for path in files:
            require_writable(path, self.overwrite)
        cost = cost_of_run(config, measured=len(files) > 1)
        about = [f"would train {trained(config)}; seed {config.seed}", str(cost)]
        lines = [*about, "would write:", *(f"  {path}" for path in files)]
        result = {"files": [str(path) for path in files], "config": config.model_dump(mode="json"), **cost.to_dict()}
        print_result(result, self.json, "\n".join(lines))

    def go_on(self) -> str | None:
        """The command that goes on with an interrupted training."""
        return f"mechinterp resume {self.run_path()}" if self.run_path().exists() and not self.dry_run else None

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
        from mechinterp.emergence import locate_or_say_why
        from mechinterp.files import replace_text, require_writable
        from mechinterp.measures import columns_for, main_measure, measure
        from mechinterp.report import write_report
        from mechinterp.tasks import build_task
        from mechinterp.tracking import require_tracker

        config = self.whole_config()
        task = build_task(config)
        name = self.measure or main_measure(task)
        columns_for(task, config.model, [name])
        if self.track:
            require_tracker(self.track)
        out = self.run_path()
        csv, report = out.with_suffix(".csv"), out.with_suffix(".html")
        for path in (csv, report):
            if path == out:
                raise MechinterpError(f"{out}: the table and the report go to {csv.name} and {report.name}; use .h5")
            require_writable(path, self.overwrite)
        if self.dry_run:
            return self.foretell([out, csv, report])
        run = self.train()
        table = measure(run, progress=True)
        emergence = locate_or_say_why(table[name])
        write_report(run, table, report, measure=name, progress=True)
        replace_text(csv, table.to_csv())
        fitted = math.isfinite(emergence.delta_bic)  # else there are too few checkpoints, which `emergence` refuses
        found = find(run, table[name], emergence, Question(name) if fitted else None)
        result = {"run": str(run.path), "measures": str(csv), "report": str(report), **found.result}
        lines = [found.text, "report:", f"  {report}"]
        applicable = ("patch", "ablate") if found.result["induction_head"] is None else ("evidence", "circuit")
        lines += ["next:", *(f"  mechinterp {command} {out}" for command in applicable)]
        lines.append(f"  mechinterp study --help   # other seeds and variants, compared with {out.stem}")
        print_result(result, self.json, "\n".join(lines))


@dataclass
class Resume:
    """Go on with a run from its last checkpoint; a file that a killed writer left behind is recovered."""

    run: RunPath
    until: int | None = None
    """The step to stop at; by default the configured end. Beyond it, the run is prolonged."""
    task: OwnTask = None
    json: Json = False

    def execute(self) -> None:
        from mechinterp.store import RunFile
        from mechinterp.training.runs import resume

        before = RunFile(self.run).steps[-1:]
        run = resume(self.run, until=self.until, task=own_task(self.task))
        text = f"trained to step {run.steps[-1]}: {run.path}"
        if run.steps[-1:] == before:
            text = f"{run.path}: is complete at step {before[0]}, and nothing was trained; --until STEP goes beyond"
        summary = {"run": str(run.path), "status": run.status, "steps": run.steps[-1]}
        print_result(summary, self.json, text)

    def go_on(self) -> str:
        """The command that goes on with an interrupted training."""
        return f"mechinterp resume {self.run}" + ("" if self.until is None else f" --until {self.until}")


@dataclass
class Replay:
    """Rebuild steps between the saved ones, prove them at the next checkpoint, and keep them beside the run."""

    run: RunPath
    start: Annotated[Step | None, tyro.conf.arg(name="from")] = None
    """First step; by default the first saved one."""
    stop: Annotated[Step | None, tyro.conf.arg(name="to")] = None
    """Last step; by default the last saved one."""
    every: int = 10
    """Distance of the rebuilt steps."""
    task: OwnTask = None
    json: Json = False

    def execute(self) -> None:
        from mechinterp.run import open_run

        run = open_run(self.run, task=own_task(self.task))
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
        text = f"rebuilt steps: {len(rebuilt):,}, in {run.dense_path}" if rebuilt else "no step had to be rebuilt"
        print_result(result, self.json, f"{proof}\n{text}")


@dataclass
class Verify:
    """Check a run file: format, checksums, digests, and the replay of an interval. Exit code 1 if anything is off."""

    run: RunPath
    interval: Step | None = None
    """The saved step whose interval to the next is replayed; by default one chosen at random."""
    json: Json = False

    def execute(self) -> int:
        from mechinterp.verification import verify

        verdict = verify(self.run, interval=self.interval)
        print_result(verdict.to_dict(), self.json, str(verdict))
        return 0 if verdict.sound else 1
