"""Analyses over a run: tidy tables, kept beside the run, and refused in one line when misspelt."""

import json
import shutil
from typing import Any

import pandas as pd
import pytest

import mechinterp as mi
from mechinterp.analysis import cache, tables
from mechinterp.analysis.checkpoints import analyse
from mechinterp.analysis.registry import ANALYSES
from mechinterp.cli import main
from mechinterp.errors import MechinterpError

SMALL: dict[str, Any] = {
    "patch": {"n_pairs": 8},
    "paths": {"n_pairs": 8},
    "ablate": {"n_sequences": 8},
    "qkov": {"n_sequences": 8},
    "order_parameters": {"n_sequences": 8},
    "evidence": {"n_pairs": 8},
    "circuit": {"n_pairs": 8},
    "heads": {"n_pairs": 8},
    "logits": {"n_pairs": 8},
    "attribution": {"n_pairs": 8, "integration_steps": 1},
    "faithfulness": {"n_pairs": 8},
}


@pytest.fixture
def run(tiny_run, tmp_path):
    return mi.open_run(shutil.copy(tiny_run.path, tmp_path / "run.h5"))


@pytest.mark.parametrize("analysis", ANALYSES)
def test_a_table_has_a_row_per_step_and_site(run, analysis):
    table = analyse(run, analysis, steps=[0, 20], **SMALL[analysis])
    assert table.columns[0] == "step"
    assert table["step"].value_counts().nunique() == 1
    assert {"heads": "role", "logits": "lead", "attribution": "integrated"}.get(analysis, "value") in table
    again = analyse(run, analysis, steps=[20, 0], **SMALL[analysis])  # from what was kept
    pd.testing.assert_frame_equal(again.sort_values("step", kind="stable", ignore_index=True), table, check_exact=True)


def test_a_checkpoint_is_analysed_once(run, monkeypatch):
    calls = []
    original = tables.order_parameters

    def counted(network, task, *, n_sequences: tables.Sequences = 8, seed: tables.Seed = 0):
        calls.append(1)
        return original(network, task, n_sequences=n_sequences, seed=seed)

    monkeypatch.setattr(tables, "order_parameters", counted)
    for steps, expected in (([0, 2], 2), ([0, 2, 4], 3), ([4], 3)):
        analyse(run, "order_parameters", steps=steps)
        assert len(calls) == expected
    analyse(run, "order_parameters", steps=[0], seed=1)
    assert len(calls) == 4
    analyse(run, "order_parameters", steps=[0], keep=False)
    assert len(calls) == 5
    (kept, _) = sorted((run.path.parent / "run.h5.cache").iterdir(), key=lambda path: path.stat().st_size, reverse=True)
    kept.write_text("{ damaged")
    analyse(run, "order_parameters", steps=[0])
    assert len(calls) == 6
    monkeypatch.setattr(cache, "code_digest", lambda home: "other")
    analyse(run, "order_parameters", steps=[0])
    assert len(calls) == 7


@pytest.fixture
def changed_module(monkeypatch):
    """Makes a module another one, as far as the cache of tables can see."""
    read = cache._source

    def forget():
        cache.code_digest.cache_clear()
        cache.imported_modules.cache_clear()

    def change(name: str) -> None:
        monkeypatch.setattr(cache, "_source", lambda module: read(module) + ("\n# changed\n" if module == name else ""))
        forget()

    yield change
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(
    ("module", "recomputed"),
    [
        ("mechinterp.theory.kinetics", True),  # which circuits.race imports
        ("mechinterp.tasks.corruption", True),
        ("mechinterp.models.forward", True),
        ("mechinterp.analysis.tables", True),
        ("mechinterp.report.page", False),
        ("mechinterp.circuits.svg", False),
    ],
)
def test_a_change_in_code_at_whatever_remove_is_another_analysis(run, changed_module, module, recomputed):
    first = analyse(run, "order_parameters", steps=0, n_sequences=8)
    changed_module(module)
    assert first.equals(analyse(run, "order_parameters", steps=0, n_sequences=8))
    assert len(list((run.path.parent / "run.h5.cache").iterdir())) == (2 if recomputed else 1)


def test_another_task_is_not_answered_from_what_was_kept(run, tiny_config):
    first, digest = analyse(run, "patch", steps=0, n_pairs=8), run.digest(0)
    config = tiny_config.updated({"task.epsilon": 3.0, "training.steps": 2})
    other = mi.train(config, run.path, overwrite=True, progress=False)
    assert other.digest(0) == digest
    assert not first.equals(analyse(other, "patch", steps=0, n_pairs=8))


@pytest.mark.parametrize(
    ("analysis", "arguments", "match"),
    [
        ("pach", {}, "unknown analysis 'pach'; did you mean 'patch'"),
        ("patch", {"metrik": "loss"}, "unknown argument of patch 'metrik'; did you mean 'metric'"),
        ("patch", {"metric": "los"}, "unknown metric 'los'; did you mean 'loss'"),
        ("patch", {"corruption": "swap_lable"}, "did you mean 'swap_label'"),
        ("patch", {"n_pairs": "many"}, "n_pairs is 'many'; expected int"),
        ("patch", {"n_pairs": 0}, "n_pairs is 0; expected 1 or more"),
        ("ablate", {"n_sequences": -1}, "n_sequences is -1; expected 1 or more"),
        ("patch", {"steps": [3]}, "step"),
    ],
)
def test_misspelt_requests_are_refused(run, analysis, arguments, match):
    with pytest.raises(MechinterpError, match=match):
        analyse(run, analysis, **arguments)
    assert not (run.path.parent / "run.h5.cache").exists()


def test_the_commands_print_tables_and_json(run, capsys):
    for command in ("patch", "paths", "ablate", "qkov", "order-parameters", "evidence"):
        small = ["--n-pairs", "8"] if command in ("patch", "paths", "evidence") else ["--n-sequences", "8"]
        assert main([command, str(run.path), *small, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert {row["step"] for row in printed["rows"]} == {20}
        assert main([command, str(run.path), *small, "--all", "--csv"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1 + 11 * len(printed["rows"])
    assert main(["patch", str(run.path), "--steps", "4", "--all"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert main(["ablate", str(run.path), "--metric", "acuracy"]) == 2
    assert capsys.readouterr().err == "mechinterp: unknown metric 'acuracy'; did you mean 'accuracy'?\n"
