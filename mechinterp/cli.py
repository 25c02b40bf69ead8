"""The command line. Each command is a dataclass: its fields are the options, `execute` does the work.

Nothing heavy is imported before a command runs, so that help is instant. A user's error is one line on standard
error and exit code 2.
"""

import json as json_module
import math
import os
import re
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass, fields
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro
from pydantic import ValidationError

from mechinterp.config import RunConfig, explain
from mechinterp.errors import ConfigError, MechinterpError

if TYPE_CHECKING:
    import pandas as pd

RunPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="A run file.")]
Json = Annotated[bool, tyro.conf.arg(help="Print one JSON object.")]
Settings = Annotated[RunConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]


@dataclass
class Train:
    """Train a network and write its trajectory."""

    settings: Settings
    preset: Literal["reddy2023", "reddy2023-fast", "reddy2023-minimal"] = "reddy2023-fast"
    """The config to start from."""
    config: Path | None = None
    """A TOML file to start from, instead of a preset."""
    out: Path | None = None
    """Where the run file goes; by default checkpoints/PRESET-seedS.h5."""
    overwrite: bool = False
    """Replace the run file if it exists."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network is trained."""
    json: Json = False

    def execute(self) -> None:
        run = self.train()
        summary = {
            "run": str(run.path),
            "status": run.status,
            "steps": run.steps[-1],
            "engine": run.environment["engine"],
        }
        _print(summary, self.json, f"trained {run.steps[-1]} steps ({summary['engine']} engine): {run.path}")

    def train(self):
        from mechinterp.training import train

        return train(self.settings, self.run_path(), device=self.device, overwrite=self.overwrite)

    def run_path(self) -> Path:
        """Where the run file goes."""
        name = self.config.stem if self.config else self.preset
        return self.out or Path("checkpoints") / f"{name}-seed{self.settings.seed}.h5"


@dataclass
class Run(Train):
    """The main job: train, measure every checkpoint, locate the emergence, write the report."""

    measure: str = "icl_accuracy"
    """The measure whose transition is the result."""

    def execute(self) -> None:
        from mechinterp.emergence import locate_or_say_why
        from mechinterp.measures import columns_for, measure
        from mechinterp.report import write_report
        from mechinterp.store.writer import require_writable

        columns_for(self.settings.build_task(), self.settings.model.n_layers, [self.measure])
        out = self.run_path()
        csv, report = out.with_suffix(".csv"), out.with_suffix(".html")
        for path in (csv, report):
            if path == out:
                raise MechinterpError(f"{out}: the table and the report go to {csv.name} and {report.name}; use .h5")
            require_writable(path, self.overwrite)
        run = self.train()
        table = measure(run, progress=True)
        found = locate_or_say_why(table[self.measure])
        write_report(run, table, report, measure=self.measure, progress=True)
        table.to_csv(csv)
        result = {"run": str(run.path), "measures": str(csv), "report": str(report), "measure": self.measure}
        _print(result | found.to_dict(), self.json, f"{_sentence(self.measure, found)}\nreport: {report}")


@dataclass
class Resume:
    """Go on with a run from its last checkpoint; a file that a killed writer left behind is recovered."""

    run: RunPath
    until: int | None = None
    """The step to stop at; by default the configured end. Beyond it, the run is prolonged."""
    json: Json = False

    def execute(self) -> None:
        from mechinterp.training import resume

        run = resume(self.run, until=self.until)
        summary = {"run": str(run.path), "status": run.status, "steps": run.steps[-1]}
        _print(summary, self.json, f"trained to step {run.steps[-1]}: {run.path}")


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
        from mechinterp.store import open_run

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
        _print(result, self.json, f"{proof}\n{len(rebuilt)} rebuilt steps are in {run.dense_path}")


@dataclass
class Verify:
    """Check a run file: format, checksums, digests, and the replay of an interval. Exit code 1 if anything is off."""

    run: RunPath
    interval: int | None = None
    """The saved step whose interval to the next is replayed; by default one chosen at random."""
    json: Json = False

    def execute(self) -> int:
        from mechinterp.store.verify import verify

        found = verify(self.run, interval=self.interval)
        _print(found.to_dict(), self.json, str(found))
        return 0 if found.sound else 1


