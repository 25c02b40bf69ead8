"""Figures for papers: their width, their text, what tells curves apart, and the files that the command writes."""

import asyncio
import json
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import mechinterp as mi
from mechinterp import figures, pictures
from mechinterp.cli import main
from mechinterp.errors import MechinterpError
from mechinterp.figures.paper import TEXT, Column, paper
from mechinterp.report import static

NAMES = ["icl_accuracy", "iwl_accuracy", "swap_accuracy", "train_accuracy"]


@pytest.fixture
def browser():
    try:
        pictures.require_export()
    except MechinterpError as error:
        pytest.skip(str(error))


@pytest.fixture
def drawn(monkeypatch) -> dict[str, go.Figure | str]:
    """What would be drawn, without a browser."""
    return without_browser(monkeypatch)


def without_browser(monkeypatch: pytest.MonkeyPatch) -> dict[str, go.Figure | str]:
    """The figures by the names of their files, as they are asked for."""
    asked = {}

    def write_all(wanted, **options):
        asked.update({path.name: each for path, each in wanted.items()})
        return list(wanted)

    monkeypatch.setattr(static, "write_all", write_all)
    monkeypatch.setattr(static, "require_export", lambda: None)
    monkeypatch.setattr(pictures, "require_export", lambda: None)
    return asked


