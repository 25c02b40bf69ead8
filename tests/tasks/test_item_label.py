"""The item–label task: what every sequence must look like, frequencies, and determinism."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechinterp as mi
from mechinterp.circuits.subspaces import subspaces
from mechinterp.config import ItemLabelConfig
from mechinterp.errors import ConfigError, MechinterpError, UnknownNameError
from mechinterp.models.network import Network
from mechinterp.models.planted import induction_head
from mechinterp.tasks import ItemLabelTask
from mechinterp.tasks.base import TokenTable
from mechinterp.tasks.corruption import Corruption, corrupted_pairs
from mechinterp.training.engines import AutogradEngine, FusedEngine
from tests.helpers import random_parameters, token_labels

N = 8


def task(seed: int = 0, **changes) -> ItemLabelTask:
    return ItemLabelTask(ItemLabelConfig(**changes), seed)


def classes_of(batch, task: ItemLabelTask, slots) -> torch.Tensor:
    """The trained class nearest to each item's content (exact for ε ≪ 1)."""
    content = batch.inputs[:, slots, task.config.position_dim :]
    return (content @ torch.from_numpy(task.class_means).T).argmax(dim=-1)


@pytest.mark.parametrize("evaluation", ["train", "icl", "swap"])
@pytest.mark.parametrize("burstiness", [1, 2, 4, 8])
def test_bursty_contexts_repeat_each_label_equally_and_hold_the_target(evaluation, burstiness):
    made = task(burstiness=burstiness, p_in_context=0.5)
    batch = made.sample(evaluation, 300)
    shown = token_labels(batch)[:, 1::2]
    counts = torch.nn.functional.one_hot(shown, 32).sum(dim=1)
    assert set(counts.unique().tolist()) == {0, burstiness}
    assert batch.roles["correct_label"].sum(dim=1).eq(burstiness).all()
    assert token_labels(batch)[batch.roles["correct_label"]].view(300, -1).eq(batch.labels[:, None]).all()


def test_tokens_are_one_hot_positions_in_a_uniform_window():
    batch = task().sample("train", 20_000)
    position = batch.inputs[:, :, :65]
    assert position.sum(dim=-1).eq(1).all()
    where = position.argmax(dim=-1)
    assert (where.diff(dim=1) == 1).all()
    counts = torch.bincount(where[:, 0], minlength=49)
    assert len(counts) == 49
    assert counts.min() > 0.75 * 20_000 / 49
    assert counts.max() < 1.25 * 20_000 / 49


def test_content_has_unit_norm_and_the_right_within_class_correlation():
    made = task(epsilon=0.5)
    batch = made.sample("train", 2_000)
    assert batch.inputs[:, ::2, 65:].norm(dim=-1).mean() == pytest.approx(1, abs=0.01)
    assert np.linalg.norm(made.label_vectors, axis=1).mean() == pytest.approx(1, abs=0.03)
    item = batch.inputs[batch.roles["correct_item"]][:, 65:]
    target = batch.inputs[:, -1, 65:]
    assert (item * target).sum(dim=-1).mean() == pytest.approx(1 / 1.25, abs=0.02)


def test_labels_are_noiseless_and_belong_to_the_class():
    made = task(epsilon=0.05)
    batch = made.sample("train", 500)
    shown = batch.inputs[:, 1::2, 65:]
    assert torch.equal(shown, torch.from_numpy(made.label_vectors)[token_labels(batch)[:, 1::2]])
    items = classes_of(batch, made, slice(0, 16, 2))
    assert torch.equal(items % 32, token_labels(batch)[:, 1::2])
    assert torch.equal(classes_of(batch, made, [16])[:, 0] % 32, batch.labels)


def test_swapped_labels_are_shifted_by_one():
    made = task(epsilon=0.05)
    batch = made.sample("swap", 500)
    assert torch.equal((classes_of(batch, made, slice(0, 16, 2)) + 1) % 32, token_labels(batch)[:, 1::2])
    assert torch.equal((classes_of(batch, made, [16])[:, 0] + 1) % 32, batch.labels)


