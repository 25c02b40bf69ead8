"""What every module in analyses/ shares: its command line, its runs, and how a figure is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import pandas as pd
import plotly.graph_objects as go
import tyro

from analyses.claims.verdicts import Verdict, verdict_table, with_settings
from mechinterp.analysis.checkpoints import analyse
from mechinterp.cli import run_command
from mechinterp.cli.study import MOST_SIDE_BY_SIDE
from mechinterp.emergence import level_crossing, locate_or_say_why, steps_around
from mechinterp.errors import MechinterpError
from mechinterp.files import make_folder, replace_text
from mechinterp.measures import main_measure, measure
from mechinterp.pictures import Format, framed, require_export, write_pictures
from mechinterp.report.study import write_study_report
from mechinterp.run import Run, open_runs
from mechinterp.studies.cost import Spent, spent
from mechinterp.studies.results import Results
from mechinterp.studies.runner import measured, run_study, table_folder, write_tables
from mechinterp.studies.study import Study


@runtime_checkable
class Command(Protocol):
    """A dataclass whose fields are options."""

    def execute(self) -> None:
        """Do the work."""
        ...


def run_analysis(command: type[Command]) -> None:
    """Parse the command line into `command` and execute it; a user's error is one line and exit code 2."""
    raise SystemExit(run_command(command))


@dataclass
class Analysis:
    """What all analyses have in common: where results go, and how figures are written."""

    out: Path = Path("results")
    """Folder of the tables and figures."""
    static: Annotated[tuple[Format, ...], tyro.conf.UseAppendAction] = ()
    """Also write every figure as a picture of this kind; needs the extra [export] and a Chromium."""

    def __post_init__(self) -> None:
        if self.static:
            require_export()  # hours may pass until there is something to draw

    def write(self, figure: go.Figure, name: str) -> None:
        """Write a figure to the folder."""
        write_figure(figure, self.out / f"{name}.html", self.static)


@dataclass
class RunAnalysis(Analysis):
    """An analysis of run files."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run files."""


def steps_shown(run: Run, *, during: bool = False) -> list[int]:
    """The saved steps that show the transition of accuracy on the first evaluation set (`steps_around`)."""
    name = main_measure(run.task)
    found = locate_or_say_why(measure(run, [name], progress=True)[name])
    if not found.transition:
        print(f"{run.path.stem}: {name} makes no transition ({found.reason})")
    return steps_around(found, run.steps, during=during)


def crossings(tables: Mapping[str, pd.DataFrame], name: str = "icl_accuracy", level: float = 0.5) -> dict[str, float]:
    """Where a measure rises through the level in each run's table; runs in which it does not are left out, aloud."""
    found = {run: level_crossing(table[name], level) for run, table in tables.items()}
    for run, step in found.items():
        if step is None:
            print(f"{run}: {name} does not rise through {level:g}; the figure leaves this run out")
    return {run: step for run, step in found.items() if step is not None}


def analyse_runs(paths: Sequence[Path], analysis: str, out: Path, **arguments: Any) -> dict[str, pd.DataFrame]:
    """A circuit analysis at every saved step of every run; the tables are written to ``{out}/{run}.csv``."""
    tables = {}
    for name, run in open_runs(paths).items():
        make_folder(out)
        tables[name] = analyse(run, analysis, progress=True, **arguments)
        tables[name].to_csv(out / f"{name}.csv", index=False)
    return tables


