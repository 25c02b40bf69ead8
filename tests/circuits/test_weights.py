"""Subspaces, QK and OV circuits and order parameters return the planted values, and rebuild what they explain."""

from typing import Any

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits.order_parameters import order_parameters
from mechinterp.circuits.qk_ov import (
    composition_scores,
    copying_score,
    null_band,
    ov_strengths,
    position_profile,
    qk_strengths,
    score_blocks,
    singular_directions,
    written_blocks,
)
from mechinterp.circuits.subspaces import subspaces
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import run_with_cache
from mechinterp.models.network import Network
from mechinterp.models.planted import Operation, induction_head, random_label_decoy
from tests.helpers import hooked, random_network

STRENGTHS: dict[str, Any] = {"beta1": 2.0, "alpha": 3.0, "beta2": 0.7, "xi": 1.3}


@pytest.fixture(scope="module")
def random_model(tiny_config):
    return hooked(random_network(tiny_config, seed=5))


def test_subspaces_of_the_planted_head(tiny_config):
    model, task = induction_head(tiny_config), mi.build_task(tiny_config)
    found = subspaces(model, task)
    assert {name: each.dim for name, each in found.items()} == {
        "position": 13,
        "content": 11,
        "labels": 4,
        "content_rest": 7,
        "buffer": 11,
    }
    buffer = torch.zeros(46, dtype=torch.float64)
    buffer[24:35] = 1
    assert torch.allclose(found["buffer"].projector, buffer.diag(), atol=1e-12)
    both = found["labels"].projector + found["content_rest"].projector
    assert torch.allclose(both, found["content"].projector, atol=1e-6)
    tokens = torch.nn.functional.pad(task.sample("icl", 3).inputs.double(), (0, 22))
    assert torch.allclose(found["position"].energy(tokens) + found["content"].energy(tokens), torch.ones(3, 7).double())


def test_labels_that_span_the_content_leave_nothing_of_it(tiny_config):
    config = tiny_config.updated({"task.content_dim": 3})
    found = subspaces(Network.initial(config), mi.build_task(config))
    assert (found["labels"].dim, found["content_rest"].dim) == (3, 0)


@pytest.mark.parametrize("layer", [0, 1])
def test_blocks_rebuild_the_scores(tiny_config, random_model, layer):
    batch, task = mi.build_task(tiny_config).sample("icl", 5), mi.build_task(tiny_config)
    blocks = score_blocks(random_model, task, batch.inputs, layer)
    assert len(blocks) == (4, 9)[layer]
    _, cache = random_model.run_with_cache(batch.inputs)
    scores = cache[f"blocks.{layer}.attn.hook_attn_scores"][:, 0]
    allowed = torch.ones(7, 7, dtype=torch.bool).tril()
    assert (sum(blocks.values()) - scores)[:, allowed].abs().max() < 1e-10


def test_only_the_planted_interactions_have_strength(tiny_config):
    batch, task = mi.build_task(tiny_config).sample("icl", 50), mi.build_task(tiny_config)
    table = qk_strengths(induction_head(tiny_config, **STRENGTHS), batch, task)
    found = table.set_index(["layer", "query", "key"])["strength"]
    expected = {(0, "position", "position"), (1, "content", "buffer"), (1, "position", "position")}
    assert set(found[found > 1e-9].index) == expected
    n_keys = np.arange(2, 8)  # the previous token has score β₁, the others 0
    strength = found.to_dict()
    assert strength[0, "position", "position"] == pytest.approx(2.0 * np.sqrt(np.mean((n_keys - 1) / n_keys**2)))
    assert strength[1, "position", "position"] == pytest.approx(0.7 * np.sqrt(3 / 7 * 4 / 7))


def test_strengths_beside_untrained_networks(tiny_config):
    batch, task = mi.build_task(tiny_config).sample("icl", 50), mi.build_task(tiny_config)
    band = null_band(tiny_config, batch, task, n_networks=5)
    assert len(band) == 13
    low, mean, high = (band[name].to_numpy() for name in ("null_low", "null_mean", "null_high"))
    assert (low < mean).all()
    assert (mean < high).all()


def test_written_blocks_rebuild_what_a_token_gives(tiny_config, random_model):
    batch, task = mi.build_task(tiny_config).sample("icl", 5), mi.build_task(tiny_config)
    _, cache = random_model.run_with_cache(batch.inputs)
    for layer in (0, 1):
        blocks = written_blocks(random_model, task, batch.inputs, layer)
        assert len(blocks) == (4, 6)[layer]
        values = cache[f"blocks.{layer}.attn.hook_v"][:, :, 0] @ random_model.W_O[layer, 0]
        assert (sum(blocks.values()) - values).abs().max() < 1e-10


