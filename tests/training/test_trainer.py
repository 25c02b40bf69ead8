"""Training: what is saved, how it ends, and tasks of one's own."""

import math

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.errors import ConfigError, DivergedError, MechinterpError
from mechinterp.models.registry import initial_parameters
from mechinterp.training.engines import FusedEngine
from mechinterp.training.spikes import SPIKES


class FirstTokenTask:
    """A task of a user's own: which of four directions does the first token point to? The rest is noise."""

    d_model, n_pos, n_labels, evaluations = 8, 3, 4, ("fresh",)

    def train_batch(self, step, size):
        return self._draw(mi.generator(0, 1, step), size)

    def sample(self, evaluation, size, seed=0):
        return self._draw(mi.generator(0, 2, seed), size)

    def _draw(self, rng, size):
        labels = rng.integers(4, size=size)
        inputs = 0.1 * rng.standard_normal((size, 3, 8), dtype=np.float32)
        inputs[np.arange(size), 0, labels] += 1
        return mi.Batch(torch.from_numpy(inputs), torch.from_numpy(labels))


def test_a_task_of_ones_own_trains_and_measures(tmp_path):
    config = mi.RunConfig().updated({"training.steps": 300, "training.learning_rate": 0.3, "checkpoints.every": 50})
    run = mi.train(config, tmp_path / "own.h5", task=FirstTokenTask(), progress=False)
    table = mi.measure(run)
    assert list(table) == ["fresh_accuracy", "ila1_all", "fresh_loss", *SPIKES]
    assert table["fresh_accuracy"].iloc[-1] > 0.95
    assert table["ila1_all"].iloc[0] == pytest.approx((1 / 2 + 1 / 3) / 2, abs=0.1)
    assert "no transition" in mi.write_report(run, table, tmp_path / "own.html").read_text()
    assert mi.open_run(run.path, task=FirstTokenTask()).model(300)(run.task.sample("fresh", 2).inputs).shape == (2, 4)
    with pytest.raises(ConfigError, match=r"custom task 'FirstTokenTask'.*open_run\(path, task=your_task\)"):
        mi.measure(mi.open_run(run.path))


def test_a_task_with_unfit_batches_is_refused_before_anything_is_written(tmp_path):
    class Unfit(FirstTokenTask):
        def _draw(self, rng, size):
            batch = super()._draw(rng, size)
            return mi.Batch(batch.inputs.double(), batch.labels)

    with pytest.raises(ConfigError, match=r"task .*Unfit: inputs are \(2, 3, 8\) torch\.float64, expected"):
        mi.train(mi.RunConfig(), tmp_path / "own.h5", task=Unfit(), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_opening_with_another_task_is_refused(tiny_run):
    with pytest.raises(MechinterpError, match="was trained on a task with"):
        mi.open_run(tiny_run.path, task=FirstTokenTask())


def test_scheduled_steps_are_saved_and_step_0_is_the_initial_state(tiny_run, tiny_config):
    assert tiny_run.steps == list(range(0, 21, 2))
    assert tiny_run.status == "complete"
    for name, value in initial_parameters(tiny_config).items():
        assert torch.equal(tiny_run.weights(0)[name], value)


def test_saved_weights_are_those_of_the_steps_before(tiny_run, tiny_config):
    engine, task = FusedEngine([tiny_config], [initial_parameters(tiny_config)]), mi.build_task(tiny_config)
    losses = [engine.step(task.train_batch(step, 16))[0] for step in range(4)]
    for name, value in engine.parameters.items():
        assert torch.equal(tiny_run.weights(4)[name], value)
    assert tiny_run.metrics["train_loss"][4] == pytest.approx(np.mean(losses[2:]))
    assert math.isnan(tiny_run.metrics["train_loss"][0])


def test_the_same_config_gives_the_same_bits(tiny_run, tiny_config, tmp_path):
    again = mi.train(tiny_config, tmp_path / "again.h5", progress=False)
    assert [again.digest(step) for step in again.steps] == [tiny_run.digest(step) for step in tiny_run.steps]
    other = mi.train(tiny_config.updated({"seed": 1}), tmp_path / "other.h5", progress=False)
    assert other.digest(20) != tiny_run.digest(20)


def test_networks_the_fused_engine_cannot_do_train_by_autograd(tiny_config, tmp_path):
    run = mi.train(tiny_config.updated({"model.n_heads": 2, "training.steps": 2}), tmp_path / "a.h5", progress=False)
    assert run.environment["engine"] == "autograd"
    assert run.weights(2)["blocks.0.attn.W_Q"].shape == (2, 24, 24)


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_saved(tiny_config, tmp_path):
    path = tmp_path / "diverged.h5"
    with pytest.raises(DivergedError, match=r"diverged\.h5: .*lower training\.learning_rate"):
        mi.train(tiny_config.updated({"training.learning_rate": 1e9}), path, progress=False)
    run = mi.open_run(path)
    assert run.status == "diverged"
    assert run.steps[0] == 0
    assert all(value.isfinite().all() for value in run.weights(run.steps[-1]).values())


def test_an_interrupt_keeps_what_was_saved(tiny_config, tmp_path, monkeypatch):
    original = FusedEngine.step_runs
    calls = []

    def step_runs(self, batches, interventions, steps=None):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(self, batches, interventions, steps)

    monkeypatch.setattr(FusedEngine, "step_runs", step_runs)
    with pytest.raises(KeyboardInterrupt):
        mi.train(tiny_config, tmp_path / "stopped.h5", progress=False)
    run = mi.open_run(tmp_path / "stopped.h5")
    assert (run.status, run.steps) == ("interrupted", [0, 2, 4, 6])


def test_the_stop_rule(tiny_config, tmp_path):
    config = tiny_config.updated({"training.stop_accuracy": 0.01})
    run = mi.train(config, tmp_path / "early.h5", progress=False)
    assert run.steps == [0, 2]
    assert run.status == "complete"


def test_an_existing_file_is_kept_unless_overwritten(tiny_config, tmp_path):
    path = tmp_path / "kept.h5"
    path.write_text("precious")
    with pytest.raises(MechinterpError, match="exists already"):
        mi.train(tiny_config, path, progress=False)
    assert path.read_text() == "precious"
    assert mi.train(tiny_config, path, overwrite=True, progress=False).status == "complete"
    assert list(tmp_path.iterdir()) == [path]
