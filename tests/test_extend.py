"""The four diffs of docs/guides/extend.md, applied to a copy of the library: they touch as few files as the page says,
and what they add trains, is measured and analysed without another line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/guides/extend.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"^```diff\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
FILES = {"a measure": 1, "an analysis": 2, "a task": 3, "an architecture": 3}

SESSION = """
import torch
import mechinterp as mi

settings = {"task.kind": "first_token", "training.steps": 20, "training.batch_size": 32, "checkpoints.every": 10}
uniform = mi.train(
    mi.RunConfig().updated({**settings, "model.kind": "uniform_attention"}), "uniform.h5", progress=False
)
assert uniform.environment["engine"] == "autograd"
assert torch.allclose(torch.tensor(mi.measure(uniform)["self_attention1"].to_numpy()), torch.tensor(1 / 5).double())
steps = {**settings, "training.steps": 300, "training.learning_rate": 0.1, "checkpoints.every": 100, "model.n_heads": 2}
first = mi.train(mi.RunConfig().updated(steps), "first.h5", progress=False)
assert mi.measure(first, ["train_accuracy"])["train_accuracy"].iloc[-1] > 0.95
lens = mi.analyse(first, "logit_lens", steps=300, n_sequences=500).set_index("layer")["accuracy"]
assert lens[0] < 0.5 and lens[2] > 0.95  # before layer 1 the target knows nothing of the first token
"""


def test_an_addition_touches_as_many_files_as_the_page_says():
    for diff, (addition, count) in zip(DIFFS, FILES.items(), strict=True):
        assert len(re.findall(r"^\+\+\+ b/", diff, flags=re.MULTILINE)) == count, addition
        assert f"| {addition} | {count} |" in PAGE


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A folder with a copy of the library to which all four diffs have been applied."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "mechinterp", folder / "mechinterp", ignore=shutil.ignore_patterns("__pycache__"))
    for diff in DIFFS:
        applied = subprocess.run(
            ["git", "apply", "--unidiff-zero", "-"], cwd=folder, input=diff, text=True, capture_output=True, check=False
        )
        assert applied.returncode == 0, applied.stderr
    return folder


def test_what_is_added_is_trained_measured_and_analysed(extended):
    session = python(extended, SESSION)
    assert session.returncode == 0, session.stderr


def test_an_added_analysis_is_a_command(extended):
    command = "import sys; from mechinterp.cli import main; sys.exit(main(['logit-lens', '--help']))"
    shown = python(extended, command)
    assert shown.returncode == 0, shown.stderr
    assert "--n-sequences" in shown.stdout


def python(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program with the library of that folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