@dataclass
class Info:
    """Show a run's config, saved steps and the digest of each checkpoint's weights."""

    run: RunPath
    json: Json = False

    def execute(self) -> None:
        from mechinterp.store import open_run

        run = open_run(self.run)
        steps = run.steps
        facts: dict[str, Any] = {
            "run": str(run.path),
            "status": run.status,
            "created": run.created,
            "environment": run.environment,
            "config": json_module.loads(run.config.canonical_json()),
            "steps": steps,
            "digests": {str(step): run.digest(step) for step in steps},
        }
        lines = [f"{name:12} {value}" for name, value in facts.items() if name not in ("steps", "digests")]
        lines += [f"step {step:>8,}  {facts['digests'][str(step)]}" for step in steps]
        _print(facts, self.json, "\n".join(lines))


@dataclass
class Measure:
    """Measure every checkpoint of a run."""

    run: RunPath
    measures: tuple[str, ...] = ()
    """Which measures; by default all that apply."""
    steps: tuple[int, ...] = ()
    """Which saved steps; by default all."""
    sequences: int = 1000
    """Sequences of each evaluation set."""
    csv: bool = False
    """Print comma-separated values."""
    json: Json = False

    def execute(self) -> None:
        table = _measured(self.run, self.measures or None, self.steps or None, self.sequences)
        records = {str(step): row for step, row in table.to_dict(orient="index").items()}
        _print(records, self.json, table.to_csv().strip() if self.csv else table.round(4).to_string())


@dataclass
class Emergence:
    """Locate the step at which a measure makes its transition, or say that there is none."""

    run: RunPath
    measure: str = "icl_accuracy"
    """The measure."""
    scale: Literal["step", "log_step"] = "step"
    """Fit in the step or in its logarithm."""
    sequences: int = 1000
    """Sequences of the evaluation set."""
    json: Json = False

    def execute(self) -> None:
        from mechinterp.emergence import locate_emergence

        table = _measured(self.run, [self.measure], None, self.sequences)
        found = locate_emergence(table[self.measure], scale=self.scale)
        result = {"run": str(self.run), "measure": self.measure, **found.to_dict()}
        _print(result, self.json, _sentence(self.measure, found))


@dataclass
class Report:
    """Write the offline page of a run, with a slider over its checkpoints; or that of a study, as far as it is done."""

    files: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN [RUN …]", help="The run; others are laid over its curves, aligned at 50 percent."),
    ] = ()
    measure: str | None = None
    """The measure whose transition is the headline; by default the first."""
    study: Path | None = None
    """A study's TOML file, instead of a run."""
    paper_scale: bool = False
    """The full study, as the file's section [paper_scale] has it."""
    runs: Path = Path("checkpoints/studies")
    """Folder of the study's runs."""
    out: Path | None = None
    """Where the page goes; by default beside the run file, or in the folder of a study's table."""
    json: Json = False

    def execute(self) -> None:
        if bool(self.files) == bool(self.study):
            raise MechinterpError("name a run file, or a study's TOML file by --study; one of the two")
        if self.study and self.measure:
            raise MechinterpError("--measure goes with a run; a study's file says which measures it has")
        if self.files and (self.paper_scale or self.runs != Report.runs):
            raise MechinterpError("--paper-scale and --runs go with --study")
        page = self._study(self.study) if self.study else self._run()
        _print({"report": str(page)}, self.json, f"report: {page}")

    def _run(self) -> Path:
        from mechinterp.files import require_place
        from mechinterp.measures import columns_of, measure
        from mechinterp.report import write_report
        from mechinterp.store import open_runs

        out = require_place(self.out or self.files[0].with_suffix(".html"))
        runs = open_runs(self.files)
        for run in runs.values():
            columns_of(run, [self.measure.removeprefix("clamped_")] if self.measure else None)
        tables = {name: measure(run, progress=True) for name, run in runs.items()}
        first, *others = runs
        overlaid = {name: tables[name] for name in others}
        return write_report(runs[first], tables[first], out, measure=self.measure, others=overlaid, progress=True)

    def _study(self, file: Path) -> Path:
        from mechinterp.files import make_folder
        from mechinterp.report.study import write_study_report
        from mechinterp.studies.conduct import study_table
        from mechinterp.studies.study import Study

        study = Study.from_toml(file, paper_scale=self.paper_scale)
        table = study_table(study, self.runs)
        if "done" not in set(table["status"]):
            raise MechinterpError(f"{file}: no run of it is done in {self.runs}; carry it out: mechinterp study {file}")
        out = self.out or make_folder(_results(study.name, self.paper_scale)) / f"{study.name}.html"
        return write_study_report(study, table, self.runs, out)


