"""Studies that are interrupted, killed, or out of room go on where they were, with the same bits."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import pytest

import mechinterp as mi
from mechinterp.cli import main
from mechinterp.studies.cluster import cluster
from mechinterp.studies.runner import run_study
from mechinterp.studies.study import Study
from tests.studies.helpers import digests, straight, written

LONG, LONGER = 3_000, 10_000
FULL = 400_000
"""Bytes of a file on a disk that is full: enough for the short run only."""
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in the background would ignore
from mechinterp.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def long_study(tiny_config) -> Study:
    changes = {"training.steps": LONG, "checkpoints.every": LONG // 20}
    return Study.of("long", tiny_config, {"short": {}, "long": changes}, [0], ["icl_accuracy"])


@pytest.fixture(scope="module")
def expected(long_study, tmp_path_factory) -> dict[str, str]:
    """The digests of its runs when nothing happens to them."""
    return straight(long_study, tmp_path_factory.mktemp("straight"))


@pytest.fixture(scope="module")
def longer_study(tiny_config) -> Study:
    """A study that is not done before it has been killed several times."""
    changes = {"training.steps": LONGER, "checkpoints.every": LONGER // 20}
    return Study.of("long", tiny_config, {"short": {}, "long": changes}, [0], ["icl_accuracy"])


def test_a_study_that_is_interrupted_goes_on_where_it_was(long_study, expected, tmp_path):
    """By Ctrl-C, which stops its workers in an orderly way."""
    file, folder = tmp_path / "long.toml", tmp_path / "runs"
    write_toml(long_study, file)
    short, long = long_study.runs
    command = [sys.executable, "-c", COMMAND, "study", str(file), "--workers", "1", "--runs", str(folder)]
    command += ["--out", str(tmp_path / "out")]
    growing = folder / f"{long.id}.h5"
    assert stopped(command, signal.SIGINT, growing, 3) == 130
    assert not list(folder.glob("*.failed.json"))
    assert 3 <= len(mi.open_run(growing).steps) <= 20
    finished = {name: at for name, at in written(folder).items() if name.startswith(short.id)}
    assert len(finished) == 3
    assert main(command[command.index("study") :]) == 0
    assert finished.items() <= written(folder).items()
    assert digests(long_study, folder) == expected
    assert (tmp_path / "out" / "long.html").exists()


@pytest.mark.slow
def test_parsl_gives_the_same_bits_though_a_worker_and_a_node_are_killed(longer_study, tmp_path):
    """First the process that does a run, with what gave it the run; then Parsl's manager, with all of its node."""
    folder = tmp_path / "runs"
    growing, killed = folder / f"{longer_study.runs[1].id}.h5", []

    def writer() -> psutil.Process:
        return next(each for each in psutil.process_iter() if writes(each, growing))

    def kill() -> None:
        until(lambda: growing.exists() and len(mi.open_run(growing).steps) >= 3)
        worker = writer().parent()
        assert worker is not None
        worker.kill()
        killed.append([worker.pid])
        there = len(mi.open_run(growing).steps)
        until(lambda: len(mi.open_run(growing).steps) > there)
        manager = next(each for each in writer().parents() if is_manager(each))
        node = [*manager.children(recursive=True), manager]
        for each in node:
            each.kill()
        killed.append([each.pid for each in node])

    with cluster(provider="local", workers=1) as executor, ThreadPoolExecutor() as beside:
        killer = beside.submit(kill)
        table = run_study(longer_study, folder, executor=executor, progress=False)
        killer.result()
    assert [len(each) > 1 for each in killed] == [False, True]
    assert set(table["status"]) == {"done"}
    assert digests(longer_study, folder) == straight(longer_study, tmp_path)


@pytest.mark.slow
def test_a_study_that_is_killed_at_random_five_times_gives_the_same_table(longer_study, tmp_path):
    file, out = tmp_path / "long.toml", tmp_path / "out"
    write_toml(longer_study, file)
    command = [sys.executable, "-c", COMMAND, "study", str(file), "--workers", "2", "--out", str(out), "--runs"]
    assert subprocess.run([*command, str(tmp_path / "whole")], stdout=subprocess.DEVNULL).returncode == 0
    tables = [(out / name).read_bytes() for name in ("long.csv", "long-variants.csv")]
    folder, delays = tmp_path / "killed", random.Random(3)
    folder.mkdir()
    for _ in range(5):
        before = checkpoints(folder)
        process = subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda p=process, n=before: p.poll() is not None or checkpoints(folder) > n)
        time.sleep(delays.uniform(0, 0.3))
        assert process.poll() is None, "it was done before it could be killed"
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        until(partial(ended, workers))
    (out / "long.csv").unlink()
    command[command.index("study") : command.index("study") + 1] = ["study", "retry"]
    assert subprocess.run([*command, str(folder)], stdout=subprocess.DEVNULL).returncode == 0
    assert [(out / name).read_bytes() for name in ("long.csv", "long-variants.csv")] == tables
    assert digests(longer_study, folder) == digests(longer_study, tmp_path / "whole")


