"""The report: complete, true to the run, self-contained, and safe with odd names."""

import base64
import hashlib
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

import mechinterp as mi
from mechinterp.circuits.trajectory import circuit_graphs
from mechinterp.errors import MechinterpError
from mechinterp.report import html
from tests.training.test_trainer import FirstTokenTask


def _scripts(page: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", page, flags=re.S)


def _data(page: str, name: str) -> dict:
    """What lies beside the figure of this name."""
    figure = re.search(rf'data-name="{name}">(.*?)</figure>', page, flags=re.S)
    assert figure, f"no figure {name}"
    return json.loads(re.search(r'<script type="application/json">(.*)</script>', figure[1], flags=re.S)[1])


def _array(packed: dict) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(packed["bdata"]), dtype=packed["dtype"]).reshape(packed["shape"])
    return np.where(values == 255, np.nan, values * packed["scale"]) if packed["scale"] else values


@pytest.fixture(scope="module")
def odd_page(tiny_run, tmp_path_factory):
    """The page of a run with an unpleasant name, with another one laid over it."""
    folder = tmp_path_factory.mktemp("odd")
    run = mi.open_run(shutil.copy(tiny_run.path, folder / "<img src=x>&.h5"))
    table = mi.measure(run, n_sequences=20)
    table["icl_accuracy"] = np.linspace(0, 1, len(table))
    others = {"</script><script>alert(1)</script>": table}
    return run, table, mi.write_report(run, table, folder / "r.html", others=others).read_text()


def test_the_page_asks_for_nothing_outside_and_runs_only_its_own_scripts(odd_page):
    _, _, page = odd_page
    scripts = _scripts(page)
    assert len(scripts) == 2
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page, flags=re.S)[1]
    digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    assert re.search(r"script-src (.*?);", policy)[1] == " ".join(f"'sha256-{each}'" for each in digests)
    assert policy.startswith("default-src 'none'")
    for each in scripts:
        page = page.replace(each, "")
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", page)
    assert not re.search(r"\son\w+=", re.sub(r'<script type="application/json">.*?</script>', "", page, flags=re.S))


def test_names_are_text_wherever_they_stand(odd_page):
    _, _, page = odd_page
    assert "<img" not in page.replace(_scripts(page)[0], "")
    assert "<script>alert" not in page
    assert "&lt;img src=x&gt;&amp;" in page
    assert "</script><script>alert(1)</script>" in {trace["hovertext"] for trace in _traces(page, "runs-aligned")}


def _traces(page: str, name: str) -> list[dict]:
    return [trace for drawing in _data(page, name)["drawings"] for trace in drawing["data"]]


def test_every_figure_has_a_caption_and_its_numbers(odd_page):
    run, _, page = odd_page
    figures = re.findall(r"<figure .*?</figure>", page, flags=re.S)
    assert len(figures) == 11
    for figure in figures:
        assert len(re.search(r"<figcaption>(.*?)<button", figure)[1]) > 40
        assert '<button class="csv">' in figure
    assert run.digest(20) in page


def test_attention_is_that_of_the_run_at_every_step(odd_page):
    run, table, page = odd_page
    inputs = run.task.sample("icl", 1).inputs
    drawings = _data(page, "attention")["drawings"]
    assert len(drawings) == 2
    for step in (0, 6, 20):
        _, cache = run.model(step).run_with_cache(inputs)
        for layer, drawing in enumerate(drawings):
            shown = _array(drawing["frames"])[list(table.index).index(step)]
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, 0].numpy()
            expected = np.where(np.tri(7, dtype=bool), pattern, np.nan)
            np.testing.assert_allclose(shown, expected, atol=0.51 / 254)


def test_blocks_are_those_of_the_analysis_at_every_step(odd_page):
    run, table, page = odd_page
    strengths = mi.analyse(run, "qkov", n_sequences=50).set_index(["step", "quantity", "part"])["value"]
    drawings = _data(page, "qk-and-ov-circuits")["drawings"]
    assert [each["data"][0]["name"] for each in drawings] == [
        "QK, layer 1",
        "QK, layer 2",
        "OV, layer 1",
        "OV, layer 2",
    ]
    second = drawings[1]
    for index, step in enumerate(table.index):
        for row, query in enumerate(second["data"][0]["y"]):
            for column, key in enumerate(second["data"][0]["x"]):
                expected = strengths[step, "qk 1.0", f"{query}–{key}"]
                assert _array(second["frames"])[index, row, column] == pytest.approx(expected, rel=1e-6)


