"""Circuits alone: the pass with all edges and with none, planted circuits, their twins and decoys, and identities."""

import numpy as np
import pandas as pd
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits.circuit_pass import CircuitPass, Replacement, run_circuit
from mechinterp.circuits.edges import Edge
from mechinterp.circuits.faithfulness import (
    Faithfulness,
    Ranking,
    area_under_curve,
    faithfulness_curve,
    find_circuit,
    minimality,
    random_circuit,
    smallest_circuit,
)
from mechinterp.circuits.paths import patch_paths
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import forward, run_with_cache
from mechinterp.models.hooked import HookedNetwork
from mechinterp.models.network import Network
from mechinterp.models.planted import Operation, induction_head, random_label_decoy, token_induction_head
from mechinterp.randomness import generator
from mechinterp.tasks.corruption import corrupted_pairs, corruptions_of
from tests.circuits.test_general import FULL, POSITIONS, config_of, full_network
from tests.circuits.test_general import PLANTED as TOKENS
from tests.helpers import random_network

PLANTED = {
    Edge("embed", "0.0.q"),
    Edge("embed", "0.0.k"),
    Edge("embed", "0.0.v"),
    Edge("0.0", "1.0.k"),
    Edge("embed", "1.0.q"),
    Edge("embed", "1.0.v"),
    Edge("1.0", "classifier"),
}
"""All that the planted induction head computes with: previous token, write, match, copy and readout."""
ON_TOKENS = {
    Edge("embed", "0.0.v"),
    Edge("0.0", "1.0.k"),
    Edge("embed", "1.0.q"),
    Edge("embed", "1.0.v"),
    Edge("1.0", "unembed"),
}
"""The same on tokens: rotary positions and biases, of which layer 1 makes its pattern, are no edges."""


SMALL = {"n_classes": 32, "n_labels": 8, "n_pairs": 5, "position_dim": 24, "content_dim": 24, "p_in_context": 1.0}


@pytest.fixture(scope="module")
def full() -> mi.RunConfig:
    """Item–label sequences of 11 tokens."""
    return mi.RunConfig.from_dict({"task": SMALL, "model": {"classifier_depth": 1, "classifier_width": 24}})


@pytest.fixture(scope="module")
def task(full):
    return mi.build_task(full)


@pytest.fixture(scope="module")
def pairs(task):
    return corrupted_pairs(task, "shuffle_positions", n_pairs=40)


@pytest.fixture(scope="module")
def head(full) -> Network:
    return induction_head(full)


@pytest.fixture(scope="module")
def token_task():
    return mi.build_task(config_of(FULL))


def small_networks(tiny_config) -> dict[str, Network]:
    """Random networks of every form that a `Network` has."""
    general = {
        f"{positions}": full_network(positions, normalization_type=norm)
        for positions, norm in zip(POSITIONS, ["LN", "RMS", "RMSPre", "LNPre", None, "LN"], strict=True)
    }
    attention_only = {name: value for name, value in FULL.items() if name not in ("d_mlp", "act_fn")}
    classifier = {"output_matrix": "trained", "d_head": 6, "normalization_type": "LN", "d_mlp": 8, "biases": True}
    changed = tiny_config.updated({f"model.{name}": value for name, value in classifier.items()})
    return {
        **general,
        "parallel": full_network("rotary", parallel_attn_mlp=True),
        "attention only": random_network(config_of(attention_only, n_layers=3, positional_embedding_type="rotary")),
        "classic": random_network(tiny_config.updated({"model.n_heads": 2, "model.n_layers": 3}), seed=3),
        "classifier behind a norm": random_network(changed, seed=2),
    }


def wrongs(passes: CircuitPass, circuit) -> float:
    return float((passes.logits(circuit) - passes.intact.logits).abs().max())


