"""Interpolation: symmetries change no answer, matching undoes them, and barriers are those of the loss between."""

import pytest
import torch

import mechinterp as mi
from mechinterp.comparison.interpolation import Alignment, between
from mechinterp.comparison.matching import matched, permutation_axes, permuted, with_heads
from mechinterp.errors import MechinterpError
from mechinterp.measures.functions import barrier_of
from mechinterp.models.forward import forward
from mechinterp.models.network import Network
from mechinterp.tasks import build_task
from tests.comparison.test_transplants import CONFIGS, GENERAL, TINY, TOKENS
from tests.comparison.trajectories import switched_on, with_idle_head
from tests.helpers import random_parameters

FREE = {**TOKENS, "model.positional_embedding_type": "standard"}
ALL = {**CONFIGS, "free": FREE, "sinusoidal": {**FREE, "model.positional_embedding_type": "sinusoidal"}}


def answers(config, parameters):
    task = build_task(config)
    return forward(Network(config, parameters), task.sample(task.evaluations[0], 6).inputs)


def distance(one, other):
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


def disguised(config, parameters, *, heads=True):
    """The same function with its units, heads and the dimensions inside heads in another order or rotated."""
    rng, changed = torch.Generator().manual_seed(1), dict(parameters)
    for places in permutation_axes(config).values():
        name, axis = places[0]
        changed = permuted(changed, places, torch.randperm(changed[name].shape[axis], generator=rng))
    for layer in range(config.model.n_layers if heads and config.model.n_heads > 1 else 0):
        changed = with_heads(changed, layer, torch.arange(config.model.n_heads).flip(0))
    for layer in range(config.model.n_layers):
        attn = f"blocks.{layer}.attn."
        if f"{attn}W_Q" not in changed or config.model.positional_embedding_type == "rotary":
            continue
        size = changed[f"{attn}W_Q"].shape[-1]
        R = torch.linalg.qr(torch.randn(size, size, generator=rng, dtype=torch.float64))[0]
        for name in ("W_Q", "W_K", "b_Q", "b_K"):
            if attn + name in changed:
                changed[attn + name] = changed[attn + name] @ R
    return changed


@pytest.mark.parametrize("changes", ALL.values(), ids=ALL)
def test_symmetries_change_no_answer_and_matching_undoes_them(changes):
    config = mi.RunConfig().updated(changes)
    parameters = random_parameters(config)
    other = disguised(config, parameters)
    assert distance(other, parameters) > 0.5
    torch.testing.assert_close(answers(config, other), answers(config, parameters))
    assert distance(matched(config, other, parameters), parameters) < 1e-8


@pytest.mark.parametrize("changes", ALL.values(), ids=ALL)
def test_another_network_is_matched_without_being_changed(changes):
    """It comes nearer, but stays the other network."""
    config = mi.RunConfig().updated(changes)
    parameters, other = random_parameters(config), random_parameters(config, seed=1)
    aligned = matched(config, other, parameters)
    torch.testing.assert_close(answers(config, aligned), answers(config, other))
    assert 0.3 * distance(other, parameters) < distance(aligned, parameters) < distance(other, parameters)


def test_coordinates_that_are_given_are_kept():
    """The residual stream is permuted where embeddings are trained alone, and a map inside a head is not undone."""
    assert "residual" in permutation_axes(mi.RunConfig().updated(FREE))
    for changes in (TINY, {**TINY, **GENERAL}, ALL["sinusoidal"]):
        assert "residual" not in permutation_axes(mi.RunConfig().updated(changes))
    config = mi.RunConfig().updated(TINY)
    parameters = random_parameters(config)
    other = {**parameters, "blocks.0.attn.W_Q": 2 * parameters["blocks.0.attn.W_Q"]}
    other["blocks.0.attn.W_K"] = other["blocks.0.attn.W_K"] / 2
    torch.testing.assert_close(answers(config, other), answers(config, parameters))
    assert distance(matched(config, other, parameters), parameters) > 0.1


