"""When each measure makes its transition, over several runs, and which moves first (Reddy 2023, figure 4).

    python -m analyses.emergence RUN [RUN …] [--out FOLDER]

Writes ``transitions.csv`` (run × measure: step, interval, width, verdict), ``across_runs.csv`` (quantiles of the step
over runs, and lags to IC accuracy) and a figure of the transitions.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

import mechinterp as mi
from analyses._common import RunAnalysis, run_analysis
from mechinterp.emergence import emergence_table
from mechinterp.figures import COLOURS
from mechinterp.files import make_folder
from mechinterp.run import open_runs

MEASURES = ["icl_accuracy", "swap_accuracy", "cla_mass", "cla", "tla2", "ila1", "tila2"]


@dataclass
class Emergence(RunAnalysis):
    """When each measure makes its transition, over several runs, and which moves first."""

    out: Path = Path("results/emergence")
    """Folder of the tables and the figure."""

    def execute(self) -> None:
        tables = {name: mi.measure(run, MEASURES, progress=True) for name, run in open_runs(self.runs).items()}
        make_folder(self.out)
        transitions = pd.concat({name: emergence_table(table) for name, table in tables.items()}, names=["run"])
        across = mi.compare_emergence(list(tables.values()), MEASURES, reference="icl_accuracy")
        transitions.to_csv(self.out / "transitions.csv")
        across.round(1).to_csv(self.out / "across_runs.csv")
        print(transitions[["transition", "step", "low", "high", "width"]].to_string())
        print(across.round(0).to_string())
        self.write(draw(transitions), "transitions")


def draw(transitions: pd.DataFrame) -> go.Figure:
    """Every located transition with its interval: one row per measure, one mark per run."""
    figure = go.Figure()
    located = transitions[transitions["transition"].astype(bool)]
    for measure, rows in located.groupby(level="measure", sort=False):
        step = rows["step"].astype(float)
        figure.add_scatter(
            x=step.to_numpy(),
            y=[measure] * len(rows),
            error_x={
                "type": "data",
                "symmetric": False,
                "array": (rows["high"].astype(float) - step).to_numpy(),
                "arrayminus": (step - rows["low"].astype(float)).to_numpy(),
            },
            mode="markers",
            name=str(measure),
            marker={"color": COLOURS.get(str(measure), "#444444"), "size": 9},
        )
    return figure.update_layout(
        template="plotly_white", title="Located transitions, 95 % intervals", xaxis_title="step", showlegend=False
    )


if __name__ == "__main__":
    run_analysis(Emergence)
