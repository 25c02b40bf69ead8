"""Patching, path patching and ablation find the planted operations, and predicted effects are measured ones."""

from typing import Any

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits.ablation import Ablation, ablate, another_sequence, substitute
from mechinterp.circuits.edges import Scale, receivers, senders
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import Direction, Site, mask_unresolved, patch, sites
from mechinterp.circuits.paths import patch_paths
from mechinterp.circuits.standard_errors import standard_error
from mechinterp.circuits.subspaces import subspaces
from mechinterp.config import ItemLabelConfig
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import forward, run_with_cache
from mechinterp.models.network import Network
from mechinterp.models.planted import Operation, induction_head, random_label_decoy
from mechinterp.tasks import ItemLabelTask
from mechinterp.tasks.corruption import Corruption, corrupted_pairs
from tests.helpers import random_network, token_labels


@pytest.fixture(scope="module")
def head(full):
    return induction_head(full)


@pytest.fixture(scope="module")
def network(tiny_config):
    """Random weights of two heads."""
    return random_network(tiny_config.updated({"model.n_heads": 2}), seed=3)


def effects(table, *index):
    return table.set_index(list(index))["effect"].to_dict()


# Corruptions


@pytest.mark.parametrize("corruption", ItemLabelTask(ItemLabelConfig(), 0).corruptions)
@pytest.mark.parametrize("burstiness", [1, 2])
def test_corruptions_change_what_they_say(corruption, burstiness):
    if corruption is Corruption.break_pairing and burstiness > 1:
        pytest.skip("refused; see below")
    task = mi.build_task(mi.RunConfig().updated({"task.burstiness": burstiness}))
    pairs = corrupted_pairs(task, corruption, n_pairs=40)
    clean, corrupt = pairs.clean, pairs.corrupt
    assert (pairs.answers != pairs.wrong_labels).all()
    assert torch.equal(clean.inputs, corrupted_pairs(task, corruption, n_pairs=40).clean.inputs)
    changed = (clean.inputs != corrupt.inputs).any(dim=-1)
    labels = token_labels(corrupt)
    at_correct = clean.roles["correct_label"]
    if corruption is Corruption.replace_target:
        assert torch.equal(changed, clean.roles["target"])
        items = (corrupt.inputs[:, 0:-1:2, 65:] == corrupt.inputs[:, -1:, 65:]).all(dim=-1)
        assert (labels[:, 1::2][items] == pairs.wrong_labels).all()
    elif corruption is Corruption.shuffle_positions:
        assert torch.equal(clean.inputs[:, :, 65:], corrupt.inputs[:, :, 65:])
        assert torch.equal(clean.inputs[:, :, :65].sum(dim=1), corrupt.inputs[:, :, :65].sum(dim=1))
    else:
        assert not (changed & ~clean.roles["label"]).any()
        assert torch.equal(labels.sort(dim=1).values, token_labels(clean).sort(dim=1).values)
        first = at_correct.int().argmax(dim=1)
        assert torch.equal(labels[torch.arange(40), first], pairs.wrong_labels)
    if corruption is Corruption.swap_label:
        assert (labels[at_correct].view(40, burstiness) == pairs.wrong_labels[:, None]).all()
        assert torch.equal(changed.sum(dim=1), torch.full((40,), 2 * burstiness))
    assert torch.equal(pairs.roles["other_label"] | at_correct, clean.roles["label"])


def test_a_context_with_one_label_has_no_wrong_label():
    task = mi.build_task(mi.RunConfig().updated({"task.burstiness": 8}))
    with pytest.raises(MechinterpError, match="one label only"):
        corrupted_pairs(task)
    with pytest.raises(MechinterpError, match="break_pairing needs labels that stand once"):
        corrupted_pairs(task, Corruption.break_pairing)


def test_members_may_be_named_and_misspelt_names_are_refused(network, tiny_config):
    task = mi.build_task(tiny_config)
    by_name, pairs = corrupted_pairs(task, "swap_label", n_pairs=70), corrupted_pairs(task, n_pairs=70)
    assert torch.equal(by_name.corrupt.inputs, pairs.corrupt.inputs)
    site = Site("blocks.1.attn.hook_z", "target")
    named = patch(network, pairs, [site], metric="loss", direction="noise")
    assert named.equals(patch(network, pairs, [site, site], metric=Metric.loss, direction=Direction.noise))
    wrongs: tuple[dict[str, Any], ...] = ({"metric": "los"}, {"direction": "denose"})
    for wrong in wrongs:
        with pytest.raises(MechinterpError, match="did you mean"):
            patch(network, pairs, [site], **wrong)
    with pytest.raises(MechinterpError, match="did you mean 'swap_label'"):
        corrupted_pairs(task, "swap_lable")
    with pytest.raises(MechinterpError, match="did you mean 'zero'"):
        ablate(network, pairs.clean, [site], "zeros")


