"""A circuit is drawn where the answer leads, of a network that guesses never, of a weak one also."""

import re

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits import certainty
from mechinterp.circuits.certainty import CHECKPOINTS, FALSE_ALARM, edge_level, lead_level, opacity, resolved
from mechinterp.circuits.diagram import circuit_edges, weighted
from mechinterp.circuits.graph import graph_of
from mechinterp.circuits.svg import to_svg
from mechinterp.config import ItemLabelConfig
from mechinterp.models.network import Network
from mechinterp.models.planted import induction_head
from tests.circuits.planted import PLANTED, drawn


def test_levels_are_those_of_a_normal_distribution():
    assert lead_level() == pytest.approx(3.2905, abs=1e-4)  # P(Z > z) = 0.0005
    assert edge_level(1) == pytest.approx(3.4808, abs=1e-4)  # P(|Z| > z) = 0.0005
    assert edge_level(100) == pytest.approx(4.5648, abs=1e-4)  # 5e-6
    assert edge_level(0) == edge_level(1)


def test_a_run_without_an_effect_is_drawn_at_some_checkpoint_at_most_as_often_as_stated():
    n_runs, n_edges = 400, 30
    draws = mi.generator(0, 3).standard_normal((n_runs, CHECKPOINTS, n_edges))
    alarms = (np.abs(draws) > edge_level(n_edges)).any(axis=(1, 2)).mean()
    assert 0.2 * FALSE_ALARM < alarms < FALSE_ALARM + 3 * (FALSE_ALARM / n_runs) ** 0.5
    leads = (draws[:, :, 0] > lead_level()).any(axis=1).mean()
    assert 0.2 * FALSE_ALARM < leads < FALSE_ALARM + 3 * (FALSE_ALARM / n_runs) ** 0.5
    assert (np.abs(draws) > 3).any(
        axis=(1, 2)
    ).mean() > 0.99  # three standard errors, as if one edge were looked at once


def test_a_lead_takes_both_its_size_and_its_certainty():
    assert resolved(1.0, 0.1, 0.8)
    assert not resolved(1.0, 0.1, 0.55)
    assert not resolved(1.0, 0.31, 0.8)
    assert not resolved(-1.0, 0.1, 0.8)
    assert not resolved(float("nan"), 0.1, 0.8)
    assert resolved(1.0, 0.1, certainty.LEAST_AHEAD)


def guessing(config: mi.RunConfig, seed: int) -> Network:
    """An induction head whose match drowns in noise: it names some label of the context, the correct one hardly more
    often than others."""
    network = induction_head(config, alpha=0.6, beta2=20.0, dtype=torch.float32)
    parameters = dict(network.parameters)
    size = parameters["blocks.1.attn.W_K"].shape[1]
    noise = torch.from_numpy(mi.generator(seed, 5).standard_normal((1, size, size), dtype=np.float32))
    task = config.task
    assert isinstance(task, ItemLabelConfig)
    P, D = task.position_dim, task.content_dim
    content = torch.zeros(1, size, size)
    content[:, P : P + D, P : P + D] = 1
    parameters["blocks.1.attn.W_K"] = parameters["blocks.1.attn.W_K"] + 50 * noise * content
    parameters["blocks.1.attn.W_Q"] = parameters["blocks.1.attn.W_Q"] + 0.05 * content * torch.eye(size)
    return Network(config, parameters)


def test_a_network_that_guesses_among_the_labels_of_the_context_draws_nothing_at_any_checkpoint(small):
    task = mi.build_task(small)
    for seed in range(6):
        table = circuit_edges(guessing(small, seed), task, n_pairs=128)
        assert not bool(table["drawn"].any()), seed
        assert bool(table["effect"].isna().all())
        assert not any(table["operation"])
        assert "No circuit is drawn: the correct label does not lead" in to_svg(graph_of(table))


def test_a_network_that_does_not_learn_draws_nothing_at_any_checkpoint(tiny_config, tmp_path):
    """Trained too briefly to form a circuit: some labels become likelier than others, and none is the answer."""
    config = tiny_config.updated({"training.steps": 300, "checkpoints.every": 30, "task.p_in_context": 1.0})
    run = mi.train(config, tmp_path / "run.h5", progress=False)
    tables = [circuit_edges(run.network(step), run.task, n_pairs=64) for step in run.steps]
    assert len(tables) == 11
    assert max(table["ahead"][0] for table in tables) < 0.7
    assert not any(table["drawn"].any() or any(table["operation"]) for table in tables)


@pytest.mark.parametrize(("name", "strength"), [("xi", 0.4), ("beta1", 1.5)])
def test_a_weak_circuit_is_drawn(small, name, strength):
    """A lead of 0.3 logits that is certain; and a head that attends to the token before little more than to others."""
    table = circuit_edges(induction_head(small, **{name: strength}), mi.build_task(small), n_pairs=128)
    assert name != "xi" or table["span"][0] < 0.4
    assert name != "beta1" or table["ahead"][0] < 0.85
    assert PLANTED.items() <= drawn(table).items()


def test_edges_are_beyond_noise_for_all_edges_that_are_looked_at(planted):
    level = edge_level(len(planted))
    for factor, n_drawn in ((1.02, 0), (0.98, len(PLANTED))):
        noisy = planted.assign(error=factor * planted["effect"].abs() / level)
        assert int(weighted(noisy)["drawn"].to_numpy().sum()) == n_drawn
    assert graph_of(planted).graph["level"] == level


def test_edges_pale_with_the_relative_error_of_the_lead(planted):
    assert opacity(1.0, 0.01) == opacity(1.0, 0.05) == 1.0
    assert opacity(1.0, 1 / lead_level()) == pytest.approx(0.4)
    assert opacity(1.0, 0.5) == opacity(-1.0, 0.1) == 0.4
    assert opacity(2.0, 0.2) == opacity(1.0, 0.1) < opacity(1.0, 0.08) < 1
    sure, unsure = (to_svg(graph_of(planted.assign(span=10.0, span_error=error))) for error in (0.1, 2.0))
    assert "<g opacity" not in sure
    assert {*re.findall(r'<g opacity="([\d.]+)"', unsure)} == {f"{opacity(10.0, 2.0):.2f}"}
    assert unsure.count("<g opacity") == len(PLANTED)
