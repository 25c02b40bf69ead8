"""The report: complete, self-contained, and safe with odd names."""

import re
import shutil

import mechinterp as mi


def test_the_page_holds_the_run_and_asks_for_nothing_outside(tiny_run, tmp_path):
    copy = shutil.copy(tiny_run.path, tmp_path / "<img src=x>&.h5")
    run = mi.open_run(copy)
    page = mi.write_report(run, mi.measure(run, n_sequences=20), tmp_path / "r.html").read_text()
    assert "<img src=x>" not in page
    assert "&lt;img src=x&gt;&amp;" in page
    assert run.digest(20) in page
    outside_plotly = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.S)
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:""", outside_plotly)
    assert "default-src 'none'" in page
    for part in ("Accuracy over training", "Progress measures", "Attention before and after", "no transition"):
        assert part in page


def test_a_located_transition_is_the_headline(tiny_run, tmp_path):
    table = mi.measure(tiny_run, n_sequences=20)
    table["ila1"] = [0.1] * 5 + [0.5] + [0.9] * 5
    table.insert(0, "ila1", table.pop("ila1"))
    page = mi.write_report(tiny_run, table, tmp_path / "r.html").read_text()
    assert re.search(r"ila1 makes its transition at step 1[01] ", page)
