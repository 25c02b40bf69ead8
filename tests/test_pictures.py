"""Pictures of figures: what is missing is one clear line in advance; what is drawn needs no network."""

import struct
import sys
from xml.etree import ElementTree

import kaleido
import plotly.graph_objects as go
import pytest
from choreographer.browsers.chromium import Chromium

from mechinterp.errors import MechinterpError
from mechinterp.pictures import SCALE, framed, require_export, write_pictures


@pytest.fixture
def browser():
    try:
        require_export()
    except MechinterpError as error:
        pytest.skip(str(error))


def figure(**layout) -> go.Figure:
    return go.Figure(go.Scatter(x=[1, 2, 3], y=[1, 4, 9], name="squares"), layout=layout)


def test_without_kaleido_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(MechinterpError, match=r"not installed: pip install -c constraints.txt -e '\.\[export\]'"):
        require_export()


def test_without_a_browser_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(Chromium, "find_browser", lambda **options: None)
    with pytest.raises(MechinterpError, match=r"there is none: install one .*, or set BROWSER_PATH"):
        require_export()


def test_a_browser_path_that_is_no_program_is_named(monkeypatch):
    monkeypatch.setattr(Chromium, "find_browser", lambda **options: "/nowhere/chromium")
    with pytest.raises(MechinterpError, match="/nowhere/chromium"):
        require_export()


def test_a_browser_that_fails_is_one_line(monkeypatch, tmp_path, browser):
    def fails(*arguments, **options):
        raise RuntimeError("it went away")

    monkeypatch.setattr(kaleido, "write_fig_from_object_sync", fails)
    with pytest.raises(MechinterpError, match=r"f\.png: the browser could not draw it \(RuntimeError: it went away\)"):
        write_pictures(figure(), tmp_path / "f.html", ["png"])


def test_pictures_of_every_kind_without_a_network(browser, tmp_path, monkeypatch):
    asked, write = [], kaleido.write_fig_from_object_sync

    def spied(figures, **options):
        asked.append(options["kopts"])
        return write(figures, **options)

    monkeypatch.setattr(kaleido, "write_fig_from_object_sync", spied)
    paths = write_pictures(figure(height=300), tmp_path / "f.html", ["png", "svg", "pdf", "png"])
    assert [path.name for path in paths] == ["f.png", "f.svg", "f.pdf"]
    assert asked == [{"mathjax": False}], "MathJax would come from a network"
    png, svg, pdf = paths
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png.read_bytes()[16:24]) == (1000 * SCALE, 300 * SCALE)
    root = ElementTree.parse(svg).getroot()
    assert (root.tag, root.attrib["width"], root.attrib["height"]) == ("{http://www.w3.org/2000/svg}svg", "1000", "300")
    assert pdf.read_bytes()[:5] == b"%PDF-"


def test_a_drawing_becomes_a_picture_of_its_size(browser, tmp_path):
    drawing = '<svg xmlns="http://www.w3.org/2000/svg" width="70" height="30"><circle r="9"/></svg>'
    shown = framed(drawing)
    (path,) = write_pictures(shown, tmp_path / "d.svg", ["svg"])
    root = ElementTree.parse(path).getroot()
    assert (root.attrib["width"], root.attrib["height"]) == ("70", "30")
    (image,) = root.iter("{http://www.w3.org/2000/svg}image")
    assert image.attrib["{http://www.w3.org/1999/xlink}href"] == shown.to_dict()["layout"]["images"][0]["source"]
    assert (float(image.attrib["width"]), float(image.attrib["height"])) == (70, 30)
