"""Every head of the diagram has edges of its own, heads without an effect are counted, and together they are one."""

import re
from xml.etree import ElementTree

import pytest
import torch

import mechinterp as mi
from mechinterp.circuits.diagram import THRESHOLD_APART, circuit_edges
from mechinterp.circuits.graph import graph_of
from mechinterp.circuits.layout import Layout
from mechinterp.circuits.look import Look
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.svg import film_strip, panels, to_svg
from mechinterp.errors import MechinterpError
from mechinterp.models.network import Network
from mechinterp.models.planted import induction_head
from mechinterp.tasks.corruption import corrupted_pairs
from tests.circuits.planted import PLANTED, drawn
from tests.helpers import hooked


def with_heads(config: mi.RunConfig, shares: list[float]) -> Network:
    """The planted induction head in three heads a layer, of which each writes a share of what it writes."""
    head, parameters = induction_head(config), {}
    for name, matrix in head.parameters.items():
        scaled = [matrix * (share if name.endswith("W_V") else bool(share)) for share in shares]
        parameters[name] = torch.cat(scaled) if name.startswith("blocks.") else matrix
    return Network(config.updated({"model.n_heads": len(shares)}), parameters)


def named(edge: tuple[str, str], head: int) -> tuple[str, ...]:
    """An edge of a network of one head, as one by this head of each layer."""
    return tuple(re.sub(r"^(\d+)\.", rf"\1.h{head}.", end) for end in edge)


@pytest.fixture(scope="module")
def three(small) -> mi.RunConfig:
    return small.updated({"model.n_heads": 3})


@pytest.fixture(scope="module")
def single(small):
    """The edges of the planted induction head."""
    return circuit_edges(induction_head(small), mi.build_task(small), n_pairs=40)


@pytest.fixture(scope="module")
def apart(small, three):
    """The edges where the second of three heads does everything."""
    return circuit_edges(with_heads(small, [0, 1, 0]), mi.build_task(three), n_pairs=40)


def test_the_head_that_does_it_has_the_planted_edges_and_others_none(apart, single):
    assert {named(edge, 1): name for edge, name in PLANTED.items()}.items() <= drawn(apart).items()
    effects = apart.set_index(["source", "target"])["effect"]
    for edge, effect in single.set_index(["source", "target"])["effect"].items():
        assert effects[named(edge, 1)] == pytest.approx(effect, abs=1e-9), edge
    idle = apart["head"].isin([0, 2]) | apart["source_head"].isin([0, 2])
    assert apart.loc[idle, "effect"].abs().max() < 1e-12
    assert idle.sum() > 2 * len(single) > 100
    assert set(apart["head"]) == set(apart["source_head"]) == {-1, 0, 1, 2}
    assert apart["head"][apart["target"] == "1.h2.q.target"].eq(2).all()


def test_heads_that_share_the_work_have_shares_of_the_effect(small, three):
    """Values of a third and two thirds: copying and reading out are shared, and together they are whole."""
    task, network = mi.build_task(three), with_heads(small, [1 / 3, 0, 2 / 3])
    apart = circuit_edges(network, task, n_pairs=40).set_index(["source", "target"])["effect"]
    shares = [apart[f"1.h{head}.target", "answer"] for head in range(3)]
    assert shares == pytest.approx([1 / 3, 0, 2 / 3], abs=1e-9)
    together = circuit_edges(network, task, heads="together", n_pairs=40)
    assert {*together["head"]} == {-1}
    assert not together["source"].str.contains(r"^\d+\.h\d", regex=True).any()
    by_edge = together.set_index(["source", "target"])
    assert by_edge["effect"]["1.target", "answer"] == pytest.approx(1, abs=1e-9)
    assert by_edge["source_heads"]["1.target", "answer"] == "2 0"
    copies = [apart[f"1.h{head}.v.correct_label", f"1.h{head}.target"] for head in (0, 2)]
    assert sum(copies) == pytest.approx(by_edge["effect"]["1.v.correct_label", "1.target"], abs=1e-6)
    assert copies[1] == pytest.approx(2 * copies[0], abs=1e-6)


