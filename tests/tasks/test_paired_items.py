"""The paired-items task: what every sequence must look like, frequencies, and determinism."""

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.config import PairedItemsConfig
from mechinterp.errors import ConfigError, MechinterpError, UnknownNameError
from mechinterp.tasks import PairedItemsTask, Task
from mechinterp.tasks.corruption import Corruption, corrupted_pairs
from mechinterp.tasks.paired_items import _cumulative, _picked, _picked_equal
from tests.helpers import token_labels


def task(seed: int = 0, **changes) -> PairedItemsTask:
    return PairedItemsTask(PairedItemsConfig(**{"n_items": 60, "n_pairs": 20, "item_dim": 31, **changes}), seed)


def items_of(batch, made: PairedItemsTask) -> torch.Tensor:
    """The dataset's item nearest to each token's."""
    content = batch.inputs[:, :, : made.config.item_dim]
    return (content @ torch.from_numpy(made.items).T).argmax(dim=-1)


@pytest.mark.parametrize("tokens", ["normalised", "plain"])
def test_training_sequences_show_pairs_of_the_dataset_and_one_of_their_items_again(tokens):
    made = task(tokens=tokens)
    batch = made.train_batch(3, 400)
    assert isinstance(made, Task)
    assert batch.inputs.shape == (400, 21, made.d_model)
    found, labels = items_of(batch, made), torch.from_numpy(made.labels)
    assert (labels[found[:, :-1]] == token_labels(batch)[:, :-1]).all()
    assert (labels[found[:, -1]] == batch.labels).all()
    copies = found[:, :-1] == found[:, -1:]
    assert (copies == batch.roles["correct_item"][:, :-1]).all()
    assert copies.any(dim=1).all()
    assert token_labels(batch)[:, -1].eq(-1).all()
    counts = torch.bincount(found[:, :-1].flatten(), minlength=60) / (400 * 20)
    assert (counts - 1 / 60).abs().max() < 5 * (1 / 60 / 8_000) ** 0.5


def test_plain_tokens_are_an_item_and_its_sign_and_normalised_ones_have_mean_0_and_variance_1():
    plain, normalised = task(tokens="plain"), task()
    assert plain.d_model == normalised.d_model == 33
    batch = plain.train_batch(0, 50)
    signs = 1 - 2 * token_labels(batch)[:, :-1]
    assert (batch.inputs[:, :-1, -2] == signs).all()
    assert (batch.inputs[:, :-1, -1] == 0).all()
    assert (batch.inputs[:, -1, -2:] == torch.tensor([0.0, 1.0])).all()  # no label, and it is the target
    chosen = items_of(batch, plain)
    assert torch.equal(batch.inputs[:, :, :31], torch.from_numpy(plain.items)[chosen])
    tokens = normalised.train_batch(0, 50).inputs
    torch.testing.assert_close(tokens.mean(dim=-1), torch.zeros(50, 21), rtol=0, atol=1e-6)
    torch.testing.assert_close(tokens.var(dim=-1, unbiased=False), torch.ones(50, 21), rtol=1e-3, atol=0)
    label_part = tokens[:, :-1, 31:]
    assert (label_part.argmax(dim=-1) == token_labels(normalised.train_batch(0, 50))[:, :-1]).all()
    assert (tokens[:, -1, 31] == tokens[:, -1, 32]).all()  # no label


def test_evaluation_sets_tell_the_two_ways_apart():
    made = task()
    icl, iwl, swap = (made.sample(name, 300) for name in ("icl", "iwl", "swap"))
    dataset, novel = torch.from_numpy(made.items), icl.inputs[:, :, :31]
    near = torch.nn.functional.cosine_similarity(novel[:, :, None], dataset, dim=-1).amax()
    assert near < 0.9  # no item of the dataset
    copy = icl.inputs[icl.roles["correct_item"]].view(300, -1)  # one each: all items of a context are different
    assert (torch.nn.functional.cosine_similarity(copy[:, :31], icl.inputs[:, -1, :31]) > 0.95).all()
    assert token_labels(icl)[icl.roles["correct_label"]].eq(icl.labels).all()
    found, labels = items_of(iwl, made), torch.from_numpy(made.labels)
    assert not (found[:, :-1] == found[:, -1:]).any()
    assert not iwl.roles["correct_item"].any()
    assert (labels[found[:, -1]] == iwl.labels).all()
    found = items_of(swap, made)
    assert (token_labels(swap)[:, :-1] == 1 - labels[found[:, :-1]]).all()
    assert (swap.labels == 1 - labels[found[:, -1]]).all()


