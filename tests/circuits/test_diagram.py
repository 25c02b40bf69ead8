"""The diagram has the planted edges and no others, and draws them the same way every time."""

import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits.diagram import (
    NOISE,
    ROLES,
    THRESHOLD,
    Weight,
    circuit_edges,
    circuit_graph,
    from_json,
    graph_of,
    operations,
    to_json,
    weighted,
)
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import measured_span
from mechinterp.circuits.svg import film_strip, panels, to_svg
from mechinterp.circuits.trajectory import circuit_graphs
from mechinterp.cli import main
from mechinterp.errors import MechinterpError
from mechinterp.models.parameters import parameter_shapes
from mechinterp.models.planted import Operation, induction_head, memorising_decoy, random_label_decoy
from mechinterp.models.transformer import build_model
from mechinterp.tasks.corruption import corrupted_pairs

PLANTED = {
    ("token.correct_item", "0.correct_label"): "previous_token",
    ("0.correct_label", "1.k.correct_label"): "write",
    ("token.target", "1.q.target"): "",
    ("1.k.correct_label", "1.q.target"): "match",
    ("1.q.target", "1.target"): "",
    ("token.correct_label", "1.v.correct_label"): "",
    ("1.v.correct_label", "1.target"): "copy",
    ("1.target", "answer"): "readout",
}
"""Every edge of the planted induction head, with the operation that it does."""


@pytest.fixture(scope="module")
def full():
    return mi.RunConfig.preset("reddy2023")


@pytest.fixture(scope="module")
def planted(full):
    return circuit_edges(induction_head(full), full.build_task(), n_pairs=100)


@pytest.fixture(scope="module")
def deep(tiny_config):
    """Random weights of three layers with two heads."""
    config = tiny_config.updated({"model.n_layers": 3, "model.n_heads": 2})
    rng = np.random.default_rng(3)
    weights = {n: torch.from_numpy(rng.normal(size=s) / s[-1] ** 0.5) for n, s in parameter_shapes(config).items()}
    weights = {name: value.float() for name, value in weights.items()}
    return config, weights, circuit_edges(weights, config.build_task(), n_pairs=20)


def drawn(table) -> dict[tuple[str, str], str]:
    rows = table[table["drawn"]]
    return {(row["source"], row["target"]): row["operation"] for row in rows.to_dict("records")}


# What is measured


def test_a_planted_head_has_exactly_the_planted_edges(full, planted):
    assert drawn(planted) == PLANTED
    rows = planted[planted["drawn"]]
    assert rows["effect"].tolist() == pytest.approx([1] * len(PLANTED), abs=0.12)
    # The first token sees itself only. Where it is the correct item, its key then matches as well as its label's does,
    # and half of the attention is lost to it.
    first = float(corrupted_pairs(full.build_task(), n_pairs=100).roles["correct_item"][:, 0].double().mean())
    lost = {("token.correct_item", "0.correct_item"), ("1.v.correct_item", "1.target")}
    lost |= {("1.k.correct_item", "1.q.target"), ("0.correct_item", "1.k.correct_item")}
    rest = planted[~planted["drawn"]].set_index(["source", "target"])
    expected = [-20.0 * first / 2 / rest["span"].iloc[0] if edge in lost else 0.0 for edge in rest.index]
    assert rest["effect"].tolist() == pytest.approx(expected, abs=0.02)  # other sequences hold the same class by chance
    by_edge = planted.set_index(["source", "target"])
    assert by_edge["effect"]["1.target", "answer"] == pytest.approx(1, abs=1e-9)  # all that the classifier reads
    previous = by_edge.loc[("token.correct_item", "0.correct_label")]
    assert previous["attention"] == pytest.approx(1, abs=1e-6)
    assert previous["moved"] == pytest.approx(0.5**0.5, abs=0.02)  # content of length 1, to position ⊕ content
    assert previous["source_effect"] == pytest.approx(1, abs=0.2)


