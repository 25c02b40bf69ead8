"""Heads are matched by what they do: permutations are found again, decoys stay idle, stand-ins are redundant."""

import numpy as np
import pandas as pd
import pytest

import mechinterp as mi
from mechinterp.circuits.head_matching import matched_heads, role_redundancy
from mechinterp.circuits.heads import head_roles
from mechinterp.errors import MechinterpError
from tests.analysis.planted_runs import CONFIG, PlantedRun, of_heads, permuted, saturating

TASK = mi.build_task(CONFIG)
ORDERS = ([2, 0, 1], [1, 2, 0])
"""Of the permuted network: its head i is the head ORDERS[layer][i] of the other one."""


@pytest.fixture(scope="module")
def network() -> mi.Network:
    """Layer 1: one previous-token head, and two that attend alike and write nothing. Layer 2: a strong and a weaker
    induction head, and one that writes nothing."""
    return of_heads([1, 0, 0], [0.65, 0, 0.35])


def test_permuted_heads_have_the_names_that_they_had(network, tmp_path):
    runs = [PlantedRun(tmp_path / "a.h5", {0: network}), PlantedRun(tmp_path / "b.h5", {0: permuted(network, ORDERS)})]
    table = mi.match_heads(runs, n_pairs=40)
    assert list(table["run"].unique()) == ["a", "b"]
    names = table.set_index(["run", "layer", "head"])["name"]
    first = {(layer, head): names["a", layer, head] for layer in (0, 1) for head in range(3)}
    assert (first[0, 0], first[1, 0], first[1, 2]) == ("previous token 1", "induction 1", "induction 2")
    idle = {name for name in first.values() if name.startswith("idle")}
    assert idle == {"idle 1", "idle 2", "idle 3"}
    for layer, order in enumerate(ORDERS):
        for head, before in enumerate(order):
            mine, theirs = names["b", layer, head], first[layer, before]
            assert mine == theirs or {mine, theirs} <= idle  # idle heads of a layer are alike
    of_second = table[(table["layer"] == 1) & table["name"].str.startswith("idle")]
    assert of_second["name"].nunique() == 1  # and of the same layer in both runs


def test_a_head_that_attends_and_does_not_matter_is_idle(network):
    """It attends to the token before, as the one does that writes."""
    table = matched_heads({"": head_roles(network, TASK, n_pairs=40)}).set_index(["layer", "head"])
    assert (table["previous_token"].loc[0] > 0.9).all()
    assert table["role"].loc[0].tolist() == ["previous_token", "none", "none"]
    assert table["name"].loc[0, 1].startswith("idle")


def test_numbers_follow_the_reference_and_not_the_effect_in_each_run():
    """Assigned as a whole: the nearest head for each alone would give one name twice."""

    def table(heads):
        rows = [
            {"layer": 1, "head": i, "role": "induction", "previous_token": 0.0, "correct_label": label}
            | {"alone": alone, "needed": alone, "redundant": False}
            for i, (label, alone) in enumerate(heads)
        ]
        return pd.DataFrame(rows)

    tables = {"a": table([(0.9, 0.8), (0.9, 0.5)]), "b": table([(0.9, 0.55), (0.9, 0.7)])}
    assert matched_heads(tables)["name"].tolist() == [f"induction {n}" for n in (1, 2, 2, 1)]
    both_near_two = {"a": table([(0.9, 0.9), (0.9, 0.3)]), "b": table([(0.9, 0.35), (0.9, 0.4)])}
    assert matched_heads(both_near_two)["name"].tolist() == [f"induction {n}" for n in (1, 2, 2, 1)]
    more = {"a": table([(0.9, 0.8)]), "b": table([(0.9, 0.2), (0.9, 0.79)]), "c": table([(0.9, 0.21)])}
    assert matched_heads(more)["name"].tolist() == [f"induction {n}" for n in (1, 2, 1, 2)]
    unresolved = {"a": table([(0.9, 0.8)]), "b": table([(0.9, np.nan)])}
    assert matched_heads(unresolved)["name"].tolist() == ["induction 1"] * 2


def test_two_heads_of_which_one_is_enough_are_redundant():
    two = of_heads([1, 0], [1, 1])
    adding = role_redundancy(two, TASK, n_pairs=40).set_index("role")
    assert adding["n_heads"].to_dict() == {"previous_token": 1, "induction": 2}
    assert adding.loc["induction", "apart"] == pytest.approx(adding.loc["induction", "together"], abs=0.02)
    assert not adding["redundant"].any()
    enough = role_redundancy(saturating(two), TASK, n_pairs=40).set_index("role")
    assert enough["redundant"].to_dict() == {"previous_token": False, "induction": True}
    assert enough.loc["induction", "together"] > 0.9
    assert enough.loc["induction", "apart"] < 0.3
    partly = role_redundancy(saturating(two, most=30.0), TASK, n_pairs=40).set_index("role").loc["induction"]
    assert partly["together"] / 2 < partly["apart"] < 0.8 * partly["together"]
    assert not partly["redundant"]
    one = role_redundancy(saturating(of_heads([1, 0], [1, 0])), TASK, n_pairs=40).set_index("role")
    assert one["n_heads"].to_dict() == {"previous_token": 1, "induction": 1}
    assert not one["redundant"].any()


def test_curves_of_a_name_are_about_the_same_head(network, tmp_path):
    """The head of "induction 1" switches on at step 2 in one run and at step 1 in the other, under another number."""
    early = of_heads([1, 0, 0], [0, 0, 0.35])
    runs = {
        "a": PlantedRun(tmp_path / "a.h5", {0: early, 1: early, 2: network}),
        "b": PlantedRun(
            tmp_path / "b.h5", {0: permuted(early, ORDERS), 1: permuted(network, ORDERS), 2: permuted(network, ORDERS)}
        ),
    }
    curves = mi.head_curves(runs, n_pairs=40)
    assert len(curves) == 2 * 3 * 6
    alone = curves.pivot_table(index="step", columns=["name", "run"], values="alone")
    assert (alone["induction 1"] > 0.4).to_numpy().T.tolist() == [[False, False, True], [False, True, True]]
    assert (alone["induction 2"] > 0.2).all(axis=None)
    assert len(mi.head_curves(runs, steps=[1], n_pairs=40)) == 2 * 6
    assert mi.match_heads(runs["a"], n_pairs=40)["run"].unique().tolist() == ["a"]
    with pytest.raises(MechinterpError, match="given twice"):
        mi.match_heads([runs["a"], runs["a"]])
    with pytest.raises(MechinterpError, match="none is given"):
        mi.match_heads([])
