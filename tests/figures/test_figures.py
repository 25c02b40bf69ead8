"""Figures of runs and tables: what is drawn is what was measured, under names that people read."""

import subprocess
import sys

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import mechinterp as mi
from mechinterp import figures
from mechinterp.emergence import emergence_table
from mechinterp.geometry.over_training import TrainingGeometry
from mechinterp.models.forward import run_with_cache

STEPS = np.arange(0, 2000, 40)


def rising(at: float, width: float = 60.0) -> np.ndarray:
    return 1 / (1 + np.exp(-(STEPS - at) / width)) + np.random.default_rng(0).normal(0, 0.003, len(STEPS))


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    columns = {"icl_accuracy": rising(1000), "icl_loss": 2 - rising(1000), "ila1": rising(700), "ila1_all": rising(700)}
    columns |= {"clamped_ila1": rising(500), "my_measure": np.full(len(STEPS), 0.2), "spikes": np.zeros(len(STEPS))}
    return pd.DataFrame(columns, index=pd.Index(STEPS, name="step"))


def curves_of(figure: go.Figure) -> dict[str, np.ndarray]:
    return {trace["name"]: np.asarray(trace["y"]) for trace in figure.data}


def test_the_package_is_a_public_name_that_costs_nothing_until_it_is_used():
    code = "import sys, mechinterp as mi; lazy = 'plotly' not in sys.modules; assert 'figures' in dir(mi); "
    code += "import mechinterp.figures as home; sys.exit(not (lazy and mi.figures is home))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_progress_measures_are_the_tables_in_words_without_variants_and_losses(table):
    found = curves_of(figures.progress_measures(table))
    assert list(found) == ["IC accuracy", "ILA1", "my measure"]
    np.testing.assert_array_equal(found["ILA1"], table["ila1"])
    shapes = figures.progress_measures(table).to_dict()["layout"]["shapes"]
    located = emergence_table(table, ["icl_accuracy", "ila1"])
    lines = sorted(shape["x0"] for shape in shapes if shape["type"] == "line")
    assert lines == pytest.approx(sorted(located["step"]))
    assert lines == pytest.approx([700, 1000], abs=20)


def test_names_choose_what_is_drawn(table):
    assert list(curves_of(figures.progress_measures(table, ["ila1_all"]))) == ["previous-token attention"]
    with pytest.raises(mi.MechinterpError, match="has no column cla; it has icl_accuracy, "):
        figures.progress_measures(table, ["cla"])


def test_accuracy_and_loss_are_of_a_table_or_a_run(table, tiny_run):
    assert list(curves_of(figures.accuracy(table))) == ["IC accuracy"]
    np.testing.assert_array_equal(curves_of(figures.loss(table))["IC loss"], table["icl_loss"])
    measured = mi.measure(tiny_run)
    assert curves_of(figures.accuracy(tiny_run)).keys() == {
        "training accuracy",
        "IC accuracy",
        "IWL accuracy",
        "swapped-label accuracy",
    }
    np.testing.assert_allclose(curves_of(figures.loss(tiny_run))["IWL loss"], measured["iwl_loss"])


def test_transitions_are_sorted_by_step_with_their_intervals(table):
    drawn = figures.emergence(table)
    located = emergence_table(table)
    order = list(drawn.layout.yaxis.categoryarray)  # pyright: ignore[reportAttributeAccessIssue]
    assert order == ["IC accuracy", "ILA1"], "the first to happen is on top"
    ila1 = next(trace for trace in drawn.data if trace["name"] == "ILA1")
    row, (step,) = located.loc["ila1"], ila1["x"]
    assert step == row["step"]
    ends = step - ila1["error_x"]["arrayminus"][0], step + ila1["error_x"]["array"][0]
    assert ends == pytest.approx((row["low"], row["high"]))
    assert figures.emergence(located.loc[["icl_accuracy", "ila1"]]).to_json() == drawn.to_json()
    with pytest.raises(mi.MechinterpError, match="no measure makes a transition"):
        figures.emergence(table[["my_measure"]])


def test_runs_are_aligned_where_the_measure_crosses_half(table):
    later = table.set_axis(table.index + 300)
    drawn = figures.aligned({"a": table, "b": later, "flat": table * 0.1}, names=["ila1"])
    of = {(trace["hovertext"], trace["name"]): trace for trace in drawn.data}
    assert set(of) == {(run, name) for run in "ab" for name in ("IC accuracy", "ILA1")}
    first, second = of["a", "ILA1"], of["b", "ILA1"]
    np.testing.assert_allclose(first["x"], second["x"], atol=1e-6)
    crossing = np.interp(0, first["x"], of["a", "IC accuracy"]["y"])
    assert crossing == pytest.approx(0.5)
    with pytest.raises(mi.MechinterpError, match="crosses 50 % in none"):
        figures.aligned({"flat": table * 0.1})
    with pytest.raises(mi.MechinterpError, match="is no share"):
        figures.aligned({"a": table}, "icl_loss")
    with pytest.raises(mi.MechinterpError, match="no runs to align"):
        figures.aligned([])


def test_attention_is_that_of_the_networks_heads(tiny_run):
    step = tiny_run.steps[1]
    drawn = figures.attention(tiny_run, step, sequence=2)
    inputs = tiny_run.task.sample(tiny_run.task.evaluations[0], 3).inputs[2:]
    for layer, shown in enumerate(drawn.data):
        hook = f"blocks.{layer}.attn.hook_pattern"
        pattern = run_with_cache(tiny_run.network(step), inputs, [hook])[hook][0, 0].numpy()
        visible = np.tri(len(pattern), dtype=bool)
        np.testing.assert_array_equal(np.asarray(shown["z"])[visible], pattern[visible])
        assert np.isnan(np.asarray(shown["z"], float)[~visible]).all()
    titles = [each["text"] for each in drawn.to_dict()["layout"]["annotations"]]
    assert titles == ["layer 1", "layer 2"]


