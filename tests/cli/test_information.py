"""What the command line says of runs and folders: in words, without computing."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import mechinterp as mi
from mechinterp.cli import main
from mechinterp.files import FileLock
from mechinterp.store import RunWriter, Trajectory
from tests.test_cli import call


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_run) -> Path:
    """A folder with a run of its own, which is the working directory."""
    shutil.copy(tiny_run.path, tmp_path / "tiny.h5")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_empty_folder_is_told_the_first_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys)
    assert code == 0
    assert "  mechinterp run\n" in out
    assert json.loads(call(capsys, "start", "--json")[1]) == {"runs": []}
    assert "no run file is in" in call(capsys, "runs")[1]


def test_a_folder_with_runs_is_told_what_to_do_with_the_newest(capsys, folder):
    (folder / "checkpoints").mkdir()
    shutil.copy("tiny.h5", "checkpoints/other.h5")
    (folder / "no.h5").write_text("no run")
    shutil.copy("tiny.h5", "tiny.dense.h5")  # a side file is no run
    code, out, _ = call(capsys)
    rows = out.splitlines()
    assert code == 0
    assert rows[0].split() == ["run", "last", "step", "stands", "transition", "trained"]
    assert [row.split()[:3] for row in rows[1:3]] == [
        ["tiny.h5", "20", "complete"],
        ["checkpoints/other.h5", "20", "complete"],
    ]
    assert "next:\n  mechinterp emergence checkpoints/other.h5\n" in out
    assert [run["run"] for run in json.loads(call(capsys, "runs", "checkpoints", "--json")[1])["runs"]] == [
        "checkpoints/other.h5"
    ]


def test_info_is_a_summary_in_words(capsys, folder):
    code, out, _ = call(capsys, "info", "tiny.h5")
    assert code == 0
    assert len(out.splitlines()) <= 12
    assert "{" not in out
    assert Trajectory(folder / "tiny.h5").digest(20) not in out
    assert "status:         complete; 11 checkpoints, from step 0 to 20" in out
    assert "trained:        reddy2023" in out
    assert "and 9 more; seed 0" in out
    assert "transition:     not located yet: mechinterp emergence tiny.h5" in out
    assert Trajectory(folder / "tiny.h5").digest(20) in call(capsys, "info", "tiny.h5", "--digests")[1]
    assert '"n_pairs": 3' in call(capsys, "info", "tiny.h5", "--config")[1]
    facts = json.loads(call(capsys, "info", "tiny.h5", "--json")[1])
    assert (len(facts["digests"]), facts["standing"], facts["config"]["task"]["n_pairs"]) == (11, "complete", 3)


def test_a_transition_that_was_located_is_told_from_then_on(capsys, folder):
    found = call(capsys, "emergence", "tiny.h5", "--n-sequences", 20)[1].strip()
    out = call(capsys, "info", "tiny.h5")[1]
    assert f"transition:     {found.split('; ')[0]}" in out
    assert call(capsys, "runs")[1].splitlines()[1].split()[3] == "none"
    mi.resume("tiny.h5", until=22, progress=False)  # other last weights: the finding is of the past
    assert "not located yet" in call(capsys, "info", "tiny.h5")[1]


def test_a_growing_run_is_told_from_a_killed_one(capsys, folder, tiny_config):
    with pytest.raises(KeyboardInterrupt):
        _train_until_interrupted(tiny_config)
    assert "interrupted; go on by: mechinterp resume cut.h5" in call(capsys, "info", "cut.h5")[1]
    assert call(capsys)[1].count("mechinterp resume cut.h5") == 1
    content = bytearray((folder / "cut.h5").read_bytes())
    end = Trajectory(folder / "cut.h5").file.header.end
    content[end : end + 1024] = bytes(1024)  # as a killed writer leaves it: without an end
    (folder / "killed.h5").write_bytes(content)
    assert "its writer was killed; go on by: mechinterp resume killed.h5" in call(capsys, "info", "killed.h5")[1]
    with FileLock(folder / "killed.h5"):
        assert "growing: it is being written now" in call(capsys, "info", "killed.h5")[1]
        code, _, err = call(capsys, "resume", "killed.h5")
    assert (code, "is being written by another process" in err, "killed;" in err) == (2, True, False)


def _train_until_interrupted(config: mi.RunConfig) -> None:
    """Train to step 10, and press Ctrl-C."""
    with pytest.MonkeyPatch.context() as patched:
        real = RunWriter.append

        def append(writer: RunWriter, step: int, *arguments: Any, **options: Any) -> Any:
            if step >= 10:
                raise KeyboardInterrupt
            return real(writer, step, *arguments, **options)

        patched.setattr(RunWriter, "append", append)
        mi.train(config, "cut.h5", progress=False)


def test_two_runs_and_two_steps_are_compared(capsys, folder, tiny_config):
    mi.train(tiny_config.updated({"training.steps": 10, "seed": 1}), "other.h5", progress=False)
    code, out, _ = call(capsys, "compare", "tiny.h5", "other.h5", "--n-sequences", 20)
    assert code == 0
    assert "settings that differ:\n  seed: 0 | 1\n  training.steps: 20 | 10\n" in out
    result = json.loads(call(capsys, "compare", "tiny.h5", "--steps", 0, 20, "--n-sequences", 20, "--json")[1])
    assert (result["first"], result["second"], result["settings"]) == ("tiny, step 0", "tiny, step 20", {})
    row = result["measures"]["icl_loss"]
    assert row["difference"] == pytest.approx(row["second"] - row["first"])
    table = mi.measure(mi.open_run("tiny.h5"), ["icl_loss"], steps=[0, 20], n_sequences=20)["icl_loss"]
    assert [row["first"], row["second"]] == pytest.approx(table.tolist(), rel=1e-5)
    assert "name two runs, or one and two steps" in call(capsys, "compare", "tiny.h5")[2]


def test_help_and_version(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for name in ("  study status ", "  config show ", "  order-parameters ", "  runs ", "  completion "):
        assert name in out
    assert call(capsys, "--version")[1].startswith("mechinterp ")
    code, out, _ = call(capsys, "patch", "--help")
    assert "{swap_label,replace_target" in out
    assert "--quiet" in out
    code, out, _ = call(capsys, "train", "--help")
    assert "--out PATH" in out
    assert "paired_items" in out
    for unwanted in ("{None}", "default: None", "(default: )"):
        assert unwanted not in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script(capsys, shell):
    code, out, _ = call(capsys, "completion", shell)
    assert code == 0
    assert "study-status" in out
    assert "--n-sequences" in out
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=out, text=True, capture_output=True, check=False).returncode == 0


def test_quiet_shows_no_progress_and_the_next_command_does_again(capsys, folder, monkeypatch):
    monkeypatch.setattr("mechinterp.progress.SECONDS", 0.0)
    assert "checkpoint" in call(capsys, "measure", "tiny.h5", "--n-sequences", 5)[2]
    assert call(capsys, "measure", "tiny.h5", "--quiet", "--n-sequences", 7)[2] == ""
    assert "checkpoint" in call(capsys, "measure", "tiny.h5", "--n-sequences", 6)[2]


def test_threads_are_an_option(capsys, folder, monkeypatch):
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the option sets it, and later tests start processes
    before = torch.get_num_threads()
    try:
        assert main(["info", "tiny.h5", "--threads", "3"]) == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert "--threads is 'many'; expected a number" in call(capsys, "info", "tiny.h5", "--threads", "many")[2]
