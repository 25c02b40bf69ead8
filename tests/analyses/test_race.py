"""The analyses of the race find the laws that made-up runs follow, and their absence where there are none."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from analyses import bridge, race_landscape
from analyses.race import at_rest, memorised_of, order_parameters, thresholds_of
from analyses.race_verdicts import (
    IC,
    IWL,
    of_abruptness,
    of_balance,
    of_diversity,
    of_groups,
    of_losses,
    of_memory,
    of_rest,
    of_thresholds,
    of_times,
    of_transience,
)
from mechinterp.errors import MechinterpError
from mechinterp.report.sweeps import clouds, laws
from mechinterp.theory.kinetics import Kinetics, other_loss

SEEDS = range(6)
NU, PREFACTOR = 0.7, 0.2


def times(power: float = 1.0) -> pd.DataFrame:
    rows = []
    for what in ("network", "two layers", "additive model", "network of width 512"):
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
    for what, N in product(("network", "additive model"), (8, 16, 32)):
        at = (float(Kinetics(2).learning_integral()) / 2 * N / PREFACTOR) ** (1 / NU)
        for K in np.round(at * np.array([0.1, 0.3, 0.7, 0.99, 1.4, 3.0, 10.0])).astype(int):
            for seed in SEEDS:
                learned = 0.5 + 0.5 * (at * (0.97 + 0.01 * seed) < K)
                rows.append({"what": what, "N": N, "K": K, "seed": seed, IC: learned, IWL: 1.5 - learned})
    return pd.DataFrame(rows)


def verdicts(found) -> dict[str, str]:
    return {each.figure: each.verdict for each in found}


def of_scaling(runs: pd.DataFrame, timed: pd.DataFrame, memory: pd.DataFrame) -> list:
    return of_thresholds(runs, timed, memory, thresholds_of(runs, timed, memory))


def test_planted_laws_are_reproduced():
    assert set(verdicts(of_times(times())).values()) == {"reproduced"}
    assert set(verdicts(of_memory(memorised())).values()) == {"reproduced"}
    assert set(verdicts(of_scaling(diversity(), times(), memorised())).values()) == {"reproduced"}
    found = verdicts(of_diversity(diversity()))
    assert found == {"2b, 2c, A.7": "reproduced", "3a": "reproduced"}


def test_k_star_is_found_and_predicted_where_memory_and_circuit_are_as_fast():
    found = thresholds_of(diversity(), times(), memorised())
    assert found["what"].tolist() == ["network"] * 3 + ["additive model"] * 3
    known = (found["t_ICL"] / PREFACTOR) ** (1 / NU)
    assert found["predicted"].to_numpy() == pytest.approx(known.to_numpy(), rel=1e-6)
    assert found["fitted"].to_numpy() == pytest.approx(known.to_numpy(), rel=0.05)


def test_each_kind_of_network_is_predicted_from_its_own_laws():
    slower = times().assign(time=lambda t: t["time"] * t["what"].eq("network").map({True: 3.0, False: 1.0}))
    found = thresholds_of(diversity(), slower, memorised()).groupby("what")["predicted"].max()
    assert found["network"] == pytest.approx(3 ** (1 / NU) * found["additive model"])


def test_other_laws_are_not_taken_for_these():
    quadratic = verdicts(of_times(times(power=2.0)))
    assert quadratic["6b"] == quadratic["A.5"] == "not reproduced"
    assert verdicts(of_memory(memorised().assign(c1=0.2)))["5, A.3"] == "undecided", "I_K has not come to its end"
    linear = memorised().assign(I_K=lambda t: 0.01 * t["K"])
    assert verdicts(of_memory(linear))["5, A.3"] == "not reproduced"
    assert verdicts(of_scaling(diversity(), times(), linear))["6a"] == "not reproduced"
    mixed = diversity().assign(**{IC: 0.8, IWL: 0.8})
    assert set(verdicts(of_diversity(mixed)).values()) == {"not reproduced"}


def test_groups_of_seeds_are_told_from_an_even_spread():
    ends = {"two": [0.5, 0.51, 0.52, 0.98, 0.99, 1.0], "even": np.linspace(0.5, 1.0, 6)}
    tables = {name: pd.DataFrame({"N": 8, "K": 100, "seed": SEEDS, IC: own}) for name, own in ends.items()}
    assert of_groups(tables["two"]).verdict == "reproduced"
    assert of_groups(tables["even"]).verdict == "not reproduced"
    both = of_groups(pd.concat([tables["two"], tables["even"].assign(K=200)]))
    assert both.verdict == "undecided"
    assert "K = 100: IC 0.50–1.00, 3 + 3 runs" in both.numbers


def test_a_jump_is_abrupt_and_a_drift_is_not():
    steps = np.arange(0, 1_000, 20)
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(steps))
    jump = pd.Series(0.5 + 0.5 / (1 + np.exp(-(steps - 500) / 10)) + noise, index=steps)
    drift = pd.Series(0.5 + 0.5 * steps / 1_000 + noise, index=steps)
    slow = pd.Series(0.5 + 0.5 / (1 + np.exp(-(steps - 500) / 75)) + noise, index=steps)
    found = of_abruptness({"network of width 512": [jump, jump], "additive model": [jump, drift]})
    assert verdicts(found) == {"2d": "reproduced", "3b": "not reproduced"}
    assert "1 of 2 transitions" in found[1].numbers
    both = of_abruptness({"network of width 512": [jump, slow], "additive model": [jump]})
    assert verdicts(both) == {"2d": "not reproduced", "3b": "reproduced"}
    assert "2 of 2 transitions" in both[0].numbers


def decaying(loss_ratio: float = 1.0) -> tuple[pd.DataFrame, dict, pd.DataFrame]:
    steps, curves, rows = np.arange(0, 2_001, 100), {}, []
    for decay, lost in ((0.0, np.inf), (0.001, 1_500), (0.01, 800)):
        for seed in (0, 1):
            accuracy = np.where(steps < 300, 0.5, np.where(steps < lost, 0.999, 0.6))
            icl = np.where(steps < 300, 0.69, 0.01)
            table = {
                "icl_accuracy": accuracy,
                "icl_loss": icl,
                "iwl_loss": loss_ratio * other_loss(icl),
                "iwl_accuracy": 0.5,
            }
            curves[f"λ {decay}", seed] = pd.DataFrame(table, index=steps)
            rows.append({"variant": f"λ {decay}", "seed": seed, "decay": decay, IC: accuracy[-1]})
    losses = pd.concat([table.assign(variant=variant) for (variant, _), table in curves.items()])
    return pd.DataFrame(rows), curves, losses


def test_what_fades():
    found = of_transience("network", *decaying()[:2])
    assert [(each.figure, each.verdict) for each in found] == [(f, "reproduced") for f in ("2e", "2e", "A.6")]
    assert "lost at step –, –" in found[0].numbers
    assert "lost at step 1500, 1500" in found[1].numbers
    assert [each.figure for each in of_transience("additive model", *decaying()[:2])] == ["3c", "3c", "A.6"]


def test_the_losses_relation_is_judged_with_icl_and_after_it():
    _, _, losses = decaying()
    with_icl, after = of_losses({"network": losses})
    assert (with_icl.verdict, after.verdict) == ("reproduced", "undecided"), "IWL never becomes sure here"
    assert of_losses({"network": decaying(loss_ratio=2.0)[2]})[0].verdict == "not reproduced"
    iwl = np.geomspace(1e-3, 0.05, 10)
    gone = pd.DataFrame({"iwl_loss": iwl, "icl_loss": other_loss(iwl), "iwl_accuracy": 1.0, "icl_accuracy": 0.5})
    assert of_losses({"additive model": gone})[1].verdict == "reproduced"


def resting(ratio: float) -> pd.DataFrame:
    """w rises past where it would rest, and then follows that."""
    t = np.arange(20.0)
    rest = 5 - 0.1 * t
    w = np.where(t < 5, t, ratio * rest)
    return pd.DataFrame({"t": t, "w": w, "rest": rest, "icl_accuracy": 1.0, "decay": 0.001, "seed": 0})


def test_w_is_compared_with_where_it_rests_once_it_came_there():
    found = of_rest(resting(1.1))
    assert found.verdict == "reproduced"
    assert "in 100 % of 15; w / W 1.10" in found.numbers
    assert of_rest(resting(1.5)).verdict == "not reproduced"
    lost = resting(1.1).assign(icl_accuracy=lambda t: np.where(t["t"] < 10, 1.0, 0.5))
    assert "of 5;" in of_rest(lost).numbers
    panel = at_rest(resting(1.1))
    assert [trace.name for trace in panel.data] == ["w", "W(c₃/λ)"]
    assert len(panel.data[0].x) == 19, "but the start, where W says nothing"


def test_what_is_memorised_is_the_last_of_each_run():
    times = pd.Index([0.0, 1.0, 2.0], name="steps × learning rate")
    table = pd.DataFrame({"c1": [0.5, 0.2, 0.01], "c2": 0.5, "c3": 1.0, "memorised": [0, 0.7, 0.9]}, index=times)
    learning = {("network", 100, 0): table, ("network", 200, 0): table, ("additive model", 100, 0): table}
    found = memorised_of(learning)
    assert found[["K", "I_K", "c1"]].to_numpy().tolist() == [[100, 0.9, 0.01], [200, 0.9, 0.01], [100, 0.9, 0.01]]
    figure = order_parameters(learning, "network")
    assert [trace.name for trace in figure.data] == ["K = 100", "K = 200"] * 4
    assert sum(bool(trace.showlegend) for trace in figure.data) == 2, "a name once in the legend"


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


def test_the_bridge_predicts_where_two_known_laws_meet(tmp_path):
    memory = {float(K): [0.5 * K, 0.5 * K] for K in (100, 200, 400)}
    found = bridge.bridge(memory, {1: [150.0, 150.0], 2: [50.0, np.inf, 60.0]}, {1: 310.0})
    assert found["predicted"].to_numpy() == pytest.approx([300.0, 120.0])
    assert found["t_ICL"].tolist() == [150.0, 60.0]
    assert bridge.of_bridge(found).verdict == "not reproduced", "of B = 2 it is not known where figure 2a turns over"
    assert bridge.of_bridge(found.iloc[:1]).verdict == "reproduced"
    path = tmp_path / "turning.csv"
    path.write_text("B,K\n1,310.5\n")
    assert bridge.turning_points(path) == {1: 310.5}
    path.write_text("B,k\n1,310.5\n")
    with pytest.raises(MechinterpError, match=r"turning.csv: cannot be read as a table with columns B and K"):
        bridge.turning_points(path)
    with pytest.raises(MechinterpError, match=r"nowhere.csv: cannot be read"):
        bridge.turning_points(tmp_path / "nowhere.csv")


def test_late_and_early_starts_follow_their_formulas():
    found = race_landscape.times_by_start(Kinetics(100)).set_index("beta0")
    near, far = found.loc[-0.125], found.loc[-5.0]
    assert near["near"] == pytest.approx(near["integrated"], rel=0.12)
    assert far["late"] == pytest.approx(far["integrated"], rel=0.01)
    drawn = race_landscape.times_of_drawn(Kinetics(100), n=400)
    assert drawn["t_ICL"].mean() > 1.5 * drawn["t_ICL"].median(), "a long tail"
    exact = Kinetics(100).time_to_learn(0.0, float(drawn["beta0"].iloc[0]))
    assert drawn["t_ICL"].iloc[0] == pytest.approx(exact, rel=1e-3)


def test_gradient_flow_on_the_landscape_leads_to_icl_unless_contexts_are_balanced():
    ends = {name: path.iloc[-1] for name, path in race_landscape.flows(Kinetics(100), race_landscape.STARTS).items()}
    assert all(end[["w", "beta"]].min() > 3 for end in ends.values())
    both = race_landscape.flows(Kinetics(100, balanced=True), race_landscape.BESIDE)
    up, down = (path.iloc[-1] for path in both.values())
    assert up[["w", "beta"]].min() > 3
    assert down[["w", "beta"]].max() < 0
    figure = race_landscape.surfaces({"𝒟′": (Kinetics(100, balanced=True), both)})
    assert [trace.name for trace in figure.data][1:] == list(race_landscape.BESIDE)
