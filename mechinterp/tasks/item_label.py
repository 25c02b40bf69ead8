"""In-context classification of item–label sequences (Reddy 2023, section 2).

A token is one-hot position (P) ⊕ content (D), or with P = 0 its content alone. Items are noisy exemplars of Gaussian
classes, labels are fixed vectors, and the sequence x₁ ℓ₁ … x_N ℓ_N x_q sits in a window of the P positions whose start
is uniform.

Training and evaluation sets are made of three types of sequence:

* **bursty**: N/B trained classes, B copies of each, the target's class among them;
* **in-context**: as bursty, with novel classes, whose means are drawn for every batch (or, for training, once);
* **i.i.d.**: N items and the target drawn independently from the trained classes' frequencies f(k) ∝ k^−α.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from mechinterp.compilation import compiler
from mechinterp.config import ItemLabelConfig
from mechinterp.errors import MechinterpError
from mechinterp.randomness import Stream, draw_normal, draw_uniform, generator, stream_key
from mechinterp.tasks.base import Batch, TokenTable, evaluation_stream
from mechinterp.tasks.corruption import Corruption, moved_on, wrong_label_pairs
from mechinterp.tasks.registry import register_task
from mechinterp.torch_state import torch_defaults

_entry = compiler(cache=True, error_model="numpy", no_cfunc_wrapper=True)
_compiled = compiler(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


@register_task(ItemLabelConfig)
class ItemLabelTask:
    """The task of an `ItemLabelConfig`: class means and label vectors are fixed by the seed.

    Evaluation sets, with separate random streams:

    * ``icl``: in-context sequences, max(B, 1) copies of the target's class; only the context tells the label;
    * ``iwl``: i.i.d. sequences; the context does not help (it holds the target's class by accident with
      probability ≈ N/K), so the label must come from the weights;
    * ``swap``: bursty sequences in which every context label ℓ is replaced by (ℓ+1) mod L, and the swapped label
      counts as correct;
    * ``train``: sequences as in training.
    """

    evaluations: tuple[str, ...] = ("icl", "iwl", "swap", "train")

    def __init__(self, config: ItemLabelConfig, seed: int):
        self.config, self.seed = config, seed
        self.d_model, self.n_pos, self.n_labels = config.d_model, config.n_pos, config.n_labels
        P = config.position_dim
        self.corruptions = (
            *(Corruption.swap_label, Corruption.replace_target, Corruption.break_pairing),
            Corruption.shuffle_positions if P else Corruption.swap_item,
        )
        self.token_parts = {"position": slice(0, P)} if P else {}
        self.token_parts["content"] = slice(P, config.d_model)
        rng = generator(seed, Stream.TASK)
        scale = np.float32(config.content_dim**-0.5)
        self.class_means = scale * rng.standard_normal((config.n_classes, config.content_dim), dtype=np.float32)
        """μ_k, [K, D]: components N(0, 1/D)."""
        self.label_vectors = scale * rng.standard_normal((config.n_labels, config.content_dim), dtype=np.float32)
        """Label contents, [L, D]: components N(0, 1/D)."""
        self._fixed_novel_means: np.ndarray | None = None
        if config.novel_classes == "fixed":
            novel = generator(seed, Stream.NOVEL).standard_normal((config.n_novel_classes, config.content_dim))
            self._fixed_novel_means = (scale * novel).astype(np.float32)
        self._shared = torch.from_numpy(self.label_vectors)
        self._numbers = _Numbers(
            config.n_classes,
            config.n_novel_classes,
            config.n_labels,
            config.copies,
            config.distinct_labels,
            config.position_dim - config.n_pos + 1 if P else 1,
            float(config.epsilon),
            config.label_assignment == "by_sequence",
        )
        frequencies = np.arange(1, config.n_classes + 1, dtype=np.float64) ** -config.zipf_exponent
        self._cumulative = np.cumsum(frequencies / frequencies.sum())
        positions = np.arange(config.n_pos)
        self._item_slots = torch.from_numpy((positions % 2 == 0) & (positions < config.n_pos - 1))
        self._label_slots = torch.from_numpy(positions % 2 == 1)
        self._target_slot = torch.from_numpy(positions == config.n_pos - 1)

    @property
    def guessing_levels(self) -> dict[str, float]:
        """Accuracies of ways of guessing: any label, and a label of the context."""
        in_context = self.config.n_pairs // self.config.copies
        return {
            f"guessing any label (1/L = {1 / self.n_labels:.3f})": 1 / self.n_labels,
            f"guessing among the {in_context} labels of the context ({1 / in_context:.3f})": 1 / in_context,
        }

    def train_batch(self, step: int, size: int) -> Batch:
        """The training batch of update `step`: p_C in-context, the rest bursty with probability p_B, else i.i.d."""
        return self._draw(Stream.TRAIN, [step], "train", size)[0]

    def train_batches(self, steps: Sequence[int], size: int) -> list[Batch]:
        """The batches of `train_batch` for several steps, in one compiled call without the interpreter's lock."""
        return self._draw(Stream.TRAIN, steps, "train", size)

    @torch_defaults()
    def sample(self, evaluation: str, size: int, seed: int = 0) -> Batch:
        """`size` sequences of ``icl``, ``iwl``, ``swap`` or ``train``; a pure function of its arguments."""
        stream = evaluation_stream(self.evaluations, evaluation, size, seed)
        return self._draw(stream, [seed], evaluation, size)[0]

    def corrupted(self, corruption: Corruption, n_pairs: int, seed: int = 0) -> tuple[Batch, Batch]:
        """In-context sequences and their corrupt twins; a pure function of its arguments."""
        config = self.config
        if corruption is Corruption.break_pairing and config.copies > 1:
            raise MechinterpError(
                f"break_pairing needs labels that stand once (burstiness is {config.burstiness}); use swap_label"
            )
        may_repeat = not config.distinct_labels and config.label_assignment != "by_sequence"
        if corruption is Corruption.swap_item and may_repeat:
            raise MechinterpError(
                "swap_item needs classes that do not repeat: set task.distinct_labels = true, or use swap_label"
            )
        rng, clean = generator(self.seed, Stream.CORRUPTION, seed), self.sample("icl", n_pairs, seed)
        assert clean.table is not None
        assert clean.token_classes is not None
        classes = clean.token_classes.clone()
        content, positions = clean.table.content.numpy().copy(), clean.table.positions.numpy().copy()
        labels, answers = content[:, 1::2].copy(), clean.labels.numpy()
        rows, wrong_pair = np.arange(n_pairs), wrong_label_pairs(labels, answers, rng)
        wrong_labels, other = labels[rows, wrong_pair], labels != answers[:, None]
        if corruption is Corruption.swap_label:
            is_wrong = labels == wrong_labels[:, None]
            content[:, 1::2] = np.where(is_wrong, answers[:, None], np.where(other, labels, wrong_labels[:, None]))
        elif corruption is Corruption.replace_target:
            content[:, -1], classes[:, -1] = content[rows, 2 * wrong_pair], classes[rows, 2 * wrong_pair]
        elif corruption is Corruption.break_pairing:
            content[:, 1::2] = moved_on(labels, wrong_pair - (~other).argmax(axis=1))
        elif corruption is Corruption.shuffle_positions:
            order = np.argsort(rng.random(positions.shape), axis=1)
            positions = np.take_along_axis(positions, order, axis=1)
        else:
            items = classes[:, :-1:2].numpy()
            places = [items == classes[:, -1:].numpy(), items == items[rows, wrong_pair][:, None]]
            one, other_one = (2 * mask.argsort(axis=1, kind="stable")[:, -self.config.copies :] for mask in places)
            for array in (content, classes.numpy()):
                array[rows[:, None], one], array[rows[:, None], other_one] = (
                    array[rows[:, None], other_one],
                    array[rows[:, None], one],
                )
        token_labels = np.where(content < self.n_labels, content, -1)
        table = replace(clean.table, content=torch.from_numpy(content), positions=torch.from_numpy(positions))
        suggested = torch.from_numpy(wrong_labels)
        return clean, Batch(None, suggested, clean.roles, torch.from_numpy(token_labels), table, classes)

    def _draw(self, stream: int, steps: Sequence[int], evaluation: str, size: int) -> list[Batch]:
        """Tokens, labels and roles of new sequences, a batch for each step of the stream."""
        config = self.config
        N, T, D, P = config.n_pairs, config.n_pos, config.content_dim, config.position_dim
        p_novel, p_repeated = {
            "icl": (1.0, 1.0),
            "iwl": (0.0, 0.0),
            "swap": (0.0, 1.0),
            "train": (config.p_in_context, config.p_bursty if config.burstiness else 0.0),
        }[evaluation]
        n, n_novel = len(steps), config.n_novel_classes if p_novel else 0
        items, novel_means = np.empty((n, size, N + 1, D), np.float32), np.empty((n_novel, D), np.float32)
        fixed = evaluation == "train" and self._fixed_novel_means is not None
        if fixed:
            novel_means = self._fixed_novel_means
        labels, tokens = np.empty((n, size), np.int64), np.empty((n, 4, size, T), np.int64)
        correct = np.zeros((n, 2, size, T), np.bool_)
        _draw_batches(
            (np.uint64(self.seed), np.uint64(stream), np.array(steps, np.uint64)),
            self._numbers,
            self._cumulative,
            (p_novel, p_repeated, int(evaluation == "swap"), not fixed),
            (self.class_means, novel_means),
            (items, labels, tokens, correct),
        )
        slots = {"item": self._item_slots, "label": self._label_slots, "target": self._target_slot}
        fixed_roles = {role: mask.expand(size, T) for role, mask in slots.items()}
        batches = []
        for i in range(n):
            content, positions, token_labels, token_classes = torch.from_numpy(tokens[i]).unbind()
            correct_item, correct_label = torch.from_numpy(correct[i]).unbind()
            roles = fixed_roles | {"correct_item": correct_item, "correct_label": correct_label}
            table = TokenTable(P, self._shared, torch.from_numpy(items[i]), content, positions)
            batches.append(Batch(None, torch.from_numpy(labels[i]), roles, token_labels, table, token_classes))
        return batches


