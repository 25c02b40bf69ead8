"""Planted circuits do what the equations of the minimal model say, token by token."""

import math
from typing import Any

import numpy as np
import pytest

import mechinterp as mi
from mechinterp.errors import MechinterpError
from mechinterp.measures import MEASURES, Observation
from mechinterp.models.forward import forward, run_with_cache
from mechinterp.models.planted import Operation, induction_head, memorising_decoy, random_label_decoy
from mechinterp.tasks import ItemLabelTask

STRENGTHS: dict[str, Any] = {"beta1": 2.0, "alpha": 3.0, "beta2": 0.7, "xi": 1.3}


def by_the_equations(config, batch, beta1, alpha, beta2, xi):
    """Patterns and logits of Reddy 2023, eqs 4 to 6, one sequence and one token at a time."""
    P, T = config.task.position_dim, config.task.n_pos
    content = batch.inputs[:, :, P:].double().numpy()
    task = mi.build_task(config)
    assert isinstance(task, ItemLabelTask)
    dual = np.linalg.pinv(task.label_vectors.astype(float))
    patterns, logits = np.zeros((2, len(batch), T, T)), np.zeros((len(batch), config.task.n_labels))
    for b, u in enumerate(content):
        buffer = np.zeros_like(u)
        for i in range(T):
            weights = np.array([math.exp(beta1 * (j == i - 1)) for j in range(i + 1)])
            patterns[0, b, i, : i + 1] = weights / weights.sum()
            buffer[i] = patterns[0, b, i, : i + 1] @ u[: i + 1]
        for i in range(T):
            scores = [alpha * buffer[j] @ u[i] + beta2 * ((i - j) % 2) for j in range(i + 1)]
            patterns[1, b, i, : i + 1] = np.exp(scores) / np.exp(scores).sum()
        logits[b] = xi * (patterns[1, b, -1] @ u) @ dual
    return patterns, logits


def accuracy(network, batch):
    return (forward(network, batch.inputs).argmax(dim=-1) == batch.labels).double().mean().item()


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_induction_head_follows_the_equations(tiny_config, depth):
    config = tiny_config.updated({"model.classifier_depth": depth})
    batch = mi.build_task(config).sample("icl", 5)
    cache = run_with_cache(induction_head(config, **STRENGTHS), batch.inputs)
    patterns, expected = by_the_equations(config, batch, **STRENGTHS)
    for layer in range(2):
        found = cache[f"blocks.{layer}.attn.hook_pattern"][:, 0].numpy()
        assert np.abs(found - patterns[layer]).max() < 1e-12
    assert np.abs(cache.logits.numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("missing", Operation)
def test_a_twin_lacks_its_operation_only(tiny_config, missing):
    batch = mi.build_task(tiny_config).sample("icl", 5)
    zeroed = {
        Operation.previous_token: {"beta1": 0.0},
        Operation.match: {"alpha": 0.0},
        Operation.readout: {"xi": 0.0},
        Operation.write: {"alpha": 0.0},  # nothing in the buffer to match
        Operation.copy: {"xi": 0.0},  # nothing to read out
    }[missing]
    cache = run_with_cache(induction_head(tiny_config, **STRENGTHS, without=missing), batch.inputs)
    patterns, expected = by_the_equations(tiny_config, batch, **{**STRENGTHS, **zeroed})
    assert np.abs(cache["blocks.0.attn.hook_pattern"][:, 0].numpy() - patterns[0]).max() < 1e-12
    assert np.abs(cache["blocks.1.attn.hook_pattern"][:, 0].numpy() - patterns[1]).max() < 1e-12
    assert np.abs(cache.logits.numpy() - expected).max() < 1e-12


def test_measures_return_the_analytic_values_at_full_size():
    config = mi.RunConfig.preset("reddy2023")
    batch, beta1 = mi.build_task(config).sample("icl", 200), 2.5
    cache = run_with_cache(induction_head(config, beta1=beta1, alpha=0.0, beta2=1.5), batch.inputs)
    seen = Observation(batch, cache.logits, cache.values)
    N, T, odd = 8, 17, math.exp(1.5)
    expected = {
        "ila1": np.mean([math.exp(beta1) / (math.exp(beta1) + 2 * k - 1) for k in range(1, N + 1)]),
        "ila1_all": np.mean([math.exp(beta1) / (math.exp(beta1) + i - 1) for i in range(2, T + 1)]),
        "tila2": odd / (N * odd + N + 1),
        "tla2": N * odd / (N * odd + N + 1),
    }
    for name, value in expected.items():
        assert float(MEASURES[name].compute(seen)) == pytest.approx(value, abs=1e-9), name


def test_a_strong_head_solves_the_task_and_no_twin_or_decoy_does():
    config = mi.RunConfig.preset("reddy2023")
    batch = mi.build_task(config).sample("icl", 1000)
    assert accuracy(induction_head(config), batch) > 0.99
    for missing in Operation:
        assert accuracy(induction_head(config, without=missing), batch) < 0.25, missing
    guess = accuracy(random_label_decoy(config), batch)
    assert guess == pytest.approx(1 / 8, abs=0.05)  # some label of the context


def test_the_memorising_decoy_knows_trained_classes_only():
    config = mi.RunConfig().updated({"task.n_classes": 64, "model.classifier_width": 64, "model.classifier_depth": 2})
    task, network = mi.build_task(config), memorising_decoy(config)
    assert accuracy(network, task.sample("iwl", 500)) > 0.95
    assert accuracy(network, task.sample("icl", 500)) < 0.15


@pytest.mark.parametrize(
    ("plant", "changes", "match"),
    [
        (induction_head, {"model.n_layers": 3}, "two layers of one head"),
        (induction_head, {"model.classifier_width": 7}, r"classifier_width ≥ 8"),
        (induction_head, {"task.content_dim": 3}, "no dual basis in 3 dimensions"),
        (memorising_decoy, {"model.classifier_width": 7}, r"classifier_width ≥ 8"),
    ],
)
def test_what_has_no_room_is_refused(tiny_config, plant, changes, match):
    with pytest.raises(MechinterpError, match=match):
        plant(tiny_config.updated(changes))