def test_edges_of_the_planted_head_are_those_of_its_equations(full):
    """Reddy 2023, eqs 4 to 6 (see `models/planted.py`), written out without a network, with two copies of a class."""
    config = full.updated({"task.burstiness": 2})
    task, n_pairs = config.build_task(), 30
    pairs = corrupted_pairs(task, n_pairs=n_pairs)
    content, roles = pairs.clean.inputs[:, :, config.task.position_dim :].double().numpy(), pairs.roles
    n_tokens, rows = content.shape[1], np.arange(n_pairs)
    duals = np.linalg.pinv(task.label_vectors.astype(float))
    causal = np.tril(np.ones((n_tokens, n_tokens), bool))

    def at(role):
        return roles[role].numpy()[:, :, None]

    def attention(scores, cut=False):
        weights = np.exp(scores - scores.max()) * causal * ~np.asarray(cut)
        return weights / weights.sum(axis=-1, keepdims=True)

    def link(key, query):
        return at(query) & at(key).swapaxes(1, 2)

    before = 20.0 * np.eye(n_tokens, k=-1)[None]
    seen = attention(before) @ content

    def lead(buffer=seen, query=content, value=content, cut=False, match=None):
        scores = 40.0 * query @ buffer.swapaxes(1, 2)
        if match is not None:
            scores = np.where(match, 40.0 * query @ np.roll(buffer, 1, 0).swapaxes(1, 2), scores)
        logits = 20.0 * (attention(scores, cut) @ value)[:, -1] @ duals
        return logits[rows, pairs.answers] - logits[rows, pairs.foils], logits

    def other(activation, role):
        return np.where(at(role), np.roll(activation, 1, 0), activation)

    clean, logits = lead()
    elsewhere = np.roll(logits, 1, 0)
    span = (clean - elsewhere[rows, pairs.answers] + elsewhere[rows, pairs.foils]).mean()
    unseen = attention(before, link("correct_item", "correct_label")) @ content
    without = {
        ("token.correct_item", "0.correct_label"): lead(buffer=unseen),
        ("0.correct_label", "1.k.correct_label"): lead(buffer=other(seen, "correct_label")),
        ("token.target", "1.q.target"): lead(query=other(content, "target")),
        ("1.k.correct_label", "1.q.target"): lead(match=link("correct_label", "target")),
        ("token.correct_label", "1.v.correct_label"): lead(value=other(content, "correct_label")),
        ("1.v.correct_label", "1.target"): lead(cut=link("correct_label", "target")),
    }
    table = circuit_edges(induction_head(config), task, n_pairs=n_pairs).set_index(["source", "target"])
    assert table["span"].iloc[0] == pytest.approx(span)
    for edge, (left, _) in without.items():
        lost = clean - left
        assert table["effect"][edge] == pytest.approx(lost.mean() / span), edge
        assert table["error"][edge] == pytest.approx(lost.std(ddof=1) / n_pairs**0.5 / span), edge


def test_a_network_that_prefers_the_other_label_has_no_lead_to_share_out(full):
    model = induction_head(full)
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    parameters["classifier.readout.W"] *= -1
    table = circuit_edges(parameters, full.build_task(), n_pairs=40)
    assert table["span"][0] < -10
    assert table["effect"].isna().all()
    assert not any(table["operation"])
    assert "no lead beyond noise" in to_svg(graph_of(table))


@pytest.mark.parametrize("without", Operation)
def test_a_twin_lacks_the_edge_of_its_operation(full, without):
    graph = circuit_graph(induction_head(full, without=without), full.build_task(), n_pairs=100)
    shown = {edge["operation"]: (a, b) for a, b, edge in graph.edges(data=True) if edge["drawn"]}
    assert without.name not in shown
    (missing,) = (edge for edge, operation in PLANTED.items() if operation == without.name)
    assert missing not in shown.values()
    assert "Nothing is resolved" in to_svg(graph)


def test_a_broken_operation_is_not_named_where_its_edge_still_has_an_effect(full):
    """Uniform attention of layer 1 still mixes the item into its label: with weak scores that helps a little."""
    twin = induction_head(full, without="previous_token", alpha=12.0)
    table = circuit_edges(twin, full.build_task(), n_pairs=400)
    shown = drawn(table)
    assert {("token.correct_item", "0.correct_label"), ("0.correct_label", "1.k.correct_label")} <= set(shown)
    assert set(shown.values()) == {"", "match", "copy", "readout"}


def test_decoys_and_untrained_networks_have_no_operation(full):
    task = full.build_task()
    assert not any(circuit_edges(random_label_decoy(full), task, n_pairs=100)["operation"])
    table = circuit_edges(build_model(full), task, n_pairs=100)
    assert not any(table["operation"])
    assert not table["drawn"].any()
    assert table["effect"].isna().all()
    config = mi.RunConfig().updated({"task.n_classes": 64, "model.classifier_depth": 1, "model.classifier_width": 64})
    assert not any(circuit_edges(memorising_decoy(config), config.build_task(), n_pairs=100)["operation"])


