"""The report: complete, true to the run, self-contained, and safe with odd names."""

import base64
import hashlib
import json
import re

import numpy as np
import pandas as pd
import pytest

import mechinterp as mi
from mechinterp.analysis.checkpoints import circuit_graphs
from mechinterp.circuits.svg import panels
from mechinterp.cli import main
from mechinterp.errors import MechinterpError
from mechinterp.figures import SPIKE_COLOUR
from mechinterp.report import html
from mechinterp.report.study import write_study_report
from mechinterp.training.spikes import SPIKES, spikes_of
from tests.helpers import copied
from tests.training.test_trainer import FirstTokenTask


def _scripts(page: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", page, flags=re.S)


def _group(pattern: str, text: str, flags: int = 0) -> str:
    """What the group of the pattern matches, where it first does."""
    match = re.search(pattern, text, flags=flags)
    assert match, f"nothing matches {pattern}"
    return match[1]


def _data(page: str, name: str) -> dict:
    """What lies beside the figure of this name."""
    figure = _group(rf'data-name="{name}">(.*?)</figure>', page, re.S)
    return json.loads(_group(r'<script type="application/json">(.*)</script>', figure, re.S))


def _array(packed: dict) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(packed["bdata"]), dtype=packed["dtype"]).reshape(packed["shape"])
    return np.where(values == 255, np.nan, values * packed["scale"]) if packed["scale"] else values


@pytest.fixture(scope="module")
def odd_page(tiny_run, plain_page, tmp_path_factory):
    """The page of a run with an unpleasant name, with another one laid over it."""
    folder = tmp_path_factory.mktemp("odd")
    run = copied(tiny_run, folder / "<img src=x>&.h5")
    table = mi.measure(run, n_sequences=20)
    table["icl_accuracy"] = np.linspace(0, 1, len(table))
    others = {"</script><script>alert(1)</script>": table}
    return run, table, mi.write_report(run, table, folder / "r.html", others=others).read_text()


def test_the_page_asks_for_nothing_outside_and_runs_only_its_own_scripts(odd_page):
    _, _, page = odd_page
    scripts = _scripts(page)
    assert len(scripts) == 2
    policy = _group(r'Content-Security-Policy" content="(.*?)"', page, re.S)
    digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    assert _group(r"script-src (.*?);", policy) == " ".join(f"'sha256-{each}'" for each in digests)
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
    assert len(figures) == 10  # of paths there is nothing to show, and of transitions only small ones
    for figure in figures:
        assert len(_group(r"<figcaption>(.*?)<button", figure)) > 40
        assert '<button class="csv"' in figure
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
    strengths = mi.analyse(run, "qkov", n_sequences=50)
    strengths = strengths.set_index(["step", "quantity", "layer", "head", "part", "other"])["value"]
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
                expected = strengths[step, "qk", 1, 0, query, key]
                assert _array(second["frames"])[index, row, column] == pytest.approx(expected, rel=1e-6)


def test_the_circuit_is_drawn_as_measured_at_every_step(odd_page):
    run, table, page = odd_page
    data = _data(page, "circuit")
    assert len(data["frames"]) == len(table)
    columns, *rows = data["csv"]
    measured = pd.DataFrame(rows, columns=columns)
    graphs = circuit_graphs(run, n_pairs=128)
    _, drawn = panels(graphs)
    for step, graph in graphs.items():
        weights = {(a, b): edge["weight"] for a, b, edge in graph.edges(data=True)}
        here = pd.DataFrame(measured[measured["step"] == step])
        assert len(here) == len(weights)
        for row in here.to_dict("records"):
            assert row["weight"] == pytest.approx(weights[row["source"], row["target"]], abs=1e-5)
        markup = "\n".join(data["parts"][part] for part in data["frames"][list(table.index).index(step)])
        assert markup == drawn[step]
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
    assert "aligned where IC accuracy crosses 50 %" in page


