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

    Raises for other tasks than the item–label task (build `Pairs` yourself), and where no context has two labels.
    """
    if not isinstance(task, ItemLabelTask):
        raise MechinterpError(
            f"task {type(task).__qualname__}: corruptions are known for the item–label task; build Pairs of your own"
        )
    corruption = member(Corruption, corruption)
    if n_pairs < 1:
        raise MechinterpError(f"n_pairs is {n_pairs}; at least one pair is needed")
    if corruption is Corruption.break_pairing and task.config.copies > 1:
        raise MechinterpError(
            f"break_pairing needs labels that stand once (burstiness is {task.config.burstiness}); use swap_label"
        )
    clean, rng = task.sample("icl", n_pairs, seed), generator(task.seed, Stream.CORRUPTION, seed)
    assert clean.table is not None
    content, positions = clean.table.content.numpy().copy(), clean.table.positions.numpy().copy()
    labels, answers = content[:, 1::2].copy(), clean.labels.numpy()
    rows = np.arange(n_pairs)
    other = labels != answers[:, None]
    if not other.any(axis=1).all():
        raise MechinterpError(
            "a context with one label only has no other to suggest; raise task.n_pairs or lower burstiness"
        )
    foil_pair = np.where(other, rng.random(labels.shape), -1.0).argmax(axis=1)
    foils = labels[rows, foil_pair]
    if corruption is Corruption.swap_label:
        is_foil = labels == foils[:, None]
        content[:, 1::2] = np.where(is_foil, answers[:, None], np.where(other, labels, foils[:, None]))
    elif corruption is Corruption.replace_target:
        content[:, -1] = content[rows, 2 * foil_pair]
    elif corruption is Corruption.break_pairing:
        # the shift that brings the foil's label to the correct item
        shift = (foil_pair - (~other).argmax(axis=1))[:, None]
        content[:, 1::2] = np.take_along_axis(labels, (np.arange(labels.shape[1]) + shift) % labels.shape[1], axis=1)
    else:
        order = np.argsort(rng.random(positions.shape), axis=1)
        positions = np.take_along_axis(positions, order, axis=1)

    token_labels = np.full(content.shape, -1, np.int64)
    token_labels[:, 1::2] = content[:, 1::2]
    table = replace(clean.table, content=torch.from_numpy(content), positions=torch.from_numpy(positions))
    corrupt = Batch(None, torch.from_numpy(foils), clean.roles, torch.from_numpy(token_labels), table)
    more = {f"other_{kind}": clean.roles[kind] & ~clean.roles[f"correct_{kind}"] for kind in ("item", "label")}
    return Pairs(clean, corrupt, Roles({**clean.roles, **more}))
