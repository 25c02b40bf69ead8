"""A run ends where loss and accuracies have come to rest, and not before; resumed, it ends at the same step."""

import shutil

import pytest
import torch

import mechinterp as mi
from mechinterp.errors import ConfigError, MechinterpError
from mechinterp.models.network import Network
from mechinterp.models.registry import initial_parameters
from mechinterp.training.runs import resume
from mechinterp.training.stopping import StopRule
from tests.helpers import as_if_killed, hooked


@pytest.fixture(scope="module")
def config(tiny_config) -> mi.RunConfig:
    return tiny_config.updated({"training.steps": 4_000, "training.stop_plateau": 40, "checkpoints.every": 10})


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory) -> mi.Run:
    """A run that its rule has ended. Tests only read it."""
    return mi.train(config, tmp_path_factory.mktemp("stopped") / "run.h5", progress=False)


def ends(config: mi.RunConfig, losses: list[float], weights=None) -> int | None:
    """The first checkpoint, ten steps apart, at which the rule ends a run of these losses."""
    rule, weights = StopRule(config, mi.build_task(config)), weights or (lambda step: initial_parameters(config))
    for number, loss in enumerate(losses):
        step = 10 * number
        if rule.reached(step, weights(step), {"train_loss": loss, "train_accuracy": 0.0}):
            return step
    return None


def test_a_loss_at_rest_ends_a_run_after_the_window(config):
    assert ends(config, [float("nan"), *[1.0] * 9]) == 40
    falling = [2.0 - 0.1 * i for i in range(10)]
    assert ends(config, [float("nan"), *falling, *[1.0] * 9]) == 140  # both halves, 110–120 and 130–140, are flat
    slow = [2.0 - 0.004 * i for i in range(20)]  # 0.008 between the halves
    assert ends(config, [float("nan"), *slow]) == 40
    less_slow = [2.0 - 0.006 * i for i in range(20)]  # 0.012
    assert ends(config, [float("nan"), *less_slow]) is None
    to_and_fro = [1.0, 1.03] * 5  # the halves have the same mean
    assert ends(config, [float("nan"), *to_and_fro]) == 40


def test_an_accuracy_that_moves_keeps_a_run_going(config):
    other = initial_parameters(config.updated({"seed": 9}))
    initial = initial_parameters(config)
    task = mi.build_task(config)

    def accuracy(weights: dict[str, torch.Tensor]) -> float:
        batch = task.sample("icl", 500)
        logits = hooked(Network(config, weights))(batch.inputs)
        return (logits.argmax(dim=-1) == batch.labels).double().mean().item()

    assert abs(accuracy(other) - accuracy(initial)) > 0.02
    assert ends(config, [1.0] * 10, lambda step: initial if step < 30 else other) == 60


def test_a_run_that_is_cut_off_and_resumed_ends_where_it_would_have(config, stopped, tmp_path):
    whole = mi.open_run(shutil.copy(stopped.path, tmp_path / "whole.h5"))
    last = whole.steps[-1]
    assert (whole.status, last < 4_000, last >= 40) == ("complete", True, True)
    cut = tmp_path / "cut.h5"
    mi.train(config.updated({"training.steps": last - 20, "training.stop_plateau": None}), cut, progress=False)
    as_if_killed(cut, config)
    resumed = resume(cut, progress=False)
    assert resumed.steps == whole.steps
    assert resumed.digest(last) == whole.digest(last)
    with pytest.raises(MechinterpError, match=f"ended it at step {last}; go beyond it with --until STEP"):
        resume(tmp_path / "whole.h5", progress=False)
    assert resume(tmp_path / "whole.h5", until=last + 40, progress=False).steps[-1] == last + 40


def test_checkpoints_too_far_apart_for_the_window_are_refused(config):
    with pytest.raises(ConfigError, match=r"set checkpoints\.every to 20 or less"):
        config.updated({"checkpoints.every": 21})


def test_a_rule_recalls_a_file_that_grows_meanwhile(config, stopped, monkeypatch):
    before = stopped.file.metrics().iloc[:-3]
    monkeypatch.setattr(type(stopped.file), "metrics", lambda self: before)
    assert not StopRule(config, stopped.task).recall(stopped.file)
