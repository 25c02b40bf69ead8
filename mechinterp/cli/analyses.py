"""Commands that analyse a run: measures, emergence, circuits.

The commands of the circuit analyses are made from `mechinterp.analysis.registry`.
"""

from dataclasses import dataclass, fields, make_dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from mechinterp.analysis.registry import ANALYSES, Argument
from mechinterp.cli.common import Json, RunPath, Step, print_result, require_one_form
from mechinterp.cli.findings import Finding, Question, find, kept_answer
from mechinterp.cli.own_task import OwnTask, own_task
from mechinterp.errors import MechinterpError


@dataclass
class Measure:
    """Measure every checkpoint of a run."""

    run: RunPath
    measures: tuple[str, ...] = ()
    """Names of measures; by default all that apply."""
    steps: tuple[Step, ...] = ()
    """Saved steps, also first and last; by default all."""
    n_sequences: int = 1000
    """Sequences of each evaluation set."""
    task: OwnTask = None
    csv: bool = False
    """Print comma-separated values."""
    json: Json = False

    def execute(self) -> None:
        from mechinterp.measures import measure
        from mechinterp.run import open_run

        require_one_form(self.csv, self.json)
        run = open_run(self.run, task=own_task(self.task))
        table = measure(
            run, self.measures or None, steps=self.steps or None, n_sequences=self.n_sequences, progress=True
        )
        records = {str(step): row for step, row in table.to_dict(orient="index").items()}
        print_result(records, self.json, table.to_csv().strip() if self.csv else table.round(4).to_string())


@dataclass
class Emergence:
    """Locate the step at which a measure makes its transition, or say that there is none."""

    run: RunPath
    measure: str | None = None
    """The measure; by default the accuracy on the task's first evaluation set (icl_accuracy), or the first number that
    was recorded with a run that was trained elsewhere."""
    scale: Literal["step", "log_step"] = "step"
    """Fit in the step or in its logarithm."""
    n_sequences: int = 1000
    """Sequences of the evaluation set."""
    task: OwnTask = None
    json: Json = False

    def execute(self) -> None:
        from mechinterp.store import Trajectory

        asked = None if self.task else Question(self.measure, self.scale, self.n_sequences)
        finding = (kept_answer(Trajectory(self.run), asked) if asked else None) or self._find(asked)
        print_result({"run": str(self.run), **finding.result}, self.json, finding.text)

    def _find(self, asked: Question | None) -> Finding:
        from mechinterp.emergence import locate_emergence
        from mechinterp.measures import measure
        from mechinterp.measures.table import main_column
        from mechinterp.run import open_run

        run = open_run(self.run, task=own_task(self.task))
        name = self.measure or main_column(run)
        curve = measure(run, [name], n_sequences=self.n_sequences, progress=True)[name]
        return find(run, curve, locate_emergence(curve, scale=self.scale), asked)


@dataclass
class AnalysisCommand:
    """An analysis of the circuit at the last step, at some saved ones, or at all."""

    analysis: ClassVar[str]
    run: RunPath
    steps: tuple[Step, ...] = ()
    """Saved steps, also first and last; by default the last."""
    all: bool = False
    """Every saved step."""
    task: OwnTask = None
    csv: bool = False
    """Print comma-separated values."""
    json: Json = False

    def execute(self) -> None:
        from mechinterp.analysis.checkpoints import analyse
        from mechinterp.run import open_run

        require_one_form(self.csv, self.json)
        if self.all and self.steps:
            raise MechinterpError("--steps and --all exclude each other; give one of them")
        run = open_run(self.run, task=own_task(self.task))
        common = {field.name for field in fields(AnalysisCommand)}
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in common}
        arguments = {name: value for name, value in options.items() if value is not None}
        steps = run.steps if self.all else self.steps or "last"
        table = analyse(run, self.analysis, steps=steps, progress=True, **arguments)
        result = {"run": str(run.path), "arguments": arguments, "rows": table.to_dict("records")}
        text = table.to_csv(index=False).strip() if self.csv else table.round(4).to_string(index=False)
        print_result(result, self.json, text)