def test_in_context_classes_are_novel_and_anew_in_every_batch():
    made = task(p_in_context=1.0, epsilon=0.0)
    first, second = (made.train_batch(step, 200).inputs[:, -1, 65:] for step in (0, 1))
    trained = torch.from_numpy(made.class_means)
    assert torch.cdist(first, trained).min() > 0.3
    assert torch.cdist(first, second).min() > 0.3
    assert len(first.unique(dim=0)) <= 128


def test_iwl_targets_are_independent_of_the_context():
    made = task()
    batch = made.sample("iwl", 20_000)
    by_accident = batch.roles["correct_label"].any(dim=1).double().mean()
    assert by_accident == pytest.approx(1 - (1 - 1 / 256) ** N, abs=0.005)


def test_zipf_frequencies_of_items_and_targets():
    made = task(n_classes=32, zipf_exponent=1.0, distinct_labels=False, epsilon=0.01)
    expected = np.arange(1, 33) ** -1.0
    expected /= expected.sum()
    for evaluation in ("iwl", "train"):
        batch = made.sample(evaluation, 20_000)
        for slots in ([0], [16]):
            counts = torch.bincount(classes_of(batch, made, slots)[:, 0], minlength=32).numpy() / 20_000
            assert counts == pytest.approx(expected, abs=5 * 0.5 / np.sqrt(20_000))


def test_uniform_targets():
    made = task(n_classes=32, epsilon=0.01)
    counts = torch.bincount(made.sample("train", 32_000).labels, minlength=32)
    assert counts.min() > 850
    assert counts.max() < 1150


@pytest.mark.parametrize(("p_bursty", "burstiness", "share"), [(0.5, 1, 0.5), (1.0, 0, 0.0), (1.0, 2, 1.0)])
def test_fraction_of_bursty_sequences(p_bursty, burstiness, share):
    made = task(n_classes=2048, p_bursty=p_bursty, burstiness=burstiness)
    held = made.sample("train", 4_000).roles["correct_label"].any(dim=1).double().mean()
    assert held == pytest.approx(share, abs=0.03)


def test_roles_partition_the_sequence():
    roles = task().sample("train", 5).roles
    assert (roles["item"].int() + roles["label"].int() + roles["target"].int()).eq(1).all()
    assert torch.equal(roles["correct_item"][:, :-1], roles["correct_label"][:, 1:])


def test_a_batch_is_a_pure_function_of_seed_stream_and_step():
    batches = [task(3).train_batch(11, 64).inputs, task(3).train_batch(11, 64).inputs]
    assert torch.equal(*batches)
    others = [
        task(4).train_batch(11, 64).inputs,
        task(3).train_batch(12, 64).inputs,
        *(task(3).sample(name, 64, seed=11).inputs for name in ItemLabelTask.evaluations),
        task(3).sample("icl", 64, seed=12).inputs,
    ]
    distinct = torch.stack([batches[0], *others]).flatten(1).unique(dim=0)
    assert len(distinct) == 1 + len(others)


def test_batches_drawn_together_are_those_drawn_alone():
    made = task(3)
    for step, batch in zip((4, 9), made.train_batches((4, 9), 64), strict=True):
        alone = made.train_batch(step, 64)
        assert torch.equal(batch.inputs, alone.inputs)
        assert torch.equal(batch.labels, alone.labels)
        assert torch.equal(token_labels(batch), token_labels(alone))
        assert all(torch.equal(batch.roles[name], alone.roles[name]) for name in alone.roles)


def test_sampling_an_evaluation_set_does_not_change_training():
    made = task()
    before = made.train_batch(5, 32).inputs
    made.sample("icl", 1000)
    assert torch.equal(before, made.train_batch(5, 32).inputs)


