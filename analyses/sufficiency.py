"""When does the final circuit become sufficient? It alone at every checkpoint, beside the network it is taken from.

    python -m analyses.sufficiency RUN [RUN …] [--replacements mean resample corrupt] [--out FOLDER]

Writes, for every replacement (what edges outside of the circuit carry), ``curves.csv`` (run × step: faithfulness and
accuracy of the circuit alone, of all other edges, of the network), ``transitions.csv`` (run: step and 95 % interval of
the network's and the circuit's transition, and the lag), ``circuits.csv`` (run × edge of the circuit: what it loses
without it) and ``verdicts.csv``; ``attribution.csv`` (run × step × edge: effect, attribution, integrated gradients),
which no replacement changes; and figures of the curves.

The circuit of a run is what `find_circuit` finds at the last step, of faithfulness 0.9, on sequences of another seed
than those of the curves. Both transitions are those of accuracy on the same sequences (`locate_emergence`). The lag is
the step of the circuit's transition minus that of the network's; its interval has the half width √(h² + h′²), from the
half widths of the two intervals, as if their errors were independent. Questions of our own, with rules that were set
before any of these runs was analysed; "yes" if a rule holds in every run, "no" if in none:

* does the circuit become sufficient after the network answers: the interval of the lag lies above 0;
* before it: the interval lies below 0;
* in the same transition: the interval lies within half the 10–90 % width of the network's transition of 0;
* is it the only circuit of its size: at the last step, none of the other sets of as many edges has faithfulness 0.9 or
  more, on 64 pairs: of all sets if there are at most 1,000, else of 500 at random;
* does anything else answer: at a step the accuracy of all other edges is half the network's last one or more;
* are integrated gradients closer to the effect than attribution: their mean absolute error over edges is smaller, at
  the saved step nearest to the network's transition and at the last one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import comb, hypot
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import mechinterp as mi
from analyses._common import RunAnalysis, run_analysis
from analyses.claims.verdicts import Claim, Verdict, format_range, judge, verdict_table
from mechinterp.analysis.sufficiency import SufficiencyOverTraining
from mechinterp.analysis.tables import path_corruption
from mechinterp.circuits.circuit_pass import Replacement
from mechinterp.circuits.faithfulness import Faithfulness, minimality, random_circuit
from mechinterp.figures import PALETTE, styled
from mechinterp.files import make_folder
from mechinterp.randomness import Stream, generator
from mechinterp.run import Run, open_runs

MOST_OTHERS = 1000
"""Up to this many other circuits of its size, a circuit is compared with all of them; else with `N_RANDOM`."""
N_RANDOM = 500
"""Random circuits of one size."""
N_PAIRS_OTHERS = 64
"""Pairs of sequences on which other circuits are measured."""
WIDTHS_SHOWN = 2.5
"""Of the network's transition, to either side of it, in the lower panels of the figure."""

CURVES = [
    ("network_accuracy", "network", PALETTE[0]),
    ("accuracy", "circuit alone", PALETTE[1]),
    ("complement_accuracy", "all other edges", PALETTE[2]),
]
"""What is drawn: columns of `SufficiencyOverTraining.table`, their names in words, and colours."""