def test_an_operation_takes_both_its_fact_and_its_edge(planted):
    facts = ["answers from the context", "earlier heads → last layer's key"]
    facts += ["target's query selects", "labels' values are copied"]
    found = [
        sorted(operations(planted, pd.DataFrame({"fact": facts, "holds": [fact != lost for fact in facts]})).values())
        for lost in facts
    ]
    everything = sorted(each.name for each in Operation)
    assert found[0] == everything
    assert [sorted(set(everything) - set(each)) for each in found[1:]] == [
        ["previous_token", "write"],
        ["match"],
        ["copy", "readout"],
    ]
    halved = planted.assign(effect=planted["effect"].where(planted["kind"] != "match", THRESHOLD / 2))
    whole = pd.DataFrame({"fact": facts, "holds": True})
    assert sorted(operations(halved, whole).values()) == sorted(set(everything) - {"match"})
    noisy = planted.assign(error=planted["error"].where(planted["kind"] != "match", 1.0))
    assert sorted(operations(noisy, whole).values()) == sorted(set(everything) - {"match"})


def test_every_kind_of_edge_is_the_intervention_it_says(deep):
    """Against hooks on the model itself, in three layers of two heads."""
    config, weights, table = deep
    model, pairs = build_model(config, weights), corrupted_pairs(config.build_task(), n_pairs=20)
    roles, found = pairs.roles, table.set_index(["source", "target"])["value"]
    with torch.no_grad():
        logits, cache = model.run_with_cache(pairs.clean.inputs)
    _, span, error = measured_span(Metric.logit_difference, logits, logits.roll(1, 0), pairs)
    lead = float(Metric.logit_difference.of(logits, pairs.answers, pairs.foils))
    assert table["span"][0] == pytest.approx(span, rel=1e-4)
    resolved = abs(span) > NOISE * error
    expected = (lead - table["value"]) / (span if resolved else float("nan"))
    assert table["effect"].tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4, nan_ok=True)

    def value(hook, change):
        with torch.no_grad():
            changed = model.run_with_hooks(pairs.clean.inputs, fwd_hooks=[(hook, lambda x, hook: change(x.clone()))])
        return pytest.approx(float(Metric.logit_difference.of(changed, pairs.answers, pairs.foils)), rel=1e-3, abs=1e-4)

    def link(query, key):
        return (roles[query][:, :, None] & roles[key][:, None, :])[:, None]

    def cut(pattern):
        pattern = pattern * ~link("other_label", "correct_item")
        return pattern / pattern.sum(-1, keepdim=True).clamp(min=1e-9)

    assert found["1.v.correct_item", "1.other_label"] == value("blocks.1.attn.hook_pattern", cut)

    def mismatch(scores):
        q, k = (cache[f"blocks.1.attn.hook_{each}"] for each in "qk")
        elsewhere = torch.einsum("bqhd,bkhd->bhqk", q, k.roll(1, 0))
        return torch.where(link("target", "other_item"), elsewhere, scores)

    assert found["1.k.other_item", "1.q.target"] == value("blocks.1.attn.hook_attn_scores", mismatch)

    def other_query(q):
        return torch.where(roles["other_item"][:, :, None, None], q.roll(1, 0), q)

    assert found["1.q.other_item", "1.other_item"] == value("blocks.1.attn.hook_q", other_query)

    def other_key(k):
        sent = cache["blocks.0.hook_attn_out"]
        change = torch.einsum("bpd,hdk->bphk", sent.roll(1, 0) - sent, weights["blocks.2.attn.W_K"])
        return k + change * roles["correct_label"][:, :, None, None]

    assert found["0.correct_label", "2.k.correct_label"] == value("blocks.2.attn.hook_k", other_key)

    def without_token(state):
        return state + (cache["hook_embed"].roll(1, 0) - cache["hook_embed"])[:, -1]

    assert found["token.target", "answer"] == value("classifier.hook_in", without_token)

    def other_written(out):
        return torch.where(roles["correct_item"][:, :, None], out.roll(1, 0), out)

    rows = table.drop_duplicates("source").set_index("source")
    lost = lead - float(value("blocks.0.hook_attn_out", other_written).expected)
    found_effect = rows["source_effect"]["0.correct_item"]
    assert found_effect == pytest.approx(lost / span if resolved else float("nan"), rel=1e-3, abs=1e-4, nan_ok=True)

    pattern, values, stream = (
        cache[f"blocks.1.{each}"] for each in ("attn.hook_pattern", "attn.hook_v", "hook_resid_pre")
    )
    moved = torch.einsum("bhqp,bphd->bqd", pattern * link("other_label", "correct_item"), values).norm(dim=-1)
    at = roles["other_label"]
    by_edge = table.set_index(["source", "target"])["moved"]
    expected = float(moved[at].mean() / stream.norm(dim=-1)[at].mean())
    assert by_edge["1.v.correct_item", "1.other_label"] == pytest.approx(expected, rel=1e-4)

    # layer 3's output at the target, and what came before: together all that the classifier reads
    sent = {name.split(".")[0] for name, target in found.index if target == "answer"}
    assert sent == {"token", "0", "1", "2"}


