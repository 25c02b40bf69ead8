"""The analyses of the race find the laws that made-up runs follow, and their absence where there are none."""

import numpy as np
import pandas as pd
import pytest

from analyses.race import IC, IWL, of_balance, of_diversity, of_scaling, of_times, of_transience, thresholds_of
from mechinterp.report.sweeps import clouds, laws
from mechinterp.theory.kinetics import Kinetics, other_loss

SEEDS = range(6)
NU, PREFACTOR = 0.7, 0.2


def times(power: float = 1.0) -> pd.DataFrame:
    rows = []
    for what in ("network", "two layers", "additive model", "narrow network"):
        for N in (8, 16, 32, 64):
            late = (1.0, 0.99, 1.0, 1.01, 1.0, 1.1)
            for seed in SEEDS:
                time = float(Kinetics(2).learning_integral()) / 2 * N**power * late[seed]
                rows.append({"what": what, "N": N, "seed": seed, "time": time})
    return pd.DataFrame(rows)


def memorised() -> pd.DataFrame:
    rows = [
        {"what": what, "K": K, "seed": seed, "I_K": PREFACTOR * K**NU, "c1": 0.001, "c2": 0.99}
        for what in ("network", "additive model")
        for K in (250, 1000, 4000)
        for seed in SEEDS
    ]
    return pd.DataFrame(rows)


def diversity() -> pd.DataFrame:
    """IC accuracy turns over where t_ICL = I_K(∞)."""
    rows = []
    for N in (8, 16, 32):
        at = (float(Kinetics(2).learning_integral()) / 2 * N / PREFACTOR) ** (1 / NU)
        for K in np.round(at * np.array([0.1, 0.3, 0.7, 0.99, 1.4, 3.0, 10.0])).astype(int):
            for seed in SEEDS:
                learned = 0.5 + 0.5 * (at * (0.97 + 0.01 * seed) < K)
                rows.append({"N": N, "K": K, "seed": seed, IC: learned, IWL: 1.5 - learned})
    return pd.DataFrame(rows)


def verdicts(found) -> dict[str, str]:
    return {each.figure: each.verdict for each in found}


def test_planted_laws_are_reproduced():
    assert set(verdicts(of_times(times())).values()) == {"reproduced"}
    assert set(verdicts(of_scaling(diversity(), times(), memorised())).values()) == {"reproduced"}
    assert set(verdicts(of_diversity(diversity())).values()) == {"reproduced"}


def test_k_star_is_found_and_predicted_where_memory_and_circuit_are_as_fast():
    found = thresholds_of(diversity(), times(), memorised())
    known = (found["t_ICL"] / PREFACTOR) ** (1 / NU)
    assert found["predicted"].to_numpy() == pytest.approx(known.to_numpy(), rel=1e-6)
    assert found["fitted"].to_numpy() == pytest.approx(known.to_numpy(), rel=0.05)


def test_other_laws_are_not_taken_for_these():
    quadratic = verdicts(of_times(times(power=2.0)))
    assert quadratic["6b"] == quadratic["A.5"] == "not reproduced"
    slow = memorised().assign(c1=0.2)
    assert verdicts(of_scaling(diversity(), times(), slow))["5, A.3"] == "undecided", "I_K has not come to its end"
    linear = memorised().assign(I_K=lambda t: 0.01 * t["K"])
    assert verdicts(of_scaling(diversity(), times(), linear))["6a"] == "not reproduced"
    mixed = diversity().assign(**{IC: 0.8, IWL: 0.8})
    assert set(verdicts(of_diversity(mixed)).values()) == {"not reproduced"}


def decaying(loss_ratio: float = 1.0) -> tuple[pd.DataFrame, dict, pd.DataFrame]:
    steps, curves, rows = np.arange(0, 2_001, 100), {}, []
    for decay, lost in ((0.0, np.inf), (0.001, 1_500), (0.01, 800)):
        for seed in (0, 1):
            accuracy = np.where(steps < 300, 0.5, np.where(steps < lost, 0.999, 0.6))
            icl = np.where(steps < 300, 0.69, 0.01)
            table = {"icl_accuracy": accuracy, "icl_loss": icl, "iwl_loss": loss_ratio * other_loss(icl)}
            curves[f"λ {decay}", seed] = pd.DataFrame(table, index=steps)
            rows.append({"variant": f"λ {decay}", "seed": seed, "decay": decay, IC: accuracy[-1]})
    losses = pd.concat([table.assign(variant=variant) for (variant, _), table in curves.items()])
    return pd.DataFrame(rows), curves, losses


def test_what_fades_and_what_the_losses_say():
    found = of_transience(*decaying())
    assert [each.verdict for each in found] == ["reproduced"] * 4
    assert "lost at step –, –" in found[0].numbers
    assert "lost at step 1500, 1500" in found[1].numbers
    assert of_transience(*decaying(loss_ratio=2.0))[-1].verdict == "not reproduced"


def test_balance_counts_seeds():
    rows = [
        {"K": K, "balanced": flag, "seed": seed, IC: 0.99 if seed < n else 0.5}
        for K, flag, n in ((1, False, 0), (1, True, 0), (2, False, 5), (2, True, 2))
        for seed in SEEDS
    ]
    found = of_balance(pd.DataFrame(rows))
    assert found.verdict == "reproduced"
    assert "K = 2: 2 of 6, at random 5 of 6" in found.numbers
    same = pd.DataFrame(rows).assign(**{IC: 0.99})
    assert of_balance(same).verdict == "not reproduced"


def test_figures_hold_every_run_and_the_law_through_them():
    samples = {8.0: [1.0, 1.2], 16.0: [2.0, np.inf, 2.0], 32.0: [4.0, 4.0]}
    figure = laws({"network": samples, "few": {8.0: [1.0]}}, "N", "t", "times")
    points, law, few = figure.data
    assert len(points.x) == 6, "what never came is left out"
    assert "N^" in law.name
    assert len(few.x) == 1
    _, _, losses = decaying()
    drawn = clouds(losses, "icl_loss", "iwl_loss", (np.array([0.1]), np.array([1.0])), "losses").data
    assert [each.name for each in drawn] == ["λ 0.0", "λ 0.001", "λ 0.01", "theory"]
    assert sum(len(each.x) for each in drawn[:-1]) == len(losses)
