"""The diagram is drawn legibly, and the same way every time."""

import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from mechinterp.circuits.graph import circuit_graph, graph_of
from mechinterp.circuits.svg import film_strip, panels, to_svg
from mechinterp.errors import MechinterpError
from tests.circuits.planted import PLANTED


def test_a_picture_is_the_same_bytes_and_well_formed(tiny_run, planted, deep):
    pictures = [to_svg(circuit_graph(tiny_run.network(20), tiny_run.task, n_pairs=8), "a") for _ in range(2)]
    assert pictures[0] == pictures[1]
    loud = deep[1].assign(weight=1.0, effect=np.linspace(-2, 2, len(deep[1])), error=1e-3, span=1.0, span_error=0.1)
    for graph in (graph_of(planted), graph_of(loud), graph_of(planted, weight="attention")):
        picture = to_svg(graph)
        ElementTree.fromstring(picture)
        assert "nan" not in picture
        legend = 6 if graph.graph["weight"] == "effect" else 4
        n_drawn = sum(edge["drawn"] for _, _, edge in graph.edges(data=True))
        assert picture.count('class="line ') == n_drawn + legend
        assert n_drawn > 0


def test_signs_widths_and_names_are_shown(planted):
    picture = to_svg(graph_of(planted))
    for name in ("previous token", "write", "match", "copy", "readout"):
        assert f">{name} " in picture
    assert picture.count('class="line hurts"') == 1  # the legend's
    hurt = planted.assign(effect=planted["effect"].where(planted["operation"] != "match", -1.0), operation="")
    assert to_svg(graph_of(hurt)).count('class="line hurts"') == 2
    assert 'class="pill"' not in to_svg(graph_of(hurt))
    assert "previous token" not in to_svg(graph_of(planted, threshold=1.5))
    assert "No edge has a weight of 1.5 or more" in to_svg(graph_of(planted, threshold=1.5))


def test_a_node_is_shaded_by_what_is_beyond_noise(planted):
    def shades(table):
        root = ElementTree.fromstring(to_svg(graph_of(table)))
        return {(each.get("class"), each.get("fill-opacity")) for each in root.iter() if each.get("fill-opacity")}

    def nodes(effect, error):
        ends = {f"{end}_effect": effect for end in ("source", "target")}
        return planted.assign(**ends, **{f"{end}_error": error for end in ("source", "target")})

    assert shades(nodes(0.4, 0.08)) == {("helps-head", "0.40")}
    assert shades(nodes(-3.0, 0.1)) == {("hurts-head", "1.00")}
    assert not shades(nodes(0.4, 0.2))
    assert "target: effect +0.400 ± 0.200<" in to_svg(graph_of(nodes(0.4, 0.2)))
    assert "no effect resolved" in to_svg(graph_of(nodes(float("nan"), float("nan"))))


def test_width_is_in_proportion_to_weight(planted):
    def widths(scale: float) -> list[float]:
        picture = to_svg(graph_of(planted.assign(effect=planted["effect"].clip(0, 1) * scale)))
        lines = [each for each in ElementTree.fromstring(picture).iter() if each.get("class") == "line helps"]
        return [float(each.attrib["stroke-width"]) for each in lines[: len(PLANTED)]]

    assert widths(0.9) == pytest.approx([2 * each for each in widths(0.45)], abs=0.02)
    assert len(set(widths(0.9))) == 1 < len(set(widths(0.9) + widths(0.3)))


def boxes(picture: str) -> tuple[list, list, tuple[float, float]]:
    """Edges of the names of operations, of nodes, and the picture's size."""
    root = ElementTree.fromstring(picture)
    pills, nodes = [], []
    for each in root.iter():
        kind, get = each.get("class", ""), lambda name, each=each: float(each.attrib[name])
        if each.tag.endswith("rect") and kind in ("pill", "node"):
            box = (get("x"), get("y"), get("x") + get("width"), get("y") + get("height"))
            (pills if kind == "pill" else nodes).append(box)
        elif each.tag.endswith("circle") and kind == "node":
            x, y, r = get("cx"), get("cy"), get("r")
            nodes.append((x - r, y - r, x + r, y + r))
    return pills, nodes, (float(root.attrib["width"]), float(root.attrib["height"]))