def test_the_bits_do_not_change_between_versions():
    batch = task().train_batch(0, 4)
    assert batch.labels.tolist() == [0, 2, 30, 23]
    assert batch.inputs.double().sum().item() == pytest.approx(56.97841693413284, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(2, 4), (3, 6), (5, 5)]),
    st.sampled_from([(2, 1), (3, 1), (4, 2), (6, 3), (6, 0)]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.booleans(),
)
def test_the_look_up_table_equals_the_inputs(labels_classes, pairs_copies, p_bursty, p_in_context, distinct):
    (n_labels, n_classes), (n_pairs, burstiness) = labels_classes, pairs_copies
    config = ItemLabelConfig(
        n_classes=n_classes,
        n_labels=n_labels,
        n_pairs=n_pairs,
        burstiness=burstiness,
        content_dim=7,
        position_dim=17,
        n_novel_classes=n_labels,
        p_bursty=p_bursty,
        p_in_context=p_in_context,
        distinct_labels=distinct and n_pairs // max(burstiness, 1) <= n_labels,
    )
    batch = ItemLabelTask(config, 1).train_batch(0, 11)
    table, P = batch.table, config.position_dim
    assert table is not None
    assert torch.equal(batch.inputs[:, :, :P], torch.nn.functional.one_hot(table.positions, P).float())
    contents = torch.cat([table.shared.expand(11, -1, -1), table.own], dim=1)
    assert torch.equal(batch.inputs[:, :, P:], contents[torch.arange(11)[:, None], table.content])


def test_unknown_evaluation_set():
    with pytest.raises(UnknownNameError, match="did you mean 'icl'"):
        task().sample("icll", 3)


def test_the_task_is_a_task():
    assert isinstance(task(), mi.Task)


def test_fixed_novel_classes_are_the_same_in_every_batch_of_training_only():
    def means(batch) -> torch.Tensor:
        """Contents of the items, without noise, in a set that two batches may share."""
        return torch.unique((batch.inputs[:, ::2, 65:] * 1e4).round().flatten(0, 1), dim=0)

    def shared(one, other) -> int:
        return len(means(one)) + len(means(other)) - len(torch.unique(torch.cat([means(one), means(other)]), dim=0))

    novel = {"epsilon": 0.0, "p_in_context": 1.0, "n_novel_classes": 64}
    fixed, fresh = task(novel_classes="fixed", **novel), task(**novel)
    assert shared(fixed.train_batch(0, 200), fixed.train_batch(1, 200)) == len(means(fixed.train_batch(0, 200))) == 64
    assert shared(fresh.train_batch(0, 200), fresh.train_batch(1, 200)) == 0
    assert shared(fixed.train_batch(0, 200), fixed.sample("icl", 200)) == 0
    assert torch.equal(fixed.sample("icl", 50).inputs, fresh.sample("icl", 50).inputs)
    assert torch.equal(token_labels(fixed.train_batch(3, 50)), token_labels(fresh.train_batch(3, 50)))


def test_the_parts_of_a_token_are_its_position_and_its_content():
    batch, parts = task().sample("icl", 4), task().token_parts
    one_hot, content = batch.inputs[..., parts["position"]], batch.inputs[..., parts["content"]]
    assert torch.equal(one_hot.sum(dim=-1), torch.ones(4, 17))
    assert torch.equal(content[0, 1], torch.from_numpy(task().label_vectors)[token_labels(batch)[0, 1]])


# Sequences of Singh et al. 2024: no position in the tokens, and labels that are assigned by sequence

SINGH = {
    "task.n_pairs": 2,
    "task.n_labels": 5,
    "task.n_classes": 5,
    "task.n_novel_classes": 9,
    "task.novel_classes": "fixed",
    "task.p_in_context": 1.0,
    "task.label_assignment": "by_sequence",
    "task.content_dim": 12,
    "task.position_dim": 0,
    "task.epsilon": 0.0,
    "training.batch_size": 32,
}
PROJECTED = {
    "model.input": "projected",
    "model.output": "unembedding",
    "model.d_model": 16,
    "model.d_head": 8,
    "model.output_matrix": "trained",
    "model.positional_embedding_type": "rotary",
    "training.optimizer": "adamw",
    "training.learning_rate": 0.01,
}


