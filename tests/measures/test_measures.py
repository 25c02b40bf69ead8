"""Progress measures return the analytic value on patterns and logits that are known."""

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.config import TransformerConfig
from mechinterp.errors import MechinterpError, UnknownNameError
from mechinterp.measures import MEASURES
from mechinterp.measures.table import columns_for
from mechinterp.models.registry import parameter_shapes
from mechinterp.training.spikes import SPIKES

T, N, L = 17, 8, 32


@pytest.fixture(scope="module")
def batch():
    return mi.build_task(mi.RunConfig.preset("reddy2023").updated({"task.burstiness": 2})).sample("icl", 200)


def seen(batch, layer1=None, layer2=None, logits=None) -> mi.Observation:
    size = len(batch)
    uniform = torch.tril(torch.ones(T, T, dtype=torch.float64))
    uniform = (uniform / uniform.sum(dim=-1, keepdim=True)).expand(size, 1, T, T)
    cache = {
        "blocks.0.attn.hook_pattern": uniform if layer1 is None else layer1,
        "blocks.1.attn.hook_pattern": uniform if layer2 is None else layer2,
    }
    return mi.Observation(batch, torch.zeros(size, L, dtype=torch.float64) if logits is None else logits, cache)


def value(name: str, observation: mi.Observation) -> float:
    return float(MEASURES[name].compute(observation))


def test_uniform_attention(batch):
    assert value("ila1", seen(batch)) == pytest.approx(sum(1 / (2 * i) for i in range(1, N + 1)) / N)
    assert value("ila1_all", seen(batch)) == pytest.approx(sum(1 / i for i in range(2, T + 1)) / (T - 1))
    assert value("tila2", seen(batch)) == pytest.approx(2 / T)
    assert value("tla2", seen(batch)) == pytest.approx(N / T)
    assert value("cla_mass", seen(batch)) == pytest.approx((N / 2) / L)
    assert value("loss", seen(batch)) == pytest.approx(np.log(L))


def test_a_previous_token_pattern(batch):
    pattern = torch.diag(torch.ones(T - 1, dtype=torch.float64), -1).expand(len(batch), 1, T, T)
    assert value("ila1", seen(batch, layer1=pattern)) == value("ila1_all", seen(batch, layer1=pattern)) == 1


def test_ila1_reads_label_tokens_only(batch):
    pattern = torch.zeros(len(batch), 1, T, T, dtype=torch.float64)
    pattern[:, :, torch.arange(1, T, 2), torch.arange(0, T - 1, 2)] = 1
    assert value("ila1", seen(batch, layer1=pattern)) == 1
    assert value("ila1_all", seen(batch, layer1=pattern)) == 0.5


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_attention_to_the_correct_label(batch, strength):
    correct = batch.roles["correct_label"].double() / 2
    wrong = (batch.roles["label"] & ~batch.roles["correct_label"]).double() / 6
    pattern = torch.zeros(len(batch), 1, T, T, dtype=torch.float64)
    pattern[:, 0, -1] = strength * correct + (1 - strength) * wrong
    assert value("tila2", seen(batch, layer2=pattern)) == pytest.approx(strength)
    assert value("tla2", seen(batch, layer2=pattern)) == pytest.approx(1)


def test_of_several_heads_the_best_counts(batch):
    uniform = seen(batch).pattern(1)
    on_correct = torch.zeros_like(uniform)
    on_correct[:, 0, -1] = batch.roles["correct_label"].double() / 2
    assert value("tila2", seen(batch, layer2=torch.cat([uniform, on_correct], dim=1))) == pytest.approx(1)


def test_context_labels(batch):
    inside = torch.nn.functional.one_hot(batch.token_labels[:, 1], L).double() * 50
    outside_label = [next(k for k in range(L) if k not in shown) for shown in batch.token_labels.tolist()]
    outside = torch.nn.functional.one_hot(torch.tensor(outside_label), L).double() * 50
    for name in ("cla", "cla_mass"):
        assert value(name, seen(batch, logits=inside)) == pytest.approx(1)
        assert value(name, seen(batch, logits=outside)) == pytest.approx(0)


def test_accuracy_and_loss(batch):
    right = torch.nn.functional.one_hot(batch.labels, L).double() * 3
    mixed = torch.where(torch.arange(len(batch))[:, None] < 50, right, right.roll(1, dims=1))
    assert value("accuracy", seen(batch, logits=mixed)) == 0.25
    assert value("loss", seen(batch, logits=right)) == pytest.approx(np.log(np.exp(3) + L - 1) - 3)


@pytest.fixture(scope="module")
def planted_run(tmp_path_factory):
    """A run file with two hand-made checkpoints: uniform attention, and a sharp previous-token head in layer 1."""
    from mechinterp.training.recording import new_run_file

    config = mi.RunConfig().updated({"training.steps": 1})
    zero = {name: torch.zeros(shape) for name, shape in parameter_shapes(config).items()}
    planted = {name: value.clone() for name, value in zero.items()}
    previous = torch.zeros(128, 128)
    previous[torch.arange(1, 65), torch.arange(64)] = 30.0  # position p asks for position p − 1
    planted["blocks.0.attn.W_Q"][0], planted["blocks.0.attn.W_K"][0] = previous, torch.eye(128)
    path = tmp_path_factory.mktemp("planted") / "run.h5"
    with new_run_file(path, config) as writer:
        for step, weights in enumerate((zero, planted)):
            writer.append(step, weights, {"train_loss": 0.0, "train_accuracy": 0.0})
    return mi.open_run(path)


