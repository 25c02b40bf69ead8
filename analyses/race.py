"""Does a network memorise or learn in context, and why (Nguyen & Reddy 2024, figures 2, 3, 5, 6 and A.2 to A.8)?

    python -m analyses.race [--workers N] [--paper-scale] [--out FOLDER]

Does the studies ``race_*.toml`` and writes, for each, its tables and its page; and to ``race_diversity/`` the figures,
``times.csv`` (t_ICL of every run without a dataset to memorise), ``thresholds.csv`` (K* at every N, fitted and
predicted), ``memory.csv`` (I_K(∞) of every K), ``cost.csv`` and ``verdicts.csv``: every claim with what was found
(`analyses.claims.race`). The theory's own figures are drawn by ``race_landscape``; ``bridge`` asks the same of the
network of Reddy 2023.

Times are in units of steps × learning rate, in which gradient flow does not depend on the learning rate. "Network" is
that of ``race_diversity``, which has width 128 (512 at the paper's scale), unless a width is named.
"""

from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses._common import StudyAnalysis, StudyResult, costs, run_analysis
from analyses._sweep_figures import bands, clouds, laws, paths, strips
from analyses.claims import race as claims
from analyses.claims.race import IC, IWL, samples
from analyses.claims.scaling import power_law, threshold
from analyses.claims.verdicts import verdict_table
from mechinterp.circuits.additive_order_parameters import order_parameters_of_run
from mechinterp.emergence import first_above
from mechinterp.errors import MechinterpError
from mechinterp.report.study import variant_curves
from mechinterp.run import open_run
from mechinterp.theory.kinetics import other_loss, transient_w

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

Learning = dict[tuple[str, int, int], pd.DataFrame]
"""The race's coordinates of a run (`circuits.race`) over steps × learning rate, by what it is of, K and seed."""


@dataclass
class Race(StudyAnalysis):
    """Does a network memorise or learn in context, and why (Nguyen & Reddy 2024)?"""

    def execute(self) -> None:
        timed, others = self.conducted("race_time"), self.conducted("race_time_others")
        done, additive = self.conducted("race_diversity"), self.conducted("race_additive")
        near, memory = self.conducted("race_boundary"), self.conducted("race_memory")
        fading, weaker = self.conducted("race_transience"), self.conducted("race_additive_transience")
        balanced = self.conducted("race_balanced")
        times = pd.concat([times_of(timed), times_of(others)])
        diversity = pd.concat(
            [
                done.settings(SETTINGS).assign(what="network"),
                additive.settings(SETTINGS).assign(what="additive model"),
            ]
        )
        learning = self._memorising(memory)
        memorised = memorised_of(learning)
        thresholds = thresholds_of(diversity, times, memorised)
        resting = self._resting(weaker)
        held, crowded = balanced.settings(SETTINGS), near.settings(SETTINGS)
        losses = {"network": losses_of(fading), "additive model": losses_of(weaker)}
        for name, table in (("times", times), ("memory", memorised), ("thresholds", thresholds)):
            table.to_csv(done.out / f"{name}.csv", index=False, float_format="%.5g")
        studies = (timed, others, done, additive, near, memory, fading, weaker, balanced)
        costs(*studies).to_csv(done.out / "cost.csv", index=False)
        found = verdict_table(
            [
                *claims.of_diversity(diversity),
                claims.of_groups(crowded),
                *claims.of_times(times),
                *claims.of_abruptness(curves_of(timed, others)),
                *claims.of_memory(memorised),
                *claims.of_thresholds(diversity, times, memorised, thresholds),
                *claims.of_transience("network", fading.settings(SETTINGS), fading.measured),
                *claims.of_transience("additive model", weaker.settings(SETTINGS), weaker.measured),
                claims.of_rest(resting),
                *claims.of_losses(losses),
                claims.of_balance(held),
            ]
        )
        found.to_csv(done.out / "verdicts.csv", index=False)
        for what, name in (("network", "diversity"), ("additive model", "diversity_additive")):
            own = diversity[diversity["what"] == what]
            done.write(bands(own, "K", [IC, IWL], "N", f"More pairs, other solution ({what})", log_x=True), name)
        done.write(variant_curves(timed.study, timed.measured, "icl_accuracy"), "abrupt")
        scaling = {name: samples(own, "N", "time") for name, own in times.groupby("what", sort=False)}
        done.write(laws(scaling, "N", "t_ICL", "Time to learn in context"), "times")
        at = {
            f"{what}, {how}": samples(own, "N", how)
            for what, own in thresholds.groupby("what", sort=False)
            for how in ("fitted", "predicted")
        }
        done.write(laws(at, "N", "K*", "Where ICL takes over"), "thresholds")
        learnt = {name: samples(own, "K", "I_K") for name, own in memorised.groupby("what", sort=False)}
        done.write(laws(learnt, "K", "I_K(∞)", "Time to memorise"), "memory")
        done.write(order_parameters(learning, "network"), "order_parameters")
        crowded["setting"] = "N = " + crowded["N"].astype(str) + ", K = " + crowded["K"].astype(str)
        done.write(strips(crowded, "setting", [IC], "Near K*: every seed"), "boundary")
        done.write(variant_curves(fading.study, fading.measured, "icl_accuracy"), "transience")
        done.write(variant_curves(weaker.study, weaker.measured, "icl_accuracy"), "transience_additive")
        done.write(at_rest(resting), "rest")
        for what, name in (("network", "losses"), ("additive model", "losses_additive")):
            done.write(losses_by_phase(losses[what], what), name)
        shown = held.assign(contexts=held["balanced"].map({True: "N/2 of each label", False: "labels at random"}))
        shown["setting"] = "K = " + shown["K"].astype(str) + ", " + shown["contexts"]
        done.write(strips(shown, "setting", [IC], "Balanced contexts: every seed"), "balanced")
        print(thresholds.round(2).to_string(index=False))
        print(found.drop(columns="numbers").to_string(index=False))

    def _memorising(self, done: StudyResult) -> Learning:
        """What every run learned in which only the MLP learns."""
        return {
            (MEMORISING[grid_of(row["variant"])], row["K"], row["seed"]): self._over_time(row)
            for row in done.settings(SETTINGS).to_dict("records")
        }

    def _resting(self, done: StudyResult) -> pd.DataFrame:
        """w and where it would come to rest, W(c₃/λ), at every checkpoint of the runs in which it decays."""
        tables = []
        for row in done.settings(SETTINGS).to_dict("records"):
            if row["decay"]:
                found = self._over_time(row)
                rest = transient_w(found["c3"].to_numpy(), row["decay"])
                accuracy = done.measured[row["variant"], row["seed"]]["icl_accuracy"].to_numpy()
                columns = {"w": found["w"], "rest": rest, "icl_accuracy": accuracy, "decay": row["decay"]}
                tables.append(pd.DataFrame(columns | {"seed": row["seed"]}).rename_axis("t").reset_index())
        return pd.concat(tables)

    def _over_time(self, row: dict[Hashable, Any]) -> pd.DataFrame:
        """The race's coordinates of a run, by steps × learning rate."""
        table = order_parameters_of_run(open_run(self.runs / f"{row['run']}.h5"))
        return table.set_index(pd.Index(table.index.to_numpy(float) * row["rate"], name="steps × learning rate"))


