"""The additive model is what its equations say, has its own gradient, and is a transformer with ties."""

from itertools import product

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.errors import ConfigError
from mechinterp.models.forward import forward, run_with_cache
from mechinterp.models.network import Network
from mechinterp.models.registry import initial_parameters
from mechinterp.run import replay
from mechinterp.tasks.base import Batch
from mechinterp.theory.kinetics import Kinetics
from mechinterp.training.engines import AnalyticEngine, AutogradEngine, build_engine
from tests.helpers import hooked, random_parameters
from tests.reference_engine import ReferenceEngine

MINIMAL = {
    "task.kind": "paired_items",
    "task.tokens": "plain",
    "task.n_items": 40,
    "task.n_pairs": 9,
    "task.item_dim": 7,
    "model.kind": "additive",
    "model.classifier_width": 11,
    "training.batch_size": 16,
    "training.steps": 20,
    "checkpoints.every": 5,
}


def config_of(**changes) -> mi.RunConfig:
    return mi.RunConfig().updated(MINIMAL | changes)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_logit_is_that_of_the_paper(depth):
    config = config_of(**{"model.classifier_depth": depth})
    parameters, batch = random_parameters(config), mi.build_task(config).train_batch(0, 5)
    beta, w = (float(parameters[f"blocks.0.attn.{name}"]) for name in ("beta", "w"))
    network = Network(config, parameters)
    cache = run_with_cache(network, batch.inputs.double())
    logits = cache.logits
    for b, tokens in enumerate(batch.inputs.double().numpy()):
        items, labels, target = tokens[:-1, :7], tokens[:-1, 7], tokens[-1, :7]
        weights = np.exp(beta * items @ target)
        hidden = target
        for i in range(depth):
            W, bias = (parameters[f"classifier.layers.{i}.{each}"].numpy() for each in "Wb")
            hidden = np.maximum(hidden @ W + bias, 0)
        z = float(hidden @ parameters["classifier.readout.W"].numpy()[:, 0]) + w * weights @ labels / weights.sum()
        assert float(logits[b, 0] - logits[b, 1]) == pytest.approx(z, rel=1e-10)
        pattern = cache["blocks.0.attn.hook_pattern"][b, 0, -1]
        np.testing.assert_allclose(pattern, [*weights / weights.sum(), 0.0], rtol=1e-10)
    torch.testing.assert_close(forward(network, batch.inputs.double(), target_only=True), logits)
    torch.testing.assert_close(hooked(network)(batch.inputs.double()), logits)


@pytest.mark.parametrize("w", [0.0, -1.5])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_gradients_equal_those_of_autograd(depth, w):
    """Also at the start, where w = 0 and ReLUs that carry w r would have no slope."""
    config = config_of(**{"model.classifier_depth": depth})
    parameters, batch = random_parameters(config), mi.build_task(config).train_batch(0, 16)
    parameters["blocks.0.attn.w"][0] = w
    engine, autograd = build_engine(config, parameters), AutogradEngine([config], [parameters])
    assert (engine.name, autograd.name) == ("analytic", "autograd")
    assert isinstance(engine, AnalyticEngine)
    loss, accuracy, gradients = engine.gradients(batch)
    assert gradients["blocks.0.attn.w"] != 0
    for expected in (autograd, ReferenceEngine(config, parameters)):
        known_loss, known_accuracy, known = expected.gradients(batch)
        assert loss == pytest.approx(known_loss, rel=1e-12)
        assert accuracy == known_accuracy
        assert gradients.keys() == known.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, known[name], rtol=1e-9, atol=1e-13, msg=name)


