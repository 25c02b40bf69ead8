"""Configs on the command line: files with presets, interventions as options, dry runs, messages in plain words."""

import json
import os
from pathlib import Path

import pytest

import mechinterp as mi
from mechinterp.config import PRESETS, Clamp, Freeze
from mechinterp.config.dotted import differences, nearest_preset
from mechinterp.files import require_ending
from mechinterp.studies import cost
from mechinterp.studies.study import Study
from tests.conftest import TINY
from tests.test_cli import TRAIN, call


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_recognised_and_its_file_is_it(capsys, tmp_path, preset):
    config = mi.RunConfig.preset(preset)
    assert nearest_preset(config.updated({"seed": 3})) == (preset, {})
    changed = config.updated({"training.batch_size": 77})
    assert nearest_preset(changed) == (preset, {"training.batch_size": 77})
    (tmp_path / "own.toml").write_text(call(capsys, "config", "show", preset)[1])
    assert mi.RunConfig.from_toml(tmp_path / "own.toml") == config


def test_settings_of_other_kinds_are_not_compared():
    one, other = mi.RunConfig.preset("reddy2023"), mi.RunConfig.preset("reddy2023-minimal")
    apart = differences(one, other)
    assert apart["model.kind"] == ("transformer", "induction_head")
    assert [key for key in apart if key.startswith("model.")] == ["model.kind"]
    assert apart["task.content_dim"] == (63, 64)


def test_a_runs_file_may_start_from_a_preset(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('preset = "singh2024"\nseed = 4\n[task]\nn_classes = 60\n')
    assert mi.RunConfig.from_toml(path) == mi.RunConfig.preset("singh2024").updated({"seed": 4, "task.n_classes": 60})
    for text, message in (
        ('preset = "singh"', "own.toml: unknown preset 'singh'; did you mean 'singh2024'"),
        ("preset = 3", "preset is 3; name one of"),
        (
            'preset = "singh2024"\n[task]\nn_clases = 3',
            "own.toml: task.n_clases: unknown key; did you mean 'n_classes'",
        ),
        ('preset = "singh2024"\n[tsk]\na = 3', "own.toml: tsk.a: there is no section 'tsk'"),
        ("seeds = [1]\n[variants.a]", "this is the file of a study; carry it out by: mechinterp study"),
    ):
        path.write_text(text)
        with pytest.raises(mi.MechinterpError) as refused:
            mi.RunConfig.from_toml(path)
        assert message in str(refused.value)


def test_a_studys_file_takes_the_sections_of_a_runs(tmp_path):
    path, variants = tmp_path / "s.toml", "[variants.a]\n[variants.b]\ntask.burstiness = 2\n"
    path.write_text(
        f"interventions = [{{ kind = 'copy' }}]\n[training]\nsteps = 50\n[checkpoints]\nevery = 5\n{variants}"
    )
    study = Study.from_toml(path)
    assert [config.training.steps for config in study.variants.values()] == [50, 50]
    assert study.variants["b"].checkpoints.every == 5
    assert study.variants["a"].interventions[0].kind == "copy"
    path.write_text(f"[base.training]\nsteps = 50\n[training]\nsteps = 40\n{variants}")
    with pytest.raises(mi.MechinterpError, match=r"training\.steps is set in \[base\] too"):
        Study.from_toml(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"measures": ["icl_acc"]}, "unknown measure 'icl_acc'; did you mean 'icl_accuracy'"),
        ({"measures": "icl_accuracy"}, "measures is 'icl_accuracy'; expected several"),
        ({"seeds": 3}, "seeds is 3; expected several"),
        ({"variants": ["a"]}, r"variants is \['a'\]; expected what each changes"),
        ({"variants": {"a": 3}}, "expected what each changes"),
    ],
)
def test_a_study_that_cannot_be_is_refused_when_it_is_made(changed, message):
    plain = {"name": "s", "base": mi.RunConfig.preset("reddy2023-fast"), "variants": {"a": {}}}
    make = Study.of if "measures" in changed else Study._of  # the tests enforce the types that `of` is annotated with
    with pytest.raises(mi.MechinterpError, match=message):
        make(**({**plain, "seeds": [0], "measures": ["icl_accuracy"]} | changed))


