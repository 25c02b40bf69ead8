"""β, w and what is memorised, read off networks that have known ones."""

import math

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits.additive_order_parameters import circuit_strengths, order_parameters_of_run
from mechinterp.errors import MechinterpError
from mechinterp.models.network import Network
from mechinterp.models.registry import initial_parameters

PAIRS = {"task.kind": "paired_items", "task.n_items": 50, "task.n_pairs": 12, "task.item_dim": 10}
ADDITIVE = PAIRS | {"task.tokens": "plain", "model.kind": "additive", "model.classifier_width": 8}
BRIEF = {"training.steps": 10, "checkpoints.every": 5, "training.learning_rate": 0.05}


def additive(**changes) -> mi.RunConfig:
    return mi.RunConfig().updated(ADDITIVE | BRIEF | {"model.beta": 1.5, "model.w": -0.75} | changes)


def one_layer(**changes) -> mi.RunConfig:
    return mi.RunConfig().updated(PAIRS | BRIEF | {"model.n_layers": 1, "model.classifier_width": 8} | changes)


def test_of_the_additive_model_they_are_its_own():
    config = additive()
    found = circuit_strengths(Network.initial(config), mi.build_task(config).sample("icl", 200))
    known = {"beta": 1.5, "beta_explained": 1.0, "w": -0.75, "w_explained": 1.0}
    assert found == pytest.approx(known, rel=1e-4)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_beta_counts_by_how_much_layernorm_enlarges_items(strength):
    """W_Q = β on items and W_K = 1: scores are β x′_j·x′_q of the normalised items."""
    config = one_layer()
    parameters = initial_parameters(config)
    for name in "QK":
        parameters[f"blocks.0.attn.W_{name}"].zero_()
        parameters[f"blocks.0.attn.W_{name}"][0, range(10), range(10)] = strength if name == "Q" else 1.0
    batch = mi.build_task(config).sample("icl", 400)
    found = circuit_strengths(Network(config, parameters), batch)
    raw = mi.build_task(config.updated({"task.tokens": "plain"})).sample("icl", 400).inputs.double().numpy()
    known = []
    for tokens, place in zip(raw, batch.roles["copy"].int().argmax(dim=1), strict=True):
        pair, target = np.append(tokens[place, :10], [1.0, 0.0]), np.append(tokens[-1, :10], [0.0, 0.0])
        known.append(strength / pair.std() / target.std())
    assert found["beta"] == pytest.approx(np.mean(known), rel=1e-3)
    assert found["beta_explained"] == pytest.approx(1.0)


def test_a_network_that_ignores_labels_has_no_w_and_one_that_ignores_items_no_beta():
    config = one_layer()
    parameters = initial_parameters(config)
    for name in "QV":
        parameters[f"blocks.0.attn.W_{name}"].zero_()
    found = circuit_strengths(Network(config, parameters), mi.build_task(config).sample("icl", 50))
    assert found == {"beta": 0.0, "beta_explained": 0.0, "w": 0.0, "w_explained": 0.0}


def test_what_is_memorised_is_read_off_the_targets_of_training(tmp_path):
    run = mi.train(additive(), tmp_path / "run.h5", progress=False)
    table = order_parameters_of_run(run, n_sequences=300)
    assert list(table.index) == run.steps
    batch, weights = run.task.sample("train", 300), run.weights(5)
    hidden = batch.inputs[:, -1, :10]
    for i in range(3):
        hidden = torch.relu(hidden @ weights[f"classifier.layers.{i}.W"] + weights[f"classifier.layers.{i}.b"])
    plus = (hidden @ weights["classifier.readout.W"])[:, 0] * (1 - 2 * batch.labels)
    wrong = 1 / (1 + np.exp(plus.double().numpy()))
    assert table.loc[5, "c1"] == pytest.approx(wrong.mean(), rel=1e-5)
    assert table.loc[5, "c2"] == pytest.approx(1 - (wrong**2).mean() / wrong.mean(), rel=1e-5)
    assert table.loc[5, "c3"] == pytest.approx(np.exp(-plus.double().numpy()).mean(), rel=1e-5)
    c = table["c1"].to_numpy()
    expected = 2 * 0.05 * 5 * np.array([0, (c[0] + c[1]) / 2, c[0] / 2 + c[1] + c[2] / 2])
    np.testing.assert_allclose(table["memorised"], expected, rtol=1e-12)
    assert table["beta"].to_numpy() == pytest.approx([float(run.weights(s)["blocks.0.attn.beta"]) for s in run.steps])


def test_an_untrained_readout_of_zero_has_memorised_nothing(tmp_path):
    config = one_layer(**{"training.steps": 0})
    run = mi.train(config, tmp_path / "run.h5", progress=False)
    c = order_parameters_of_run(run, n_sequences=2000).iloc[0]
    assert 0.3 < c["c1"] < 0.7
    assert c["memorised"] == 0
    assert math.isfinite(c["w"])


def test_other_runs_are_refused_in_a_line(tmp_path, tiny_config):
    other = mi.train(tiny_config.updated({"training.steps": 0}), tmp_path / "other.h5", progress=False)
    with pytest.raises(MechinterpError, match="another one"):
        order_parameters_of_run(other)
    deep = mi.train(one_layer(**{"model.n_layers": 2, "training.steps": 0}), tmp_path / "deep.h5", progress=False)
    with pytest.raises(MechinterpError, match="one layer"):
        order_parameters_of_run(deep)


def test_steps_must_ascend_for_an_integral(tmp_path):
    run = mi.train(additive(), tmp_path / "run.h5", progress=False)
    for steps in ([], [5, 0], [5, 5]):
        with pytest.raises(MechinterpError, match="give some that ascend"):
            order_parameters_of_run(run, steps=steps)
