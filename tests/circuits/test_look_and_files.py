"""A circuit is drawn as the reader wishes, and written in the format that the file's name says, or not at all."""

import re
import shutil
from xml.etree import ElementTree

import pytest

from mechinterp.circuits.graph import graph_of
from mechinterp.circuits.look import Look
from mechinterp.circuits.pictures import write_picture
from mechinterp.circuits.svg import to_svg
from mechinterp.cli import main
from mechinterp.errors import MechinterpError


@pytest.fixture(scope="module")
def graph(planted):
    return graph_of(planted)


def words(picture: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(picture).iter() if each.tag.endswith("text")]


def test_a_theme_follows_the_page_or_is_fixed(graph):
    light, dark, auto = (to_svg(graph, look=Look(theme=theme)) for theme in ("light", "dark", "auto"))
    assert "prefers-color-scheme" in auto
    assert "prefers-color-scheme" not in light + dark
    assert "#16181c" in dark
    assert "#16181c" not in light
    with pytest.raises(MechinterpError, match=r"unknown theme 'drak'; did you mean 'dark'\?"):
        Look(theme="drak")


def test_a_width_is_that_of_the_document(graph):
    for width in (336, 700, 1280):
        root = ElementTree.fromstring(to_svg(graph, look=Look(width=width)))
        assert float(root.attrib["width"]) == width
        left, top, right, bottom = map(float, root.attrib["viewBox"].split())
        assert (left, top) == (0, 0)
        assert float(root.attrib["height"]) == pytest.approx(bottom * width / right, abs=0.5)
    for width in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(MechinterpError, match=r"width is .*; expected pixels, more than 0"):
            Look(width=width)


def test_legend_and_caption_can_be_left_out(graph):
    whole, bare = to_svg(graph), to_svg(graph, look=Look(legend=False, caption=False))
    assert {"helps", "hurts", "0.25"} <= {*words(whole)}
    assert not {"helps", "hurts", "0.25"} & {*words(bare)}
    assert not any("standard errors" in line for line in words(bare))
    height = [float(ElementTree.fromstring(each).attrib["height"]) for each in (whole, bare)]
    assert height[1] < height[0] - 40


def test_labels_and_colours_are_ones_own(graph):
    look = Look(labels={"correct_label": "its label", "match": "compare"}, colours={"match": "#009e73", "hurts": "red"})
    picture = to_svg(graph, look=look)
    assert "its label" in words(picture)
    assert "correct label" not in words(picture)
    assert any(each.startswith("compare ") for each in words(picture))
    (own,) = {*re.findall(r"\.circuit \.(own-\d+)\{stroke:#009e73\}", picture)}
    assert picture.count(f"line helps {own}") == 1
    assert ".circuit .hurts{stroke:red}" in picture
    for wrong in (Look(labels={"matsch": "a"}), Look(colours={"matsch": "red"})):
        with pytest.raises(MechinterpError, match="'matsch'; did you mean 'match'"):
            to_svg(graph, look=wrong)
    with pytest.raises(MechinterpError, match="expected a colour of CSS"):
        Look(colours={"match": "red}</style><script>"})


def test_a_page_holds_the_drawing(graph, tmp_path):
    svg = to_svg(graph, "A & B")
    assert write_picture(svg, tmp_path / "c.svg").read_text() == svg
    page = write_picture(svg, tmp_path / "c.HTML").read_text()
    assert page.startswith("<!doctype html>")
    assert svg in page
    assert "<title>A &amp; B</title><meta" in page


@pytest.mark.parametrize("form", ["png", "pdf"])
def test_pixels_and_pages_of_paper_are_drawn_by_a_browser(graph, tmp_path, monkeypatch, form):
    """What the browser draws of a figure is tested with `mechinterp.pictures`."""

    def drawn(figure, path, formats):
        path.write_bytes(f"{formats} {figure.layout.width} {path.suffix}".encode())
        return [path]

    monkeypatch.setattr("mechinterp.pictures.write_pictures", drawn)
    written = write_picture(to_svg(graph, look=Look(width=400)), tmp_path / f"c.{form.upper()}")
    assert written.read_bytes() == f"['{form}'] 400 .{form}".encode()
    assert [each.name for each in tmp_path.iterdir()] == [f"c.{form.upper()}"]


@pytest.mark.parametrize("name", ["c.jpg", "c", "c.png.txt"])
def test_another_ending_is_refused_before_anything_is_measured(tiny_run, tmp_path, capsys, name, monkeypatch):
    monkeypatch.setattr("mechinterp.analysis.checkpoints.circuit_graphs", None)  # which would raise a TypeError
    out = tmp_path / "folder" / name
    assert main(["circuit", str(tiny_run.path), "--out", str(out)]) == 2
    assert "what is written there is .svg, .html, .png or .pdf" in capsys.readouterr().err
    assert not out.parent.exists()


def test_a_command_writes_what_its_options_say(tiny_run, tmp_path):
    run, out = shutil.copy(tiny_run.path, tmp_path / "tiny.h5"), tmp_path / "c.html"
    options = ["--n-pairs", "8", "--theme", "dark", "--width", "500", "--no-legend", "--no-caption", "--title", "Mine"]
    assert main(["circuit", str(run), "--out", str(out), *options]) == 0
    page = out.read_text()
    assert 'width="500"' in page
    assert ">Mine<" in page
    assert "helps<" not in page
    assert "prefers-color-scheme:dark" not in page