def test_loss_and_gradient_are_those_of_the_theory_where_items_are_orthogonal():
    """Every assignment of labels and every target once: the average of eq. 21, without its limits."""
    N, w, beta = 4, 0.7, 1.3
    config = config_of(**{"task.n_pairs": N, "task.item_dim": N, "task.n_items": 8})
    parameters = {name: value.double() for name, value in initial_parameters(config).items()}
    parameters["blocks.0.attn.beta"][0], parameters["blocks.0.attn.w"][0] = beta, w
    parameters["classifier.readout.W"].zero_()
    sequences, answers = [], []
    for labels, target in product(product([1, -1], repeat=N), range(N)):
        context = np.column_stack([np.eye(N), labels, np.zeros(N)])
        sequences.append(np.vstack([context, [*np.eye(N)[target], 0, 1]]))
        answers.append(int(labels[target] < 0))
    batch = Batch(torch.from_numpy(np.array(sequences)), torch.tensor(answers))
    loss, _, gradients = AnalyticEngine([config], [parameters]).gradients(batch)
    theory, h = Kinetics(N), 1e-5
    assert loss == pytest.approx(theory.loss(w, beta), rel=1e-12)
    slopes = {
        "w": (theory.loss(w + h, beta) - theory.loss(w - h, beta)) / (2 * h),
        "beta": (theory.loss(w, beta + h) - theory.loss(w, beta - h)) / (2 * h),
    }
    for name, slope in slopes.items():
        assert float(gradients[f"blocks.0.attn.{name}"]) == pytest.approx(slope, rel=1e-8)


@pytest.mark.parametrize("kind", ["additive", "one layer", "two layers"])
def test_attention_can_decay_alone(kind):
    layers = {"additive": {}, "one layer": {"model.n_layers": 1}, "two layers": {"model.n_layers": 2}}[kind]
    transformer = {} if kind == "additive" else {"model.kind": "transformer", "task.tokens": "normalised"}
    decay = {"training.weight_decay": 0.01, "training.attention_weight_decay": 0.25, "training.learning_rate": 1e-12}
    config = config_of(**transformer, **layers, **decay)
    parameters, batch = random_parameters(config), mi.build_task(config).train_batch(0, 16)
    for engine in (build_engine(config, parameters), AutogradEngine([config], [parameters])):
        engine.step(batch)
        for name, value in engine.parameters.items():
            kept = 0.75 if name.startswith("blocks.") else 0.99
            torch.testing.assert_close(value.detach(), kept * parameters[name], rtol=1e-9, atol=1e-10, msg=name)


def test_runs_are_trained_in_one_batch_as_alone():
    configs = [config_of(seed=seed, **{"training.attention_weight_decay": 0.1 * seed}) for seed in (0, 1)]
    parameters = [initial_parameters(config) for config in configs]
    batched = AutogradEngine(configs, parameters)
    alone = [build_engine(config, each) for config, each in zip(configs, parameters, strict=True)]
    for step in range(5):
        batches = [mi.build_task(config).train_batch(step, 16) for config in configs]
        batched.step_runs(batches, [None, None])
        for engine, batch in zip(alone, batches, strict=True):
            engine.step(batch)
    for index, engine in enumerate(alone):
        for name, value in batched.runs[index].items():
            torch.testing.assert_close(value, engine.parameters[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_run_is_trained_measured_and_replayed(tmp_path):
    config = config_of(**{"model.beta": 0.5, "model.w": 0.25})
    run = mi.train(config, tmp_path / "run.h5", progress=False)
    assert run.environment["engine"] == "analytic"
    assert float(run.weights(0)["blocks.0.attn.beta"]) == 0.5
    assert float(run.weights(0)["blocks.0.attn.w"]) == 0.25
    assert {"icl_accuracy", "iwl_accuracy", "swap_accuracy", "icl_loss"} <= set(mi.measure(run))
    assert replay(run, [7, 12], lambda step, weights, metrics: None).exact


def test_the_additive_model_takes_plain_paired_items():
    with pytest.raises(ConfigError, match=r"task\.tokens = 'plain'"):
        config_of(**{"task.tokens": "normalised"})
    with pytest.raises(ConfigError, match=r"task\.kind = 'paired_items'"):
        mi.RunConfig().updated({"model.kind": "additive"})
    assert Network.initial(config_of()).config.model.classifier_width == 13