def test_blocks_are_those_of_the_analysis(tiny_run):
    drawn = figures.qk_ov(tiny_run, "first", n_sequences=5)
    table = mi.analyse(tiny_run, "qkov", steps="first", n_sequences=5)
    of = table.set_index(["quantity", "layer", "part", "other"])["value"]
    names = [each["text"] for each in drawn.to_dict()["layout"]["annotations"]]
    assert names == ["QK, layer 1", "QK, layer 2", "OV, layer 1", "OV, layer 2"]
    for name, shown in zip(names, drawn.data, strict=True):
        quantity, layer = name[:2].lower(), int(name[-1]) - 1
        for row, part in enumerate(shown["y"]):
            for column, other in enumerate(shown["x"]):
                assert shown["z"][row][column] == of[quantity, layer, part, other]


def test_curves_of_analyses_have_names_in_words(tiny_run):
    steps = len(tiny_run.steps)
    costs = curves_of(figures.ablation(tiny_run, most=3, n_sequences=8))
    assert 0 < len(costs) <= 3  # of curves that lie on each other, one
    assert all(name.startswith("layer ") and len(values) == steps for name, values in costs.items())
    table = mi.analyse(tiny_run, "ablate", n_sequences=8)
    last = table[table["step"] == tiny_run.steps[-1]]
    last = last[last["ablation"].isin(["mean", "not_previous_token"])]
    largest = (last["intact"] - last["value"]).abs().max()
    assert max(abs(values[-1]) for values in costs.values()) == pytest.approx(largest)
    blocks = curves_of(figures.interactions(tiny_run, bands=False, most=20, n_sequences=5))
    assert "layer 2: content → buffer" in blocks
    found = figures.order_parameters(tiny_run, n_sequences=20)
    values = mi.analyse(tiny_run, "order_parameters", n_sequences=20).pivot(
        index="step", columns="parameter", values="value"
    )
    np.testing.assert_array_equal(curves_of(found)["β₁"], values["beta1"])
    path = figures.order_parameters(tiny_run, in_plane=True, n_sequences=20).data[0]
    np.testing.assert_allclose(path["y"], values["alpha"], rtol=1e-6)


def test_the_circuit_is_a_graph_that_a_notebook_shows(tiny_run):
    graph = figures.circuit(tiny_run, n_pairs=8)
    assert graph.graph["n_pairs"] == 8
    assert str(graph._repr_svg_()).startswith("<svg")


@pytest.mark.parametrize(
    ("draw", "why"),
    [
        (lambda run: figures.attention(run, 12345), "12345"),
        (lambda run: figures.attention(run, sequence=-1), "sequence"),
        (lambda run: figures.accuracy(pd.DataFrame()), "is empty"),
        (lambda run: figures.loss(pd.DataFrame({"ila1": [1.0]})), "no loss was measured"),
        (lambda run: figures.aligned([run, run]), "have the same name"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(draw, why, tiny_run):
    with pytest.raises(mi.MechinterpError, match=why):
        draw(tiny_run)


def test_no_two_measures_of_one_figure_share_a_colour():
    names = ["prefix_matching_1", "icl_accuracy", "prefix_matching_2", "ila1", "cla", "x"]
    colours = figures.colours_of(names)
    assert len(set(colours)) == len(names)
    assert colours[1] == figures.COLOURS["icl_accuracy"] != colours[0]


def test_the_geometry_has_bands_of_errors_and_the_transition_of_the_accuracy():
    noisy = pd.DataFrame({"hessian_top_1": np.linspace(1, 2, len(STEPS))}, pd.Index(STEPS, name="step"))
    noisy["hessian_top_1_error"], noisy["hessian_low"], noisy["hessian_low_error"] = 0.1, -1.0, 0.2
    noisy["gradient_noise_scale"], noisy["gradient_noise_scale_error"] = np.where(STEPS == 400, np.nan, 5.0), 1.0
    noisy["hessian_residual"], noisy["update_norm"], noisy["icl_accuracy"] = 0.01, 2.0, rising(1000)
    located = emergence_table(noisy, ["icl_accuracy"])
    figure = figures.geometry_curves(TrainingGeometry(noisy, pd.DataFrame(), located, "icl_accuracy"))
    found = curves_of(figure)
    assert {"top 1", "low", "update norm", "icl accuracy", "top 1, 95 % interval"} <= set(found)
    assert not any("residual" in name for name in found)
    np.testing.assert_array_equal(found["top 1"], noisy["hessian_top_1"])
    band = found["top 1, 95 % interval"]
    assert band[0] == pytest.approx(1 - 0.196)
    assert band[len(STEPS)] == pytest.approx(2 + 0.196)
    gap = found["gradient noise scale, 95 % interval"]  # two outlines, of 10 steps and of the 39 after the gap
    assert [number for number, value in enumerate(gap) if value is None or np.isnan(value)] == [20, 20 + 1 + 78]
    panels = [annotation["text"] for annotation in figure.to_dict()["layout"]["annotations"]]
    assert panels[:2] == ["IC accuracy", "eigenvalues of the Hessian"]
    shapes = figure.to_dict()["layout"]["shapes"]
    shaded = [(shape["x0"], shape["x1"]) for shape in shapes if shape["type"] == "rect"]
    assert shaded == [tuple(located.loc["icl_accuracy", ["low", "high"]])] * len(panels)
    assert {shape["x0"] for shape in shapes if shape["type"] == "line"} == {located.loc["icl_accuracy", "step"]}
