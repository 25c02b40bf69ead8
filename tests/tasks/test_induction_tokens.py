"""Repeated tokens: statistics, roles, corruptions and their purity."""

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.config import InductionTokensConfig
from mechinterp.errors import ConfigError
from mechinterp.tasks import InductionTokensTask
from mechinterp.tasks.corruption import Corruption, corrupted_pairs

CONFIG = InductionTokensConfig(n_tokens=20, n_pos=17, min_period=4, max_period=8)


@pytest.fixture(scope="module")
def task() -> InductionTokensTask:
    return InductionTokensTask(CONFIG, seed=3)


def test_a_string_of_different_tokens_repeats_to_the_end(task):
    batch = task.train_batch(0, 4000)
    tokens = torch.cat([batch.inputs, batch.labels[:, None]], dim=1).numpy()
    periods = batch.roles["first"].sum(dim=1).numpy()
    assert np.bincount(periods, minlength=9)[4:] == pytest.approx(800, abs=5 * 800**0.5)
    for row, p in zip(tokens, periods, strict=True):
        assert len({*row[:p]}) == p
        assert (row[p:] == row[:-p]).all()
    assert np.bincount(tokens[:, 0], minlength=20) == pytest.approx(200, abs=5 * 200**0.5)
    assert torch.equal(batch.answers, torch.from_numpy(tokens[:, 1:]))


def test_roles_are_where_they_say(task):
    batch = task.sample("icl", 200)
    tokens, roles, places = batch.inputs, batch.roles, torch.arange(17)
    assert torch.equal(roles["first"], ~roles["repeat"])
    assert torch.equal(roles["target"], (places == 16).expand(200, -1))
    before = places < 16
    assert torch.equal(roles["correct_item"], (tokens == tokens[:, -1:]) & before)
    assert torch.equal(roles["correct_label"], (tokens == batch.labels[:, None]) & before & ~roles["target"])
    known = roles["repeat"]
    for row, i in known.nonzero()[:300].tolist():
        (earlier,) = (tokens[row, :i] == tokens[row, i]).nonzero()[-1].tolist()
        assert tokens[row, earlier + 1] == batch.answers[row, i]


def test_sequences_are_pure_functions_of_their_arguments(task):
    again = InductionTokensTask(CONFIG, seed=3)
    for draw in (lambda t: t.train_batch(7, 9), lambda t: t.sample("icl", 9, 2), lambda t: t.sample("unrepeated", 9)):
        assert torch.equal(draw(task).inputs, draw(again).inputs)
    batches = [task.train_batch(0, 9), task.train_batch(1, 9), task.sample("icl", 9), task.sample("icl", 9, 1)]
    assert len({str(batch.inputs.tolist()) for batch in batches}) == 4


def test_of_tokens_that_do_not_repeat_nothing_can_be_known(task):
    batch = task.sample("unrepeated", 4000)
    assert "correct_label" not in batch.roles
    successor = (batch.inputs[:, 1:] == batch.labels[:, None]) & (batch.inputs[:, :-1] == batch.inputs[:, -1:])
    assert float(successor.double().mean()) == pytest.approx(1 / 400, rel=0.2)


def next_by_induction(tokens: torch.Tensor) -> list[int | None]:
    """The token after the earlier occurrences of the last one, if they agree."""
    answers = []
    for row in tokens.tolist():
        after = {row[i + 1] for i in range(len(row) - 1) if row[i] == row[-1]}
        answers.append(after.pop() if len(after) == 1 else None)
    return answers


@pytest.mark.parametrize("corruption", [Corruption.swap_label, Corruption.replace_target, Corruption.swap_item])
def test_a_corrupt_sequence_suggests_the_wrong_label_and_a_clean_one_the_answer(task, corruption):
    pairs = corrupted_pairs(task, corruption, n_pairs=300)
    assert next_by_induction(pairs.clean.inputs) == pairs.answers.tolist()
    assert next_by_induction(pairs.corrupt.inputs) == pairs.wrong_labels.tolist()
    assert bool((pairs.answers != pairs.wrong_labels).all())
    changed, roles = pairs.clean.inputs != pairs.corrupt.inputs, pairs.roles
    assert torch.equal(changed[:, -1], torch.full((300,), corruption is Corruption.replace_target))
    assert bool((changed & roles["correct_label"]).any()) == (corruption is Corruption.swap_label)
    assert bool((changed & roles["correct_item"]).any()) == (corruption is Corruption.swap_item)
    columns = torch.stack([roles[name] for name in ("correct_item", "correct_label", "target", "other")])
    assert bool((columns.sum(dim=0) == 1).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_period": 9}, "min_period .9. exceeds max_period .8."),
        ({"n_tokens": 7}, "raise n_tokens"),
        ({"n_pos": 8}, "raise n_pos to at least 9"),
    ],
)
def test_impossible_sequences_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        mi.RunConfig.from_dict({"task": {**CONFIG.model_dump(), **changes}, "model": {"input": "tokens", "d_model": 8}})
