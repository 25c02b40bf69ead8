"""The fused engine takes the same step as autograd through the hooked model."""

import dataclasses
import gc
from typing import ClassVar

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechinterp as mi
from mechinterp.errors import MechinterpError
from mechinterp.interventions.forward import ForwardInterventions, forward_interventions
from mechinterp.parallel import Forked
from mechinterp.tasks import Batch
from mechinterp.torch_state import torch_threads
from mechinterp.training.engines import AutogradEngine, FusedEngine, build_engine
from mechinterp.training.engines.fused import ahead, driver
from mechinterp.training.engines.fused.step import compiled_beside
from tests.helpers import random_parameters as draw
from tests.reference_engine import ReferenceEngine

sizes = st.fixed_dictionaries(
    {
        "task.n_pairs": st.integers(1, 6),
        "task.n_labels": st.integers(2, 9),
        "task.content_dim": st.integers(1, 20),
        "task.position_dim": st.integers(13, 20) | st.just(0),
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
    if not table:
        return Batch(batch.inputs.to(dtype), batch.labels)
    assert batch.table is not None
    exact = dataclasses.replace(batch.table, shared=batch.table.shared.to(dtype), own=batch.table.own.to(dtype))
    return Batch(None, batch.labels, table=exact)


def random_parameters(config: mi.RunConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return draw(config, config.seed, dtype)


def worst_deviation(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest deviation of a gradient, relative to the largest entry of that parameter's gradient."""
    largest = {name: value.abs().max().item() for name, value in theirs.items()}
    deviations = {name: (ours[name] - theirs[name]).abs().max().item() for name in theirs}
    return max(deviations[name] / max(largest[name], 1e-4) for name in theirs)


@settings(max_examples=40, deadline=None)
@given(sizes, st.booleans())
def test_float64_gradients_equal_autograd(changes, table):
    config = config_of(changes)
    batch = as_dtype(mi.build_task(config).train_batch(0, config.training.batch_size), torch.float64, table)
    parameters = random_parameters(config, torch.float64)
    fused, hooked = FusedEngine([config], [parameters]), ReferenceEngine(config, parameters)
    (loss, accuracy, ours), (expected, right, theirs) = fused.gradients(batch), hooked.gradients(batch)
    assert (loss, accuracy) == (pytest.approx(expected, rel=1e-12), pytest.approx(right))
    assert worst_deviation(ours, theirs) < 1e-11


@pytest.mark.parametrize("table", [True, False])
def test_float32_gradients_equal_autograd_at_full_size(table):
    config = mi.RunConfig.preset("reddy2023", seed=3)
    batch = as_dtype(mi.build_task(config).train_batch(0, 128), torch.float32, table)
    parameters = random_parameters(config, torch.float32)
    fused, hooked = FusedEngine([config], [parameters]), ReferenceEngine(config, parameters)
    ours, theirs = fused.gradients(batch)[2], hooked.gradients(batch)[2]
    assert worst_deviation(ours, theirs) < 1e-5


@settings(max_examples=10, deadline=None)
@given(sizes)
def test_steps_stay_together(changes):
    config = config_of(changes)
    task = mi.build_task(config)
    parameters = random_parameters(config, torch.float64)
    fused, hooked = FusedEngine([config], [parameters]), ReferenceEngine(config, parameters)
    for step in range(5):
        batch = as_dtype(task.train_batch(step, config.training.batch_size), torch.float64, step % 2 == 0)
        assert fused.step(batch) == pytest.approx(hooked.step(batch), rel=1e-9)
    for name, value in hooked.parameters.items():
        assert torch.allclose(fused.parameters[name], value, rtol=1e-9, atol=1e-12), name


def test_a_changed_batch_size_is_no_problem():
    config = config_of({"task.n_labels": 5})
    task, engine = mi.build_task(config), FusedEngine([config], [random_parameters(config, torch.float32)])
    alone = FusedEngine([config], [random_parameters(config, torch.float32)])
    engine.gradients(task.train_batch(0, 7))
    first = engine.gradients(task.train_batch(1, 12))[2]["blocks.0.attn.W_Q"]
    assert torch.equal(first, alone.gradients(task.train_batch(1, 12))[2]["blocks.0.attn.W_Q"])


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_the_bits_depend_on_the_number_of_threads_only(n_threads):
    config = config_of({"task.n_labels": 5})
    task, parameters, before = mi.build_task(config), random_parameters(config, torch.float32), torch.get_num_threads()
    engines = [FusedEngine([config], [parameters]) for _ in range(2)]
    reference = ReferenceEngine(config, parameters)
    torch.set_num_threads(n_threads)
    try:
        for step in range(20):
            result = engines[0].step(task.train_batch(step, 67))
            assert result == engines[1].step(task.train_batch(step, 67))
            assert result.gradient_norm == pytest.approx(reference.step(task.train_batch(step, 67))[2], rel=1e-4)
    finally:
        torch.set_num_threads(before)
    for name, value in engines[0].parameters.items():
        assert torch.equal(value, engines[1].parameters[name]), name
        assert torch.allclose(value, reference.parameters[name], atol=1e-4), name


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_out_of_range_are_refused_and_change_nothing(label):
    config = config_of({"task.n_labels": 5})
    batch, parameters = mi.build_task(config).train_batch(0, 40), random_parameters(config, torch.float32)
    batch.labels[39] = label
    engine = FusedEngine([config], [parameters])
    with pytest.raises(MechinterpError, match="out of range"):
        engine.step(batch)
    assert all(torch.equal(value, parameters[name]) for name, value in engine.parameters.items())


@pytest.mark.parametrize("field", ["content", "positions"])
def test_tables_out_of_range_are_refused(field):
    config = config_of({"task.n_labels": 5})
    batch = mi.build_task(config).train_batch(0, 40)
    getattr(batch.table, field)[3, 2] = 1000
    with pytest.raises(MechinterpError, match="out of range"):
        FusedEngine([config], [random_parameters(config, torch.float32)]).step(batch)


def test_after_a_refused_batch_the_next_one_is_computed_right():
    config = config_of({"task.n_labels": 5})
    task, parameters = mi.build_task(config), random_parameters(config, torch.float32)
    engine, expected = (
        FusedEngine([config], [parameters]),
        FusedEngine([config], [parameters]).gradients(task.train_batch(1, 40)),
    )
    bad = task.train_batch(0, 40)
    bad.labels[0] = 5
    with pytest.raises(MechinterpError):
        engine.step(bad)
    assert engine.gradients(task.train_batch(1, 40))[:2] == expected[:2]


def test_a_part_that_cannot_start_lets_the_others_go(monkeypatch):
    config = config_of({"task.n_labels": 5})
    task, parameters = mi.build_task(config), random_parameters(config, torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        engine = FusedEngine([config], [parameters])
        expected = engine.gradients(task.train_batch(1, 40))[:2]
        kernel = driver.step_part

        def broken(*arguments):
            if arguments[-4] == 1:  # the second part
                raise MemoryError("no memory for a thread")
            return kernel(*arguments)

        monkeypatch.setattr(driver, "step_part", broken)
        with pytest.raises(MemoryError, match="no memory"):
            engine.step(task.train_batch(0, 40))
        monkeypatch.undo()
        assert engine.gradients(task.train_batch(1, 40))[:2] == expected
    finally:
        torch.set_num_threads(before)


def test_parameters_that_overflow_once_leave_nothing_behind():
    config = config_of({"task.n_labels": 5})
    task, parameters = mi.build_task(config), random_parameters(config, torch.float32)
    engine = FusedEngine([config], [parameters])
    expected = engine.gradients(task.train_batch(1, 40))[0]
    for value in engine.parameters.values():
        value.fill_(1e30)
    assert not np.isfinite(engine.gradients(task.train_batch(0, 40))[0])
    for name, value in engine.parameters.items():
        value.copy_(parameters[name])
    assert engine.gradients(task.train_batch(1, 40))[0] == expected


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"own": torch.zeros(40, 9, 62)}, "contents are"),
        ({"own": torch.zeros(39, 9, 63)}, "contents are"),
        ({"shared": torch.zeros(0, 0)}, "contents are"),
        ({"position_dim": 64}, "contents are"),
        ({"positions": torch.zeros(40, 16, dtype=torch.int64)}, r"\(40, 17\) and \(40, 16\)"),
    ],
)
def test_tables_of_other_shapes_are_refused(changes, match):
    config = mi.RunConfig()
    batch = mi.build_task(config).train_batch(0, 40)
    for name, value in changes.items():
        object.__setattr__(batch.table, name, value)  # as a user's table can be, who has no type checker
    with pytest.raises(MechinterpError, match=match):
        FusedEngine([config], [random_parameters(config, torch.float32)]).step(batch)


def test_inputs_of_another_shape_are_refused():
    config = mi.RunConfig()
    batch = mi.build_task(config).train_batch(0, 40)
    engine = FusedEngine([config], [random_parameters(config, torch.float32)])
    with pytest.raises(MechinterpError, match="contents are"):
        engine.step(Batch(batch.inputs[:, :, :100], batch.labels))
    batch.labels = batch.labels[:39]
    with pytest.raises(MechinterpError, match="contents are"):
        engine.step(batch)


@pytest.mark.parametrize(
    "changes", [{"model.n_layers": 1, "model.n_heads": 2}, {"model.n_layers": 3}, {"model.n_heads": 2}]
)
def test_other_networks_are_left_to_autograd(changes):
    config = mi.RunConfig().updated(changes)
    parameters = random_parameters(config, torch.float32)
    engine = build_engine(config, parameters)
    assert isinstance(engine, AutogradEngine)
    batch = mi.build_task(config).train_batch(0, 5)
    (loss, accuracy, ours), (expected, right, theirs) = (
        each.gradients(batch) for each in (engine, ReferenceEngine(config, parameters))
    )
    assert (loss, accuracy) == (pytest.approx(expected, rel=1e-5), right)
    assert worst_deviation(ours, theirs) < 1e-4
    with pytest.raises(MechinterpError, match="two layers"):
        FusedEngine([config], [parameters])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused():
    config = mi.RunConfig()
    with pytest.raises(MechinterpError, match=r"no CUDA device; use --device cpu"):
        build_engine(config, random_parameters(config, torch.float32), device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_on_cuda_stay_with_the_cpu():
    config = mi.RunConfig.preset("reddy2023-fast")
    task, parameters = mi.build_task(config), random_parameters(config, torch.float32)
    cuda, fused = build_engine(config, parameters, device="cuda"), build_engine(config, parameters)
    for step in range(20):
        ours, theirs = cuda.step(task.train_batch(step, 128)), fused.step(task.train_batch(step, 128))
        assert ours == pytest.approx(theirs, rel=1e-3)
    for name, value in fused.parameters.items():
        assert torch.allclose(cuda.parameters[name].cpu(), value, atol=1e-3), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clamps", [(), [{"kind": "clamp", "layer": 0, "pattern": "uniform"}]])
def test_what_is_compiled_ahead_has_the_types_of_a_step(dtype, clamps, monkeypatch):
    config = mi.RunConfig().updated({"task.n_pairs": 2, "training.batch_size": 3, "interventions": list(clamps)})
    task, taken = mi.build_task(config), []
    monkeypatch.setattr(driver, "step_part", lambda *arguments: taken.append(arguments) or (0.0, 0, 0.0))
    interventions = forward_interventions(config)
    batch = as_dtype(task.train_batch(0, 3), dtype, table=True)
    acting = ForwardInterventions.at(config, 0, batch) if interventions else None
    FusedEngine([config], [random_parameters(config, dtype)]).gradients(batch, acting)
    assert ahead.argument_types(dtype) == tuple(numba.typeof(argument) for argument in taken[0])


class NotStarted(Forked):
    """In place of a process, whose function and arguments it keeps."""

    begun: ClassVar[list[tuple]] = []

    def __init__(self, *call):
        self.begun.append(call)

    def end(self):
        self.begun.clear()


@pytest.fixture
def on_two_threads():
    with torch_threads(2):
        yield


@pytest.mark.usefixtures("on_two_threads")
def test_a_second_process_compiles_until_the_first_step_is_done(monkeypatch):
    monkeypatch.setattr(ahead, "Forked", NotStarted)
    monkeypatch.setattr(ahead, "is_missing", lambda *_: True)
    config = mi.RunConfig().updated({"task.n_pairs": 2, "training.batch_size": 3})
    engine = build_engine(config, random_parameters(config, torch.float32))
    assert NotStarted.begun == [(ahead.compile_called, compiled_beside, ahead.argument_types(torch.float32))]
    engine.step(mi.build_task(config).train_batch(0, 3))
    assert not NotStarted.begun
    engine = build_engine(config, random_parameters(config, torch.float32))
    assert NotStarted.begun
    del engine  # as after an error before the first step
    gc.collect()
    assert not NotStarted.begun


@pytest.mark.usefixtures("on_two_threads")
def test_what_cannot_be_looked_up_is_not_compiled_ahead(monkeypatch):
    monkeypatch.setattr(ahead, "Forked", NotStarted)
    monkeypatch.setattr(ahead, "is_missing", lambda *_: False)
    assert ahead.begin(torch.float32) is None

    def refused(*_):
        raise PermissionError("another user's folder")

    monkeypatch.setattr(ahead, "is_missing", refused)
    assert ahead.begin(torch.float32) is None
    monkeypatch.setattr(ahead, "is_missing", lambda *_: True)
    monkeypatch.setattr(ahead, "Forked", refused)
    assert ahead.begin(torch.float32) is None
    torch.set_num_threads(1)
    monkeypatch.setattr(ahead, "Forked", NotStarted)
    assert ahead.begin(torch.float32) is None
    assert not NotStarted.begun
