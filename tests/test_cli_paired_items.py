"""Every command on runs of the 2024 paper: it works, or says in one line why it does not apply."""

import html
import json

import pytest

import mechinterp as mi
from mechinterp.cli import main
from mechinterp.config import PRESETS

RUNS = {
    "network": {"model.n_layers": 1, "model.readout": "difference"},
    "two layers": {"model.n_layers": 2, "model.readout": "difference"},
    "additive": {"model.kind": "additive", "task.tokens": "plain"},
}
WORK = {
    "measure": ["--n-sequences", "50"],
    "patch": ["--n-pairs", "20"],
    "paths": ["--n-pairs", "20"],
    "ablate": ["--n-sequences", "20"],
    "verify": [],
    "info": [],
}
REFUSED = {
    "qkov": "position ⊕ content",
    "evidence": "this task's are one token",
    "circuit": "this task's are one token",
}


@pytest.fixture(scope="module", params=list(RUNS))
def run(request, tmp_path_factory):
    changes = {
        "task.kind": "paired_items",
        "task.n_items": 60,
        "task.n_pairs": 10,
        "task.item_dim": 12,
        **RUNS[request.param],
        "model.classifier_width": 16,
        "training.steps": 40,
        "checkpoints.every": 4,
        "training.batch_size": 16,
    }
    return mi.train(mi.RunConfig().updated(changes), tmp_path_factory.mktemp("runs") / "run.h5", progress=False)


@pytest.mark.parametrize("command", list(WORK))
def test_these_commands_work(run, command, capsys):
    assert main([command, str(run.path), *WORK[command]]) == 0
    said = capsys.readouterr()
    assert said.out.strip()
    assert "Traceback" not in said.err


@pytest.mark.parametrize("command", list(REFUSED))
def test_these_say_in_a_line_why_they_do_not_apply(run, command, capsys):
    assert main([command, str(run.path)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert REFUSED[command] in said[0]


def test_paths_of_shuffled_positions_are_refused_where_there_are_none(run, capsys):
    assert main(["paths", str(run.path), "--corruption", "shuffle_positions"]) == 2
    assert "carry no position" in capsys.readouterr().err


def test_what_next_names_commands_that_apply(tmp_path, capsys):
    settings = ["--training.steps", "4", "--checkpoints.every", "4", "--task.n-items", "60", "--task.n-pairs", "4"]
    out = tmp_path / "run.h5"
    assert main(["run", "--preset", "nguyen2024-fast", "--out", str(out), *settings]) == 0
    following = capsys.readouterr().out.split("next:\n")[1].splitlines()
    assert [line.split()[1] for line in following] == ["patch", "ablate", "study"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_one_of_the_command_lines(preset, tmp_path, capsys):
    config, options = mi.RunConfig.preset(preset), ["--training.steps", "1", "--training.batch-size", "2"]
    changes = {}
    if not config.model.answers_everywhere:
        options += ["--model.classifier-width", "4", "--task.n-pairs", "4"]
        changes = {"task.n_pairs": 4}
    assert main(["train", "--preset", preset, "--out", str(tmp_path / "run.h5"), *options]) == 0
    assert mi.open_run(tmp_path / "run.h5").config.task == config.updated(changes).task


def test_emergence_says_that_there_is_none_yet(run, capsys):
    assert main(["emergence", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["transition"] in (True, False)


def test_replay_rebuilds_steps_between(run, capsys):
    assert main(["replay", str(run.path), "--from", "4", "--to", "8", "--every", "2"]) == 0
    assert "exact: digests agree at step 8" in capsys.readouterr().out


def test_the_page_shows_the_race_and_says_what_it_leaves_out(run, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["report", str(run.path), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert "this task's are one token" in html.unescape(page)
    one_layer = run.config.model.n_layers == 1
    assert ("coordinates of the race (Nguyen" in page) == one_layer
    assert ("read off one layer with one head" in page) == (not one_layer)


def test_a_study_of_them_has_its_table(tmp_path, capsys):
    (tmp_path / "study.toml").write_text(
        """
preset = "nguyen2024-fast"
seeds = [0]
measures = ["icl_accuracy", "tca1"]
[base]
task.n_items = 60
task.n_pairs = 10
training.steps = 8
training.batch_size = 8
model.classifier_width = 8
checkpoints.every = 4
[grids.layers]
model.n_layers = [1, 2]
""",
        encoding="utf-8",
    )
    command = ["study", str(tmp_path / "study.toml"), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert main([*command, "--workers", "1"]) == 0
    table = (tmp_path / "study.csv").read_text(encoding="utf-8")
    assert table.count("done") == 2
    assert "final_iwl_accuracy" in table