def test_a_fresh_dataset_has_new_items_in_every_sequence_and_nothing_to_memorise():
    made = task(dataset="fresh")
    assert made.evaluations == ("icl", "swap", "train")
    first, second = made.train_batch(0, 8), made.train_batch(1, 8)
    assert not torch.equal(first.inputs, second.inputs)
    items = first.inputs[:, :-1, :31].reshape(-1, 31)
    assert (torch.pdist(items) > 0.5).all()
    assert first.roles["correct_item"].sum(dim=1).eq(1).all()
    assert float(made.train_batch(0, 4_000).labels.double().mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("dataset", ["fixed", "fresh"])
@pytest.mark.parametrize("evaluation", ["train", "icl", "swap"])
def test_balanced_contexts_have_as_many_of_either_label(dataset, evaluation):
    made = task(dataset=dataset, balanced=True)
    batch = made.sample(evaluation, 200)
    assert token_labels(batch)[:, :-1].sum(dim=1).eq(10).all()
    assert 0.4 < float(batch.labels.double().mean()) < 0.6
    assert len(token_labels(batch)[:, :-1].unique(dim=0)) > 150  # in random order
    others = token_labels(task(dataset=dataset).sample(evaluation, 200))[:, :-1].sum(dim=1)
    assert len(others.unique()) > 5


def test_frequencies_follow_zipfs_law():
    made = task(zipf_exponent=1.0, n_items=40)
    counts = torch.bincount(items_of(made.train_batch(0, 3_000), made)[:, :-1].flatten(), minlength=40).double()
    expected = 1 / np.arange(1, 41)
    np.testing.assert_allclose(counts / counts.sum(), expected / expected.sum(), rtol=0.15)


@pytest.mark.parametrize("K", [1, 2, 3, 7, 50, 1_000, 16_000])
def test_equal_frequencies_are_drawn_as_any_frequencies_are(K):
    """To the bit: at random numbers, at every boundary between two items, and at its neighbours among floats."""
    cumulative = _cumulative(np.ones(K))
    uniform = np.random.default_rng(K).random((200, 50))
    assert np.array_equal(_picked_equal(cumulative, uniform), _picked(cumulative, uniform))
    for boundaries in (cumulative, np.arange(K + 1) / K):
        numbers = np.concatenate([np.nextafter(boundaries, side) for side in (-1, boundaries, 2)])
        numbers = numbers[(numbers >= 0) & (numbers < 1)]
        assert np.array_equal(_picked_equal(cumulative, numbers), _picked(cumulative, numbers))
    assert len(np.unique(_picked(cumulative, np.nextafter(cumulative, -1)))) == K


@pytest.mark.parametrize("seed", range(3))
def test_equal_labels_are_half_of_each(seed):
    made = task(seed, equal_labels=True)
    assert made.labels.sum() == 30
    assert np.array_equal(made.items, task(seed).items)
    assert {int(task(seed).labels.sum()) for seed in range(20)} != {30}
    orders = {tuple(task(seed, equal_labels=True).labels) for seed in range(10)}
    assert len(orders) == 10
    with pytest.raises(ConfigError, match=r"K=61\) is odd, and half of the labels are to be \+1: use 62"):
        mi.RunConfig().updated(
            {"task.kind": "paired_items", "task.n_items": 61, "task.n_pairs": 20, "task.equal_labels": True}
        )
    assert task(dataset="fresh", n_items=61, equal_labels=True).labels.size == 0


def test_batches_are_a_function_of_seed_and_step():
    one, again, other = task(), task(), task(seed=1)
    assert torch.equal(one.train_batch(7, 5).inputs, again.train_batch(7, 5).inputs)
    assert not torch.equal(one.train_batch(7, 5).inputs, one.train_batch(8, 5).inputs)
    assert not np.array_equal(one.items, other.items)
    assert torch.equal(one.sample("icl", 5).inputs, one.sample("icl", 5).inputs)
    assert not torch.equal(one.sample("icl", 5).inputs, one.sample("icl", 5, seed=1).inputs)
    with pytest.raises(UnknownNameError, match="icll"):
        one.sample("icll", 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.balanced": True, "task.n_pairs": 7}, r"N=7\) is odd.*use 8"),
        ({"task.n_items": 100, "task.n_pairs": 100}, r"K=100\) must exceed n_pairs \(N=100"),
        ({"task.dataset": "fresh", "task.zipf_exponent": 1.0}, "zipf_exponent has no effect"),
        ({"task.n_item": 7}, "did you mean 'n_items'"),
    ],
)
def test_impossible_tasks_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        mi.RunConfig().updated({"task.kind": "paired_items", **changes})


