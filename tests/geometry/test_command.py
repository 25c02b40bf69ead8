"""The command ``geometry``."""

import json
import shutil

from mechinterp.cli import main


def printed(capsys, *arguments: object) -> str:
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert code == 0, output.err
    return output.out


def test_geometry_prints_a_table_with_transitions(capsys, tiny_run, tmp_path):
    command = ["geometry", shutil.copy(tiny_run.path, tmp_path / "run.h5"), "--steps", 0, 20, "--n-sequences", 32]
    text = printed(capsys, *command)
    assert {"gradient_norm", "gradient_noise_scale", "hessian_trace", "hessian_top_2"} <= set(
        text.split("\n")[0].split()
    )
    assert "_error" not in text
    assert "icl_accuracy: no transition" in text
    rows = json.loads(printed(capsys, *command, "--json"))["rows"]
    assert [row["step"] for row in rows] == [0, 20]
    assert rows[0]["hessian_trace_error"] > 0
    table = printed(capsys, *command, "--eigenvalues", 1, "--csv").splitlines()
    assert table[0].startswith("step,gradient_norm,gradient_norm_error,")
    assert "hessian_top_2" not in table[0]
    assert len(table) == 3
    parts = printed(capsys, *command, "--components", "--csv").splitlines()
    assert parts[0].startswith("step,component,gradient_norm,")
    assert any(line.startswith("20,layer 2 QK,") for line in parts)
    assert main([str(argument) for argument in [*command, "--csv", "--json"]]) == 2
    assert "exclude each other" in capsys.readouterr().err
