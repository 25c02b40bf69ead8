"""A network of another convention computes what TransformerLens' own does, and is trained by its own gradient."""

import warnings

import pytest
import torch

import mechinterp as mi
from mechinterp.models.conventions import folded, plain
from mechinterp.models.hooks import HookedTransformer, HookedTransformerConfig
from mechinterp.models.parameters import initial_parameters, parameter_shapes
from mechinterp.models.transformer import build_model
from mechinterp.training.autograd import AutogradEngine
from mechinterp.training.engine import build_engine
from mechinterp.training.folded import FoldedEngine

CONVENTIONS = [
    {"model.use_attn_scale": True},
    {"model.output_matrix": "trained"},
    {"model.classifier_bias": "shared"},
    {"model.use_attn_scale": True, "model.output_matrix": "trained", "model.classifier_bias": "shared"},
]


def random_parameters(config: mi.RunConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5
        for name, shape in parameter_shapes(config).items()
    }


def test_scale_and_output_matrix_are_those_of_transformer_lens(tiny_config):
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
    inputs = config.build_task().sample("train", 5).inputs.double()
    residual = inputs
    for block in theirs.blocks:
        residual = block(residual)
    _, cache = build_model(config, parameters).run_with_cache(inputs)
    torch.testing.assert_close(cache["classifier.hook_in"], residual[:, -1], rtol=1e-12, atol=1e-12)


def test_a_shared_bias_is_added_to_every_unit(tiny_config):
    config = tiny_config.updated({"model.classifier_bias": "shared", "model.classifier_depth": 1})
    parameters = {name: torch.zeros(shape) for name, shape in parameter_shapes(config).items()}
    parameters["classifier.layers.0.b"] += 0.25
    inputs = config.build_task().sample("train", 3).inputs
    _, cache = build_model(config, parameters).run_with_cache(inputs)
    assert bool((cache["classifier.layers.0.hook_post"] == 0.25).all())


@pytest.mark.parametrize("changes", CONVENTIONS)
def test_gradients_by_the_chain_rule_equal_autograd(tiny_config, changes):
    config = tiny_config.updated({**changes, "training.weight_decay": 0.01})
    parameters, batch = random_parameters(config), config.build_task().train_batch(0, 16)
    ours, theirs = FoldedEngine(config, parameters), AutogradEngine(config, parameters)
    (loss, _, gradients), (expected, _, wanted) = ours.gradients(batch), theirs.gradients(batch)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert gradients.keys() == wanted.keys() == parameters.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-12)
    ours.step(batch)
    theirs.step(batch)
    for name, value in theirs.parameters.items():
        torch.testing.assert_close(ours.parameters[name], value.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("changes", CONVENTIONS)
def test_runs_are_trained_measured_and_opened_as_the_plain_network(tiny_config, changes, tmp_path):
    config = tiny_config.updated(changes)
    assert build_engine(config, initial_parameters(config)).name == "folded"
    run = mi.train(config, tmp_path / "run.h5", progress=False)
    batch = run.task.sample("icl", 200)
    logits = run.model(run.steps[-1])(batch.inputs)
    accuracy = (logits.argmax(dim=-1) == batch.labels).double().mean().item()
    assert mi.measure(run, ["icl_accuracy"], n_sequences=200)["icl_accuracy"].iloc[-1] == pytest.approx(accuracy)
    assert mi.analyse(run, "evidence", steps=[run.steps[-1]], n_pairs=16)["value"].notna().any()


def test_a_plain_config_is_its_own_plain_one_and_nothing_is_folded(tiny_config):
    parameters = initial_parameters(tiny_config)
    assert plain(tiny_config) is tiny_config
    assert all(value is parameters[name] for name, value in folded(tiny_config, parameters).items())
    with pytest.raises(mi.MechinterpError, match="hooked engine"):
        build_engine(tiny_config.updated(CONVENTIONS[0]), parameters, "hooked")
