"""Circuits of networks with tokens, W_O, normalisation, positions and MLPs: planted heads, twins and identities."""

import pandas as pd
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits.ablation import ablate, component_sites
from mechinterp.circuits.diagram import circuit_edges, operations
from mechinterp.circuits.edges import Scale, receivers, senders
from mechinterp.circuits.evidence import Fact, induction_head_evidence
from mechinterp.circuits.graph import graph_of
from mechinterp.circuits.heads import head_roles
from mechinterp.circuits.layout import Layout
from mechinterp.circuits.logits import logit_attribution, logit_lens
from mechinterp.circuits.look import Look
from mechinterp.circuits.patching import Site, patch, sites
from mechinterp.circuits.paths import patch_paths
from mechinterp.circuits.qk_ov import copying_score, ov, position_profile, qk, score_blocks, written_blocks
from mechinterp.circuits.subspaces import Subspace, subspaces
from mechinterp.circuits.svg import to_svg
from mechinterp.errors import MechinterpError
from mechinterp.measures.prefix_matching import after_earlier_occurrences
from mechinterp.models.forward import run_with_cache
from mechinterp.models.hooked import HookedNetwork
from mechinterp.models.network import Network
from mechinterp.models.planted import Operation, token_induction_head
from mechinterp.tasks.corruption import Corruption, composition_corruption, corrupted_pairs
from tests.helpers import random_network

V, R = 16, 8
SEQUENCES = {"kind": "induction_tokens", "n_tokens": V, "n_pos": 20, "min_period": 4, "max_period": 8}
TOKENS = {"input": "tokens", "output": "unembedding", "output_matrix": "trained"}
PLANTED = TOKENS | {"d_model": 6 * V, "d_head": R + V, "rotary_dim": R, "positional_embedding_type": "rotary"}
PLANTED |= {"normalization_type": "LN", "biases": True}
FULL = TOKENS | {"d_model": 12, "d_head": 4, "n_heads": 2, "d_mlp": 10, "act_fn": "gelu", "biases": True}
FULL |= {"normalization_type": "LN", "use_attn_scale": True}
POSITIONS = ["standard", "sinusoidal", "rotary", "shortformer", "relative_positional_bias", None]


def config_of(model: dict, **changes) -> mi.RunConfig:
    return mi.RunConfig.from_dict({"task": SEQUENCES, "model": model | changes})


def full_network(positions: str | None = "standard", **changes) -> Network:
    return random_network(config_of(FULL, positional_embedding_type=positions, **changes), seed=5)


def effects(table: pd.DataFrame) -> dict:
    return table.set_index(["sender", "receiver"])["effect"].to_dict()


@pytest.fixture(scope="module")
def task():
    return mi.build_task(config_of(PLANTED))


@pytest.fixture(scope="module")
def head() -> Network:
    return token_induction_head(config_of(PLANTED))


# The planted head


