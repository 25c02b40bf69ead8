"""The race's loss landscape, and how long its start takes (Nguyen & Reddy 2024, figures 4 and A.1).

    python -m analyses.race_landscape [RUN …] [--out FOLDER]

Writes ``starts.csv`` (t_ICL by β₀: integrated flow, and the formulas of either regime), ``drawn.csv`` (t_ICL of normal
β₀), and figures: the loss over w and β with N = 100, nothing memorised, and gradient flow on it (both exact), for
contexts with labels at random and with N/2 of each kind; t_ICL against β₀; and its distribution. Runs of the additive
model, or of any network of one layer and one head on paired items, are drawn on the landscape of their N as well.
"""

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import tyro
from plotly.subplots import make_subplots

from analyses._common import RunAnalysis, run_analysis
from analyses._sweep_figures import paths
from mechinterp.circuits.additive_order_parameters import order_parameters_of_run
from mechinterp.config import PairedItemsConfig
from mechinterp.files import make_folder
from mechinterp.randomness import Stream, generator
from mechinterp.run import Run, open_runs
from mechinterp.theory.kinetics import Kinetics

N = 100
LONG = 10_000.0
"""How long the flow is followed."""
STARTS = {"from the origin": (0.0, 0.0), "w₀ = 1, β₀ = −2": (1.0, -2.0), "w₀ = −1, β₀ = −1": (-1.0, -1.0)}
"""w₀ and β₀."""
BESIDE = {"w₀, β₀ = 0.1": (0.1, 0.1), "w₀, β₀ = −0.1": (-0.1, -0.1)}
"""Starts beside the saddle of 𝒟′."""
SPREAD = 1.0
"""Standard deviation of the β₀ that are drawn."""
WINDOW = (-3.0, 8.0)
"""Of w and of β."""

Paths = dict[str, pd.DataFrame]


@dataclass
class RaceLandscape(RunAnalysis):
    """The race's loss landscape, and how long its start takes (Nguyen & Reddy 2024)."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run files; none are needed."""
    out: Path = Path("results/race_landscape")
    """Folder of the tables and figures."""

    def execute(self) -> None:
        runs = open_runs(self.runs) if self.runs else {}
        make_folder(self.out)
        followed = {name: order_parameters_of_run(run) for name, run in runs.items()}
        random, balanced = Kinetics(N), Kinetics(N, balanced=True)
        both = {"labels at random": (random, STARTS), "N/2 labels of each kind (𝒟′)": (balanced, BESIDE)}
        self.write(surfaces({what: (each, flows(each, starts)) for what, (each, starts) in both.items()}), "landscape")
        for name, table in followed.items():
            kinetics = of_run(runs[name])
            table.to_csv(self.out / f"{name}.csv", float_format="%.6g")
            own = flows(kinetics, BESIDE if kinetics.balanced else STARTS)
            self.write(surfaces({name: (kinetics, own | {name: table})}), name)
        by_start, drawn = times_by_start(random), times_of_drawn(random)
        by_start.to_csv(self.out / "starts.csv", index=False, float_format="%.5g")
        drawn.to_csv(self.out / "drawn.csv", index=False, float_format="%.5g")
        print(by_start.iloc[::6].round(2).to_string(index=False))
        low, median, high = np.quantile(drawn["t_ICL"], [0.05, 0.5, 0.95])
        text = f"median {median:.0f}, mean {drawn['t_ICL'].mean():.0f}, 5 to 95 % {low:.0f} to {high:.0f}"
        print(f"β₀ ~ N(0, {SPREAD:g}²): t_ICL has {text}")
        self.write(starts(by_start), "starts")
        self.write(histogram(drawn), "drawn")


def of_run(run: Run) -> Kinetics:
    """The landscape with a run's N and its kind of contexts; the run is one on paired items."""
    task = run.config.task
    assert isinstance(task, PairedItemsConfig)
    return Kinetics(task.n_pairs, task.balanced)


def flows(kinetics: Kinetics, starts: dict[str, tuple[float, float]]) -> Paths:
    """Gradient flow from each start."""
    return {name: kinetics.descent(w, beta, LONG) for name, (w, beta) in starts.items()}


