"""A network of another convention computes what TransformerLens' own does, and is trained by its own gradient."""

import warnings

import pytest
import torch

import mechinterp as mi
from mechinterp.models.forward import forward, run_with_cache
from mechinterp.models.network import Network
from mechinterp.models.registry import architecture_of, initial_parameters, parameter_shapes
from mechinterp.training.engines import AutogradEngine, FusedEngine, build_engine
from tests.helpers import by_hooked_transformer, hooked, random_parameters
from tests.reference_engine import ReferenceEngine

CONVENTIONS = [
    {"model.use_attn_scale": True},
    {"model.output_matrix": "trained"},
    {"model.classifier_bias": "shared"},
    {"model.use_attn_scale": True, "model.output_matrix": "trained", "model.classifier_bias": "shared"},
]


@by_hooked_transformer
def test_scale_and_output_matrix_are_those_of_transformer_lens(tiny_config):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = tiny_config.updated({"model.use_attn_scale": True, "model.output_matrix": "trained", "model.n_heads": 2})
    parameters, d_model = random_parameters(config), config.task.d_model
    with warnings.catch_warnings(action="ignore"):
        theirs = HookedTransformer(
            HookedTransformerConfig(
                n_layers=2, n_heads=2, d_model=d_model, d_head=d_model, n_ctx=config.task.n_pos, d_vocab=3,
                attn_only=True, normalization_type=None, use_attn_scale=True, dtype=torch.float64,
            )
        )  # fmt: skip
    own = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, value in own.items():
            if name.startswith("blocks."):
                value.zero_()
            if name in parameters:
                value.copy_(parameters[name])
    inputs = mi.build_task(config).sample("train", 5).inputs.double()
    residual = inputs
    for block in theirs.blocks:
        residual = block(residual)
    network = Network(config, parameters)
    _, cache = hooked(network).run_with_cache(inputs)
    for activations in (cache, run_with_cache(network, inputs)):
        torch.testing.assert_close(activations["classifier.hook_in"], residual[:, -1], rtol=1e-12, atol=1e-12)


def test_a_shared_bias_is_added_to_every_unit(tiny_config):
    config = tiny_config.updated({"model.classifier_bias": "shared", "model.classifier_depth": 1})
    parameters = {name: torch.zeros(shape) for name, shape in parameter_shapes(config).items()}
    parameters["classifier.layers.0.b"] += 0.25
    inputs = mi.build_task(config).sample("train", 3).inputs
    network = Network(config, parameters)
    _, cache = hooked(network).run_with_cache(inputs)
    for activations in (cache, run_with_cache(network, inputs)):
        assert bool((activations["classifier.layers.0.hook_post"] == 0.25).all())


@pytest.mark.parametrize("changes", CONVENTIONS)
def test_gradients_by_the_chain_rule_equal_autograd(tiny_config, changes):
    config = tiny_config.updated({**changes, "training.weight_decay": 0.01})
    parameters, batch = random_parameters(config), mi.build_task(config).train_batch(0, 16)
    for theirs in (AutogradEngine([config], [parameters]), ReferenceEngine(config, parameters)):
        fused = FusedEngine([config], [parameters])
        (loss, _, gradients), (expected, _, wanted) = fused.gradients(batch), theirs.gradients(batch)
        assert loss == pytest.approx(expected, rel=1e-12)
        assert gradients.keys() == wanted.keys() == parameters.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-12)
        assert fused.step(batch) == pytest.approx(theirs.step(batch), rel=1e-9)
        for name, value in theirs.parameters.items():
            torch.testing.assert_close(fused.parameters[name], value.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("changes", CONVENTIONS)
def test_runs_are_trained_measured_and_opened_as_the_canonical_network(tiny_config, changes, tmp_path):
    config = tiny_config.updated(changes)
    assert build_engine(config, initial_parameters(config)).name == "fused"
    run = mi.train(config, tmp_path / "run.h5", progress=False)
    batch = run.task.sample("icl", 200)
    logits = run.model(run.steps[-1])(batch.inputs)
    torch.testing.assert_close(forward(run.network(run.steps[-1]), batch.inputs), logits)
    accuracy = (logits.argmax(dim=-1) == batch.labels).double().mean().item()
    assert mi.measure(run, ["icl_accuracy"], n_sequences=200)["icl_accuracy"].iloc[-1] == pytest.approx(accuracy)
    assert bool(mi.analyse(run, "evidence", steps=[run.steps[-1]], n_pairs=16)["value"].notna().any())


def test_a_canonical_config_and_its_parameters_stay_as_they_are(tiny_config):
    parameters = initial_parameters(tiny_config)
    canonical = architecture_of(tiny_config).canonical(tiny_config, parameters)
    assert canonical.config is tiny_config
    assert canonical.parameters.keys() == parameters.keys()
    assert all(canonical.parameters[name] is value for name, value in parameters.items())


def test_an_engine_that_is_gone_or_cannot_compute_a_config_is_replaced(tiny_config):
    parameters = initial_parameters(tiny_config)
    assert build_engine(tiny_config, parameters, "hooked").name == "fused"
    assert build_engine(tiny_config, parameters, "autograd").name == "autograd"
    heads = tiny_config.updated({"model.n_heads": 2})
    assert build_engine(heads, initial_parameters(heads), "fused").name == "autograd"