@dataclass
class _Analysis:
    """An analysis of the circuit at one step, by default the last, or at all saved ones."""

    run: RunPath
    step: int | None = None
    """Which saved step; by default the last."""
    all: bool = False
    """Every saved step."""
    csv: bool = False
    """Print comma-separated values."""
    json: Json = False

    def execute(self) -> None:
        from mechinterp.circuits.trajectory import analyse
        from mechinterp.store import open_run

        if self.csv and self.json:
            raise MechinterpError("--csv and --json exclude each other; give one of them")
        if self.all and self.step is not None:
            raise MechinterpError("--step and --all exclude each other; give one of them")
        run = open_run(self.run)
        if not run.steps:
            raise MechinterpError(f"{run.path}: holds no checkpoint; train it anew")
        steps = run.steps if self.all else [run.steps[-1] if self.step is None else self.step]
        own = {field.name for field in fields(_Analysis)}
        arguments = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in own}
        table = analyse(run, type(self).__name__.lower(), steps=steps, progress=True, **arguments)
        result = {"run": str(run.path), "arguments": arguments, "rows": table.to_dict("records")}
        text = table.to_csv(index=False).strip() if self.csv else table.round(4).to_string(index=False)
        _print(result, self.json, text)


@dataclass
class Patch(_Analysis):
    """Activation patching at every hook and role: which activation carries the answer?"""

    corruption: str = "replace_target"
    """swap_label, replace_target, break_pairing or shuffle_positions."""
    metric: str = "logit_difference"
    """logit_difference, probability, accuracy or loss."""
    direction: str = "denoise"
    """denoise (clean into corrupt) or noise (corrupt into clean)."""
    n_pairs: int = 256
    """Clean–corrupt pairs of sequences."""


@dataclass
class Paths(Patch):
    """Path patching: which edge between components carries the answer?"""

    corruption: str = "shuffle_positions"


@dataclass
class Ablate(_Analysis):
    """Ablate every layer's pattern, values and output, in every way: what is lost?"""

    metric: str = "accuracy"
    """logit_difference, probability, accuracy or loss."""
    n_sequences: int = 500
    """Sequences of the first evaluation set."""


@dataclass
class Qkov(_Analysis):
    """QK and OV circuits: strengths of the query–key interactions, composition and copying scores."""

    n_sequences: int = 200
    """Sequences of the first evaluation set."""


@dataclass
class Evidence(_Analysis):
    """Is it an induction head? Four facts that together only an induction head shows."""

    n_pairs: int = 256
    """Clean–corrupt pairs of sequences."""


