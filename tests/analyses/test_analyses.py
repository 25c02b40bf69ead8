"""Every module of analyses/ runs on a run file and leaves a table and a figure."""

import importlib

import pandas as pd
import pytest

from mechinterp.cli import run_command


@pytest.mark.parametrize(
    ("module", "command", "table"),
    [
        ("progress_measures", "ProgressMeasures", "tiny.csv"),
        ("emergence", "Emergence", "transitions.csv"),
    ],
)
def test_an_analysis_writes_a_table_and_a_figure(module, command, table, tiny_run, tmp_path, capsys):
    analysis = getattr(importlib.import_module(f"analyses.{module}"), command)
    assert run_command(analysis, [str(tiny_run.path), "--out", str(tmp_path)]) == 0
    assert "icl_accuracy" in (tmp_path / table).read_text()
    assert len(pd.read_csv(tmp_path / table)) >= 7
    assert list(tmp_path.glob("*.html"))
    assert "figure: " in capsys.readouterr().out


def test_no_run_is_one_clear_line(capsys):
    from analyses.emergence import Emergence

    assert run_command(Emergence, []) == 2
    assert capsys.readouterr().err == "mechinterp: name at least one run file\n"
