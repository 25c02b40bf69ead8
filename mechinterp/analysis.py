"""What every module in analyses/ shares: its command line, its runs, and how a figure is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import plotly.graph_objects as go

from mechinterp.circuits.trajectory import analyse
from mechinterp.cli import run_command
from mechinterp.errors import MechinterpError
from mechinterp.store import Run, open_run


@runtime_checkable
class Command(Protocol):
    """A dataclass whose fields are options."""

    def execute(self) -> None:
        """Do the work."""
        ...


def run_analysis(command: type[Command]) -> None:
    """Parse the command line into `command` and execute it; a user's error is one line and exit code 2."""
    raise SystemExit(run_command(command))


def open_runs(paths: Sequence[Path]) -> dict[str, Run]:
    """The runs, by file name (by path where names repeat); at least one is needed."""
    if not paths:
        raise MechinterpError("name at least one run file")
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(path.with_suffix("")).replace("/", "-") for path in paths]
    return {name: open_run(path) for name, path in zip(names, paths, strict=True)}


def make_folder(path: Path) -> Path:
    """The folder for an analysis' results, made if it does not exist."""
    if path.exists() and not path.is_dir():
        raise MechinterpError(f"{path}: is a file; give a folder with --out")
    path.mkdir(parents=True, exist_ok=True)
    return path


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


def write_figure(figure: go.Figure, path: Path) -> Path:
    """Write a figure as HTML that works offline; plotly.js is put beside it once, as plotly.min.js."""
    figure.write_html(path, include_plotlyjs="directory")
    return path
