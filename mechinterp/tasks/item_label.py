"""In-context classification of item–label sequences (Reddy 2023, section 2).

A token is one-hot position (P) ⊕ content (D). Items are noisy exemplars of Gaussian classes, labels are fixed
vectors, and the sequence x₁ ℓ₁ … x_N ℓ_N x_q sits in a window of the P positions whose start is uniform.

Three kinds of sequence make up training and the evaluation sets:

* **bursty**: N/B trained classes, B copies of each, the target's class among them;
* **in-context**: the same with novel classes, whose means are drawn anew for every batch;
* **i.i.d.**: N items and the target drawn independently from the trained classes' frequencies f(k) ∝ k^−α.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from mechinterp.config import ItemLabelConfig
from mechinterp.errors import unknown_name
from mechinterp.randomness import Stream, generator
from mechinterp.tasks.base import Batch, TokenTable

Integers = NDArray[np.int64]


class ItemLabelTask:
    """The task of an `ItemLabelConfig`: class means and label vectors are fixed by the seed.

    Evaluation sets, each with a random stream of its own:

    * ``icl``: in-context sequences, max(B, 1) copies of the target's class; only the context tells the label;
    * ``iwl``: i.i.d. sequences; the context does not help (it holds the target's class by accident with
      probability ≈ N/K), so the label must come from the weights;
    * ``swap``: bursty sequences in which every context label ℓ is replaced by (ℓ+1) mod L, and the swapped label
      counts as correct;
    * ``train``: sequences as in training.
    """

    evaluations: tuple[str, ...] = ("icl", "iwl", "swap", "train")

    def __init__(self, config: ItemLabelConfig, seed: int):
        self.config = config
        self.seed = seed
        self.d_model = config.d_model
        self.n_pos = config.n_pos
        self.n_labels = config.n_labels
        rng = generator(seed, Stream.TASK)
        scale = np.float32(config.content_dim**-0.5)
        self.class_means = scale * rng.standard_normal((config.n_classes, config.content_dim), dtype=np.float32)
        """μ_k, [K, D]: components N(0, 1/D)."""
        self.label_vectors = scale * rng.standard_normal((config.n_labels, config.content_dim), dtype=np.float32)
        """Label contents, [L, D]: components N(0, 1/D)."""
        frequencies = np.arange(1, config.n_classes + 1, dtype=np.float64) ** -config.zipf_exponent
        self._cumulative = np.cumsum(frequencies / frequencies.sum())
        positions = np.arange(config.n_pos)
        self._item_slots = torch.from_numpy((positions % 2 == 0) & (positions < config.n_pos - 1))
        self._label_slots = torch.from_numpy(positions % 2 == 1)
        self._target_slot = torch.from_numpy(positions == config.n_pos - 1)

    def train_batch(self, step: int, size: int) -> Batch:
        """The training batch of update `step`: p_C in-context, the rest bursty with probability p_B, else i.i.d."""
        return self._as_trained(generator(self.seed, Stream.TRAIN, step), size)

    def sample(self, evaluation: str, size: int, seed: int = 0) -> Batch:
        """`size` sequences of ``icl``, ``iwl``, ``swap`` or ``train``; a pure function of its arguments."""
        if evaluation not in self.evaluations:
            raise unknown_name("evaluation set", evaluation, self.evaluations)
        rng = generator(self.seed, Stream.EVALUATION + self.evaluations.index(evaluation), seed)
        if evaluation == "icl":
            return self._build(rng, *self._repeated(rng, size, np.ones(size, bool)))
        if evaluation == "iwl":
            return self._build(rng, *self._independent(rng, size))
        if evaluation == "swap":
            return self._build(rng, *self._repeated(rng, size, np.zeros(size, bool)), swapped=True)
        return self._as_trained(rng, size)

    def _as_trained(self, rng: np.random.Generator, size: int) -> Batch:
        novel = rng.random(size) < self.config.p_in_context
        bursty = novel | ((rng.random(size) < self.config.p_bursty) & (self.config.burstiness > 0))
        classes, target = self._repeated(rng, size, novel)
        if not bursty.all():
            iid_classes, iid_target = self._independent(rng, size)
            classes = np.where(bursty[:, None], classes, iid_classes)
            target = np.where(bursty, target, iid_target)
        return self._build(rng, classes, target)

    def _repeated(self, rng: np.random.Generator, size: int, novel: NDArray[np.bool_]) -> tuple[Integers, Integers]:
        """Classes [size, N] in which each drawn class stands B times, and the target's class [size], one of them.

        Novel classes are numbered from K on; K is a multiple of L, so their labels are k mod L too.
        """
        config = self.config
        n_drawn = config.n_pairs // config.copies
        K, L = config.n_classes, config.n_labels
        first, n_known = np.where(novel, K, 0)[:, None], np.where(novel, config.n_novel_classes, K)[:, None]
        if config.distinct_labels:
            labels = np.argsort(rng.random((size, L), dtype=np.float32), axis=1)[:, :n_drawn]
            member = (rng.random((size, n_drawn)) * (n_known // L)).astype(np.int64)
            drawn = first + member * L + labels
        else:
            drawn = first + (rng.random((size, n_drawn)) * n_known).astype(np.int64)
            drawn = np.where(novel[:, None], drawn, self._draw_classes(rng, (size, n_drawn)))
        shuffled = np.argsort(rng.random((size, config.n_pairs), dtype=np.float32), axis=1)
        classes = np.take_along_axis(np.repeat(drawn, config.copies, axis=1), shuffled, axis=1)
        return classes, classes[np.arange(size), rng.integers(config.n_pairs, size=size)]

    def _independent(self, rng: np.random.Generator, size: int) -> tuple[Integers, Integers]:
        """Classes [size, N] and target [size], all i.i.d. from f."""
        classes = self._draw_classes(rng, (size, self.config.n_pairs + 1))
        return classes[:, :-1], classes[:, -1]

    def _draw_classes(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Integers:
        """Trained classes, i.i.d. with frequencies f(k) ∝ k^−α."""
        drawn = np.searchsorted(self._cumulative, rng.random(shape), side="right")
        return np.minimum(drawn, self.config.n_classes - 1).astype(np.int64)

    def _build(self, rng: np.random.Generator, classes: Integers, target: Integers, swapped: bool = False) -> Batch:
        """Token vectors, labels and roles of sequences given by the classes of their items and target."""
        config, (size, N) = self.config, classes.shape
        P, D, T = config.position_dim, config.content_dim, config.n_pos
        scale = np.float32(D**-0.5)
        item_classes = np.concatenate([classes, target[:, None]], axis=1)
        means = self.class_means
        if item_classes.max() >= config.n_classes:
            novel_means = scale * rng.standard_normal((config.n_novel_classes, D), dtype=np.float32)
            means = np.concatenate([means, novel_means])
        content = np.take(means, item_classes, axis=0)
        if config.epsilon:
            noise = rng.standard_normal((size, N + 1, D), dtype=np.float32)
            noise *= np.float32(config.epsilon) * scale
            content += noise
            content *= np.float32((1 + config.epsilon**2) ** -0.5)
        item_labels = (item_classes + swapped) % config.n_labels

        positions = rng.integers(P - T + 1, size=size)[:, None] + np.arange(T)
        inputs = np.zeros((size, T, P + D), dtype=np.float32)
        inputs.reshape(-1)[np.arange(size * T) * (P + D) + positions.ravel()] = 1.0
        inputs[:, 0::2, P:] = content
        inputs[:, 1::2, P:] = np.take(self.label_vectors, item_labels[:, :-1], axis=0)
        rows = np.empty((size, T), dtype=np.int64)
        rows[:, 0::2] = config.n_labels + np.arange(size * (N + 1)).reshape(size, N + 1)
        rows[:, 1::2] = item_labels[:, :-1]

        token_labels = np.full((size, T), -1, dtype=np.int64)
        token_labels[:, 1::2] = item_labels[:, :-1]
        matching = np.zeros((size, T), dtype=bool)
        matching[:, 1::2] = classes == target[:, None]
        correct_label = torch.from_numpy(matching)
        return Batch(
            inputs=torch.from_numpy(inputs),
            labels=torch.from_numpy(item_labels[:, -1].copy()),
            roles={
                "item": self._item_slots.expand(size, T),
                "label": self._label_slots.expand(size, T),
                "target": self._target_slot.expand(size, T),
                "correct_item": correct_label.roll(-1, dims=1),
                "correct_label": correct_label,
            },
            token_labels=torch.from_numpy(token_labels),
            table=TokenTable(
                rows=torch.from_numpy(np.concatenate([self.label_vectors, content.reshape(-1, D)])),
                content=torch.from_numpy(rows),
                positions=torch.from_numpy(positions),
            ),
        )
