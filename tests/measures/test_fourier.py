"""The Fourier measures return the analytic values of planted embeddings and logits, and tell memorisation apart."""

import math

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.config import ModularAdditionConfig
from mechinterp.errors import MechinterpError
from mechinterp.measures import MEASURES, fourier
from mechinterp.measures.fourier import fourier_basis, gini
from mechinterp.measures.table import columns_for, observe
from mechinterp.models.network import Network
from mechinterp.tasks import ModularAdditionTask
from tests.helpers import random_network
from tests.tasks.test_modular_addition import SMALL

P = 23
CONFIG = mi.RunConfig().updated(SMALL | {"task.modulus": P, "training.batch_size": 10})
TASK = ModularAdditionTask(ModularAdditionConfig(modulus=P), seed=0)
N_TRAIN = TASK.config.n_train
KEYS = torch.tensor([1, 4, 6, 9, 11])
NUMBERS = torch.arange(P)


def waves(x: torch.Tensor, frequencies: torch.Tensor = KEYS) -> torch.Tensor:
    """Σ_k cos(w_k x)."""
    return (2 * math.pi / P * (x[..., None] * frequencies).double()).cos().sum(dim=-1)


def measured(monkeypatch, logits, name: str) -> float:
    """A measure of a network whose logits are given, [a, b, c]."""

    def planted(network: Network, tokens: torch.Tensor, *, target_only: bool) -> torch.Tensor:
        return logits[tokens[:, 0], tokens[:, 1]]

    network = random_network(CONFIG)
    monkeypatch.setattr(fourier, "forward", planted)
    batch = TASK.sample("train", N_TRAIN)
    seen = mi.Observation(batch, logits[batch.inputs[:, 0], batch.inputs[:, 1]], {}, network, TASK)
    return float(MEASURES[name].compute(seen))


def mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("p", [3, 4, 23, 24])
def test_the_basis_is_orthonormal_and_of_waves(p):
    basis = fourier_basis(p)
    torch.testing.assert_close(basis @ basis.T, torch.eye(p).double())
    x = torch.arange(p).double()
    torch.testing.assert_close(basis[1], (2 * math.pi * x / p).cos() / (p / 2) ** 0.5)
    torch.testing.assert_close(basis[2], (2 * math.pi * x / p).sin() / (p / 2) ** 0.5)


def test_the_gini_coefficient_is_that_of_its_definition():
    sizes = torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    differences = (sizes[:, None] - sizes).abs().mean() / (2 * sizes.mean())
    assert float(gini(sizes)) == pytest.approx(float(differences))
    assert float(gini(torch.ones(7))) == 0


@pytest.mark.parametrize("n_keys", [1, 3, 5])
def test_an_embedding_of_few_frequencies_has_the_analytic_gini(n_keys):
    """2 n equal components of p − 1; the constant and the row of "=" do not count."""
    network = random_network(CONFIG)
    angles = 2 * math.pi / P * NUMBERS[:, None] * KEYS[:n_keys]
    W_E = torch.zeros(P + 1, 16).double()
    W_E[:P, : 2 * n_keys] = torch.cat([angles.cos(), angles.sin()], dim=1)
    W_E[:, 12] = 7
    W_E[P] = 100
    planted = Network(CONFIG, {**network.parameters, "embed.W_E": W_E})
    seen = observe(planted, TASK.sample("test", 5), [])
    assert float(MEASURES["embedding_gini"].compute(seen)) == pytest.approx(1 - 2 * n_keys / (P - 1))


def test_a_random_embedding_is_not_concentrated():
    seen = observe(random_network(CONFIG), TASK.sample("test", 5), [])
    assert float(MEASURES["embedding_gini"].compute(seen)) < 0.2


def test_of_logits_of_the_rule_the_key_frequencies_carry_all(monkeypatch):
    a, b, c = torch.meshgrid(NUMBERS, NUMBERS, NUMBERS, indexing="ij")
    bias = torch.linspace(-1, 1, P).double()
    rule = 2 * waves(a + b - c) + bias
    everywhere = mean_loss(rule.flatten(0, 1), ((a + b) % P)[..., 0].flatten())
    assert measured(monkeypatch, rule, "restricted_loss") == pytest.approx(everywhere, rel=1e-9)
    labels = TASK.sample("train", N_TRAIN).labels
    without = mean_loss(bias.expand(len(labels), P), labels)
    assert measured(monkeypatch, rule, "excluded_loss") == pytest.approx(without, rel=1e-9)
    assert measured(monkeypatch, rule - bias, "excluded_loss") == pytest.approx(math.log(P), rel=1e-9)


def test_frequencies_beyond_the_largest_five_do_not_count(monkeypatch):
    a, b, c = torch.meshgrid(NUMBERS, NUMBERS, NUMBERS, indexing="ij")
    rule, rest = 2 * waves(a + b - c), 1.5 * waves(a + b - c, torch.tensor([2]))
    assert measured(monkeypatch, rule + rest, "restricted_loss") == pytest.approx(
        measured(monkeypatch, rule, "restricted_loss"), rel=1e-9
    )
    labels = TASK.sample("train", N_TRAIN).labels
    alone = mean_loss(rest[0, labels], labels)
    assert measured(monkeypatch, rule + rest, "excluded_loss") == pytest.approx(alone, rel=1e-9)


def test_waves_of_a_and_b_alone_or_of_their_difference_are_no_part_of_the_rule(monkeypatch):
    a, b, c = torch.meshgrid(NUMBERS, NUMBERS, NUMBERS, indexing="ij")
    rule, other = 2 * waves(a + b - c), waves(a - c) + waves(b - c) + waves(a - b - c)
    alone = measured(monkeypatch, rule, "restricted_loss")
    assert measured(monkeypatch, rule + other, "restricted_loss") == pytest.approx(alone, rel=1e-9)


def test_of_a_network_that_memorises_the_opposite_is_true(monkeypatch):
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(P, P, P)))
    batch = TASK.sample("train", N_TRAIN)
    logits[batch.inputs[:, 0], batch.inputs[:, 1], batch.labels] += 12
    assert measured(monkeypatch, logits, "excluded_loss") < 0.1
    assert measured(monkeypatch, logits, "restricted_loss") > 1


def test_the_logits_of_all_pairs_are_those_of_the_network():
    network, batch = random_network(CONFIG), TASK.sample("test", 40)
    logits = fourier.sum_logits(network, P)[batch.inputs[:, 0], batch.inputs[:, 1]]
    torch.testing.assert_close(logits, observe(network, batch, []).logits)


def test_they_are_of_modular_addition_only():
    task = mi.build_task(mi.RunConfig())
    assert not {"embedding_gini", "restricted_loss"} & {c.name for c in columns_for(task, mi.RunConfig().model)}
    with pytest.raises(MechinterpError, match=r"restricted_loss cannot .* of tasks of the class ModularAdditionTask"):
        columns_for(task, mi.RunConfig().model, ["restricted_loss"])
    with pytest.raises(MechinterpError, match="of a network, which this observation has not"):
        MEASURES["embedding_gini"].compute(mi.Observation(TASK.sample("test", 2), torch.zeros(2, P), {}))
