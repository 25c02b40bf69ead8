"""Checkpoints of a loop of one's own: what is stored, when, and how a loop that was killed goes on."""

import multiprocessing
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mechinterp as mi
from mechinterp.errors import BusyError, DivergedError, MechinterpError, RunFileError, UnrecognisedNetwork
from mechinterp.run import RecordedRun
from tests.exchange.loops import STEPS, Gated, made, train, update


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> RecordedRun:
    """A finished run of the loop. Tests only read it."""
    return train(tmp_path_factory.mktemp("recorded") / "own.h5")


def test_every_scheduled_step_and_the_last_are_there_as_they_were(recorded):
    model, optimizer = made()
    states, losses = {}, {}
    for step in range(STEPS):
        losses[step] = update(model, optimizer, step)
        states[step] = {name: value.clone() for name, value in model.state_dict().items()}
    assert recorded.steps == [0, 10, 20, 30, 40, 50, 59]
    assert recorded.status == "complete"
    for step in recorded.steps:
        assert all(torch.equal(recorded.weights(step)[name], states[step][name]) for name in recorded.weights(step))
    assert {*states[0]} - {*recorded.weights(0)} == {"forbidden"} == {*recorded.origin.left_out}
    assert recorded.metrics["loss"].tolist() == [losses[step] for step in recorded.steps]


def test_the_module_comes_back_with_its_weights_in_evaluation_mode(recorded):
    model, optimizer = made()
    for step in range(21):
        update(model, optimizer, step)
    opened, tokens = recorded.model(20), torch.arange(7)
    assert isinstance(opened, Gated)
    assert not opened.training
    assert torch.equal(opened(tokens), model.eval()(tokens))
    with pytest.raises(MechinterpError, match=r"embed.weight is not in the module"):
        mi.open_run(recorded.path, build=lambda: nn.Linear(3, 3)).model(0)
    wrong: Any = lambda: 3  # noqa: E731
    with pytest.raises(MechinterpError, match=r"build returns a int"):
        mi.open_run(recorded.path, build=wrong).model(0)


def test_schedules():
    schedule = mi.Schedule(every=100, per_decade=3, at=(7,))
    saved = [step for step in range(1001) if schedule.saves(step)]
    assert saved == sorted({0, 1, 2, 5, 7, 10, 22, 46, 215, 464, *range(0, 1001, 100)})
    config = mi.RunConfig().checkpoints.model_copy(update={"every": 100, "per_decade": 3, "at": (7,)})
    assert saved == config.schedule(1000)
    assert [step for step in range(50) if mi.Schedule(every=None, at=(3, 4)).saves(step)] == [0, 3, 4]
    wrong: Any
    for wrong in ({"every": 0}, {"per_decade": -1}, {"at": (-1,)}, {"every": None}):
        with pytest.raises(MechinterpError, match="Schedule"):
            mi.Schedule(**wrong)


def test_a_loop_that_was_killed_goes_on_to_the_same_bits(tmp_path, recorded):
    child = multiprocessing.get_context("spawn").Process(
        target=train, args=(tmp_path / "own.h5",), kwargs={"pause": 0.02, "every": 5}
    )
    child.start()
    while not (tmp_path / "own.h5").exists() or mi.open_run(tmp_path / "own.h5").steps[-1] < 20:
        assert child.is_alive()
        time.sleep(0.01)
    with pytest.raises(BusyError):
        train(tmp_path / "own.h5", resume=True)
    child.kill()
    child.join()
    stopped = mi.open_run(tmp_path / "own.h5")
    assert stopped.status == "running"
    assert stopped.steps[-1] < STEPS - 1
    run = train(tmp_path / "own.h5", resume=True)
    assert run.steps[-1] == STEPS - 1
    assert run.digest(STEPS - 1) == recorded.digest(STEPS - 1)
    assert [run.digest(step) for step in (0, 10)] == [recorded.digest(step) for step in (0, 10)]


