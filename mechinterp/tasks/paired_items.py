"""In-context classification of item–label pairs (Nguyen & Reddy 2024, section 2).

A dataset has K pairs (x, ℓ) with x ~ N(0, 1/D)^D and ℓ = ±1 at random. A sequence has N tokens x ⊕ ℓ drawn from the
dataset, and a target, which is one of their items without its label. The network can memorise the K labels, or find the
target's copy in the context.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.config import PairedItemsConfig
from mechinterp.errors import MechinterpError
from mechinterp.randomness import Stream, draw_normal, draw_uniform, generator, stream_key
from mechinterp.tasks.base import Batch, TokenTable, evaluation_stream
from mechinterp.tasks.corruption import Corruption, moved_on, wrong_label_pairs
from mechinterp.tasks.registry import register_task
from mechinterp.torch_state import torch_defaults

_EPSILON = 1e-5
"""ε, which LayerNorm adds to the variance."""


@register_task(PairedItemsConfig)
class PairedItemsTask:
    """The task of a `PairedItemsConfig`: the seed fixes one dataset, or every sequence has a fresh one.

    Labels are 0 for ℓ = +1 and 1 for ℓ = −1. A token of the context shows an item and its label, so it has both
    roles; those with the target's item have the role copy too.
    Evaluation sets, with separate random streams:

    * ``icl``: N new pairs; only the context tells the label;
    * ``iwl``: items of the dataset, the target's not among the context's: the label must come from the weights (of a
      fixed dataset only);
    * ``swap``: as in training, with the labels of all pairs of the context flipped; the flipped one counts as correct;
    * ``train``: sequences as in training.
    """

    n_labels = 2
    corruptions = (Corruption.swap_label, Corruption.replace_target, Corruption.break_pairing)

    def __init__(self, config: PairedItemsConfig, seed: int):
        self.config, self.seed = config, seed
        self.token_parts: dict[str, slice] = {}  # LayerNorm mixes an item and its label
        self.d_model, self.n_pos = config.d_model, config.n_pos
        self.evaluations: tuple[str, ...] = ("icl", "iwl", "swap", "train")
        if config.dataset == "fresh":
            self.evaluations = ("icl", "swap", "train")
        K, D = config.n_items if config.dataset == "fixed" else 0, config.item_dim
        rng = generator(seed, Stream.TASK)
        self.items = np.float32(D**-0.5) * rng.standard_normal((K, D), dtype=np.float32)
        """x_k, [K, D]: components N(0, 1/D)."""
        drawn = rng.random(K)
        self.labels = (drawn < np.median(drawn) if config.equal_labels and K else drawn < 0.5).astype(np.int64)
        """Label of every item, [K]: 0 (ℓ = +1) or 1 (ℓ = −1)."""
        frequencies = np.arange(1, K + 1, dtype=np.float64) ** -config.zipf_exponent
        self._of_label = [np.flatnonzero(self.labels == label) for label in (0, 1)]
        if config.balanced and K and not all(len(items) for items in self._of_label):
            raise MechinterpError(f"all {K} items have the same label: balanced contexts need both; raise n_items")
        self._cumulative = _cumulative(frequencies)
        self._cumulative_of_label = [_cumulative(frequencies[items]) for items in self._of_label]
        self._shared = torch.cat([self.tokens(self.items, labels) for labels in (self.labels, 1 - self.labels, None)])
        self._context = torch.arange(self.n_pos) < config.n_pairs

    @property
    def guessing_levels(self) -> dict[str, float]:
        """Accuracies of ways of guessing: any label."""
        return {"guessing any label (1/2)": 0.5}

    def train_batch(self, step: int, size: int) -> Batch:
        """The training batch of update `step`."""
        return self._draw(Stream.TRAIN, step, "train", size)

    @torch_defaults()
    def sample(self, evaluation: str, size: int, seed: int = 0) -> Batch:
        """`size` sequences of an evaluation set; a pure function of its arguments."""
        return self._draw(evaluation_stream(self.evaluations, evaluation, size, seed), seed, evaluation, size)

    def corrupted(self, corruption: Corruption, n_pairs: int, seed: int = 0) -> tuple[Batch, Batch]:
        """In-context sequences with both labels and their corrupt twins; of two labels, the wrong one is the other."""
        rng = generator(self.seed, Stream.CORRUPTION, seed)
        drawn = self.sample("icl", 2 * n_pairs + 50, seed)
        assert drawn.token_labels is not None
        in_context = drawn.token_labels[:, :-1]  # a short context may have one label only: it is left out
        clean = drawn.take((in_context.amin(dim=1) != in_context.amax(dim=1)).nonzero()[:n_pairs, 0])
        assert clean.token_labels is not None
        context, target = clean.inputs[:, :-1], clean.inputs[:, -1:]
        labels, answers, rows = clean.token_labels[:, :-1].numpy(), clean.labels.numpy(), np.arange(n_pairs)
        wrong_pair, items = wrong_label_pairs(labels, answers, rng), self.items_of(context)
        if corruption is Corruption.replace_target:
            target, corrupt = self.tokens(items[rows, wrong_pair], None)[:, None], labels
        else:
            correct = clean.roles["copy"].numpy().argmax(axis=1)
            corrupt = 1 - labels if corruption is Corruption.swap_label else moved_on(labels, wrong_pair - correct)
            changed = torch.from_numpy(corrupt != labels)[..., None]
            context = torch.where(changed, self.tokens(items, corrupt), context)
        token_labels = torch.cat([torch.from_numpy(corrupt), clean.token_labels[:, -1:]], dim=1)
        inputs, wrong_labels = torch.cat([context, target], dim=1), torch.from_numpy(1 - answers)
        return clean, Batch(inputs, wrong_labels, clean.roles, token_labels)

    def _draw(self, stream: int, step: int, evaluation: str, size: int) -> Batch:
        N, fresh = self.config.n_pairs, evaluation == "icl" or self.config.dataset == "fresh"
        key = stream_key(self.seed, stream, step)
        uniform = np.empty((size, 3 * N + 2))
        draw_uniform(key, 0, uniform)
        if fresh:
            chosen = np.broadcast_to(np.arange(N), (size, N))
            labels = self._half(uniform[:, :N]) if self.config.balanced else (uniform[:, :N] < 0.5).astype(np.int64)
        else:
            chosen = self._chosen(uniform)
            labels = self.labels[chosen]
        flip, rows, place = evaluation == "swap", np.arange(size), (uniform[:, -1] * N).astype(np.int64)
        labels = labels ^ flip
        target, correct = chosen[rows, place], labels[rows, place]
        if evaluation == "iwl":
            target = self._absent(chosen, uniform[:, -2])
            correct = self.labels[target]
        if fresh:
            items = np.empty((size, N, self.config.item_dim), np.float32)
            draw_normal(key, 1 << 32, self.config.item_dim**-0.5, items)
            targets = self.tokens(items[rows, place], None)[:, None]
            contents = torch.cat([self.tokens(items, labels), targets], dim=1)
            content = np.concatenate([chosen, np.full((size, 1), N)], axis=1) + len(self._shared)
        else:
            K, contents = len(self.items), torch.zeros(size, 0, self.d_model)
            content = np.concatenate([chosen + K * flip, target[:, None] + 2 * K], axis=1)
        copies = torch.zeros(size, self.n_pos, dtype=torch.bool)
        copies[:, :N] = torch.from_numpy(chosen == target[:, None])
        token_labels = torch.full((size, self.n_pos), -1)
        token_labels[:, :N] = torch.from_numpy(labels)
        context = self._context.expand(size, -1)
        roles = {"item": context, "label": context, "target": ~context}
        return Batch(
            None,
            torch.from_numpy(correct),
            roles | {"copy": copies, "correct_item": copies, "correct_label": copies},
            token_labels,
            TokenTable(0, self._shared, contents, torch.from_numpy(content), torch.arange(self.n_pos).expand(size, -1)),
        )

    def _chosen(self, uniform: Float[np.ndarray, "batch numbers"]) -> Int[np.ndarray, "batch pair"]:
        """Items of the context: i.i.d. from their frequencies; in balanced contexts, from those of each label."""
        N, drawn = self.config.n_pairs, uniform[:, : self.config.n_pairs]
        if not self.config.balanced:
            return (_picked if self.config.zipf_exponent else _picked_equal)(self._cumulative, drawn)
        labels, chosen = self._half(uniform[:, N : 2 * N]), np.empty(drawn.shape, np.int64)
        for label in (0, 1):
            mask = labels == label
            chosen[mask] = self._of_label[label][_picked(self._cumulative_of_label[label], drawn[mask])]
        return chosen

    def _half(self, uniform: Float[np.ndarray, "batch pair"]) -> Int[np.ndarray, "batch pair"]:
        """N/2 labels 0 and N/2 labels 1, in random order."""
        return (uniform.argsort(axis=1).argsort(axis=1) % 2).astype(np.int64)

    def _absent(
        self, chosen: Int[np.ndarray, "batch pair"], uniform: Float[np.ndarray, "batch"]
    ) -> Int[np.ndarray, "batch"]:
        """For every sequence, an item that its context does not show, drawn by frequency."""
        frequencies, absent = np.diff(self._cumulative, prepend=0.0), np.empty(len(chosen), np.int64)
        for b, items in enumerate(chosen):
            remaining = frequencies.copy()
            remaining[items] = 0.0
            absent[b] = _picked(_cumulative(remaining), uniform[b : b + 1])[0]
        return absent

    def tokens(self, items: Float[np.ndarray, "*any item_dim"], labels: Int[np.ndarray, "*any"] | None) -> Tensor:
        """The tokens x ⊕ ℓ, normalised if the config says so; without labels, those of targets."""
        code, normalised = np.zeros((*items.shape[:-1], 2), np.float32), self.config.tokens != "plain"
        if labels is None:
            code[..., 1] = not normalised  # marks the target
        elif not normalised:
            code[..., 0] = 1 - 2 * labels
        else:
            code[...] = np.eye(2, dtype=np.float32)[labels]
        tokens = torch.from_numpy(np.concatenate([items, code], axis=-1))
        return torch.nn.functional.layer_norm(tokens, (self.d_model,), eps=_EPSILON) if normalised else tokens

    def items_of(self, tokens: Float[Tensor, "*any d_model"]) -> Float[np.ndarray, "*any item_dim"]:
        """The items of context tokens: the inverse of `tokens`, up to rounding."""
        items, labels = tokens[..., :-2], tokens[..., -2:]
        if self.config.tokens == "plain":
            return items.numpy()
        zero = labels.amin(dim=-1, keepdim=True)  # the two label entries were 0 and 1
        return ((items - zero) / (labels.amax(dim=-1, keepdim=True) - zero)).numpy()


def _cumulative(frequencies: Float[np.ndarray, "items"]) -> Float[np.ndarray, "items"]:
    return np.cumsum(frequencies / frequencies.sum()) if len(frequencies) else frequencies


def _picked(cumulative: Float[np.ndarray, "items"], uniform: Float[np.ndarray, "*any"]) -> Int[np.ndarray, "*any"]:
    """The first item whose cumulative frequency exceeds a uniform number."""
    return np.minimum(np.searchsorted(cumulative, uniform, side="right"), len(cumulative) - 1)


def _picked_equal(
    cumulative: Float[np.ndarray, "items"], uniform: Float[np.ndarray, "*any"]
) -> Int[np.ndarray, "*any"]:
    """The same where all frequencies are equal: K times the number, which rounding may put one item too far."""
    last = len(cumulative) - 1
    guess = np.minimum((uniform * (last + 1)).astype(np.int64), last)
    guess += (cumulative[guess] <= uniform) & (guess < last)
    return guess - ((cumulative[guess - 1] > uniform) & (guess > 0))