def test_a_full_disk_fails_the_runs_it_stops_and_they_go_on_when_there_is_room(long_study, expected, tmp_path):
    file, folder, out = tmp_path / "long.toml", tmp_path / "runs", tmp_path / "out"
    write_toml(long_study, file)
    full = f"""
import resource, sys
from mechinterp.studies.runner import run_study
from mechinterp.studies.study import Study
resource.setrlimit(resource.RLIMIT_FSIZE, ({FULL}, {FULL}))
for error in run_study(Study.from_toml({str(file)!r}), {str(folder)!r}, workers=1, progress=False)["error"]:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", full], capture_output=True, text=True, check=True)
    assert re.match(r"(None|nan)\n.*no room for 21 checkpoints .* free some space", done.stdout)
    options = ["--workers", "1", "--runs", str(folder), "--out", str(out)]
    assert main(["study", "collect", str(file), *options[2:]]) == 1
    assert pd.read_csv(out / "long.csv")["status"].tolist() == ["done", "failed"]
    assert main(["study", "status", str(file), "--runs", str(folder), "--json"]) == 0
    assert main(["study", "retry", str(file), *options]) == 0
    assert pd.read_csv(out / "long.csv")["status"].tolist() == ["done", "done"]
    assert digests(long_study, folder) == expected


def test_to_resume_what_was_never_begun_is_refused(long_study, tmp_path, capsys):
    write_toml(long_study, tmp_path / "long.toml")
    for command in ("retry", "collect"):
        assert main(["study", command, str(tmp_path / "long.toml"), "--runs", str(tmp_path / "none")]) == 2
        assert f"begin: mechinterp study {tmp_path / 'long.toml'}" in capsys.readouterr().err
        assert main(["study", command, str(tmp_path / "long.toml"), "--runs", str(tmp_path / "long.toml")]) == 2
        assert "give the folder of the runs" in capsys.readouterr().err
    assert main(["study", "status", str(tmp_path / "long.toml"), "--runs", str(tmp_path / "none")]) == 0
    assert "2 not begun" in capsys.readouterr().out


def checkpoints(folder: Path) -> int:
    """How many there are in all run files of a folder."""
    return sum(len(mi.open_run(path).steps) for path in folder.glob("*.h5"))


def write_toml(study: Study, file: Path) -> None:
    """The long study as a file."""
    short, long = study.runs
    lines = ['measures = ["icl_accuracy"]', "seeds = [0]", "[variants.short]", "[variants.long]"]
    steps = long.config.training.steps
    lines += [f"training.steps = {steps}", f"checkpoints.every = {steps // 20}", "[base]"]
    nested = short.config.model_dump(mode="json", exclude={"seed", "interventions"}, exclude_none=True)
    for section, values in nested.items():
        lines += [
            f"{section}.{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
            for key, value in values.items()
        ]
    file.write_text("\n".join(lines))
    assert [run.id for run in Study.from_toml(file).runs] == [run.id for run in study.runs]


def is_manager(process: psutil.Process) -> bool:
    """Whether it is what Parsl runs on a node."""
    try:
        return any("process_worker_pool" in part for part in process.cmdline()) and bool(process.children())
    except psutil.Error:
        return False


def stopped(command: list[str], how: int, growing: Path, enough: int) -> int:
    """The exit code of a command that is sent a signal when a run has so many checkpoints; its workers have ended."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: growing.exists() and len(mi.open_run(growing).steps) >= enough)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, how)
    code = process.wait()
    until(partial(ended, workers))
    return code


def ended(processes: list[psutil.Process]) -> bool:
    """Whether all of them have."""
    return not any(each.is_running() and each.status() != "zombie" for each in processes)


def writes(process: psutil.Process, path: Path) -> bool:
    """Whether it is the process of a run that writes this file."""
    try:
        is_worker = "mechinterp.studies.worker" in process.cmdline()
        return is_worker and str(path) in [file.path for file in process.open_files()]
    except psutil.Error:
        return False


def until(condition) -> None:
    """Wait for a condition."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it did not happen in two minutes"
        time.sleep(0.02)
