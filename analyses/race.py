"""Does a network memorise or learn in context, and why (Nguyen & Reddy 2024, figures 2, 3, 5, 6 and A.2 to A.8)?

    python -m analyses.race [--workers N] [--paper-scale] [--out FOLDER]

Does the studies ``race_*.toml`` of the presets ``nguyen2024-fast`` and ``nguyen2024-minimal`` and writes, for each, its
tables and its page; and to ``race_diversity/`` the figures, ``times.csv`` (t_ICL of every run without a dataset to
memorise), ``thresholds.csv`` (K* of every seed at every N, measured and predicted), ``memory.csv`` (I_K(∞) of every K),
``cost.csv`` and ``verdicts.csv``: every claim with its rule and what was found (`analyses.claims.race`).
``race_authors`` asks the same under the conventions of the authors' code, ``race_conventions`` which of them matter.
The theory's own figures are drawn by ``race_landscape``; ``bridge`` asks the same of the network of Reddy 2023.

Times are in units of steps × learning rate. They depend on the learning rate: at 0.1, I_K(∞) and t_ICL are 14 to 23 %
longer than at 0.01, and after some 5,000 steps the loss spikes, so that what a run had before its first spike counts
where that is more.
"Network" is that of ``race_diversity``, which has width 128 (512 at the paper's scale), unless a width is named.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses._common import StudyAnalysis, StudyResult, costs, run_analysis
from analyses._sweep_figures import bands, clouds, laws, paths, strips
from analyses.claims import race as claims
from analyses.claims.race import IC, IWL
from analyses.claims.scaling import power_law, resolution, thresholds
from analyses.claims.verdicts import by_seed, verdict_table
from mechinterp.circuits.additive_order_parameters import order_parameters_of_run
from mechinterp.emergence import first_above
from mechinterp.errors import MechinterpError
from mechinterp.report.study import variant_curves
from mechinterp.run import open_run
from mechinterp.theory.kinetics import memorised, other_loss, transient_w

SETTINGS = {
    "K": "task.n_items",
    "N": "task.n_pairs",
    "balanced": "task.balanced",
    "decay": "training.attention_weight_decay",
    "rate": "training.learning_rate",
}
TIMED = {
    "context": "network of width 512",
    "narrow": "network",
    "layers": "two layers",
    "additive": "additive model",
}
"""What the grids of ``race_time`` and ``race_time_others`` train."""
MEMORISING = {
    "network": "network",
    "small": "network, small start",
    "wide": "network of width 512",
    "wide_small": "network of width 512, small start",
    "additive": "additive model",
}
"""What the grids of ``race_memory`` train."""

SPOILT = 0.05
"""By how much IC accuracy must be lower at the end than before the first loss spike to count as spoilt by it."""
ACCURACY = [0.45, 1.02]
"""The range of axes of IC accuracy: chance is 1/2."""

Learning = dict[tuple[str, int, int], pd.DataFrame]
"""c₁, c₂, c₃ and I_K of a run (``memorised``) over steps × learning rate, by what it is of, K and seed."""


@dataclass
class Race(StudyAnalysis):
    """Does a network memorise or learn in context, and why (Nguyen & Reddy 2024)?"""

    def execute(self) -> None:
        timed, others = self.conducted("race_time"), self.conducted("race_time_others")
        done, additive = self.conducted("race_diversity"), self.conducted("race_additive")
        memory, balanced = self.conducted("race_memory"), self.conducted("race_balanced")
        fading, weaker = self.conducted("race_transience"), self.conducted("race_additive_transience")
        networks = of_grid(TIMED)
        times = pd.concat([times_of(timed, networks), times_of(others, networks)])
        diversity = pd.concat([ends(done).assign(what="network"), ends(additive).assign(what="additive model")])
        learning = learning_of(memory, of_grid(MEMORISING))
        learnt = memorised_of(learning)
        crossed = thresholds_of(diversity, times, learnt)
        resting = self._resting(weaker)
        contexts = ends(balanced)
        losses = {"network": losses_of(fading), "additive model": losses_of(weaker)}
        curves = curves_of(timed, networks) | curves_of(others, networks)
        for name, table in (("times", times), ("memory", learnt), ("thresholds", crossed)):
            table.to_csv(done.out / f"{name}.csv", index=False, float_format="%.5g")
        costs(timed, others, done, additive, memory, fading, weaker, balanced).to_csv(
            done.out / "cost.csv", index=False
        )
        shown = ("network of width 512", "additive model")
        found = verdict_table(
            [
                *claims.of_diversity(diversity),
                *claims.of_times(times),
                *claims.of_abruptness({key: curve for key, curve in curves.items() if key[0] in shown}),
                *claims.of_memory(learnt),
                *claims.of_thresholds(crossed, times, learnt),
                *claims.of_transience("network", fading.settings(SETTINGS), fading.measured),
                *claims.of_transience("additive model", weaker.settings(SETTINGS), weaker.measured),
                claims.of_rest(resting),
                *claims.of_losses(losses),
                claims.of_balance(contexts),
            ]
        )
        found.to_csv(done.out / "verdicts.csv", index=False)
        for what, name in (("network", "diversity"), ("additive model", "diversity_additive")):
            own = diversity[diversity["what"] == what]
            done.write(bands(own, "K", [IC, IWL], "N", f"More pairs, other solution ({what})", log_x=True), name)
        done.write(variant_curves(timed.study, timed.measured, "icl_accuracy"), "abrupt")
        for study, what, name in (
            (timed, "network of width 512", "curves"),
            (others, "additive model", "curves_additive"),
        ):
            own = settings_of(study, networks, what)
            done.write(curves_by(study, "N", own, f"ICL is acquired abruptly ({what})"), name)
        done.write(laws(tables_of(times, "N", "time"), "N", "t_ICL", "Time to learn in context"), "times")
        at = {
            f"{what}, {how}": by_seed(own, how, "N")
            for what, own in crossed.groupby("what", sort=False)
            for how in ("fitted", "predicted")
        }
        done.write(laws(at, "N", "K*", "Where ICL takes over"), "thresholds")
        done.write(laws(tables_of(learnt, "K", "I_K"), "K", "I_K(∞)", "Time to memorise"), "memory")
        done.write(order_parameters(learning, "network"), "order_parameters")
        done.write(variant_curves(fading.study, fading.measured, "icl_accuracy"), "transience")
        done.write(variant_curves(weaker.study, weaker.measured, "icl_accuracy"), "transience_additive")
        done.write(lost_by_decay(fading), "lost")
        done.write(at_rest(resting), "rest")
        for what, name in (("network", "losses"), ("additive model", "losses_additive")):
            done.write(losses_by_phase(losses[what], what), name)
        table = contexts.assign(contexts=contexts["balanced"].map({True: "N/2 of each label", False: "at random"}))
        table["setting"] = "K = " + table["K"].astype(str) + ", " + table["contexts"]
        done.write(strips(table, "setting", [IC], "Balanced contexts: every seed"), "balanced")
        half = contexts[contexts["balanced"]]
        done.write(curves_by(balanced, "K", half, "Balanced contexts: IC accuracy of every seed"), "balanced_curves")
        print(crossed.groupby(["what", "N"], sort=False).median(numeric_only=True).round(2).to_string())
        print(found[["figure", "sentence", "verdict", "runs", "false_positive", "power"]].to_string(index=False))

    def _resting(self, done: StudyResult) -> pd.DataFrame:
        """w and where it would come to rest, W(c₃/λ), at every checkpoint of the runs in which it decays."""
        tables = []
        for row in done.settings(SETTINGS).to_dict("records"):
            if row["decay"]:
                table = self._over_time(row)
                rest = transient_w(table["c3"].to_numpy(), row["decay"])
                accuracy = done.measured[row["variant"], row["seed"]]["icl_accuracy"].to_numpy()
                columns = {"w": table["w"], "rest": rest, "icl_accuracy": accuracy, "decay": row["decay"]}
                tables.append(pd.DataFrame(columns | {"seed": row["seed"]}).rename_axis("t").reset_index())
        return pd.concat(tables)

    def _over_time(self, row: dict[Hashable, Any]) -> pd.DataFrame:
        """The order parameters of a run, by steps × learning rate."""
        table = order_parameters_of_run(open_run(self.runs / f"{row['run']}.h5"))
        return over_time(table, row["rate"])


def over_time(table: pd.DataFrame, rate: float) -> pd.DataFrame:
    """A run's table, by steps × learning rate."""
    return table.set_index(pd.Index(table.index.to_numpy(float) * rate, name="steps × learning rate"))


