"""The notebooks run from top to bottom, as scripts, and say what their text says."""

import ast
import os
from pathlib import Path
from typing import Any

import pytest

import mechinterp as mi

FOLDER = Path(__file__).parents[1] / "notebooks"


def executed(name: str, monkeypatch, folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """The names that a notebook defines, and the values that its cells end with, after running it in a folder."""
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    monkeypatch.chdir(folder)
    names, shown = {"__name__": "notebook"}, []
    for cell in source.split("\n# %%")[1:]:
        body = ast.parse(cell.partition("\n")[2]).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), name, "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), name, "eval"), names))
    return names, shown


@pytest.mark.slow
def test_the_first_look_finds_an_induction_head(tmp_path, monkeypatch):
    names, shown = executed("first_look", monkeypatch, tmp_path)
    assert names["table"]["icl_accuracy"].iloc[-1] > 0.9
    evidence = mi.analyse(names["run"], "evidence", steps="last").set_index("fact")
    assert evidence.loc["induction_head", "holds"]
    assert sum(hasattr(value, "_repr_html_") for value in shown) >= 7


@pytest.mark.slow
def test_the_study_has_a_row_for_every_variant(tmp_path, monkeypatch):
    # the study's workers are processes of their own, which find the package where this one does
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    names, _ = executed("ablation_study", monkeypatch, tmp_path)
    assert names["table"]["status"].tolist() == ["done"] * 3
    assert names["table"]["transition"].tolist() == [True] * 3
    assert names["losses"]["value"].min() < 0.5


def test_a_network_of_ones_own_is_recorded_and_measured(tmp_path, monkeypatch):
    names, shown = executed("own_network", monkeypatch, tmp_path)
    assert names["table"]["accuracy"].iloc[-1] > 0.9
    assert names["emergence"].transition
    assert sum(hasattr(value, "_repr_html_") for value in shown) == 4
