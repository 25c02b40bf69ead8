"""Attributions: exact where the metric is linear, complete along a line, wrong to first order at saturation."""

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits.attribution import activation_slope, change_between
from mechinterp.circuits.metrics import CustomMetric, Metric
from mechinterp.circuits.patching import Site, patch
from mechinterp.circuits.paths import patch_paths
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import run_with_cache
from mechinterp.models.network import Network
from mechinterp.models.planted import token_induction_head
from mechinterp.models.registry import parameter_shapes
from mechinterp.tasks.corruption import corrupted_pairs
from tests.circuits.test_general import PLANTED, config_of, full_network
from tests.helpers import random_network


@pytest.fixture(scope="module")
def task():
    return mi.build_task(config_of(PLANTED))


def relu_network() -> Network:
    """One token's number x goes through relu(x) to the answer's logit; attention writes nothing."""
    model = {"input": "tokens", "output": "unembedding", "output_matrix": "trained"}
    config = config_of(model | {"d_model": 2, "d_head": 1, "d_mlp": 1, "n_layers": 1, "biases": True})
    return Network(config, {name: torch.zeros(shape).double() for name, shape in parameter_shapes(config).items()})


def test_a_relu_that_is_off_has_no_slope_and_an_effect(task):
    """x goes from −1 to 3: relu goes from 0 to 3, of which the slope at −1 says nothing."""
    network, pairs = relu_network(), corrupted_pairs(task, "replace_target", n_pairs=16)
    parameters = network.parameters
    parameters["blocks.0.mlp.W_in"][0, 0] = parameters["blocks.0.mlp.W_out"][0, 1] = 1
    parameters["unembed.W_U"][1, :] = torch.arange(16)
    base, source = (run_with_cache(network, pairs.corrupt.inputs) for _ in range(2))
    x = torch.zeros_like(base["hook_embed"])
    x[..., 0] = -1
    base = run_with_cache(network, pairs.corrupt.inputs, None, {"hook_embed": lambda _: x})
    x = x + 0
    x[..., 0] = 3
    source = run_with_cache(network, pairs.corrupt.inputs, None, {"hook_embed": lambda _: x})
    metric = CustomMetric(lambda logits, *_: logits[:, 5])
    answers, hook = (pairs.answers, pairs.wrong_labels), "blocks.0.mlp.hook_pre"
    toward, found = change_between(base[hook], source[hook]), {}
    assert float(toward[0, -1, 0]) == 4
    for n in (None, 1, 2, 4, 64):
        slope = activation_slope(base, hook, toward, metric, answers, n)
        assert slope is not None
        found[n] = float((slope * toward)[0].sum())
    assert found[None] == 0  # the exact effect is 5 · 3: the share of ¾ of the line, of a slope of 5, times 4
    assert [found[n] for n in (1, 2, 4, 64)] == pytest.approx([20, 10, 15, 15])


def test_where_the_softmax_saturates_the_slope_misses_the_effect(task):
    """Of the planted head with swapped items, the keys carry all: the line finds it, the slope at its start nothing."""
    pairs = corrupted_pairs(task, "swap_item", n_pairs=8)
    head = token_induction_head(config_of(PLANTED), alpha=2.0)
    edges = patch_paths(head, pairs, integration_steps=16).set_index(["sender", "receiver"])
    keys = edges.loc[("0.0", "1.0.k")]
    assert keys["effect"] == pytest.approx(1, abs=1e-2)
    assert abs(keys["attribution"]) < 0.05
    assert keys["integrated"] == pytest.approx(1, abs=5e-2)
    first = edges.loc[("embed", "0.0.v")]  # what is read is linear, and still goes through the same softmax
    assert abs(first["attribution"]) < 0.05
    assert first["integrated"] == pytest.approx(1, abs=5e-2)
    assert edges.drop([("0.0", "1.0.k"), ("embed", "0.0.v"), ("1.0", "unembed")])["integrated"].abs().max() < 1e-2
    nodes = patch(head, pairs, [Site("blocks.1.attn.hook_k", "correct_label")], integration_steps=16).iloc[0]
    assert abs(nodes["attribution"]) < 0.05 < 0.4 < nodes["integrated"]
    sharp = token_induction_head(config_of(PLANTED), alpha=40.0)  # turns over within less than a step of the line
    missed = patch_paths(sharp, pairs, integration_steps=8).set_index(["sender", "receiver"]).loc[("0.0", "1.0.k")]
    assert missed["effect"] == pytest.approx(1, abs=1e-2)
    assert abs(missed["integrated"]) < 0.05


