"""Commands that look into a run: measures, emergence, circuits."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mechinterp.cli.common import Json, RunPath, print_result, sentence
from mechinterp.errors import MechinterpError

if TYPE_CHECKING:
    import pandas as pd

    from mechinterp.store import Run


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
        print_result(records, self.json, table.to_csv().strip() if self.csv else table.round(4).to_string())


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
        print_result(result, self.json, sentence(self.measure, found))


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
        arguments = self.arguments(run)
        table = analyse(run, type(self).__name__.lower(), steps=steps, progress=True, **arguments)
        result = {"run": str(run.path), "arguments": arguments, "rows": table.to_dict("records")}
        text = table.to_csv(index=False).strip() if self.csv else table.round(4).to_string(index=False)
        print_result(result, self.json, text)

    def arguments(self, run: "Run") -> dict[str, Any]:
        """What the analysis is asked."""
        own = {field.name for field in fields(_Analysis)}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in own}


@dataclass
class Patch(_Analysis):
    """Activation patching at every hook and role: which activation carries the answer?"""

    corruption: str | None = "replace_target"
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

    corruption: str | None = None
    """swap_label, replace_target, break_pairing or shuffle_positions; by default the last, or the first where tokens
    carry no position."""

    def arguments(self, run: "Run") -> dict[str, Any]:
        positions = run.config.task.kind != "paired_items"
        default = "shuffle_positions" if positions else "swap_label"
        return {**super().arguments(run), "corruption": self.corruption or default}


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
        result: dict[str, Any] = {"run": str(run.path), "picture": None if out is None else str(out)}
        print_result(
            result | {"graphs": {str(n): to_dict(each) for n, each in graphs.items()}}, self.json, f"circuit: {out}"
        )


def _measured(path: Path, names: Any, steps: Any, n_sequences: int) -> "pd.DataFrame":
    from mechinterp.measures import measure
    from mechinterp.store import open_run

    return measure(open_run(path), names, steps=steps, n_sequences=n_sequences, progress=True)
