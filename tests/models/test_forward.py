"""The forward pass of a network gives the HookedTransformer's activations, and its answer to a replaced one."""

import pytest
import torch

import mechinterp as mi
from mechinterp.errors import UnknownNameError
from mechinterp.models.forward import run_with_cache
from mechinterp.models.planted import induction_head
from tests.helpers import hooked, random_network

NETWORKS = [{}, {"model.n_layers": 3, "model.n_heads": 2}, {"model.n_layers": 1, "model.classifier_depth": 0}]


def drawn(tiny_config, changes):
    """A random network and some inputs."""
    config = tiny_config.updated(changes)
    return random_network(config, seed=7), mi.build_task(config).sample("icl", 5).inputs


@pytest.mark.parametrize("changes", NETWORKS)
def test_activations_are_those_of_the_hooked_model(tiny_config, changes):
    network, inputs = drawn(tiny_config, changes)
    logits, cache = hooked(network).run_with_cache(inputs)
    found = run_with_cache(network, inputs)
    assert torch.allclose(found.logits, logits, atol=1e-12)
    missing = {"hook_rot_q", "hook_rot_k", "hook_result"}
    for hook in cache:
        if not any(each in hook for each in missing):
            assert torch.allclose(found[hook].nan_to_num(neginf=0), cache[hook].nan_to_num(neginf=0), atol=1e-12), hook


@pytest.mark.parametrize("changes", NETWORKS)
def test_every_replacement_equals_a_hook(tiny_config, changes):
    network, inputs = drawn(tiny_config, changes)
    model, base, rng = hooked(network), run_with_cache(network, inputs), torch.Generator().manual_seed(1)
    for hook, old in base.values.items():
        value = torch.rand(old.shape, generator=rng, dtype=old.dtype)
        if hook.endswith("attn_scores"):
            value = value.masked_fill(old.isinf(), -torch.inf)
        expected = model.run_with_hooks(inputs, fwd_hooks=[(hook, lambda *_, value=value, **__: value)])
        assert torch.allclose(base.forward_from(hook, value), expected, atol=1e-10), hook
        assert torch.allclose(base.forward_from(hook, old), base.logits, atol=1e-12), hook


def test_planted_networks_are_wider_than_their_tokens(tiny_config):
    network, inputs = induction_head(tiny_config), mi.build_task(tiny_config).sample("icl", 5).inputs
    assert network.d_model > inputs.shape[-1]
    assert torch.allclose(run_with_cache(network, inputs).logits, hooked(network)(inputs), atol=1e-10)


def test_unknown_hooks_and_other_shapes_are_refused(tiny_config):
    base = run_with_cache(*drawn(tiny_config, {}))
    with pytest.raises(UnknownNameError, match=r"did you mean 'blocks\.0\.attn\.hook_pattern'"):
        base.forward_from("blocks.0.attn.hook_patern", base.logits)
    with pytest.raises(ValueError, match=r"has shape \(5, 2, 7, 7\)|has shape \(5, 1, 7, 7\)"):
        base.forward_from("blocks.0.attn.hook_pattern", base.logits)