def singh(**changes) -> ItemLabelTask:
    config = mi.RunConfig().updated(SINGH | {f"task.{name}": value for name, value in changes.items()}).task
    assert isinstance(config, ItemLabelConfig)
    return ItemLabelTask(config, seed=0)


def test_tokens_without_position_are_their_content():
    with_position, without = task(p_in_context=0.5), task(p_in_context=0.5, position_dim=0)
    assert torch.equal(with_position.train_batch(3, 50).inputs[..., 65:], without.train_batch(3, 50).inputs)
    assert (without.d_model, without.token_parts) == (63, {"content": slice(0, 63)})


@pytest.mark.parametrize("evaluation", ["icl", "train"])
@pytest.mark.parametrize("distinct", [True, False])
def test_labels_by_sequence_tell_nothing_of_the_class(evaluation, distinct):
    batch = singh(distinct_labels=distinct).sample(evaluation, 9000)
    shown, classes = token_labels(batch)[:, 1::2], batch.token_classes
    assert classes is not None
    assert (classes[:, 0] != classes[:, 2]).all()
    same = (shown[:, 0] == shown[:, 1]).double().mean()
    assert float(same) == (0 if distinct else pytest.approx(1 / 5, abs=0.02))
    assert torch.equal(batch.labels, torch.where(classes[:, 0] == classes[:, 4], shown[:, 0], shown[:, 1]))
    assert ((classes[:, 0] == classes[:, 4]) | (classes[:, 2] == classes[:, 4])).all()
    counts = torch.bincount((classes[:, 0] - 5) * 5 + shown[:, 0], minlength=45)
    assert counts.numpy() == pytest.approx(200, abs=5 * 200**0.5)
    both = torch.bincount((classes[:, 0] - 5) * 9 + classes[:, 2] - 5, minlength=81)
    assert both[both > 0].numpy() == pytest.approx(125, abs=5 * 125**0.5)
    assert len(both[both > 0]) == 72  # no order, and no pair, of two of the nine classes is left out


def test_copies_of_a_class_share_its_label_of_the_sequence():
    batch = singh(n_pairs=6, burstiness=2, n_novel_classes=10).train_batch(0, 500)
    classes, shown = batch.token_classes, token_labels(batch)
    assert classes is not None
    codes = (classes[:, :-1:2] * 5 + shown[:, 1::2]).sort(dim=1).values
    assert torch.equal(codes[:, ::2], codes[:, 1::2])
    assert (codes[:, ::2].diff(dim=1) > 0).all()
    assert batch.roles["correct_label"].sum(dim=1).eq(2).all()
    assert shown[batch.roles["correct_label"]].view(500, 2).eq(batch.labels[:, None]).all()


def test_fixed_classes_with_labels_by_sequence_are_the_same_vectors_with_other_labels():
    one, two = (singh().train_batch(step, 300) for step in (0, 1))
    means = [batch.inputs[:, 0].unique(dim=0) for batch in (one, two)]
    assert torch.equal(*means)
    assert len(means[0]) == 9