def test_a_located_transition_is_the_headline_and_is_marked_on_the_slider(tiny_run, tmp_path):
    table = mi.measure(tiny_run, n_sequences=20)
    table["ila1"] = [0.1] * 5 + [0.5] + [0.9] * 5
    page = mi.write_report(tiny_run, table, tmp_path / "r.html", measure="ila1").read_text()
    assert re.search(r'<p class="verdict">ILA1 rose around step 1[01], but no induction head formed by step 20', page)
    assert re.search(r'<span class="left">ILA1</span>.*?<span class="right">1[01] \[\d+, \d+\]</span>', page)
    assert re.search(r'class="transition" data-step="1[01]"', page)
    assert 'class="interval"' in page


def test_loss_spikes_are_said_below_the_headline_and_marked_on_the_curves(spiking_run, plain_page, tmp_path):
    table, spikes = mi.measure(spiking_run, n_sequences=20), spikes_of(spiking_run.file.metrics())
    assert spikes
    page = mi.write_report(spiking_run, table, tmp_path / "r.html").read_text()
    assert f'<p class="note">{str(spikes).capitalize()}.</p>' in page
    for figure in ("progress-measures", "further-measures", "accuracy", "loss"):
        (drawing,) = _data(page, figure)["drawings"]
        ticks = [shape for shape in drawing["layout"]["shapes"] if shape["line"]["color"] == SPIKE_COLOUR]
        assert [(tick["x0"], tick["x1"]) for tick in ticks] == [(step, step) for step in spikes.steps]
        assert all((tick["yref"], tick["y0"]) == ("paper", 0) for tick in ticks)
        assert not {*SPIKES} & {trace["name"] for trace in drawing["data"]}
    assert (
        page.count(f"Ticks at the foot: loss spikes, the highest between two checkpoints ({spikes.count} in all)") == 4
    )
    calm = plain_page.read_text()
    assert "oss spike" not in calm
    shapes = _data(calm, "accuracy")["drawings"][0]["layout"].get("shapes", [])
    assert not [shape for shape in shapes if shape["line"].get("color") == SPIKE_COLOUR]


def test_without_a_transition_none_is_marked(plain_page):
    page = plain_page.read_text()
    assert "IC accuracy made no located transition" in page
    assert "no transition: " in page
    assert 'class="transition"' not in page
    assert 'class="interval"' not in page


def test_what_a_task_does_not_admit_is_left_out_with_the_reason(tiny_config, tmp_path):
    config = tiny_config.updated({"training.steps": 4, "model.n_layers": 1})
    run = mi.train(config, tmp_path / "own.h5", task=FirstTokenTask(), progress=False)
    page = mi.write_report(run, mi.measure(run, n_sequences=8), tmp_path / "r.html").read_text()
    assert 'data-name="attention"' in page
    assert 'data-name="circuit"' not in page
    for name in ("Circuit", "Order parameters", "QK and OV circuits"):
        assert re.search(rf"<summary>Not shown, and why</summary>.*<p>{name}: ", page)
    assert page.count("<summary>Not shown, and why</summary>") == 1


def test_measures_under_interventions_are_shown_beside_those_of_the_weights(tiny_config, tmp_path):
    clamp = {"kind": "clamp", "layer": 0, "pattern": "previous_token", "strength": 1.0}
    config = tiny_config.updated({"interventions": [clamp], "training.steps": 4})
    run = mi.train(config, tmp_path / "clamped.h5", progress=False)
    table = mi.measure(run, n_sequences=20)
    page = mi.write_report(run, table, tmp_path / "r.html").read_text()
    (released,) = (each for each in _traces(page, "progress-measures") if each["name"] == "ila1")
    (clamped,) = (each for each in _traces(page, "under-the-interventions") if each["name"] == "clamped_ila1")
    assert _array(clamped["y"] | {"scale": None, "shape": [3]}) == pytest.approx(1.0)
    assert _array(released["y"] | {"scale": None, "shape": [3]}) == pytest.approx(table["ila1"].to_numpy())