def ends(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of every run's first and last step, with the run's name: before and after."""
    rows = [table[table["step"].isin([table["step"].min(), table["step"].max()])] for table in tables.values()]
    return pd.concat(rows, keys=list(tables), names=["run"]).reset_index(level=0)


@dataclass
class StudyAnalysis(Analysis):
    """Does the runs of the study beside an analysis that are not done yet."""

    workers: int | None = None
    """Processes on this machine; by default one for each core."""
    paper_scale: bool = False
    """The full thing instead of the quick one."""
    retry: bool = False
    """Try runs again that failed."""
    runs: Path = Path("checkpoints/studies")
    """Folder of the runs, by id; studies share it."""
    out: Path = Path("results")
    """Folder in which the study's folder of tables and figures is made."""

    def conducted(self, name: str) -> "StudyResult":
        """The study ``{name}.toml`` beside this module, carried out; its tables are written."""
        study = Study.from_toml(Path(__file__).with_name(f"{name}.toml"), paper_scale=self.paper_scale)
        out = table_folder(study, self.out / (f"{name}-paper-scale" if self.paper_scale else name))
        table = run_study(study, self.runs, workers=self.workers, retry=self.retry)
        compared, _, _ = write_tables(study, table, out)
        print((compared.T if len(compared) <= MOST_SIDE_BY_SIDE else compared).round(3).to_string())
        failed = [each for each in table.to_dict("records") if each["status"] != "done"]
        if failed:
            first = failed[0]
            raise MechinterpError(
                f"{len(failed)} runs are not done; the first is {first['variant']}, seed {first['seed']}:"
                f" {first['error']}; --retry tries them again"
            )
        page = write_study_report(study, table, self.runs, out / f"{name}.html")
        print(f"report: {page}")
        taken = spent(study, Results(self.runs), self.runs)
        return StudyResult(study, table, measured(study, self.runs), taken, out, self.static)


@dataclass(frozen=True)
class StudyResult:
    """A study that has been carried out."""

    study: Study
    table: pd.DataFrame
    """One row per run."""
    measured: dict[tuple[str, int], pd.DataFrame]
    """Step × measure, by variant and seed."""
    spent: Spent
    """Time and steps that its runs took."""
    out: Path
    """Where its results go."""
    static: Sequence[Format] = ()
    """As which kinds of picture its figures are written, besides HTML."""

    def of(self, variant: str) -> dict[str, pd.DataFrame]:
        """Step × measure of a variant's runs."""
        return {f"{name}, seed {seed}": table for (name, seed), table in self.measured.items() if name == variant}

    def by_seed(self, variant: str) -> dict[int, pd.DataFrame]:
        """Step × measure of a variant's runs."""
        return {seed: table for (name, seed), table in self.measured.items() if name == variant}

    def judged(self, verdicts: Sequence[Verdict]) -> None:
        """Write and print verdicts."""
        found = verdict_table(verdicts)
        found.to_csv(self.out / "verdicts.csv", index=False)
        print(found[["figure", "sentence", "verdict", "runs", "numbers"]].to_string(index=False))

    def settings(self, keys: Mapping[str, str]) -> pd.DataFrame:
        """The table of runs, with columns for settings of each run's config: name → dotted key (`with_settings`)."""
        return with_settings(self.study, self.table, keys)

    def write(self, figure: go.Figure, name: str) -> None:
        """Write a figure to the study's folder."""
        write_figure(figure, self.out / f"{name}.html", self.static)


def costs(*studies: StudyResult) -> pd.DataFrame:
    """What studies took, a row each: runs, steps, minutes of one core, the share of measuring, megabytes on disk."""
    return pd.DataFrame(
        {
            "study": each.study.name,
            "runs": each.spent.runs,
            "steps": each.spent.steps,
            "core_minutes": round(each.spent.core_seconds / 60, 1),
            "measuring": round(each.spent.measuring, 2),
            "megabytes": round(each.spent.disk_bytes / 1e6, 1),
        }
        for each in studies
    )


def write_figure(figure: go.Figure, path: Path, static: Sequence[Format] = ()) -> None:
    """Write a figure as HTML that works offline, plotly.js beside it once, and as pictures; says where."""
    figure.write_html(path, include_plotlyjs="directory", config={"displaylogo": False, "showSendToCloud": False})
    print(f"figure: {path}")
    if static:
        for picture in write_pictures(figure, path, static):
            print(f"picture: {picture}")


def write_drawing(svg: str, path: Path, static: Sequence[Format] = ()) -> None:
    """Write a drawing that is SVG in any case, and as the other kinds of picture; says where."""
    replace_text(path, svg)
    print(f"figure: {path}")
    others: list[Format] = [format for format in static if format != "svg"]
    if others:
        for picture in write_pictures(framed(svg), path, others):
            print(f"picture: {picture}")