def analysis_command(name: str) -> type:
    """The command of an analysis, with options as its function has arguments: the import of that takes seconds."""
    entry = ANALYSES[name]
    options = [(option.name, *_option(option)) for option in entry.arguments(name).values() if option.name != "seed"]
    bases, title = (AnalysisCommand,), name.title().replace("_", "")
    command = make_dataclass(title, options, bases=bases, namespace={"analysis": name, "__module__": __name__})
    command.__doc__ = entry.summary
    return command


def _option(argument: Argument) -> tuple[Any, Any]:
    """Type and default of the option for an argument; members of an enum are given by name."""
    value = argument.default.name if isinstance(argument.default, Enum) else argument.default
    base: Any = argument.type
    if issubclass(base, Enum):
        base = Literal[tuple(base.__members__)]
    return Annotated[base | None if value is None else base, tyro.conf.arg(help=argument.help)], value


@dataclass
class Circuit:
    """Draw the circuit that carries the answer, every edge measured, as a picture; or several as a film strip."""

    run: RunPath
    steps: tuple[Step, ...] = ()
    """Saved steps, also first and last; by default the last. Several are a film strip in one picture."""
    out: Path | None = None
    """Where the picture goes, as .svg, .html, .png or .pdf; by default RUN.svg. With --json, only if given."""
    title: str | None = None
    """By default the name of the run and the step."""
    heads: Literal["apart", "together"] = "apart"
    """apart (every head has nodes and edges of its own) or together (the heads of a layer at once)."""
    weight: Literal["effect", "attention"] = "effect"
    """effect (the share of the answer that goes without the edge) or attention (attention × OV)."""
    threshold: float | None = None
    """The least weight that is drawn; by default 0.1, and 0.05 where a layer has several heads that are taken apart."""
    n_pairs: int = 256
    """Sequences to measure on."""
    theme: Literal["auto", "light", "dark"] | None = None
    """light, dark, or auto (as the reader's page); by default auto, and light in PNG and PDF."""
    width: float | None = None
    """Width in pixels (96 to an inch; a column of a paper has 336); by default as the columns need."""
    legend: bool = True
    """With samples of widths and signs."""
    caption: bool = True
    """With two lines that say what widths and shades are."""
    task: OwnTask = None
    json: Json = False

    def execute(self) -> None:
        from mechinterp.analysis.checkpoints import circuit_graphs
        from mechinterp.circuits.graph import to_dict
        from mechinterp.circuits.look import Look
        from mechinterp.circuits.pictures import require_drawing, write_picture
        from mechinterp.circuits.svg import film_strip, to_svg
        from mechinterp.files import require_place
        from mechinterp.run import open_run

        run = open_run(self.run, task=own_task(self.task))
        out = self.out or (None if self.json else self.run.with_suffix(".svg"))
        if out is not None:
            out = require_place(require_drawing(out))
        printed = out is not None and out.suffix.lower() in (".png", ".pdf")
        theme = self.theme or ("light" if printed else "auto")
        look = Look(theme=theme, legend=self.legend, caption=self.caption, width=self.width)
        steps, name = run.chosen_steps(self.steps or "last"), self.run.stem
        options: Any = {"weight": self.weight, "threshold": self.threshold}
        options |= {"heads": self.heads, "n_pairs": self.n_pairs}
        graphs = circuit_graphs(run, steps=steps, progress=True, **options)
        if out is not None:
            if len(steps) > 1:
                drawing = film_strip(graphs, self.title or name, look)
            else:
                drawing = to_svg(graphs[steps[0]], self.title or f"{name}, step {steps[0]:,}", look)
            write_picture(drawing, out)
        result: dict[str, Any] = {"run": str(run.path), "picture": None if out is None else str(out)}
        result["graphs"] = {str(step): to_dict(graph) for step, graph in graphs.items()}
        print_result(result, self.json, f"circuit: {out}")