def test_noise_and_small_weights_are_not_drawn(planted):
    assert not weighted(planted, threshold=1.5)["drawn"].any()
    assert weighted(planted, threshold=1e-9)["drawn"].sum() >= len(PLANTED)
    assert not weighted(planted.assign(error=1.0))["drawn"].any()
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
        circuit_graph(induction_head(full), full.build_task(), **arguments)


# How it is drawn


def test_places_do_not_depend_on_weights(tiny_run, deep):
    first, second = (circuit_graph(tiny_run.weights(step), tiny_run.task, n_pairs=8) for step in (0, 20))
    assert {n: (d["x"], d["y"]) for n, d in first.nodes(data=True)} == {
        n: (d["x"], d["y"]) for n, d in second.nodes(data=True)
    }
    assert list(first.edges) == list(second.edges)
    for graph in (first, graph_of(deep[2])):
        places = [(node["x"], node["y"]) for node in graph.nodes.values()]
        assert len(set(places)) == len(places)
        columns = [graph.nodes[f"token.{role}"]["x"] for role in ROLES]
        assert columns == sorted(columns)


def test_a_picture_is_the_same_bytes_and_well_formed(tiny_run, planted, deep):
    pictures = [to_svg(circuit_graph(tiny_run.weights(20), tiny_run.task, n_pairs=8), "a") for _ in range(2)]
    assert pictures[0] == pictures[1]
    loud = deep[2].assign(weight=1.0, effect=np.linspace(-2, 2, len(deep[2])), error=1e-3, span=1.0, span_error=0.1)
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

    assert shades(nodes(0.4, 0.1)) == {("helps-head", "0.40")}
    assert shades(nodes(-3.0, 0.1)) == {("hurts-head", "1.00")}
    assert not shades(nodes(0.4, 0.2))
    assert "target: effect +0.400 ± 0.200<" in to_svg(graph_of(nodes(0.4, 0.2)))
    assert "no effect resolved" in to_svg(graph_of(nodes(float("nan"), float("nan"))))


def test_width_is_in_proportion_to_weight(planted):
    def widths(scale: float) -> list[float]:
        picture = to_svg(graph_of(planted.assign(effect=planted["effect"].clip(0, 1) * scale)))
        lines = [each for each in ElementTree.fromstring(picture).iter() if each.get("class") == "line helps"]
        return [float(each.get("stroke-width")) for each in lines[: len(PLANTED)]]

    assert widths(0.9) == pytest.approx([2 * each for each in widths(0.45)], abs=0.02)
    assert len(set(widths(0.9))) == 1 < len(set(widths(0.9) + widths(0.3)))


def boxes(picture: str) -> tuple[list, list, tuple[float, float]]:
    """Edges of the names of operations, of nodes, and the picture's size."""
    root = ElementTree.fromstring(picture)
    pills, nodes = [], []
    for each in root.iter():
        kind, get = each.get("class", ""), lambda name, each=each: float(each.get(name))
        if each.tag.endswith("rect") and kind in ("pill", "node"):
            box = (get("x"), get("y"), get("x") + get("width"), get("y") + get("height"))
            (pills if kind == "pill" else nodes).append(box)
        elif each.tag.endswith("circle") and kind == "node":
            x, y, r = get("cx"), get("cy"), get("r")
            nodes.append((x - r, y - r, x + r, y + r))
    return pills, nodes, (float(root.get("width")), float(root.get("height")))


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
    for table, n_layers in ((planted, 2), (deep[2], 3)):
        pills, nodes, (width, height) = boxes(to_svg(graph_of(operating(table, n_layers))))
        assert len(pills) == 2 * n_layers + 1
        assert len(nodes) == {2: 23, 3: 43}[n_layers]
        for number, (left, top, right, bottom) in enumerate(pills):
            assert 0 < left < right < width
            assert 0 < top < bottom < height
            for other in nodes + pills[:number]:
                assert right < other[0] or other[2] < left or bottom < other[1] or other[3] < top


