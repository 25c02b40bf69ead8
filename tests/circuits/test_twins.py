"""Every twin is told apart by the operation that it lacks, and nothing but an induction head is called one."""

from typing import Any

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits.diagram import circuit_edges
from mechinterp.circuits.evidence import Fact, induction_head_evidence
from mechinterp.circuits.order_parameters import order_parameters
from mechinterp.circuits.patching import Site, mask_unresolved, patch
from mechinterp.circuits.paths import patch_paths
from mechinterp.circuits.qk_ov import copying_score, ov_strengths, position_profile, qk_strengths
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import forward
from mechinterp.models.network import Network
from mechinterp.models.planted import (
    Operation,
    excluding_decoy,
    induction_head,
    memorising_decoy,
    q_composition_head,
    raising_decoy,
    random_label_decoy,
)
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


def evidence(network, task) -> dict[str, float]:
    """The values of the facts that hold, by name."""
    table = induction_head_evidence(network, task, n_pairs=100)
    return dict(zip(table["fact"][table["holds"]], table["value"][table["holds"]], strict=True))


def test_only_an_induction_head_is_called_one(full):
    task = mi.build_task(full)
    assert set(evidence(induction_head(full), task)) == {fact.name for fact in Fact} - {"q_composition"}
    for operation in Operation:
        assert "induction_head" not in evidence(induction_head(full, without=operation), task), operation
    assert not evidence(random_label_decoy(full), task)  # no corruption changes its answers
    assert not evidence(Network.initial(full), task)


def test_an_induction_head_by_q_composition_is_one_too(full):
    task, network = mi.build_task(full), q_composition_head(full)
    assert set(evidence(network, task)) == {fact.name for fact in Fact} - {"k_composition"}
    named = set(circuit_edges(network, task, n_pairs=100)["operation"])
    assert named == {"", "match", "copy", "readout"}, "no previous-token head, and nothing that one writes"


def excluding_config() -> mi.RunConfig:
    return mi.RunConfig().updated({"model.classifier_depth": 0, "task.n_labels": 8})


def test_a_network_that_excludes_labels_is_no_induction_head():
    config = excluding_config()
    task, network = mi.build_task(config), excluding_decoy(config)
    batch, pairs = task.sample("icl", 200), corrupted_pairs(task, Corruption.swap_label, n_pairs=100)
    with torch.no_grad():
        assert (forward(network, batch.inputs).argmax(-1) == batch.labels).double().mean() > 0.9
    assert patch(network, pairs, Site("blocks.1.attn.hook_v", "label"))["effect"].item() > 0.9, "the lazy check"
    table = induction_head_evidence(network, task, n_pairs=100).set_index("fact")["value"]
    assert table["correct_label_copied"] == pytest.approx(0, abs=0.01)
    assert table["induction_head"] == pytest.approx(0, abs=0.01)
    assert copying_score(network, task, batch) == pytest.approx(-1)
    assert not {"copy", "readout"} & set(circuit_edges(network, task, n_pairs=100)["operation"])


def test_a_network_that_raises_all_labels_and_excludes_is_no_induction_head():
    """Its correct label carries the more of the answer, the less of what is raised the excluding head takes back."""
    config = excluding_config().updated({"model.n_heads": 2})
    task, tables = mi.build_task(config), {}
    for lowered in (20.0, 5.0):
        network, batch = raising_decoy(config, lowered=lowered), task.sample("icl", 200)
        with torch.no_grad():
            assert (forward(network, batch.inputs).argmax(-1) == batch.labels).double().mean() > 0.9
        tables[lowered] = induction_head_evidence(network, task).set_index("fact")
    values = {lowered: table["value"]["correct_label_copied"] for lowered, table in tables.items()}
    assert values[5.0] == pytest.approx(4 * values[20.0], rel=0.01)
    assert values[5.0] > 4, "the lazy check: 0.5 or more"
    assert tables[5.0]["holds"][["answers_from_context", "target_query_selects"]].all()
    assert not tables[5.0]["holds"][["correct_label_copied", "induction_head"]].any()
    with pytest.raises(MechinterpError, match=r"model.n_heads is 1; this network has 2"):
        raising_decoy(excluding_config())


@pytest.mark.slow
def test_a_minimal_model_that_has_learnt_to_exclude_is_no_induction_head(tmp_path):
    """L = N = 8, β₂ = 0, α = −2 at the start: its accuracy of 0.69 comes from labels that it rules out."""
    fix = {"kind": "fix", "parameters": ["blocks.1.attn.beta2"], "value": 0.0}
    config = mi.RunConfig.preset("reddy2023-minimal").updated(
        {"task.n_labels": 8, "model.alpha": -2.0, "interventions": [fix]}
        | {"training.steps": 9_000, "training.learning_rate": 0.1, "checkpoints.every": 9_000}
    )
    run = mi.train(config, tmp_path / "excluding.h5", progress=False)
    network, task = run.network(9_000), run.task
    assert mi.measure(run, ["tila2"], steps=9_000)["tila2"].item() < 0.05
    table = induction_head_evidence(network, task).set_index("fact")
    assert table["holds"].to_dict() == {
        "answers_from_context": True,
        "k_composition": True,
        "q_composition": False,
        "target_query_selects": True,
        "correct_label_copied": False,
        "induction_head": False,
    }
    assert table["value"]["correct_label_copied"] < 0
    assert copying_score(network, task, task.sample("icl", 200)) == pytest.approx(-1, abs=1e-3)
    assert set(circuit_edges(network, task, n_pairs=100)["operation"]) <= {"", "previous_token", "write", "match"}


@pytest.mark.parametrize(
    ("readout", "expected"),
    [("the same for all labels", 0.0), ("lowers the label, raises all", -1.0), ("raises the label, raises all", 1.0)],
)
def test_the_copying_score_ignores_what_is_added_to_all_logits(full, readout, expected):
    task, network = mi.build_task(full), induction_head(full)
    W = network.parameters["classifier.readout.W"]
    if readout == "the same for all labels":
        W.copy_(W.sum(dim=1, keepdim=True).expand_as(W))
    else:
        sign = -1 if readout.startswith("lowers") else 1
        W.copy_(sign * W + 3 * W.sum(dim=1, keepdim=True))
    assert copying_score(network, task, task.sample("icl", 50)) == pytest.approx(expected, abs=1e-6)


def test_a_memoriser_is_not_called_one():
    config = mi.RunConfig().updated({"task.n_classes": 64, "model.classifier_depth": 1, "model.classifier_width": 64})
    network, task = memorising_decoy(config), mi.build_task(config)
    iwl = task.sample("iwl", 200)
    with torch.no_grad():
        assert (forward(network, iwl.inputs).argmax(-1) == iwl.labels).double().mean() > 0.9
    assert not evidence(network, task)


def test_guessing_among_two_labels_is_no_answer_from_the_context():
    """Half of such guesses are right; the scale starts there."""
    config = mi.RunConfig().updated({"task.burstiness": 4})
    table = induction_head_evidence(random_label_decoy(config), mi.build_task(config), n_pairs=200)
    assert table["value"].to_list()[0] == pytest.approx(0, abs=0.25)
    assert not any(table["holds"])
    assert "induction_head" in evidence(induction_head(config), mi.build_task(config))


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
    assert first["holds"].tolist() == [True, True, False, True, True, True]
