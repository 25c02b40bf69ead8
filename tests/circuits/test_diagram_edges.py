"""The diagram has the planted edges and no others, and each is the intervention that it says."""

import numpy as np
import pandas as pd
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits.certainty import resolved
from mechinterp.circuits.diagram import THRESHOLD, circuit_edges, operations
from mechinterp.circuits.evidence import Fact
from mechinterp.circuits.graph import circuit_graph, graph_of
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import clean_corrupt_gap
from mechinterp.circuits.standard_errors import standard_error
from mechinterp.circuits.svg import to_svg
from mechinterp.models.network import Network
from mechinterp.models.planted import Operation, induction_head, memorising_decoy, random_label_decoy
from mechinterp.tasks import ItemLabelTask
from mechinterp.tasks.corruption import corrupted_pairs
from tests.circuits.planted import PLANTED, drawn
from tests.helpers import hooked


def test_a_planted_head_has_exactly_the_planted_edges(full, planted):
    assert drawn(planted) == PLANTED
    rows = planted[planted["drawn"]]
    assert rows["effect"].tolist() == pytest.approx([1] * len(PLANTED), abs=0.12)
    # The first token sees itself only. Where it is the correct item, its key then matches as well as its label's does,
    # and half of the attention is lost to it.
    first = float(corrupted_pairs(mi.build_task(full), n_pairs=100).roles["correct_item"][:, 0].double().mean())
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
    task, n_pairs = mi.build_task(config), 30
    pairs = corrupted_pairs(task, n_pairs=n_pairs)
    content, roles = pairs.clean.inputs[:, :, config.task.position_dim :].double().numpy(), pairs.roles
    n_tokens, rows = content.shape[1], np.arange(n_pairs)
    assert isinstance(task, ItemLabelTask)
    duals = np.linalg.pinv(task.label_vectors.astype(float))
    causal = np.tril(np.ones((n_tokens, n_tokens), bool))

    def at(role):
        return roles[role].numpy()[:, :, None]

    def attention(scores, cut: np.ndarray | bool = False):
        weights = np.exp(scores - scores.max()) * causal * ~np.asarray(cut)
        return weights / weights.sum(axis=-1, keepdims=True)

    def link(key, query):
        return at(query) & at(key).swapaxes(1, 2)

    before = 20.0 * np.eye(n_tokens, k=-1)[None]
    seen = attention(before) @ content

    def lead(buffer=seen, query=content, value=content, cut: np.ndarray | bool = False, match=None):
        scores = 40.0 * query @ buffer.swapaxes(1, 2)
        if match is not None:
            scores = np.where(match, 40.0 * query @ np.roll(buffer, 1, 0).swapaxes(1, 2), scores)
        logits = 20.0 * (attention(scores, cut) @ value)[:, -1] @ duals
        return logits[rows, pairs.answers] - logits[rows, pairs.wrong_labels], logits

    def other(activation, role):
        return np.where(at(role), np.roll(activation, 1, 0), activation)

    clean, logits = lead()
    assert pairs.target_classes is not None
    of_target = pairs.target_classes[:, 0]
    classes = torch.stack([of_target, of_target.roll(1)], dim=1)  # of this and of the other sequence
    elsewhere = np.roll(logits, 1, 0)
    span = (clean - elsewhere[rows, pairs.answers] + elsewhere[rows, pairs.wrong_labels]).mean()
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
    effect, error = table["effect"].to_dict(), table["error"].to_dict()
    for edge, (left, _) in without.items():
        lost = clean - left
        assert effect[edge] == pytest.approx(lost.mean() / span), edge
        assert error[edge] == pytest.approx(standard_error(torch.from_numpy(lost), classes) / span), edge


def test_a_network_that_prefers_the_other_label_has_no_lead_to_share_out(full):
    head = induction_head(full)
    turned = head.parameters | {"classifier.readout.W": -head.parameters["classifier.readout.W"]}
    table = circuit_edges(Network(full, turned), mi.build_task(full), n_pairs=40)
    assert table["span"].to_list()[0] < -10
    assert bool(table["effect"].isna().all())
    assert not any(table["operation"])
    assert "the correct label does not lead in 60% of sequences" in to_svg(graph_of(table))