@dataclass
class Circuit:
    """Draw the circuit that carries the answer, every edge measured, as an SVG picture; or several as a film strip."""

    run: RunPath
    step: int | None = None
    """Which saved step; by default the last."""
    steps: tuple[int, ...] = ()
    """Several saved steps, as a film strip in one picture."""
    out: Path | None = None
    """Where the picture goes; by default beside the run file. With --json, only if given."""
    weight: str = "effect"
    """effect (the share of the answer that goes without the edge) or attention (attention × OV)."""
    threshold: float = 0.1
    """The least weight that is drawn."""
    n_pairs: int = 256
    """Sequences to measure on."""
    json: Json = False

    def execute(self) -> None:
        from mechinterp.circuits.diagram import to_dict
        from mechinterp.circuits.svg import film_strip, to_svg
        from mechinterp.circuits.trajectory import circuit_graphs
        from mechinterp.files import replace_text, require_place
        from mechinterp.store import open_run

        if self.step is not None and self.steps:
            raise MechinterpError("--step and --steps exclude each other; give one of them")
        run = open_run(self.run)
        if not run.steps:
            raise MechinterpError(f"{run.path}: holds no checkpoint; train it anew")
        out = require_place(self.out or self.run.with_suffix(".svg")) if self.out or not self.json else None
        steps = self.steps or (run.steps[-1] if self.step is None else self.step,)
        asked = {"weight": self.weight, "threshold": self.threshold, "n_pairs": self.n_pairs}
        graphs = circuit_graphs(run, steps=steps, progress=True, **asked)
        name = self.run.stem
        if out is not None:
            one = f"{name}, step {steps[0]:,}"
            replace_text(out, film_strip(graphs, name) if self.steps else to_svg(graphs[steps[0]], one))
        result = {"run": str(run.path), "picture": None if out is None else str(out)}
        _print(result | {"graphs": {str(n): to_dict(each) for n, each in graphs.items()}}, self.json, f"circuit: {out}")


@dataclass
class Study:
    """Do the runs of a study that are not done yet, and compare the transitions of its variants."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE", help="A TOML file.")]
    workers: int | None = None
    """Processes on this machine; by default one for each core."""
    cluster: Path | None = None
    """A TOML file that says where workers run instead (mechinterp.studies.cluster)."""
    paper_scale: bool = False
    """The full thing, as the file's section [paper_scale] has it."""
    retry: bool = False
    """Try runs again that failed."""
    runs: Path = Path("checkpoints/studies")
    """Folder of the runs, by id; studies may share it."""
    out: Path | None = None
    """Folder of the table and the page; by default results/NAME, or results/NAME-paper-scale."""
    json: Json = False

    def execute(self) -> int:
        from contextlib import nullcontext

        from mechinterp.files import make_folder
        from mechinterp.report.study import write_study_report
        from mechinterp.studies.cluster import cluster
        from mechinterp.studies.conduct import compare, run_study
        from mechinterp.studies.study import Study

        if self.cluster and self.workers:
            raise MechinterpError("--workers and --cluster exclude each other; the cluster's file says how many")
        study = Study.from_toml(self.file, paper_scale=self.paper_scale)
        out = make_folder(self.out or _results(study.name, self.paper_scale))
        with cluster(self.cluster) if self.cluster else nullcontext() as executor:
            table = run_study(study, self.runs, workers=self.workers, executor=executor, retry=self.retry)
        csv, page = out / f"{study.name}.csv", out / f"{study.name}.html"
        table.to_csv(csv, index=False)
        write_study_report(study, table, self.runs, page)
        compared = compare(table)
        for each in table.to_dict("records"):
            if each["status"] == "failed":
                print(f"{each['variant']}, seed {each['seed']} ({each['run']}): {each['error']}", file=sys.stderr)
        result = {"study": study.name, "table": str(csv), "report": str(page), "runs": table.to_dict("records")}
        result["variants"] = compared.reset_index().to_dict("records")
        text = f"{compared.round(3).T.to_string()}\ntable: {csv}\nreport: {page}"
        _print(result, self.json, text)
        return int((table["status"] != "done").any())


def _results(name: str, paper_scale: bool) -> Path:
    """The folder of a study's table and page."""
    return Path("results") / (f"{name}-paper-scale" if paper_scale else name)


def _measured(path: Path, names: Any, steps: Any, n_sequences: int) -> "pd.DataFrame":
    from mechinterp.measures import measure
    from mechinterp.store import open_run

    return measure(open_run(path), names, steps=steps, n_sequences=n_sequences, progress=True)


def _sentence(name: str, found: Any) -> str:
    if not found.transition:
        return f"{name}: no transition: {found.reason}"
    return (
        f"{name}: transition at step {found.step:.0f} (95 % interval {found.low:.0f} to {found.high:.0f},"
        f" 10–90 % width {found.width:.0f} steps, from {found.before:.3f} to {found.after:.3f})"
    )