# Compiled, because drawing takes most of the sampler's time, and compiled code does not hold the interpreter's lock.


class _Numbers(NamedTuple):
    """The fields of an `ItemLabelConfig` that compiled code reads."""

    n_classes: int
    n_novel_classes: int
    n_labels: int
    copies: int
    distinct_labels: bool
    n_windows: int
    epsilon: float
    labels_by_sequence: bool


@_entry
def _draw_batches(streams, numbers, cumulative, mixture, means, result):
    """Fills the arrays of `result` with batches, every one from the random numbers of its step."""
    (seed, stream, steps), (p_novel, p_repeated, shift, fresh) = streams, mixture
    items, labels, tokens, correct = result
    size, N = items.shape[1], items.shape[2] - 1
    uniform, classes, starts = np.empty((size, 3 * N + 3)), np.empty((size, N + 1), np.int64), np.empty(size, np.int64)
    class_labels = np.empty((size, N + 1), np.int64)
    for n in range(steps.shape[0]):
        key = stream_key(seed, stream, steps[n])
        draw_uniform(key, 0, uniform.reshape(uniform.size))
        _draw_classes(uniform, numbers, cumulative, p_novel, p_repeated, classes, class_labels, starts)
        if fresh:
            draw_normal(key, 1 << 32, means[1].shape[1] ** -0.5, means[1].reshape(means[1].size))
        _draw_exemplars(key, means[0], means[1], classes, numbers.epsilon, items[n])
        _lay_out(numbers.n_labels, shift, classes, class_labels, starts, labels[n], tokens[n], correct[n])


