"""The command that writes the page of a run or of a study."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mechinterp.cli.common import Json, print_result
from mechinterp.cli.study import results_folder
from mechinterp.errors import MechinterpError


@dataclass
class Report:
    """Write the offline page of a run, with a slider over its checkpoints; or that of a study, as far as it is done."""

    files: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN [RUN …]", help="The run; others are laid over its curves, aligned at 50 percent."),
    ] = ()
    measure: str | None = None
    """The measure whose transition is the headline; by default that of `mechinterp emergence`."""
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
        page = self._study_page(self.study) if self.study else self._run_page()
        print_result({"report": str(page)}, self.json, f"report: {page}")

    def _run_page(self) -> Path:
        from mechinterp.files import require_place
        from mechinterp.measures.table import measure, require_measures
        from mechinterp.report import write_report
        from mechinterp.run import open_runs

        out = require_place(self.out or self.files[0].with_suffix(".html"))
        runs = open_runs(self.files)
        for run in runs.values():
            require_measures(run, [self.measure] if self.measure else None)
        tables = {name: measure(run, progress=True) for name, run in runs.items()}
        first, *others = runs
        overlaid = {name: tables[name] for name in others}
        return write_report(runs[first], tables[first], out, measure=self.measure, others=overlaid, progress=True)

    def _study_page(self, file: Path) -> Path:
        from mechinterp.files import make_folder
        from mechinterp.report.study import write_study_report
        from mechinterp.studies.runner import study_table
        from mechinterp.studies.study import Study

        study = Study.from_toml(file, paper_scale=self.paper_scale)
        table = study_table(study, self.runs)
        if "done" not in set(table["status"]):
            raise MechinterpError(f"{file}: no run of it is done in {self.runs}; carry it out: mechinterp study {file}")
        out = self.out or make_folder(results_folder(study.name, self.paper_scale)) / f"{study.name}.html"
        return write_study_report(study, table, self.runs, out)