def test_both_are_exact_where_the_answer_is_linear(tiny_config):
    config = tiny_config.updated({"model.classifier_depth": 0})
    pairs = corrupted_pairs(mi.build_task(config), n_pairs=12)
    network = random_network(config)
    for direction in ("denoise", "noise"):
        table = patch_paths(network, pairs, direction=direction, integration_steps=1)
        linear = table[table["receiver"].str.contains(r"classifier|1\.0\.v")]
        assert len(linear) == 5
        for name in ("attribution", "integrated"):
            assert linear[name].tolist() == pytest.approx(linear["effect"].tolist()), name
        sites = [Site("blocks.1.attn.hook_z", "target", 0), Site("blocks.1.attn.hook_v", "item"), Site("hook_embed")]
        found = patch(network, pairs, sites, direction=direction, integration_steps=3)
        for name in ("attribution", "integrated"):
            assert found[name][:2].tolist() == pytest.approx(found["effect"][:2].tolist()), name
            assert abs(found[name][2] - found["effect"][2]) > 1e-3  # through two softmaxes


def test_integrated_gradients_are_complete(task):
    """Their sum over the edges of a receiver, or the positions of a hook, is the effect of patching all of it."""
    network, pairs = full_network("rotary", n_layers=1), corrupted_pairs(task, "replace_target", n_pairs=4)
    base, source = (run_with_cache(network, batch.inputs) for batch in (pairs.corrupt, pairs.clean))
    hook = "blocks.0.attn.hook_q"
    rest = ~pairs.roles["target"]
    pairs.roles["rest"] = rest
    sites = [Site(hook, role, head) for role in ("target", "rest") for head in (0, 1)]
    table = patch(network, pairs, [*sites, Site(hook)], integration_steps=64)
    assert table["integrated"][:4].sum() == pytest.approx(table["effect"][4], abs=1e-4)
    assert abs(table["attribution"][:4].sum() - table["effect"][4]) > 1e-2
    table = patch_paths(network, pairs, integration_steps=64)
    last = "blocks.0.hook_resid_post"
    logits, low, high = base.forward_from(last, source[last]), base.logits, source.logits
    lead = [Metric.logit_difference.of(x, pairs.answers, pairs.wrong_labels) for x in (logits, low, high)]
    whole = float((lead[0] - lead[1]) / (lead[2] - lead[1]))
    output = table[table["receiver"] == "unembed"]
    assert output["integrated"].sum() == pytest.approx(whole, abs=1e-4)
    assert abs(output["attribution"].sum() - whole) > 1e-3


def test_steps_in_batches_are_those_one_by_one(task):
    """Many pairs leave one step for a batch; few leave all of them."""
    network, hook = full_network(), "blocks.1.attn.hook_k"
    many = corrupted_pairs(task, "swap_label", n_pairs=300)
    base, source = (run_with_cache(network, batch.inputs) for batch in (many.corrupt, many.clean))
    toward, answers = source[hook] - base[hook], (many.answers, many.wrong_labels)
    together = activation_slope(base, hook, toward, Metric.loss, answers, 3)
    few = corrupted_pairs(task, "swap_label", n_pairs=300)
    base, toward = run_with_cache(network, few.corrupt.inputs[:20]), toward[:20]
    apart = activation_slope(base, hook, toward, Metric.loss, (answers[0][:20], answers[1][:20]), 3)
    assert together is not None
    assert apart is not None
    np.testing.assert_allclose(together[:20], apart, atol=1e-12)


def test_accuracy_has_no_gradient_and_no_steps_no_line(task):
    network, pairs = full_network(), corrupted_pairs(task, "swap_label", n_pairs=6)
    table = patch(network, pairs, [Site("hook_embed")], metric="accuracy", integration_steps=2)
    assert table[["attribution", "integrated"]].isna().all(axis=None)
    with pytest.raises(MechinterpError, match="integration_steps is 0"):
        patch_paths(network, pairs, integration_steps=0)
    assert "integrated" not in patch_paths(network, pairs)