def lines_of(picture: str) -> list[list[tuple[float, float]]]:
    """Points of the middle of every edge."""
    found = []
    for each in ElementTree.fromstring(picture).iter():
        if (each.get("class") or "").startswith("line "):
            numbers = [float(number) for number in re.findall(r"[-\d.]+", each.get("d") or "")]
            (x0, y0), (x1, y1), (x2, y2), (x3, y3) = zip(numbers[::2], numbers[1::2], strict=True)
            found.append(
                [
                    ((1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d, y)
                    for t in np.linspace(0, 1, 60)
                    for (a, b, c, d) in [(x0, x1, x2, x3)]
                    for y in [(1 - t) ** 3 * y0 + 3 * t * (1 - t) ** 2 * y1 + 3 * t**2 * (1 - t) * y2 + t**3 * y3]
                ]
            )
    return found[:-6]  # without the legend's


def operating(table, n_layers: int) -> pd.DataFrame:
    """The table with every operation found in every layer that may do it, and nothing else."""
    last, does = n_layers - 1, {}
    for layer in range(last):
        item = f"{layer}.v.correct_item" if layer else "token.correct_item"
        does |= {(item, f"{layer}.correct_label"): "previous_token"}
        does |= {(f"{layer}.correct_label", f"{last}.k.correct_label"): "write"}
    does[f"{last}.k.correct_label", f"{last}.q.target"] = "match"
    does[f"{last}.v.correct_label", f"{last}.target"] = "copy"
    does[f"{last}.target", "answer"] = "readout"
    found = [does.get(edge, "") for edge in zip(table["source"], table["target"], strict=True)]
    effect = [1.2 if each else 0.0 for each in found]
    return table.assign(operation=found, effect=effect, error=0.01, span=1.0, span_error=0.1)


def test_names_hide_no_node_and_no_other_name(planted, deep):
    for table, n_layers in ((planted, 2), (deep[1], 3)):
        pills, nodes, (width, height) = boxes(to_svg(graph_of(operating(table, n_layers))))
        assert len(pills) == 2 * n_layers + 1
        assert len(nodes) == {2: 11, 3: 13}[n_layers]
        for line in lines_of(to_svg(graph_of(operating(table, n_layers)))):
            assert not any(left < x < right and top < y < bottom for x, y in line for left, top, right, bottom in pills)
        for number, (left, top, right, bottom) in enumerate(pills):
            assert 0 < left < right < width
            assert 0 < top < bottom < height
            for other in nodes + pills[:number]:
                assert right < other[0] or other[2] < left or bottom < other[1] or other[3] < top


def test_lines_run_through_no_node_on_their_way_up_a_column_and_no_name_of_a_row(deep):
    """Edges past the layers between, at their widest."""
    table = deep[1]
    names = [name for name in set(table["source"]) | set(table["target"]) if name.split(".")[-1] == "other_item"]
    past = table["source"].isin(names) & table["target"].isin(names) & (table["kind"] == "path")
    picture = to_svg(graph_of(table.assign(effect=np.where(past, 2.0, 0.0), error=0.01, span=1.0, span_error=0.1)))
    _, nodes, _ = boxes(picture)
    lines = [each for each in ElementTree.fromstring(picture).iter() if each.get("class") == "line helps"][: sum(past)]
    assert sum(past) == 12
    for line in lines:
        x0, y0, x1, y1, x2, y2, x3, y3 = map(float, re.findall(r"[-\d.]+", line.get("d") or ""))
        half = float(line.get("stroke-width") or 0) / 2
        for t in np.linspace(0, 1, 101):
            a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
            x, y = a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3
            assert x - half > 140
            for left, top, right, bottom in nodes:
                ends = top - 15 < y0 < bottom + 15 or top - 25 < y3 < bottom + 25
                assert ends or x + half < left or right < x - half or not top < y < bottom


def test_a_hostile_title_is_text(planted):
    title = '</text><script>alert("1")</script>&\x00\ud800'
    for picture in (to_svg(graph_of(planted), title), film_strip({0: graph_of(planted)}, title)):
        root = ElementTree.fromstring(picture)
        assert "<script" not in picture
        shown = [each.text for each in root.iter() if each.get("class") == "title"]
        assert shown[0] == '</text><script>alert("1")</script>&\ufffd\ufffd'


def test_a_long_title_ends_within_the_picture(planted):
    root = ElementTree.fromstring(to_svg(graph_of(planted), "w" * 500))
    (shown,) = (each.text or "" for each in root.iter() if each.get("class") == "title")
    assert shown == "w" * (len(shown) - 1) + "…"
    assert 20 + 9 * len(shown) < float(root.get("width") or 0)
    assert [each.text for each in root if each.tag.endswith("title")] == ["w" * 500]


def test_a_picture_is_described_in_words(planted):
    def said(picture):
        root = ElementTree.fromstring(picture)
        return root.get("role"), [each.text or "" for each in root if each.tag.endswith("desc")]

    role, (words,) = said(to_svg(graph_of(planted)))
    assert role == "img"
    assert f"8 of {len(planted)} edges drawn. Operations found: previous token " in words
    _, (words,) = said(film_strip({0: graph_of(planted), 10: graph_of(planted.assign(span=0.0, effect=float("nan")))}))
    assert [line.partition(":")[0] for line in words.splitlines()] == ["Step 0", "Step 10"]
    assert words.endswith("No circuit is drawn: the correct label does not lead beyond noise. Operations found: none.")
    assert said(panels({0: graph_of(planted)})[0]) == ("group", [])


def test_a_film_strip_has_a_panel_for_every_step(planted):
    graphs = {step: graph_of(planted) for step in (0, 10, 2_000)}
    picture = film_strip(graphs)
    root = ElementTree.fromstring(picture)
    titles = [each.text for each in root.iter() if each.get("class") == "title"]
    assert titles == ["Circuit over training", "step 0", "step 10", "step 2,000"]
    assert picture.count("Width, shade") == 1
    assert picture == film_strip(graphs)


def test_a_frame_and_a_panel_make_the_picture(planted):
    shown = {0: graph_of(planted.assign(effect=0.0)), 2_000: graph_of(planted)}
    frame, contents = panels(shown)
    assert list(contents) == [0, 2_000]
    empty = '<g class="panel"></g>'
    assert frame.count(empty) == 1
    for step, graph in shown.items():
        pictures = frame.replace(empty, contents[step]), to_svg(graph, f"step {step:,}")
        whole, alone = (picture[picture.index("<style>") :] for picture in pictures)
        assert whole == alone
    assert "previous token" in contents[2_000]
    assert "previous token" not in frame + contents[0]


def test_a_picture_leaves_the_page_around_it_alone(planted):
    frame, contents = panels({0: graph_of(planted)})
    root = ElementTree.fromstring(frame.replace('<g class="panel"></g>', contents[0]))
    assert not {name for each in root.iter() for name in each.attrib if name in ("id", "style") or name[:2] == "on"}
    (style,) = (each.text or "" for each in root.iter() if each.tag.endswith("style"))
    selectors = re.findall(r"([^{}]+)\{[^{}]", re.sub(r"@media[^{]*\{", "", style))
    assert len(selectors) > 10
    parts = [part.strip() for each in selectors for part in each.split(",")]
    assert all(part.startswith(".circuit ") for part in parts)
    assert len(contents[0]) < 12_000


@pytest.mark.parametrize("draw", [film_strip, panels])
def test_graphs_that_share_no_legend_are_refused(planted, draw):
    with pytest.raises(MechinterpError, match="no graphs to draw; give at least one step"):
        draw({})
    with pytest.raises(MechinterpError, match=r"graphs of threshold 0\.1 and 0\.2 share no legend; draw them apart"):
        draw({0: graph_of(planted), 1: graph_of(planted, threshold=0.2)})