def test_paths_without_an_answer_to_restore_are_not_drawn(tiny_config, tmp_path):
    run = mi.train(tiny_config.updated({"training.steps": 1}), tmp_path / "untrained.h5", progress=False)
    page = mi.write_report(run, mi.measure(run, steps=[0], n_sequences=20), tmp_path / "r.html").read_text()
    assert "Paths that carry the pairing: at no step is there an answer to restore" in page
    assert 'data-name="paths-that-carry-the-pairing"' not in page


@pytest.mark.parametrize(
    ("measure", "others", "why"),
    [
        ("icl_accuracy", ["other"], "IC accuracy crosses 50 % in none of the runs"),
        ("train_loss", ["other"], "training loss is no share"),
    ],
)
def test_runs_that_cannot_be_aligned_are_not_and_the_page_says_why(measure, others, why, tiny_run, tmp_path):
    table = mi.measure(tiny_run, n_sequences=20)
    laid = dict.fromkeys(others, table)
    page = mi.write_report(tiny_run, table, tmp_path / "r.html", measure=measure, others=laid).read_text()
    assert f"Runs, aligned: {why}" in page


def test_two_runs_of_one_name_are_refused(tiny_run, tmp_path):
    table = mi.measure(tiny_run, n_sequences=20)
    with pytest.raises(MechinterpError, match="tiny names two runs"):
        mi.write_report(tiny_run, table, tmp_path / "r.html", others={"tiny": table})


def test_the_command_lays_runs_over_each_other_and_writes_the_page_of_a_study(tiny_run, plain_page, tmp_path, capsys):
    paths = [copied(tiny_run, tmp_path / f"{name}.h5").path for name in ("a", "b")]
    out = tmp_path / "page.html"
    assert main(["report", *map(str, paths), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(out)}
    assert "Runs, aligned: IC accuracy crosses 50 % in none of the runs" in out.read_text()
    (tmp_path / "study.toml").write_text("seeds = [0]\n[base]\ntraining.steps = 10\n[variants.free]\n")
    study = ["report", "--study", str(tmp_path / "study.toml"), "--runs", str(tmp_path / "runs")]
    for arguments, message in (
        (study, "no run of it is done"),
        ([*study, str(paths[0])], "one of the two"),
        ([*study, "--measure", "ila1"], "--measure and --task go with a run"),
        (["report", str(paths[0]), "--paper-scale"], "--paper-scale and --runs go with --study"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_the_page_of_a_study_aligns_its_seeds(tiny_config, tmp_path):
    study = mi.Study.of("tiny", tiny_config.updated({"training.steps": 16}), {"free": {}}, seeds=[0, 1])
    table = mi.run_study(study, tmp_path, workers=1, progress=False)
    page = write_study_report(study, table, tmp_path, tmp_path / "study.html").read_text()
    assert "<h2>Seeds, aligned</h2>" in page
    assert "<h2>free</h2><p>IC accuracy crosses 50 % in none of the runs.</p>" in page


def test_an_unknown_headline_is_refused(tiny_run, tmp_path):
    table = mi.measure(tiny_run, n_sequences=20)
    with pytest.raises(MechinterpError, match=r"icl_acuracy.*icl_accuracy"):
        mi.write_report(tiny_run, table, tmp_path / "r.html", measure="icl_acuracy")


def test_a_table_without_checkpoints_is_refused(tiny_run, tmp_path):
    with pytest.raises(MechinterpError, match="holds no checkpoint"):
        mi.write_report(tiny_run, mi.measure(tiny_run, n_sequences=20).iloc[:0], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_no_text_in_data_ends_their_element():
    part = html._json({"name": "</script><b>", "value": [1.0, None]})
    assert part.count("</script>") == 1
    assert json.loads(part.removeprefix('<script type="application/json">').removesuffix("</script>")) == {
        "name": "</script><b>",
        "value": [1.0, None],
    }