def test_the_circuit_is_drawn_as_measured_at_every_step(odd_page):
    run, table, page = odd_page
    data = _data(page, "circuit")
    assert len(data["frames"]) == len(table)
    columns, *rows = data["csv"]
    measured = pd.DataFrame(rows, columns=columns)
    for step, graph in circuit_graphs(run, n_pairs=128).items():
        weights = {(a, b): edge["weight"] for a, b, edge in graph.edges(data=True)}
        here = measured[measured["step"] == step]
        assert len(here) == len(weights)
        for row in here.to_dict("records"):
            assert row["weight"] == pytest.approx(weights[row["source"], row["target"]], abs=1e-5)
        markup = "\n".join(data["parts"][part] for part in data["frames"][list(table.index).index(step)])
        assert f"step {step}" in markup


def test_order_parameters_are_those_of_the_analysis(odd_page):
    run, _, page = odd_page
    found = mi.analyse(run, "order_parameters", n_sequences=200).pivot(
        index="step", columns="parameter", values="value"
    )
    dot = _data(page, "order-parameters")["drawings"][0]["dot"]
    np.testing.assert_allclose(_array(dot["x"]), found["beta1"], rtol=1e-6)
    np.testing.assert_allclose(_array(dot["y"]), found["alpha"], rtol=1e-6)


def test_runs_are_aligned_where_the_measure_crosses_half(odd_page):
    _, _, page = odd_page
    assert _data(page, "runs-aligned")["drawings"][0]["cursor"] == pytest.approx(10.0)  # 0 to 1 over 20 steps
    assert "crosses 50 %" in page


def test_a_located_transition_is_the_headline_and_is_marked_on_the_slider(tiny_run, tmp_path):
    table = mi.measure(tiny_run, n_sequences=20)
    table["ila1"] = [0.1] * 5 + [0.5] + [0.9] * 5
    page = mi.write_report(tiny_run, table, tmp_path / "r.html", measure="ila1").read_text()
    assert re.search(r"ila1 makes its transition at step 1[01] ", page)
    assert re.search(r'class="transition" data-step="1[01]"', page)
    assert 'class="interval"' in page


def test_without_a_transition_none_is_marked(tiny_run, tmp_path):
    table = mi.measure(tiny_run, n_sequences=20)
    page = mi.write_report(tiny_run, table, tmp_path / "r.html").read_text()
    assert "icl_accuracy: no transition" in page
    assert 'class="transition"' not in page
    assert 'class="interval"' not in page


def test_what_a_task_does_not_admit_is_left_out_with_the_reason(tiny_config, tmp_path):
    config = tiny_config.updated({"training.steps": 4, "model.n_layers": 1})
    run = mi.train(config, tmp_path / "own.h5", task=FirstTokenTask(), progress=False)
    page = mi.write_report(run, mi.measure(run, n_sequences=8), tmp_path / "r.html").read_text()
    assert 'data-name="attention"' in page
    assert 'data-name="circuit"' not in page
    for name in ("Circuit", "Order parameters", "QK and OV circuits"):
        assert re.search(rf"<h2>Not shown</h2><p>{name}: ", page)


def test_a_table_without_checkpoints_is_refused(tiny_run, tmp_path):
    with pytest.raises(MechinterpError, match="holds no checkpoint"):
        mi.write_report(tiny_run, mi.measure(tiny_run, n_sequences=8).iloc[:0], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_no_text_in_data_ends_their_element():
    part = html._json({"name": "</script><b>", "value": [1.0, None]})
    assert part.count("</script>") == 1
    assert json.loads(part.removeprefix('<script type="application/json">').removesuffix("</script>")) == {
        "name": "</script><b>",
        "value": [1.0, None],
    }
