"""Runs in one batch are the runs that each would be alone."""

import pytest
import torch

import mechinterp as mi
from mechinterp.config import ItemLabelConfig
from mechinterp.errors import ConfigError, DivergedError
from mechinterp.models.registry import initial_parameters
from mechinterp.studies.jobs import distinct_jobs, grouped, work_of_a_step
from mechinterp.training.engines import AutogradEngine
from mechinterp.training.runs import train_batched

FULL = mi.RunConfig.preset("reddy2023")


def variants(config: mi.RunConfig) -> list[mi.RunConfig]:
    """Runs that differ in all that runs in one batch may differ in."""
    assert isinstance(config.task, ItemLabelConfig)
    return [
        config,
        config.updated({"seed": 7}),
        config.updated({"task.n_classes": 3 * config.task.n_classes, "task.epsilon": 0.5}),
        config.updated({"training.learning_rate": 0.03, "training.weight_decay": 0.01}),
    ]


@pytest.mark.parametrize("model", [{}, {"model.output_matrix": "trained", "model.use_attn_scale": True}])
def test_a_step_in_one_batch_is_every_runs_own_step(tiny_config, model):
    configs = variants(tiny_config.updated(model))
    parameters = [{n: v.double() for n, v in initial_parameters(config).items()} for config in configs]
    alone = [AutogradEngine([config], [start]) for config, start in zip(configs, parameters, strict=True)]
    batched = AutogradEngine(configs, parameters)
    for step in range(3):
        batches = [mi.build_task(config).train_batch(step, 16) for config in configs]
        expected = [engine.step(batch) for engine, batch in zip(alone, batches, strict=True)]
        found = batched.step_runs(batches, [None] * 4)
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-12)
    for index, engine in enumerate(alone):
        for name, value in batched.runs[index].items():
            torch.testing.assert_close(value, engine.parameters[name].detach(), rtol=1e-10, atol=1e-12)


def test_after_200_steps_weights_equal_those_of_the_same_run_alone(tmp_path):
    """At full size, with the engine that each run has alone; the data stream is the very same.

    At ten times the learning rate, engines in float32 come apart by 1e-3 within 200 steps, and as far from float64:
    now and then a hidden unit's input lies so close to 0 that rounding decides on which side of the ReLU it falls.
    """
    changes = {"training.steps": 200, "training.batch_size": 64, "checkpoints.every": 100}
    configs = [FULL.updated({**changes, "seed": seed}) for seed in (0, 1)]
    batched = train_batched(configs, [tmp_path / f"{i}.h5" for i in range(2)])
    for i, (config, run) in enumerate(zip(configs, batched, strict=True)):
        alone = mi.train(config, tmp_path / f"alone{i}.h5", progress=False)
        assert (run.status, run.steps, run.environment["engine"]) == ("complete", alone.steps, "batched")
        assert run.digest(0) == alone.digest(0)
        for name, value in alone.weights(200).items():
            torch.testing.assert_close(run.weights(200)[name], value, rtol=0, atol=1e-4)
        metrics = (run.metrics.iloc[1:] - alone.metrics.iloc[1:]).abs()
        assert metrics.to_numpy().max() < 1e-3
        assert metrics["train_loss"].iloc[0] < 1e-5


def test_runs_leave_the_batch_when_they_are_done_and_others_go_on(tiny_config, tmp_path):
    short = tiny_config.updated({"training.steps": 7, "checkpoints.every": 3})
    stops = tiny_config.updated({"seed": 4, "training.stop_accuracy": 0.01})
    wild = tiny_config.updated({"training.learning_rate": 1e9})
    configs, names = [tiny_config, short, stops, wild], ["long", "short", "stops", "wild"]
    paths = [tmp_path / f"{name}.h5" for name in names]
    with pytest.raises(DivergedError, match=r"wild\.h5: .*lower training\.learning_rate"):
        train_batched(configs, paths)
    runs = [mi.open_run(path) for path in paths]
    assert [run.status for run in runs] == ["complete", "complete", "complete", "diverged"]
    assert [run.steps for run in runs[:3]] == [list(range(0, 21, 2)), [0, 3, 6, 7], [0, 2]]
    alone = mi.train(tiny_config, tmp_path / "alone.h5", progress=False)
    for name, value in alone.weights(20).items():
        torch.testing.assert_close(runs[0].weights(20)[name], value, rtol=0, atol=1e-5)


def test_a_run_that_has_diverged_before_leaves_the_others_alone(tiny_config, tmp_path):
    wild = tiny_config.updated({"training.learning_rate": 1e9})
    paths = [tmp_path / "wild.h5", tmp_path / "free.h5"]
    with pytest.raises(DivergedError):
        mi.train(wild, paths[0], progress=False)
    with pytest.raises(DivergedError, match=r"wild\.h5"):
        train_batched([wild, tiny_config], paths)
    assert [mi.open_run(path).status for path in paths] == ["diverged", "complete"]


def test_interrupted_runs_are_resumed_in_one_batch_from_where_each_is(tiny_config, tmp_path, monkeypatch):
    configs = [tiny_config, tiny_config.updated({"seed": 5, "checkpoints.every": 5})]
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    original, calls = AutogradEngine.step_runs, []

    def step_runs(self, batches, interventions, steps=None):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(self, batches, interventions, steps)

    monkeypatch.setattr(AutogradEngine, "step_runs", step_runs)
    with pytest.raises(KeyboardInterrupt):
        train_batched(configs, paths)
    assert [(mi.open_run(p).status, mi.open_run(p).steps[-1]) for p in paths] == [
        ("interrupted", 6),
        ("interrupted", 5),
    ]
    resumed = train_batched(configs, paths)
    whole = train_batched(configs, [tmp_path / "whole_a.h5", tmp_path / "whole_b.h5"])
    for one, other in zip(resumed, whole, strict=True):
        assert one.steps == other.steps
        for name, value in other.weights(20).items():
            torch.testing.assert_close(one.weights(20)[name], value, rtol=0, atol=1e-5)
    before = [path.stat().st_mtime_ns for path in paths]
    train_batched(configs, paths)
    assert [path.stat().st_mtime_ns for path in paths] == before