def test_the_planted_head_attends_as_its_equations_say(task, head):
    batch = task.sample("icl", 30)
    run = run_with_cache(head, batch.inputs)
    distance = (torch.arange(20)[:, None] - torch.arange(20)).double()
    angles = 10_000.0 ** (-torch.arange(R // 2).double() / (R // 2))
    scores = 20 * torch.cos((distance[..., None] - 1) * angles).sum(dim=-1)
    expected = scores.masked_fill(distance < 0, -torch.inf).softmax(dim=-1)
    first, second = (run[f"blocks.{layer}.attn.hook_pattern"][:, 0] for layer in (0, 1))
    assert torch.allclose(first, expected.expand(30, -1, -1), atol=1e-12)
    assert float(first.diagonal(-1, dim1=1, dim2=2).min()) > 0.95
    score = (second * after_earlier_occurrences(batch.inputs)).sum(dim=-1)[batch.roles["repeat"]]
    assert float(score.mean()) > 0.9  # the rest is on the first token, before which none stands
    assert torch.equal(run.logits.argmax(dim=-1), batch.labels)


def test_only_a_whole_induction_head_is_called_one(task, head):
    facts = induction_head_evidence(head, task, n_pairs=100).set_index("fact")
    assert facts["value"].to_dict() == pytest.approx(dict.fromkeys(facts.index, 1.0) | {"q_composition": 0.0}, abs=1e-2)
    for without in Operation:
        twin = token_induction_head(config_of(PLANTED), without=without)
        assert not induction_head_evidence(twin, task, n_pairs=100).set_index("fact")["holds"]["induction_head"], (
            without
        )
    earlier = induction_head_evidence(head, task, layer=0, n_pairs=100).set_index("fact")["holds"]
    assert not earlier["induction_head"]
    with pytest.raises(MechinterpError, match="unknown layer '2'"):
        induction_head_evidence(head, task, layer=2)


def test_only_the_planted_edges_have_an_effect(task, head):
    planted = {
        Corruption.swap_item: {("embed", "0.0.v"), ("0.0", "1.0.k"), ("1.0", "unembed")},
        Corruption.swap_label: {("embed", "1.0.v"), ("1.0", "unembed")},
        Corruption.replace_target: {("embed", "1.0.q"), ("1.0", "unembed")},
    }
    assert composition_corruption(task) is Corruption.swap_item
    for corruption, edges in planted.items():
        for scale in Scale:
            found = effects(patch_paths(head, corrupted_pairs(task, corruption, n_pairs=60), scale=scale))
            expected = {edge: float(edge in edges) for edge in found}
            assert found == pytest.approx(expected, abs=2e-2), (corruption, scale)


def test_the_diagram_names_the_operations_of_the_planted_head(task, head):
    table = circuit_edges(head, task, n_pairs=100)
    named = table[table["operation"] != ""].set_index("operation")
    assert named["source"].to_dict() == {
        "previous_token": "token.correct_item",
        "write": "0.correct_label",
        "match": "1.k.correct_label",
        "copy": "1.v.correct_label",
        "readout": "1.target",
    }
    assert (named["effect"] > 0.8).all()
    values = table[table["source"].str.contains(".v.") & (table["source"] != "1.v.correct_label")]
    assert values["effect"].abs().max() < 0.05
    graph = graph_of(table)
    assert [name for name in graph if name.startswith("token.")] == [
        f"token.{role}" for role in ("other", "correct_item", "correct_label", "target")
    ]
    assert "other tokens" in to_svg(graph)
    for without in (Operation.match, Operation.write, Operation.copy):
        twin = circuit_edges(token_induction_head(config_of(PLANTED), without=without), task, n_pairs=100)
        assert not (twin["operation"] == without.name).any()


def test_heads_are_told_apart_by_role_and_redundancy(task, head):
    table = head_roles(head, task, n_pairs=60).set_index(["layer", "head"])
    assert table["role"].tolist() == ["previous_token", "induction"]
    assert not table["redundant"].any()
    assert table[["alone", "needed"]].to_numpy().ravel().tolist() == pytest.approx([1] * 4, abs=5e-2)
    two = token_induction_head(config_of(PLANTED, n_heads=2))
    roles = head_roles(two, task, n_pairs=60).set_index(["layer", "head"])
    assert roles["role"].tolist() == ["previous_token"] * 2 + ["induction"] * 2
    # half of a saturated match is as good as all of it; a copy is the sum of what heads write
    assert roles["redundant"].tolist() == [True, True, False, False]
    idle = {name: value.clone() for name, value in two.parameters.items()}
    idle["blocks.0.attn.W_O"][0] *= 2
    idle["blocks.0.attn.W_O"][1] = 0  # attends to the token before and writes nothing
    roles = head_roles(Network(two.config, idle), task, n_pairs=60)
    assert roles["role"].tolist() == ["previous_token", "none", "induction", "induction"]
    assert roles.loc[1, "previous_token"] > 0.9
    assert head_roles(token_induction_head(config_of(PLANTED), without="copy"), task)["role"].tolist() == ["none"] * 2


def test_copying_is_told_from_its_opposite_and_from_none(task, head):
    batch = task.sample("icl", 20)
    assert copying_score(head, task, batch) == pytest.approx(1)
    assert copying_score(token_induction_head(config_of(PLANTED), xi=-20.0), task, batch) == pytest.approx(-1)
    assert abs(copying_score(full_network(), task, batch)) < 0.7
    shifted = {name: value.clone() for name, value in head.parameters.items()}
    shifted["unembed.W_U"] = shifted["unembed.W_U"].roll(1, dims=1)  # raises the token after the one that is seen
    assert copying_score(Network(head.config, shifted), task, batch) == pytest.approx(-1 / 15, rel=1e-4)


def test_a_network_of_another_form_cannot_have_the_planted_head():
    with pytest.raises(MechinterpError, match=r"d_model = 96, d_head = rotary_dim \+ 16"):
        token_induction_head(config_of(PLANTED, d_model=90))


# Identities, on random weights


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("norm", ["LN", "RMSPre", None])
@pytest.mark.parametrize("parallel", [False, True])
def test_what_all_senders_change_is_what_a_receiver_reads(task, positions, norm, parallel):
    network = full_network(positions, normalization_type=norm, parallel_attn_mlp=parallel)
    pairs = corrupted_pairs(task, "swap_label", n_pairs=6)
    base, source = (run_with_cache(network, batch.inputs) for batch in (pairs.clean, pairs.corrupt))
    for receiver in receivers(base):
        written = senders(base, receiver), senders(source, receiver)
        change = sum((written[1][name] - written[0][name] for name in written[0]), torch.zeros(()))
        found = base[receiver.hook] + receiver.reads(base, change, Scale.recomputed)
        expected = base[receiver.hook].clone()
        if receiver.through in "qkv":
            expected[:, :, receiver.head] = source[receiver.hook][:, :, receiver.head]
        else:
            expected = source[receiver.hook]
        assert torch.allclose(found, expected, atol=1e-9), receiver


def test_with_a_frozen_scale_edges_into_the_output_add_up(task):
    network, pairs = full_network(), corrupted_pairs(task, "swap_label", n_pairs=20)
    table = patch_paths(network, pairs, scale="frozen")
    output = table[table["receiver"] == "unembed"]
    assert output["attribution"].tolist() == pytest.approx(output["effect"].tolist(), abs=1e-9)
    base, source = (run_with_cache(network, batch.inputs) for batch in (pairs.corrupt, pairs.clean))
    last = "blocks.1.hook_resid_post"
    change = receivers(base)[-1].reads(base, source[last] - base[last], Scale.frozen)[:, -1]
    rows = torch.arange(20)
    lead = change[rows, pairs.answers] - change[rows, pairs.wrong_labels]
    assert output["effect"].sum() * table["span"].iloc[0] == pytest.approx(float(lead.mean()))
    moved = patch_paths(network, pairs)
    assert not moved["effect"].equals(table["effect"])
    assert {"0.mlp", "1.mlp"} <= set(moved["sender"]) & set(moved["receiver"])


def test_a_hooked_model_has_the_paths_of_its_network(task):
    network, pairs = full_network("rotary"), corrupted_pairs(task, "swap_label", n_pairs=5)
    pd.testing.assert_frame_equal(patch_paths(network, pairs), patch_paths(HookedNetwork(network), pairs))


@pytest.mark.parametrize("positions", POSITIONS)
def test_blocks_rebuild_scores_and_values(task, positions):
    network, batch = full_network(positions), task.sample("icl", 4)
    run, allowed = run_with_cache(network, batch.inputs), torch.ones(20, 20, dtype=torch.bool).tril()
    for layer, head in [(0, 1), (1, 0)]:
        scores = run[f"blocks.{layer}.attn.hook_attn_scores"][:, head]
        blocks = score_blocks(network, task, batch.inputs, layer, head)
        assert (sum(blocks.values()) - scores)[:, allowed].abs().max() < 1e-9
        names = {name for pair in blocks for name in pair}
        assert len(blocks) == len(names) ** 2
        values = run[f"blocks.{layer}.attn.hook_v"][:, :, head] @ network.parameters[f"blocks.{layer}.attn.W_O"][head]
        written = written_blocks(network, task, batch.inputs, layer, head)
        assert (sum(written.values()) - values).abs().max() < 1e-9


@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_folded_circuits_give_scores_and_values_of_a_stream_over_its_scale(task, norm):
    network = full_network("rotary", normalization_type=norm, n_layers=1)
    run = run_with_cache(network, task.sample("icl", 3).inputs)
    x = run["blocks.0.hook_resid_pre"] / run["blocks.0.ln1.hook_scale"]
    silent = {
        name: value * (not name.endswith((".b", "b_Q", "b_K", "b_V"))) for name, value in network.parameters.items()
    }
    plain = run_with_cache(Network(network.config, silent), task.sample("icl", 3).inputs)
    for distance in (0, 3):
        expected = plain["blocks.0.attn.hook_attn_scores"][:, 1, 9, 9 - distance]
        found = torch.einsum("bd,de,be->b", x[:, 9], qk(network, 0, 1, distance=distance), x[:, 9 - distance])
        assert torch.allclose(found, expected)
    values = plain["blocks.0.attn.hook_v"][:, :, 1] @ network.parameters["blocks.0.attn.W_O"][1]
    assert torch.allclose(x @ ov(network, 0, 1), values)


def test_profiles_are_of_positions_alone(task):
    assert position_profile(full_network("rotary"), task).empty
    network = full_network("relative_positional_bias")
    bias = network.parameters["blocks.1.attn.rel_pos_bias"][:, 1]
    assert position_profile(network, task, 1, 1).tolist()[:16] == bias[:16].tolist()
    silent = {
        name: value * (name != "embed.W_E" and "b_" not in name) for name, value in full_network().parameters.items()
    }
    without = Network(config_of(FULL, positional_embedding_type="standard", normalization_type=None), _fitting(silent))
    scores = run_with_cache(without, task.sample("icl", 1).inputs)["blocks.0.attn.hook_attn_scores"][0, 0]
    profile = position_profile(without, task)
    assert [float(scores.diagonal(-offset).mean()) for offset in (0, 1, 7)] == pytest.approx(
        profile[[0, 1, 7]].tolist()
    )


def _fitting(parameters: dict) -> dict:
    """Without the parameters of normalisations."""
    return {name: value for name, value in parameters.items() if ".ln" not in name and not name.startswith("ln_final")}


@pytest.mark.parametrize("positions", POSITIONS)
def test_direct_attributions_add_up_to_the_lead(task, positions):
    network, pairs = full_network(positions), corrupted_pairs(task, "replace_target", n_pairs=10)
    table = logit_attribution(network, pairs).set_index("component")["lead"]
    lens = logit_lens(network, pairs).set_index("hook")
    assert table.sum() == pytest.approx(lens["lead"].iloc[-1])
    assert list(table.index) == ["embed", "0.0", "0.1", "0.mlp", "1.0", "1.1", "1.mlp", "constant"]
    run = run_with_cache(network, pairs.clean.inputs)
    fixed = run["hook_pos_embed"][:, -1] if positions in ("standard", "sinusoidal") else torch.zeros(10, 12)
    fixed = fixed + network.parameters["blocks.0.attn.b_O"] + network.parameters["blocks.1.attn.b_O"]
    w, b = network.parameters["ln_final.w"], network.parameters["ln_final.b"]
    read = (fixed - fixed.mean(dim=-1, keepdim=True)) / run["ln_final.hook_scale"][:, -1] * w + b
    logits, rows = read @ network.parameters["unembed.W_U"] + network.parameters["unembed.b_U"], torch.arange(10)
    expected = float((logits[rows, pairs.answers] - logits[rows, pairs.wrong_labels]).mean())
    assert table["constant"] == pytest.approx(expected)


def test_a_relu_classifier_has_a_lens_and_no_direct_attribution(tiny_config):
    network, pairs = random_network(tiny_config), corrupted_pairs(mi.build_task(tiny_config), n_pairs=5)
    assert logit_lens(network, pairs)["hook"].iloc[-1] == "blocks.1.hook_resid_post"
    with pytest.raises(MechinterpError, match="ReLU layers"):
        logit_attribution(network, pairs)
    linear = tiny_config.updated({"model.classifier_depth": 0})
    table = logit_attribution(random_network(linear), pairs)
    assert table["lead"].sum() == pytest.approx(logit_lens(random_network(linear), pairs)["lead"].iloc[-1])


def test_every_part_is_patched_and_ablated(task):
    network, pairs = full_network(), corrupted_pairs(task, "swap_label", n_pairs=6)
    base = run_with_cache(network, pairs.corrupt.inputs)
    hooks = {site.hook for site in sites(base, pairs.roles)}
    for name in ("ln1.hook_normalized", "hook_resid_mid", "ln2.hook_normalized", "mlp.hook_post", "hook_mlp_out"):
        assert {f"blocks.0.{name}", f"blocks.1.{name}"} <= hooks
    source = run_with_cache(network, pairs.clean.inputs)
    for hook in sorted(hook for hook in hooks if not hook.endswith("hook_pattern")):
        value = torch.where(pairs.roles["target"].view(6, 20, *(base[hook].ndim - 2) * (1,)), source[hook], base[hook])
        logits, rows = base.forward_from(hook, value), torch.arange(6)
        lead = (logits[rows, pairs.answers] - logits[rows, pairs.wrong_labels]).mean()
        assert patch(network, pairs, [Site(hook, "target")])["value"].item() == pytest.approx(float(lead)), hook
    table = ablate(network, pairs.clean, metric="loss")
    assert {"blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"} <= set(table["hook"])
    assert [site for site in component_sites(base) if site.head is None][-1] == Site("blocks.1.hook_mlp_out")


def test_a_subspace_is_projected_out_of_what_is_in_the_stream(task):
    network, batch = full_network(), task.sample("icl", 6)
    everything = Subspace("all", torch.eye(12, dtype=torch.float64))
    zero = ablate(network, batch, [Site("blocks.0.hook_mlp_out")], ["zero", everything], metric="loss")["value"]
    assert zero[0] == pytest.approx(zero[1])
    with pytest.raises(MechinterpError, match="no residual stream of 12 dimensions"):
        ablate(network, batch, [Site("blocks.0.attn.hook_z")], [everything])
    with pytest.raises(MechinterpError, match="coordinates of the task's vectors"):
        subspaces(random_network(mi.RunConfig.from_dict({"model": {"biases": True}})), mi.build_task(mi.RunConfig()))


def test_an_mlp_has_edges_of_its_own_and_none_if_it_writes_nothing(task):
    network = full_network()
    table = circuit_edges(network, task, heads="together", n_pairs=20)
    graph = graph_of(table)
    kinds = {node["kind"] for node in graph.nodes.values()}
    assert kinds == {"token", "written", "mlp", "key", "query", "value", "answer"}
    assert len({*Layout.of([graph], Look()).places.values()}) == len(graph)
    assert {"0.mlp.target", "1.mlp.target"} <= set(graph.predecessors("answer"))
    assert "layer 2: MLP" in to_svg(graph)
    silent = {name: value * (not name.endswith(("W_out", "b_out"))) for name, value in network.parameters.items()}
    without = circuit_edges(Network(network.config, silent), task, heads="together", n_pairs=20)
    of_mlp = without["source"].str.contains("mlp") | without["target"].str.contains("mlp")
    before = table["source"].str.contains("mlp") | table["target"].str.contains("mlp")
    assert without.loc[of_mlp, "value"].std() < 1e-9 < table.loc[before, "value"].std()
    holds = pd.DataFrame({"fact": [fact.name for fact in Fact], "value": 0.0})
    assert operations(table, holds) == {}


def test_an_mlp_in_parallel_reads_no_head_of_its_layer(task):
    """It has edges from earlier layers, and attention's output of its own layer does not change it."""
    network, pairs = full_network(parallel_attn_mlp=True), corrupted_pairs(task, "swap_label", n_pairs=6)
    table = patch_paths(network, pairs)
    of_mlp = {layer: set(table.loc[table["receiver"] == f"{layer}.mlp", "sender"]) for layer in (0, 1)}
    assert of_mlp == {0: {"embed"}, 1: {"embed", "0.0", "0.1", "0.mlp"}}
    edges = circuit_edges(network, task, heads="together", n_pairs=6)
    into = set(edges.loc[edges["target"] == "1.mlp.target", "source"])
    assert into == {"token.target", "0.target", "0.mlp.target"}
    assert set(edges.loc[edges["target"] == "0.mlp.target", "source"]) == {"token.target"}
    apart = circuit_edges(network, task, n_pairs=6)
    into = set(apart.loc[apart["target"] == "1.mlp.target", "source"])
    assert into == {"token.target", "0.h0.target", "0.h1.target", "0.mlp.target"}
    assert "layer 2: MLP" in to_svg(graph_of(edges))
    base = run_with_cache(network, pairs.clean.inputs)
    assert "blocks.0.hook_resid_mid" not in base.values
    direct = logit_attribution(network, pairs)
    leads = logit_lens(network, pairs)["lead"]
    assert direct["lead"].sum() == pytest.approx(leads.iloc[-1])
    serial = {name: value for name, value in network.parameters.items()}
    other = Network(network.config.updated({"model.parallel_attn_mlp": False}), serial)
    assert set(patch_paths(other, pairs).query("receiver == '0.mlp'")["sender"]) == {"embed", "0.0", "0.1"}


def test_classifiers_behind_a_normalisation_are_analysed_too(tiny_config):
    changes = {"output_matrix": "trained", "d_head": 6, "normalization_type": "LN", "d_mlp": 8, "biases": True}
    config = tiny_config.updated({f"model.{name}": value for name, value in changes.items()})
    network, task = random_network(config, seed=2), mi.build_task(config)
    pairs = corrupted_pairs(task, "shuffle_positions", n_pairs=8)
    run = run_with_cache(network, pairs.clean.inputs)
    assert Site("ln_final.hook_normalized", "target") in sites(run, pairs.roles)
    with pytest.raises(MechinterpError, match="exists at the target only"):
        patch(network, pairs, [Site("ln_final.hook_normalized", "label")])
    assert "classifier" in set(patch_paths(network, pairs)["receiver"])
    assert len(circuit_edges(network, task, n_pairs=8)) > 50
    assert set(induction_head_evidence(network, task, n_pairs=8)["fact"]) == {fact.name for fact in Fact}
    blocks = score_blocks(network, task, pairs.clean.inputs, 1)
    assert {a for a, _ in blocks} == {"position", "content", "buffer", "bias"}