def test_one_label_cannot_be_balanced():
    config = PairedItemsConfig(n_items=3, n_pairs=2, balanced=True)
    seed = next(
        seed
        for seed in range(40)
        if len(set(PairedItemsTask(config.model_copy(update={"balanced": False}), seed).labels)) == 1
    )
    with pytest.raises(MechinterpError, match=r"same label.*raise n_items"):
        PairedItemsTask(config, seed)


CHANGES = {"swap_label": "every label", "replace_target": "the target", "break_pairing": "labels"}


@pytest.mark.parametrize("tokens", ["normalised", "plain"])
@pytest.mark.parametrize("corruption", list(CHANGES))
def test_paired_items_are_corrupted_in_one_thing(tokens, corruption):
    made = PairedItemsTask(PairedItemsConfig(n_items=50, n_pairs=6, item_dim=20, tokens=tokens), 3)
    pairs = corrupted_pairs(made, corruption, n_pairs=80, seed=1)
    clean, corrupt = pairs.clean, pairs.corrupt
    assert len(clean) == 80
    assert (pairs.wrong_labels == 1 - pairs.answers).all()
    items = [torch.from_numpy(made.items_of(batch.inputs[:, :-1])) for batch in (clean, corrupt)]
    torch.testing.assert_close(items[0], items[1], rtol=1e-4, atol=1e-5)
    same_target = (clean.inputs[:, -1] == corrupt.inputs[:, -1]).all(dim=1)
    changed = token_labels(clean)[:, :-1] != token_labels(corrupt)[:, :-1]
    if corruption == "replace_target":
        assert not same_target.any()
        assert not changed.any()
        directions = [torch.nn.functional.normalize(each, dim=-1) for each in (items[0], corrupt.inputs[:, -1:, :-2])]
        assert made.config.tokens == "normalised" or (directions[0] @ directions[1].mT).amax(dim=1).min() > 0.999
        rows = torch.arange(80)
        exact = made.tokens(items[0].numpy(), None)
        nearest = (exact - corrupt.inputs[:, -1:]).norm(dim=-1).argmin(dim=1)
        assert (token_labels(clean)[rows, nearest] == pairs.wrong_labels).all()
        torch.testing.assert_close(exact[rows, nearest], corrupt.inputs[:, -1], rtol=1e-4, atol=1e-4)
    else:
        assert same_target.all()
        copy = clean.roles["copy"].int().argmax(dim=1)
        assert (token_labels(corrupt)[torch.arange(80), copy] == pairs.wrong_labels).all()
        shown = made.tokens(items[0].numpy(), token_labels(corrupt)[:, :-1].numpy())
        torch.testing.assert_close(corrupt.inputs[:, :-1], shown, rtol=1e-4, atol=1e-4)
        counts = [token_labels(batch)[:, :-1].sum(dim=1) for batch in (clean, corrupt)]
        assert changed.all() if corruption == "swap_label" else (counts[0] == counts[1]).all()


def test_paired_items_have_no_positions_to_shuffle():
    made = PairedItemsTask(PairedItemsConfig(n_items=50, n_pairs=6), 0)
    with pytest.raises(MechinterpError, match="carry no position"):
        corrupted_pairs(made, "shuffle_positions")


class _Offering(PairedItemsTask):
    corruptions = (Corruption.swap_label,)


def test_a_task_offers_the_corruptions_that_it_declares():
    config = PairedItemsConfig(n_items=50, n_pairs=6)
    assert len(corrupted_pairs(_Offering(config, 0), n_pairs=5).clean) == 5
    with pytest.raises(MechinterpError, match="break_pairing does not apply to _Offering; use one of swap_label"):
        corrupted_pairs(_Offering(config, 0), "break_pairing")
