"""Pairs of clean and corrupt sequences that differ in one respect, for patching."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp.errors import MechinterpError, NamedEnum, member, require_integer
from mechinterp.tasks.base import Batch, Roles, Task, require_task
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
    own = "the corruption of a task of one's own, which it describes itself"


@runtime_checkable
class Corruptible(Protocol):
    """A task that can corrupt its sequences."""

    corruptions: tuple[Corruption | str, ...]
    """The corruptions that apply to its sequences, or their names; the first is used where none is asked for."""

    def corrupted(self, corruption: Corruption, n_pairs: int, seed: int) -> tuple[Batch, Batch]:
        """`n_pairs` clean sequences and their corrupt twins, a pure function of the arguments.

        The labels of the clean ones are the answers, those of the twins what the corruption suggests: always another
        label. The twins have the same tokens at the same positions, but for the corruption.
        """
        ...


@dataclass(frozen=True)
class Pairs:
    """Clean sequences and their corrupt twins, token by token."""

    clean: Batch
    """As the task draws them; `clean.labels` are the answers."""
    corrupt: Batch
    """The same sequences with the corruption; `corrupt.labels` are the wrong labels."""
    roles: Roles
    """The clean batch's roles, with ``target``, the last token, and ``other_item`` and ``other_label``, the pairs that
    are not the target's, or, where every token is an item and a label, ``other``."""

    @property
    def answers(self) -> Int[Tensor, "batch"]:
        """Labels that are correct in the clean sequences."""
        return self.clean.labels

    @property
    def wrong_labels(self) -> Int[Tensor, "batch"]:
        """Labels that the corrupt sequences suggest; always different from the answers."""
        return self.corrupt.labels

    def __repr__(self) -> str:
        size = f"{len(self.clean):,} clean and corrupt, of {self.clean.n_pos} tokens"
        return f"<Pairs: {size}; roles: {', '.join(self.roles)}>"

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

    MechinterpError for a task that does not say how it is corrupted, for a corruption that it does not have, for pairs
    that do not fit, and where no context has two labels.
    """
    require_task(task)
    name, known = type(task).__qualname__, corruptions_of(task)
    corruption = member(Corruption, corruption)
    require_integer("n_pairs", n_pairs)
    require_integer("seed", seed, 0)
    if not known or not isinstance(task, Corruptible):
        missing = [each for each in ("corruptions", "corrupted") if not getattr(task, each, None)]
        raise MechinterpError(
            f"task {name} does not say how its sequences are corrupted; give it {_MISSING[missing[0]]}, or build Pairs"
            " of your own (docs/guides/own-task.md)"
        )
    if corruption not in known:
        parts = getattr(task, "token_parts", ["position"])
        no_position = corruption is Corruption.shuffle_positions and "position" not in parts
        why = ", whose tokens carry no position" if no_position else ""
        names = ", ".join(applicable.name for applicable in known)
        raise MechinterpError(f"{corruption.name} does not apply to {name}{why}; use one of {names}")
    source = f"{name}.corrupted({corruption.name})"
    try:
        pair: Any = task.corrupted(corruption, n_pairs, seed)
    except MechinterpError:
        raise
    except Exception as error:  # the user's code raises errors of its own
        raise MechinterpError(f"{source}: raises {type(error).__name__}: {str(error)[:200]}") from error
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise MechinterpError(f"{source}: returns a {type(pair).__name__}; expected clean and corrupt sequences")
    clean, corrupt = pair
    _require_pairs(source, clean, corrupt, n_pairs)
    last = {}
    if "target" not in clean.roles:
        last["target"] = (torch.arange(clean.n_pos) == clean.n_pos - 1).expand(len(clean), -1)
    others = {
        f"other_{part}": clean.roles[part] & ~clean.roles[f"correct_{part}"]
        for part in ("item", "label")
        if {part, f"correct_{part}"} <= clean.roles.keys()
    }
    if not others and "correct_item" in clean.roles:
        others["other"] = ~(clean.roles["correct_item"] | clean.roles["correct_label"] | clean.roles["target"])
    return Pairs(clean, corrupt, Roles({**clean.roles, **others, **last}))


_MISSING = {
    "corruptions": "corruptions, a tuple of names of tasks.corruption.Corruption (for one of your own: ('own',))",
    "corrupted": "a method corrupted(corruption, n_pairs, seed) that returns clean sequences and their corrupt twins",
}


def corruptions_of(task: Task) -> tuple[Corruption, ...]:
    """The corruptions that a task declares; none if it declares none. A misspelt one raises."""
    declared = getattr(task, "corruptions", ())
    return tuple(member(Corruption, each) for each in ([declared] if isinstance(declared, str) else declared))


def _require_pairs(source: str, clean: Any, corrupt: Any, n_pairs: int) -> None:
    """Raise for sequences that are no pairs."""
    for which, batch in (("clean", clean), ("corrupt", corrupt)):
        if not isinstance(batch, Batch):
            raise MechinterpError(f"{source}: the {which} sequences are a {type(batch).__name__}; expected a Batch")
        if len(batch) != n_pairs:
            raise MechinterpError(f"{source}: {len(batch)} {which} sequences; expected n_pairs = {n_pairs}")
    if clean.inputs.shape != corrupt.inputs.shape:
        shapes = " and ".join(str(tuple(batch.inputs.shape)) for batch in (clean, corrupt))
        raise MechinterpError(f"{source}: clean and corrupt inputs have shapes {shapes}; expected the same")
    if same := int((clean.labels == corrupt.labels).sum()):
        raise MechinterpError(
            f"{source}: {same} of {n_pairs} corrupt sequences have the label of their clean twin; a corruption must"
            " suggest another one, over which the answer leads"
        )


def composition_corruption(task: Task) -> Corruption:
    """The corruption that changes which item a label follows: of tokens whose place is all that tells it, swap_item;
    of those that carry their position, shuffle_positions, by which labels keep their place in the sequence."""
    known = corruptions_of(task)
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


def require_pairs(pairs: object) -> None:
    """MechinterpError for what are no pairs, such as the task that makes them."""
    if not isinstance(pairs, Pairs):
        raise MechinterpError(f"pairs is a {type(pairs).__name__}; expected Pairs, as mi.corrupted_pairs(task) gives")
