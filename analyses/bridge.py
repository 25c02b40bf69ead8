"""Does the race of Nguyen & Reddy 2024 explain the network of Reddy 2023?

    python -m analyses.bridge [--workers N] [--paper-scale] [--out FOLDER]

Memorising alone is B = 0, and takes I_K(∞) = ∫ (1 − IWL accuracy) dt, as a share of its start; in-context learning
alone is p_C = 1, and takes t_ICL. If the faster one wins, figure 2a turns over at the K where they are equal. Does the
study ``bridge.toml``, whose runs are some of ``data_dependence.toml`` and ``data_dependence_race.toml``, and writes
``bridge.csv`` and a figure. Where figure 2a does turn over is read from ``turning.csv`` of `analyses.data_dependence`.

Times are in units of steps × learning rate.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analyses._common import StudyAnalysis, StudyResult, run_analysis
from analyses._sweep_figures import laws
from analyses.claims.scaling import power_law
from analyses.claims.verdicts import MET, Claim, Verdict, by_seed, verdict_table
from mechinterp.emergence import first_above
from mechinterp.errors import MechinterpError

SETTINGS = {"K": "task.n_classes", "B": "task.burstiness", "p_C": "task.p_in_context", "rate": "training.learning_rate"}


@dataclass
class Bridge(StudyAnalysis):
    """Does the race of the 2024 paper explain the network of Reddy 2023?"""

    turning: Path = Path("analyses/tables/data_dependence_turning.csv")
    """Table with columns B and K: where figure 2a turns over, at the scale of these runs."""

    def execute(self) -> None:
        observed = turning_points(self.turning)
        done = self.conducted("bridge")
        memory, times = alone(done)
        found = bridge(memory, times, observed)
        found.to_csv(done.out / "bridge.csv", index=False, float_format="%.5g")
        verdict = verdict_table([of_bridge(found)])
        verdict.to_csv(done.out / "verdicts.csv", index=False)
        done.write(laws({"I_K(∞), B = 0": memory}, "K", "I_K(∞)", "Time to memorise (Reddy 2023)"), "memory")
        print(found.round(2).to_string(index=False))
        print(verdict.drop(columns="numbers").to_string(index=False))


def turning_points(path: Path) -> dict[int, float]:
    """Where figure 2a turns over, by B."""
    try:
        table = pd.read_csv(path)
        return {int(str(B)): float(str(K)) for B, K in zip(table["B"], table["K"], strict=True)}
    except (OSError, ValueError, KeyError) as error:
        raise MechinterpError(
            f"{path}: cannot be read as a table with columns B and K ({error}); analyses.data_dependence writes one"
        ) from None


def alone(done: StudyResult) -> tuple[pd.DataFrame, dict[int, list[float]]]:
    """I_K(∞) by seed and K of the runs that can only memorise; by B, t_ICL of those that can only learn in context."""
    memory: list[dict[str, float]] = []
    times: dict[int, list[float]] = {}
    for row in done.settings(SETTINGS).sort_values(["K", "B"]).to_dict("records"):
        table = done.measured[row["variant"], row["seed"]]
        if row["B"] == 0:
            wrong = 1 - table["iwl_accuracy"]
            at = wrong.index.to_numpy(float) * row["rate"]
            whole = float(np.trapezoid(wrong, at) / wrong.iloc[0])
            memory.append({"K": row["K"], "seed": row["seed"], "I_K": whole})
        else:
            step = first_above(table["icl_accuracy"])
            times.setdefault(row["B"], []).append(np.inf if step is None else step * row["rate"])
    return by_seed(pd.DataFrame(memory), "I_K", "K"), times


def bridge(memory: pd.DataFrame, times: dict[int, list[float]], observed: dict[int, float]) -> pd.DataFrame:
    """By B: t_ICL, I_K(∞) = prefactor · K^ν, the K at which they are equal, and where figure 2a turns over."""
    law, rows = power_law(memory), []
    for B, own in times.items():
        time = float(np.median(own))
        row = {"B": B, "t_ICL": time, "prefactor": law.prefactor, "nu": law.exponent.value, "nu_low": law.exponent.low}
        predicted = (time / law.prefactor) ** (1 / law.exponent.value)
        rows.append(row | {"nu_high": law.exponent.high, "predicted": predicted, "observed": observed.get(B, np.nan)})
    return pd.DataFrame(rows)


def of_bridge(found: pd.DataFrame) -> Verdict:
    """Does the race explain the network of 2023?"""
    ratios, rows = found["predicted"] / found["observed"], found.to_dict("records")
    each = ", ".join(f"B = {row['B']}: K = {row['predicted']:.0f}, observed {row['observed']:.0f}" for row in rows)
    law = "{prefactor:.3g} K^{nu:.2f} ({nu_low:.2f} to {nu_high:.2f})".format(**rows[0])
    claim = Claim("2023, 2a", "does ICL take over where t_ICL = I_K(∞) in the network of Reddy 2023?", "our question")
    holds = bool(ratios.between(0.5, 2).all()) if np.isfinite(ratios).all() else None
    rule = "K predicted within a factor of 2 of that at which figure 2a turns over, at every B"
    chance, text = 0.5 ** len(found), f"I_K(∞) = {law}; {each}"
    return Verdict.on(claim, rule, holds, f"{len(found)} B", text, false_positive=chance, power=MET ** len(found))


if __name__ == "__main__":
    run_analysis(Bridge)