@pytest.mark.parametrize("without", Operation)
def test_a_twin_lacks_the_edge_of_its_operation(full, without):
    graph = circuit_graph(induction_head(full, without=without), mi.build_task(full), n_pairs=100)
    shown = {edge["operation"]: (a, b) for a, b, edge in graph.edges(data=True) if edge["drawn"]}
    assert without.name not in shown
    (missing,) = (edge for edge, operation in PLANTED.items() if operation == without.name)
    assert missing not in shown.values()
    assert "No circuit is drawn" in to_svg(graph)


def test_a_broken_operation_is_not_named_where_its_edge_still_has_an_effect(full):
    """Uniform attention of layer 1 still mixes the item into its label: with weak scores that helps a little."""
    twin = induction_head(full, without="previous_token", alpha=12.0)
    table = circuit_edges(twin, mi.build_task(full), n_pairs=400)
    shown = drawn(table)
    assert {("token.correct_item", "0.correct_label"), ("0.correct_label", "1.k.correct_label")} <= set(shown)
    assert set(shown.values()) == {"", "match", "copy", "readout"}


def test_decoys_and_untrained_networks_have_no_operation(full):
    task = mi.build_task(full)
    assert not any(circuit_edges(random_label_decoy(full), task, n_pairs=100)["operation"])
    table = circuit_edges(Network.initial(full), task, n_pairs=100)
    assert not any(table["operation"])
    assert not bool(table["drawn"].any())
    assert bool(table["effect"].isna().all())
    config = mi.RunConfig().updated({"task.n_classes": 64, "model.classifier_depth": 1, "model.classifier_width": 64})
    assert not any(circuit_edges(memorising_decoy(config), mi.build_task(config), n_pairs=100)["operation"])


def test_an_operation_takes_both_its_fact_and_its_edge(planted):
    facts = [fact.name for fact in Fact]
    found = [
        sorted(
            operations(
                planted, pd.DataFrame({"fact": facts, "value": [float(fact != lost) for fact in facts]})
            ).values()
        )
        for lost in facts
    ]
    everything = sorted(each.name for each in Operation)
    lost = {fact: sorted(set(everything) - set(each)) for fact, each in zip(facts, found, strict=True)}
    assert lost == {
        "answers_from_context": [],
        "k_composition": ["previous_token", "write"],
        "q_composition": [],
        "target_query_selects": ["match"],
        "correct_label_copied": ["copy", "readout"],
        "induction_head": [],
    }
    halved = planted.assign(effect=planted["effect"].where(planted["kind"] != "match", THRESHOLD / 2))
    whole = pd.DataFrame({"fact": facts, "value": 1.0})
    assert sorted(operations(halved, whole).values()) == sorted(set(everything) - {"match"})
    noisy = planted.assign(error=planted["error"].where(planted["kind"] != "match", 1.0))
    assert sorted(operations(noisy, whole).values()) == sorted(set(everything) - {"match"})


def test_every_kind_of_edge_is_the_intervention_it_says(deep):
    """Against hooks on the model itself, in three layers of two heads."""
    network, table = deep
    model, pairs = hooked(network), corrupted_pairs(mi.build_task(network.config), n_pairs=20)
    roles, found = pairs.roles, table.set_index(["source", "target"])["value"]
    with torch.no_grad():
        logits, cache = model.run_with_cache(pairs.clean.inputs)
    span = clean_corrupt_gap(Metric.logit_difference, logits, logits.roll(1, 0), pairs)[1]
    lead = float(Metric.logit_difference.of(logits, pairs.answers, pairs.wrong_labels))
    assert table["span"][0] == pytest.approx(span, rel=1e-4)
    leads = resolved(span, table["span_error"][0], table["ahead"][0])
    expected = (lead - table["value"]) / (span if leads else float("nan"))
    assert table["effect"].tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4, nan_ok=True)

    def value(hook, change):
        with torch.no_grad():
            changed = model.run_with_hooks(pairs.clean.inputs, fwd_hooks=[(hook, lambda x, hook: change(x.clone()))])
        return pytest.approx(
            float(Metric.logit_difference.of(changed, pairs.answers, pairs.wrong_labels)), rel=1e-3, abs=1e-4
        )

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
        change = torch.einsum("bpd,hdk->bphk", sent.roll(1, 0) - sent, network.matrix(2, "K"))
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
    assert found_effect == pytest.approx(lost / span if leads else float("nan"), rel=1e-3, abs=1e-4, nan_ok=True)

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