def test_only_the_planted_writing_has_strength(tiny_config):
    task = mi.build_task(tiny_config)
    batch = task.sample("icl", 50)
    table = ov_strengths(induction_head(tiny_config, **STRENGTHS), batch, task)
    found = table.set_index(["layer", "read", "written"])["strength"]
    content = batch.inputs[..., 13:].double().square().sum(-1).mean().sqrt()
    assert set(found[found > 1e-9].index) == {(0, "content", "other"), (1, "content", "other")}
    assert found.to_dict()[0, "content", "other"] == pytest.approx(float(content))
    band = null_band(tiny_config, batch, task, ov_strengths, n_networks=5)
    assert list(band) == ["layer", "head", "read", "written", "null_mean", "null_low", "null_high"]
    assert len(band) == 4 + 6


def test_singular_directions_of_the_planted_head(tiny_config):
    """QK¹ moves 12 of 13 positions by one, times β₁; QK² is α times an identity of 11, beside two of β₂'s."""
    table = singular_directions(induction_head(tiny_config, beta1=2.0, alpha=3.0), mi.build_task(tiny_config), n=13)
    of = {key: rows.reset_index(drop=True) for key, rows in table.groupby(["circuit", "layer"])}
    assert of["qk", 0]["value"].tolist() == pytest.approx([2.0] * 12 + [0.0])
    assert of["qk", 1]["value"].tolist() == pytest.approx([3.0] * 11 + [0.0] * 2, abs=1e-12)
    assert of["ov", 0]["value"].tolist() == pytest.approx([1.0] * 11 + [0.0] * 2)
    shift, match, write = of["qk", 0].loc[:11], of["qk", 1].loc[:10], of["ov", 0].loc[:10]
    for rows, u, v in ((shift, "position", "position"), (match, "content", "buffer"), (write, "content", "buffer")):
        energies = rows[[name for name in rows if name.startswith(("u_", "v_"))]].round(9)
        assert (energies[f"u_{u}"] == 1).all()
        assert (energies[f"v_{v}"] == 1).all()
        assert (energies.sum(axis=1) == 2).all()


def test_position_profile_of_the_planted_head(tiny_config):
    profile = position_profile(induction_head(tiny_config, **STRENGTHS), mi.build_task(tiny_config))
    assert profile.tolist() == [0, 2.0, 0, 0, 0, 0, 0]


def test_composition_goes_through_the_key(tiny_config):
    scores = composition_scores(induction_head(tiny_config, beta1=2.0)).set_index("through")["score"].to_dict()
    assert scores["Q"] == scores["V"] == 0
    assert scores["K"] == pytest.approx(1 / 11**0.5)  # of W_V¹ = W_QK² = one identity of 11 dimensions each


def test_copying_score(tiny_config):
    task = mi.build_task(tiny_config)
    batch = task.sample("icl", 20)
    assert copying_score(induction_head(tiny_config), task, batch) == pytest.approx(1.0)
    assert copying_score(induction_head(tiny_config, xi=-1.0), task, batch) == pytest.approx(-1.0)
    assert np.isnan(copying_score(induction_head(tiny_config, without=Operation.copy), task, batch))


def test_order_parameters_of_planted_heads(tiny_config):
    task = mi.build_task(tiny_config)
    found = order_parameters(induction_head(tiny_config, **STRENGTHS), task)
    for name in ("beta1", "alpha", "beta2"):
        assert found[name] == pytest.approx(STRENGTHS[name], abs=1e-6), name
    assert found["beta1_explained"] == pytest.approx(1, abs=1e-9)
    assert found["layer2_explained"] == pytest.approx(1, abs=1e-9)
    strong = order_parameters(random_label_decoy(tiny_config, beta2=40.0, xi=1.3), task)
    assert strong["xi"] == pytest.approx(1.3, abs=1e-6)  # no attention to items: logits are the labels' alone
    assert strong["xi_explained"] == pytest.approx(1, abs=1e-9)
    assert strong["alpha"] == pytest.approx(0, abs=1e-6)
    assert strong["beta1"] == pytest.approx(0, abs=1e-9)


def test_order_parameters_have_shares_of_their_own(tiny_config):
    """Alone, a term explains the squared correlation of its part with the centred scores of the target."""
    task = mi.build_task(tiny_config)
    found = order_parameters(induction_head(tiny_config, beta1=100.0, alpha=3.0, beta2=0.7), task, n_sequences=50)
    content = task.sample("icl", 50).inputs[:, :, 13:].double()  # after the one-hot position
    buffer = torch.cat([content[:, :1], content[:, :-1]], dim=1)  # what stood before; the first token sees itself
    match = torch.einsum("bjd,bd->bj", buffer, content[:, -1])
    odd = (torch.arange(task.n_pos) % 2 == 1).double().expand(50, -1)
    match, odd = ((x - x.mean(dim=1, keepdim=True)).flatten() for x in (match, odd))
    scores = 3 * match + 0.7 * odd

    def share(x):
        return float((x @ scores) ** 2 / (x @ x) / (scores @ scores))

    assert found["alpha_explained"] == pytest.approx(share(match), abs=1e-6)
    assert found["beta2_explained"] == pytest.approx(share(odd), abs=1e-6)
    assert found["layer2_explained"] == pytest.approx(1, abs=1e-9)
    for name in ("beta1", "alpha", "beta2"):
        assert found[f"{name}_error"] == pytest.approx(0, abs=1e-6)  # the fit is exact in every sequence
    assert found["alpha"] > 5 * found["alpha_null"]


