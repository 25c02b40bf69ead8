"""The graph of a table, its JSON, and the command that draws it."""

import json
import shutil

import networkx as nx
import pandas as pd
import pytest

import mechinterp as mi
from mechinterp.analysis.checkpoints import circuit_graphs
from mechinterp.circuits.columns import ROLES
from mechinterp.circuits.diagram import Weight, weighted
from mechinterp.circuits.graph import circuit_graph, graph_of, to_dict
from mechinterp.circuits.layout import Layout
from mechinterp.circuits.look import Look
from mechinterp.circuits.svg import to_svg
from mechinterp.cli import main
from mechinterp.errors import MechinterpError
from mechinterp.models.planted import induction_head
from tests.circuits.planted import PLANTED, drawn


def test_noise_and_small_weights_are_not_drawn(planted):
    assert not bool(weighted(planted, threshold=1.5)["drawn"].any())
    assert weighted(planted, threshold=1e-9)["drawn"].to_numpy().sum() >= len(PLANTED)
    assert not bool(weighted(planted.assign(error=1.0))["drawn"].any())
    signed = weighted(planted.assign(effect=-planted["effect"]))
    assert set(drawn(signed)) == set(PLANTED)
    attention = weighted(planted, Weight.attention)
    assert set(attention["kind"][attention["drawn"]]) == {"attention"}
    assert ("1.v.correct_label", "1.target") in drawn(attention)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"weight": "efect"}, "unknown weight 'efect'; did you mean 'effect'"),
        ({"threshold": 0.0}, "threshold is 0.0; expected more than 0"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"n_pairs": 1}, "n_pairs is 1"),
    ],
)
def test_misspelt_requests_are_refused(full, arguments, match):
    with pytest.raises(MechinterpError, match=match):
        circuit_graph(induction_head(full), mi.build_task(full), **arguments)


def test_places_do_not_depend_on_weights(tiny_run, deep):
    first, second = (circuit_graph(tiny_run.network(step), tiny_run.task, n_pairs=8) for step in (0, 20))
    assert Layout.of([first], Look()) == Layout.of([second], Look()) == Layout.of([first, second], Look())
    assert list(first.edges) == list(second.edges)
    for graph in (first, graph_of(deep[1])):
        layout = Layout.of([graph], Look())
        assert layout.places.keys() == set(graph)
        assert len({*layout.places.values()}) == len(graph)
        columns = [layout.places[f"token.{role}"][0] for role in ROLES if role != "other"]
        assert columns == sorted(columns)


def test_the_data_of_a_graph_gives_it_back_through_json(planted, tiny_run):
    for graph in (graph_of(planted), circuit_graph(tiny_run.network(0), tiny_run.task, n_pairs=8)):
        again = nx.node_link_graph(json.loads(json.dumps(to_dict(graph), allow_nan=False)), edges="edges")
        assert again.graph == graph.graph
        assert list(again.nodes(data=True)) == list(graph.nodes(data=True))
        assert list(again.edges(data=True)) == list(graph.edges(data=True))
        assert to_svg(again) == to_svg(graph)


def test_a_graph_is_of_one_step(planted):
    for table in (pd.concat([planted.assign(step=0), planted.assign(step=1)]), planted[:0]):
        with pytest.raises(MechinterpError, match=r"a circuit graph is of one step; choose its rows: table\[table"):
            graph_of(table)


@pytest.fixture
def run(tiny_run, tmp_path):
    return mi.open_run(shutil.copy(tiny_run.path, tmp_path / "run.h5"))


def test_kept_tables_give_the_same_graphs(run):
    first = circuit_graphs(run, steps=[0, 20], n_pairs=8)
    again = circuit_graphs(run, steps=[20, 0], n_pairs=8)  # from what was kept
    fresh = circuit_graph(run.network(20), run.task, n_pairs=8)
    assert list(first) == [0, 20]
    assert to_dict(first[20]) == to_dict(again[20]) == to_dict(fresh)
    assert circuit_graphs(run, steps=[]) == {}
    assert to_dict(circuit_graphs(run, steps=[20, 20], n_pairs=8)[20]) == to_dict(fresh)


def test_the_command_draws_and_prints(run, tmp_path, capsys):
    out = tmp_path / "c.svg"
    small = ["circuit", str(run.path), "--n-pairs", "8"]
    assert main([*small, "--steps", "4", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"circuit: {out}\n"
    first = out.read_bytes()
    assert b"run, step 4<" in first
    assert main([*small, "--steps", "4", "--out", str(out)]) == 0
    assert out.read_bytes() == first
    assert main([*small, "--steps", "0", "4", "--out", str(out)]) == 0
    assert out.read_text().count(">step ") == 2
    capsys.readouterr()
    assert main([*small, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["picture"] is None
    assert not run.path.with_suffix(".svg").exists()
    graph = nx.node_link_graph(printed["graphs"]["20"], edges="edges")
    assert graph.nodes["answer"]["kind"] == "answer"
    assert main(small) == 0
    assert b"run, step 20<" in run.path.with_suffix(".svg").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weight", "efect"], "unknown weight 'efect'; did you mean 'effect'?"),
        (["--steps", "3"], "step 3 is not saved"),
        (["--steps", "0", "3"], "step 3 is not saved"),
        (["--step", "2"], "did you mean --steps?"),
        (["--out", "RUN"], "run.h5: ends with .h5, and what is written there is .svg, .html, .png or .pdf"),
        (["--out", "/proc/nope/c.svg"], "/proc/nope: cannot be made"),
        (["--out", "."], ".: has no ending"),
        (["--out", "/dev/null"], "/dev/null: has no ending"),
        (["--threshold", "-1"], "threshold is -1.0; expected more than 0"),
        (["--n-pairs", "1"], "n_pairs is 1"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(run, tmp_path, capsys, options, message):
    before = run.path.read_bytes()
    assert main(["circuit", str(run.path), *(str(run.path) if each == "RUN" else each for each in options)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert run.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]
