"""Experiment trackers get the numbers of a run and change nothing of it, whether they work or fail.

Stand-ins for the packages record the calls; the packages themselves are used where they are installed.
"""

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import mechinterp as mi
from mechinterp.cli import main
from mechinterp.tracking import Tracker, require_tracker, start_tracker

NAMES = ("wandb", "trackio", "tensorboard")


class Calls:
    """What a tracker's package was asked to do. With `fails_at`, logging this step raises."""

    def __init__(self, fails_at: int | None = None):
        self.started: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        self.fails_at = fails_at

    def init(self, **options: Any) -> "Calls":
        print("* started")  # as trackio does
        self.started = options
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        if step == self.fails_at:
            raise OSError("no space left")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    def at(self, prefix: str) -> dict[int, dict[str, float]]:
        """The numbers with a prefix, by step."""
        return {step: values for step, values in self.logged if all(name.startswith(prefix) for name in values)}


class Writer:
    """torch.utils.tensorboard.SummaryWriter."""

    def __init__(self, calls: Calls, folder: str):
        self._calls = calls
        calls.init(folder=folder)

    def add_text(self, name: str, text: str) -> None:
        self._calls.started[name] = text

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._calls.log({name: value}, step)

    def close(self) -> None:
        self._calls.finish()


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a stand-in for a tracker's package in place, and returns its calls."""

    def put(name: str, fails_at: int | None = None) -> Calls:
        calls = Calls(fails_at)
        module = types.ModuleType(name)
        module.__dict__.update(init=calls.init, log=calls.log, finish=calls.finish, Settings=dict)
        monkeypatch.setitem(sys.modules, name, module)
        if name == "tensorboard":
            board = types.ModuleType("torch.utils.tensorboard")
            board.__dict__["SummaryWriter"] = lambda folder: Writer(calls, folder)
            monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
        for variable in ("WANDB_MODE", "WANDB_PROJECT"):
            monkeypatch.delenv(variable, raising=False)
        return calls

    return put


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_gets_updates_and_checkpoints_and_changes_no_bit(name, stand_in, tiny_run, tmp_path, capsys):
    calls = stand_in(name)
    run = mi.train(tiny_run.config, tmp_path / "run.h5", progress=False, track=name)
    assert run.digests() == tiny_run.digests()
    assert calls.finished == 1
    updates, checkpoints = calls.at("update/"), calls.at("checkpoint/")
    assert [*updates] == list(range(1, 21))
    assert [*checkpoints] == list(range(2, 21, 2))
    series = run.series
    by_name = {(step, key): value for step, values in calls.logged for key, value in values.items()}
    for column in ("train_loss", "train_accuracy", "gradient_norm"):
        for step in (1, 20):
            assert by_name[step, f"update/{column}"] == pytest.approx(series.loc[step, column], rel=1e-6)
    assert by_name[20, "checkpoint/train_loss"] == pytest.approx(run.metrics.loc[20, "train_loss"])
    assert capsys.readouterr().out == ""


def test_wandb_is_offline_beside_the_run_unless_the_environment_says_otherwise(
    stand_in, tiny_config, tmp_path, monkeypatch
):
    calls = stand_in("wandb")
    mi.train(tiny_config, tmp_path / "a.h5", progress=False, track="wandb")
    assert (calls.started["mode"], calls.started["project"]) == ("offline", "mechinterp")
    assert (calls.started["name"], calls.started["dir"]) == ("a", str(tmp_path))
    assert calls.started["config"]["training"]["steps"] == 20
    monkeypatch.setenv("WANDB_MODE", "online")
    start_tracker("wandb", tmp_path / "b.h5", {})
    assert calls.started["mode"] == "online"