def ends(done: StudyResult) -> pd.DataFrame:
    """The runs of a study with their settings, and their accuracies at the end.

    Those before the first loss spike, where IC accuracy was higher by more than `SPOILT`: a spike may end in-context
    learning, and may come before it has begun. ``first_spike`` is its step, not a number without one.
    """
    table = done.settings(SETTINGS)
    for index, row in table.iterrows():
        whole = done.measured[str(row["variant"]), int(row["seed"])]
        before, last = claims.before_spikes(whole), whole.iloc[-1]
        if len(before) and before["icl_accuracy"].iloc[-1] > last["icl_accuracy"] + SPOILT:
            last = before.iloc[-1]
        table.loc[index, [IC, IWL]] = [last["icl_accuracy"], last["iwl_accuracy"]]
    return table


def of_grid(names: Mapping[str, str]) -> Callable[[str], str]:
    """What a variant is of, by the name of its grid."""
    return lambda variant: names[variant.split()[0]]


def settings_of(done: StudyResult, named: Callable[[str], str], what: str) -> pd.DataFrame:
    """The runs of a study that are of something, with their settings."""
    table = done.settings(SETTINGS)
    return table[table["variant"].map(named) == what]


def tables_of(table: pd.DataFrame, over: str, column: str) -> dict[str, pd.DataFrame]:
    """By what it is of, a column by seed and setting."""
    return {str(what): by_seed(own, column, over) for what, own in table.groupby("what", sort=False)}