@dataclass
class Sufficiency(RunAnalysis):
    """When does the final circuit become sufficient? It alone at every checkpoint."""

    level: float = 0.9
    """The faithfulness that the circuit is to reach at the last step."""
    replacements: tuple[Replacement, ...] = (*Replacement,)
    """mean, resample, corrupt: what edges outside of the circuit carry."""
    n_pairs: int = 256
    """Pairs of sequences."""
    out: Path = Path("results/sufficiency")
    """Folder of the tables and the figure."""

    def execute(self) -> None:
        runs, tables = open_runs(self.runs), dict[str, list[pd.DataFrame]]()
        make_folder(self.out)
        for replacement in self.replacements:
            results, rows, losses = dict[str, SufficiencyOverTraining](), {}, {}
            options = {"replacement": replacement, "n_pairs": self.n_pairs}
            for name, run in runs.items():
                results[name] = mi.circuit_sufficiency(run, level=self.level, progress=True, **options)
                print(f"{replacement.name}: {name}\n{results[name]}", flush=True)
                losses[name], others = at_the_end(run, results[name], **options)
                rows[name] = transitions(results[name]) | others
            if "attribution" not in tables:
                errors = {name: attributions(run, results[name], self.n_pairs) for name, run in runs.items()}
                tables["attribution"] = [by_run(errors)]
            table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("run").reset_index()
            verdicts = verdict_table(verdicts_of(table, tables["attribution"][0]))
            curves = by_run({name: result.table.reset_index() for name, result in results.items()})
            new = {"transitions": table, "curves": curves, "circuits": by_run(losses), "verdicts": verdicts}
            for name, part in new.items():
                tables.setdefault(name, []).append(part.assign(replacement=replacement.name))
            print(table.round(2).T.to_string(header=False))
            print(verdicts[["sentence", "verdict", "runs", "numbers"]].to_string(index=False), flush=True)
            self.write(draw(results), f"sufficiency_{replacement.name}")
        for name, parts in tables.items():
            pd.concat(parts).to_csv(self.out / f"{name}.csv", index=False, float_format="%.5g")


