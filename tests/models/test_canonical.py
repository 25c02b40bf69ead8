"""The canonical network of every architecture and convention: differentiable, its gradient pulled back, and checked."""

import pytest
import torch
from torch.nn import functional

import mechinterp as mi
from mechinterp.errors import MechinterpError
from mechinterp.models.base import Canonical
from mechinterp.models.forward import forward
from mechinterp.models.network import Network
from mechinterp.models.registry import ARCHITECTURES, architecture_of, initial_parameters, parameter_shapes
from mechinterp.models.transformer import Transformer
from mechinterp.training.engines.base import pull_back
from tests.helpers import random_parameters

PAIRS = {"task.kind": "paired_items", "task.n_items": 40, "task.n_pairs": 9, "task.item_dim": 7}
ADDITIVE = {**PAIRS, "task.tokens": "plain", "model.kind": "additive", "model.classifier_width": 11}
CONVENTIONS = {
    "model.use_attn_scale": True,
    "model.output_matrix": "trained",
    "model.classifier_bias": "shared",
}
CASES = {
    "canonical": {},
    "one layer": {"model.n_layers": 1},
    "linear classifier": {"model.classifier_depth": 0},
    **{name: {name: value} for name, value in CONVENTIONS.items()},
    "all conventions": {**CONVENTIONS, "model.n_heads": 2},
    "difference": {**PAIRS, "model.classifier_width": 11, "model.readout": "difference"},
    "induction head": {"model.kind": "induction_head"},
    "induction head, linear": {"model.kind": "induction_head", "model.classifier_depth": 0},
    "additive": ADDITIVE,
    "additive, linear": {**ADDITIVE, "model.classifier_depth": 0},
}


@pytest.fixture(params=CASES)
def config(request, tiny_config) -> mi.RunConfig:
    changes = CASES[request.param]
    return (mi.RunConfig() if "task.kind" in changes else tiny_config).updated(changes)


def loss_of(network: Network, batch: mi.Batch) -> torch.Tensor:
    return functional.cross_entropy(forward(network, batch.inputs), batch.labels)


def leaves(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}


def test_every_architecture_has_a_case(tiny_config):
    tested = {
        type((mi.RunConfig() if "task.kind" in case else tiny_config).updated(case).model) for case in CASES.values()
    }
    assert tested == set(ARCHITECTURES)


def test_the_network_is_differentiable_and_canonical_gradients_are_pulled_back(config):
    batch, parameters = mi.build_task(config).train_batch(0, 16), leaves(random_parameters(config))
    whole = torch.autograd.grad(loss_of(Network(config, parameters), batch), list(parameters.values()))
    assert all(bool(gradient.isfinite().all() and gradient.any()) for gradient in whole)

    canonical = architecture_of(config).canonical(config, random_parameters(config))
    inner = leaves(canonical.parameters)
    loss = loss_of(Network(canonical.config, inner), batch)
    of_canonical = dict(zip(inner, torch.autograd.grad(loss, list(inner.values())), strict=True))
    pulled = pull_back(config, parameters, of_canonical)
    assert pulled.keys() == parameters.keys()
    for (name, gradient), expected in zip(pulled.items(), whole, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-13, msg=name)


def test_its_gradient_is_the_slope_of_the_loss(config):
    """Along a direction, by differences."""
    batch, parameters, h = mi.build_task(config).train_batch(0, 16), random_parameters(config), 1e-6
    for name in parameters:
        towards = {name: random_parameters(config, seed=1)[name]}
        moved = [
            float(loss_of(Network(config, parameters | {name: parameters[name] + sign * h * towards[name]}), batch))
            for sign in (1, -1)
        ]
        start = leaves(parameters)
        (gradient,) = torch.autograd.grad(loss_of(Network(config, start), batch), [start[name]])
        slope = float((gradient * towards[name]).sum())
        assert (moved[0] - moved[1]) / (2 * h) == pytest.approx(slope, rel=1e-4, abs=1e-7), name


def test_the_canonical_network_is_canonical(config):
    network = Network.initial(config)
    again = Network(network.config, network.parameters)
    assert again.config == network.config
    assert all(torch.equal(value, network.parameters[name]) for name, value in again.parameters.items())
    assert network.parameters.keys() == parameter_shapes(network.config).keys()
    inputs = mi.build_task(config).train_batch(0, 5).inputs
    torch.testing.assert_close(forward(again, inputs), forward(Network(config, initial_parameters(config)), inputs))


def test_parameters_that_do_not_fit_are_refused(config):
    parameters = initial_parameters(config)
    for name, value in parameters.items():
        with pytest.raises(MechinterpError, match=f"missing or unexpected {name}"):
            Network(config, {other: parameters[other] for other in parameters if other != name})
        with pytest.raises(MechinterpError, match=f"parameter {name} has shape"):
            Network(config, parameters | {name: torch.cat([value, value[..., :1]], dim=-1)})
    with pytest.raises(MechinterpError, match=r"missing or unexpected blocks\.0\.attn\.W_X"):
        Network(config, parameters | {"blocks.0.attn.W_X": torch.zeros(1)})


def test_a_wider_network_is_taken_whole_or_refused(tiny_config):
    width, wide = tiny_config.task.d_model, tiny_config.task.d_model + 3
    parameters = {}
    for name, shape in parameter_shapes(tiny_config).items():
        reads = name.startswith("blocks.") or name == "classifier.layers.0.W"
        parameters[name] = torch.ones([wide if reads and size == width else size for size in shape])
    assert Network(tiny_config, parameters).d_model == wide
    for name in ("blocks.1.attn.W_K", "classifier.layers.0.W"):
        with pytest.raises(MechinterpError, match=f"parameter {name} has shape"):
            Network(tiny_config, parameters | {name: initial_parameters(tiny_config)[name]})


class Tied(Transformer):
    """W_Q is twice W_K, which the network has as it is too."""

    def canonical(self, config, parameters):
        return Canonical(config, dict(parameters) | {"blocks.0.attn.W_Q": 2 * parameters["blocks.0.attn.W_K"]}, {})


def test_a_parameter_that_is_used_twice_gets_both_gradients(tiny_config, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, type(tiny_config.model), Tied())
    parameters = random_parameters(tiny_config)
    slopes = {name: torch.ones_like(value) for name, value in parameters.items()}
    pulled = pull_back(tiny_config, parameters, slopes)
    assert bool((pulled["blocks.0.attn.W_K"] == 3).all())
    assert not pulled["blocks.0.attn.W_Q"].any()
    assert bool((pulled["blocks.1.attn.W_K"] == 1).all())