@pytest.mark.parametrize(
    "optimizer_of",
    [
        lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        lambda model: torch.optim.SGD(model.parameters(), 0.1),
        lambda model: torch.optim.RMSprop(model.parameters(), 1e-3),
        lambda model: torch.optim.NAdam(model.parameters(), 1e-3),
        lambda model: torch.optim.Adagrad(model.parameters(), 1e-2),
        lambda model: torch.optim.AdamW(
            [{"params": [model.embed.weight], "lr": 1e-2}, {"params": [*model.out.parameters()]}], 1e-3
        ),
    ],
)
def test_the_state_of_the_optimizer_comes_back(optimizer_of, tmp_path):
    """Also that of parameters without a gradient, from before the first update, and with a changed learning rate."""
    model, _ = made()
    optimizer = optimizer_of(model)
    path = tmp_path / "own.h5"
    with mi.record(path, model, optimizer=optimizer, schedule=mi.Schedule(every=1)) as recorder:
        recorder(0)
        for step in range(1, 4):
            update(model, optimizer, step)
            optimizer.param_groups[0]["lr"] *= 0.5
            recorder(step)
    other, _ = made()
    restored = optimizer_of(other)
    with mi.record(path, other, optimizer=restored, resume=True) as recorder:
        assert recorder.last_step == 3
        mine, theirs = optimizer.state_dict(), restored.state_dict()
        assert mine["param_groups"] == theirs["param_groups"]
        assert mine["state"].keys() == theirs["state"].keys()
        for number, entries in mine["state"].items():
            for key, value in entries.items():
                if value is not None:
                    assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs["state"][number][key])), key
        for step in range(4, 6):
            assert update(model, optimizer, step) == update(other, restored, step)


def test_the_state_before_the_first_update_is_none(tmp_path):
    model, optimizer = made()
    path = tmp_path / "own.h5"
    with mi.record(path, model, optimizer=optimizer, schedule=mi.Schedule(at=(0, 5), every=None)) as recorder:
        recorder(0)
        update(model, optimizer, 0)
        recorder(5)
    file = mi.open_run(path).file
    assert file.optimizer_state(0)["present"].sum() == 0
    assert file.optimizer_state(5)["present"].sum() == 6
    assert mi.verify(path).sound


def test_a_number_that_comes_later_is_kept(tmp_path):
    model, _ = made()
    with mi.record(tmp_path / "own.h5", model, schedule=mi.Schedule(every=1)) as recorder:
        recorder(0, loss=torch.tensor(2.0, requires_grad=True))
        recorder(1, loss=1.0, accuracy=0.5)
        recorder(2, accuracy=np.float32(0.75))
    run = mi.open_run(tmp_path / "own.h5")
    np.testing.assert_array_equal(run.metrics["loss"], [2.0, 1.0, np.nan])
    np.testing.assert_array_equal(run.metrics["accuracy"], [np.nan, 0.5, 0.75])
    assert mi.verify(run.path).sound


def test_what_a_call_is_refused_for(tmp_path):
    model, optimizer = made()
    recorder = mi.record(tmp_path / "own.h5", model, optimizer=optimizer)
    recorder(0, loss=1.0)
    with pytest.raises(MechinterpError, match="step 0 does not follow step 0"):
        recorder(0)
    with pytest.raises(MechinterpError, match="the metric loss is 'high'; expected one number"):
        recorder(100, loss="high")
    model.out.weight.data[0, 0] = torch.nan
    with pytest.raises(DivergedError, match=r"out.weight is not finite at step 200"):
        recorder(200)
    recorder.close(DivergedError(""))
    with pytest.raises(MechinterpError, match="its recorder is closed"):
        recorder(300)
    run = mi.open_run(tmp_path / "own.h5")
    assert (run.steps, run.status) == ([0], "diverged")
    with pytest.raises(RunFileError, match="exists already; go on with it"):
        mi.record(tmp_path / "own.h5", model)
    with pytest.raises(MechinterpError, match="exclude each other"):
        mi.record(tmp_path / "own.h5", model, resume=True, overwrite=True)
    with pytest.raises(UnrecognisedNetwork, match="no network that is known"):
        mi.record(tmp_path / "other.h5", made()[0], network={"n_layers": 1})(0)


def test_an_interrupted_loop_says_so_and_does_not_save_half_an_update(tmp_path):
    model, optimizer = made()

    def interrupted():
        with mi.record(tmp_path / "own.h5", model, optimizer=optimizer) as recorder:
            recorder(0)
            recorder(7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    run = mi.open_run(tmp_path / "own.h5")
    assert (run.steps, run.status) == ([0], "interrupted")


def test_other_types_of_numbers(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3, dtype=torch.bfloat16), nn.Linear(3, 3, dtype=torch.float64))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with mi.record(tmp_path / "own.h5", model) as recorder:
        recorder(0)
    run = mi.open_run(
        tmp_path / "own.h5",
        build=lambda: nn.Sequential(nn.Linear(3, 3, dtype=torch.bfloat16), nn.Linear(3, 3, dtype=torch.float64)),
    )
    assert all(torch.equal(value, before[name]) for name, value in run.model(0).state_dict().items())
    with pytest.raises(MechinterpError, match="complex64, which a run file does not store"):
        mi.record(tmp_path / "z.h5", nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.complex64))]))(0)


