"""Running again with a replaced activation gives what a hook on the HookedTransformer gives."""

import numpy as np
import pytest
import torch

from mechinterp.circuits.rerun import activations, rerun
from mechinterp.errors import UnknownNameError
from mechinterp.models.parameters import parameter_shapes
from mechinterp.models.planted import induction_head
from mechinterp.models.transformer import build_model

NETWORKS = [{}, {"model.n_layers": 3, "model.n_heads": 2}, {"model.n_layers": 1, "model.classifier_depth": 0}]


def network(tiny_config, changes):
    config = tiny_config.updated(changes)
    rng = np.random.default_rng(7)
    shapes = parameter_shapes(config)
    parameters = {n: torch.from_numpy(rng.normal(size=s) / s[-1] ** 0.5) for n, s in shapes.items()}
    return build_model(config, parameters), parameters, config.build_task().sample("icl", 5).inputs


@pytest.mark.parametrize("changes", NETWORKS)
def test_activations_are_those_of_the_hooked_model(tiny_config, changes):
    model, parameters, inputs = network(tiny_config, changes)
    logits, cache = model.run_with_cache(inputs)
    found = activations(parameters, inputs)
    assert torch.allclose(found.logits, logits, atol=1e-12)
    missing = {"hook_rot_q", "hook_rot_k", "hook_result"}
    for hook in cache:
        if not any(each in hook for each in missing):
            assert torch.allclose(found[hook].nan_to_num(neginf=0), cache[hook].nan_to_num(neginf=0), atol=1e-12), hook


@pytest.mark.parametrize("changes", NETWORKS)
def test_every_replacement_equals_a_hook(tiny_config, changes):
    model, parameters, inputs = network(tiny_config, changes)
    base, rng = activations(parameters, inputs), torch.Generator().manual_seed(1)
    for hook, old in base.values.items():
        value = torch.rand(old.shape, generator=rng, dtype=old.dtype)
        if hook.endswith("attn_scores"):
            value = value.masked_fill(old.isinf(), -torch.inf)
        expected = model.run_with_hooks(inputs, fwd_hooks=[(hook, lambda *_, value=value, **__: value)])
        assert torch.allclose(rerun(base, hook, value), expected, atol=1e-10), hook
        assert torch.allclose(rerun(base, hook, old), base.logits, atol=1e-12), hook


def test_planted_networks_are_wider_than_their_tokens(tiny_config):
    model, inputs = induction_head(tiny_config), tiny_config.build_task().sample("icl", 5).inputs
    found = activations({name: dict(model.named_parameters())[name] for name in model.trained}, inputs)
    assert torch.allclose(found.logits, model(inputs), atol=1e-10)


def test_unknown_hooks_and_other_shapes_are_refused(tiny_config):
    _, parameters, inputs = network(tiny_config, {})
    base = activations(parameters, inputs)
    with pytest.raises(UnknownNameError, match=r"did you mean 'blocks\.0\.attn\.hook_pattern'"):
        rerun(base, "blocks.0.attn.hook_patern", base.logits)
    with pytest.raises(ValueError, match=r"has shape \(5, 2, 7, 7\)|has shape \(5, 1, 7, 7\)"):
        rerun(base, "blocks.0.attn.hook_pattern", base.logits)