@pytest.mark.parametrize("burstiness", [1, 2])
@pytest.mark.parametrize("corruption", singh().corruptions)
def test_sequences_without_positions_are_corrupted_by_their_order(corruption, burstiness):
    made = singh(n_pairs=6, burstiness=burstiness, n_novel_classes=10, n_labels=10, n_classes=10)
    if corruption is Corruption.break_pairing and burstiness > 1:
        pytest.skip("refused")
    pairs = corrupted_pairs(made, corruption, n_pairs=400)
    for batch, labels in ((pairs.clean, pairs.answers), (pairs.corrupt, pairs.wrong_labels)):
        shown, classes = token_labels(batch), batch.token_classes
        assert classes is not None
        after = (classes[:, :-2] == classes[:, -1:]) & (classes[:, -1:] >= 0)  # items that are followed by a token
        assert after.sum(dim=1).eq(burstiness).all()
        answers = shown[:, 1:-1][after].view(400, burstiness)
        assert answers.eq(labels[:, None]).all()
    changed = (pairs.clean.inputs != pairs.corrupt.inputs).any(dim=-1)
    if corruption is Corruption.swap_item:
        assert not (changed & (pairs.roles["label"] | pairs.roles["target"])).any()
        assert changed.sum(dim=1).eq(2 * burstiness).all()


def test_items_of_classes_that_may_repeat_are_not_swapped():
    made = singh(n_pairs=6, n_novel_classes=10, distinct_labels=False, label_assignment="by_class")
    with pytest.raises(MechinterpError, match=r"set task\.distinct_labels = true, or use swap_label"):
        corrupted_pairs(made, "swap_item")


def test_only_tokens_with_positions_are_shuffled():
    with pytest.raises(MechinterpError, match="whose tokens carry no position; use one of swap_label"):
        corrupted_pairs(singh(), "shuffle_positions")


def test_the_fused_engine_and_autograd_agree_without_positions():
    config = mi.RunConfig().updated(SINGH | {"model.classifier_width": 8})
    assert FusedEngine.supports(config, "cpu")
    parameters, batch = random_parameters(config, dtype=torch.float32), mi.build_task(config).train_batch(0, 32)
    (loss, _, fused), (expected, _, autograd) = (
        engine([config], [parameters]).gradients(batch) for engine in (FusedEngine, AutogradEngine)
    )
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in autograd.items():
        torch.testing.assert_close(fused[name], gradient, rtol=1e-3, atol=1e-5)


def test_projected_rotary_networks_are_trained_on_them(tmp_path):
    config = mi.RunConfig().updated(SINGH | PROJECTED | {"training.steps": 20, "checkpoints.every": 10})
    run = mi.train(config, tmp_path / "run.h5", progress=False)
    table = mi.measure(run, ["icl_accuracy", "train_loss", "tila2", "ila1"], n_sequences=100)
    assert np.isfinite(table.to_numpy()).all()
    assert table["train_loss"].iloc[-1] < table["train_loss"].iloc[0]


def test_what_reads_positions_refuses_tokens_without():
    config = mi.RunConfig().updated(SINGH)
    with pytest.raises(MechinterpError, match="position_dim is 0: tokens are content without position; use patch"):
        subspaces(Network.initial(config), mi.build_task(config))
    with pytest.raises(MechinterpError, match="planted circuits read positions"):
        induction_head(config)
    with pytest.raises(ConfigError, match=r"set task\.position_dim to 5 or more"):
        config.updated({"model.kind": "induction_head"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.p_in_context": 0.0}, "raise p_in_context above 0"),
        ({"task.n_novel_classes": 1}, "a context of 2 different novel classes needs as many: raise n_novel_classes"),
        ({"task.label_assignment": "by_class"}, "n_novel_classes .9. is no multiple"),
        ({"task.position_dim": 4}, "or set position_dim = 0"),
    ],
)
def test_impossible_sequences_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        mi.RunConfig().updated(SINGH | changes)


def test_a_position_beyond_the_tables_is_refused():
    content, one = torch.zeros(1, 1, 3), torch.zeros(1, 1, dtype=torch.int64)
    assert TokenTable(2, content[0], content[:, :0], one, one + 1).dense().tolist() == [[[0, 1, 0, 0, 0]]]
    with pytest.raises(RuntimeError, match="out of bounds"):
        TokenTable(2, content[0], content[:, :0], one, one + 3).dense()