def times_by_start(kinetics: Kinetics) -> pd.DataFrame:
    """t_ICL from w₀ = 0 by β₀: integrated, N √(2π) e^{−β₀} (for β₀ near 0), and N e^{−2β₀} / 2 (for −β₀ ≫ 1)."""
    at = np.linspace(-5.0, 1.0, 49)
    return pd.DataFrame(
        {
            "beta0": at,
            "integrated": [kinetics.time_to_learn(0.0, float(beta)) for beta in at],
            "near": kinetics.learning_integral(0.0, at),
            "late": kinetics.late_learning_integral(at),
        }
    )


def times_of_drawn(kinetics: Kinetics, n: int = 2_000) -> pd.DataFrame:
    """t_ICL of normally distributed β₀ (figure A.1b)."""
    beta = SPREAD * generator(0, Stream.BOOTSTRAP, 2).standard_normal(n)
    grid = np.linspace(beta.min(), beta.max(), 200)  # t_ICL is a smooth function of β₀
    times = [kinetics.time_to_learn(0.0, float(each)) for each in grid]
    return pd.DataFrame({"beta0": beta, "t_ICL": np.exp(np.interp(beta, grid, np.log(times)))})


def surfaces(landscapes: dict[str, tuple[Kinetics, Paths]]) -> go.Figure:
    """The loss over w and β where nothing is memorised, and paths on it; a panel for each landscape."""
    figure = make_subplots(cols=len(landscapes), subplot_titles=list(landscapes), horizontal_spacing=0.08)
    at, dashes = np.linspace(*WINDOW, 121), cycle(("solid", "dash", "dot", "dashdot", "longdash"))
    for col, (kinetics, own) in enumerate(landscapes.values(), start=1):
        loss = np.minimum(kinetics.loss(at, at[:, None]), 1.2)
        bands = {"start": 0.0, "end": 1.2, "size": 0.05}
        figure.add_contour(
            x=at, y=at, z=loss, contours=bands, colorscale="Blues", line={"width": 0.5}, showscale=False, row=1, col=col
        )
        for name, path in own.items():
            dash = next(dashes)
            shown = path[path["w"].between(*WINDOW) & path["beta"].between(*WINDOW)]
            x, y, line = shown["w"].to_numpy(), shown["beta"].to_numpy(), {"color": "#D55E00", "dash": dash, "width": 3}
            figure.add_scatter(x=x, y=y, name=name, mode="lines", line=line, row=1, col=col)
        figure.update_xaxes(title="w: weight of the labels", range=WINDOW, row=1, col=col)
        figure.update_yaxes(title="β: how sharply the copy is seen", range=WINDOW, row=1, col=col)
    title = "The loss where nothing is memorised (darker: higher), and gradient flow"
    return figure.update_layout(template="plotly_white", title=title, height=520, width=120 + 480 * len(landscapes))


def starts(table: pd.DataFrame) -> go.Figure:
    """t_ICL against β₀ (figure A.1a)."""
    own = table.set_index("beta0").rename_axis("β₀")
    names = {"integrated": "integrated flow", "near": "N √(2π) e^−β₀", "late": "N e^−2β₀ / 2"}
    panel = {name: [pd.Series(own[column])] for column, name in names.items()}
    figure = paths({"": panel}, f"Time to learn in context by the start (N = {N}, w₀ = 0)")
    return figure.update_yaxes(type="log", title="t_ICL").update_layout(width=760)


def histogram(table: pd.DataFrame) -> go.Figure:
    """How t_ICL is distributed if β₀ is normal (figure A.1b)."""
    times = table["t_ICL"].to_numpy()
    figure = go.Figure(go.Histogram(x=times[times <= np.quantile(times, 0.99)], nbinsx=60, marker={"color": "#0072B2"}))
    figure.add_vline(x=float(np.median(times)), line={"dash": "dash"}, annotation_text="median")
    figure.update_xaxes(title="t_ICL (the longest 1 % not shown)").update_yaxes(title="starts")
    title = f"t_ICL of β₀ ~ N(0, {SPREAD:g}²), N = {N}"
    return figure.update_layout(template="plotly_white", title=title, height=420, width=760)


if __name__ == "__main__":
    run_analysis(RaceLandscape)