def test_a_long_run_sends_some_of_its_updates(stand_in, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("mechinterp.training.trainer.MOST_POINTS", 4)
    calls = stand_in("trackio")
    mi.train(tiny_config, tmp_path / "a.h5", progress=False, track="trackio")
    assert [*calls.at("update/")] == [5, 10, 15, 20]


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_fails_is_given_up_and_the_run_goes_on(name, stand_in, tiny_run, tmp_path, capsys):
    calls = stand_in(name, fails_at=7)
    run = mi.train(tiny_run.config, tmp_path / "run.h5", progress=False, track=name)
    assert run.status == "complete"
    assert run.digests() == tiny_run.digests()
    assert max(step for step, _ in calls.logged) < 7
    said = capsys.readouterr().err
    assert said.count(f"{name}: OSError: no space left; the run goes on without it") == 1


def test_a_tracker_that_fails_to_finish_loses_nothing(stand_in, tiny_config, tmp_path, monkeypatch, capsys):
    calls = stand_in("trackio")

    def fail():
        raise RuntimeError("unreachable")

    monkeypatch.setattr(sys.modules["trackio"], "finish", fail)
    assert mi.train(tiny_config, tmp_path / "run.h5", progress=False, track="trackio").status == "complete"
    assert calls.logged
    assert "unreachable" in capsys.readouterr().err


def test_a_run_that_diverges_finishes_its_tracker(stand_in, tiny_config, tmp_path):
    calls = stand_in("wandb")
    with pytest.raises(mi.MechinterpError, match="lower"):
        mi.train(tiny_config.updated({"training.learning_rate": 1e9}), tmp_path / "a.h5", progress=False, track="wandb")
    assert calls.finished == 1
    assert all(math.isfinite(value) for _, values in calls.logged for value in values.values())


def test_what_cannot_be_tracked_is_refused_before_anything_is_written(stand_in, tiny_config, tmp_path, monkeypatch):
    path = tmp_path / "new" / "run.h5"
    with pytest.raises(mi.MechinterpError, match="unknown tracker 'wandbb'; did you mean 'wandb'"):
        require_tracker("wandbb")
    monkeypatch.setattr("mechinterp.tracking.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(
        mi.MechinterpError, match=r"^trackio is not installed; run: pip install 'mechinterp\[trackio\]'$"
    ):
        mi.train(tiny_config, path, track="trackio")
    calls = stand_in("wandb")
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **options: calls.nothing)  # pyright: ignore
    with pytest.raises(mi.MechinterpError, match="wandb cannot be started"):
        mi.train(tiny_config, path, track="wandb")
    assert not path.parent.exists() or not [*path.parent.iterdir()]


def test_a_run_file_that_exists_starts_no_tracker(stand_in, tiny_config, tmp_path):
    calls = stand_in("wandb")
    (tmp_path / "run.h5").write_bytes(b"")
    with pytest.raises(mi.MechinterpError, match="exists already"):
        mi.train(tiny_config, tmp_path / "run.h5", track="wandb")
    assert not calls.started


def test_numbers_of_any_name_can_be_sent_and_those_that_are_not_finite_are_left_out():
    calls = Calls()
    backend: Any = types.SimpleNamespace(log=lambda step, values: calls.log(dict(values), step), finish=calls.finish)
    tracker = Tracker("own", backend)
    tracker.log(3, {"loss": 1.5, "height": math.nan})
    tracker.log(4, {"height": math.inf})
    tracker.finish()
    assert calls.logged == [(3, {"loss": 1.5})]


def test_the_command_tracks_and_prints_json_alone(stand_in, tmp_path, monkeypatch, capsys):
    calls = stand_in("trackio")
    small = ["--task.n-classes", "8", "--task.n-labels", "4", "--task.n-pairs", "2", "--task.n-novel-classes", "8"]
    small += ["--training.steps", "2", "--training.batch-size", "4", "--checkpoints.every", "1"]
    assert main(["train", *small, "--out", str(tmp_path / "a.h5"), "--track", "trackio", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert calls.logged
    assert calls.started["name"] == "a"
    assert main(["train", *small, "--out", str(tmp_path / "b.h5"), "--track", "wandbb"]) == 2
    monkeypatch.setattr("mechinterp.tracking.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "trackio")
    assert main(["run", *small, "--out", str(tmp_path / "b.h5"), "--track", "trackio"]) == 2
    assert "pip install 'mechinterp[trackio]'" in capsys.readouterr().err
    assert not (tmp_path / "b.h5").exists()


def test_wandb_itself_writes_an_offline_run(tiny_run, tmp_path, monkeypatch):
    pytest.importorskip("wandb", exc_type=ImportError)
    for variable in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    run = mi.train(tiny_run.config, tmp_path / "run.h5", progress=False, track="wandb")
    assert run.digests() == tiny_run.digests()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert [*folder.glob("run-*.wandb")]


def test_trackio_itself_keeps_the_numbers(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    run = mi.train(tiny_run.config, tmp_path / "run.h5", progress=False, track="trackio")
    assert run.digests() == tiny_run.digests()


def test_tensorboard_itself_reads_the_numbers_back(tiny_run, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore

    run = mi.train(tiny_run.config, tmp_path / "run.h5", progress=False, track="tensorboard")
    assert run.digests() == tiny_run.digests()
    events = EventAccumulator(str(Path(tmp_path / "run.tensorboard"))).Reload()
    losses = {event.step: event.value for event in events.Scalars("update/train_loss")}
    assert losses == pytest.approx(run.series["train_loss"].to_dict())
    assert "update/gradient_norm" in events.Tags()["scalars"]
