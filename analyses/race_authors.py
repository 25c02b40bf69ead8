"""The race of memorising and in-context learning under the conventions of the authors' code (Nguyen & Reddy 2024).

    python -m analyses.race_authors [--workers N] [--paper-scale] [--out FOLDER]

The text leaves open how deep the MLP is, how all weights start, and whether LayerNorm has parameters; the authors' code
(github.com/anhhuyalex/icl-kinetics) settles it: presets ``nguyen2024-authors`` and ``nguyen2024-authors-minimal``. Does
the studies ``race_authors`` (K* at three N), ``race_boundary`` (many seeds near K*), ``race_memory_authors`` and
``race_memory_network`` (I_K(∞) of the MLP on plain items, and of the network's own on normalised tokens),
``race_time_authors`` (t_ICL at four N), ``race_tail`` and ``race_tail_layers`` (its distribution) and
``race_losses_100``, and writes to ``race_authors/`` the tables ``times.csv``, ``tail.csv``, ``boundary.csv``,
``memory.csv`` and ``thresholds.csv``, figures, ``cost.csv`` and ``verdicts.csv``.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses._common import StudyAnalysis, costs, run_analysis
from analyses._sweep_figures import SERIES, bands, laws, strips
from analyses.claims import race as claims
from analyses.claims.race import IC, IWL, THEIRS
from analyses.claims.verdicts import by_seed, verdict_table
from analyses.race import (
    SETTINGS,
    Learning,
    curves_by,
    curves_of,
    ends,
    learning_of,
    losses_by_phase,
    losses_of,
    memorised_of,
    order_parameters,
    tables_of,
    thresholds_of,
    times_of,
)

NETWORK = THEIRS
PLAIN = "the authors' MLP on plain items"
"""What the paper's experiments on memorising train."""


@dataclass
class RaceAuthors(StudyAnalysis):
    """The race of Nguyen & Reddy 2024 under the conventions of the authors' code."""

    def execute(self) -> None:
        done, near = self.conducted("race_authors"), self.conducted("race_boundary")
        memory, timed = self.conducted("race_memory_authors"), self.conducted("race_time_authors")
        own = self.conducted("race_memory_network")
        one, two = self.conducted("race_tail"), self.conducted("race_tail_layers")
        long = self.conducted("race_losses_100")

        def network(_: str) -> str:
            return NETWORK

        diversity = ends(done).assign(what=NETWORK)
        times = times_of(timed, network)
        tail = pd.concat([times_of(one, network), times_of(two, lambda _: "two layers")])
        seeds = times_of(near, network)
        learning = learning_of(memory, lambda _: PLAIN) | learning_of(own, network)
        learnt = memorised_of(learning)
        crossed = thresholds_of(diversity, times, learnt)
        tables = {"times": times, "tail": tail, "boundary": seeds, "memory": learnt, "thresholds": crossed}
        for name, table in tables.items():
            table.to_csv(done.out / f"{name}.csv", index=False, float_format="%.5g")
        costs(done, near, memory, own, timed, one, two, long).to_csv(done.out / "cost.csv", index=False)
        found = verdict_table(
            [
                *claims.of_diversity(diversity),
                *claims.of_groups(seeds),
                *claims.of_times(times),
                *claims.of_tail(tail),
                *claims.of_abruptness(curves_of(timed, network)),
                *claims.of_memory(learnt),
                *claims.of_thresholds(crossed, times, learnt),
                *claims.of_losses({NETWORK: losses_of(long)}),
            ]
        )
        found.to_csv(done.out / "verdicts.csv", index=False)
        title = f"More pairs, other solution ({NETWORK})"
        done.write(bands(diversity, "K", [IC, IWL], "N", title, log_x=True), "diversity")
        done.write(laws(tables_of(times, "N", "time"), "N", "t_ICL", "Time to learn in context"), "times")
        title = f"ICL is acquired abruptly ({NETWORK})"
        done.write(curves_by(timed, "N", timed.settings(SETTINGS), title), "curves")
        done.write(histograms(tail, "How long in-context learning takes, of many seeds"), "tail")
        done.write(laws(tables_of(learnt, "K", "I_K"), "K", "I_K(∞)", "Time to memorise"), "memory")
        done.write(order_parameters(learning, PLAIN), "order_parameters")
        at = {f"K*, {how}": by_seed(crossed, how, "N") for how in ("fitted", "predicted")}
        done.write(laws(at, "N", "K*", "Where ICL takes over"), "thresholds")
        done.write(near_threshold(seeds, learning), "boundary")
        title = "Near K*: IC accuracy of every seed"
        done.write(curves_by(near, "K", near.settings(SETTINGS), title), "boundary_curves")
        last = ends(near).assign(setting=lambda t: "K = " + t["K"].astype(str))
        done.write(strips(last, "setting", [IC, IWL], "Near K*: IC and IWL accuracy of every seed"), "boundary_ends")
        done.write(losses_by_phase(losses_of(long), f"{NETWORK}, N = 99"), "losses")
        print(crossed.groupby("N").median(numeric_only=True).round(2).to_string())
        print(found[["figure", "sentence", "verdict", "runs", "false_positive", "power"]].to_string(index=False))


