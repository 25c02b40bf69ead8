"""Every twin is told apart by the operation that it lacks, and nothing but an induction head is called one."""

from typing import Any

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits.evidence import induction_head_evidence
from mechinterp.circuits.order_parameters import order_parameters
from mechinterp.circuits.patching import mask_unresolved
from mechinterp.circuits.paths import patch_paths
from mechinterp.circuits.qk_ov import copying_score, ov_strengths, position_profile, qk_strengths
from mechinterp.models.forward import forward
from mechinterp.models.network import Network
from mechinterp.models.planted import Operation, induction_head, memorising_decoy, random_label_decoy
from mechinterp.tasks.corruption import Corruption, corrupted_pairs

STRENGTHS: dict[str, Any] = {"beta1": 8.0, "alpha": 10.0, "beta2": 0.0, "xi": 3.0}
READINGS = {
    "layer 1 asks for the token before": 8.0,
    "layer 1's position–position strength": None,
    "layer 1 writes": 1.0,
    "content–buffer strength": None,
    "alpha": None,
    "layer 1 → layer 2's key": 1.0,
    "layer 2 writes": 1.0,
    "copying score": 1.0,
    "xi": None,
}
"""What every reading of the whole head is; None where it is not 0 and else of no concern."""
LACKING = {
    Operation.previous_token: {0, 1, 5},
    Operation.write: {2, 3, 4, 5},
    Operation.match: {3, 4, 5},
    Operation.copy: {5, 6, 7, 8},
    Operation.readout: {5, 7, 8},
}
"""Which of the readings a twin has lost: no two twins the same."""


def read(network, task) -> list[float]:
    batch = task.sample("icl", 200)
    qk = qk_strengths(network, batch, task).set_index(["layer", "query", "key"])["strength"]
    ov = ov_strengths(network, batch, task).set_index(["layer", "read", "written"])["strength"]
    pairs = corrupted_pairs(task, Corruption.shuffle_positions, n_pairs=100)
    edges = mask_unresolved(patch_paths(network, pairs)).set_index(["sender", "receiver"])["effect"]
    found = order_parameters(network, task, n_sequences=200)
    unit = float(batch.inputs[..., task.config.position_dim :].double().square().sum(-1).mean().sqrt())
    values = [
        position_profile(network, task)[1],
        qk[0, "position", "position"],
        ov[0, "content", "other"] / unit,
        qk[1, "content", "buffer"],
        found["alpha"],
        edges["0.0", "1.0.k"],
        ov[1, "content", "other"] / unit,
        copying_score(network, task, batch),
        found["xi"],
    ]
    return [0.0 if np.isnan(value) else float(value) for value in values]


@pytest.mark.parametrize("without", [None, *Operation])
def test_every_twin_is_told_apart_by_what_it_lacks(full, without):
    found = read(induction_head(full, **STRENGTHS, without=without), mi.build_task(full))
    for number, (value, (name, whole)) in enumerate(zip(found, READINGS.items(), strict=True)):
        if without is not None and number in LACKING[without]:
            assert value == pytest.approx(0, abs=0.02), name
        elif whole is not None:
            assert value == pytest.approx(whole, abs=0.02), name
        else:
            assert abs(value) > 0.1, name


def evidence(network, task) -> list[bool]:
    return induction_head_evidence(network, task, n_pairs=100)["holds"].tolist()


def test_only_an_induction_head_is_called_one(full):
    task = mi.build_task(full)
    assert evidence(induction_head(full), task) == [True] * 4
    for operation in Operation:
        assert not all(evidence(induction_head(full, without=operation), task)), operation
    assert evidence(random_label_decoy(full), task) == [False] * 4  # no corruption changes its answers
    assert evidence(Network.initial(full), task) == [False] * 4


def test_a_memoriser_is_not_called_one():
    config = mi.RunConfig().updated({"task.n_classes": 64, "model.classifier_depth": 1, "model.classifier_width": 64})
    network, task = memorising_decoy(config), mi.build_task(config)
    iwl = task.sample("iwl", 200)
    with torch.no_grad():
        assert (forward(network, iwl.inputs).argmax(-1) == iwl.labels).double().mean() > 0.9
    assert not any(evidence(network, task))


def test_guessing_among_two_labels_is_no_answer_from_the_context():
    """Half of such guesses are right; the scale starts there."""
    config = mi.RunConfig().updated({"task.burstiness": 4})
    table = induction_head_evidence(random_label_decoy(config), mi.build_task(config), n_pairs=200)
    assert table["value"].to_list()[0] == pytest.approx(0, abs=0.25)
    assert not any(table["holds"])
    assert all(induction_head_evidence(induction_head(config), mi.build_task(config), n_pairs=100)["holds"])


def test_heads_that_share_the_work_are_taken_together(tiny_config):
    """Two heads in each layer, each with half of the values and half of the scores, are the same network."""
    one = tiny_config.updated({"model.classifier_depth": 0})
    two = one.updated({"model.n_heads": 2})
    whole = induction_head(one)
    halves = {"W_V": 0.5, "W_Q": 1.0, "W_K": 1.0}
    shared = {
        name: value.repeat(2, 1, 1) * next((half for kind, half in halves.items() if kind in name), 1.0)
        if ".attn." in name
        else value
        for name, value in whole.parameters.items()
    }
    first = induction_head_evidence(whole, mi.build_task(one), n_pairs=100)
    second = induction_head_evidence(Network(two, shared), mi.build_task(two), n_pairs=100)
    assert second["value"].tolist() == pytest.approx(first["value"].tolist())
    assert all(first["holds"])