def by_run(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of all runs, with the run's name first."""
    return pd.concat(tables, names=["run"]).reset_index(level="run")


def transitions(result: SufficiencyOverTraining) -> dict[str, float]:
    """The two transitions and the lag between them, and the best that other edges do at any step."""
    row: dict[str, float] = {"n_edges": len(result.circuit)}
    steps, halves = {}, {}
    for name, emergence in (("network", result.network_emergence), ("circuit", result.circuit_emergence)):
        low, high, width = (
            np.nan if value is None else value for value in (emergence.low, emergence.high, emergence.width)
        )
        steps[name], halves[name] = np.nan if emergence.step is None else emergence.step, (high - low) / 2
        row |= {name: steps[name], f"{name}_low": low, f"{name}_high": high, f"{name}_width": width}
    lag, half = steps["circuit"] - steps["network"], hypot(halves["circuit"], halves["network"])
    row |= {"lag": lag, "lag_low": lag - half, "lag_high": lag + half}
    since = result.sufficient_since
    return row | {
        "sufficient_since": np.nan if since is None else since,
        "faithfulness": result.table["faithfulness"].iloc[-1],
        "accuracy": result.table["accuracy"].iloc[-1],
        "network_accuracy": result.table["network_accuracy"].iloc[-1],
        "complement_accuracy": result.table["complement_accuracy"].max(),
    }


def at_the_end(
    run: Run, result: SufficiencyOverTraining, *, replacement: Replacement, n_pairs: int
) -> tuple[pd.DataFrame, dict[str, float]]:
    """What the circuit of the last step loses without one of its edges, and how many other circuits of its size have
    its level of faithfulness."""
    pairs, few = (mi.corrupted_pairs(run.task, path_corruption(run.task), n_pairs=n) for n in (n_pairs, N_PAIRS_OTHERS))
    network, size = run.network(result.step), len(result.circuit)
    measured, rng = Faithfulness(network, few, replacement=replacement), generator(0, Stream.BOOTSTRAP)
    if comb(len(measured.edges), size) - 1 <= MOST_OTHERS:
        circuits = list(combinations(measured.edges, size))
    else:
        circuits = [random_circuit(measured.edges, size, rng) for _ in range(N_RANDOM)]
    others = np.array([measured.faithfulness(edges) for edges in circuits if set(edges) != set(result.circuit)])
    table = minimality(network, pairs, result.circuit, replacement=replacement)
    best = others.max() if len(others) else np.nan
    return table, {"others": len(others), "others_as_good": int((others >= result.level).sum()), "best_other": best}


def attributions(run: Run, result: SufficiencyOverTraining, n_pairs: int) -> pd.DataFrame:
    """Effects of edges and their approximations, at the saved step nearest to the transition and at the last one."""
    at = result.network_emergence.step
    steps = [result.step] if at is None else sorted({min(run.steps, key=lambda step: abs(step - at)), result.step})
    table = mi.analyse(run, "attribution", steps=steps, n_pairs=n_pairs)
    edges = table[table["part"] == "edge"]
    return edges[["step", "sender", "receiver", "effect", "attribution", "integrated"]].reset_index(drop=True)


def verdicts_of(table: pd.DataFrame, approximations: pd.DataFrame) -> list[Verdict]:
    """The verdicts on the questions, from `transitions` and `at_the_end` of the runs, a row each, and from their
    `attributions`, by run."""
    gaps = approximations[["attribution", "integrated"]].sub(approximations["effect"], axis=0).abs()
    errors = gaps.groupby([approximations["run"], approximations["step"]]).mean()
    closer = (errors["integrated"] < errors["attribution"]).groupby(level="run").all()

    def question(sentence: str, rule: str, holds: Callable[[pd.Series], object], numbers: str) -> Verdict:
        met = {number: bool(holds(row)) for number, row in table.reset_index(drop=True).iterrows()}
        return judge(Claim("", sentence, "our question"), rule, met, numbers)

    lags = "; ".join(f"{row.lag:.1f} ({row.lag_low:.1f} to {row.lag_high:.1f})" for row in table.itertuples())
    return [
        question(
            "does the final circuit become sufficient after the network answers?",
            "the interval of the lag lies above 0",
            lambda row: row["lag_low"] > 0,
            f"lags {lags} steps",
        ),
        question(
            "does it become sufficient before the network answers?",
            "the interval of the lag lies below 0",
            lambda row: row["lag_high"] < 0,
            f"lags {lags} steps",
        ),
        question(
            "does it become sufficient in the same transition?",
            "the interval of the lag lies within half the 10–90 % width of the network's transition of 0",
            lambda row: max(-row["lag_low"], row["lag_high"]) <= row["network_width"] / 2,
            f"half widths {format_range(table['network_width'] / 2, 0)} steps",
        ),
        question(
            "is it the only circuit of its size?",
            "no other set of as many edges reaches the level at the last step",
            lambda row: row["others"] > 0 and row["others_as_good"] == 0,
            f"{format_range(table['others_as_good'], 0)} of {format_range(table['others'], 0)} others do, the best with"
            f" {format_range(table['best_other'])}",
        ),
        question(
            "does anything else answer?",
            "at a step all other edges together have half the network's last accuracy or more",
            lambda row: row["complement_accuracy"] >= row["network_accuracy"] / 2,
            f"at most {format_range(table['complement_accuracy'])}",
        ),
        question(
            "are integrated gradients closer to the effect than attribution?",
            "their mean absolute error over edges is smaller, at the transition and at the end",
            lambda row: closer[row["run"]],
            f"errors {format_range(errors['integrated'])} and {format_range(errors['attribution'])}",
        ),
    ]


def draw(results: Mapping[str, SufficiencyOverTraining]) -> go.Figure:
    """Accuracy of the network, of the circuit alone and of all other edges, a column for every run: above over all of
    training, below around the network's transition, with the intervals of both transitions."""
    figure = make_subplots(
        rows=2, cols=len(results), shared_yaxes=True, subplot_titles=list(results), vertical_spacing=0.14
    )
    for column, result in enumerate(results.values(), start=1):
        for row in (1, 2):
            for name, title, colour in CURVES:
                figure.add_scatter(
                    x=result.table.index.to_numpy(),
                    y=result.table[name].to_numpy(),
                    name=title,
                    legendgroup=name,
                    showlegend=row == column == 1,
                    line={"color": colour},
                    row=row,
                    col=column,
                )
        transition = result.network_emergence
        if transition.step is not None and transition.width is not None:
            reach = WIDTHS_SHOWN * transition.width
            figure.update_xaxes(range=[transition.step - reach, transition.step + reach], row=2, col=column)
        for emergence, (_, _, colour) in zip((transition, result.circuit_emergence), CURVES, strict=False):
            if emergence.transition:
                interval = {"x0": emergence.low, "x1": emergence.high, "line_width": 0}
                figure.add_vrect(**interval, fillcolor=colour, opacity=0.25, row=2, col=column)
    title = "The final circuit alone, at every checkpoint; below, shaded: 95 % intervals of the two transitions"
    figure = styled(figure, title, None, None).update_layout(height=640, legend={"y": -0.12})
    return figure.update_xaxes(title_text="step", row=2).update_yaxes(title_text="accuracy", col=1)


if __name__ == "__main__":
    run_analysis(Sufficiency)
