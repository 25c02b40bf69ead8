"""A ratio that has become a fifth worse is marked, and no other."""

from benchmarks.__main__ import ROWS, Row, _ratio, table


def test_a_ratio_that_is_a_fifth_worse_is_marked():
    kept = {"step / loop": 0.10, "patching / loop": 0.05, "report / import torch": 4.0}
    now = {"step / loop": 0.121, "patching / loop": 0.0599, "report / import torch": 2.0, "new / old": 9.0}
    _, worse, same, better, unknown = table(now, kept).splitlines()
    assert worse.endswith("+21 %: slower")
    assert worse.split()[:3] == ["step", "/", "loop"]
    assert not any("slower" in line for line in (same, better, unknown))


def test_a_ratio_is_our_time_over_that_of_the_reference():
    result = {"ratio": 8.0, "commands": {"report": {"over_torch": 4.0}}, "mlp.ours/plain": 0.9}
    assert _ratio(Row("step", "ratio", "", False), result) == 0.125
    assert _ratio(Row("commands RUN", "commands.report.over_torch", ""), result) == 4.0
    assert _ratio(Row("transformer", "mlp.ours/plain", ""), result) == 0.9


def test_no_two_rows_are_called_the_same():
    assert len({row.what for row in ROWS}) == len(ROWS)
