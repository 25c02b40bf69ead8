"""What a run file survives: kills, a full disk, readers while it is written, and damage of every kind."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import mechinterp as mi
from mechinterp.errors import MechinterpError, RunFileError
from mechinterp.run import replay
from mechinterp.store import RunWriter, keep_last
from mechinterp.store.layout import digest
from mechinterp.verification import verify
from tests.helpers import with_checkpoint, with_header

N_STEPS = 600
KILLS = 30


@pytest.fixture(scope="module")
def spawn():
    """Processes that have imported everything already, forked from a clean server: a child starts in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mechinterp.training", "tests.store.survival_children"])
    return context


@pytest.fixture(scope="module")
def survivor_config(tiny_config):
    return tiny_config.updated({"training.steps": N_STEPS, "checkpoints.every": 5})


@pytest.fixture(scope="module")
def straight(survivor_config, tmp_path_factory):
    """The run that nothing happened to, on one thread like the children."""
    from tests.store.survival_children import one_thread

    with one_thread():
        return mi.train(survivor_config, tmp_path_factory.mktemp("straight") / "run.h5", progress=False)


def digests(run: mi.Run) -> dict[int, str]:
    return {step: run.digest(step) for step in run.steps}


def test_a_run_killed_at_random_moments_and_resumed_has_the_same_bits(spawn, survivor_config, straight, tmp_path):
    from tests.store.survival_children import train_or_resume

    rng, path, kills, expected = np.random.default_rng(0), tmp_path / "run.h5", 0, digests(straight)
    while kills < KILLS:
        child = spawn.Process(target=train_or_resume, args=(str(path), survivor_config.canonical_json()))
        child.start()
        seen = watch(path, child, seconds=rng.uniform(0.02, 0.45))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
        if path.exists():
            after = digests(mi.open_run(path))
            assert set(seen) <= set(after), "an acknowledged checkpoint was lost"
            assert after.items() <= expected.items()
            if max(after) == N_STEPS:
                path.unlink()  # it got through: start over
        else:
            assert not seen
    if not path.exists():
        mi.train(survivor_config.updated({"training.steps": 10}), path, progress=False)
    from mechinterp.training.runs import resume
    from tests.store.survival_children import one_thread

    with one_thread():
        run = resume(path, until=N_STEPS, progress=False)
    assert expected.items() <= digests(run).items()
    assert run.status == "complete"
    assert verify(path).sound
    assert [each.name for each in tmp_path.iterdir()] == ["run.h5"]


def watch(path, child, seconds: float) -> list[int]:
    """Read the growing file for a while; the steps that were seen to be committed."""
    seen: list[int] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and child.is_alive():
        if path.exists():
            seen = mi.open_run(path).steps
        time.sleep(0.005)
    return seen


def test_every_interval_replays_to_the_same_bits(straight):
    proof = replay(straight, [step + 1 for step in straight.steps[:-1]], lambda *kept: None)
    assert proof.exact
    assert list(proof.checked) == straight.steps[1:]


def test_a_live_reader_sees_only_committed_checkpoints(spawn, survivor_config, straight, tmp_path):
    from tests.store.survival_children import train_or_resume

    path, expected, looks = tmp_path / "live.h5", digests(straight), 0
    child = spawn.Process(target=train_or_resume, args=(str(path), survivor_config.canonical_json()))
    child.start()
    while child.is_alive():
        if path.exists():
            run = mi.open_run(path)
            steps = run.steps
            assert digest(run.weights(steps[-1])).hex() == expected[steps[-1]]
            assert len(run.metrics) >= len(steps)
            looks += 1
    child.join()
    assert child.exitcode == 0
    assert looks > 5
    assert digests(mi.open_run(path)) == expected


def test_a_second_writer_is_refused(spawn, survivor_config, tmp_path):
    from mechinterp.training.runs import resume
    from tests.store.survival_children import train_or_resume

    path = tmp_path / "run.h5"
    child = spawn.Process(target=train_or_resume, args=(str(path), survivor_config.canonical_json()))
    child.start()
    while not path.exists():
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGSTOP)
    try:
        with pytest.raises(RunFileError, match="is being written by another process"):
            resume(path, progress=False)
        with pytest.raises(RunFileError, match="is being written by another process"):
            mi.train(survivor_config, path, overwrite=True, progress=False)
    finally:
        os.kill(child.pid, signal.SIGCONT)
    child.join()
    assert mi.open_run(path).status == "complete"


