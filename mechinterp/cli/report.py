"""Commands that write the page of a run or of a study."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mechinterp.cli.common import Json, Step, print_result
from mechinterp.cli.own_task import OwnTask, own_task
from mechinterp.cli.study import results_folder
from mechinterp.errors import MechinterpError

if TYPE_CHECKING:
    from pandas import DataFrame

    from mechinterp.run import Run

Format = Literal["svg", "pdf", "png"]


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
    """Where the page goes; by default beside the run file, or in the folder of a study's table. With --static the
    folder of the figures, by default RUN.figures."""
    static: Format | None = None
    """Instead of the page, write each of a run's figures as a file for a paper: 3.25 in wide, text of 8 pt. Needs the
    extra [export] and a Chromium."""
    step: Step = "last"
    """The checkpoint at which --static draws what moves with the page's slider."""
    double_column: bool = False
    """With --static, figures 6.75 in wide."""
    task: OwnTask = None
    json: Json = False

    def execute(self) -> None:
        from mechinterp.files import require_ending

        if self.out and not self.static:
            require_ending(self.out, ".html", ".htm")
        if bool(self.files) == bool(self.study):
            raise MechinterpError("name a run file, or a study's TOML file by --study; one of the two")
        if self.study and (self.measure or self.task):
            raise MechinterpError("--measure and --task go with a run; a study's file says which it has")
        if toml := [path for path in self.files if path.suffix.lower() == ".toml"]:
            raise MechinterpError(f"{toml[0]}: is no run file; the page of a study is written by --study {toml[0]}")
        if self.files and (self.paper_scale or self.runs != Report.runs):
            raise MechinterpError("--paper-scale and --runs go with --study")
        if self.static is None and (self.double_column or self.step != "last"):
            raise MechinterpError("--step and --double-column go with --static")
        if self.static:
            self._write_figures(self.static)
            return
        page = self._study_page(self.study) if self.study else self._run_page()
        print_result({"report": str(page)}, self.json, f"report:\n  {page}")

    def _run_page(self) -> Path:
        from mechinterp.files import require_place
        from mechinterp.report import write_report

        out = require_place(self.out or self.files[0].with_suffix(".html"))
        run, table, others = self._measured()
        return write_report(run, table, out, measure=self.measure, others=others, progress=True)

    def _measured(self) -> "tuple[Run, DataFrame, dict[str, DataFrame]]":
        """The first run, its table of measures, and those of the other runs."""
        from mechinterp.measures.table import measure, require_measures
        from mechinterp.run import open_runs

        runs = open_runs(self.files, task=own_task(self.task))
        for run in runs.values():
            require_measures(run, [self.measure] if self.measure else None)
        tables = {name: measure(run, progress=True) for name, run in runs.items()}
        first, *others = runs
        return runs[first], tables[first], {name: tables[name] for name in others}

    def _write_figures(self, form: Format) -> None:
        from mechinterp.figures.paper import Column
        from mechinterp.pictures import require_export
        from mechinterp.report.static import write_figures
        from mechinterp.run import open_run

        if self.study:
            raise MechinterpError("--static writes the figures of runs; of a study, each run's: name the run file")
        folder = self.out or self.files[0].with_suffix(".figures")
        if folder.is_file() or folder.suffix.lower() in (".html", ".htm", ".svg", ".pdf", ".png"):
            raise MechinterpError(f"{folder}: is the name of a file; with --static, --out is a folder")
        require_export()  # before anything is measured
        open_run(self.files[0], task=own_task(self.task)).digest(self.step)  # raises for a step that is not stored
        run, table, others = self._measured()
        column = Column.double if self.double_column else Column.single
        done = write_figures(
            run, table, folder, form, step=self.step, column=column, others=others, measure=self.measure
        )
        lines = [*map(str, done.paths), *(f"not drawn: {name}: {why}" for name, why in done.omitted.items())]
        result = {"figures": [str(path) for path in done.paths], "not_drawn": done.omitted}
        print_result(result, self.json, "\n".join(["figures:", *(f"  {line}" for line in lines)]))

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
