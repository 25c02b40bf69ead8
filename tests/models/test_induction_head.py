"""The minimal induction head: its equations, its compiled transformer, its gradient by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechinterp as mi
from mechinterp.circuits.order_parameters import order_parameters
from mechinterp.errors import MechinterpError
from mechinterp.models.functional import forward
from mechinterp.models.induction_head import InductionHead, compiled
from mechinterp.models.parameters import INDUCTION_HEAD, parameter_shapes
from mechinterp.training.autograd import AutogradEngine
from mechinterp.training.fused_induction_head import InductionHeadEngine
from mechinterp.training.hooked import HookedEngine

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
    rng = np.random.default_rng(config.seed)
    return {name: torch.from_numpy(rng.normal(size=s)).to(dtype) for name, s in parameter_shapes(config).items()}


@pytest.fixture(scope="module")
def minimal() -> mi.RunConfig:
    return config_of({"task.n_pairs": 3, "task.content_dim": 11, "task.position_dim": 13, "model.classifier_width": 19})


@settings(max_examples=30, deadline=None)
@given(sizes)
def test_logits_are_those_of_the_equations(changes):
    """Token by token, in NumPy (Reddy 2023, eqs 4 to 6)."""
    config = config_of(changes)
    parameters = random_parameters(config)
    beta1, alpha, beta2 = (parameters[name].item() for name in INDUCTION_HEAD)
    batch = config.build_task().sample("icl", 3)
    logits, _ = forward(parameters, batch.inputs.double())
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
    parameters, batch = random_parameters(config), config.build_task().train_batch(0, 17)
    if not table:
        batch = mi.Batch(batch.inputs.double(), batch.labels)
    (loss, accuracy, ours), (expected, right, theirs), (also, _, simple) = (
        engine(config, parameters).gradients(batch) for engine in (InductionHeadEngine, HookedEngine, AutogradEngine)
    )
    assert (loss, accuracy, also) == (pytest.approx(expected, rel=1e-10), right, pytest.approx(expected, rel=1e-12))
    for name, gradient in theirs.items():
        scale = max(gradient.abs().max().item(), 1e-4)
        assert (ours[name] - gradient).abs().max() < 1e-10 * scale, name
        assert (simple[name] - gradient).abs().max() < 1e-10 * scale, name


@pytest.mark.parametrize("engine", [InductionHeadEngine, AutogradEngine])
def test_a_step_is_the_same_step(minimal, engine):
    config = minimal.updated({"training.weight_decay": 0.01})
    task = config.build_task()
    ours, theirs = engine(config, random_parameters(config)), HookedEngine(config, random_parameters(config))
    for step in range(3):
        batch = task.train_batch(step, 16)
        assert ours.step(batch) == pytest.approx(theirs.step(batch))
    for name, value in theirs.parameters.items():
        torch.testing.assert_close(ours.parameters[name].detach(), value.detach(), rtol=1e-9, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(sizes)
def test_the_compiled_transformer_gives_the_same_logits(changes):
    config = config_of(changes)
    parameters, inputs = random_parameters(config), config.build_task().sample("icl", 4).inputs
    hooked, transformer = InductionHead(config, parameters), compiled(config, parameters)
    logits, patterns = forward(parameters, inputs.double())
    found, cache = transformer.run_with_cache(inputs)
    torch.testing.assert_close(found, logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(hooked(inputs), logits, rtol=0, atol=0)
    for name, pattern in patterns.items():
        torch.testing.assert_close(cache[name], pattern, rtol=1e-10, atol=1e-10)


def test_the_compiled_transformer_in_float32_at_full_size():
    config = mi.RunConfig.preset("reddy2023-minimal")
    parameters = random_parameters(config, torch.float32) | {
        name: torch.full((1,), value) for name, value in zip(INDUCTION_HEAD, (3.0, 8.0, 1.5), strict=True)
    }
    for name in parameters:
        if name.endswith(".W"):
            parameters[name] = parameters[name] / parameters[name].shape[0] ** 0.5
    inputs = config.build_task().sample("icl", 100).inputs
    difference = compiled(config, parameters)(inputs) - forward(parameters, inputs)[0]
    assert difference.abs().max() < 1e-5


def test_order_parameters_of_the_compiled_transformer_are_its_parameters(minimal):
    parameters = random_parameters(minimal)
    found = order_parameters(compiled(minimal, parameters), minimal.build_task())
    for name, argument in INDUCTION_HEAD.items():
        assert found[argument] == pytest.approx(parameters[name].item(), abs=1e-6)


def test_hooks_are_checked_and_act(minimal):
    model, inputs = InductionHead(minimal, random_parameters(minimal)), minimal.build_task().sample("icl", 5).inputs
    with pytest.raises(MechinterpError, match=r"did you mean 'blocks.1.attn.hook_pattern'"):
        model.run_with_cache(inputs, names_filter="blocks.1.attn.hook_patern")
    uniform = torch.full((7, 7), 1 / 7, dtype=torch.float64).expand(5, 1, 7, 7)
    hook = "blocks.1.attn.hook_pattern"
    by_hooks = model.run_with_hooks(inputs, fwd_hooks=[(hook, lambda pattern, hook: uniform)])
    by_function, _ = forward(random_parameters(minimal), inputs.double(), {hook: lambda pattern: uniform})
    torch.testing.assert_close(by_hooks, by_function)
    assert not torch.allclose(by_hooks, model(inputs))
    with pytest.raises(MechinterpError, match="unknown hook"):
        forward(random_parameters(minimal), inputs.double(), {"blocks.2.attn.hook_pattern": lambda pattern: pattern})


def test_a_run_is_trained_measured_analysed_and_resumed(minimal, tmp_path):
    config = minimal.updated({"training.steps": 20, "training.batch_size": 16, "checkpoints.every": 10})
    run = mi.train(config, tmp_path / "run.h5", progress=False)
    assert run.environment["engine"] == "fused"
    table = mi.measure(run, n_sequences=50)
    assert {"icl_accuracy", "ila1", "tila2", "cla"} <= set(table.columns)
    assert run.model(20)(run.task.sample("icl", 2).inputs).shape == (2, 7)
    strengths = mi.analyse(run, "order_parameters", steps=20).set_index("parameter")["value"]
    for name, argument in INDUCTION_HEAD.items():
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
    }
    with pytest.raises(MechinterpError, match="unknown model 'lstm'"):
        changed.updated({"model.kind": "lstm"})