# Patching


@pytest.mark.parametrize("direction", Direction)
def test_patching_everything_is_the_other_run_and_nothing_is_no_change(network, tiny_config, direction):
    pairs = corrupted_pairs(mi.build_task(tiny_config), n_pairs=20)
    other, own = (1, 0) if direction is Direction.denoise else (0, 1)
    everything = patch(network, pairs, [Site("hook_embed"), Site("classifier.hook_logits")], direction=direction)
    assert everything["effect"].tolist() == pytest.approx([other] * 2, abs=1e-9)
    base = run_with_cache(network, pairs.corrupt.inputs)
    unchanged = patch(network, pairs, [Site("hook_embed", "item"), Site("hook_embed", "target")], direction=direction)
    assert unchanged["effect"].tolist() == pytest.approx([own] * 2, abs=1e-9)  # only labels were swapped
    assert len(patch(network, pairs)) == len(sites(base, pairs.roles))


def test_the_target_is_found_through_the_query_of_layer_2(full, head):
    pairs = corrupted_pairs(mi.build_task(full), Corruption.replace_target, n_pairs=100)
    found = effects(patch(head, pairs), "hook", "role")
    for hook in ("hook_resid_pre", "attn.hook_q", "attn.hook_pattern", "attn.hook_z"):
        assert found[f"blocks.1.{hook}", "target"] == pytest.approx(1, abs=1e-3), hook
    for hook in ("attn.hook_k", "attn.hook_v"):
        assert found[f"blocks.1.{hook}", "label"] == pytest.approx(0, abs=1e-9), hook
    for hook in ("attn.hook_q", "attn.hook_k", "attn.hook_pattern"):
        assert found[f"blocks.0.{hook}", "target"] == pytest.approx(0, abs=1e-6), hook


def test_labels_are_found_in_values_and_the_pairing_in_keys(full, head):
    pairs = corrupted_pairs(mi.build_task(full), Corruption.swap_label, n_pairs=100)
    found = effects(patch(head, pairs), "hook", "role")
    assert found["blocks.1.attn.hook_v", "label"] == pytest.approx(1, abs=1e-3)
    assert found["blocks.1.attn.hook_v", "correct_label"] == pytest.approx(1, abs=1e-3)
    assert found["blocks.1.attn.hook_v", "other_label"] == pytest.approx(0, abs=1e-3)  # nobody looks there
    assert found["blocks.1.attn.hook_k", "label"] == pytest.approx(0, abs=1e-3)
    positions = corrupted_pairs(mi.build_task(full), Corruption.shuffle_positions, n_pairs=100)
    hooks = ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_k", "blocks.0.attn.hook_z", "blocks.1.attn.hook_q"]
    found = patch(head, positions, [Site(hook) for hook in hooks]).set_index("hook")["effect"]
    assert found.tolist() == pytest.approx([1, 1, 1, 0], abs=1e-9)  # layer 2 itself has no use for positions


def test_heads_are_patched_one_by_one(network, tiny_config):
    pairs = corrupted_pairs(mi.build_task(tiny_config), n_pairs=20)
    base, source = (run_with_cache(network, each.inputs) for each in (pairs.corrupt, pairs.clean))
    hook = "blocks.1.attn.hook_z"
    value = base[hook].clone()
    value[:, -1, 1] = source[hook][:, -1, 1]
    expected = float(Metric.logit_difference.of(base.forward_from(hook, value), pairs.answers, pairs.wrong_labels))
    assert patch(network, pairs, [Site(hook, "target", 1)])["value"].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("site", "match"),
    [
        (Site("blocks.1.attn.hook_patern"), "did you mean 'blocks.1.attn.hook_pattern'"),
        (Site("hook_embed", "lable"), "did you mean 'label'"),
        (Site("blocks.1.attn.hook_z", "label", 7), "unknown head '7'"),
        (Site("hook_embed", "label", 0), "is a sum over heads"),
        (Site("classifier.hook_in", "label"), "exists at the target only"),
    ],
)
def test_misspelt_sites_are_refused(network, tiny_config, site, match):
    pairs = corrupted_pairs(mi.build_task(tiny_config), n_pairs=5)
    with pytest.raises(MechinterpError, match=match):
        patch(network, pairs, [site])