def _print(values: dict[str, Any], as_json: bool, text: str) -> None:
    print(json_module.dumps(_plain(values)) if as_json else text)


def _plain(value: Any) -> Any:
    """For JSON: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_COMMANDS: dict[str, type] = {
    "run": Run,
    "train": Train,
    "resume": Resume,
    "replay": Replay,
    "verify": Verify,
    "info": Info,
    "measure": Measure,
    "emergence": Emergence,
    "patch": Patch,
    "paths": Paths,
    "ablate": Ablate,
    "qkov": Qkov,
    "evidence": Evidence,
    "circuit": Circuit,
    "report": Report,
    "study": Study,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0, 1 (a file fails to verify, or a run of a study failed), 2 (a user's error) or 130 (Ctrl-C).
    """
    arguments = sys.argv[1:] if arguments is None else arguments

    try:
        base = _base_config(arguments)
    except MechinterpError as error:
        return _fail(error)
    commands = []
    for name, command in _COMMANDS.items():
        default: dict[str, Any] = {"default": command(settings=base)} if issubclass(command, Train) else {}
        commands.append(Annotated[command, tyro.conf.subcommand(name, **default)])
    about = "When, how and why does a circuit form in a small attention network?"
    union = Union[tuple(commands)]  # noqa: UP007  (made at run time)
    return run_command(union, arguments, prog="mechinterp", description=about)


def run_command(command: Any, arguments: list[str] | None = None, **options: Any) -> int:
    """Parse `arguments` into a command, or one of a union of commands, and execute it.

    Every error of the user, tyro's boxed complaints included, becomes one line and exit code 2.
    """
    try:
        return _parse(command, arguments, options).execute() or 0
    except MechinterpError as error:
        return _fail(error)
    except ValidationError as error:
        return _fail(ConfigError(f"config: {explain(error)}"))
    except MemoryError as error:
        return _fail(MechinterpError(f"out of memory ({error}); lower the sizes"))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read the output has left
        return 0
    except KeyboardInterrupt:
        print("mechinterp: interrupted; every checkpoint written so far is kept", file=sys.stderr)
        return 130


def _fail(error: MechinterpError) -> int:
    print(f"mechinterp: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _parse(command: Any, arguments: list[str] | None, options: dict[str, Any]) -> Any:
    complaint = StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(command, args=arguments, **options)
    except SystemExit as stop:
        if stop.code != 2:
            raise
        raise MechinterpError(_one_line(complaint.getvalue())) from None


def _base_config(arguments: list[str]) -> RunConfig:
    """The config that --config or --preset names; the other options then override it."""
    named = {argument.partition("=")[0] for argument in arguments}
    if {"--config", "--preset"} <= named:
        raise MechinterpError("--config and --preset are both given; start from one of them")
    for option, load in (("--config", RunConfig.from_toml), ("--preset", RunConfig.preset)):
        for index, argument in enumerate(arguments):
            name, has_value, value = argument.partition("=")
            if name == option and (has_value or index + 1 < len(arguments)):
                return load(value if has_value else arguments[index + 1])
    return RunConfig.preset("reddy2023-fast")


def _one_line(box: str) -> str:
    """The sentence inside one of tyro's boxes, without the frame, pydantic's references and the parser's own names."""
    text = " ".join(re.sub(r"[╭╮╰╯│─]+", " ", box).split())
    text = re.sub(r"\[type=.*?\] For further information visit \S+( v/\S+)?", "", text)
    text = re.sub(r"Error parsing \S*?settings\.?(\S*): \d+ validation errors? for \w+", r"\1:", text)
    text = re.sub(r"^(Parsing|Value|Validation|Unrecognized|Invalid) (error|options|choice|value)s?:? ", "", text)
    text = re.sub(r"Perhaps you meant: (\S+).*", r"is unknown; did you mean \1?", text)
    text = re.sub(r" (For full helptext|Argument helptext|Arguments similar to|See ).*", "", text)
    return text.replace("Value error, ", "").replace("Error parsing ", "").strip()


if __name__ == "__main__":
    raise SystemExit(main())