def test_measures_of_planted_weights(planted_run):
    table = mi.measure(planted_run)
    assert table.loc[0, "ila1"] == pytest.approx(0.1699, abs=1e-4)
    assert table.loc[0, "icl_loss"] == pytest.approx(np.log(32), abs=1e-5)
    assert table.loc[1, "ila1"] == pytest.approx(1, abs=1e-5)
    assert table.loc[1, "ila1_all"] == pytest.approx(1, abs=1e-5)
    assert table.loc[1, "tla2"] == pytest.approx(N / T, abs=1e-6)


def test_measures_through_hooks_equal_those_of_the_plain_forward(planted_run, monkeypatch):
    def hooked_ila1(seen):
        seen.cache["blocks.0.hook_attn_out"]
        return MEASURES["ila1"].compute(seen)

    monkeypatch.setattr("mechinterp.measures.base.MEASURES", MEASURES)
    hooks = ["blocks.0.attn.hook_pattern", "blocks.0.hook_attn_out"]
    mi.register(hooks=hooks, roles=["label"])(hooked_ila1)
    try:
        table = mi.measure(planted_run, ["ila1", "hooked_ila1"], n_sequences=50)
    finally:
        del MEASURES["hooked_ila1"]
    assert table["ila1"].to_numpy() == pytest.approx(table["hooked_ila1"].to_numpy(), abs=1e-6)


def test_the_readmes_three_line_measure(tiny_run):
    @mi.register(hooks=["blocks.1.attn.hook_pattern"])
    def target_to_itself(seen):
        return seen.pattern(1)[..., -1, -1].mean()

    try:
        assert mi.measure(tiny_run, ["target_to_itself"])["target_to_itself"].between(0, 1).all()
    finally:
        del MEASURES["target_to_itself"]


def test_a_name_is_taken_once():
    def ila1(seen):
        return 0.0

    with pytest.raises(MechinterpError, match="exists already"):
        mi.register()(ila1)

    def spikes(seen):
        return 0.0

    with pytest.raises(MechinterpError, match="column of loss spikes; choose another name"):
        mi.register()(spikes)


def test_tca_counts_all_copies_and_takes_the_place_of_the_others_on_paired_items():
    config = mi.RunConfig.preset("nguyen2024-fast").updated(
        {"task.n_pairs": 6, "task.n_items": 10, "model.n_layers": 2}
    )
    task = mi.build_task(config)
    batch = task.sample("train", 300)
    pattern = torch.zeros(300, 1, 7, 7, dtype=torch.float64)
    pattern[:, 0, -1] = torch.tensor([0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2])
    copies = batch.roles["copy"]
    assert (copies.sum(dim=1) > 1).any(), "an item may come twice"
    known = (copies * pattern[:, 0, -1]).sum() / 300
    cache = {"blocks.0.attn.hook_pattern": pattern, "blocks.1.attn.hook_pattern": pattern.flip(-1)}
    found = mi.Observation(batch, torch.zeros(300, 2), cache)
    assert value("tca1", found) == pytest.approx(float(known))
    assert value("tca2", found) == pytest.approx(float((copies * pattern[:, 0, -1].flip(-1)).sum() / 300))
    novel = task.sample("icl", 50)
    uniform = torch.full((50, 1, 7, 7), 1 / 7, dtype=torch.float64)
    seen_uniform = mi.Observation(novel, torch.zeros(50, 2), {"blocks.0.attn.hook_pattern": uniform})
    assert value("tca1", seen_uniform) == pytest.approx(1 / 7)
    names = {column.name for column in columns_for(task, TransformerConfig())}
    assert {"tca1", "tca2", "icl_accuracy"} <= names
    assert not names & {"ila1", "ila1_all", "tila2", "tla2", "cla", "cla_mass"}
    with pytest.raises(
        MechinterpError, match=r"ila1 cannot be measured here: it is of tasks whose labels .* take tca1"
    ):
        columns_for(task, TransformerConfig(), ["ila1"])


def test_columns_and_rows(tiny_run):
    table = mi.measure(tiny_run, n_sequences=20)
    expected = "ila1 ila1_all tila2 cla cla_mass tla2 icl_accuracy iwl_accuracy swap_accuracy train_accuracy"
    assert set(table) == {*expected.split(), "icl_loss", "iwl_loss", "swap_loss", "train_loss", *SPIKES}
    assert list(table.index) == tiny_run.steps
    part = mi.measure(tiny_run, ["tla2", "icl_loss"], steps=[4, 2], n_sequences=20)
    assert part.equals(table.loc[[4, 2], ["tla2", "icl_loss"]])


def test_unknown_measure_step_and_size(tiny_run):
    with pytest.raises(UnknownNameError, match="did you mean 'icl_accuracy'"):
        mi.measure(tiny_run, ["icl_acuracy"])
    with pytest.raises(UnknownNameError, match="step 3 is not saved"):
        mi.measure(tiny_run, steps=[3])
    with pytest.raises(MechinterpError, match="n_sequences is 0; expected 1 or more"):
        mi.measure(tiny_run, n_sequences=0)
