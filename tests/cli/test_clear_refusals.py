"""What is given in the wrong place is named: steps, files of another kind, a task that a file lacks."""

import shutil
from pathlib import Path

import pytest

import mechinterp as mi
from tests.circuits.test_own_task import TASK, FirstTokenTask
from tests.test_cli import call

OWN = {"training.steps": 40, "training.learning_rate": 0.01, "checkpoints.every": 4}


@pytest.fixture(scope="module")
def own_run(tmp_path_factory) -> Path:
    """A run on a task of one's own, with the file of the task beside it. Tests only read it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "task.py").write_text(TASK)
    config = mi.RunConfig().updated(OWN)
    return mi.train(config, folder / "own.h5", task=FirstTokenTask(), progress=False).path


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_run) -> Path:
    """The working directory, with a run, one that is cut off, and TOML files of a run and of a study."""
    shutil.copy(tiny_run.path, tmp_path / "tiny.h5")
    (tmp_path / "cut.h5").write_bytes(tiny_run.path.read_bytes()[:-4096])
    (tmp_path / "run.toml").write_text("training.steps = 20\n")
    (tmp_path / "study.toml").write_text("[variants.a]\n[variants.b]\ntask.burstiness = 2\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("measure tiny.h5 --steps lst", "--steps: expected a step, or first or last, got 'lst'"),
        ("ablate tiny.h5 --steps 1.5", "--steps: expected a step, or first or last, got '1.5'"),
        ("replay tiny.h5 --from frist", "--from: expected a step, or first or last, got 'frist'"),
        ("report tiny.h5 --static svg --step lst", "--step: expected a step, or first or last, got 'lst'"),
        ("verify tiny.h5 --interval last", "no interval begins at step 20; the nearest begins at 18"),
        ("verify tiny.h5 --interval 7", "no interval begins at step 7; the nearest begins at "),
        ("interpolate tiny.h5 --start last", "tiny.h5: step 20 is both ends of the line; name another start or stop"),
        ("report tiny.h5 ./tiny.h5", "tiny.h5: is named twice; name every run once"),
        ("report study.toml", "study.toml: is no run file; the page of a study is written by --study study.toml"),
        ("report --study study.toml --task a.py:A", "--measure and --task go with a run"),
        ("export tiny.h5 --out a.xlsx", "expected .safetensors, .pt, .pth, .csv or .parquet, or none for a folder"),
        ("study run.toml", "run.toml: is no study's file: it has no section [variants.NAME]; that of a run is trained"),
        ("study status tiny.h5", "tiny.h5: is a run file, whose config `mechinterp config show` prints"),
        ("train --config tiny.h5 --out a.h5", "tiny.h5: is a run file, whose config `mechinterp config show` prints"),
        ("study study.toml --dry-run --out cut.h5", "cut.h5: is a file; give a folder"),
        ("study study.toml --dry-run --runs cut.h5/runs", "cut.h5/runs: cut.h5 is a file; give a folder"),
        ("audit --dry-run --out cut.h5", "cut.h5: is a file; give a folder"),
        ("measure tiny.h5 --measures ILA1", "unknown measure 'ILA1'; did you mean 'ila1'?"),
        ("import tiny.h5 --out a.h5", "tiny.h5: is a run file, which takes no import: mi.open_run opens it"),
        ("study cut.png", "cut.png: is no text; give the path of a TOML file"),
    ],
)
def test_what_is_in_the_wrong_place_is_named(capsys, folder, arguments, message):
    (folder / "cut.png").write_bytes(b"\x89PNG\xff")
    before = sorted(folder.iterdir())
    code, out, err = call(capsys, *arguments.split())
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
    assert message in err
    assert sorted(folder.iterdir()) == before


def test_the_first_and_the_last_step_have_names(capsys, folder):
    for names, numbers in (("first 4 last", "0 4 20"), ("last", "20")):
        few = ["--measures", "ila1", "--n-sequences", "20"]
        by_name = call(capsys, "measure", "tiny.h5", *few, "--steps", *names.split())
        assert by_name == call(capsys, "measure", "tiny.h5", *few, "--steps", *numbers.split())
        assert by_name[0] == 0
    for line in (
        "ablate tiny.h5 --steps first --n-sequences 8",
        "circuit tiny.h5 --steps first last --n-pairs 8 --out c.svg",
        "compare tiny.h5 --steps first last --n-sequences 8",
        "transplant tiny.h5 --steps first last --matrix --n-sequences 8",
        "interpolate tiny.h5 --start first --stop last --points 3 --n-sequences 8",
        "export tiny.h5 --steps first last --out {step}.pt",
        "replay tiny.h5 --from first --to last --every 1",
        "verify tiny.h5 --interval first",
    ):
        code, out, err = call(capsys, *line.split())
        assert code == 0, (line, err)
        assert out
    assert {"0.pt", "20.pt"} <= {path.name for path in folder.iterdir()}
    assert mi.open_run("tiny.h5").steps == list(range(21))


def test_nothing_to_do_is_said(capsys, folder):
    said = "tiny.h5: is complete at step 20, and nothing was trained; --until STEP goes beyond"
    assert call(capsys, "resume", "tiny.h5")[:2] == (0, said + "\n")
    assert call(capsys, "resume", "tiny.h5", "--until", "21")[1] == "trained to step 21: tiny.h5\n"
    assert "no step had to be rebuilt" in call(capsys, "replay", "tiny.h5", "--from", "last")[1]


def test_a_damaged_run_is_listed_as_damaged(capsys, folder):
    (folder / "text.h5").write_text("no run")
    lines = call(capsys, "runs")[1].splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["cut.h5", "tiny.h5"]
    assert "damaged" in lines[1]
    assert "cut off or damaged" in lines[1]
    assert "mechinterp emergence tiny.h5" in call(capsys)[1]
    (folder / "tiny.h5").unlink()
    assert "next:\n  mechinterp verify cut.h5\n" in call(capsys)[1]


@pytest.mark.parametrize(
    "command",
    [
        "measure OWN --n-sequences 20",
        "emergence OWN --n-sequences 20",
        "transplant OWN --n-sequences 20 --matrix --steps first last",
        "interpolate OWN --n-sequences 20 --points 3",
        "compare OWN --steps first last --n-sequences 20",
        "export OWN --out own.csv",
        "resume COPY --until 42",
        "replay COPY --from 36 --every 2",
    ],
)
def test_a_task_of_ones_own_is_given_to_every_command(capsys, tmp_path, monkeypatch, own_run, command):
    monkeypatch.chdir(tmp_path)
    shutil.copy(own_run, "copy.h5")
    arguments = [{"OWN": str(own_run), "COPY": "copy.h5"}.get(word, word) for word in command.split()]
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert "which its file does not contain: give it by open_run(path, task=your_task)" in err
    assert "or on the command line by --task FILE.py:NAME" in err
    code, out, err = call(capsys, *arguments, "--task", f"{own_run.with_name('task.py')}:FirstTokenTask")
    assert code == 0, err
    assert out


def test_the_page_takes_it_too(capsys, own_run):
    wrong = ["report", own_run, "--measure", "fresh_acuracy"]
    assert "which its file does not contain" in call(capsys, *wrong)[2]
    given = ["--task", f"{own_run.with_name('task.py')}:FirstTokenTask"]
    assert "did you mean 'fresh_accuracy'?" in call(capsys, *wrong, *given)[2]


def test_a_run_on_another_task_is_told_by_its_sizes(capsys, own_run, tiny_run):
    given = ["--task", f"{own_run.with_name('task.py')}:FirstTokenTask"]
    message = "was trained on a task with d_model = 24, n_pos = 7, n_labels = 4, and the given one has d_model = 8"
    assert message in call(capsys, "measure", tiny_run.path, *given)[2]