def grid_of(variant: str) -> str:
    """The grid that a variant is of."""
    return variant.split()[0]


def times_of(done: StudyResult) -> pd.DataFrame:
    """t_ICL of every run: what it is of, N, seed, time; infinite where ICL was not acquired."""
    rows = []
    for row in done.settings(SETTINGS).to_dict("records"):
        step = first_above(done.measured[row["variant"], row["seed"]]["icl_accuracy"])
        time = np.inf if step is None else step * row["rate"]
        rows.append({"what": TIMED[grid_of(row["variant"])], "N": row["N"], "seed": row["seed"], "time": time})
    return pd.DataFrame(rows)


def curves_of(*studies: StudyResult) -> dict[tuple[str, int, int], pd.Series]:
    """IC accuracy over the steps of all runs, by what they are of, N and seed."""
    return {
        (TIMED[grid_of(row["variant"])], row["N"], row["seed"]): pd.Series(
            done.measured[row["variant"], row["seed"]]["icl_accuracy"]
        )
        for done in studies
        for row in done.settings(SETTINGS).to_dict("records")
    }


def memorised_of(learning: Learning) -> pd.DataFrame:
    """I_K(∞), and c₁ and the time at the end, of every run in which only the MLP learns."""
    rows = []
    for (what, K, seed), table in learning.items():
        end = table.iloc[-1]
        about = {"what": what, "K": K, "seed": seed, "t": float(table.index[-1])}
        rows.append(about | {"I_K": float(end["memorised"]), "c1": float(end["c1"]), "c2": float(end["c2"])})
    return pd.DataFrame(rows)


def thresholds_of(diversity: pd.DataFrame, times: pd.DataFrame, memorised: pd.DataFrame) -> pd.DataFrame:
    """K* at every N: fitted to IC accuracy, and predicted from t_ICL = I_K(∞), both of the same kind of network.

    Not a number where IC accuracy does not turn over between the K that were run.
    """
    rows = []
    for what, runs in diversity.groupby("what", sort=False):
        law = power_law(samples(memorised[memorised["what"] == what], "K", "I_K"))
        timed = times[times["what"] == what]
        for N, own in runs.groupby("N"):
            time = float(timed.loc[timed["N"] == N, "time"].median())
            predicted = (time / law.prefactor) ** (1 / law.exponent)
            row = {"what": what, "N": N, "t_ICL": time, "predicted": predicted}
            with suppress(MechinterpError):
                found = threshold(samples(own, "K", IC))
                row |= {"fitted": found.at, "low": found.low, "high": found.high, "sharpness": found.sharpness}
            rows.append(row)
    columns = ["what", "N", "fitted", "low", "high", "sharpness", "t_ICL", "predicted"]
    return pd.DataFrame(rows, columns=columns)


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
        over_time = own.set_index("t")
        panel = panels.setdefault(f"λ = {own['decay'].iloc[0]:g}", {"w": [], "W(c₃/λ)": []})
        for name, column in (("w", "w"), ("W(c₃/λ)", "rest")):
            panel[name].append(over_time[column].iloc[1:].rename_axis("steps × learning rate"))
    figure = paths(panels, "What attention adds follows what memory leaves to it (additive model)")
    return figure.update_yaxes(range=[0, 1.05 * float(resting["w"].max())])  # W jumps where a single item is forgotten


if __name__ == "__main__":
    run_analysis(Race)