def test_an_effect_without_a_span_is_not_shown(full, head, network, tiny_config):
    pairs = corrupted_pairs(mi.build_task(full), n_pairs=50)
    table = patch(head, pairs, [Site("blocks.1.attn.hook_v", "label")])
    assert mask_unresolved(table).equals(table)
    clean, corrupt = (run_with_cache(head, each.inputs).logits for each in (pairs.clean, pairs.corrupt))
    rows = torch.arange(50)
    each = [logits[rows, pairs.answers] - logits[rows, pairs.wrong_labels] for logits in (clean, corrupt)]
    assert table["span"].item() == pytest.approx(float((each[0] - each[1]).mean()))
    error = standard_error(each[0] - each[1], pairs.target_classes)
    assert table["span_error"].item() == pytest.approx(error)
    untrained = Network.initial(full)
    noise = mask_unresolved(patch(untrained, pairs, [Site("blocks.1.attn.hook_v", "label")]))
    assert np.isfinite(noise["value"]).all()
    assert bool(noise["effect"].isna().all())
    assert mask_unresolved(patch_paths(untrained, pairs))[["effect", "attribution"]].isna().to_numpy().all()


# Paths


def test_senders_add_up_to_what_receivers_read(network, tiny_config):
    run = run_with_cache(network, mi.build_task(tiny_config).sample("icl", 5).inputs)
    for receiver in receivers(run):
        total = receiver.reads(run, sum(senders(run, receiver).values(), torch.zeros(())), Scale.recomputed)
        expected = run[receiver.hook].clone()
        if receiver.through != "classifier":
            others = torch.arange(2) != receiver.head
            expected[:, :, others] = 0
        assert torch.allclose(total, expected, atol=1e-10), receiver


def test_a_single_edge_equals_patching_its_receiver(network, tiny_config):
    """Layer 1 reads the embedding only, so an edge into it is the whole of what it reads."""
    pairs = corrupted_pairs(mi.build_task(tiny_config), n_pairs=20)
    edges = effects(patch_paths(network, pairs), "sender", "receiver")
    for head, through in [(0, "q"), (1, "k"), (0, "v")]:
        whole = patch(network, pairs, [Site(f"blocks.0.attn.hook_{through}", None, head)])["effect"].item()
        assert edges["embed", f"0.{head}.{through}"] == pytest.approx(whole, abs=1e-9)


def test_attribution_is_exact_where_the_path_is_linear(tiny_config):
    config = tiny_config.updated({"model.classifier_depth": 0})
    pairs = corrupted_pairs(mi.build_task(config), n_pairs=20)
    table = patch_paths(induction_head(config, beta1=1.0, alpha=2.0), pairs).set_index(["sender", "receiver"])
    attribution, effect = table["attribution"].to_dict(), table["effect"].to_dict()
    for edge in [("embed", "1.0.v"), ("0.0", "1.0.v"), ("1.0", "classifier"), ("embed", "classifier")]:
        assert attribution[edge] == pytest.approx(effect[edge], abs=1e-9), edge


def test_the_pairing_travels_from_layer_1_to_the_key_of_layer_2(full, head):
    pairs = corrupted_pairs(mi.build_task(full), Corruption.shuffle_positions, n_pairs=100)
    found = effects(patch_paths(head, pairs), "sender", "receiver")
    assert found["0.0", "1.0.k"] == pytest.approx(1, abs=1e-2)
    for edge in [("0.0", "1.0.q"), ("0.0", "1.0.v"), ("0.0", "classifier"), ("embed", "1.0.k")]:
        assert found[edge] == pytest.approx(0, abs=1e-2), edge


# Ablation


def test_ablating_an_operation_gives_its_twin(full, head):
    batch = mi.build_task(full).sample("icl", 300)

    def accuracy(weights, hook, how):
        return ablate(weights, batch, [Site(hook)], [how])["value"].item()

    def intact(model):
        return float(Metric.accuracy.of(forward(model, batch.inputs), batch.labels, batch.labels))

    assert accuracy(head, "blocks.0.attn.hook_pattern", Ablation.uniform) == intact(
        induction_head(full, without=Operation.previous_token)
    )
    assert accuracy(head, "blocks.0.attn.hook_z", Ablation.zero) == intact(
        induction_head(full, without=Operation.write)
    )
    assert accuracy(head, "blocks.1.attn.hook_z", Ablation.zero) == intact(induction_head(full, without=Operation.copy))
    assert accuracy(head, "blocks.0.attn.hook_pattern", Ablation.previous_token) == pytest.approx(
        intact(induction_head(full))
    )
    assert accuracy(head, "blocks.0.attn.hook_pattern", Ablation.not_previous_token) < 0.2
    decoy = random_label_decoy(full)
    assert accuracy(decoy, "blocks.0.attn.hook_pattern", Ablation.uniform) == intact(random_label_decoy(full))
    assert accuracy(decoy, "blocks.1.attn.hook_pattern", Ablation.correct_label) == pytest.approx(1)


