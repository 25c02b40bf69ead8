"""Clear ends: outputs that cannot be written, terminals of few characters."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def call(*arguments: str, **options) -> subprocess.CompletedProcess:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": False} | options
    return subprocess.run([sys.executable, *arguments], **options)


def command(*words: object, **options) -> subprocess.CompletedProcess:
    code = "import sys; from mechinterp.cli import main; sys.exit(main())"
    return call("-c", code, *map(str, words), **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_an_output_that_cannot_be_written_is_one_line(tiny_run):
    for words in (["verify"], ["info"], ["info", "--json"]):
        with open("/dev/full", "w") as full:
            done = command(words[0], tiny_run.path, *words[1:], stdout=full)
        assert done.returncode == 2
        assert done.stderr == (
            "mechinterp: standard output: No space left on device; free some space, or choose another place\n"
        )


def test_a_closed_pipe_is_no_error(tiny_run):
    reading, writing = os.pipe()
    os.close(reading)
    done = command("info", tiny_run.path, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_of_few_characters_gets_what_it_can_show(tiny_run, tmp_path, encoding):
    path = shutil.copy(tiny_run.path, tmp_path / "β.h5")
    done = command("verify", path, env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert "?.h5: sound" in done.stdout
    missing = command("info", tmp_path / "γ.h5", env=os.environ | {"PYTHONIOENCODING": encoding})
    assert missing.returncode == 2
    assert missing.stderr.endswith("?.h5: does not exist; give the path of a run file\n")


def test_without_compilation_there_is_one_line(tmp_path):
    done = command("train", "--out", tmp_path / "run.h5", env=os.environ | {"NUMBA_DISABLE_JIT": "1"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mechinterp: NUMBA_DISABLE_JIT is set")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