def times_of(done: StudyResult, what: Callable[[str], str]) -> pd.DataFrame:
    """t_ICL of every run: what it is of (by its variant), N, K, seed, time; infinite if ICL was not acquired.

    ``end`` is the time at the end of the run.
    """
    rows = []
    for row in done.settings(SETTINGS).to_dict("records"):
        curve = done.measured[row["variant"], row["seed"]]["icl_accuracy"]
        step, end = first_above(curve), float(curve.index[-1]) * row["rate"]
        about = {"what": what(row["variant"]), "N": row["N"], "K": row["K"], "seed": row["seed"]}
        rows.append(about | {"time": np.inf if step is None else step * row["rate"], "end": end})
    return pd.DataFrame(rows)


def curves_of(done: StudyResult, what: Callable[[str], str]) -> dict[tuple[str, int, int], pd.Series]:
    """IC accuracy over the steps of all runs, by what they are of, N and seed."""
    return {
        (what(row["variant"]), row["N"], row["seed"]): done.measured[row["variant"], row["seed"]]["icl_accuracy"]
        for row in done.settings(SETTINGS).to_dict("records")
    }


def learning_of(done: StudyResult, what: Callable[[str], str]) -> Learning:
    """What every run learned in which only the MLP learns."""
    learning: Learning = {}
    for row in done.settings(SETTINGS).to_dict("records"):
        table = over_time(done.measured[row["variant"], row["seed"]], row["rate"])
        table["memorised"] = memorised(table.index.to_numpy(float), table["c1"].to_numpy(float))
        learning[what(row["variant"]), row["K"], row["seed"]] = table
    return learning


def memorised_of(learning: Learning) -> pd.DataFrame:
    """I_K(∞), and c₁ and the time at the end, of every run in which only the MLP learns."""
    rows = []
    for (what, K, seed), table in learning.items():
        end = table.iloc[-1]
        about = {"what": what, "K": K, "seed": seed, "t": float(table.index[-1])}
        rows.append(about | {"I_K": float(end["memorised"]), "c1": float(end["c1"]), "c2": float(end["c2"])})
    return pd.DataFrame(rows)


def thresholds_of(diversity: pd.DataFrame, times: pd.DataFrame, learnt: pd.DataFrame) -> pd.DataFrame:
    """K* of every seed at every N: where IC accuracy rises through 0.75, and where t_ICL = I_K(∞), of the same network.

    ``resolution`` is the standard error of ln K* by the distance of the K that were run. K* is not a number where IC
    accuracy does not turn over between these K, nor the prediction where no law is found.
    """
    tables = []
    for what, runs in diversity.groupby("what", sort=False):
        try:
            law = power_law(by_seed(learnt[learnt["what"] == what], "I_K", "K"))
        except MechinterpError:
            law = None
        timed = times[times["what"] == what]
        for N, own in runs.groupby("N"):
            time = float(timed.loc[timed["N"] == N, "time"].median())
            predicted = np.nan if law is None else (time / law.prefactor) ** (1 / law.exponent.value)
            ic = by_seed(own, IC, "K")
            row = {"what": what, "N": N, "t_ICL": time, "predicted": predicted, "fitted": thresholds(ic)}
            row["resolution"] = resolution(ic)
            tables.append(pd.DataFrame(row | {"seed": ic.index}))
    return pd.concat(tables)[["what", "N", "seed", "fitted", "resolution", "t_ICL", "predicted"]]


