"""Names in words: of everything that presets measure, ablate and patch, and of names that nobody knows."""

import re

import pytest
import torch

import mechinterp as mi
from mechinterp import labels
from mechinterp.circuits.ablation import Ablation, component_sites
from mechinterp.circuits.edges import receivers, senders
from mechinterp.config.presets import PRESETS
from mechinterp.measures.table import columns_for
from mechinterp.measures.weights import WEIGHT_MEASURES
from mechinterp.models.forward import run_with_cache
from mechinterp.tasks import build_task
from tests.helpers import random_network

RAW = re.compile(r"_(?![QKVO]\b|in\b|out\b|E\b|U\b)|hook|blocks|\d+\.\d")


@pytest.mark.parametrize("preset", ["reddy2023-fast", "nguyen2024-fast", "singh2024", "edelman2024", "grokking"])
def test_every_measure_of_a_preset_has_a_name_and_a_meaning(preset):
    config = mi.RunConfig.preset(preset)
    columns = [column.name for column in columns_for(build_task(config), config.model)]
    names = [labels.measure_name(column) for column in columns]
    assert len(set(names)) == len(names)
    assert not [name for name in names if RAW.search(name)]
    assert all(labels.measure_label(column).meaning for column in columns)


def test_measures_of_all_presets_share_names():
    assert labels.measure_name("icl_accuracy") == "IC accuracy"
    assert labels.measure_label("icl_accuracy").unit == "share"
    assert labels.measure_name("ila1") == "ILA1"
    assert labels.measure_label("swap_loss").unit == "nats"
    assert labels.measure_name("clamped_ila1") == "ILA1, intervened"
    assert all(labels.measure_label(name).meaning for name in WEIGHT_MEASURES)
    assert {*PRESETS} >= {"induction-tokens"}


def test_a_name_that_nobody_knows_is_shown_with_spaces():
    assert labels.measure_label("my_own_score") == labels.Label("my own score")
    assert labels.measure_label("val_loss") == labels.Label("val loss", unit="nats")
    assert labels.measure_label("loss") == labels.Label("loss", unit="nats")
    assert labels.role_name("my_role") == "my role"
    assert labels.node_name("2.k.my_role") == "layer 3 keys of the my role"


@pytest.mark.parametrize("preset", ["reddy2023-fast", "induction-tokens", "grokking"])
def test_every_site_ablation_and_edge_has_a_name_of_its_own(preset):
    config = mi.RunConfig.preset(preset)
    task = build_task(config)
    run = run_with_cache(random_network(config, dtype=torch.float32), task.sample(task.evaluations[0], 2).inputs)
    ablated = [
        labels.ablated_name(site.hook, how.name, site.head, run.n_heads)
        for site in component_sites(run)
        for how in Ablation
        if site.hook.endswith("pattern") or not how.of_patterns
    ]
    edges = [labels.edge_name(sender, str(r), run.n_heads) for r in receivers(run) for sender in senders(run, r)]
    for names in (ablated, edges):
        assert len(set(names)) == len(names) > 5
        assert not [name for name in names if RAW.search(name)]


def test_the_names_that_stand_in_figures():
    assert labels.head_name(1, 2, 4) == "layer 2, head 3"
    assert labels.head_name(1, 0, 1) == labels.head_name(1) == labels.head_name(1, None, 4) == "layer 2"
    assert labels.hook_name("blocks.0.attn.hook_pattern") == "layer 1 attention"
    assert labels.hook_name("blocks.1.hook_mlp_out") == "layer 2 MLP"
    assert labels.hook_name("classifier.hook_in") == "classifier input"
    pattern = "blocks.0.attn.hook_pattern"
    assert labels.ablated_name(pattern, "not_previous_token") == "layer 1: without previous-token attention"
    assert labels.ablated_name(pattern, "zero", 2, 4) == "layer 1, head 3: attention zeroed"
    assert labels.ablated_name("blocks.1.attn.hook_v", "resample") == "layer 2 values of another sequence"
    assert labels.removed_name("blocks.0.attn.hook_pattern", "not_previous_token") == "layer 1 previous-token attention"
    assert labels.removed_name("blocks.1.attn.hook_z", "mean", 2, 4) == "layer 2, head 3: output"
    assert (labels.set_label("icl").name, labels.set_label("my_set").name) == ("IC", "my set")
    assert labels.edge_name("0.0", "1.0.k") == "layer 1 output → layer 2 keys"
    assert labels.edge_name("embed", "1.2.q", 4) == "embedding → layer 2, head 3: queries"
    assert labels.edge_name("0.mlp", "unembed") == "layer 1 MLP → unembedding"
    assert labels.block_name(1, 0, "content", "buffer") == "layer 2: content → buffer"
    assert labels.node_name("1.k.correct_label") == "layer 2 keys of the correct label"
    assert labels.node_name("0.correct_label") == "layer 1 output at the correct label"
    assert labels.node_name("1.h2.q.target") == "layer 2, head 3: queries of the target"
    assert labels.node_name("0.h0.target", "last token") == "layer 1, head 1: output at the last token"
    assert labels.node_name("0.mlp.target") == "layer 1 MLP output at the target"
    assert labels.node_name("token.other_item") == "token of the other items"
    assert labels.parameter_name("blocks.0.attn.W_Q") == "layer 1 W_Q"
    assert labels.parameter_name("blocks.1.mlp.W_in") == "layer 2 MLP W_in"
    assert labels.parameter_name("embed.W_E") == "embedding W_E"