FIX = {"kind": "fix", "parameters": ["blocks.*"], "value": 0.25}
FREEZE = {"kind": "freeze", "parameters": ["classifier.readout.W"], "start": 4, "stop": 12}
CLAMP = {"kind": "clamp", "layer": 0, "pattern": "uniform"}


def test_runs_with_fixed_parameters_are_trained_in_one_batch(tiny_config, tmp_path):
    changes = [{"interventions": [FIX]}, {"interventions": [FREEZE]}, {"interventions": [FIX, FREEZE], "seed": 1}, {}]
    configs = [tiny_config.updated({**change, "training.weight_decay": 0.01}) for change in changes]
    runs = train_batched(configs, [tmp_path / f"{i}.h5" for i in range(4)])
    for number, (config, run) in enumerate(zip(configs, runs, strict=True)):
        assert run.environment["engine"] == "batched"
        last, start = run.weights(20), initial_parameters(config)
        for name, value in last.items():
            fixed = FIX in changes[number].get("interventions", ()) and name.startswith("blocks.")
            assert torch.equal(value, torch.full_like(value, 0.25)) == fixed
            assert fixed or not torch.equal(value, start[name])
        readouts = [run.weights(step)["classifier.readout.W"] for step in (2, 4, 12, 14)]
        assert torch.equal(readouts[1], readouts[2]) == (FREEZE in changes[number].get("interventions", ()))
        assert not torch.equal(readouts[0], readouts[1])
        assert not torch.equal(readouts[2], readouts[3])
        alone = mi.train(config, tmp_path / f"alone{number}.h5", progress=False)
        for name, value in alone.weights(20).items():
            torch.testing.assert_close(last[name], value, rtol=0, atol=1e-5)


def test_a_study_groups_runs_whose_forward_pass_is_that_of_the_weights(tiny_config, tmp_path):
    variants = {"free": {}, "fixed": {"interventions": [FIX]}, "frozen": {"interventions": [FREEZE]}}
    study = mi.Study.of("batches", tiny_config, {**variants, "clamped": {"interventions": [CLAMP]}}, [0, 1])
    jobs = [job for _, job in distinct_jobs(study, tmp_path, "cuda")]
    groups = grouped(jobs, 6)
    assert sorted(map(len, groups)) == [1, 1, 2, 2, 2]
    alone = [group[0]["config"]["interventions"] for group in groups if len(group) == 1]
    assert all(interventions[0]["kind"] == "clamp" for interventions in alone)


SMALL = {
    "task": {"kind": "modular_addition", "modulus": 7},
    "model": {"kind": "transformer", "input": "tokens", "output": "unembedding", "n_layers": 1, "d_model": 8},
    "training": {"batch_size": 8, "optimizer": "adamw", "steps": 4},
    "checkpoints": {"every": 2},
}


def test_on_the_cpu_runs_are_in_one_batch_where_that_is_faster(tiny_config, tmp_path):
    """Small networks without an engine of their own; the others are alone, as all are by default."""
    small = mi.RunConfig.from_dict(SMALL)
    for config, sizes in (
        (small, [2]),
        (small.updated({"model.d_model": 1_024}), [1, 1]),
        (tiny_config, [1, 1]),  # fused
        (tiny_config.updated({"model.n_layers": 1}), [1, 1]),  # analytic
    ):
        study = mi.Study.of("batches", config, {"free": {}}, [0, 1])
        jobs = [job for _, job in distinct_jobs(study, tmp_path)]
        assert [len(group) for group in grouped(jobs, 6)] == sizes
        assert [len(group) for group in grouped(jobs, 1)] == [1, 1]


def test_the_work_of_a_step_counts_weights_at_every_token_and_attention():
    """p = 7: tokens a, b, =; per token 4 matrices of 8 × 8 in the layer, 8 × 7 to the answers, and attention."""
    config = mi.RunConfig.from_dict(SMALL).updated({"model.output_matrix": "trained"})
    assert work_of_a_step(config) == 8 * 3 * (4 * 64 + 8 * 7 + 2 * 3 * 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.classifier_width": 5}, "one model"),
        ({"task.n_labels": 8}, "one shape of task"),
        ({"training.batch_size": 3}, "one batch size"),
        ({"interventions": [{"kind": "copy"}]}, "trained alone"),
    ],
)
def test_runs_that_do_not_fit_in_one_batch_are_refused(tiny_config, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train_batched([tiny_config, tiny_config.updated(changes)], [tmp_path / "a.h5", tmp_path / "b.h5"])
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_on_cuda_stays_with_the_cpu(tmp_path):
    configs = [FULL.updated({"training.steps": 200, "seed": seed, "checkpoints.every": 200}) for seed in range(4)]
    here = train_batched(configs, [tmp_path / f"cpu{i}.h5" for i in range(4)])
    there = train_batched(configs, [tmp_path / f"cuda{i}.h5" for i in range(4)], device="cuda")
    for one, other in zip(here, there, strict=True):
        for name, value in one.weights(200).items():
            torch.testing.assert_close(other.weights(200)[name], value, rtol=0, atol=1e-4)
