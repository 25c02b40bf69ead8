"""Progress measures over training, for one run or several (Reddy 2023, figures 3a and 4).

    python -m analyses.progress_measures RUN [RUN …] [--out FOLDER]

Writes ``{run}.csv`` (step × measure) for every run, and one figure with the curves of all runs, each aligned at the
step where its IC accuracy makes its transition.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import mechinterp as mi
from mechinterp.analysis import open_runs, run_analysis, write_figure
from mechinterp.emergence import emergence_table
from mechinterp.files import make_folder
from mechinterp.report.figures import aligned

SHOWN = ["icl_accuracy", "cla", "tla2", "ila1", "tila2"]


@dataclass
class ProgressMeasures:
    """Progress measures over training, for one run or several."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run files."""
    out: Path = Path("results/progress_measures")
    """Folder of the tables and the figure."""

    def execute(self) -> None:
        runs, tables = open_runs(self.runs), {}
        make_folder(self.out)
        for name, run in runs.items():
            table = tables[name] = mi.measure(run, progress=True)
            table.to_csv(self.out / f"{name}.csv")
            print(table.iloc[[0, len(table) // 2, -1]].round(3).T.to_string())
        origins = {
            name: float(emergence_table(table, ["icl_accuracy"])["step"].iloc[0] or 0) for name, table in tables.items()
        }
        title = f"Progress measures of {len(tables)} runs, aligned at the transition of IC accuracy"
        figure = aligned(tables, origins, SHOWN, title)
        print(f"figure: {write_figure(figure, self.out / 'progress_measures.html')}")


if __name__ == "__main__":
    run_analysis(ProgressMeasures)
