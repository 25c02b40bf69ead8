"""Modular addition: the split into two sets, epochs and full batches, samples, corrupt twins, and a run end to end."""

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.config import ModularAdditionConfig
from mechinterp.errors import ConfigError, MechinterpError, UnknownNameError
from mechinterp.tasks import ModularAdditionTask
from mechinterp.tasks.corruption import Corruption, corrupted_pairs

P = 11
CONFIG = ModularAdditionConfig(modulus=P, train_fraction=0.3)
N = 36  # ⌊0.3 · 121⌋
SMALL = {
    "task.kind": "modular_addition",
    "task.modulus": P,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "model.d_model": 16,
    "model.d_head": 8,
    "model.d_mlp": 24,
    "model.output_matrix": "trained",
    "model.input": "tokens",
    "model.output": "unembedding",
    "model.positional_embedding_type": "standard",
    "training.optimizer": "adamw",
    "training.learning_rate": 0.01,
    "training.batch_size": N,
}


@pytest.fixture(scope="module")
def task() -> ModularAdditionTask:
    return ModularAdditionTask(CONFIG, seed=3)


def pairs_of(batch) -> list[tuple[int, int]]:
    return [(a, b) for a, b, _ in batch.inputs.tolist()]


def test_a_sequence_is_a_sum_with_its_answer(task):
    batch = task.sample("test", 50)
    first, second, equals = batch.inputs.T
    assert torch.equal((first + second) % P, batch.labels)
    assert (equals == P).all()
    assert {role: mask.nonzero()[:, 1].unique().tolist() for role, mask in batch.roles.items()} == {
        "first": [0],
        "second": [1],
        "target": [2],
    }
    assert isinstance(task, mi.Task)


def test_the_two_sets_are_a_random_split_of_all_pairs(task):
    train, test = (pairs_of(task.sample(name, size)) for name, size in (("train", N), ("test", P * P - N)))
    assert len({*train}) == N == CONFIG.n_train
    assert sorted(train + test) == [(a, b) for a in range(P) for b in range(P)]
    other = ModularAdditionTask(CONFIG, seed=4)
    assert {*train} == {*pairs_of(ModularAdditionTask(CONFIG, seed=3).sample("train", N, 9))}
    assert {*train} != {*pairs_of(other.sample("train", N))}


def test_full_batches_are_the_whole_set_in_the_same_order(task):
    first, later = task.train_batch(0, N), task.train_batch(7, N)
    assert torch.equal(first.inputs, later.inputs)
    assert {*pairs_of(first)} == {*pairs_of(task.sample("train", N))}


def test_smaller_batches_pass_through_the_set_in_epochs(task):
    epochs = [[pair for i in range(3) for pair in pairs_of(task.train_batch(3 * e + i, 10))] for e in range(200)]
    assert all(len({*epoch}) == 30 for epoch in epochs)
    whole = {*pairs_of(task.sample("train", N))}
    assert {pair for epoch in epochs for pair in epoch} == whole
    assert epochs[0] != epochs[1]
    counts = np.unique([11 * a + b for epoch in epochs for a, b in epoch], return_counts=True)[1]
    assert counts == pytest.approx(200 * 30 / 36, abs=5 * (200 * (30 / 36) * (6 / 36)) ** 0.5)
    again = ModularAdditionTask(CONFIG, seed=3)
    assert torch.equal(task.train_batch(100, 10).inputs, again.train_batch(100, 10).inputs)


def test_samples_are_without_replacement_and_pure(task):
    sample = task.sample("train", 20, 1)
    assert len({*pairs_of(sample)}) == 20
    assert torch.equal(sample.inputs, task.sample("train", 20, 1).inputs)
    assert not torch.equal(sample.inputs, task.sample("train", 20, 2).inputs)
    many = pairs_of(task.sample("train", 3 * N + 1))
    assert {many.count(pair) for pair in many} == {3, 4}
    with pytest.raises(UnknownNameError, match="did you mean 'test'"):
        task.sample("tests", 5)


def test_another_number_gives_another_sum(task):
    pairs = corrupted_pairs(task, Corruption.replace_operand, n_pairs=500)
    clean, corrupt = pairs.clean.inputs, pairs.corrupt.inputs
    assert {*pairs_of(pairs.clean)} == {*pairs_of(task.sample("test", P * P - N))}
    assert torch.equal((clean != corrupt).any(dim=0), torch.tensor([True, False, False]))
    assert torch.equal((corrupt[:, 0] + corrupt[:, 1]) % P, pairs.wrong_labels)
    assert (pairs.answers != pairs.wrong_labels).all()
    change = np.bincount((corrupt[:, 0] - clean[:, 0]) % P, minlength=P)
    assert change[1:] == pytest.approx(50, abs=5 * 50**0.5)
    with pytest.raises(
        MechinterpError, match="swap_label does not apply to ModularAdditionTask; use one of replace_op"
    ):
        corrupted_pairs(task, "swap_label")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.batch_size": 37}, "exceeds the 36 pairs .* set it to 36, the full batch, or less"),
        ({"task.train_fraction": 0.001}, "exceeds the 1 pairs .* set it to 1, the full batch, or less"),
        ({"model.output": "tied"}, "'tied' answers with one of the 12 tokens, and the task has 11 labels"),
        ({"training.loss_at": "first"}, None),
    ],
)
def test_impossible_runs_are_refused(changes, message, tmp_path):
    if message is None:
        with pytest.raises(MechinterpError, match="no answers but the target's"):
            mi.train(mi.RunConfig().updated(SMALL | changes | {"training.steps": 1}), tmp_path / "run.h5")
        return
    with pytest.raises(ConfigError, match=message):
        mi.RunConfig().updated(SMALL | changes)


def test_a_network_memorises_its_training_set_and_is_measured(tmp_path):
    config = mi.RunConfig().updated(SMALL | {"training.steps": 200, "checkpoints.every": 100})
    run = mi.train(config, tmp_path / "run.h5", progress=False)
    table = mi.measure(run)
    assert table["train_accuracy"].iloc[-1] > 0.9
    assert table["test_accuracy"].iloc[-1] < 0.5
    assert {"embedding_gini", "restricted_loss", "excluded_loss"} < {*table}
    assert np.isfinite(table.to_numpy()).all()
    patched = mi.patch(run.network(200), corrupted_pairs(run.task, "replace_operand"), [mi.Site("hook_embed", "first")])
    assert patched["effect"].item() == pytest.approx(1, abs=1e-5)  # the first number is all that differs
