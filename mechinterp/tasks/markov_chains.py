"""Markov chains in context (Edelman et al. 2024): every sequence has another chain, which must be learned from it.

The rows of a transition matrix are Dirichlet(α, …, α), drawn anew for every sequence, and made doubly stochastic if
the config says so; the first token is from the chain's stationary distribution. The best prediction of the next token
counts what followed the present token before (`theory.markov_chains.bigram`): a statistical induction head does so by
attending to all these tokens.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from mechinterp.config import MarkovChainsConfig
from mechinterp.errors import MechinterpError
from mechinterp.randomness import Stream, generator
from mechinterp.tasks.base import Batch, evaluation_stream
from mechinterp.tasks.corruption import Corruption, exchanged
from mechinterp.tasks.registry import register_task
from mechinterp.torch_state import torch_defaults

_ROUNDS = 200
"""Draws, of as many sequences as pairs are asked for, after which no more are made."""
_IN_VAIN = 10
"""Draws without any pair after which no more are made."""


@register_task(MarkovChainsConfig)
class MarkovChainsTask:
    """The task of a `MarkovChainsConfig`. Every position has an answer, the next token.

    Roles: ``repeat``, the tokens that have occurred before; ``target``, the last token; ``correct_item``, the earlier
    occurrences of the target, and ``correct_label``, the tokens after them, of which the target itself is one if the
    token before it is the same. Evaluation sets, with separate random streams: ``icl``, sequences as in training;
    ``unigram``, i.i.d. tokens of a distribution that is Dirichlet(α, …, α), of which counting pairs tells nothing.
    """

    corruptions = (Corruption.swap_label, Corruption.replace_target, Corruption.swap_item)
    evaluations: tuple[str, ...] = ("icl", "unigram")

    def __init__(self, config: MarkovChainsConfig, seed: int):
        self.config, self.seed = config, seed
        self.d_model, self.d_vocab, self.n_pos, self.n_labels = 0, config.d_vocab, config.n_pos, config.n_labels

    @property
    def guessing_levels(self) -> dict[str, float]:
        """Accuracies of ways of guessing: any token."""
        return {f"guessing any token (1/k = {1 / self.d_vocab:.3f})": 1 / self.d_vocab}

    def train_batch(self, step: int, size: int) -> Batch:
        """The training batch of update `step`."""
        return self._batch(self._draw(generator(self.seed, Stream.TRAIN, step), size))

    @torch_defaults()
    def sample(self, evaluation: str, size: int, seed: int = 0) -> Batch:
        """`size` sequences of ``icl`` or ``unigram``; a pure function of its arguments."""
        rng = generator(self.seed, evaluation_stream(self.evaluations, evaluation, size, seed), seed)
        return self._batch(self._draw(rng, size, chains=evaluation == "icl"))

    def corrupted(self, corruption: Corruption, n_pairs: int, seed: int = 0) -> tuple[Batch, Batch]:
        """Sequences and their corrupt twins; a pure function of its arguments.

        The label of a sequence is here the token that has followed the target most often. Pairs in which it is not
        unique, or is the same in both sequences, are left out. swap_label: at the tokens after earlier occurrences of
        the target, the label and another token change places; with three tokens or more, neither is the target, which
        occurs where it did. replace_target: the last token becomes another one.
        swap_item: before the last token, that token and another one change places. MechinterpError if hardly any
        sequence will do.
        """
        rng, k, T = generator(self.seed, Stream.CORRUPTION, seed), self.d_vocab, self.n_pos
        kept: list[Tensor] = []
        for drawn in range(_ROUNDS):
            if drawn >= _IN_VAIN and not any(map(len, kept)):
                break
            tokens = self._draw(rng, n_pairs)
            twins, other, targets = tokens.copy(), rng.integers(1, k, (n_pairs, 1)), tokens[:, T - 1 : T]
            if corruption is Corruption.swap_label:
                followed, after = tokens[:, : T - 2] == targets, tokens[:, 1 : T - 1]
                swapped = exchanged(after, labels := self._labels(tokens)[0].numpy()[:, None], (labels + other) % k)
                twins[:, 1 : T - 1] = np.where(followed, swapped, after)
            elif corruption is Corruption.replace_target:
                twins[:, T - 1 : T] = (targets + other) % k
            else:
                twins[:, : T - 1] = exchanged(tokens[:, : T - 1], targets, (targets + other) % k)
            moved = torch.from_numpy((tokens == targets) != (twins == targets)).any(dim=1)
            alike = ~moved if corruption is Corruption.swap_label and k > 2 else torch.ones(n_pairs, dtype=torch.bool)
            (labels, definite), (wrong, also) = self._labels(tokens), self._labels(twins)
            kept.append(
                torch.from_numpy(np.stack([tokens, twins], axis=1))[alike & definite & also & (labels != wrong)]
            )
            if sum(map(len, kept)) >= n_pairs:
                clean, corrupt = torch.cat(kept)[:n_pairs].numpy().swapaxes(0, 1)
                return self._labelled(clean), self._labelled(corrupt)
        raise MechinterpError(
            f"{corruption.name}: hardly any sequence has one token that follows the target most often, and another one"
            " when corrupt; raise task.n_pos, or lower task.n_tokens or task.concentration"
        )

    def _labels(self, sequences: Int[np.ndarray, "batch seq"]) -> tuple[Tensor, Tensor]:
        """The token that has followed the target most often, and whether it is the only one."""
        tokens = torch.from_numpy(sequences[:, :-1])
        after = (tokens[:, :-1] == tokens[:, -1:])[..., None] * one_hot(tokens[:, 1:], self.d_vocab)
        (most, second), labels = after.sum(dim=1).topk(2, dim=1).values.unbind(dim=1), after.sum(dim=1).argmax(dim=1)
        return labels, most > second

    def _labelled(self, sequences: Int[np.ndarray, "batch seq"]) -> Batch:
        """The batch of sequences with `_labels`."""
        batch = self._batch(sequences)
        return Batch(batch.inputs, self._labels(sequences)[0], batch.roles, batch.token_labels)

    def _draw(self, rng: np.random.Generator, size: int, *, chains: bool = True) -> Int[np.ndarray, "batch seq"]:
        """Sequences of T + 1 tokens, the last of which is the answer of the one before."""
        k, T, rows = self.d_vocab, self.n_pos, np.arange(size)
        transitions = rng.dirichlet(np.full(k, self.config.concentration), (size, k if chains else 1))
        if chains and self.config.doubly_stochastic:
            transitions = doubly_stochastic(transitions)
        first = stationary(transitions) if chains else transitions[:, 0]
        cumulative, uniform = transitions.repeat(1 if chains else k, axis=1).cumsum(axis=2), rng.random((T + 1, size))
        tokens, thresholds = np.empty((size, T + 1), np.int64), first.cumsum(axis=1)
        for t in range(T + 1):
            tokens[:, t] = (thresholds[:, :-1] <= uniform[t, :, None]).sum(axis=1)
            thresholds = cumulative[rows, tokens[:, t]]
        return tokens

    def _batch(self, sequences: Int[np.ndarray, "batch seq"]) -> Batch:
        """The batch of sequences of T + 1 tokens."""
        string = torch.from_numpy(sequences)
        tokens, answers = string[:, :-1], string[:, 1:]
        target = (torch.arange(self.n_pos) == self.n_pos - 1).expand(tokens.shape)
        same = (tokens == tokens[:, -1:]) & ~target
        occurred = one_hot(tokens, self.d_vocab).cumsum(dim=1).take_along_dim(tokens[:, :, None], dim=2)[:, :, 0]
        roles = {"target": target, "repeat": occurred > 1, "correct_item": same, "correct_label": same.roll(1, dims=1)}
        return Batch(tokens, answers[:, -1], roles, tokens, answers=answers)


def doubly_stochastic(transitions: Float[np.ndarray, "batch k k"]) -> Float[np.ndarray, "batch k k"]:
    """Matrices d_i P_ij e_j whose rows sum to 1, and whose columns do to 3·10⁻³ or better (Sinkhorn & Knopp 1967)."""
    P = transitions + 1e-3
    for _ in range(100):
        P = P / P.sum(axis=1, keepdims=True)
        P = P / P.sum(axis=2, keepdims=True)
    return P


def stationary(transitions: Float[np.ndarray, "batch k k"]) -> Float[np.ndarray, "batch k"]:
    """The distributions π with π P = π, by state reduction (Grassmann, Taksar & Heyman 1985), which subtracts nothing
    and is therefore exact to rounding, also for chains that hardly ever change their state."""
    P, k = transitions.copy(), transitions.shape[1]
    for n in range(k - 1, 0, -1):
        P[:, :n, n] /= P[:, n, :n].sum(axis=1, keepdims=True)
        P[:, :n, :n] += P[:, :n, n, None] * P[:, n, None, :n]
    pi = np.ones(transitions.shape[:2])
    for n in range(1, k):
        pi[:, n] = (pi[:, :n] * P[:, :n, n]).sum(axis=1)
    return pi / pi.sum(axis=1, keepdims=True)