def test_lines_run_through_no_node_on_their_way_up_a_column_and_no_name_of_a_row(deep):
    """Edges past the layers between, at their widest."""
    table = deep[2]
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
    assert words.endswith("the correct label has no lead beyond noise. Operations found: none.")
    assert said(panels({0: graph_of(planted)})[0]) == ("group", [])


def test_a_film_strip_has_a_panel_for_every_step(planted):
    graphs = {step: graph_of(planted) for step in (0, 10, 2_000)}
    picture = film_strip(graphs)
    root = ElementTree.fromstring(picture)
    titles = [each.text for each in root.iter() if each.get("class") == "title"]
    assert titles == ["Circuit over training", "step 0", "step 10", "step 2,000"]
    assert picture.count("Width of an edge") == 1
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


def test_json_gives_the_graph_back(planted, tiny_run):
    for graph in (graph_of(planted), circuit_graph(tiny_run.weights(0), tiny_run.task, n_pairs=8)):
        again = from_json(to_json(graph))
        assert again.graph == graph.graph
        assert dict(again.nodes(data=True)) == dict(graph.nodes(data=True))
        assert list(again.edges(data=True)) == list(graph.edges(data=True))
        assert to_svg(again) == to_svg(graph)
    for text in ("", "{", "[]", "3", '{"graphs": {}}', '{"nodes": [], "edges": []}', '{"nodes": [3], "edges": []}'):
        with pytest.raises(MechinterpError, match="not the JSON of a circuit graph; expected what to_json wrote"):
            from_json(text)


def test_a_graph_is_of_one_step(planted):
    for table in (pd.concat([planted.assign(step=0), planted.assign(step=1)]), planted[:0]):
        with pytest.raises(MechinterpError, match=r"a circuit graph is of one step; choose its rows: table\[table"):
            graph_of(table)


# Over a run


@pytest.fixture
def run(tiny_run, tmp_path):
    return mi.open_run(shutil.copy(tiny_run.path, tmp_path / "run.h5"))


def test_kept_tables_give_the_same_graphs(run):
    first = circuit_graphs(run, steps=[0, 20], n_pairs=8)
    again = circuit_graphs(run, steps=[20, 0], n_pairs=8)  # from what was kept
    fresh = circuit_graph(run.weights(20), run.task, n_pairs=8)
    assert list(first) == [0, 20]
    assert to_json(first[20]) == to_json(again[20]) == to_json(fresh)
    assert circuit_graphs(run, steps=[]) == {}
    assert to_json(circuit_graphs(run, steps=[20, 20], n_pairs=8)[20]) == to_json(fresh)


def test_the_command_draws_and_prints(run, tmp_path, capsys):
    out = tmp_path / "c.svg"
    small = ["circuit", str(run.path), "--n-pairs", "8"]
    assert main([*small, "--step", "4", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"circuit: {out}\n"
    first = out.read_bytes()
    assert b"run, step 4<" in first
    assert main([*small, "--step", "4", "--out", str(out)]) == 0
    assert out.read_bytes() == first
    assert main([*small, "--steps", "0", "4", "--out", str(out)]) == 0
    assert out.read_text().count(">step ") == 2
    capsys.readouterr()
    assert main([*small, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["picture"] is None
    assert not run.path.with_suffix(".svg").exists()
    graph = from_json(json.dumps(printed["graphs"]["20"]))
    assert graph.nodes["answer"]["kind"] == "answer"
    assert main(small) == 0
    assert b"run, step 20<" in run.path.with_suffix(".svg").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weight", "efect"], "unknown weight 'efect'; did you mean 'effect'?"),
        (["--step", "3"], "step 3 is not saved"),
        (["--steps", "0", "3"], "step 3 is not saved"),
        (["--step", "2", "--steps", "0"], "--step and --steps exclude each other"),
        (["--out", "RUN"], "is a run file"),
        (["--out", "/nope/c.svg"], "/nope/c.svg: cannot be written"),
        (["--out", "."], "cannot be written"),
        (["--out", "/dev/null"], "/dev/null: cannot be written"),
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
