"""A network of one layer is trained by its own gradient, and one logit is the cross-entropy of ±z."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import mechinterp as mi
from mechinterp.models.forward import forward, run_with_cache
from mechinterp.models.network import Network
from mechinterp.models.registry import initial_parameters
from mechinterp.run import replay
from mechinterp.training.engines import AnalyticEngine, AutogradEngine, FusedEngine, build_engine
from tests.helpers import hooked, random_parameters
from tests.reference_engine import ReferenceEngine

PAIRS = {
    "task.kind": "paired_items",
    "task.n_items": 40,
    "task.n_pairs": 9,
    "task.item_dim": 7,
    "model.n_layers": 1,
    "model.classifier_width": 11,
    "training.batch_size": 16,
}


def config_of(**changes) -> mi.RunConfig:
    return mi.RunConfig().updated(PAIRS | {"training.steps": 20, "checkpoints.every": 5} | changes)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("readout", ["per_label", "difference"])
@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_equal_those_of_autograd(layers, depth, readout):
    config = config_of(**{"model.n_layers": layers, "model.classifier_depth": depth, "model.readout": readout})
    parameters, batch = random_parameters(config), mi.build_task(config).train_batch(0, 16)
    engine = build_engine(config, parameters)
    assert engine.name == ("analytic" if layers == 1 else "fused")
    assert isinstance(engine, AnalyticEngine | FusedEngine)
    loss, accuracy, gradients = engine.gradients(batch)
    for expected in (AutogradEngine([config], [parameters]), ReferenceEngine(config, parameters)):
        known_loss, known_accuracy, known = expected.gradients(batch)
        assert loss == pytest.approx(known_loss, rel=1e-12)
        assert accuracy == known_accuracy
        assert gradients.keys() == known.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, known[name], rtol=1e-9, atol=1e-13, msg=name)


def test_the_item_label_task_takes_one_layer_too(tiny_config):
    config = tiny_config.updated({"model.n_layers": 1, "training.weight_decay": 0.01})
    parameters, batch = random_parameters(config), mi.build_task(config).train_batch(0, 16)
    engines = [AnalyticEngine([config], [parameters]), ReferenceEngine(config, parameters)]
    for engine in engines:
        engine.step(batch)
    for name, value in engines[1].parameters.items():
        torch.testing.assert_close(engines[0].parameters[name], value.detach(), rtol=1e-9, atol=1e-12, msg=name)


def test_one_logit_has_the_binary_cross_entropy():
    config = config_of(**{"model.readout": "difference"})
    parameters, batch = random_parameters(config), mi.build_task(config).train_batch(0, 16)
    assert parameters["classifier.readout.W"].shape == (11, 1)
    network = Network(config, parameters)
    activations = run_with_cache(network, batch.inputs.double())
    logits, hidden = activations.logits, activations["classifier.layers.2.hook_post"]
    z = logits[:, 0] - logits[:, 1]
    torch.testing.assert_close(z, (hidden @ parameters["classifier.readout.W"])[:, 0])
    sign = 1 - 2 * batch.labels
    expected = functional.binary_cross_entropy_with_logits(z, (sign > 0).double())
    engine = build_engine(config, parameters)
    assert isinstance(engine, AnalyticEngine)
    assert engine.gradients(batch)[0] == pytest.approx(float(expected), rel=1e-12)
    assert [name for name in activations.values if name.endswith("pattern")] == ["blocks.0.attn.hook_pattern"]
    for ours in (hooked(network)(batch.inputs.double()), forward(network, batch.inputs.double(), target_only=True)):
        torch.testing.assert_close(ours, logits, rtol=1e-10, atol=1e-12)


def test_attention_is_that_of_the_paper():
    """u = t′ + Σ_j softmax_j(x_jᵀ Kᵀ Q t′) V x_j over the whole context and the target (eq. 1)."""
    config = config_of()
    parameters, batch = random_parameters(config), mi.build_task(config).sample("icl", 3)
    Q, K, V = (parameters[f"blocks.0.attn.W_{matrix}"][0].T.numpy() for matrix in "QKV")
    read = run_with_cache(Network(config, parameters), batch.inputs.double())["classifier.hook_in"]
    for x, found in zip(batch.inputs.double().numpy(), read, strict=True):
        weights = np.exp([token @ K.T @ Q @ x[-1] for token in x])
        expected = x[-1] + sum(weight * V @ token for weight, token in zip(weights / weights.sum(), x, strict=True))
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_run_is_trained_measured_and_resumed(tmp_path):
    config = config_of(**{"model.readout": "difference"})
    run = mi.train(config, tmp_path / "run.h5", progress=False)
    assert run.environment["engine"] == "analytic"
    table = mi.measure(run)
    assert {"icl_accuracy", "iwl_accuracy", "swap_accuracy", "icl_loss"} <= set(table)
    assert replay(run, [7, 12], lambda step, weights, metrics: None).exact


def test_one_logit_needs_two_labels(tiny_config):
    with pytest.raises(mi.errors.ConfigError, match="the task has 4"):
        tiny_config.updated({"model.readout": "difference"})


def test_names_of_parameters_start_alike():
    one, other = config_of(), config_of(**{"model.readout": "difference"})
    first, second = initial_parameters(one), initial_parameters(other)
    assert torch.equal(first["blocks.0.attn.W_Q"], second["blocks.0.attn.W_Q"])
