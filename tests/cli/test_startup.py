"""What commands import: TransformerLens none, and those that read files nothing that computes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mechinterp.cli.commands import COMMANDS, analyses
from tests.test_cli import TRAIN, call

COMPUTING = {"torch", "pandas", "scipy", "numba", "h5py", "plotly", "networkx", "transformer_lens"}
CALLS = """
import contextlib, io, shlex, sys
from mechinterp.cli import main
for line in sys.argv[2:]:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(shlex.split(line))
        except SystemExit as stop:
            code = stop.code
    loaded = sorted(set(sys.argv[1].split(",")) & set(sys.modules))
    print(line, "|", code or 0, "|", *loaded, flush=True)
"""
SMALL = {
    "run": f"--out new.h5 {' '.join(TRAIN)} --training.steps 2 --checkpoints.every 1",
    "train": f"--out other.h5 {' '.join(TRAIN)} --training.steps 6",
    "resume": "other.h5 --until 8",
    "replay": "other.h5 --from 0 --to 2 --every 1",
    "verify": "other.h5",
    "info": "tiny.h5",
    "compare": "tiny.h5 --steps first last --n-sequences 5",
    "config show": "reddy2023",
    "config check": "study.toml",
    "measure": "tiny.h5 --n-sequences 5",
    "emergence": "tiny.h5 --n-sequences 5",
    "circuit": "tiny.h5 --n-pairs 4",
    "transplant": "tiny.h5 --matrix --steps first last --n-sequences 5",
    "interpolate": "tiny.h5 --points 3 --n-sequences 5",
    "sufficiency": "tiny.h5 --n-pairs 4",
    "geometry": "tiny.h5",
    "report": "new.h5",
    "export": "tiny.h5 --steps last --out step_20.safetensors",
    "import": "step_20.safetensors --out imported.h5",
    "study": "study.toml --runs .",
    "study status": "study.toml --runs .",
    "study retry": "study.toml --runs .",
    "study collect": "study.toml --runs .",
    "audit": f"--dry-run {' '.join(TRAIN)} --training.steps 6",
    "completion": "bash",
}
"""Arguments with which a command is quick."""


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_run) -> Path:
    """The working directory, with a run and a study's file."""
    shutil.copy(tiny_run.path, tmp_path / "tiny.h5")
    (tmp_path / "study.toml").write_text("seeds = [0]\nmeasures = ['icl_loss']\ntraining.steps = 1\n[variants.free]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(modules: set[str], lines: list[str]) -> dict[str, tuple[int, set[str]]]:
    """The exit code of every command line, one after another in a process, and which modules are imported after it."""
    call = [sys.executable, "-c", CALLS, ",".join(modules), *lines]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [row.split("|") for row in done.stdout.splitlines()]
    return {line.strip(): (int(code), set(names.split())) for line, code, names in rows}


def test_help_on_all_commands_imports_none_of_them():
    parsing = {"tyro", "pydantic", "numpy", "mechinterp.config", "mechinterp.cli.analyses", "importlib.metadata"}
    assert loaded(COMPUTING | parsing, ["--help"]) == {"--help": (0, set())}


def test_what_is_known_from_files_is_told_without_what_computes(folder, capsys):
    assert call(capsys, "emergence", "tiny.h5", "--n-sequences", 5)[0] == 0
    lines = ["version", "config show reddy2023", "start", "runs", "info tiny.h5"]
    lines += ["emergence tiny.h5 --n-sequences 5", "emergence tiny.h5 --n-sequences 5 --measure icl_accuracy --json"]
    assert loaded(COMPUTING, lines) == dict.fromkeys(lines, (0, set()))


def test_no_command_imports_transformer_lens(folder):
    names = sorted([*COMMANDS, *analyses()], key=lambda name: name == "import")  # what `export` has written
    lines = [f"{name} {SMALL.get(name, 'tiny.h5' if name in analyses() else '')}".strip() for name in names]
    found = loaded({"transformer_lens"}, lines)
    assert len(found) == len(COMMANDS) + len(analyses())
    refused = [line for line, (code, _) in found.items() if code]
    assert refused == [f"sufficiency {SMALL['sufficiency']}"]  # there is no circuit in so small a run
    assert [line for line, (_, modules) in found.items() if modules] == []


@pytest.mark.parametrize("line", ["measure tiny.h5 --n-sequences 5", "circuit tiny.h5 --n-pairs 4 --out c.svg"])
def test_a_command_imports_what_it_uses(folder, line):
    """A command that neither trains nor fits, exports or writes a page."""
    other = {"scipy.stats", "scipy.optimize", "scipy.integrate", "plotly", "h5py", "transformer_lens"}
    other |= {f"mechinterp.{name}" for name in ("training.engines", "exchange.export", "models.foreign", "report")}
    assert loaded(other, [line]) == {line: (0, set())}