def test_an_edge_of_one_head_is_the_intervention_it_says(deep):
    """Against hooks on the model itself, in three layers of two heads."""
    network, task = deep[0], mi.build_task(deep[0].config)
    pairs = corrupted_pairs(task, n_pairs=20)
    found = circuit_edges(network, task, pairs=pairs).set_index(["source", "target"])["value"]
    model, roles = hooked(network), pairs.roles
    with torch.no_grad():
        cache = model.run_with_cache(pairs.clean.inputs)[1]

    def value(hook, change):
        with torch.no_grad():
            logits = model.run_with_hooks(pairs.clean.inputs, fwd_hooks=[(hook, lambda x, hook: change(x.clone()))])
        lead = float(Metric.logit_difference.of(logits, pairs.answers, pairs.wrong_labels))
        return pytest.approx(lead, rel=1e-3, abs=1e-4)

    def cut(pattern):
        link = roles["other_label"][:, :, None] & roles["correct_item"][:, None, :]
        left = pattern[:, 1] * ~link
        pattern[:, 1] = left / left.sum(-1, keepdim=True).clamp(min=1e-9)
        return pattern

    assert found["1.h1.v.correct_item", "1.h1.other_label"] == value("blocks.1.attn.hook_pattern", cut)

    def other_key(k):
        z = cache["blocks.0.attn.hook_z"][:, :, 0]  # head 0 of layer 1 to head 1 of layer 3
        change = (z.roll(1, 0) - z) @ network.matrix(2, "K")[1]
        k[:, :, 1] += change * roles["correct_label"][:, :, None]
        return k

    assert found["0.h0.correct_label", "2.h1.k.correct_label"] == value("blocks.2.attn.hook_k", other_key)

    def mismatch(scores):
        q, k = (cache[f"blocks.1.attn.hook_{each}"][:, :, 0] for each in "qk")
        link = roles["target"][:, :, None] & roles["other_item"][:, None, :]
        scores[:, 0] = torch.where(link, torch.einsum("bqd,bkd->bqk", q, k.roll(1, 0)), scores[:, 0])
        return scores

    assert found["1.h0.k.other_item", "1.h0.q.target"] == value("blocks.1.attn.hook_attn_scores", mismatch)

    def other_query(q):
        q[:, :, 1] = torch.where(roles["other_item"][:, :, None], q.roll(1, 0)[:, :, 1], q[:, :, 1])
        return q

    assert found["1.h1.q.other_item", "1.h1.other_item"] == value("blocks.1.attn.hook_q", other_query)
    assert {name for name, target in found.index if target == "answer"} == {
        "token.target",
        *(f"{layer}.h{head}.target" for layer in range(3) for head in range(2)),
    }


def test_a_picture_shows_heads_with_an_effect_and_counts_the_others(apart):
    graph = graph_of(apart)
    assert graph.graph["threshold"] == THRESHOLD_APART
    layout = Layout.of([graph], Look())
    shown = {name for name in layout.places if graph.nodes[name]["head"] >= 0}
    assert {end for edge in PLANTED for end in named(edge, 1) if ".h1." in end} <= shown
    assert {graph.nodes[name]["head"] for name in shown} == {1}
    assert layout.idle == {0: 2, 1: 2}
    picture = to_svg(graph)
    assert picture.count("2 heads without effect") == 2
    assert {"k2", "q2", "v2"} <= set(re.findall(r">([qkv]\d)<", picture))
    assert "layer 2, head 2: keys of the correct label" in picture
    quiet = to_svg(
        graph_of(apart.assign(effect=float("nan"), span=0.0, ahead=0.5, source_effect=0.0, target_effect=0.0))
    )
    assert quiet.count("all heads without effect") == 2
    narrow = to_svg(graph, look=Look(width=336))
    assert narrow.count(">2 without effect<") == 2
    for each in (picture, quiet, narrow):  # no name begins left of the picture; a letter of 11 px is 5.6 px wide
        names = re.findall(r'<text x="([\d.]+)" y="[\d.]+" class="small end">([^<]*)', each)
        assert len(names) == 2
        assert all(5.6 * len(words) <= float(x) for x, words in names)


def test_places_of_heads_are_the_same_at_all_checkpoints(small, three, apart):
    other = circuit_edges(with_heads(small, [1, 0, 0]), mi.build_task(three), n_pairs=40)
    graphs = {0: graph_of(apart.assign(effect=0.0)), 10: graph_of(apart), 20: graph_of(other)}
    both = Layout.of(graphs.values(), Look())
    assert both.idle == {0: 1, 1: 1}
    assert len({*both.places.values()}) == len(both.places)
    frame, contents = panels(graphs)
    assert frame.count("1 head without effect") == 2
    places = [
        set(re.findall(r'(?:cx|x)="[\d.]+" (?:cy|y)="[\d.]+"[^>]*class="(?:node|idle)', each))
        for each in contents.values()
    ]
    assert all(len(re.findall(r'class="(?:node|idle)"', each)) == len(both.places) for each in contents.values())
    assert places[1] != places[2]  # what is a dot and what is not depends on the step, where they are does not
    ElementTree.fromstring(frame.replace('<g class="panel"></g>', contents[10]))
    single = graph_of(circuit_edges(induction_head(small), mi.build_task(small), n_pairs=40), threshold=0.05)
    with pytest.raises(MechinterpError, match="heads apart and heads together share no nodes"):
        film_strip({0: graph_of(apart), 1: single})