def test_a_recorded_run_is_never_taken_for_one_of_ours(recorded, tiny_run, tmp_path):
    from mechinterp.training.runs import resume

    before = recorded.path.read_bytes()
    for act in (
        lambda: resume(recorded.path),
        lambda: mi.replay(recorded, [5], lambda *_: None),
        lambda: recorded.densify(),
        lambda: recorded.config,
    ):
        with pytest.raises(RunFileError, match="was trained elsewhere"):
            act()
    assert recorded.path.read_bytes() == before
    with pytest.raises(MechinterpError, match="step 5 is not saved"):
        recorded.weights(5)
    check = mi.verify(recorded.path)
    assert check.sound
    assert check.replay == "was left out: recorded elsewhere: no replay"
    assert check.checkpoints == 7
    with pytest.raises(RunFileError, match="was trained by this package"):
        mi.record(tiny_run.path, made()[0], resume=True)
    with pytest.raises(MechinterpError, match="needs no build"):
        mi.open_run(tiny_run.path, build=Gated)


def test_what_does_not_apply_is_said_in_one_line(recorded):
    assert not recorded.can_be_analysed
    for act in (
        lambda: recorded.network(0),
        lambda: mi.analyse(recorded, "patch"),
        lambda: mi.open_run(recorded.path).model(0),
    ):
        with pytest.raises(UnrecognisedNetwork, match="network is none that circuit analyses know: parameters named"):
            act()
    with pytest.raises(UnrecognisedNetwork, match=r"of others, give mi.open_run a build that makes the module$"):
        mi.open_run(recorded.path).model(0)
    with pytest.raises(RunFileError, match=r"has no task; give one: mi.open_run\(path, task=your_task\)"):
        _ = recorded.task
    with pytest.raises(MechinterpError, match=r"unknown measure 'icl_accuracy'.*measures of sequences do not apply"):
        mi.measure(recorded, ["icl_accuracy"])


def test_a_damaged_recorded_file_is_refused(recorded, tmp_path):
    content = bytearray(recorded.path.read_bytes())
    array = recorded.file.header.contents.weights["out.weight"]
    content[array.offset + 2 * array.row_bytes] ^= 1
    path = tmp_path / "damaged.h5"
    path.write_bytes(content)
    assert "do not match their digest" in str(mi.verify(path))