def test_projecting_out_the_buffer_leaves_nothing_to_match(full):
    model, batch = induction_head(full), mi.build_task(full).sample("icl", 300)
    parts = subspaces(model, mi.build_task(full))
    where = [Site("blocks.1.hook_resid_pre")]
    table = ablate(model, batch, where, [parts["buffer"], parts["position"], parts["content"]])
    found = table.set_index("ablation")["value"].to_dict()
    assert found["buffer"] < 0.3
    assert found["position"] == table["intact"].iloc[0]  # layer 2 needs no positions
    assert found["content"] < 0.1


def test_sequences_and_tasks_without_a_correct_label(network, tiny_config):
    batch = mi.build_task(tiny_config).sample("iwl", 50)
    table = ablate(network, batch, [Site("blocks.1.attn.hook_pattern")], Ablation.correct_label, metric="loss")
    assert np.isfinite(table["value"]).all()
    plain = mi.Batch(batch.inputs, batch.labels)
    assert "correct_label" not in set(ablate(network, plain)["ablation"])
    with pytest.raises(MechinterpError, match="needs the role 'correct_label'"):
        ablate(network, plain, [Site("blocks.1.attn.hook_pattern")], Ablation.correct_label)


def test_subspaces_are_projected_out_of_the_residual_stream_only(full, head):
    batch, parts = mi.build_task(full).sample("icl", 5), subspaces(induction_head(full), mi.build_task(full))
    with pytest.raises(MechinterpError, match="is no residual stream"):
        ablate(head, batch, [Site("blocks.0.attn.hook_q")], parts["content"])


def test_substitutes(network, tiny_config):
    batch = mi.build_task(tiny_config).sample("icl", 6)
    base = run_with_cache(network, batch.inputs)
    hook = "blocks.0.attn.hook_pattern"
    mean = base[hook].mean(dim=0, keepdim=True)
    for how in (*(each for each in Ablation if each.of_patterns), Ablation.mean):
        pattern = substitute(base, hook, how, batch, mean if how is Ablation.mean else None)
        assert torch.allclose(pattern.sum(dim=-1), torch.ones(6, 2, 7).double()), how
        assert not pattern.triu(1).any(), how
    without = substitute(base, hook, Ablation.not_previous_token, batch)
    assert not without.diagonal(-1, 2, 3).any()
    assert torch.allclose(without[0, 0, 2, [0, 2]], base[hook][0, 0, 2, [0, 2]] / (1 - base[hook][0, 0, 2, 1]))
    other = another_sequence(6, seed=0)
    resampled = substitute(base, hook, Ablation.resample, batch, base[hook][other])
    assert not any(torch.equal(resampled[b], base[hook][b]) for b in range(6))
    assert all(any(torch.equal(resampled[b], base[hook][c]) for c in range(6)) for b in range(6))
    with pytest.raises(MechinterpError, match=r"ablation mean at blocks\.0\.attn\.hook_pattern: give the activation"):
        substitute(base, hook, Ablation.mean, batch)
    with pytest.raises(MechinterpError, match="is for attention patterns"):
        ablate(network, batch, [Site("blocks.0.attn.hook_z")], [Ablation.uniform])
    assert set(ablate(network, batch)["ablation"]) == {each.name for each in Ablation}


def test_misspelt_members_roles_and_twins_name_the_nearest(tiny_config):
    for wrong, right in (
        (lambda: Corruption.swap_lable, "swap_label"),
        (lambda: Metric["acuracy"], "accuracy"),
        (lambda: Ablation.unifrom, "uniform"),
        (lambda: induction_head(tiny_config, without="mach"), "match"),
        (lambda: mi.build_task(tiny_config).sample("icl", 2).roles["lable"], "label"),
        (lambda: corrupted_pairs(mi.build_task(tiny_config), n_pairs=2).roles["other_lable"], "other_label"),
    ):
        with pytest.raises(MechinterpError, match=f"did you mean '{right}'"):
            wrong()
    named, given = (induction_head(tiny_config, without=each) for each in ("match", Operation.match))
    assert all(torch.equal(value, given.parameters[name]) for name, value in named.parameters.items())
    assert not hasattr(Metric, "acuracy")