def test_all_edges_are_the_intact_run_and_none_the_ablated_one(tiny_config, token_task):
    """With corrupt values, none is the corrupt run; with mean values the answer is the same for all sequences."""
    for name, network in small_networks(tiny_config).items():
        task = token_task if network.config.task.d_vocab else mi.build_task(tiny_config)
        pairs = corrupted_pairs(task, corruptions_of(task)[0], n_pairs=5)
        for replacement in Replacement:
            passes = CircuitPass(network, pairs, replacement)
            assert torch.equal(passes.logits(passes.edges), forward(network, pairs.clean.inputs)) or (
                wrongs(passes, passes.edges) == 0
            )
            none = passes.logits(())
            if replacement is Replacement.corrupt:
                assert torch.allclose(none, forward(network, pairs.corrupt.inputs), atol=1e-9), name
            elif replacement is Replacement.mean:
                assert torch.allclose(none, none[:1].expand_as(none), atol=1e-9), name
            else:
                clean = forward(network, pairs.clean.inputs)
                gaps = (none[:, None] - clean).abs().amax(dim=-1)  # every answer is that of another sequence
                assert (gaps.amin(dim=1) < 1e-9).all(), name
                assert (gaps.diagonal() > 1e-9).all(), name


def test_the_complement_of_an_edge_is_its_path_patched(tiny_config, token_task):
    """One ablated edge alone does what `patch_paths` does in the clean run, through all later components."""
    networks = small_networks(tiny_config)
    for name in ("standard", "parallel", "classic", "classifier behind a norm"):
        network = networks[name]
        task = token_task if network.config.task.d_vocab else mi.build_task(tiny_config)
        pairs = corrupted_pairs(task, corruptions_of(task)[0], n_pairs=3)
        passes = CircuitPass(network, pairs, "corrupt")
        table = patch_paths(network, pairs, metric="loss", direction="noise")
        assert list(passes.edges) == [Edge(*edge) for edge in table[["sender", "receiver"]].to_numpy()], name
        some = table.iloc[:: max(1, len(table) // 7)]
        for row in some.to_dict("records"):
            logits = passes.logits(passes.complement([(row["sender"], row["receiver"])]))
            found = float(torch.nn.functional.cross_entropy(logits, pairs.answers))
            assert found == pytest.approx(row["value"], abs=1e-9), (name, row["sender"], row["receiver"])


def test_all_edges_act_at_once(token_task):
    """With a random circuit, every receiver reads what a slow calculation by hooks says that it reads."""
    network = full_network("standard")
    pairs = corrupted_pairs(token_task, "swap_label", n_pairs=4)
    passes = CircuitPass(network, pairs, "corrupt")
    circuit = set(random_circuit(passes.edges, len(passes.edges) // 2, generator(1, 0)))
    p, ablated = network.parameters, run_with_cache(network, pairs.corrupt.inputs)
    intact, now, other = run_with_cache(network, pairs.clean.inputs), {}, {"embed": ablated["hook_embed"]}
    now["embed"] = intact["hook_embed"]
    for layer in range(2):
        z = ablated[f"blocks.{layer}.attn.hook_z"]
        for h in range(2):
            other[f"{layer}.{h}"] = z[:, :, h] @ p[f"blocks.{layer}.attn.W_O"][h]
        other[f"{layer}.mlp"] = ablated[f"blocks.{layer}.hook_mlp_out"]
    fixed = intact["hook_pos_embed"]

    def read(receiver: str, names: list[str], constant):
        return constant + sum((now if Edge(name, receiver) in circuit else other)[name] for name in names)

    def norm(x, name):
        x = x - x.mean(dim=-1, keepdim=True)
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.w"] + p[f"{name}.b"]

    names = ["embed"]
    for layer in range(2):
        b = f"blocks.{layer}"
        for h in range(2):
            q, k, v = (
                norm(read(f"{layer}.{h}.{t}", names, fixed), f"{b}.ln1") @ p[f"{b}.attn.W_{t.upper()}"][h]
                + p[f"{b}.attn.b_{t.upper()}"][h]
                for t in "qkv"
            )
            scores = q @ k.transpose(1, 2) / 2  # √d_head
            pattern = scores.masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf).softmax(dim=-1)
            now[f"{layer}.{h}"] = pattern @ v @ p[f"{b}.attn.W_O"][h]
        fixed = fixed + p[f"{b}.attn.b_O"]
        names += [f"{layer}.{h}" for h in range(2)]
        pre = norm(read(f"{layer}.mlp", names, fixed), f"{b}.ln2") @ p[f"{b}.mlp.W_in"] + p[f"{b}.mlp.b_in"]
        now[f"{layer}.mlp"] = torch.nn.functional.gelu(pre) @ p[f"{b}.mlp.W_out"] + p[f"{b}.mlp.b_out"]
        names.append(f"{layer}.mlp")
    expected = norm(read("unembed", names, fixed)[:, -1], "ln_final") @ p["unembed.W_U"] + p["unembed.b_U"]
    assert torch.allclose(passes.logits(circuit), expected, atol=1e-9)
    assert not torch.allclose(passes.logits(circuit), intact.logits, atol=1e-2)
    assert torch.equal(
        run_circuit(HookedNetwork(network), pairs, circuit, replacement="corrupt"), passes.logits(circuit)
    )


@pytest.mark.parametrize("ranking", Ranking)
def test_the_circuit_of_the_planted_head_is_what_was_planted(head, pairs, ranking):
    options = {"ranking": ranking, "integration_steps": 4}
    assert set(find_circuit(head, pairs, **options)) == PLANTED
    curve = faithfulness_curve(head, pairs, **options)
    assert set(smallest_circuit(curve)) == PLANTED
    assert curve["faithfulness"][7:].tolist() == pytest.approx([1] * 6)
    assert curve["completeness"][7:].tolist() == pytest.approx([1] * 6)
    assert (curve["faithfulness"][:7] < 0.9).all()  # any part alone is none
    assert (curve["faithfulness"].iloc[0], curve["completeness"].iloc[0]) == (0, 0)
    assert curve["accuracy"].iloc[7] == 1
    assert curve["complement_accuracy"].iloc[7] < 0.4


def test_the_circuit_on_tokens_is_what_was_planted(token_task):
    pairs = corrupted_pairs(token_task, "swap_item", n_pairs=30)
    head = token_induction_head(config_of(TOKENS))
    assert set(find_circuit(head, pairs)) == ON_TOKENS
    two = token_induction_head(config_of(TOKENS, n_heads=2))
    one = find_circuit(two, pairs, metric="probability")  # of two heads alike in a layer one is enough
    assert {edge.receiver.split(".")[-1] for edge in one} == {"k", "q", "v", "unembed"}
    assert len({edge.sender for edge in one if edge.receiver == "unembed"}) == 1
    scores = Faithfulness(two, pairs, metric="probability").scores(one)
    assert scores.faithfulness > 0.9
    assert scores.completeness < 0.1  # and the other one is enough too
    lead = Faithfulness(two, pairs).scores(one)  # LayerNorm divides by less where a head writes its mean alone
    assert lead.faithfulness > 2


def test_every_planted_edge_is_needed_and_no_other_one(head, pairs):
    table = minimality(head, pairs, [*PLANTED, ("0.0", "classifier"), ("embed", "1.0.k")])
    losses = {Edge(row["sender"], row["receiver"]): row["loss"] for row in table.to_dict("records")}
    assert {edge for edge, loss in losses.items() if loss > 0.3} == PLANTED
    assert {loss for edge, loss in losses.items() if edge not in PLANTED} == {0.0}
    measured = Faithfulness(head, pairs)
    assert set(measured.pruned(sorted(measured.edges, key=lambda edge: edge in PLANTED))) == PLANTED


def test_twins_and_decoys_have_no_such_circuit(full, task, pairs, head):
    """A twin without an operation has no answer to explain; other circuits of the size of the planted one fail."""
    measured, rng = Faithfulness(head, pairs), generator(0, 0)
    others = [set(random_circuit(measured.edges, 7, rng)) for _ in range(12)]
    assert max(measured.faithfulness(other) for other in others if other != PLANTED) < 0.5
    scores = measured.scores(measured.passes.complement(PLANTED))
    assert (scores.faithfulness, scores.completeness) == pytest.approx((0, 0), abs=1e-9)
    for without in Operation:
        twin = Faithfulness(induction_head(full, without=without), pairs)
        found = twin.scores(PLANTED)
        assert found.accuracy < 0.6, without
        assert not twin.is_resolved or abs(twin.span[0]) < 0.2 * measured.span[0], without
    with pytest.raises(MechinterpError, match=r"answer is not resolved on 40 pairs \(span 0 ± 0\)"):
        find_circuit(induction_head(full, without="readout"), pairs)
    nothing = Faithfulness(induction_head(full, without="readout"), pairs).scores(PLANTED)
    assert np.isnan([nothing.faithfulness, nothing.faithfulness_error, nothing.completeness]).all()
    assert (nothing.value, nothing.span) == (0, 0)
    decoy = Faithfulness(random_label_decoy(full), pairs, metric="probability")
    assert decoy.scores(decoy.edges).accuracy < 0.6  # names some label of the context


def test_a_faithful_circuit_need_not_be_complete(full):
    """Two heads that do the same with a saturated answer: one is faithful, and so are the edges without it."""
    single = induction_head(full)
    config = full.updated({"model.n_heads": 2})
    parameters = {
        name: torch.cat([value, value]) if name.startswith("blocks.") else value
        for name, value in single.parameters.items()
    }
    parameters["blocks.0.attn.W_V"][1] = 0  # one head of layer 1 feeds both of layer 2
    double = Network(config, parameters)
    pairs = corrupted_pairs(mi.build_task(full), "shuffle_positions", n_pairs=40)
    one = [*(PLANTED - {Edge("1.0", "classifier")}), ("1.0", "classifier")]
    scores = Faithfulness(double, pairs, metric="probability").scores(one)
    assert scores.faithfulness == pytest.approx(1, abs=0.02)
    assert scores.completeness > 0.9  # the other head reads the same edges into layer 1
    both = Faithfulness(double, pairs, metric="probability")
    of_head = [("embed", "1.0.q"), ("embed", "1.0.v"), ("0.0", "1.0.k"), ("1.0", "classifier")]
    assert both.scores(of_head).completeness == pytest.approx(0, abs=0.02)


def test_effects_are_of_the_span_and_ranked_by_size(head, pairs):
    measured = Faithfulness(head, pairs, replacement="corrupt")
    exact = patch_paths(head, pairs, direction="noise").set_index(["sender", "receiver"])["effect"]
    found = measured.effects()
    assert [found[Edge(*edge)] for edge in exact.index] == pytest.approx((1 - exact).tolist(), abs=1e-9)
    sizes = [abs(effect) for effect in measured.ranked().values()]
    assert sizes == sorted(sizes, reverse=True)
    slopes = patch_paths(head, pairs, direction="noise", integration_steps=3).set_index(["sender", "receiver"])
    for ranking in (Ranking.attribution, Ranking.integrated):
        linear = measured.effects(ranking, integration_steps=3)
        expected = 1 - slopes[ranking.name]
        assert [linear[Edge(*edge)] for edge in expected.index] == pytest.approx(expected.tolist(), abs=1e-9)


def test_errors_of_a_ratio_are_those_of_many_draws(full, task):
    """The standard error over pairs is the spread of the faithfulness over sets of pairs."""
    weak = induction_head(full, alpha=3.0, beta1=3.0)
    circuit = PLANTED - {Edge("embed", "0.0.q")}
    scores = [
        Faithfulness(weak, corrupted_pairs(task, "shuffle_positions", n_pairs=30, seed=seed)).scores(circuit)
        for seed in range(24)
    ]
    spread = np.std([score.faithfulness for score in scores], ddof=1)
    told = np.mean([score.faithfulness_error for score in scores])
    assert told == pytest.approx(spread, rel=0.35)
    assert np.std([score.value for score in scores]) == pytest.approx(
        np.mean([score.value_error for score in scores]), rel=0.35
    )


def test_the_area_and_the_smallest_circuit_are_read_off_a_curve():
    curve = pd.DataFrame({"n_edges": range(5), "faithfulness": [0, 0.95, 0.4, 0.92, 1.0]})
    curve["sender"], curve["receiver"] = list("_abcd"), list("_wxyz")
    assert area_under_curve(curve) == pytest.approx((0.475 + 0.675 + 0.66 + 0.96) / 4)
    assert smallest_circuit(curve) == (("a", "w"), ("b", "x"), ("c", "y"))  # and stays there
    assert len(smallest_circuit(curve, 0.95)) == 4
    assert smallest_circuit(curve.assign(faithfulness=float("nan"))) == ()
    assert smallest_circuit(curve.assign(faithfulness=1.0)) == ()


def test_mistakes_are_told(head, pairs):
    with pytest.raises(MechinterpError, match=r"unknown edge .0.0 → 1.0.x.; did you mean .0.0 → 1.0."):
        run_circuit(head, pairs, [("0.0", "1.0.x")])
    with pytest.raises(MechinterpError, match="accuracy has no gradient"):
        Faithfulness(head, pairs, metric="accuracy").ranked("attribution")
    with pytest.raises(MechinterpError, match="unknown"):
        run_circuit(head, pairs, [], replacement="zero")
