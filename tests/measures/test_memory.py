"""c1, c2 and c3 return the analytic value for logits that are known."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.errors import MechinterpError
from mechinterp.measures import MEASURES
from mechinterp.measures.memory import memory
from mechinterp.measures.table import columns_for, observe
from mechinterp.models.network import Network
from mechinterp.models.registry import parameter_shapes
from mechinterp.theory.kinetics import order_parameters
from tests.helpers import random_parameters

PAIRS = {
    "task.kind": "paired_items",
    "task.n_items": 40,
    "task.n_pairs": 9,
    "task.item_dim": 7,
    "model.classifier_width": 11,
    "model.classifier_depth": 1,
    "training.steps": 4,
    "checkpoints.every": 2,
}
NETWORK = mi.RunConfig().updated(PAIRS | {"model.n_layers": 1})
ADDITIVE = mi.RunConfig().updated(PAIRS | {"model.kind": "additive", "task.tokens": "plain"})


def constant_logits(config: mi.RunConfig, z: float) -> Network:
    """The network that answers every target with the logits z/2 and −z/2, by the bias of its readout."""
    config = config.updated({"model.readout_bias": True})
    parameters = {name: torch.zeros(shape) for name, shape in parameter_shapes(config).items()}
    bias = parameters["classifier.readout.b"]
    bias[:] = torch.tensor([z / 2, -z / 2]) if len(bias) == 2 else z
    return Network(config, parameters)


@pytest.mark.parametrize("config", [NETWORK, ADDITIVE], ids=["network", "additive"])
@pytest.mark.parametrize("z", [0.0, 2.5, -1.0])
def test_a_constant_logit_has_the_values_of_the_formula(config, z):
    """With the share p of labels +1: c1 = p σ(−z) + (1−p) σ(z), and so on."""
    batch = mi.build_task(config).sample("train", 500)
    right, wrong = 1 / (1 + np.exp(z)), 1 / (1 + np.exp(-z))
    share = float((batch.labels == 0).double().mean())
    c1 = share * right + (1 - share) * wrong
    expected = {
        "c1": c1,
        "c2": 1 - (share * right**2 + (1 - share) * wrong**2) / c1,
        "c3": share * np.exp(-z) + (1 - share) * np.exp(z),
    }
    seen = observe(constant_logits(config, z), batch, [])
    assert {name: MEASURES[name].compute(seen) for name in expected} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("config", [NETWORK, ADDITIVE], ids=["network", "additive"])
def test_without_attention_they_are_those_of_the_answers(config):
    parameters = random_parameters(config)
    for name, value in parameters.items():
        if name.endswith((".W_V", ".attn.w")):
            value.zero_()
    batch = mi.build_task(config).sample("train", 300)
    network = Network(config, parameters)
    seen = observe(network, batch, [])
    plus = (seen.logits[:, 0] - seen.logits[:, 1]) * (1 - 2 * batch.labels)
    expected = asdict(order_parameters(plus.detach().numpy()))
    assert expected["c1"] > 0.1
    assert asdict(memory(network, batch)) == pytest.approx(expected, rel=1e-9)
    found = {name: MEASURES[name].compute(seen) for name in expected}
    assert found == pytest.approx(expected, rel=1e-9)
    on_others = observe(network, mi.build_task(config).sample("icl", 300), [])
    assert MEASURES["c1"].compute(on_others) != pytest.approx(expected["c1"], rel=1e-9)


def test_attention_does_not_enter():
    parameters, batch = random_parameters(NETWORK), mi.build_task(NETWORK).sample("train", 300)
    network = Network(NETWORK, parameters)
    other = Network(NETWORK, parameters | {"blocks.0.attn.W_V": 0 * parameters["blocks.0.attn.W_V"]})
    assert memory(network, batch) == memory(other, batch)


def test_they_are_of_the_training_set_of_two_labels_alone(tmp_path, tiny_config):
    run = mi.train(NETWORK, tmp_path / "run.h5", progress=False)
    table = mi.measure(run, ["c1", "c2", "c3", "icl_accuracy"], n_sequences=100)
    expected = memory(run.network(4), run.task.sample("train", 100))
    assert table.loc[4, ["c1", "c2", "c3"]].to_dict() == pytest.approx(asdict(expected))
    wrong = order_parameters(np.zeros(3))
    assert (wrong.c1, wrong.c2, wrong.c3) == (0.5, 0.5, 1.0)
    assert not {"c1", "c2", "c3"} & {
        column.name for column in columns_for(mi.build_task(tiny_config), tiny_config.model)
    }
    assert {column.evaluation for column in columns_for(run.task, NETWORK.model, ["c1", "c2", "c3"])} == {"train"}


def test_a_measure_is_taken_on_the_evaluation_set_that_it_names(tiny_config):
    @mi.register(evaluation="swap")
    def of_swapped(seen):
        return 0.0

    @mi.register(evaluation="of another task")
    def of_another_task(seen):
        return 0.0

    try:
        task = mi.build_task(tiny_config)
        (column,) = columns_for(task, tiny_config.model, ["of_swapped"])
        assert column.evaluation == "swap"
        assert "of_another_task" not in [column.name for column in columns_for(task, tiny_config.model)]
    finally:
        for name in ("of_swapped", "of_another_task"):
            del MEASURES[name]


def test_a_model_that_is_no_network_has_none():
    batch = mi.build_task(NETWORK).sample("train", 5)
    with pytest.raises(MechinterpError, match="measured on a network"):
        MEASURES["c1"].compute(mi.Observation(batch, torch.zeros(5, 2), {}))
