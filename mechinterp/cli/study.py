"""Commands of studies: variants of one config, trained over several seeds."""

import os
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from mechinterp.cli.common import Json, print_result
from mechinterp.errors import MechinterpError

if TYPE_CHECKING:
    import pandas as pd

    from mechinterp.studies import study as studies

MOST_SIDE_BY_SIDE = 6
"""Up to so many variants are printed as columns, more as rows."""
MOST_ON_A_PAGE = 200
"""A study of more runs gets its page on request only, as the page has the curves of every run."""


@dataclass
class _Study:
    """The arguments that the commands of studies share."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE", help="A TOML file.")]
    paper_scale: bool = False
    """The full study, as the file's section [paper_scale] has it."""
    runs: Path = Path("checkpoints/studies")
    """Folder of the runs, by id, relative to the folder you are in; studies may share it."""
    json: Json = False

    def study(self, *, must_be_begun: bool = False) -> "studies.Study":
        """The study that the file describes; if it `must_be_begun`, some run of it is in the folder of runs."""
        from mechinterp.studies.runner import begun
        from mechinterp.studies.study import Study

        study = Study.from_toml(self.file, paper_scale=self.paper_scale)
        if must_be_begun and not begun(study, self.runs):
            raise MechinterpError(
                f"{self.file}: none of its runs is in {self.runs.resolve()}; --runs names another folder; to begin:"
                f" mechinterp study {self.file}"
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
    """How many runs each worker advances in one batch; on the CPU only small networks, where that is faster. Sums are
    then rounded otherwise than in a run alone."""
    out: Path | None = None
    """Folder of the tables and the page; by default results/NAME, or results/NAME-paper-scale."""
    dry_run: bool = False
    """Do nothing: say which runs would be done, where they would be written, and what they would take, by short
    trials."""

    def execute(self) -> int:
        if self.dry_run:
            return self.foretell()
        return self.execute_study(self.study(), retry=False)

    def foretell(self) -> int:
        """Print what the command would do and take."""
        from mechinterp.files import require_folder
        from mechinterp.studies import processes
        from mechinterp.studies.cost import estimate
        from mechinterp.studies.results import Results

        study = self.study()
        folder = self.out or results_folder(study.name, self.paper_scale)
        for place in (self.runs, folder):
            require_folder(place)
        try:
            left = estimate(study, Results(self.runs), self.runs, clocked=True, retry=isinstance(self, StudyRetry))
        finally:
            processes.end()
        lines = [f"{study.name}: {', '.join(study.variants)}; seeds {', '.join(map(str, study.seeds))}"]
        lines += [left.on(self.workers or os.cpu_count() or 1), "would write:", f"  {self.runs.resolve()}/"]
        result = {"study": study.name, "runs_folder": str(self.runs.resolve()), "out": str(folder), **asdict(left)}
        print_result(result, self.json, "\n".join([*lines, f"  {folder}/"]))
        return 0

    def go_on(self) -> str:
        """The command that goes on with an interrupted study."""
        return f"mechinterp study {self.file}, with the same options"

    def execute_study(self, study: "studies.Study", *, retry: bool) -> int:
        from mechinterp.studies.cluster import cluster
        from mechinterp.studies.runner import run_study, table_folder

        if self.cluster and self.workers:
            raise MechinterpError("--workers and --cluster exclude each other; the cluster's file says how many")
        out = table_folder(study, self.out or results_folder(study.name, self.paper_scale))
        with cluster(self.cluster) if self.cluster else nullcontext() as executor:
            options: Any = {"retry": retry, "device": self.device, "runs_per_device": self.runs_per_device}
            table = run_study(study, self.runs, workers=self.workers, executor=executor, **options)
        return _present(self, study, table, out, page=len(table) <= MOST_ON_A_PAGE)


@dataclass
class StudyRetry(Study):
    """Go on with a study: what was interrupted is resumed, what failed is tried again."""

    def execute(self) -> int:
        return self.execute_study(self.study(must_be_begun=True), retry=True)


@dataclass
class StudyStatus(_Study):
    """Show how many runs are done, what they have cost, and what is left; no run is trained, no run file opened."""

    estimate: bool = False
    """Time variants of which no run is done yet, by a short trial."""
    workers: int | None = None
    """Processes that the estimate is for; by default one for each core."""

    def execute(self) -> int:
        from mechinterp.studies import processes
        from mechinterp.studies.cost import estimate, spent
        from mechinterp.studies.results import Results
        from mechinterp.studies.runner import begun, states

        study, outcomes = self.study(), Results(self.runs)
        counts = states(study, outcomes, self.runs)
        try:
            left = estimate(study, outcomes, self.runs, clocked=self.estimate, retry=True)
        finally:
            processes.end()
        cost, total = spent(study, outcomes, self.runs), counts.sum()
        result = {"study": study.name, "runs": int(total.sum()), **{str(name): int(n) for name, n in total.items()}}
        result |= {"spent": asdict(cost), "left": asdict(left)}
        summary = ", ".join(f"{n} {name}" for name, n in total.items())
        lines = [f"{study.name}: {summary}", str(cost), f"left: {left.on(self.workers or os.cpu_count() or 1)}"]
        if 1 < len(counts) <= MOST_ON_A_PAGE:
            lines.insert(1, counts.to_string())
        if not begun(study, self.runs):
            lines.append(f"none of its runs is in {self.runs.resolve()}; --runs names another folder")
        print_result(result, self.json, "\n".join(lines))
        return 0


@dataclass
class StudyCollect(_Study):
    """Write the tables of a study, as far as it is done; no run is trained, no run file opened."""

    out: Path | None = None
    """Folder of the tables; by default results/NAME, or results/NAME-paper-scale."""

    def execute(self) -> int:
        from mechinterp.studies.runner import study_table, table_folder

        study = self.study(must_be_begun=True)
        table = study_table(study, self.runs)
        out = table_folder(study, self.out or results_folder(study.name, self.paper_scale))
        return _present(self, study, table, out, page=False)


def _present(command: _Study, study: "studies.Study", table: "pd.DataFrame", out: Path, *, page: bool) -> int:
    """The exit code, 1 if a run is not done, after writing a study's tables and page and printing the comparison."""
    from mechinterp.studies.cost import spent
    from mechinterp.studies.results import Results
    from mechinterp.studies.runner import describe_guessing, describe_spikes, write_tables

    compared, csv, variants = write_tables(study, table, out)
    failed = [row for row in table.to_dict("records") if row["status"] == "failed"]
    for run in failed[:20]:
        print(f"{run['variant']}, seed {run['seed']} ({run['run']}): {run['error']}", file=sys.stderr)
    if len(failed) > 20:
        print(f"and {len(failed) - 20} more, which {csv} has", file=sys.stderr)
    cost = spent(study, Results(command.runs), command.runs)
    result: dict[str, Any] = {"study": study.name, "table": str(csv), "report": None}
    comparison = (compared.T if len(compared) <= MOST_SIDE_BY_SIDE else compared).round(3).to_string()
    if len(compared) > MOST_ON_A_PAGE:
        comparison = f"variants: {variants}"
    told = filter(None, [describe_guessing(study, table), describe_spikes(table)])
    text = "\n".join([comparison, *told, str(cost), "table:", f"  {csv}"])
    if page:
        from mechinterp.report.study import write_study_report

        result["report"] = str(write_study_report(study, table, command.runs, out / f"{study.name}.html"))
        text += f"\nreport:\n  {result['report']}"
    result |= {"spent": asdict(cost), "runs": table.to_dict("records")}
    result["variants"] = compared.reset_index().to_dict("records")
    print_result(result, command.json, text)
    return int(bool((table["status"] != "done").any()))


def results_folder(name: str, paper_scale: bool) -> Path:
    """The folder of a study's table and page."""
    return Path("results") / (f"{name}-paper-scale" if paper_scale else name)
