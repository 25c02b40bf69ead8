"""The forward pass and the hooked model against a NumPy transcription of the paper's equations, and their hooks."""

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.errors import MechinterpError, UnknownNameError
from mechinterp.models.forward import forward, run_with_cache
from mechinterp.models.hooked import set_parameters
from mechinterp.models.network import Network
from mechinterp.models.registry import initial_parameters, parameter_shapes
from tests.helpers import hooked
from tests.helpers import random_parameters as draw


def config_of(n_layers: int = 2, n_heads: int = 1, depth: int = 3) -> mi.RunConfig:
    """Distinct primes for every size: d_model 24 = 13 + 11, width 19, 7 tokens, 5 labels."""
    return mi.RunConfig().updated(
        {
            "task.n_classes": 5, "task.n_labels": 5, "task.n_novel_classes": 5, "task.n_pairs": 3,
            "task.content_dim": 11, "task.position_dim": 13,
            "model.n_layers": n_layers, "model.n_heads": n_heads,
            "model.classifier_depth": depth, "model.classifier_width": 19,
        }
    )  # fmt: skip


def random_parameters(config: mi.RunConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    return draw(config, seed, scale=0.3)


def inputs_of(config: mi.RunConfig, batch: int = 17) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(batch, config.task.n_pos, config.task.d_model)))


def reddy_2023(parameters: dict, inputs: np.ndarray, n_layers: int, n_heads: int, depth: int) -> np.ndarray:
    """Eqs 2 and 3, token by token, in float64; the paper's matrices are the transposes of TransformerLens'."""
    weights = {name: value.numpy() for name, value in parameters.items()}
    answers = []
    for u in inputs:
        for layer in range(n_layers):
            v = u.copy()
            for head in range(n_heads):
                Q, K, V = (weights[f"blocks.{layer}.attn.W_{m}"][head].T for m in "QKV")
                for i in range(len(u)):
                    exponentials = np.array([np.exp((K @ u[j]) @ (Q @ u[i])) for j in range(i + 1)])
                    p = exponentials / exponentials.sum()
                    v[i] += V @ sum(p[j] * u[j] for j in range(i + 1))
            u = v
        h = u[-1]
        for i in range(depth):
            h = np.maximum(h @ weights[f"classifier.layers.{i}.W"] + weights[f"classifier.layers.{i}.b"], 0)
        answers.append(h @ weights["classifier.readout.W"])
    return np.array(answers)


@pytest.mark.parametrize(("n_layers", "n_heads", "depth"), [(2, 1, 3), (1, 2, 0), (3, 1, 1)])
def test_logits_equal_the_equations(n_layers, n_heads, depth):
    config = config_of(n_layers, n_heads, depth)
    parameters, inputs = random_parameters(config), inputs_of(config)
    expected = reddy_2023(parameters, inputs.numpy(), n_layers, n_heads, depth)
    network = Network(config, parameters)
    assert hooked(network)(inputs).detach().numpy() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert forward(network, inputs).numpy() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("n_heads", [1, 3])
def test_every_activation_of_the_forward_pass_is_that_of_the_hooked_model(n_heads):
    config = config_of(n_heads=n_heads)
    network, inputs = Network(config, random_parameters(config)), inputs_of(config)
    _, cache = hooked(network).run_with_cache(inputs)
    ours, patterns = run_with_cache(network, inputs), [f"blocks.{layer}.attn.hook_pattern" for layer in range(2)]
    assert set(ours.values) == set(network.hook_names) <= set(cache)
    for name, value in ours.values.items():
        assert torch.allclose(value, cache[name], rtol=1e-12, atol=1e-12), name
    for name, pattern in run_with_cache(network, inputs, patterns).values.items():
        assert torch.allclose(pattern, cache[name], rtol=1e-12, atol=1e-12), name


def test_standard_hooks_have_their_shapes():
    config = config_of()
    _, cache = hooked(Network(config, random_parameters(config))).run_with_cache(inputs_of(config))
    assert cache["hook_embed"].shape == (17, 7, 24)
    assert cache["blocks.0.hook_resid_pre"].shape == (17, 7, 24)
    assert cache["blocks.0.attn.hook_q"].shape == (17, 7, 1, 24)
    assert cache["blocks.1.attn.hook_pattern"].shape == (17, 1, 7, 7)
    assert cache["blocks.1.hook_resid_post"].shape == (17, 7, 24)
    assert cache["classifier.hook_in"].shape == (17, 24)
    assert cache["classifier.layers.2.hook_post"].shape == (17, 19)
    assert cache["classifier.hook_logits"].shape == (17, 5)


def test_hooks_change_the_run_and_are_removed():
    config = config_of()
    model, inputs = hooked(Network(config, random_parameters(config))), inputs_of(config)
    before = model(inputs)
    silenced = model.run_with_hooks(inputs, fwd_hooks=[("classifier.layers.0.hook_pre", lambda x, hook: x * 0)])
    assert not torch.allclose(before, silenced)
    assert torch.equal(before, model(inputs))


def test_attention_is_causal_and_only_the_target_is_read():
    config = config_of()
    model, inputs = hooked(Network(config, random_parameters(config))), inputs_of(config)
    changed = inputs.clone()
    changed[:, 4] += 1
    pre, post = (model(each, stop_at_layer=2) for each in (inputs, changed))
    assert torch.equal(pre[:, :4], post[:, :4])
    assert not torch.allclose(pre[:, 4:], post[:, 4:])
    cut = model.run_with_hooks(
        inputs, fwd_hooks=[("blocks.1.hook_resid_post", lambda x, hook: torch.cat([x[:, :-1] * 0, x[:, -1:]], dim=1))]
    )
    assert torch.equal(cut, model(inputs))