def test_a_disk_that_is_too_small_is_a_clear_error_before_the_first_step(tmp_path):
    path = tmp_path / "full.h5"
    code = f"""
import resource, sys
from mechinterp.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
sys.exit(main({["train", "--config", str(tmp_path / "run.toml"), "--out", str(path)]!r}))
"""
    (tmp_path / "run.toml").write_text("[training]\nsteps = 40\nbatch_size = 4\n[checkpoints]\nevery = 5\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=os.getcwd())
    assert done.returncode == 2, done.stderr
    assert f"{path}: no room for 9 checkpoints" in done.stderr
    assert "Traceback" not in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.toml"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_resume_goes_on_after_an_end_and_refuses_to_go_back(tiny_run, tiny_config, tmp_path):
    from mechinterp.training.runs import resume

    path = shutil.copy(tiny_run.path, tmp_path / "run.h5")
    run = resume(path, until=30, progress=False)
    longer = mi.train(tiny_config.updated({"training.steps": 30}), tmp_path / "longer.h5", progress=False)
    assert digests(run) == digests(longer)
    assert run.config == longer.config
    assert run.created == tiny_run.created
    with pytest.raises(MechinterpError, match="has reached step 30 already"):
        resume(path, until=10, progress=False)


def test_a_resume_that_stops_short_of_the_end_says_so(tiny_config, tmp_path, monkeypatch):
    from mechinterp.training.engines import FusedEngine
    from mechinterp.training.runs import resume

    path, original, calls = tmp_path / "run.h5", FusedEngine.step_runs, []

    def step_runs(self, batches, interventions, steps=None):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(self, batches, interventions, steps)

    with monkeypatch.context() as patched:
        patched.setattr(FusedEngine, "step_runs", step_runs)
        with pytest.raises(KeyboardInterrupt):
            mi.train(tiny_config, path, progress=False)
    run = resume(path, until=10, progress=False)
    assert (run.status, run.steps[-1], run.config) == ("interrupted", 10, tiny_config)
    assert resume(path, progress=False).status == "complete"


def test_rebuilt_steps_are_the_trained_ones(tiny_run, tiny_config, tmp_path):
    path = shutil.copy(tiny_run.path, tmp_path / "run.h5")
    every = mi.train(tiny_config.updated({"checkpoints.every": 1}), tmp_path / "every.h5", progress=False)
    run = mi.open_run(path)
    rebuilt = dict(run.model(7).named_parameters())
    assert all((rebuilt[name] == value).all() for name, value in every.weights(7).items())
    assert run.densify(start=3, stop=9, every=2).exact
    assert run.densify(start=0, stop=20, every=3).exact
    assert run.steps == sorted({*range(0, 21, 2), 3, 5, 7, 9, 15})
    again = mi.open_run(path)
    assert digests(again).items() <= digests(every).items()
    assert list(mi.measure(again, ["icl_loss"], n_sequences=10).index) == run.steps
    assert verify(path).checkpoints == len(run.steps)
    mi.train(tiny_config, path, overwrite=True, progress=False)
    assert not run.dense_path.exists(), "rebuilt steps of a run that is replaced must go"


def test_densify_around_a_transition(tiny_run, tmp_path):
    run = mi.open_run(shutil.copy(tiny_run.path, tmp_path / "run.h5"))
    import pandas as pd

    found = mi.locate_emergence(pd.Series([0.0] * 4 + [0.1, 0.5, 0.9] + [1.0] * 4, index=run.steps))
    run.densify(around=found, every=1)
    assert {9, 11} <= set(run.steps)
    assert 1 not in run.steps
    flat = mi.locate_emergence(pd.Series([0.0] * 11, index=range(0, 22, 2)))
    with pytest.raises(MechinterpError, match="no transition to densify around"):
        run.densify(around=flat)


def test_steps_that_nothing_could_prove_are_refused(tiny_run):
    with pytest.raises(MechinterpError, match=r"step 21 is beyond the saved ones \(last: 20\); resume"):
        tiny_run.model(21)
    with pytest.raises(MechinterpError, match="use a stretch within 0 to 20"):
        tiny_run.densify(start=10, stop=40)


def test_another_environment_is_reported_as_approximate(tiny_run, tmp_path):
    path = shutil.copy(tiny_run.path, tmp_path / "run.h5")
    with_header(path, {"environments": {"0": {**tiny_run.environment, "torch": "1.0"}}})

    def deviate(weights, metrics, series):
        weights["classifier.readout.W"] += 1e-6

    with_checkpoint(path, 10, deviate)
    run = mi.open_run(path)
    from mechinterp.run import replay

    proof = replay(run, [9], lambda step, weights, metrics: None)
    assert not proof.exact
    assert 0 < proof.deviation < 1e-5
    assert 0 < proof.relative_deviation < 1e-2
    assert "torch was 1.0" in str(proof)
    with pytest.warns(UserWarning, match="approximate"):
        run.model(9)


def test_verify_refuses_what_no_environment_explains(tiny_run, tmp_path, monkeypatch):
    """Other weights, other metrics, checkpoints that were removed, and steps beyond the config; all seals fit."""

    def fault(run_file):
        verdict = verify(run_file, interval=8)
        assert not verdict.sound
        return str(verdict.fault)

    elsewhere = {"environments": {"0": {**tiny_run.environment, "torch": "1.0"}}}
    path = shutil.copy(tiny_run.path, tmp_path / "header.h5")
    with_header(path, elsewhere)
    assert "attributes of its HDF5 are not those of its header" in fault(path)

    def rewritten(name, config=tiny_run.config, **changes):
        values = {"config": json.loads(config.canonical_json()), "series_rows": 0, **changes}
        contents = tiny_run.file.header.contents.model_copy(update={"series": {}})
        writer = RunWriter(tmp_path / name, tiny_run.file.header.model_copy(update=values | {"contents": contents}))
        with writer:
            for step in tiny_run.steps:
                writer.append(step, tiny_run.weights(step), tiny_run.file.metrics_at(step))
        return tmp_path / name

    far = rewritten("far.h5", **elsewhere)
    assert verify(far, interval=8).sound
    with_checkpoint(far, 10, lambda weights, metrics, series: weights["classifier.readout.W"].add_(0.1))
    assert "replay from step 8 is approximate: weights deviate by up to 0.1" in fault(far)
    metric = rewritten("metric.h5")
    with_checkpoint(metric, 10, lambda weights, metrics, series: metrics.update(train_loss=1.0))
    assert "the metrics or the series of step 10 are not those of the replay" in fault(metric)
    monkeypatch.setattr("mechinterp.verification.MOST_STEPS", 1)
    left_out = verify(tiny_run.path)
    assert (left_out.sound, left_out.replay[:12]) == (True, "was left out")
    path = shutil.copy(tiny_run.path, tmp_path / "series.h5")
    with_checkpoint(path, 10, lambda weights, metrics, series: series["gradient_norm"].__imul__(1.01))
    assert "the metrics or the series of step 10 are not those of the replay" in fault(path)
    assert verify(path, interval=4).sound
    fewer = rewritten("fewer.h5", tiny_run.config.updated({"checkpoints.every": 1}))
    assert "lacks step 1, which its config saves" in fault(fewer)
    beyond = rewritten("beyond.h5", tiny_run.config.updated({"training.steps": 16}))
    assert "holds step 20, beyond the last one of its config (16)" in fault(beyond)
    early = rewritten("early.h5", tiny_run.config.updated({"training.steps": 30}))
    assert "is complete at step 20, before the last one of its config (30)" in fault(early)


def test_nobody_goes_on_with_a_run_that_a_resume_is_about_to_write(tiny_config, tmp_path, monkeypatch):
    """The file is locked from before it is looked at until the end."""
    from mechinterp.errors import BusyError
    from mechinterp.training import runs
    from mechinterp.training.runs import resume

    path, build = tmp_path / "run.h5", runs.build_engine
    mi.train(tiny_config.updated({"training.steps": 10}), path, progress=False)

    def overtaken(*arguments, **named):
        for other in (lambda: resume(path, until=30), lambda: keep_last(path)):
            with pytest.raises(BusyError, match="is being written by another process"):
                other()
        return build(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(runs, "build_engine", overtaken)
        run = resume(path, until=20, progress=False)
    assert (run.status, run.steps[-1]) == ("complete", 20)
    assert resume(path, until=30, progress=False).steps[-1] == 30


def test_verify_names_the_first_fault(tiny_run, tmp_path, capsys):
    from mechinterp.cli import main

    path = shutil.copy(tiny_run.path, tmp_path / "run.h5")
    assert main(["verify", str(path)]) == 0
    at = mi.open_run(path).file.header.contents.weights["blocks.1.attn.W_K"]
    with path.open("r+b") as file:
        file.seek(at.offset + 7 * at.row_bytes)
        file.write(b"!")
    assert main(["verify", str(path)]) == 1
    assert "the weights of step 14 do not match their digest" in capsys.readouterr().out


DAMAGE = 150


def test_fuzzed_files_are_refused_in_one_line_or_read_correctly(tiny_run, tmp_path):
    """Flipped bits and truncation anywhere: never a crash, never other weights than were written."""
    from tests.store.survival_children import read_all

    good = tiny_run.path.read_bytes()
    expected = digests(tiny_run)
    rng = np.random.default_rng(0)
    cases = [("cut", at) for at in range(0, len(good), 4096)]
    cases += [("flip", int(at)) for at in rng.integers(len(good), size=DAMAGE)]
    cases += [("flip", int(at)) for at in rng.integers(min(len(good), 20_000), size=DAMAGE)]
    path, refused = tmp_path / "bad.h5", 0
    for kind, at in cases:
        damaged = bytearray(good[:at] if kind == "cut" else good)
        if kind == "flip":
            damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        found = verify(path, interval=0) if kind == "cut" else read_all(path)
        if isinstance(found, dict):
            assert found.items() <= expected.items(), (kind, at)
        else:
            refused += 1
            assert "\n" not in str(found), (kind, at)
    assert refused > len(cases) / 3


def test_a_damaged_file_of_a_killed_writer_is_no_trap(spawn, survivor_config, tmp_path):
    """Whatever is damaged in it, it is read or refused."""
    from tests.store.survival_children import read_damaged, train_or_resume

    path = tmp_path / "run.h5"
    endless = survivor_config.updated({"training.steps": 2_000})
    writer = spawn.Process(target=train_or_resume, args=(str(path), endless.canonical_json()))
    writer.start()
    while not path.exists() or len(mi.open_run(path).steps) < 40:
        time.sleep(0.005)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    reader = spawn.Process(target=read_damaged, args=(str(path), 0, 40))
    reader.start()
    reader.join(300)
    stuck = reader.is_alive()
    reader.kill()
    assert not stuck
    assert reader.exitcode == 0
