"""The command line: results as JSON, and one clear line for every mistake."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict

import pytest

import mechinterp as mi
from mechinterp.cli import main
from mechinterp.training.spikes import spikes_of
from tests.conftest import SPIKING

TRAIN = shlex.split(
    "--task.n-classes 8 --task.n-labels 4 --task.n-pairs 3 --task.content-dim 11 --task.position-dim 13"
    " --task.n-novel-classes 8 --model.classifier-width 19 --training.batch-size 16 --training.steps 30"
    " --checkpoints.every 3"
)


def words(arguments: str, files: dict) -> list[str]:
    """The arguments, with the names of files replaced by their paths."""
    return [
        str(files[word]) if word in files else word.replace("RUN/", f"{files['RUN']}/") for word in arguments.split()
    ]


def call(capsys, *arguments: object) -> tuple[int | str | None, str, str]:
    try:
        code = main([str(each) for each in arguments])
    except SystemExit as stop:
        code = stop.code
    output = capsys.readouterr()
    return code, output.out, output.err


def test_the_main_job_from_nothing_to_a_report(capsys, tmp_path):
    code, out, _ = call(capsys, "run", "--out", tmp_path / "a.h5", "--seed", 3, "--json", *TRAIN)
    result = json.loads(out)
    assert code == 0
    assert result["transition"] is False
    page = (tmp_path / "a.html").read_text()
    assert page.count("plotly.js v") >= 1
    assert page.count("Content-Security-Policy") == 1
    assert (tmp_path / "a.csv").read_text().startswith("step,icl_accuracy")


def test_train_info_measure_emergence(capsys, tmp_path):
    run = tmp_path / "b.h5"
    assert json.loads(call(capsys, "train", "--out", run, "--json", *TRAIN)[1])["steps"] == 30
    facts = json.loads(call(capsys, "info", run, "--json")[1])
    assert facts["steps"] == list(range(0, 31, 3))
    assert facts["config"]["task"]["n_classes"] == 8
    assert len(set(facts["digests"].values())) == 11
    assert "step       30" in call(capsys, "info", run, "--digests")[1]
    code, out, _ = call(capsys, "measure", run, "--csv", "--measures", "ila1", "icl_loss", "--steps", 0, 30)
    assert (code, out.splitlines()[0], len(out.splitlines())) == (0, "step,ila1,icl_loss", 3)
    code, out, _ = call(capsys, "emergence", run, "--measure", "icl_accuracy", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["transition"] is False
    assert found["step"] is None
    assert call(capsys, "report", run, "--out", tmp_path / "r.html")[0] == 0


def test_loss_spikes_are_said_in_one_more_line(capsys, spiking_run, tiny_run):
    spikes = spikes_of(spiking_run.file.metrics())
    assert spikes
    options = ("--measure", "icl_accuracy", "--n-sequences", 20)
    code, out, _ = call(capsys, "emergence", spiking_run.path, *options)
    assert (code, out.splitlines()[1:]) == (0, [str(spikes)])
    found = json.loads(call(capsys, "emergence", spiking_run.path, *options, "--json")[1])["spikes"]
    assert found == {**asdict(spikes), "steps": list(spikes.steps)}
    assert len(call(capsys, "emergence", tiny_run.path, *options)[1].splitlines()) == 1
    assert json.loads(call(capsys, "emergence", tiny_run.path, *options, "--json")[1])["spikes"] is None


def test_the_main_job_says_them_too(capsys, tmp_path):
    settings = {**SPIKING, "training.steps": 20, "checkpoints.every": 10}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (tmp_path / "spiking.toml").write_text("\n".join(lines))
    code, out, _ = call(capsys, "run", "--config", tmp_path / "spiking.toml", "--out", tmp_path / "a.h5")
    lines = out.splitlines()
    spikes = spikes_of(mi.open_run(tmp_path / "a.h5").file.metrics())
    assert spikes
    assert (code, lines[1], lines[2]) == (0, str(spikes), "report:")
    assert f'<p class="note">{str(spikes).capitalize()}.</p>' in (tmp_path / "a.html").read_text()
    assert "spikes,spike_step,spike_height" in (tmp_path / "a.csv").read_text().splitlines()[0]


def test_a_toml_file_and_overrides(capsys, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("seed = 5\n[training]\nsteps = 2\n[task]\nn_classes = 64\n")
    run = tmp_path / "c.h5"
    assert call(capsys, "train", "--config", path, "--out", run, "--task.n-classes", "96")[0] == 0
    config = json.loads(call(capsys, "info", run, "--json")[1])["config"]
    assert (config["seed"], config["training"]["steps"], config["task"]["n_classes"]) == (5, 2, 96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --task.n-classes 33", "n_classes (K=33) is no multiple of n_labels (L=32): use 32 or 64"),
        ("train --task.epsilon x", "--task.epsilon: expected a number, got 'x'"),
        ("train --task.epsilon -1", "task.epsilon: input should be greater than or equal to 0"),
        ("train --task.n-clases 3", "did you mean --task.n-classes?"),
        ("train --preset redy2023", "unknown preset 'redy2023'; did you mean 'reddy2023'?"),
        ("train --config nope.toml", "nope.toml: cannot be read"),
        ("train --out RUN", "exists already; choose another file or pass --overwrite"),
        ("run --out RUN", "exists already; choose another file or pass --overwrite"),
        ("info nope.h5", "nope.h5: does not exist"),
        ("measure TEXT", "is no run file"),
        ("measure BROKEN", "it is cut off or damaged"),
        ("measure RUN --measures ila", "unknown measure 'ila'; did you mean 'ila1'?"),
        ("measure RUN --steps 7", "step 7 is not saved; the nearest is 6"),
        ("measure RUN --n-sequences 0", "n_sequences is 0; expected 1 or more"),
        ("emergence RUN --measure icl_acuracy", "did you mean 'icl_accuracy'?"),
        ("report RUN --out /proc/nope/a.html", "/proc/nope: cannot be made"),
        ("report RUN --out RUN", "ends with .h5, and what is written there is .html or .htm"),
        ("run --measure icl_acuracy --out new.h5", "did you mean 'icl_accuracy'?"),
        ("run --out new.html", "the table and the report go to new.csv and new.html; use .h5"),
        ("train --out .", "is a folder"),
        ("train --out RUN/x.h5", "is a file, not a folder"),
        ("train --seed -1 --out new.h5", "seed: input should be greater than or equal to 0"),
        ("train --config TEXT --preset reddy2023", "--config and --preset are both given"),
        ("train --training.steps 10 --checkpoints.at 70 --out new.h5", "checkpoints.at has 70, after the last step"),
        ("train --training.steps 9000000 --checkpoints.every 1 --out new.h5", "use 9 or more"),
        ("train --task.n-classes 32000000000000 --out new.h5", "less than or equal to 1000000"),
        ("verify nope.h5", "nope.h5: does not exist"),
        ("replay RUN --from 0 --to 99", "use a stretch within 0 to 20"),
        ("resume RUN --until 3", "has reached step 20 already"),
        ("explode RUN", "explode"),
    ],
)
def test_a_mistake_is_one_line_exit_code_2_and_changes_nothing(
    capsys, tmp_path, monkeypatch, tiny_run, arguments, message
):
    monkeypatch.chdir(tmp_path)
    files = {"RUN": tmp_path / "run.h5", "TEXT": tmp_path / "text.h5", "BROKEN": tmp_path / "broken.h5"}
    shutil.copy(tiny_run.path, files["RUN"])
    shutil.copy(tiny_run.path, files["BROKEN"])
    files["BROKEN"].write_bytes(files["BROKEN"].read_bytes()[:-4096])
    files["TEXT"].write_text("no run")
    before = {path: path.read_bytes() for path in files.values()}
    code, out, err = call(capsys, *(words(arguments, files)))
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("mechinterp: ")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_bad_toml_is_one_line_with_every_fault(capsys, tmp_path):
    (tmp_path / "bad.toml").write_text("[task]\nn_clases = 3\nepsilon = 'a'\n")
    code, _, err = call(capsys, "train", "--config", tmp_path / "bad.toml", "--out", tmp_path / "x.h5")
    assert code == 2
    assert "task.n_clases: unknown key; did you mean 'n_classes'?; " in err or "; task.n_clases: unknown key" in err
    assert not (tmp_path / "x.h5").exists()


def test_help_does_not_import_what_is_slow():
    code = (
        "import sys, mechinterp.cli\ntry: mechinterp.cli.main(['--help'])\nexcept SystemExit: pass\n"
        "slow = {'torch', 'transformer_lens', 'pandas', 'scipy', 'plotly', 'h5py'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The main job" in done.stdout
