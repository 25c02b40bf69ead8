"""In-context classification of item–label pairs (Nguyen & Reddy 2024, section 2).

A dataset holds K pairs (x, ℓ) with x ~ N(0, 1/D)^D and ℓ = ±1 at random. A sequence has N tokens x ⊕ ℓ drawn from it,
and a target, which is one of their items with its label left out. The network can memorise the K labels, or find the
target's copy in the context.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.config import PairedItemsConfig
from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.randomness import Stream, draw_normal, draw_uniform, generator, stream_key
from mechinterp.tasks.base import Batch, TokenTable

_EPSILON = 1e-5
"""What LayerNorm adds to the variance."""


class PairedItemsTask:
    """The task of a `PairedItemsConfig`: the dataset is fixed by the seed, or every sequence has one of its own.

    Labels are 0 for ℓ = +1 and 1 for ℓ = −1. A token of the context shows an item and its label, so it has both
    roles; those with the target's item have the role copy too.
    Evaluation sets, each with a random stream of its own:

    * ``icl``: N pairs that were never seen; only the context tells the label;
    * ``iwl``: items of the dataset, the target's not among the context's: the label must come from the weights (of a
      fixed dataset only);
    * ``swap``: as in training, with the labels of all pairs of the context flipped; the flipped one counts as correct;
    * ``train``: sequences as in training.
    """

    n_labels = 2

    def __init__(self, config: PairedItemsConfig, seed: int):
        self.config, self.seed = config, seed
        self.d_model, self.n_pos = config.d_model, config.n_pos
        self.evaluations: tuple[str, ...] = ("icl", "iwl", "swap", "train")
        if config.dataset == "fresh":
            self.evaluations = ("icl", "swap", "train")
        K, D = config.n_items if config.dataset == "fixed" else 0, config.item_dim
        rng = generator(seed, Stream.TASK)
        self.items = np.float32(D**-0.5) * rng.standard_normal((K, D), dtype=np.float32)
        """x_k, [K, D]: components N(0, 1/D)."""
        self.labels = (rng.random(K) < 0.5).astype(np.int64)
        """Of each item, 0 (ℓ = +1) or 1 (ℓ = −1)."""
        frequencies = np.arange(1, K + 1, dtype=np.float64) ** -config.zipf_exponent
        self._of_label = [np.flatnonzero(self.labels == label) for label in (0, 1)]
        if config.balanced and K and not all(len(each) for each in self._of_label):
            raise MechinterpError(f"all {K} items have the same label: balanced contexts need both; raise n_items")
        self._cumulative = _cumulative(frequencies)
        self._cumulative_of_label = [_cumulative(frequencies[each]) for each in self._of_label]
        self._shared = torch.cat([self.tokens(self.items, shown) for shown in (self.labels, 1 - self.labels, None)])
        self._context = torch.arange(self.n_pos) < config.n_pairs

    def train_batch(self, step: int, size: int) -> Batch:
        """The training batch of update `step`."""
        return self._draw(Stream.TRAIN, step, "train", size)

    def sample(self, evaluation: str, size: int, seed: int = 0) -> Batch:
        """`size` sequences of an evaluation set; a pure function of its arguments."""
        if evaluation not in self.evaluations:
            raise unknown_name("evaluation set", evaluation, self.evaluations)
        return self._draw(Stream.EVALUATION + self.evaluations.index(evaluation), seed, evaluation, size)

    def _draw(self, stream: int, step: int, evaluation: str, size: int) -> Batch:
        N, fresh = self.config.n_pairs, evaluation == "icl" or self.config.dataset == "fresh"
        key = stream_key(self.seed, stream, step)
        uniform = np.empty((size, 3 * N + 2))
        draw_uniform(key, 0, uniform)
        own = torch.zeros(size, 0, self.d_model)
        if fresh:
            chosen = np.broadcast_to(np.arange(N), (size, N))
            shown = self._half(uniform[:, :N]) if self.config.balanced else (uniform[:, :N] < 0.5).astype(np.int64)
        else:
            chosen = self._chosen(uniform)
            shown = self.labels[chosen]
        flip = evaluation == "swap"
        place = (uniform[:, -1] * N).astype(np.int64)
        rows = np.arange(size)
        target, correct = chosen[rows, place], shown[rows, place] ^ flip
        if evaluation == "iwl":
            target = self._absent(chosen, uniform[:, -2])
            correct = self.labels[target]
        shown = shown ^ flip
        if fresh:
            items = np.empty((size, N, self.config.item_dim), np.float32)
            draw_normal(key, 1 << 32, self.config.item_dim**-0.5, items)
            pairs = self.tokens(items, shown)
            own = torch.cat([pairs, self.tokens(items[rows, place], None)[:, None]], dim=1)
            content = np.concatenate([chosen, np.full((size, 1), N)], axis=1) + len(self._shared)
        else:
            K = len(self.items)
            content = np.concatenate([chosen + K * flip, target[:, None] + 2 * K], axis=1)
        copies = torch.zeros(size, self.n_pos, dtype=torch.bool)
        copies[:, :N] = torch.from_numpy(chosen == target[:, None])
        token_labels = torch.full((size, self.n_pos), -1)
        token_labels[:, :N] = torch.from_numpy(shown)
        context = self._context.expand(size, -1)
        roles = {"item": context, "label": context, "target": ~context}
        return Batch(
            None,
            torch.from_numpy(correct),
            roles | {"copy": copies, "correct_item": copies, "correct_label": copies},
            token_labels,
            TokenTable(0, self._shared, own, torch.from_numpy(content), torch.arange(self.n_pos).expand(size, -1)),
        )

    def _chosen(self, uniform: Float[np.ndarray, "batch numbers"]) -> Int[np.ndarray, "batch pair"]:
        """Items of the context: i.i.d. from their frequencies; in balanced contexts, from those of each label."""
        N, drawn = self.config.n_pairs, uniform[:, : self.config.n_pairs]
        if not self.config.balanced:
            return _picked(self._cumulative, drawn)
        labels, chosen = self._half(uniform[:, N : 2 * N]), np.empty(drawn.shape, np.int64)
        for label in (0, 1):
            there = labels == label
            chosen[there] = self._of_label[label][_picked(self._cumulative_of_label[label], drawn[there])]
        return chosen

    def _half(self, uniform: Float[np.ndarray, "batch pair"]) -> Int[np.ndarray, "batch pair"]:
        """N/2 labels of each kind, in random order."""
        return (uniform.argsort(axis=1).argsort(axis=1) % 2).astype(np.int64)

    def _absent(
        self, chosen: Int[np.ndarray, "batch pair"], uniform: Float[np.ndarray, "batch"]
    ) -> Int[np.ndarray, "batch"]:
        """An item that the context does not show, from the frequencies of those."""
        frequencies, found = np.diff(self._cumulative, prepend=0.0), np.empty(len(chosen), np.int64)
        for b, shown in enumerate(chosen):
            left = frequencies.copy()
            left[shown] = 0.0
            found[b] = _picked(_cumulative(left), uniform[b : b + 1])[0]
        return found

    def tokens(self, items: Float[np.ndarray, "*any item_dim"], labels: Int[np.ndarray, "*any"] | None) -> Tensor:
        """x ⊕ ℓ as the network reads it; without labels, the target's token."""
        code, plain = np.zeros((*items.shape[:-1], 2), np.float32), self.config.tokens == "plain"
        if labels is None:
            code[..., 1] = plain  # which it is a target by
        elif plain:
            code[..., 0] = 1 - 2 * labels
        else:
            code[...] = np.eye(2, dtype=np.float32)[labels]
        tokens = torch.from_numpy(np.concatenate([items, code], axis=-1))
        if plain:
            return tokens
        return torch.nn.functional.layer_norm(tokens, (self.d_model,), eps=_EPSILON)

    def items_of(self, tokens: Float[Tensor, "*any d_model"]) -> Float[np.ndarray, "*any item_dim"]:
        """The items that tokens of a context show: `tokens` undone, up to rounding."""
        items, labels = tokens[..., :-2], tokens[..., -2:]
        if self.config.tokens == "plain":
            return items.numpy()
        zero = labels.amin(dim=-1, keepdim=True)  # of the two entries, which were 0 and 1
        return ((items - zero) / (labels.amax(dim=-1, keepdim=True) - zero)).numpy()


def _cumulative(frequencies: Float[np.ndarray, "items"]) -> Float[np.ndarray, "items"]:
    return np.cumsum(frequencies / frequencies.sum()) if len(frequencies) else frequencies


def _picked(cumulative: Float[np.ndarray, "items"], uniform: Float[np.ndarray, "*any"]) -> Int[np.ndarray, "*any"]:
    return np.minimum(np.searchsorted(cumulative, uniform, side="right"), len(cumulative) - 1)
