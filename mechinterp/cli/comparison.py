"""Commands that compare checkpoints: transplants of components, and interpolation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mechinterp.cli.common import Json, RunPath, Step, print_result, require_one_form
from mechinterp.cli.own_task import OwnTask, own_task


@dataclass
class Transplant:
    """Put every component of the last checkpoint into earlier ones: which is late, and which waits for which?"""

    run: RunPath
    components: tuple[str, ...] = ()
    """Names of components, as 'layer 2 QK'; by default all."""
    steps: tuple[Step, ...] = ()
    """Saved steps, also first and last; by default all."""
    heads_apart: bool = True
    """Heads are components of their own; with --no-heads-apart, those of a layer are one."""
    matrix: bool = False
    """Accuracy and loss for all pairs of steps, a component of the one in the other, instead of the order."""
    n_sequences: int = 200
    """Sequences of the evaluation set."""
    evaluation: str | None = None
    """The evaluation set; by default the task's first."""
    task: OwnTask = None
    csv: bool = False
    """Print comma-separated values."""
    json: Json = False

    def execute(self) -> None:
        from mechinterp.comparison.formation import locate_formation
        from mechinterp.comparison.transplants import transplant
        from mechinterp.run import open_run

        require_one_form(self.csv, self.json)
        run = open_run(self.run, task=own_task(self.task))
        names, steps = self.components or None, self.steps or None
        if self.matrix:
            table = transplant(
                run,
                names,
                steps=steps,
                heads_apart=self.heads_apart,
                n_sequences=self.n_sequences,
                evaluation=self.evaluation,
                progress=True,
            )
            text = table.to_csv(index=False).strip() if self.csv else table.round(4).to_string(index=False)
            print_result({"run": str(run.path), "rows": table.to_dict("records")}, self.json, text)
            return
        formation = locate_formation(
            run,
            names,
            steps=steps,
            heads_apart=self.heads_apart,
            n_sequences=self.n_sequences,
            evaluation=self.evaluation,
            progress=True,
        )
        tables = {name: getattr(formation, name).to_dict("records") for name in ("components", "waits", "chain")}
        result = {"run": str(run.path), "rise": formation.rise, "resolution": formation.resolution, **tables}
        print_result(
            result, self.json, formation.components.to_csv(index=False).strip() if self.csv else str(formation)
        )


@dataclass
class Interpolate:
    """Loss on the straight line between two checkpoints, of one run or of two, and the barrier on it."""

    run: RunPath
    other: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="OTHER")] = None
    """Another run file, whose network is also matched to that of the first."""
    start: Step | None = None
    """Saved step of RUN; by default the last with OTHER, and else the first."""
    stop: Step | None = None
    """Saved step of OTHER, or else of RUN; by default the last."""
    points: int = 21
    """Points on the line, the ends included."""
    n_sequences: int = 500
    """Sequences of the evaluation set."""
    evaluation: str | None = None
    """The evaluation set; by default the task's first."""
    task: OwnTask = None
    csv: bool = False
    """Print comma-separated values."""
    json: Json = False

    def execute(self) -> None:
        from mechinterp.comparison.interpolation import interpolate
        from mechinterp.run import open_run

        require_one_form(self.csv, self.json)
        task = own_task(self.task)
        run, other = open_run(self.run, task=task), None if self.other is None else open_run(self.other, task=task)
        first = "first" if other is None else "last"
        start = run.numbered(first if self.start is None else self.start)
        stop = (other or run).numbered("last" if self.stop is None else self.stop)
        line = interpolate(
            run,
            start,
            stop,
            other=other,
            n=self.points,
            n_sequences=self.n_sequences,
            evaluation=self.evaluation,
        )
        result = {"run": str(run.path), "other": None if other is None else str(other.path), "start": start}
        result |= {"stop": stop, "barriers": line.barriers.to_dict("records"), "rows": line.table.to_dict("records")}
        print_result(result, self.json, line.table.to_csv(index=False).strip() if self.csv else str(line))
