"""Progress measures over training, for one run or several (Reddy 2023, figures 3a and 4).

    python -m analyses.progress_measures RUN [RUN …] [--out FOLDER]

Writes ``{run}.csv`` (step × measure) and the step at which IC accuracy rises through 50 % for every run
(``crossings.csv``), and one figure with the curves of all runs, aligned there; runs that never do are left out of it.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import mechinterp as mi
from analyses._common import RunAnalysis, crossings, run_analysis
from mechinterp.figures import aligned_curves
from mechinterp.files import make_folder
from mechinterp.run import open_runs

SHOWN = ["icl_accuracy", "cla", "tla2", "ila1", "tila2"]


@dataclass
class ProgressMeasures(RunAnalysis):
    """Progress measures over training, for one run or several."""

    out: Path = Path("results/progress_measures")
    """Folder of the tables and the figure."""

    def execute(self) -> None:
        runs, tables = open_runs(self.runs), {}
        make_folder(self.out)
        for name, run in runs.items():
            table = tables[name] = mi.measure(run, progress=True)
            table.to_csv(self.out / f"{name}.csv")
            print(table.iloc[[0, len(table) // 2, -1]].round(3).T.to_string())
        origins = crossings(tables)
        pd.Series(origins, name="step", dtype=float).rename_axis("run").to_csv(
            self.out / "crossings.csv", float_format="%.2f"
        )
        title = f"Progress measures of {len(origins)} runs, aligned where IC accuracy crosses 50 %"
        self.write(aligned_curves(tables, origins, SHOWN, title, since="IC accuracy crossed 50 %"), "progress_measures")


if __name__ == "__main__":
    run_analysis(ProgressMeasures)
