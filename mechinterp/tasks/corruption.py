"""Clean and corrupt versions of the same sequences, which differ in one thing: what patching compares."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp.errors import MechinterpError, NamedEnum, member
from mechinterp.randomness import Stream, generator
from mechinterp.tasks.base import Batch, Roles, Task
from mechinterp.tasks.item_label import ItemLabelTask
from mechinterp.tasks.paired_items import PairedItemsTask


class Corruption(NamedEnum):
    """What is changed in a sequence, and with it the answer that the context suggests."""

    swap_label = "the correct label and another label of the context change places; the other is then correct"
    replace_target = "the target becomes the exemplar of another item of the context; its label is then correct"
    break_pairing = "every label moves on by some pairs; the label that now follows the correct item is then correct"
    shuffle_positions = "tokens exchange their positions at random; nothing is correct, the foil is another label"


@dataclass(frozen=True)
class Pairs:
    """Clean sequences and their corrupt twins, token by token."""

    clean: Batch
    """As the task draws them; `clean.labels` are the answers."""
    corrupt: Batch
    """The same with the corruption; `corrupt.labels` are the foils."""
    roles: Roles
    """The clean batch's roles, with ``other_item`` and ``other_label``, the pairs that are not the target's."""

    @property
    def answers(self) -> Int[Tensor, "batch"]:
        """Labels that are correct in the clean sequences."""
        return self.clean.labels

    @property
    def foils(self) -> Int[Tensor, "batch"]:
        """Labels that the corrupt sequences suggest; always different from the answers."""
        return self.corrupt.labels


def corrupted_pairs(
    task: Task, corruption: Corruption | str = Corruption.swap_label, *, n_pairs: int = 256, seed: int = 0
) -> Pairs:
    """In-context sequences and their corrupt twins; a pure function of its arguments.

    Raises for tasks of the user's own (build `Pairs` yourself), where no context has two labels, and for corruptions
    that a task has not: paired items carry no positions.
    """
    if not isinstance(task, ItemLabelTask | PairedItemsTask):
        raise MechinterpError(
            f"task {type(task).__qualname__}: corruptions are known for the built-in tasks; build Pairs of your own"
        )
    corruption = member(Corruption, corruption)
    if n_pairs < 1:
        raise MechinterpError(f"n_pairs is {n_pairs}; at least one pair is needed")
    rng = generator(task.seed, Stream.CORRUPTION, seed)
    if isinstance(task, PairedItemsTask):
        clean, corrupt = _of_paired_items(task, corruption, n_pairs, seed, rng)
    else:
        clean, corrupt = _of_item_label(task, corruption, n_pairs, seed, rng)
    more = {f"other_{kind}": clean.roles[kind] & ~clean.roles[f"correct_{kind}"] for kind in ("item", "label")}
    return Pairs(clean, corrupt, Roles({**clean.roles, **more}))


def _of_item_label(
    task: ItemLabelTask, corruption: Corruption, n_pairs: int, seed: int, rng: np.random.Generator
) -> tuple[Batch, Batch]:
    if corruption is Corruption.break_pairing and task.config.copies > 1:
        raise MechinterpError(
            f"break_pairing needs labels that stand once (burstiness is {task.config.burstiness}); use swap_label"
        )
    clean = task.sample("icl", n_pairs, seed)
    assert clean.table is not None
    content, positions = clean.table.content.numpy().copy(), clean.table.positions.numpy().copy()
    labels, answers = content[:, 1::2].copy(), clean.labels.numpy()
    rows = np.arange(n_pairs)
    foil_pair = _foil_pairs(labels, answers, rng)
    foils, other = labels[rows, foil_pair], labels != answers[:, None]
    if corruption is Corruption.swap_label:
        is_foil = labels == foils[:, None]
        content[:, 1::2] = np.where(is_foil, answers[:, None], np.where(other, labels, foils[:, None]))
    elif corruption is Corruption.replace_target:
        content[:, -1] = content[rows, 2 * foil_pair]
    elif corruption is Corruption.break_pairing:
        content[:, 1::2] = _moved_on(labels, foil_pair - (~other).argmax(axis=1))
    else:
        order = np.argsort(rng.random(positions.shape), axis=1)
        positions = np.take_along_axis(positions, order, axis=1)

    token_labels = np.full(content.shape, -1, np.int64)
    token_labels[:, 1::2] = content[:, 1::2]
    table = replace(clean.table, content=torch.from_numpy(content), positions=torch.from_numpy(positions))
    return clean, Batch(None, torch.from_numpy(foils), clean.roles, torch.from_numpy(token_labels), table)


def _of_paired_items(
    task: PairedItemsTask, corruption: Corruption, n_pairs: int, seed: int, rng: np.random.Generator
) -> tuple[Batch, Batch]:
    """Tokens show an item and its label at once. Of two labels, that which is not correct is the foil."""
    if corruption is Corruption.shuffle_positions:
        raise MechinterpError(
            "shuffle_positions has no effect on paired items, whose tokens carry no position; use swap_label,"
            " replace_target or break_pairing"
        )
    clean = _with_both_labels(task.sample("icl", 2 * n_pairs + 50, seed), n_pairs)
    assert clean.token_labels is not None
    context, target = clean.inputs[:, :-1], clean.inputs[:, -1:]
    labels, answers, rows = clean.token_labels[:, :-1].numpy(), clean.labels.numpy(), np.arange(n_pairs)
    foil_pair, items = _foil_pairs(labels, answers, rng), task.items_of(context)
    if corruption is Corruption.replace_target:
        target, shown = task.tokens(items[rows, foil_pair], None)[:, None], labels
    else:
        correct = clean.roles["copy"].numpy().argmax(axis=1)
        shown = 1 - labels if corruption is Corruption.swap_label else _moved_on(labels, foil_pair - correct)
        changed = torch.from_numpy(shown != labels)[..., None]
        context = torch.where(changed, task.tokens(items, shown), context)
    token_labels = torch.cat([torch.from_numpy(shown), clean.token_labels[:, -1:]], dim=1)
    inputs, foils = torch.cat([context, target], dim=1), torch.from_numpy(1 - answers)
    return clean, Batch(inputs, foils, clean.roles, token_labels)


def _with_both_labels(batch: Batch, size: int) -> Batch:
    """The first sequences whose context shows both labels: a short one may show a single label."""
    assert batch.token_labels is not None
    shown = batch.token_labels[:, :-1]
    rows = (shown.amin(dim=1) != shown.amax(dim=1)).nonzero()[:size, 0]
    roles = {name: mask[rows] for name, mask in batch.roles.items()}
    return Batch(batch.inputs[rows], batch.labels[rows], roles, batch.token_labels[rows])


def _foil_pairs(
    labels: Int[np.ndarray, "batch pair"], answers: Int[np.ndarray, "batch"], rng: np.random.Generator
) -> Int[np.ndarray, "batch"]:
    """A pair of each context whose label is not the correct one, at random."""
    other = labels != answers[:, None]
    if not other.any(axis=1).all():
        raise MechinterpError(
            "a context with one label only has no other to suggest; raise task.n_pairs or lower burstiness"
        )
    return np.where(other, rng.random(labels.shape), -1.0).argmax(axis=1)


def _moved_on(labels: Int[np.ndarray, "batch pair"], shift: Int[np.ndarray, "batch"]) -> Int[np.ndarray, "batch pair"]:
    """Every label some pairs further, so that the one `shift` pairs after the correct item's comes to it."""
    n = labels.shape[1]
    return np.take_along_axis(labels, (np.arange(n) + shift[:, None]) % n, axis=1)
