"""Markov chains: the statistics of chains and sequences, roles, corrupt twins, and a run end to end."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest

import mechinterp as mi
from mechinterp.config import MarkovChainsConfig
from mechinterp.errors import MechinterpError, UnknownNameError
from mechinterp.tasks import MarkovChainsTask
from mechinterp.tasks.corruption import Corruption, corrupted_pairs
from mechinterp.tasks.markov_chains import doubly_stochastic, stationary
from mechinterp.theory.markov_chains import bigram_counts

K, T = 3, 40
SMALL = {
    "task.kind": "markov_chains",
    "task.n_pos": T,
    "model.n_layers": 2,
    "model.d_model": 16,
    "model.d_head": 8,
    "model.output_matrix": "trained",
    "model.input": "tokens",
    "model.output": "unembedding",
    "model.positional_embedding_type": "rotary",
    "training.optimizer": "adamw",
    "training.learning_rate": 0.01,
    "training.batch_size": 32,
    "training.loss_at": "all",
}


def task(**changes) -> MarkovChainsTask:
    return MarkovChainsTask(MarkovChainsConfig(**{"n_tokens": K, "n_pos": T, **changes}), seed=3)


def transitions_of(batch) -> np.ndarray:
    """How often j follows i, [batch, i, j]."""
    tokens, k = torch.cat([batch.inputs, batch.labels[:, None]], dim=1), int(batch.inputs.max()) + 1
    pairs = torch.nn.functional.one_hot(tokens[:, :-1] * k + tokens[:, 1:], k * k).sum(dim=1)
    return pairs.view(-1, k, k).numpy()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_rows_of_transition_matrices_are_dirichlet(alpha):
    """By long sequences, which show their matrix: entries are Beta(α, (k−1)α), of independent rows."""
    counts = transitions_of(task(concentration=alpha, n_pos=3000).sample("icl", 300)).astype(float)
    rows = counts / counts.sum(axis=2, keepdims=True)
    seen = np.where(counts.sum(axis=2) > 400, rows[:, :, 0], np.nan)
    assert kstest(seen[np.isfinite(seen)], beta(alpha, (K - 1) * alpha).cdf).pvalue > 1e-3
    both = np.isfinite(seen[:, :2]).all(axis=1)
    assert abs(np.corrcoef(seen[both, 0], seen[both, 1])[0, 1]) < 0.2


@pytest.mark.parametrize("k", [2, 3, 7])
def test_stationary_distributions_are_kept_by_a_step(k):
    P = np.random.default_rng(0).dirichlet(np.full(k, 0.3), (200, k))
    pi = stationary(P)
    assert np.einsum("bi,bij->bj", pi, P) == pytest.approx(pi, abs=1e-12)
    assert pi.sum(axis=1) == pytest.approx(1)
    slow = np.array([[[1 - 1e-18, 1e-18], [3e-18, 1 - 3e-18]]])  # whose rows are those of the identity, when rounded
    assert stationary(slow)[0] == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize(("k", "alpha"), [(2, 1.0), (3, 1.0), (3, 0.05)])
def test_of_doubly_stochastic_chains_all_tokens_are_equally_frequent(k, alpha):
    """Rows and columns sum to 1, pairs tell; entries are products of the given ones with a row's and a column's."""
    given = np.random.default_rng(0).dirichlet(np.full(k, alpha), (500, k))
    P = doubly_stochastic(given)
    assert P.sum(axis=2) == pytest.approx(1, abs=1e-12)
    assert P.sum(axis=1) == pytest.approx(1, abs=3e-3)
    ratio = np.log(P / (given + 1e-3))
    assert ratio - ratio[:, :1] - ratio[:, :, :1] + ratio[:, :1, :1] == pytest.approx(0, abs=1e-9)
    counts = transitions_of(task(n_tokens=k, n_pos=4000, doubly_stochastic=True).sample("icl", 50)).astype(float)
    assert counts.sum(axis=1).std(axis=1).max() / 4000 < 0.08 < (counts / counts.sum(axis=2, keepdims=True)).std()
    free = transitions_of(task(n_tokens=k, n_pos=4000).sample("icl", 50)).astype(float)
    assert free.sum(axis=1).std(axis=1).max() / 4000 > 0.08


def test_the_first_token_is_of_the_stationary_distribution():
    """Its share of the rest of the sequence is Σ π² on average; it is more of a token that follows a fixed one."""
    tokens = task(concentration=0.3, n_pos=400).sample("icl", 2000).inputs
    share = torch.nn.functional.one_hot(tokens[:, 50:], K).double().mean(dim=1)
    excess = share.gather(1, tokens[:, :1])[:, 0] - share.square().sum(dim=1)
    assert float(excess.mean()) == pytest.approx(0, abs=4 * float(excess.std()) / 2000**0.5)


def test_of_unigram_sequences_pairs_are_those_of_independent_tokens():
    counts = transitions_of(task(n_pos=4000).sample("unigram", 60))
    share = counts.sum(axis=1) / counts.sum(axis=(1, 2))[:, None]
    assert counts / counts.sum(axis=(1, 2))[:, None, None] == pytest.approx(
        share[:, :, None] * share[:, None, :], abs=0.03
    )
    assert kstest(share[:, 0], beta(1, 2).cdf).pvalue > 1e-3


def test_answers_are_the_next_tokens_and_roles_are_where_they_say():
    batch = task().sample("icl", 100)
    assert batch.answers is not None
    assert torch.equal(batch.answers[:, :-1], batch.inputs[:, 1:])
    assert torch.equal(batch.answers[:, -1], batch.labels)
    for row, tokens in enumerate(batch.inputs.tolist()):
        roles = {name: mask[row].nonzero()[:, 0].tolist() for name, mask in batch.roles.items()}
        earlier = [i for i in range(T - 1) if tokens[i] == tokens[-1]]
        assert roles == {
            "target": [T - 1],
            "repeat": [i for i in range(T) if tokens[i] in tokens[:i]],
            "correct_item": earlier,
            "correct_label": [i + 1 for i in earlier],
        }


def test_sequences_are_pure_functions_of_their_arguments():
    one, again = task(), task()
    for draw in (lambda t: t.train_batch(7, 9), lambda t: t.sample("icl", 9, 2), lambda t: t.sample("unigram", 9)):
        assert torch.equal(draw(one).inputs, draw(again).inputs)
    batches = [one.train_batch(0, 9), one.train_batch(1, 9), one.sample("icl", 9), one.sample("icl", 9, 1)]
    assert len({str(batch.inputs.tolist()) for batch in batches}) == 4
    assert isinstance(one, mi.Task)
    with pytest.raises(UnknownNameError, match="did you mean 'unigram'"):
        one.sample("unigrams", 5)


@pytest.mark.parametrize("corruption", MarkovChainsTask.corruptions)
@pytest.mark.parametrize("k", [2, 3, 6])
def test_the_labels_of_pairs_are_what_follows_the_target_most_often(corruption, k):
    made = task(n_tokens=k)
    pairs = corrupted_pairs(made, corruption, n_pairs=120, seed=1)
    for batch in (pairs.clean, pairs.corrupt):
        counts = bigram_counts(batch.inputs, k)[:, -1]
        most = counts.max(dim=1, keepdim=True).values
        assert torch.equal((counts == most).nonzero()[:, 1], batch.labels)  # one of every sequence
    assert len(pairs.answers) == 120
    assert (pairs.answers != pairs.wrong_labels).all()
    again = corrupted_pairs(made, corruption, n_pairs=120, seed=1)
    assert torch.equal(pairs.corrupt.inputs, again.corrupt.inputs)
    assert not torch.equal(pairs.corrupt.inputs, corrupted_pairs(made, corruption, n_pairs=120).corrupt.inputs)


def test_corruptions_change_what_they_say():
    pairs = {
        corruption: corrupted_pairs(task(), corruption, n_pairs=150) for corruption in MarkovChainsTask.corruptions
    }
    changed = {name: of.clean.inputs != of.corrupt.inputs for name, of in pairs.items()}
    replaced, swapped = (changed[name] for name in (Corruption.replace_target, Corruption.swap_label))
    target = pairs[Corruption.replace_target].roles["target"]
    assert torch.equal(replaced, target)
    at_labels = pairs[Corruption.swap_label].roles["correct_label"] & ~target
    assert not (swapped & ~at_labels).any()
    of_labels = pairs[Corruption.swap_label]
    occurs = [batch.inputs == batch.inputs[:, -1:] for batch in (of_labels.clean, of_labels.corrupt)]
    assert torch.equal(*occurs)  # one thing differs: what followed the target, not where it occurred
    swapped, clean = (pairs[Corruption.swap_item].corrupt.inputs, pairs[Corruption.swap_item].clean.inputs)
    assert torch.equal(swapped[:, -1], clean[:, -1])
    followed = (clean[:, :-2] == clean[:, -1:]).sum(dim=1)
    assert not torch.equal(followed, (swapped[:, :-2] == clean[:, -1:]).sum(dim=1))
    for one, two in zip(clean[:, :-1], swapped[:, :-1], strict=True):
        assert len({*zip(one.tolist(), two.tolist(), strict=True)}) == len({*one.tolist()})  # a renaming of tokens


def test_sequences_without_a_definite_answer_are_refused():
    with pytest.raises(MechinterpError, match=r"raise task\.n_pos"):
        corrupted_pairs(task(n_pos=3, n_tokens=256), Corruption.replace_target, n_pairs=5)


def test_a_network_is_trained_and_measured(tmp_path):
    config = mi.RunConfig().updated(SMALL | {"training.steps": 60, "checkpoints.every": 30})
    run = mi.train(config, tmp_path / "run.h5", progress=False)
    table = mi.measure(run, n_sequences=200)
    columns = ["kl_to_uniform", "kl_to_unigram", "kl_to_bigram", "prefix_matching_2", "tila2", "unigram_accuracy"]
    assert set(columns) < {*table}
    assert np.isfinite(table[columns].to_numpy()).all()
    assert table["kl_to_unigram"].iloc[-1] < 0.3 * table["kl_to_unigram"].iloc[0]  # the first strategy that is learned
    replaced = corrupted_pairs(run.task, "replace_target", n_pairs=40)
    patched = mi.patch(run.network(60), replaced, [mi.Site("hook_embed", "target")])
    assert patched["effect"].item() == pytest.approx(1, abs=1e-4)  # the target is all that differs