def test_start_and_stop_at_layer_compose():
    config = config_of()
    model, inputs = hooked(Network(config, random_parameters(config))), inputs_of(config)
    assert torch.equal(model(model(inputs, stop_at_layer=1), start_at_layer=1), model(inputs))


def test_frozen_parts_have_no_gradient_and_the_right_values():
    config = config_of()
    model = hooked(Network(config, random_parameters(config)))
    model(inputs_of(config)).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in parameter_shapes(config)), name
    assert torch.equal(model.blocks[1].attn.W_O[0], torch.eye(24).double())
    assert all(not parameter.any() for name, parameter in model.named_parameters() if ".attn.b_" in name)


def test_a_misspelt_hook_raises_with_the_nearest_name():
    config = config_of()
    model, inputs = hooked(Network.initial(config)), inputs_of(config).float()
    nearest = "did you mean 'blocks.0.attn.hook_pattern'"
    with pytest.raises(UnknownNameError, match=nearest):
        model.run_with_cache(inputs, names_filter="blocks.0.attn.hook_patern")
    with pytest.raises(UnknownNameError, match=nearest):
        model.run_with_hooks(inputs, fwd_hooks=[("blocks.0.attn.hook_patern", lambda x, hook: x)])
    with pytest.raises(MechinterpError, match="matches no hook"):
        model.run_with_hooks(inputs, fwd_hooks=[(lambda name: "nowhere" in name, lambda x, hook: x)])
    for misspelt in ("blocks.0.attn.hook_patern", ["hook_embed", "blocks.0.attn.hook_patern"]):
        with pytest.raises(UnknownNameError, match=nearest):
            model.add_caching_hooks(misspelt)
    for caching in (model.add_caching_hooks, model.get_caching_hooks):
        with pytest.raises(MechinterpError, match="give a hook name, a list of them or a function"):
            caching(("hook_embed",))
        with pytest.raises(MechinterpError, match="give a hook name, a list of them or a function"):
            caching([lambda hook: hook == "hook_embed"])
    assert not any(point.fwd_hooks for point in model.hook_points())


def test_layers_that_the_model_does_not_have_are_refused():
    config = config_of()
    model, inputs = hooked(Network.initial(config)), inputs_of(config).float()
    n_layers = config.model.n_layers
    with pytest.raises(MechinterpError, match=f"start_at_layer is 7; this model has {n_layers} layers"):
        model(inputs, start_at_layer=7)
    with pytest.raises(MechinterpError, match="stop_at_layer is -9"):
        model(inputs, stop_at_layer=-9)
    residual = model(inputs, stop_at_layer=n_layers)
    assert torch.equal(model(residual, start_at_layer=n_layers), model(inputs))


def test_initial_values_have_the_papers_scales():
    config = mi.RunConfig.preset("reddy2023", seed=5)
    parameters = initial_parameters(config)
    for name, value in parameters.items():
        if name.endswith(".b"):
            assert not value.any()
        else:
            variance = 1 / 63 if ".attn." in name else 1 / 128 if "readout" in name else 2 / 128
            assert value.var().item() == pytest.approx(variance, rel=0.05), name
    smaller = initial_parameters(config.updated({"model.classifier_init_variance": 1 / 3}))
    for name, value in smaller.items():
        scale = (1 / 6) ** 0.5 if "layers" in name else 1.0
        torch.testing.assert_close(value, scale * parameters[name])
    other = initial_parameters(config.updated({"seed": 6}))
    assert not torch.equal(parameters["blocks.0.attn.W_Q"], other["blocks.0.attn.W_Q"])


def test_set_parameters_refuses_other_names_and_shapes():
    config = config_of()
    model, parameters = hooked(Network.initial(config)), initial_parameters(config)
    with pytest.raises(MechinterpError, match=r"classifier\.readout\.W"):
        set_parameters(model, {name: value for name, value in parameters.items() if "readout" not in name})
    parameters["classifier.readout.W"] = parameters["classifier.readout.W"].T
    with pytest.raises(MechinterpError, match=r"expected \(19, 5\)"):
        set_parameters(model, parameters)


def test_a_hook_that_does_not_fire_is_an_error(tiny_config):
    model, inputs = hooked(Network.initial(tiny_config)), mi.build_task(tiny_config).sample("icl", 2).inputs

    def untouched(value, hook):
        return value

    name = "blocks.0.attn.hook_result"
    with pytest.raises(MechinterpError, match="hook_result' did not fire"):
        model.run_with_hooks(inputs, fwd_hooks=[("hook_embed", untouched), (name, untouched)])
    with pytest.raises(MechinterpError, match="a filter did not fire"):
        model.run_with_hooks(inputs, fwd_hooks=[(lambda each: each.endswith("hook_result"), untouched)])
    with pytest.raises(MechinterpError, match="did not fire"):
        model.run_with_cache(inputs, names_filter=name)
    with pytest.raises(MechinterpError, match="a filter did not fire"):
        model.run_with_cache(inputs, names_filter=lambda hook: hook.endswith("hook_result"))
    model.set_use_attn_result(True)
    assert name in model.run_with_cache(inputs, names_filter=[name])[1]
    assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=[(name, untouched)]), model(inputs))