def losses_of(done: StudyResult) -> pd.DataFrame:
    """All checkpoints of all runs of a study, with their variant, seed and phase (`claims.race.phases`)."""
    return pd.concat([claims.phases(table).assign(variant=v, seed=seed) for (v, seed), table in done.measured.items()])


def losses_by_phase(losses: pd.DataFrame, what: str) -> go.Figure:
    """The loss on pairs of the dataset against that on new ones with ICL, and the other way round after it; theory."""
    curve = np.geomspace(1e-4, 0.5, 60)
    return clouds(
        {
            "with ICL": (losses[losses["phase"] == "with ICL"], "icl_loss", "iwl_loss"),
            "after ICL": (losses[losses["phase"] == "after ICL"], "iwl_loss", "icl_loss"),
        },
        (curve, np.asarray(other_loss(curve))),
        f"The losses on new pairs and on those of the dataset ({what})",
    )


def curves_by(done: StudyResult, setting: str, runs: pd.DataFrame, title: str) -> go.Figure:
    """IC accuracy of every seed over steps, a panel for every value of a setting, of some runs of a study."""
    panels: dict[str, dict[str, list[pd.Series]]] = {}
    for row in runs.to_dict("records"):
        curve = done.measured[row["variant"], row["seed"]]["icl_accuracy"]
        panels.setdefault(f"{setting} = {row[setting]}", {}).setdefault(f"seed {row['seed']}", []).append(curve)
    return paths(panels, title).update_yaxes(range=ACCURACY)


def lost_by_decay(done: StudyResult) -> go.Figure:
    """When every run has lost ICL, against the decay of attention (figure A.6); runs that have not are left out."""
    rows = []
    for row in done.settings(SETTINGS).to_dict("records"):
        table = claims.before_spikes(done.measured[row["variant"], row["seed"]])
        lost = claims.lost_at(table["icl_accuracy"])
        if row["decay"] and lost is not None and np.isfinite(lost):
            rows.append({"decay": row["decay"], "seed": row["seed"], "lost": lost * row["rate"]})
    table = pd.DataFrame(rows, columns=["decay", "seed", "lost"]).astype({"lost": float})
    return strips(table, "decay", ["lost"], "The more decay, the sooner ICL is lost", y="steps × learning rate")


def order_parameters(learning: Learning, what: str) -> go.Figure:
    """c₁, c₂, c₃ and I_K over time, by the number of pairs (figures A.2 and A.3)."""
    shown = {"c1": "c₁", "c2": "c₂", "c3": "c₃", "memorised": "I_K"}
    panels: dict[str, dict[str, list[pd.Series]]] = {title: {} for title in shown.values()}
    for (own, K, _), table in learning.items():
        for column, title in shown.items():
            if own == what:
                panels[title].setdefault(f"K = {K}", []).append(table[column].iloc[1:])
    return paths(panels, f"What an MLP has memorised over time ({what})", log=tuple(panels))


def at_rest(resting: pd.DataFrame) -> go.Figure:
    """w over time, and where it would come to rest (eq. 45), by the decay."""
    panels: dict[str, dict[str, list[pd.Series]]] = {}
    for _, own in resting.groupby(["decay", "seed"]):
        over = own.set_index("t")
        panel = panels.setdefault(f"λ = {own['decay'].iloc[0]:g}", {"w": [], "W(c₃/λ)": []})
        for name, column in (("w", "w"), ("W(c₃/λ)", "rest")):
            panel[name].append(over[column].iloc[1:].rename_axis("steps × learning rate"))
    figure = paths(panels, "What attention adds follows what memory leaves to it (additive model)")
    return figure.update_yaxes(range=[0, 1.05 * float(resting["w"].max())])  # W jumps where a single item is forgotten


if __name__ == "__main__":
    run_analysis(Race)
