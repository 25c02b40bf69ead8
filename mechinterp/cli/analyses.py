"""Commands that analyse a run: measures, emergence, circuits.

The commands of the circuit analyses are made from `mechinterp.analysis.registry`.
"""

from dataclasses import dataclass, fields, make_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from mechinterp.analysis.registry import ANALYSES, Argument
from mechinterp.cli.common import Json, RunPath, print_result, spikes_result, with_spikes
from mechinterp.errors import MechinterpError

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Measure:
    """Measure every checkpoint of a run."""

    run: RunPath
    measures: tuple[str, ...] = ()
    """Names of measures; by default all that apply."""
    steps: tuple[int, ...] = ()
    """Saved steps; by default all."""
    n_sequences: int = 1000
    """Sequences of each evaluation set."""
    csv: bool = False
    """Print comma-separated values."""
    json: Json = False

    def execute(self) -> None:
        _require_one_form(self.csv, self.json)
        table = _measured(self.run, self.measures or None, self.steps or None, self.n_sequences)
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
    json: Json = False

    def execute(self) -> None:
        from mechinterp.analysis.headline import headline
        from mechinterp.emergence import locate_emergence
        from mechinterp.measures.table import main_column
        from mechinterp.run import open_run
        from mechinterp.training.spikes import spikes_of

        run = open_run(self.run)
        name = self.measure or main_column(run)
        curve = _measured(self.run, [name], None, self.n_sequences)[name]
        emergence, spikes = locate_emergence(curve, scale=self.scale), spikes_of(run.file.metrics())
        found = headline(run, curve, emergence)
        result = {"run": str(self.run), "measure": name, **emergence.to_dict(), **found.to_dict()}
        print_result(result | spikes_result(spikes), self.json, with_spikes(str(found), spikes))


@dataclass
class AnalysisCommand:
    """An analysis of the circuit at the last step, at some saved ones, or at all."""

    analysis: ClassVar[str]
    run: RunPath
    steps: tuple[int, ...] = ()
    """Saved steps; by default the last."""
    all: bool = False
    """Every saved step."""
    csv: bool = False
    """Print comma-separated values."""
    json: Json = False

    def execute(self) -> None:
        from mechinterp.analysis.checkpoints import analyse
        from mechinterp.run import open_run

        _require_one_form(self.csv, self.json)
        if self.all and self.steps:
            raise MechinterpError("--steps and --all exclude each other; give one of them")
        run = open_run(self.run)
        common = {field.name for field in fields(AnalysisCommand)}
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in common}
        arguments = {name: value for name, value in options.items() if value is not None}
        steps = run.steps if self.all else self.steps or run.steps[-1:]
        table = analyse(run, self.analysis, steps=steps, progress=True, **arguments)
        result = {"run": str(run.path), "arguments": arguments, "rows": table.to_dict("records")}
        text = table.to_csv(index=False).strip() if self.csv else table.round(4).to_string(index=False)
        print_result(result, self.json, text)


def analysis_commands(selected: str) -> dict[str, type]:
    """A command for every analysis except the diagram, by name; only the `selected` one has its options.

    Options are read from the function of the analysis, whose import takes seconds.
    """
    commands = {}
    for name, entry in ANALYSES.items():
        if name == "circuit":
            continue
        spelled = name.replace("_", "-")
        arguments = entry.arguments(name).values() if spelled == selected else ()
        options = [(argument.name, *_option(argument)) for argument in arguments if argument.name != "seed"]
        commands[spelled] = make_dataclass(
            name.title().replace("_", ""), options, bases=(AnalysisCommand,), namespace={"analysis": name}
        )
        commands[spelled].__doc__ = entry.summary
    return commands


def _option(argument: Argument) -> tuple[Any, Any]:
    """Type and default of the option for an argument; members of an enum are given by name."""
    value = argument.default.name if isinstance(argument.default, Enum) else argument.default
    base = str if issubclass(argument.type, Enum) else argument.type
    return Annotated[base | None if value is None else base, tyro.conf.arg(help=argument.help)], value


@dataclass
class Circuit:
    """Draw the circuit that carries the answer, every edge measured, as an SVG picture; or several as a film strip."""

    run: RunPath
    steps: tuple[int, ...] = ()
    """Saved steps; by default the last. Several are a film strip in one picture."""
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
        from mechinterp.analysis.checkpoints import circuit_graphs
        from mechinterp.circuits.graph import to_dict
        from mechinterp.circuits.svg import film_strip, to_svg
        from mechinterp.files import replace_text, require_place
        from mechinterp.run import open_run

        run = open_run(self.run)
        out = require_place(self.out or self.run.with_suffix(".svg")) if self.out or not self.json else None
        steps, name = list(self.steps) or run.steps[-1:], self.run.stem
        options: Any = {"weight": self.weight, "threshold": self.threshold, "n_pairs": self.n_pairs}
        graphs = circuit_graphs(run, steps=steps, progress=True, **options)
        if out is not None:
            title = f"{name}, step {steps[0]:,}"
            replace_text(out, film_strip(graphs, name) if len(steps) > 1 else to_svg(graphs[steps[0]], title))
        result: dict[str, Any] = {"run": str(run.path), "picture": None if out is None else str(out)}
        result["graphs"] = {str(step): to_dict(graph) for step, graph in graphs.items()}
        print_result(result, self.json, f"circuit: {out}")


def _require_one_form(csv: bool, json: bool) -> None:
    if csv and json:
        raise MechinterpError("--csv and --json exclude each other; give one of them")


def _measured(path: Path, names: Any, steps: Any, n_sequences: int) -> "pd.DataFrame":
    from mechinterp.measures import measure
    from mechinterp.run import open_run

    return measure(open_run(path), names, steps=steps, n_sequences=n_sequences, progress=True)