@pytest.fixture(scope="module")
def page(tiny_run, tmp_path_factory) -> tuple[static.Written, dict[str, go.Figure | str]]:
    """All figures of a run of which no loss was measured, at its first step."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        asked = without_browser(monkeypatch)
        table = mi.measure(tiny_run).filter(regex="(?<!_loss)$")
        others = {"other": table}
        folder = tmp_path_factory.mktemp("static") / "made"
        done = static.write_figures(tiny_run, table, folder, "svg", step="first", others=others, measure="iwl_accuracy")
        return done, asked


@pytest.fixture(scope="module")
def accuracies() -> pd.DataFrame:
    steps = np.arange(0, 600, 10)
    return pd.DataFrame({name: steps / 600 for name in NAMES}, index=pd.Index(steps, name="step"))


def sizes(value: object, key: str = "") -> set[float]:
    """Every size of text in a figure."""
    if isinstance(value, dict):
        own = {float(value["size"])} if key.endswith("font") and "size" in value else set()
        return own.union(*(sizes(each, name) for name, each in value.items() if name != "template"))
    return set().union(*(sizes(each, key) for each in value)) if isinstance(value, list | tuple) else set()


@pytest.mark.parametrize(("column", "inches"), [(Column.single, 3.25), (Column.double, 6.75)])
def test_a_figure_is_as_wide_as_its_column_in_text_of_eight_points(column, inches, accuracies):
    shown = paper(figures.accuracy(accuracies), column).to_dict()
    assert shown["layout"]["width"] == inches * 96
    assert {round(size, 6) for size in sizes(shown)} == {round(8 / 72 * 96, 6)}
    assert not shown["layout"].get("title")


def test_curves_differ_in_grey_and_a_figure_is_not_changed(accuracies):
    figure = figures.accuracy(accuracies)
    before = figure.to_json()
    shown = paper(figure)
    assert figure.to_json() == before
    assert len({(trace["line"]["dash"], trace["marker"]["symbol"]) for trace in shown.data}) == len(NAMES)
    assert {trace["line"]["color"] for trace in shown.data} <= {*figures.PALETTE}, "safe for the colour-blind"


def test_runs_of_one_measure_look_alike(accuracies):
    shown = paper(figures.aligned({"a": accuracies, "b": accuracies}, "icl_accuracy", NAMES))
    looks = {(trace["name"], trace["line"]["dash"], trace["marker"]["symbol"]) for trace in shown.data}
    assert len(shown.data) == 2 * len(NAMES)
    assert len(looks) == len(NAMES)


def test_the_legend_lies_above_the_axes_in_the_margin(accuracies):
    shown = paper(figures.accuracy(accuracies)).to_dict()["layout"]
    assert shown["legend"]["y"] == 1
    assert shown["legend"]["yanchor"] == "bottom"
    assert shown["margin"]["t"] >= 4 * 19, "four long names take a row each"
    one = paper(figures.accuracy(accuracies[["icl_accuracy"]])).to_dict()["layout"]
    assert one["showlegend"] is False
    assert one["margin"]["t"] < 19


def test_labels_of_a_map_do_not_overlap(tiny_run):
    figure = figures.attention(tiny_run, across=2)
    shown = paper(figure).to_dict()["layout"]
    n = len(figure.data[0]["x"])
    for name in ("", "2"):
        share = np.diff(shown[f"xaxis{name}"]["domain"])[0]
        inner = shown["width"] - shown["margin"]["l"] - shown["margin"]["r"]
        apart = share * inner / n * np.diff(shown[f"xaxis{name}"]["tickvals"])[0]
        assert apart >= TEXT
    assert shown["xaxis2"]["domain"][0] > shown["xaxis"]["domain"][1]


def test_every_figure_of_the_page_is_written_under_its_name(tiny_run, page):
    done, drawn = page
    names = ["progress-measures", "accuracy", "loss", "transitions", "circuit", "attention", "qk-ov"]
    names += ["order-parameters", "order-parameters-plane", "interactions", "paths", "ablations", "aligned"]
    written = {path.stem for path in done.paths}
    assert written | {*done.omitted} == {*names}
    assert {"progress-measures", "accuracy", "circuit", "attention", "qk-ov", "ablations"} <= written
    attention = figures.attention(tiny_run, "first", across=1)
    for ours, theirs in zip(drawn["attention.svg"].data, attention.data, strict=True):
        np.testing.assert_array_equal(ours["z"], theirs["z"])


def test_the_circuit_has_text_of_eight_points_or_is_as_wide_as_two_columns(page):
    root = ElementTree.fromstring(page[1]["circuit.svg"])
    width, box = float(root.attrib["width"]), [float(each) for each in root.attrib["viewBox"].split()]
    assert width <= Column.double.pixels + 1
    assert width / box[2] == pytest.approx(min(TEXT / 13, Column.double.pixels / box[2]), rel=1e-3)


def test_what_does_not_apply_is_left_out_with_the_reason(page):
    done, _ = page
    assert "no loss was measured" in done.omitted["loss"]
    assert not [path for path in done.paths if path.stem == "loss"]


def test_the_command_writes_into_a_folder_beside_the_run(tiny_run, drawn, monkeypatch, tmp_path, capsys):
    copy, step, every = tmp_path / "r.h5", tiny_run.steps[2], static._figures
    copy.write_bytes(tiny_run.path.read_bytes())
    monkeypatch.setattr(
        static, "_figures", lambda *given: {name: every(*given)[name] for name in ("accuracy", "circuit")}
    )
    assert main(["report", str(copy), "--static", "pdf", "--step", str(step), "--json"]) == 0
    written = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert written == [str(tmp_path / "r.figures" / f"{name}.pdf") for name in ("accuracy", "circuit")]
    assert drawn["circuit.pdf"].count(f"Circuit at step {step:,}")
    assert not (tmp_path / "r.html").exists()
    assert main(["report", str(copy), "--static", "svg", "--out", str(tmp_path / "made")]) == 0
    assert str(tmp_path / "made" / "accuracy.svg") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--static", "pdf", "--out", "figures.pdf"], "with --static, --out is a folder"),
        (["--step", "3"], "--step and --double-column go with --static"),
        (["--static", "pdf", "--step", "987654"], "987654"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_measured(options, why, tiny_run, drawn, capsys):
    assert main(["report", str(tiny_run.path), *options]) == 2
    assert why in capsys.readouterr().err


def test_without_a_browser_one_line_says_so_before_anything_is_measured(tiny_run, monkeypatch, capsys):
    def missing():
        raise MechinterpError("pictures are made by kaleido, which is not installed")

    monkeypatch.setattr(pictures, "require_export", missing)
    assert main(["report", str(tiny_run.path), "--static", "png"]) == 2
    assert "kaleido, which is not installed" in capsys.readouterr().err


def test_files_have_their_size_and_embedded_fonts_in_a_running_event_loop(browser, accuracies, tmp_path):
    """As in a notebook."""
    shown = paper(figures.accuracy(accuracies))
    height = shown.to_dict()["layout"]["height"]
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="96" height="48" viewBox="0 0 96 48"><text y="20">a</text></svg>'
    )
    wanted = {tmp_path / f"f.{form}": shown for form in ("pdf", "svg", "png")}
    wanted |= {tmp_path / f"d.{form}": pictures.scaled(drawing, 2.0) for form in ("pdf", "svg")}

    async def in_a_loop():
        return pictures.write_all(wanted, scale=static.DOTS / 96)

    with ThreadPoolExecutor(1) as thread:  # the browser of other tests has a loop of its own in this one
        assert thread.submit(lambda: asyncio.run(in_a_loop())).result() == list(wanted)
    for name, points in (("f.pdf", (234, height * 0.75)), ("d.pdf", (144, 72))):
        document = (tmp_path / name).read_bytes()
        box = [float(each) for each in re.findall(rb"/MediaBox \[([^\]]*)\]", document)[0].split()]
        assert box[2:] == pytest.approx(points, abs=1)
        described = document.count(b"/Type /FontDescriptor")
        assert described > 0
        assert len(re.findall(rb"/FontFile[23]? ", document)) == described, "every font is embedded"
    svg = ElementTree.parse(tmp_path / "f.svg").getroot()
    assert float(svg.attrib["width"]) == 312
    styles = [each.attrib.get("style", "") for each in svg.iter("{http://www.w3.org/2000/svg}text")]
    found = {float(size) for style in styles for size in re.findall(r"font-size: ([0-9.]+)px", style)}
    assert {round(size, 2) for size in found} == {round(TEXT, 2)}
    assert struct.unpack(">II", (tmp_path / "f.png").read_bytes()[16:24])[0] == 1950
    assert 'width="192"' in (tmp_path / "d.svg").read_text()


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(MechinterpError, match=r"f\.gif: pictures are png, svg, pdf"):
        pictures.write_all({tmp_path / "f.gif": go.Figure()})