def test_interventions_are_options(capsys, tmp_path):
    run = tmp_path / "a.h5"
    options = (
        "--intervention=clamp layer=0 pattern=previous_token start=5 stop=8 strength=0.5",
        "--intervention=freeze parameters=blocks.0.attn.W_Q,blocks.0.attn.W_K",
    )
    assert call(capsys, "train", "--out", run, "--training.steps", 10, *options, *TRAIN[:-4])[0] == 0
    clamp, freeze = mi.open_run(run).config.interventions
    assert clamp == Clamp(layer=0, pattern="previous_token", start=5, stop=8, strength=0.5)
    assert freeze == Freeze(parameters=("blocks.0.attn.W_Q", "blocks.0.attn.W_K"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--intervention", "clmp layer=0"], "unknown kind of intervention 'clmp'; did you mean 'clamp'?"),
        (["train", "--intervention", "silence lyer=0"], "lyer: unknown key; did you mean 'layer'?"),
        (["train", "--intervention", "silence layer"], "'layer' is no setting; expected KEY=VALUE"),
        (["train", "--intervention", "silence layer=9"], "layer is 9, expected 0 to 1"),
        (["train", "--intervention", "silence layer=0 layer=1"], "layer is given twice"),
        (["train", "--intervention", ""], "expected 'KIND KEY=VALUE …'"),
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["study", "staus", "s.toml"], "unknown command 'study staus'; did you mean 'study status'?"),
        (["config", "shwo", "a.toml"], "unknown command 'config shwo'; did you mean 'config show'?"),
        (["config"], "unknown command 'config'; did you mean 'config show'?"),
        (["study", "none.toml"], "none.toml: cannot be read"),
        (["train", "--task.kind", "itemlabel"], "task.kind: unknown task 'itemlabel'; did you mean 'item_label'?"),
        (["train", "--task.kind", "zz"], "known: item_label, paired_items, induction_tokens, markov_chains, modular_"),
        (["train", "--task.kind", "custom"], "--task.kind custom: a task of your own has no options; give it to"),
        (["train", "--training.steps", "1.5"], "--training.steps: expected an integer, got '1.5'"),
        (["train", "--model.d-head", "abc"], "--model.d-head: expected an integer, got 'abc'"),
        (["train", "--checkpoints.at", "3", "x"], "--checkpoints.at: expected an integer, got 'x'"),
        (["train", "--task.n-classes", "3200000"], "task.n_classes: input should be less than or equal to 1000000"),
        (["train", "--training.steps"], "--training.steps: its value is missing"),
        (["train", "--track", "wandbb"], "--track: unknown value 'wandbb'; did you mean 'wandb'?"),
        (["train", "--nonsense"], "--nonsense is not expected; mechinterp train --help lists the options"),
        (["info"], "RUN is missing: A run file; mechinterp info --help lists the options"),
        (["patch", "x.h5", "--corruption", "swap_lable"], "did you mean 'swap_label'?"),
        (["report", "x.h5", "--out", "x.pdf"], "x.pdf: ends with .pdf, and what is written there is .html or .htm"),
        (["config", "check", "reddy"], "unknown preset 'reddy'; did you mean 'reddy2023'?"),
        (["runs", "nowhere"], "nowhere: is no folder"),
    ],
)
def test_messages_are_one_line_in_plain_words(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
    assert message in err
    for unwanted in ("NoneType", "{None}", "pydantic", "literal for int", "validation error", "config: config"):
        assert unwanted not in err
    assert not list(tmp_path.iterdir())


def test_numbers_may_be_written_with_an_exponent(capsys, tmp_path):
    run = tmp_path / "a.h5"
    assert (
        call(capsys, "train", "--out", run, *TRAIN[:-4], "--training.steps", "1e1", "--checkpoints.every", "none")[0]
        == 0
    )
    assert mi.open_run(run).steps == [0, 10]


def test_a_config_is_checked_in_a_line(capsys, tmp_path):
    (tmp_path / "own.toml").write_text('preset = "reddy2023-fast"\ntask.n_classes = 512\n')
    out = call(capsys, "config", "check", tmp_path / "own.toml")[1]
    assert out.endswith("own.toml: sound: preset reddy2023-fast, with task.n_classes = 512; 6,000 steps\n")
    (tmp_path / "s.toml").write_text("seeds = [0, 1]\n[variants.a]\n[variants.b]\ntask.burstiness = 2\n")
    assert "a study of 4 runs: a, b; seeds 0, 1" in call(capsys, "config", "check", tmp_path / "s.toml")[1]
    (tmp_path / "own.toml").write_text("[task]\nn_clases = 3\nepsilon = 'a'\n")
    code, _, err = call(capsys, "config", "check", tmp_path / "own.toml")
    assert code == 2
    assert "task.n_clases" in err
    assert "task.epsilon" in err


def test_endings():
    assert require_ending(Path("a.PDF"), ".svg", ".pdf") == Path("a.PDF")
    for name, message in (("a.png", "ends with .png"), ("a", "has no ending")):
        with pytest.raises(mi.MechinterpError, match=rf"{message}, and what is written there is \.svg or \.pdf"):
            require_ending(Path(name), ".svg", ".pdf")


REPLY = {
    "error": None,
    "step": 0.1,
    "checkpoint": 2.0,
    "written": 0.5,
    "checkpoint_bytes": 1e6,
    "start": 7.0,
    "engine": "autograd",
}


def test_the_cost_of_a_run_counts_start_steps_writing_and_measuring(monkeypatch):
    monkeypatch.setattr(cost.processes, "ask", lambda request: REPLY)
    config = mi.RunConfig.preset("reddy2023-fast").updated({"training.steps": 200, "checkpoints.every": 100})
    trained, measured = (cost.cost_of_run(config, measured=each) for each in (False, True))
    assert trained.seconds == pytest.approx(7 + 200 * 0.1 + 3 * 0.5)
    assert measured.seconds == pytest.approx(7 + 200 * 0.1 + 3 * 2.5)
    assert (measured.bytes, measured.engine, measured.checkpoints) == (3_000_000, "autograd", 3)
    monkeypatch.setattr(cost.processes, "ask", lambda request: {"error": "it diverged"})
    with pytest.raises(mi.MechinterpError, match="the trial has failed: it diverged"):
        cost.cost_of_run(config, measured=False)


def test_the_estimate_of_a_study_counts_the_start_of_every_worker(monkeypatch, tmp_path):
    monkeypatch.setattr(cost.processes, "ask", lambda request: REPLY)
    base = mi.RunConfig.preset("reddy2023-fast").updated({"training.steps": 200, "checkpoints.every": 100})
    study = Study.of("s", base, {"a": {}, "b": {"task.burstiness": 2}}, seeds=[0, 1])
    left = cost.estimate(study, cost.Results(tmp_path), tmp_path, clocked=True)
    assert left.core_seconds == pytest.approx(4 * (20 + 3 * 2.5))
    assert left.start_seconds == 7
    assert "at most 2.1 min of one core (62 s on 2)" in left.on(2)  # 4 x 27.5 + 2 x 7, and 55 + 7
    assert "(34 s on 8)" in left.on(8)  # four runs occupy four workers


def test_a_trial_has_the_engine_and_the_clamps_of_the_run():
    from mechinterp.studies.worker import clock

    base = mi.RunConfig().updated({**TINY, "training.steps": 200})
    clamped = base.updated(
        {"interventions": [{"kind": "clamp", "layer": 0, "pattern": "uniform", "start": 100, "stop": 150}]}
    )
    free, acting = clock(base.model_dump(mode="json")), clock(clamped.model_dump(mode="json"))
    assert free["engine"]
    assert acting["start"] > 0
    assert all(acting[name] > 0 for name in ("step", "checkpoint", "written", "checkpoint_bytes"))


def test_a_dry_run_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost.processes, "ask", lambda request: REPLY)
    code, out, _ = call(capsys, "run", "--dry-run", "--training.steps", 200, "--task.n-classes", 512)
    assert code == 0
    assert "would train reddy2023-fast with task.n_classes = 512, training.steps = 200; seed 0\n" in out
    assert "autograd engine), 3 checkpoints, 3.0 MB on disk" in out
    assert out.endswith(
        "would write:\n  checkpoints/reddy2023-fast-seed0.h5\n  checkpoints/reddy2023-fast-seed0.csv\n"
        "  checkpoints/reddy2023-fast-seed0.html\n"
    )
    (tmp_path / "s.toml").write_text("seeds = [0, 1]\n[variants.a]\n[variants.b]\ntask.burstiness = 2\n")
    before = os.listdir()
    code, out, _ = call(capsys, "study", "s.toml", "--dry-run", "--json")
    assert (code, json.loads(out)["todo"], os.listdir()) == (0, 4, before)


def test_a_folder_for_a_page_is_made(tmp_path, capsys, tiny_run):
    out = tmp_path / "new" / "folder" / "a.svg"
    assert call(capsys, "circuit", tiny_run.path, "--steps", 0, "--n-pairs", 8, "--out", out)[0] == 0
    assert out.is_file()
