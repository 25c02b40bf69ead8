"""Analyses that take sequences in parts give what they give of all sequences at once."""

import pandas as pd
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits import activations
from mechinterp.circuits.ablation import Ablation, ablate
from mechinterp.circuits.diagram import circuit_edges
from mechinterp.circuits.evidence import induction_head_evidence
from mechinterp.circuits.patching import Direction, Site, patch
from mechinterp.circuits.paths import patch_paths
from mechinterp.circuits.subspaces import Subspace
from mechinterp.measures.table import observe
from mechinterp.models.forward import run_with_cache
from mechinterp.tasks.corruption import composition_corruption, corrupted_pairs
from tests.circuits.test_general import full_network
from tests.helpers import random_network

N = 20
"""Sequences: three parts, of 7, 7 and 6."""


@pytest.fixture(scope="module", params=["classic", "general"])
def network(request, tiny_config):
    if request.param == "general":
        return full_network("rotary")
    return random_network(tiny_config.updated({"model.n_heads": 2}))


@pytest.fixture(scope="module")
def task(network):
    return mi.build_task(network.config)


@pytest.fixture
def in_parts(monkeypatch):
    """A function that makes all analyses take eight sequences at once."""
    return lambda: monkeypatch.setattr(activations, "_N_NUMBERS", 1)


ANALYSES = {
    "patch": lambda network, pairs: patch(network, pairs),
    "patch with attributions": lambda network, pairs: patch(network, pairs, integration_steps=3),
    "paths": lambda network, pairs: patch_paths(network, pairs, integration_steps=3),
    "paths, frozen": lambda network, pairs: patch_paths(network, pairs, scale="frozen"),
    "paths, noised": lambda network, pairs: patch_paths(network, pairs, direction=Direction.noise, metric="loss"),
    "ablate": lambda network, pairs: ablate(network, pairs.clean, metric="loss", seed=3),
    "ablate one head": lambda network, pairs: ablate(
        network, pairs.clean, Site("blocks.1.attn.hook_z", "target", 1), [Ablation.mean, Ablation.resample]
    ),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_parts_give_what_all_sequences_give(name, network, task, in_parts):
    pairs = corrupted_pairs(task, composition_corruption(task), n_pairs=N)
    assert len(activations.parts_of(N, network, pairs.clean.n_pos)) == 1
    together = ANALYSES[name](network, pairs)
    in_parts()
    assert len(activations.parts_of(N, network, pairs.clean.n_pos)) == 3
    apart = ANALYSES[name](network, pairs)
    numbers = list(together.select_dtypes(float))
    assert together[numbers].notna().to_numpy().any()
    assert together[numbers].nunique().max() > 5 or name == "ablate one head"
    pd.testing.assert_frame_equal(apart, together, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("analysis", [circuit_edges, induction_head_evidence])
def test_circuits_in_parts(analysis, network, task, in_parts):
    together = analysis(network, task, n_pairs=N)
    in_parts()
    pd.testing.assert_frame_equal(analysis(network, task, n_pairs=N), together, rtol=1e-9, atol=1e-9)


def test_observations_in_parts(network, task, in_parts):
    batch, hooks = task.sample(task.evaluations[0], N), ["blocks.0.attn.hook_pattern", "blocks.1.hook_resid_pre"]
    whole = run_with_cache(network, batch.inputs)
    in_parts()
    with torch.no_grad():
        seen = observe(network, batch, hooks, task=task)
    assert torch.allclose(seen.logits, whole.logits)
    assert list(seen.cache) == hooks
    assert all(torch.allclose(seen.cache[hook], whole[hook]) for hook in hooks)


def test_the_means_of_an_ablation_are_of_all_sequences(network, task, in_parts):
    batch, hook = task.sample(task.evaluations[0], N), "blocks.0.attn.hook_v"
    base = run_with_cache(network, batch.inputs)
    mean = base[hook].mean(dim=0, keepdim=True).expand_as(base[hook])
    expected = torch.nn.functional.cross_entropy(base.forward_from(hook, mean), batch.labels)
    in_parts()
    (value,) = ablate(network, batch, Site(hook), Ablation.mean, metric="loss")["value"]
    assert value == pytest.approx(float(expected))


def test_ablations_that_are_named_twice_have_a_row_each(network, task, in_parts):
    in_parts()
    batch, site = task.sample(task.evaluations[0], N), Site("blocks.1.hook_attn_out")
    axes = torch.eye(network.d_model, dtype=network.dtype)
    controls = [Subspace("random", axes[:1]), Subspace("random", axes[3:4])]
    one, other, again = ablate(network, batch, site, [*controls, controls[0]], metric="loss")["value"]
    assert one == again
    assert one != other
    assert len(ablate(network, batch, [site, site], "zero")) == 2
