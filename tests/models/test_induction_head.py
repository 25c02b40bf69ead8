"""The minimal induction head: its equations, its canonical network, its gradient by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechinterp as mi
from mechinterp.circuits.order_parameters import order_parameters
from mechinterp.config import ItemLabelConfig
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import forward, run_with_cache
from mechinterp.models.induction_head import STRENGTHS
from mechinterp.models.network import Network
from mechinterp.training.engines import AnalyticEngine, AutogradEngine
from tests.helpers import hooked
from tests.helpers import random_parameters as draw
from tests.reference_engine import ReferenceEngine

sizes = st.fixed_dictionaries(
    {
        "task.n_pairs": st.integers(1, 6),
        "task.content_dim": st.integers(1, 20),
        "task.position_dim": st.integers(13, 20),
        "model.classifier_depth": st.integers(0, 4),
        "model.classifier_width": st.integers(1, 23),
        "task.p_in_context": st.sampled_from([0.0, 0.5]),
        "seed": st.integers(0, 10**9),
    }
)


def config_of(changes: dict) -> mi.RunConfig:
    fixed = {"model.kind": "induction_head", "task.n_classes": 14, "task.n_labels": 7, "task.n_novel_classes": 7}
    return mi.RunConfig().updated({**changes, **fixed, "task.distinct_labels": False})


def random_parameters(config: mi.RunConfig, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    return draw(config, config.seed, dtype, scale=1.0)


@pytest.fixture(scope="module")
def minimal() -> mi.RunConfig:
    return config_of({"task.n_pairs": 3, "task.content_dim": 11, "task.position_dim": 13, "model.classifier_width": 19})


@settings(max_examples=30, deadline=None)
@given(sizes)
def test_logits_are_those_of_the_equations(changes):
    """Token by token, in NumPy (Reddy 2023, eqs 4 to 6)."""
    config = config_of(changes)
    assert isinstance(config.task, ItemLabelConfig)
    parameters = random_parameters(config)
    beta1, alpha, beta2 = (parameters[name].item() for name in STRENGTHS)
    batch = mi.build_task(config).sample("icl", 3)
    logits = forward(Network(config, parameters), batch.inputs.double())
    for sequence, found in zip(batch.inputs.double().numpy(), logits, strict=True):
        content, T = sequence[:, config.task.position_dim :], config.task.n_pos
        buffer = np.zeros_like(content)
        for i in range(T):
            weights = np.array([np.exp(beta1 * (j == i - 1)) for j in range(i + 1)])
            buffer[i] = weights @ content[: i + 1] / weights.sum()
        scores = [alpha * buffer[j] @ content[-1] + beta2 * ((T - 1 - j) % 2) for j in range(T)]
        weights = np.exp(scores - np.max(scores))
        x = np.concatenate([content[-1], weights @ content / weights.sum()])
        for i in range(config.model.classifier_depth):
            layer = f"classifier.layers.{i}"
            x = np.maximum(x @ parameters[f"{layer}.W"].numpy() + parameters[f"{layer}.b"].numpy(), 0)
        np.testing.assert_allclose(found, x @ parameters["classifier.readout.W"].numpy(), rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(sizes, st.booleans())
def test_gradients_by_hand_equal_autograd(changes, table):
    config = config_of(changes)
    parameters, batch = random_parameters(config), mi.build_task(config).train_batch(0, 17)
    if not table:
        batch = mi.Batch(batch.inputs.double(), batch.labels)
    (loss, accuracy, ours), (also, _, simple) = (
        engine([config], [parameters]).gradients(batch) for engine in (AnalyticEngine, AutogradEngine)
    )
    expected, right, theirs = ReferenceEngine(config, parameters).gradients(batch)
    assert (loss, accuracy, also) == (pytest.approx(expected, rel=1e-10), right, pytest.approx(expected, rel=1e-12))
    for name, gradient in theirs.items():
        scale = max(gradient.abs().max().item(), 1e-4)
        assert (ours[name] - gradient).abs().max() < 1e-10 * scale, name
        assert (simple[name] - gradient).abs().max() < 1e-10 * scale, name


@pytest.mark.parametrize("engine", [AnalyticEngine, AutogradEngine])
def test_a_step_is_the_same_step(minimal, engine):
    config = minimal.updated({"training.weight_decay": 0.01})
    task = mi.build_task(config)
    ours, theirs = engine([config], [random_parameters(config)]), ReferenceEngine(config, random_parameters(config))
    for step in range(3):
        batch = task.train_batch(step, 16)
        assert ours.step(batch) == pytest.approx(theirs.step(batch))
    for name, value in theirs.parameters.items():
        torch.testing.assert_close(ours.parameters[name].detach(), value.detach(), rtol=1e-9, atol=1e-12)


def patterns_and_logits(config: mi.RunConfig, parameters: dict, inputs: torch.Tensor) -> tuple[list, torch.Tensor]:
    """Eqs 4 to 6 of all tokens at once, in the parameters' own type."""
    assert isinstance(config.task, ItemLabelConfig)
    beta1, alpha, beta2 = (parameters[name] for name in STRENGTHS)
    content, T = inputs[..., config.task.position_dim :].to(beta1.dtype), config.task.n_pos
    distance = torch.arange(T)[:, None] - torch.arange(T)
    later = torch.where(distance < 0, -torch.inf, 0.0)
    first = (later + beta1 * (distance == 1)).softmax(-1).expand(len(inputs), 1, T, T)
    buffer = first[:, 0] @ content
    match = content @ buffer.transpose(1, 2)
    second = (later + alpha * match + beta2 * (distance % 2)).softmax(-1)
    x = torch.cat([content[:, -1], second[:, -1:].bmm(content)[:, 0]], dim=1)
    for i in range(config.model.classifier_depth):
        layer = f"classifier.layers.{i}"
        x = (x @ parameters[f"{layer}.W"] + parameters[f"{layer}.b"]).relu()
    return [first, second[:, None]], x @ parameters["classifier.readout.W"]


