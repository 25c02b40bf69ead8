"""What a notebook shows of runs, transitions, circuits and reports, and what the console shows of batches and tasks."""

import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch

import mechinterp as mi
from mechinterp import config as sections
from mechinterp.analysis.checkpoints import circuit_graphs
from mechinterp.circuits.graph import CircuitGraph
from mechinterp.display import facts_table, framed_page
from mechinterp.report.html import Page


class _Reader(HTMLParser):
    """The elements and the text of a part of a page."""

    def __init__(self, markup: str):
        super().__init__()
        self.elements, self.text = list[str](), ""
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)

    def handle_data(self, data):
        self.text += data


def shown(thing: object) -> _Reader:
    """What a notebook reads of an object; it requests nothing and has no colours."""
    markup = thing._repr_html_()  # pyright: ignore[reportAttributeAccessIssue]
    assert not re.search(r"(src|href)=|url\(|color:|background", markup)
    return _Reader(markup)


def test_a_run_shows_what_it_is(tiny_run):
    seen = shown(tiny_run)
    assert {*seen.elements} == {"table", "caption", "tr", "th", "td"}
    for text in ("tiny.h5", "complete", "11, from 0 to 20", "item_label: 7 tokens", "transformer", "fused", "loss"):
        assert text in seen.text


def test_a_run_with_interventions_or_one_checkpoint_shows_itself(tiny_config, tmp_path):
    clamp = {"kind": "clamp", "layer": 0, "pattern": "uniform"}
    config = tiny_config.updated({"interventions": [clamp], "training.steps": 0})
    seen = shown(mi.train(config, tmp_path / "a.h5", progress=False))
    assert "clamp" in seen.text
    assert "1, from 0 to 0" in seen.text
    assert "loss" not in seen.text  # of no batch


def test_names_of_files_are_escaped(tiny_run, tmp_path):
    copy = shutil.copy(tiny_run.path, tmp_path / "<img src=x>&.h5")
    seen = _Reader(mi.open_run(copy)._repr_html_())
    assert "img" not in seen.elements
    assert "<img src=x>&.h5" in seen.text
    assert "<script>" not in facts_table("<script>", {"<script>": "<script>\x1b"})
    assert "\x1b" not in facts_table("", {"": "\x1b"})


def test_a_transition_shows_its_step_and_the_lack_of_one_its_reason():
    steps = np.arange(60) * 100
    noise = np.random.default_rng(0).normal(scale=0.01, size=60)
    rise = mi.locate_emergence(pd.Series(1 / (1 + np.exp(-(steps - 3_000) / 200)) + noise, index=steps))
    seen = shown(rise)
    assert re.search(r"Transition at step (2,9|3,0)\d\d", seen.text)
    assert "one_step" in seen.text
    none = shown(mi.locate_emergence(pd.Series(noise, index=steps)))
    assert "No transition" in none.text
    assert "constant" in none.text


def test_a_circuit_shows_its_picture(tiny_run):
    graph = mi.circuit_graph(tiny_run.network(20), tiny_run.task, n_pairs=8)
    (kept,) = circuit_graphs(tiny_run, steps=20, n_pairs=8).values()
    for thing in (graph, kept, graph.copy()):
        assert isinstance(thing, CircuitGraph)
        svg = thing._repr_svg_()
        assert svg is not None
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        html = thing._repr_html_()
        assert html is not None
        assert svg in html
        drawn = sum(edge["drawn"] for *_, edge in graph.edges(data=True))
        edges = f"{graph.number_of_edges()} edges, of which {drawn} are drawn"
        assert repr(thing).startswith(f"<CircuitGraph: {len(graph)} nodes, {edges}")
        assert repr(thing).endswith("on 8 pairs>")
    assert repr(CircuitGraph()) == "<CircuitGraph: 0 nodes, 0 edges>"
    assert CircuitGraph()._repr_html_() is None  # the text is shown instead


@pytest.fixture(scope="module")
def page(tiny_run, tmp_path_factory) -> Page:
    """The report of the tiny run."""
    return mi.write_report(tiny_run, mi.measure(tiny_run), tmp_path_factory.mktemp("page") / "tiny.html")


def test_a_report_is_a_path_that_shows_the_page_in_a_frame(page):
    assert issubclass(type(page), Path)
    assert str(page).endswith("tiny.html")
    frame = page._repr_html_()
    assert frame is not None
    content = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts allow-downloads"[^>]*></iframe>', frame)
    assert content
    assert unescape(content[1]) == page.read_text(encoding="utf-8")
    for other in (page.parent, page.with_name("none.html")):
        assert isinstance(other, Page)
        assert other._repr_html_() is None  # its text is shown instead


def test_a_page_cannot_leave_its_frame():
    assert _Reader(framed_page('"></iframe><script>alert(1)</script>')).elements == ["iframe"]


def test_batches_and_tasks_say_what_they_are(tiny_config):
    task = mi.build_task(tiny_config)
    batch = task.sample("icl", 5)
    assert repr(batch).startswith("<Batch: 5 sequences of 7 vectors of 24 dimensions; roles: item, label, target")
    assert "inputs" not in vars(batch), "they are not made to be counted"
    assert repr(batch.take(slice(0, 1))).startswith("<Batch: 1 sequence of 7 vectors of 24 dimensions")
    tokens = mi.Batch(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    assert repr(tokens) == "<Batch: 2 sequences of 3 tokens; roles: none>"
    seen = repr(task)
    assert seen.startswith("<ItemLabelTask: 7 vectors of 24 dimensions, 4 labels; evaluation sets: icl, iwl")
    assert "n_pairs = 3" in seen
    assert seen.endswith("seed 0>")


def test_a_network_roles_pairs_and_a_config_say_what_they_are(tiny_config, tiny_run):
    assert repr(tiny_run.network(0)).startswith("<Network: layers: 2, heads in a layer: 1, d_model: 24, ")
    pairs = mi.corrupted_pairs(tiny_run.task, n_pairs=5)
    assert repr(pairs).startswith("<Pairs: 5 clean and corrupt, of 7 tokens; roles: item, label, target")
    assert repr(pairs.roles).startswith("<Roles: item (15 tokens), label (15 tokens), target (5 tokens)")
    assert repr(mi.RunConfig()) == "RunConfig()"
    read = eval(repr(tiny_config), dict(vars(sections)))
    assert read == tiny_config


@pytest.mark.parametrize("preset", ["nguyen2024-fast", "edelman2024", "grokking", "induction-tokens"])
def test_every_built_in_task_says_what_it_is(preset):
    config = mi.RunConfig.preset(preset)
    assert f"{config.task.n_labels} labels" in repr(mi.build_task(config))