def test_order_parameters_of_random_weights_lie_in_their_null_band(tiny_config):
    """A decoy of scores that are as large as a trained network's: α, β₁, β₂ and ξ are not 0, and mean nothing."""
    ratios = []
    for seed in range(40):
        network = random_network(tiny_config.updated({"seed": seed}), seed=seed)
        found = order_parameters(network, mi.build_task(network.config), n_sequences=100)
        ratios.append([found[name] / found[f"{name}_null"] for name in ("beta1", "alpha", "beta2", "xi")])
    ratios = np.array(ratios)
    assert np.sqrt((ratios**2).mean(axis=0)) == pytest.approx(1, abs=0.3)
    assert (np.abs(ratios) > 2).mean() < 0.1


def test_the_null_of_xi_is_its_spread_over_random_readouts(tiny_config):
    """Exactly: by the sum over all entries of a readout whose logits have the mean square of the network's."""
    network, task = random_network(tiny_config, seed=5), mi.build_task(tiny_config)
    batch = task.sample("icl", 50)
    assert batch.token_labels is not None
    run = run_with_cache(network, batch.inputs)
    hidden = run["classifier.layers.1.hook_post"].numpy()
    shown = (batch.token_labels[:, :, None] == torch.arange(4)).double()
    attended = torch.einsum("bj,bjl->bl", run["blocks.1.attn.hook_pattern"][:, 0, -1].double(), shown).numpy()
    logits, attended = (x - x.mean(axis=1, keepdims=True) for x in (run.logits.numpy(), attended))
    weights, one_hot = attended / (attended**2).sum(), np.eye(4) - 1 / 4
    effects = np.einsum("bl,bd,le->de", weights, hidden, one_hot)  # of an entry of the readout on ξ
    squares = np.einsum("bd,le->", hidden**2, one_hot**2)  # Σ logits² of a readout of unit variance
    expected = np.sqrt((effects**2).sum() * (logits**2).sum() / squares)
    assert order_parameters(network, task, n_sequences=50)["xi_null"] == pytest.approx(expected)


def test_order_parameters_take_batches_without_classes(tiny_config, monkeypatch):
    network, task = random_network(tiny_config, seed=5), mi.build_task(tiny_config)
    known, batch = order_parameters(network, task, n_sequences=50), task.sample("icl", 50)
    unknown = mi.Batch(batch.inputs, batch.labels, batch.roles, batch.token_labels)
    monkeypatch.setattr(task, "sample", lambda *_: unknown)
    independent = order_parameters(network, task, n_sequences=50)
    assert independent["beta1"] == pytest.approx(known["beta1"])
    assert 0 < independent["beta1_error"] < known["beta1_error"]


def test_the_error_of_an_order_parameter_is_its_spread_over_sequences(tiny_config):
    """Every seed has novel classes of its own; for β₁, sequences alone give half of the spread."""
    network, task = random_network(tiny_config, seed=6), mi.build_task(tiny_config)
    found = [order_parameters(network, task, n_sequences=100, seed=seed) for seed in range(40)]
    for name in ("beta1", "alpha", "beta2", "xi"):
        spread = np.std([row[name] for row in found], ddof=1)
        assert np.mean([row[f"{name}_error"] for row in found]) == pytest.approx(spread, rel=0.35), name


@pytest.mark.parametrize(
    ("missing", "zero"),
    [
        (Operation.previous_token, "beta1"),
        (Operation.match, "alpha"),
        (Operation.write, "alpha"),
        (Operation.readout, "xi"),
    ],
)
def test_order_parameters_tell_the_twins_apart(tiny_config, missing, zero):
    whole = order_parameters(induction_head(tiny_config, **STRENGTHS), mi.build_task(tiny_config))
    twin = order_parameters(induction_head(tiny_config, **STRENGTHS, without=missing), mi.build_task(tiny_config))
    assert twin[zero] == pytest.approx(0, abs=1e-6)
    assert whole[zero] > 0.5


def test_other_tasks_and_networks_are_refused(tiny_config):
    class Other:
        d_model, n_pos, n_labels, evaluations = 24, 7, 4, ("icl",)

        def train_batch(self, step, size):
            raise NotImplementedError

        def sample(self, evaluation, size, seed=0):
            raise NotImplementedError

    with pytest.raises(MechinterpError, match=r"task .*Other: only item–label tokens"):
        subspaces(Network.initial(tiny_config), Other())
    three = tiny_config.updated({"model.n_layers": 3})
    with pytest.raises(MechinterpError, match="two layers with one head"):
        order_parameters(Network.initial(three), mi.build_task(three))
