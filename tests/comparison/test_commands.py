"""The commands ``transplant`` and ``interpolate``."""

import json

from mechinterp.cli import main
from mechinterp.comparison import formation


def printed(capsys, *arguments: object) -> str:
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert code == 0, output.err
    return output.out


def test_transplant_says_the_order_and_prints_the_matrix(capsys, tiny_run, monkeypatch):
    monkeypatch.setattr(formation, "LEAST_RISE", -1)
    order = ["transplant", tiny_run.path, "--n-sequences", 20, "--steps", 0, 6, 12, 20]
    assert "waiting: " in printed(capsys, *order)
    result = json.loads(printed(capsys, *order, "--json"))
    assert {row["component"] for row in result["components"]} >= {"layer 1 QK", "classifier"}
    assert len(result["waits"]) == 20
    table = printed(capsys, *order, "--matrix", "--components", "layer 2 QK", "--steps", 0, 20, "--csv")
    assert table.startswith("component,source,target,accuracy,")
    assert len(table.splitlines()) == 5


def test_interpolate_takes_one_run_or_two(capsys, tiny_run):
    alone = ["interpolate", tiny_run.path, "--points", 3, "--n-sequences", 20]
    assert "as trained: barrier " in printed(capsys, *alone)
    two = json.loads(printed(capsys, "interpolate", tiny_run.path, tiny_run.path, "--points", 3, "--json"))
    assert [row["alignment"] for row in two["barriers"]] == ["as_trained", "matched"]
    assert (two["start"], two["stop"]) == (20, 20)
    assert main(["interpolate", str(tiny_run.path), "--start", "1"]) == 2
    assert "step" in capsys.readouterr().err
    assert main(["interpolate", str(tiny_run.path), "--json", "--csv"]) == 2
