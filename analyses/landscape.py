"""Gradient flow on the loss landscape of an induction head, and where trained networks go on it (Reddy 2023, 7, A.4).

    python -m analyses.landscape [RUN …] [--out FOLDER]

Writes ``flow.csv`` (L > N, from the origin: t, xi, alpha, beta1, loss, match) and ``flow_l_equals_n.csv`` (from two
starts beside the origin), ``summary.csv`` (when the loss falls and when each parameter rises, for both choices of N₁),
and figures: loss and parameters over time, and the paths on the loss as a function of ξ and the match y, through which
alone α and β₁ enter. For every run ``{run}.csv`` (step: its order parameters, the loss that the landscape has there,
the match, and the network's own in-context loss) and a figure of its path on the landscape with its L and N.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import tyro

import mechinterp as mi
from analyses._common import RunAnalysis, run_analysis
from mechinterp.circuits.subspaces import require_item_label
from mechinterp.errors import member
from mechinterp.figures import trajectories
from mechinterp.files import make_folder
from mechinterp.run import open_runs
from mechinterp.theory.landscape import ORIGIN, Competitors, Landscape, Point

PARAMETERS = ["xi", "alpha", "beta1"]
UNEQUAL: dict[str, Any] = {"n_labels": 32, "n_pairs": 8}
EQUAL: dict[str, Any] = {"n_labels": 8, "n_pairs": 8}
FATES: dict[str, Point] = {"start with ξ, α > 0": (1e-3, 1e-3, 0.0), "start with ξ, α < 0": (-1e-3, -1e-3, 0.0)}
Window = tuple[float, float, float, float]
"""From ξ, to ξ, from y, to y."""
LONG, LONGER = 200.0, 4000.0
"""How long the flow is followed with L > N, and with L = N."""


@dataclass
class LossLandscape(RunAnalysis):
    """Gradient flow on the loss landscape of an induction head, and where trained networks go on it."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run files; none are needed."""
    out: Path = Path("results/landscape")
    """Folder of the tables and figures."""

    def execute(self) -> None:
        runs = open_runs(self.runs) if self.runs else {}
        make_folder(self.out)
        summary = pd.DataFrame(
            [
                milestones(Landscape(**sizes, competitors=competitors), start, t_end)
                for competitors in Competitors
                for sizes, starts, t_end in ((UNEQUAL, [ORIGIN], LONG), (EQUAL, FATES.values(), LONGER))
                for start in starts
            ]
        )
        summary.to_csv(self.out / "summary.csv", index=False, float_format="%.5g")
        print(summary.round(4).T.to_string(header=False))
        figures = self.figures_of_unequal() | self.figures_of_equal()
        for name, run in runs.items():
            table, landscape = network(run)
            table.to_csv(self.out / f"{name}.csv", float_format="%.6g")
            print(name, table.iloc[:: max(1, len(table) // 8)].round(3).to_string(), sep="\n")
            paths = {"gradient flow": follow(landscape, ORIGIN, LONG), name: table}
            figures[name] = surface(landscape, paths, f"{name} on the landscape with its L and N")
        for name, figure in figures.items():
            self.write(figure, name)

    def figures_of_unequal(self) -> dict[str, go.Figure]:
        """Figure 7: loss, parameters and path with L > N, from the origin."""
        landscape, title = Landscape(**UNEQUAL), "Gradient flow from the origin, L = 32, N = 8"
        flow = follow(landscape, ORIGIN, LONG)
        flow.to_csv(self.out / "flow.csv", float_format="%.6g")
        return {
            "loss": over_time(flow, ["loss"], title, "loss (nats)"),
            "parameters": over_time(flow, PARAMETERS, title, "value"),
            "surface": surface(landscape, {"path": flow}, title),
        }

    def figures_of_equal(self) -> dict[str, go.Figure]:
        """Figure A.4: loss and paths with L = N, from two points beside the saddle at the origin."""
        landscape, title = (
            Landscape(**EQUAL),
            "Gradient flow from two points beside the saddle at the origin, L = N = 8",
        )
        flows = {name: follow(landscape, start, LONGER) for name, start in FATES.items()}
        pd.concat(flows, names=["start"]).to_csv(self.out / "flow_l_equals_n.csv", float_format="%.6g")
        losses = pd.DataFrame({name: flow["loss"] for name, flow in flows.items()})
        return {
            "loss_l_equals_n": over_time(losses, list(losses), title, "loss (nats)"),
            "surface_l_equals_n": surface(landscape, flows, title, window=(-25.0, 12.0, -8.0, 8.0)),
        }


def follow(landscape: Landscape, start: Point, t_end: float) -> pd.DataFrame:
    """Gradient flow with the match y beside its parameters."""
    flow = landscape.flow(start, t_end, n_points=2001)
    return flow.assign(match=landscape.match(flow["alpha"].to_numpy(), flow["beta1"].to_numpy()))


def milestones(landscape: Landscape, start: Point, t_end: float) -> dict[str, object]:
    """When the loss falls; when each parameter comes half as far as it is then, and when it is fastest; and the end."""
    flow, transition = follow(landscape, start, t_end), landscape.transition_time(start, t_end)
    row: dict[str, object] = {
        "L": landscape.n_labels,
        "N": landscape.n_pairs,
        "N1": member(Competitors, landscape.competitors).name,
    }
    row |= {"start": " ".join(f"{each:g}" for each in start), "transition": transition}
    speed = np.abs(landscape.gradient(*flow[PARAMETERS].to_numpy().T))
    for name, its_speed in zip(PARAMETERS, speed, strict=True):
        then = np.interp(transition, flow.index.to_numpy(), flow[name].to_numpy())
        row[f"{name}_at_transition"] = then
        row[f"{name}_half"] = (flow[name] / then >= 0.5).idxmax()
        row[f"{name}_fastest"] = flow.index[int(its_speed.argmax())]
    return row | {f"{name}_end": flow[name].iloc[-1] for name in (*PARAMETERS, "loss")}


def network(run: mi.Run) -> tuple[pd.DataFrame, Landscape]:
    """A trained network in the landscape's coordinates at every saved step, and the landscape with its L and N."""
    found = mi.analyse(run, "order_parameters", progress=True).pivot(index="step", columns="parameter", values="value")
    task = require_item_label(run.task).config
    landscape, table = Landscape(task.n_labels, task.n_pairs), found[PARAMETERS].copy()
    xi, alpha, beta1 = table.to_numpy().T
    table["loss"], table["match"] = landscape.loss(xi, alpha, beta1), landscape.match(alpha, beta1)
    return table.join(mi.measure(run, ["icl_loss"], progress=True)), landscape


def over_time(table: pd.DataFrame, names: list[str], title: str, unit: str) -> go.Figure:
    """Columns of a table over its time."""
    rows = table[names].rename_axis("step").reset_index().melt("step", var_name="what")
    return trajectories({"": rows}, "what", "value", names, title).update_layout(
        xaxis_title="time t = learning rate × steps", yaxis_title=unit, yaxis_rangemode="tozero"
    )


def surface(
    landscape: Landscape, paths: dict[str, pd.DataFrame], title: str, *, window: Window | None = None
) -> go.Figure:
    """The loss over ξ and y, with paths on it: green where they start, red where they end.

    `window` is what is shown; by default what the paths take.
    """
    left, right, bottom, top = window or extent(list(paths.values()))
    xi, match = np.linspace(left, right, 161), np.linspace(bottom, top, 161)
    loss = landscape.loss(xi, match[:, None], np.inf)  # β₁ = ∞ makes α the match
    highest = 1.2 * np.log(landscape.n_labels)
    figure = go.Figure(
        go.Contour(
            x=xi,
            y=match,
            z=np.minimum(loss, highest),
            contours={"start": 0, "end": highest, "size": highest / 24},
            colorscale="Blues",
            line={"width": 0.5},
            colorbar={"title": "loss"},
        )
    )
    for (name, path), dash in zip(paths.items(), ("solid", "dash", "dot", "dashdot"), strict=False):
        x, y = path["xi"].to_numpy(), path["match"].to_numpy()
        figure.add_scatter(x=x, y=y, name=name, mode="lines", line={"color": "#D55E00", "dash": dash, "width": 3})
        ends = {"color": ["#009E73", "#D00000"], "size": 11, "line": {"color": "white", "width": 1}}
        figure.add_scatter(x=x[[0, -1]], y=y[[0, -1]], mode="markers", marker=ends, showlegend=False, hoverinfo="skip")
    return figure.update_layout(
        template="plotly_white",
        title=title,
        xaxis={"title": "ξ: the classifier's logit for the attended label", "range": [left, right]},
        yaxis={"title": "y = α e^β₁ / (e^β₁ + N): layer 2's score of the correct label", "range": [bottom, top]},
        legend={"orientation": "h", "y": -0.2},
    )


def extent(paths: list[pd.DataFrame]) -> Window:
    """What the paths take, and 1 more on every side."""
    taken = pd.concat(paths)
    xi, match = taken["xi"].to_numpy(), taken["match"].to_numpy()
    return xi.min() - 1, xi.max() + 1, match.min() - 1, match.max() + 1


if __name__ == "__main__":
    run_analysis(LossLandscape)
