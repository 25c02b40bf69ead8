"""Commands of studies: many runs, of which one thing is varied."""

import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from mechinterp.cli.common import Json, print_result
from mechinterp.errors import MechinterpError

if TYPE_CHECKING:
    import pandas as pd

    from mechinterp.studies import study as studies

MOST_SIDE_BY_SIDE = 6
"""More variants than these are rows of what is printed, not columns."""
MOST_ON_A_PAGE = 200
"""A study of more runs gets its page on request only: it would hold every run's curves."""


@dataclass
class _Study:
    """What the commands of studies have in common."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE", help="A TOML file.")]
    paper_scale: bool = False
    """The full thing, as the file's section [paper_scale] has it."""
    runs: Path = Path("checkpoints/studies")
    """Folder of the runs, by id; studies may share it."""
    json: Json = False

    def study(self) -> "studies.Study":
        """The study that the file describes."""
        from mechinterp.studies.study import Study

        return Study.from_toml(self.file, paper_scale=self.paper_scale)

    def begun_study(self) -> "studies.Study":
        """The same, of which some run must be in the folder."""
        from mechinterp.studies.conduct import begun

        study = self.study()
        if not begun(study, self.runs):
            raise MechinterpError(
                f"{self.file}: none of its runs is in {self.runs}; begin: mechinterp study {self.file}"
            )
        return study


@dataclass
class Study(_Study):
    """Do the runs of a study that are not done yet, and compare the transitions of its variants."""

    workers: int | None = None
    """Processes on this machine; by default one for each core."""
    cluster: Path | None = None
    """A TOML file that says where workers run instead (mechinterp.studies.cluster)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where networks are trained."""
    runs_per_device: int = 1
    """How many runs each worker advances in one batch; for GPUs."""
    out: Path | None = None
    """Folder of the tables and the page; by default results/NAME, or results/NAME-paper-scale."""

    def execute(self) -> int:
        return self._carry_out(self.study(), retry=False)

    def _carry_out(self, study: "studies.Study", *, retry: bool) -> int:
        from mechinterp.studies.cluster import cluster
        from mechinterp.studies.conduct import run_study, table_folder

        if self.cluster and self.workers:
            raise MechinterpError("--workers and --cluster exclude each other; the cluster's file says how many")
        if self.runs_per_device > 1 and self.device == "cpu":
            raise MechinterpError(
                "--runs-per-device makes steps slower on the CPU, not faster; give --device cuda, or leave it out"
            )
        out = table_folder(study, self.out or results_folder(study.name, self.paper_scale))
        with cluster(self.cluster) if self.cluster else nullcontext() as executor:
            where: dict[str, Any] = {"device": self.device, "runs_per_device": self.runs_per_device}
            table = run_study(study, self.runs, workers=self.workers, executor=executor, retry=retry, **where)
        return _present(self, study, table, out, page=len(table) <= MOST_ON_A_PAGE)


@dataclass
class StudyResume(Study):
    """Go on with a study: what was interrupted is resumed, what failed is tried again."""

    def execute(self) -> int:
        return self._carry_out(self.begun_study(), retry=True)


@dataclass
class StudyStatus(_Study):
    """How far a study is, what it has cost, and what is left; nothing is trained, and no run file is opened."""

    estimate: bool = False
    """Time variants of which no run is done yet, by a short trial."""
    workers: int | None = None
    """Processes that the estimate is for; by default one for each core."""

    def execute(self) -> int:
        from mechinterp.studies import processes
        from mechinterp.studies.conduct import states
        from mechinterp.studies.cost import estimate, spent
        from mechinterp.studies.outcomes import Outcomes

        study, outcomes = self.study(), Outcomes(self.runs)
        counted = states(study, outcomes, self.runs)
        try:
            left = estimate(study, outcomes, self.runs, clocked=self.estimate, retry=True)
        finally:
            processes.end()
        taken, total = spent(study, outcomes, self.runs), counted.sum()
        result = {"study": study.name, "runs": int(total.sum()), **{str(name): int(n) for name, n in total.items()}}
        result |= {"spent": taken.to_dict(), "left": left.to_dict()}
        summary = ", ".join(f"{n} {name}" for name, n in total.items())
        lines = [f"{study.name}: {summary}", str(taken), f"left: {left.on(self.workers or os.cpu_count() or 1)}"]
        if 1 < len(counted) <= MOST_ON_A_PAGE:
            lines.insert(1, counted.to_string())
        print_result(result, self.json, "\n".join(lines))
        return 0


@dataclass
class StudyCollect(_Study):
    """Write the tables of a study, as far as it is done; nothing is trained, and no run file is opened."""

    out: Path | None = None
    """Folder of the tables; by default results/NAME, or results/NAME-paper-scale."""

    def execute(self) -> int:
        from mechinterp.studies.conduct import study_table, table_folder

        study = self.begun_study()
        table = study_table(study, self.runs)
        out = table_folder(study, self.out or results_folder(study.name, self.paper_scale))
        return _present(self, study, table, out, page=False)


def _present(command: _Study, study: "studies.Study", table: "pd.DataFrame", out: Path, *, page: bool) -> int:
    """Write and print what a study's table says, and its page; the exit code is 1 if a run is not done."""
    from mechinterp.studies.conduct import write_tables
    from mechinterp.studies.cost import spent
    from mechinterp.studies.outcomes import Outcomes

    compared, csv, variants = write_tables(study, table, out)
    failed = [row for row in table.to_dict("records") if row["status"] == "failed"]
    for each in failed[:20]:
        print(f"{each['variant']}, seed {each['seed']} ({each['run']}): {each['error']}", file=sys.stderr)
    if len(failed) > 20:
        print(f"and {len(failed) - 20} more, which {csv} has", file=sys.stderr)
    taken = spent(study, Outcomes(command.runs), command.runs)
    result: dict[str, Any] = {"study": study.name, "table": str(csv), "report": None}
    shown = (compared.T if len(compared) <= MOST_SIDE_BY_SIDE else compared).round(3).to_string()
    if len(compared) > MOST_ON_A_PAGE:
        shown = f"variants: {variants}"
    text = f"{shown}\n{taken}\ntable: {csv}"
    if page:
        from mechinterp.report.study import write_study_report

        result["report"] = str(write_study_report(study, table, command.runs, out / f"{study.name}.html"))
        text += f"\nreport: {result['report']}"
    result |= {"spent": taken.to_dict(), "runs": table.to_dict("records")}
    result["variants"] = compared.reset_index().to_dict("records")
    print_result(result, command.json, text)
    return int(bool((table["status"] != "done").any()))


def results_folder(name: str, paper_scale: bool) -> Path:
    """The folder of a study's table and page."""
    return Path("results") / (f"{name}-paper-scale" if paper_scale else name)