@settings(max_examples=20, deadline=None)
@given(sizes)
def test_the_canonical_network_gives_the_same_patterns_and_logits(changes):
    config = config_of(changes)
    parameters, inputs = random_parameters(config), mi.build_task(config).sample("icl", 4).inputs
    network = Network(config, parameters)
    patterns, logits = patterns_and_logits(config, parameters, inputs)
    found, cache = hooked(network).run_with_cache(inputs)
    ours = run_with_cache(network, inputs)
    torch.testing.assert_close(found, logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.logits, logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(forward(network, inputs, target_only=True), logits, rtol=1e-10, atol=1e-10)
    for layer, pattern in enumerate(patterns):
        name = f"blocks.{layer}.attn.hook_pattern"
        torch.testing.assert_close(cache[name], pattern, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours[name], pattern, rtol=1e-10, atol=1e-10)


def test_the_canonical_network_in_float32_at_full_size():
    config = mi.RunConfig.preset("reddy2023-minimal")
    parameters = random_parameters(config, torch.float32) | {
        name: torch.full((1,), value) for name, value in zip(STRENGTHS, (3.0, 8.0, 1.5), strict=True)
    }
    for name in parameters:
        if name.endswith(".W"):
            parameters[name] = parameters[name] / parameters[name].shape[0] ** 0.5
    inputs, network = mi.build_task(config).sample("icl", 100).inputs, Network(config, parameters)
    _, expected = patterns_and_logits(config, parameters, inputs)
    for logits in (hooked(network)(inputs), forward(network, inputs)):
        assert (logits - expected).abs().max() < 1e-5


def test_order_parameters_of_the_canonical_network_are_its_parameters(minimal):
    parameters = random_parameters(minimal)
    network = Network(minimal, parameters)
    for model in (network, hooked(network)):
        found = order_parameters(model, mi.build_task(minimal))
        for name, argument in STRENGTHS.items():
            assert found[argument] == pytest.approx(parameters[name].item(), abs=1e-6)


def test_hooks_are_checked_and_act(minimal):
    network, inputs = Network(minimal, random_parameters(minimal)), mi.build_task(minimal).sample("icl", 5).inputs
    model = hooked(network)
    with pytest.raises(MechinterpError, match=r"did you mean 'blocks.1.attn.hook_pattern'"):
        model.run_with_cache(inputs, names_filter="blocks.1.attn.hook_patern")
    uniform = torch.full((7, 7), 1 / 7, dtype=torch.float64).expand(5, 1, 7, 7)
    hook = "blocks.1.attn.hook_pattern"
    by_hooks = model.run_with_hooks(inputs, fwd_hooks=[(hook, lambda pattern, hook: uniform)])
    by_function = forward(network, inputs.double(), {hook: lambda pattern: uniform})
    torch.testing.assert_close(by_hooks, by_function)
    assert not torch.allclose(by_hooks, model(inputs))
    with pytest.raises(MechinterpError, match="unknown hook"):
        forward(network, inputs.double(), {"blocks.2.attn.hook_pattern": lambda pattern: pattern})


def test_a_run_is_trained_measured_analysed_and_resumed(minimal, tmp_path):
    config = minimal.updated({"training.steps": 20, "training.batch_size": 16, "checkpoints.every": 10})
    run = mi.train(config, tmp_path / "run.h5", progress=False)
    assert run.environment["engine"] == "analytic"
    table = mi.measure(run, n_sequences=50)
    assert {"icl_accuracy", "ila1", "tila2", "cla"} <= set(table.columns)
    assert run.model(20)(run.task.sample("icl", 2).inputs).shape == (2, 7)
    strengths = mi.analyse(run, "order_parameters", steps=20).set_index("parameter")["value"].to_dict()
    for name, argument in STRENGTHS.items():
        assert strengths[argument] == pytest.approx(run.weights(20)[name].item(), abs=1e-4)
    assert set(mi.analyse(run, "paths", steps=20, n_pairs=20)["sender"])
    assert run.densify(every=3).exact


def test_a_task_without_contents_is_refused(minimal):
    with pytest.raises(MechinterpError, match="takes the item–label task"):
        minimal.updated(
            {"task.kind": "custom", "task.name": "x", "task.d_model": 3, "task.n_pos": 3, "task.n_labels": 2}
        )


def test_another_kind_of_model_starts_from_its_defaults():
    changed = mi.RunConfig.preset("reddy2023").updated({"model.classifier_width": 64, "model.kind": "induction_head"})
    assert changed.model.model_dump() == {
        "kind": "induction_head",
        "alpha": 0.0,
        "beta1": 0.0,
        "beta2": 0.0,
        "classifier_depth": 3,
        "classifier_width": 64,
        "classifier_init_variance": 2.0,
        "classifier_init": "normal",
        "readout_bias": False,
        "attention_init_std": 0.0,
    }
    with pytest.raises(MechinterpError, match="unknown model 'lstm'"):
        changed.updated({"model.kind": "lstm"})
