"""The fused engine takes the same step as autograd through the hooked model."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechinterp as mi
from mechinterp.errors import MechinterpError
from mechinterp.models.parameters import parameter_shapes
from mechinterp.tasks import Batch
from mechinterp.training.fused import FusedEngine
from mechinterp.training.hooked import HookedEngine

sizes = st.fixed_dictionaries(
    {
        "task.n_pairs": st.integers(1, 6),
        "task.n_labels": st.integers(2, 9),
        "task.content_dim": st.integers(1, 20),
        "task.position_dim": st.integers(13, 20),
        "model.classifier_depth": st.integers(0, 4),
        "model.classifier_width": st.integers(1, 23),
        "training.batch_size": st.integers(1, 33),
        "task.epsilon": st.sampled_from([0.0, 0.1]),
        "task.p_in_context": st.sampled_from([0.0, 0.5]),
        "training.weight_decay": st.sampled_from([0.0, 1e-2]),
        "seed": st.integers(0, 10**9),
    }
)


def config_of(changes: dict) -> mi.RunConfig:
    labels = changes["task.n_labels"]
    fixed = {"task.n_classes": 2 * labels, "task.n_novel_classes": labels, "task.distinct_labels": False}
    return mi.RunConfig().updated({**changes, **fixed})


def as_dtype(batch: Batch, dtype: torch.dtype, table: bool) -> Batch:
    rows = dataclasses.replace(batch.table, rows=batch.table.rows.to(dtype)) if table else None
    return dataclasses.replace(batch, inputs=batch.inputs.to(dtype), table=rows)


def random_parameters(config: mi.RunConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(config.seed)
    shapes = parameter_shapes(config)
    return {name: torch.from_numpy(rng.normal(size=s) / s[-1] ** 0.5).to(dtype) for name, s in shapes.items()}


def worst_deviation(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest deviation of a gradient, relative to the largest entry of that parameter's gradient."""
    largest = {name: value.abs().max().item() for name, value in theirs.items()}
    deviations = {name: (ours[name] - theirs[name]).abs().max().item() for name in theirs}
    return max(deviations[name] / max(largest[name], 1e-4) for name in theirs)


@settings(max_examples=40, deadline=None)
@given(sizes, st.booleans())
def test_float64_gradients_equal_autograd(changes, table):
    config = config_of(changes)
    batch = as_dtype(config.build_task().train_batch(0, config.training.batch_size), torch.float64, table)
    parameters = random_parameters(config, torch.float64)
    fused, hooked = FusedEngine(config, parameters), HookedEngine(config, parameters)
    (loss, accuracy, ours), (expected, right, theirs) = fused.gradients(batch), hooked.gradients(batch)
    assert (loss, accuracy) == (pytest.approx(expected, rel=1e-12), pytest.approx(right))
    assert worst_deviation(ours, theirs) < 1e-11


@pytest.mark.parametrize("table", [True, False])
def test_float32_gradients_equal_autograd_at_full_size(table):
    config = mi.RunConfig.preset("reddy2023", seed=3)
    batch = as_dtype(config.build_task().train_batch(0, 128), torch.float32, table)
    parameters = random_parameters(config, torch.float32)
    fused, hooked = FusedEngine(config, parameters), HookedEngine(config, parameters)
    ours, theirs = fused.gradients(batch)[2], hooked.gradients(batch)[2]
    assert worst_deviation(ours, theirs) < 1e-5


@settings(max_examples=10, deadline=None)
@given(sizes)
def test_steps_stay_together(changes):
    config = config_of(changes)
    task = config.build_task()
    parameters = random_parameters(config, torch.float64)
    fused, hooked = FusedEngine(config, parameters), HookedEngine(config, parameters)
    for step in range(5):
        batch = as_dtype(task.train_batch(step, config.training.batch_size), torch.float64, step % 2 == 0)
        fused.step(batch)
        hooked.step(batch)
    for name, value in hooked.parameters.items():
        assert torch.allclose(fused.parameters[name], value, rtol=1e-9, atol=1e-12), name


def test_a_changed_batch_size_is_no_problem():
    config = config_of({"task.n_labels": 5})
    task, engine = config.build_task(), FusedEngine(config, random_parameters(config, torch.float32))
    alone = FusedEngine(config, random_parameters(config, torch.float32))
    engine.gradients(task.train_batch(0, 7))
    first = engine.gradients(task.train_batch(1, 12))[2]["blocks.0.attn.W_Q"]
    assert torch.equal(first, alone.gradients(task.train_batch(1, 12))[2]["blocks.0.attn.W_Q"])


@pytest.mark.parametrize("changes", [{"model.n_layers": 1}, {"model.n_layers": 3}, {"model.n_heads": 2}])
def test_other_networks_are_refused(changes):
    config = mi.RunConfig().updated(changes)
    assert not FusedEngine.fits(config)
    with pytest.raises(MechinterpError, match="two layers"):
        FusedEngine(config, random_parameters(config, torch.float32))