def test_copies_of_a_planted_network_have_a_barrier_until_they_are_matched():
    """A copy whose heads have changed places, and one whose queries and keys have changed sign."""
    states, _ = with_idle_head(switched_on({})[0])
    config, parameters = states.config, states.at(0)
    batch = build_task(config).sample("icl", 100)
    both = list(Alignment)
    swapped = with_heads(with_heads(parameters, 0, torch.tensor([1, 0])), 1, torch.tensor([1, 0]))
    negative = {name: -value if name.endswith(("W_Q", "W_K")) else value for name, value in parameters.items()}
    for copy in (swapped, negative):
        line = between(config, parameters, copy, batch, both, n=11, resamples=50)
        barriers = line.barriers.set_index("alignment")
        assert barriers.loc["as_trained", "low"] > 0.1
        assert barriers.loc["as_trained", "at"] == pytest.approx(0.5, abs=0.11)
        assert barriers.loc["matched", "barrier"] == pytest.approx(0, abs=1e-9)
        assert barriers.loc["matched", "distance"] < 1e-6
        assert line.end_losses[0] == pytest.approx(line.end_losses[1])


def test_an_equally_good_network_that_is_no_such_copy_keeps_its_barrier():
    """What layer 1 writes and what layer 2 reads of it change sign: midway it is neither written nor read."""
    states, _ = with_idle_head(switched_on({})[0])
    config, parameters = states.config, states.at(0)
    signs = {"blocks.0.attn.W_V": -1, "blocks.1.attn.W_K": -1}
    decoy = {name: signs.get(name, 1) * value for name, value in parameters.items()}
    line = between(config, parameters, decoy, build_task(config).sample("icl", 100), list(Alignment), n=11)
    assert line.end_losses[0] == pytest.approx(line.end_losses[1])
    assert (line.barriers["low"] > 0.1).all()
    assert line.barriers["distance"].is_monotonic_decreasing


def test_a_convex_loss_has_no_barrier():
    """Cross-entropy is convex in the readout."""
    config = mi.RunConfig().updated({**TINY, "model.classifier_depth": 0})
    parameters = random_parameters(config)
    other = {**parameters, "classifier.readout.W": -3 * parameters["classifier.readout.W"]}
    batch = build_task(config).sample("icl", 50)
    line = between(config, parameters, other, batch, [Alignment.as_trained])
    assert line.barriers["barrier"].item() == 0
    assert line.table["loss"].iloc[10] < sum(line.end_losses) / 2 - 0.01


def test_the_barrier_is_the_most_above_the_line():
    assert barrier_of([0.0, 0.25, 0.5, 1.0], [1.0, 3.5, 3.0, 3.0]) == (2.0, 0.25)
    assert barrier_of([0.0, 0.5, 1.0], [0.0, -1.0, 2.0])[0] == 0


def test_the_ends_are_the_checkpoints(tiny_run):
    line = mi.interpolate(tiny_run, 0, 20, n=5, n_sequences=300, resamples=20)
    measured = mi.measure(tiny_run, ["icl_accuracy", "icl_loss"], n_sequences=300, steps=[0, 20])
    ends = line.table.iloc[[0, -1]]
    assert ends["t"].tolist() == [0, 1]
    torch.testing.assert_close(torch.tensor(ends["loss"].to_numpy()), torch.tensor(measured["icl_loss"].to_numpy()))
    assert ends["accuracy"].tolist() == pytest.approx(measured["icl_accuracy"].tolist(), abs=1e-6)
    assert line.barriers["alignment"].tolist() == ["as_trained"]
    two = mi.interpolate(tiny_run, "last", 20, other=tiny_run, n=3, n_sequences=20, resamples=20)
    assert two.barriers["alignment"].tolist() == ["as_trained", "matched"]
    assert two.barriers["distance"].tolist() == pytest.approx([0, 0], abs=1e-4)
    assert "matched: barrier" in str(two)


def test_mistakes_are_named(tiny_run, tiny_config, tmp_path):
    narrow = tiny_config.updated({"training.steps": 1, "model.classifier_width": 6})
    with pytest.raises(MechinterpError, match="n is 2"):
        mi.interpolate(tiny_run, 0, 20, n=2)
    with pytest.raises(MechinterpError, match="step"):
        mi.interpolate(tiny_run, 0, 19)
    with pytest.raises(MechinterpError, match="other parameters"):
        mi.interpolate(tiny_run, 0, 0, other=mi.train(narrow, tmp_path / "narrow.h5", progress=False))