def test_a_tracker_gets_the_numbers_of_every_checkpoint(tmp_path, monkeypatch, recorded):
    import sys
    from types import SimpleNamespace

    logged = list[Any]()
    stand_in = SimpleNamespace(
        init=lambda **options: logged.append(options["name"]),
        log=lambda values, step: logged.append((step, values)),
        finish=lambda: logged.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    model, optimizer = made()
    with mi.record(tmp_path / "own.h5", model, optimizer=optimizer, track="trackio") as recorder:
        for step in range(11):
            recorder(step, loss=update(model, optimizer, step))
    losses = recorded.metrics["loss"]
    assert logged == ["own", (0, {"loss": losses[0]}), (10, {"loss": losses[10]}), "finished"]
    assert mi.open_run(tmp_path / "own.h5").digest(10) == recorded.digest(10)


def test_names_of_numbers_have_slashes_and_bad_ones_harm_nothing(tmp_path):
    model, _ = made()
    with mi.record(tmp_path / "own.h5", model, schedule=mi.Schedule(every=1)) as recorder:
        recorder(0, **{"train/loss": 2.0})
        recorder(1, **{"val/loss": 1.0})
        for name in ("", "x" * 81, "a\nb"):
            with pytest.raises(MechinterpError, match=r"own.h5: metrics.2: .*; choose another name"):
                recorder(recorder.last_step + 1, **{name: 1.0})
        with pytest.raises(MechinterpError, match="the metric loss is"):
            recorder(recorder.last_step + 1, loss=10**400)
        recorder(10)
    run = mi.open_run(tmp_path / "own.h5")
    assert run.steps == [0, 1, 10]
    assert list(run.metrics) == ["train/loss", "val/loss"]
    assert mi.verify(run.path).sound


def test_a_state_of_the_optimizer_that_was_not_recorded_is_not_made_up(tmp_path):
    path, (model, optimizer) = tmp_path / "own.h5", made()
    with mi.record(path, model, optimizer=optimizer, schedule=mi.Schedule(every=1)) as recorder:
        update(model, optimizer, 0)
        recorder(0)
    with mi.record(path, model, resume=True, schedule=mi.Schedule(every=1)) as recorder:
        recorder(1)
    with pytest.raises(MechinterpError, match="no state is stored of AdamW"):
        mi.record(path, model, optimizer=optimizer, resume=True)
    assert optimizer.param_groups[0]["lr"] == 1e-2


def test_another_optimizer_or_network_is_refused_and_left_as_it_is(tmp_path, recorded):
    import shutil

    path = shutil.copy(recorded.path, tmp_path / "own.h5")
    model, _ = made()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for optimizer, match in (
        (torch.optim.SGD(model.parameters(), 0.5), "the stored state is that of AdamW, the given optimizer SGD"),
        (torch.optim.AdamW([model.mask], 0.5), "the stored optimizer has 6 parameters, the given one 1"),
    ):
        with pytest.raises(MechinterpError, match=match):
            mi.record(path, model, optimizer=optimizer, resume=True)
        assert optimizer.param_groups[0]["lr"] == 0.5
    with pytest.raises(RunFileError, match=r"embed.weight is .*<f4, in the module .*<f8; resume the network"):
        mi.record(path, made()[0].double(), resume=True)
    with pytest.raises(RunFileError, match=r"0.bias is not in the file"):
        mi.record(path, nn.Sequential(nn.Linear(2, 2)), resume=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_settings_of_the_optimizer_that_are_whole_numbers_come_back_as_they_were(tmp_path):
    model, _ = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=1, weight_decay=0)
    with mi.record(tmp_path / "own.h5", model, optimizer=optimizer) as recorder:
        optimizer.param_groups[0]["lr"] = 0.5
        recorder(0)
    again = torch.optim.SGD(model.parameters(), lr=1, weight_decay=0)
    with mi.record(tmp_path / "own.h5", model, optimizer=again, resume=True):
        assert again.param_groups[0]["lr"] == 0.5


class Scaled(nn.Module):
    """A module with a child of the name under which DistributedDataParallel keeps its own."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.scale = nn.Linear(2, 2), nn.Parameter(torch.ones(1))


def test_a_child_called_module_hides_no_parameter_and_wrappers_of_torch_are_taken_off(tmp_path):
    model = Scaled()
    model.scale.data.fill_(7)
    with mi.record(tmp_path / "own.h5", model) as recorder:
        recorder(0)
    assert mi.open_run(tmp_path / "own.h5", build=Scaled).model(0).scale.item() == 7
    with mi.record(tmp_path / "wrapped.h5", nn.DataParallel(nn.Linear(2, 2))) as recorder:
        recorder(0)
    assert {*mi.open_run(tmp_path / "wrapped.h5").weights(0)} == {"weight", "bias"}


def test_a_constant_that_changes_is_named(tmp_path):
    model = nn.Linear(3, 3)
    model.register_buffer("kept", torch.ones(3, 3, dtype=torch.bool))
    with mi.record(tmp_path / "own.h5", model, schedule=mi.Schedule(every=1)) as recorder:
        recorder(0)
        recorder(1)
        model.kept[0, 0] = False  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
        with pytest.raises(
            MechinterpError, match="step 2: kept was left out as a constant of the module, and has changed"
        ):
            recorder(2)
        model.kept[0, 0] = True  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]


def test_a_build_that_makes_no_new_module_is_refused(recorded):
    model = Gated()
    run = mi.open_run(recorded.path, build=lambda: model)
    with pytest.raises(MechinterpError, match="build returns the same module again"):
        mi.measure(run, {"drift": mi.weight_drift})


def test_room_is_made_for_few_large_checkpoints(tmp_path):
    model = nn.Linear(4096, 1024)
    with mi.record(tmp_path / "own.h5", model, schedule=mi.Schedule(every=1)) as recorder:
        recorder(0)
        assert mi.open_run(tmp_path / "own.h5").file.header.capacity == (256 << 20) // (4 * (4096 * 1024 + 1024))


def test_a_forked_process_ends_no_run(tmp_path):
    model, _ = made()

    def child() -> None:
        recorder.close()

    with mi.record(tmp_path / "own.h5", model, schedule=mi.Schedule(every=1)) as recorder:
        recorder(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the process has threads
            forked = multiprocessing.get_context("fork").Process(target=child)
            forked.start()
        forked.join()
        assert mi.open_run(tmp_path / "own.h5").status == "running"
        recorder(1)
    assert (mi.open_run(tmp_path / "own.h5").steps, mi.open_run(tmp_path / "own.h5").status) == ([0, 1], "complete")
