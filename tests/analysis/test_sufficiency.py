"""The final circuit over training: sufficient with the network if it is all of it, later if another came first."""

import json
import shutil
from math import exp

import numpy as np
import pytest

import mechinterp as mi
from mechinterp.cli import main
from mechinterp.errors import MechinterpError
from tests.analysis.planted_runs import PlantedRun, of_heads

STEPS = range(0, 320, 10)
FINAL = {
    *(("embed", receiver) for receiver in ("0.1.q", "0.1.k", "0.1.v", "1.0.q", "1.0.v")),
    ("0.1", "1.0.k"),
    ("1.0", "classifier"),
}
"""The circuit of the network in which head 1 of layer 1 tells the keys."""


def on(step: int, since: float) -> float:
    return 1 / (1 + exp((since - step) / 12))


def run_of(path, first: float, until: float, second: float) -> PlantedRun:
    """Head 0 of layer 1 tells the keys from step `first` on until another one; head 1 from `second` on."""
    networks = {
        step: of_heads([on(step, first) * (1 - on(step, until)), on(step, second)], [1, 0], alpha=12.0)
        for step in STEPS
    }
    return PlantedRun(path, networks)


def test_a_circuit_that_is_all_of_the_network_becomes_sufficient_with_it(tmp_path):
    run = run_of(tmp_path / "one.h5", 4000, 8000, 150)
    found = mi.circuit_sufficiency(run, n_pairs=60)
    assert set(found.circuit) == FINAL
    table = found.table
    assert (table["accuracy"] == table["network_accuracy"]).all()
    assert found.circuit_emergence.step == found.network_emergence.step
    assert 60 < (found.circuit_emergence.step or 0) < 160
    late = table.index >= 200
    assert table.loc[late, "faithfulness"].tolist() == pytest.approx([1] * late.sum())
    assert found.sufficient_since is not None
    assert "7 edges" in str(found)
    assert f"0.9 for good at step {found.sufficient_since:,}" in str(found)


def test_a_circuit_that_takes_over_is_sufficient_later_than_the_network_answers(tmp_path):
    run = run_of(tmp_path / "two.h5", 60, 230, 200)
    found = mi.circuit_sufficiency(run, n_pairs=60)
    assert set(found.circuit) == FINAL
    circuit, network = found.circuit_emergence, found.network_emergence
    assert circuit.transition
    assert network.transition
    assert (network.high or 0) < (circuit.low or 0)
    middle = found.table.loc[110]
    assert middle["network_accuracy"] > 0.9
    assert middle["accuracy"] < 0.5
    assert middle["faithfulness"] < 0.3
    assert middle["complement_accuracy"] < 0.6  # which lacks layer 2
    assert found.sufficient_since is not None
    assert found.sufficient_since >= 170


def test_faithfulness_is_not_given_before_there_is_a_span(tmp_path):
    """The accuracy of the circuit is."""
    silent = of_heads([0, 0], [0, 0])
    run = PlantedRun(tmp_path / "silent.h5", {0: silent, 1: of_heads([0, 1], [1, 0])})
    table = mi.circuit_sufficiency(run, n_pairs=40).table
    assert np.isnan(table.loc[0, ["faithfulness", "faithfulness_low", "completeness"]].to_numpy(float)).all()
    assert table.loc[0, "accuracy"] <= 0.4
    assert table.loc[1, ["faithfulness", "accuracy"]].tolist() == pytest.approx([1, 1])
    given = mi.circuit_sufficiency(run, [("embed", "1.0.v"), ("1.0", "classifier")], n_pairs=40)
    assert given.table.loc[1, "accuracy"] < 0.5
    assert given.sufficient_since is None
    assert "at no step" in str(given)
    with pytest.raises(MechinterpError, match=r"silent.h5: step 0: the network's answer is not resolved"):
        mi.circuit_sufficiency(run, step=0, n_pairs=40)
    with pytest.raises(MechinterpError, match="level is 0"):
        mi.circuit_sufficiency(run, level=0.0)


def test_the_command_prints_the_table_and_when(tiny_run, tmp_path, capsys):
    path = str(shutil.copy(tiny_run.path, tmp_path / "run.h5"))
    options = [path, "--n-pairs", "12", "--level", "0.5"]
    code = main(["sufficiency", *options, "--json"])
    out = capsys.readouterr()
    if code:  # a network of 20 steps may not answer yet
        assert "is not resolved on 12 pairs" in out.err
        return
    result = json.loads(out.out)
    assert [row["step"] for row in result["rows"]] == tiny_run.steps
    assert main(["sufficiency", *options]) == 0
    assert "circuit of step 20" in capsys.readouterr().out
    assert main(["sufficiency", *options, "--csv", "--json"]) == 2