@_compiled
def _draw_classes(uniform, numbers, cumulative, p_novel, p_repeated, classes, class_labels, starts):
    """Classes, and labels, of the items and of the target (last column) of every sequence, and where its window starts.

    With probability p_novel the classes are novel ones, which are numbered from K on; K is a multiple of L, so their
    labels are k mod L too; or, by sequence, they are drawn, of classes that are all different. Novel classes, and
    trained ones with probability p_repeated, occur B times, and the target's is one of them. Otherwise all N + 1
    classes are i.i.d. from f. Every sequence has a row of uniform numbers.
    """
    K, n_novel, L, B, distinct, n_windows, _, by_sequence = numbers
    N, labels, order, n_classes = classes.shape[1] - 1, np.arange(L), np.arange(n_novel), K + n_novel
    for b in range(classes.shape[0]):
        row, u = classes[b], uniform[b]
        of_class, of_label, of_order = u[3 : N + 4], u[N + 4 : 2 * N + 4], u[2 * N + 4 :]
        novel = u[0] < p_novel
        if novel or u[1] < p_repeated:
            first, n_known = (K, n_novel) if novel else (0, K)
            for i in range(N // B):
                if distinct:  # the next entry of a random permutation of the labels
                    other = i + int(of_label[i] * (L - i))
                    labels[i], labels[other] = labels[other], labels[i]
                if novel and by_sequence:  # the next entry of a random permutation of the classes, and of labels
                    other = i + int(of_class[i] * (n_novel - i))
                    order[i], order[other] = order[other], order[i]
                    drawn = K + order[i] + n_classes * (labels[i] if distinct else int(of_label[i] * L))
                elif distinct:
                    drawn = first + int(of_class[i] * (n_known // L)) * L + labels[i]
                elif novel:
                    drawn = first + int(of_class[i] * n_novel)
                else:
                    drawn = _class_at(cumulative, of_class[i])
                for copy in range(i * B, (i + 1) * B):
                    row[copy] = drawn
            for i in range(N - 1):
                other = i + int(of_order[i] * (N - i))
                row[i], row[other] = row[other], row[i]
            row[N] = row[int(of_class[N] * N)]
        else:
            for i in range(N + 1):
                row[i] = _class_at(cumulative, of_class[i])
        for i in range(N + 1):
            class_labels[b, i] = row[i] // n_classes if novel and by_sequence else row[i] % L
            row[i] %= n_classes
        starts[b] = int(u[2] * n_windows)


@_compiled
def _class_at(cumulative, u):
    """The first class whose cumulative frequency is above u in [0, 1); rounding may leave the last one's below 1."""
    first, last = 0, cumulative.shape[0] - 1
    while first < last:
        middle = (first + last) // 2
        if u < cumulative[middle]:
            last = middle
        else:
            first = middle + 1
    return first


@_compiled
def _lay_out(n_labels, shift, classes, class_labels, starts, labels, tokens, correct):
    """Lays out the tokens x₁ ℓ₁ … x_N ℓ_N x_q of classes, whose labels are moved on by `shift` mod L.

    `tokens` is filled with the index of every token's content in the `TokenTable`, its position, and the label and the
    class it shows, or −1; `correct`, all false, with whether it is an item of the target's class, or such an item's
    label.
    """
    content, positions, token_labels, token_classes = tokens
    size, N = classes.shape[0], classes.shape[1] - 1
    for b in range(size):
        target = classes[b, N]
        labels[b] = (class_labels[b, N] + shift) % n_labels
        for i in range(N + 1):
            content[b, 2 * i], token_labels[b, 2 * i], token_classes[b, 2 * i] = n_labels + i, -1, classes[b, i]
        for i in range(N):
            label = (class_labels[b, i] + shift) % n_labels
            content[b, 2 * i + 1], token_labels[b, 2 * i + 1], token_classes[b, 2 * i + 1] = label, label, -1
            correct[0, b, 2 * i] = correct[1, b, 2 * i + 1] = classes[b, i] == target
        for t in range(2 * N + 1):
            positions[b, t] = starts[b] + t


@_compiled
def _draw_exemplars(key, means, novel_means, classes, epsilon, exemplars):
    """Fills `exemplars` with (μ + ε η)/√(1 + ε²) for every item, η ~ N(0, 1/D)."""
    K, std = means.shape[0], means.shape[1] ** -0.5
    flat = exemplars.reshape(exemplars.size)
    if epsilon > 0:
        draw_normal(key, 2 << 32, epsilon * std, flat)
    else:
        for k in range(flat.size):
            flat[k] = 0
    scale = np.float32((1 + epsilon**2) ** -0.5)
    for b in range(classes.shape[0]):
        for i in range(classes.shape[1]):
            k = classes[b, i]
            mean, exemplar = means[k] if k < K else novel_means[k - K], exemplars[b, i]
            for first in range(0, mean.shape[0], 16):  # loops of 16 at most are compiled without a long remainder
                for x in range(first, min(first + 16, mean.shape[0])):
                    exemplar[x] = scale * (mean[x] + exemplar[x])