def histograms(tail: pd.DataFrame, title: str) -> go.Figure:
    """Histograms of t_ICL over seeds, a panel for each network; seeds that never learn are a bar of their own."""
    parts = list(tail.groupby(["what", "N"], sort=False))
    names = [f"{what}, N = {N}" for (what, N), _ in parts]
    figure = make_subplots(cols=len(parts), subplot_titles=names, horizontal_spacing=0.08)
    for col, (_, own) in enumerate(parts, start=1):
        _histogram(figure, own, row=1, col=col)
    return figure.update_layout(template="plotly_white", title=title, height=380, width=420 * len(parts), bargap=0.05)


def _histogram(figure: go.Figure, own: pd.DataFrame, *, row: int, col: int) -> None:
    """Add a histogram of t_ICL in logarithmic bins; a last bar has the seeds that never learned."""
    finite = own.loc[np.isfinite(own["time"]), "time"].to_numpy(dtype=float)
    never = len(own) - len(finite)
    end = float(own["end"].max()) if never else 1.05 * float(finite.max())
    least = float(min([*finite, end / 10]) if never else finite.min())
    edges = np.geomspace(0.95 * least, end, 17)
    counts, _ = np.histogram(finite, edges)
    middles = np.sqrt(edges[1:] * edges[:-1])
    bar = {"color": SERIES[1]}
    figure.add_bar(x=middles, y=counts, width=np.diff(edges), marker=bar, showlegend=False, row=row, col=col)
    if never:
        grey, width = {"color": SERIES[7]}, 0.3 * edges[-1]
        never_at, text = [1.35 * edges[-1]], [f"{never} never"]
        figure.add_bar(x=never_at, y=[never], width=[width], marker=grey, text=text, showlegend=False, row=row, col=col)
    figure.update_xaxes(title="t_ICL (steps × learning rate)", type="log", row=row, col=col)
    figure.update_yaxes(title="seeds", row=row, col=col)


def near_threshold(seeds: pd.DataFrame, learning: Learning) -> go.Figure:
    """Figure 6c: above, what is memorised over time, by K; below, when many seeds near K* acquire ICL."""
    parts = list(seeds.groupby("K"))
    titles = ["what an MLP has memorised, I_K(t)", *(f"t_ICL, K = {K}, N = {own['N'].iloc[0]}" for K, own in parts)]
    figure = make_subplots(rows=len(parts) + 1, subplot_titles=titles, vertical_spacing=0.12)
    learning = {key: table for key, table in learning.items() if key[0] == NETWORK}
    numbers = list(dict.fromkeys(K for _, K, _ in learning))
    for (_, K, seed), table in learning.items():
        at = numbers.index(K)
        figure.add_scatter(
            x=table.index.to_numpy(float)[1:],
            y=table["memorised"].to_numpy(float)[1:],
            mode="lines",
            line={"color": SERIES[at % len(SERIES)], "width": 1.5},
            name=f"K = {K}",
            legendgroup=str(K),
            showlegend=seed == 0,
            row=1,
            col=1,
        )
    figure.update_xaxes(title="steps × learning rate", type="log", row=1, col=1)
    figure.update_yaxes(title="I_K", type="log", row=1, col=1)
    for row, (_, own) in enumerate(parts, start=2):
        _histogram(figure, own, row=row, col=1)
    title = "Near K*: seeds learn in context early, or never?"
    return figure.update_layout(template="plotly_white", title=title, height=300 * (len(parts) + 1), width=760)


if __name__ == "__main__":
    run_analysis(RaceAuthors)
