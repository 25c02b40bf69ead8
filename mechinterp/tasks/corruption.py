"""Pairs of clean and corrupt sequences that differ in one respect, for patching."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp.errors import MechinterpError, NamedEnum, member, require_integer
from mechinterp.tasks.base import Batch, Roles, Task
from mechinterp.torch_state import torch_defaults


class Corruption(NamedEnum):
    """A change of a sequence that changes the answer which the context suggests."""

    swap_label = "the correct label and another label of the context change places; the other is then correct"
    replace_target = "the target becomes the exemplar of another item of the context; its label is then correct"
    break_pairing = "every label moves on by some pairs; the label that now follows the correct item is then correct"
    shuffle_positions = "tokens exchange their positions at random; no label is correct, the wrong one is another label"
    swap_item = (
        "the correct item and another one of the context change places; what follows the other one is then correct"
    )
    replace_operand = "the first number of a sum becomes another number; the sum with it is then correct"


@runtime_checkable
class Corruptible(Protocol):
    """A task that can corrupt its sequences."""

    corruptions: tuple[Corruption, ...]
    """The corruptions that apply to its sequences."""

    def corrupted(self, corruption: Corruption, n_pairs: int, seed: int) -> tuple[Batch, Batch]:
        """Clean sequences and their corrupt twins, whose labels are those that the corruption suggests."""
        ...


@dataclass(frozen=True)
class Pairs:
    """Clean sequences and their corrupt twins, token by token."""

    clean: Batch
    """As the task draws them; `clean.labels` are the answers."""
    corrupt: Batch
    """The same sequences with the corruption; `corrupt.labels` are the wrong labels."""
    roles: Roles
    """The clean batch's roles, with ``other_item`` and ``other_label``, the pairs that are not the target's, or, where
    every token is an item and a label, ``other``."""

    @property
    def answers(self) -> Int[Tensor, "batch"]:
        """Labels that are correct in the clean sequences."""
        return self.clean.labels

    @property
    def wrong_labels(self) -> Int[Tensor, "batch"]:
        """Labels that the corrupt sequences suggest; always different from the answers."""
        return self.corrupt.labels

    @property
    def target_classes(self) -> Int[Tensor, "batch 2"] | None:
        """Classes of the clean and the corrupt target; None where the batches carry no `token_classes`."""
        clean, corrupt = self.clean.token_classes, self.corrupt.token_classes
        if clean is None or corrupt is None:
            return None
        return torch.stack([clean[:, -1], corrupt[:, -1]], dim=1)


@torch_defaults()
def corrupted_pairs(
    task: Task, corruption: Corruption | str = Corruption.swap_label, *, n_pairs: int = 256, seed: int = 0
) -> Pairs:
    """In-context sequences and their corrupt twins; a pure function of its arguments.

    MechinterpError for tasks that declare no corruptions (build `Pairs` yourself) or not this one, and where no context
    has two labels.
    """
    name = type(task).__qualname__
    if not isinstance(task, Corruptible):
        raise MechinterpError(f"task {name}: corruptions are known for the built-in tasks; build Pairs of your own")
    corruption = member(Corruption, corruption)
    require_integer("n_pairs", n_pairs)
    require_integer("seed", seed, 0)
    if corruption not in task.corruptions:
        parts = getattr(task, "token_parts", ["position"])
        no_position = corruption is Corruption.shuffle_positions and "position" not in parts
        why = ", whose tokens carry no position" if no_position else ""
        known = ", ".join(applicable.name for applicable in task.corruptions)
        raise MechinterpError(f"{corruption.name} does not apply to {name}{why}; use one of {known}")
    clean, corrupt = task.corrupted(corruption, n_pairs, seed)
    others = {
        f"other_{part}": clean.roles[part] & ~clean.roles[f"correct_{part}"]
        for part in ("item", "label")
        if {part, f"correct_{part}"} <= clean.roles.keys()
    }
    if not others and "correct_item" in clean.roles:
        others["other"] = ~(clean.roles["correct_item"] | clean.roles["correct_label"] | clean.roles["target"])
    return Pairs(clean, corrupt, Roles({**clean.roles, **others}))


def composition_corruption(task: Task) -> Corruption:
    """The corruption that changes which item a label follows: of tokens whose place is all that tells it, swap_item;
    of those that carry their position, shuffle_positions, by which labels keep their place in the sequence."""
    known = getattr(task, "corruptions", ())
    return Corruption.swap_item if Corruption.swap_item in known else Corruption.shuffle_positions


def wrong_label_pairs(
    labels: Int[np.ndarray, "batch pair"], answers: Int[np.ndarray, "batch"], rng: np.random.Generator
) -> Int[np.ndarray, "batch"]:
    """For every context, a random pair whose label is not the correct one."""
    other = labels != answers[:, None]
    if not other.any(axis=1).all():
        raise MechinterpError(
            "a context with one label only has no other to suggest; raise task.n_pairs or lower burstiness"
        )
    return np.where(other, rng.random(labels.shape), -1.0).argmax(axis=1)


def moved_on(labels: Int[np.ndarray, "batch pair"], shift: Int[np.ndarray, "batch"]) -> Int[np.ndarray, "batch pair"]:
    """Every label moved by `shift` pairs: a pair takes the label of the pair that stands `shift` after it."""
    n = labels.shape[1]
    return np.take_along_axis(labels, (np.arange(n) + shift[:, None]) % n, axis=1)


def exchanged(
    tokens: Int[np.ndarray, "batch pos"], one: Int[np.ndarray, "batch 1"], other: Int[np.ndarray, "batch 1"]
) -> Int[np.ndarray, "batch pos"]:
    """Tokens of which two change places wherever they stand."""
    return np.where(tokens == one, other, np.where(tokens == other, one, tokens))
