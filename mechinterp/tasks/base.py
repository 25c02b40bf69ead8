"""The protocol of a task: vectors in, labels out, and a role for every position.

Any object with these attributes and methods is trained, measured and analysed like the built-in tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Never, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.errors import MechinterpError, require_integer, unknown_name
from mechinterp.randomness import Stream


@dataclass(frozen=True)
class TokenTable:
    """Tokens as a look-up: one-hot(positions[b, t]) ⊕ contents[content[b, t]]; contents are `shared`, then own[b].

    A task whose tokens have this form may give the table, which makes training faster and changes nothing else.
    """

    position_dim: int
    """P, the number of dimensions of the one-hot position, or 0; the content has the others."""
    shared: Float[Tensor, "shared content_dim"]
    """Contents that all sequences share."""
    own: Float[Tensor, "batch own content_dim"]
    """Contents of one sequence only; all finite, also those that no token carries."""
    content: Int[Tensor, "batch pos"]
    """Index of the content that a token carries; the shared ones come first."""
    positions: Int[Tensor, "batch pos"]
    """The position that a token carries; positions differ within a sequence."""

    def contents(self) -> Float[Tensor, "batch pos content_dim"]:
        """The contents of the tokens."""
        n_shared, (n_batch, n_own, _) = len(self.shared), self.own.shape
        if not n_own:
            return self.shared[self.content]
        offset = n_shared + n_own * torch.arange(n_batch)[:, None]
        contents = torch.cat([self.shared, self.own.flatten(0, 1)])
        return contents[torch.where(self.content < n_shared, self.content, self.content - n_shared + offset)]

    def dense(self) -> Float[Tensor, "batch pos d_model"]:
        """The tokens as vectors."""
        contents = self.contents()
        if not self.position_dim:
            return contents
        tokens = contents.new_zeros(*contents.shape[:2], self.position_dim + contents.shape[2])
        tokens[..., self.position_dim :] = contents
        tokens[..., : self.position_dim].scatter_(2, self.positions[..., None], 1)
        return tokens


class Roles(dict[str, Bool[Tensor, "batch pos"]]):
    """Positions by role; a misspelt role raises with the nearest one."""

    def __missing__(self, role: str) -> Never:
        raise unknown_name("role", role, self)

    def __repr__(self) -> str:
        return f"<Roles: {', '.join(f'{role} ({int(mask.sum()):,} tokens)' for role, mask in self.items())}>"


class Batch:
    """Sequences with their labels, the roles of their tokens, and the labels that tokens show.

    * ``inputs``: Float [batch, pos, d_model], vectors, or Int [batch, pos], tokens of a vocabulary.
    * ``labels``: Int [batch], the correct label of the last token, the target; 0 … n_labels−1.
    * ``answers``: Int [batch, pos], the correct label at every position, −1 where there is none; or None, if only the
      target has one.
    * ``roles``: Bool [batch, pos] by name: which positions have a role. Measures and patching address positions through
      roles. The built-in names: item, label, target, correct_item and correct_label (those of the target's class).
    * ``token_labels``: Int [batch, pos], the label that a token shows, −1 if it shows none; or None.
    * ``token_classes``: Int [batch, pos], the class of the item that a token shows, −1 if it shows none; or None where
      no two sequences share a class, or it is not known. Standard errors take sequences whose targets share a class as
      correlated, and all as independent where this is None.
    * ``table``: the tokens as a look-up, if they have that form; or None.
    """

    def __init__(
        self,
        inputs: Float[Tensor, "batch pos d_model"] | Int[Tensor, "batch pos"] | None,
        labels: Int[Tensor, "batch"],
        roles: Mapping[str, Bool[Tensor, "batch pos"]] | None = None,
        token_labels: Int[Tensor, "batch pos"] | None = None,
        table: TokenTable | None = None,
        token_classes: Int[Tensor, "batch pos"] | None = None,
        answers: Int[Tensor, "batch pos"] | None = None,
    ):
        """With a `table`, `inputs` may be None: they are computed from it when they are first read."""
        if inputs is None and table is None:
            raise TypeError("a batch needs inputs or a table")
        self.labels, self.roles, self.token_labels, self.table = labels, Roles(roles or {}), token_labels, table
        self.token_classes, self.answers = token_classes, answers
        self._inputs = inputs

    @cached_property
    def inputs(self) -> Float[Tensor, "batch pos d_model"] | Int[Tensor, "batch pos"]:
        """The sequences: vectors (float32), or tokens (int64)."""
        if self._inputs is not None:
            return self._inputs
        assert self.table is not None
        return self.table.dense()

    @property
    def n_pos(self) -> int:
        """Tokens in a sequence."""
        return self.inputs.shape[1] if self.table is None else self.table.content.shape[1]

    @property
    def has_separate_label_tokens(self) -> bool:
        """Whether no token shows an item with its label."""
        item, label = self.roles.get("item"), self.roles.get("label")
        return item is None or label is None or not bool((item & label).any())

    def take(self, rows: slice | Int[Tensor, "rows"]) -> "Batch":
        """A batch of some of the sequences, by index."""
        roles = {role: mask[rows] for role, mask in self.roles.items()}
        token_labels = None if self.token_labels is None else self.token_labels[rows]
        token_classes = None if self.token_classes is None else self.token_classes[rows]
        answers = None if self.answers is None else self.answers[rows]
        return Batch(
            self.inputs[rows], self.labels[rows], roles, token_labels, token_classes=token_classes, answers=answers
        )

    def answers_at(self, where: str) -> Int[Tensor, "batch pos"]:
        """The correct labels at the positions that are trained, −1 at others: at all that have one, or at those of
        them with the role `where`."""
        if self.answers is None:
            raise MechinterpError(
                f"training.loss_at = {where!r}: the task's batches have no answers but the target's; set it to 'target'"
            )
        return self.answers if where == "all" else self.answers.masked_fill(~self.roles[where], -1)

    def split(self, size: int) -> "list[Batch]":
        """The sequences in batches of `size`; the last may be smaller."""
        return [self.take(slice(start, start + size)) for start in range(0, len(self), size)]

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        if self.table is not None:  # reading the inputs would make them
            width = self.table.position_dim + self.table.shared.shape[-1]
        else:
            width = self.inputs.shape[2] if self.inputs.ndim == 3 else 0
        tokens = f"{self.n_pos} vectors of {width} dimensions" if width else f"{self.n_pos} tokens"
        number = "1 sequence" if len(self) == 1 else f"{len(self):,} sequences"
        return f"<Batch: {number} of {tokens}; roles: {', '.join(self.roles) or 'none'}>"


def evaluation_stream(evaluations: Sequence[str], evaluation: str, size: int, seed: int) -> int:
    """The random stream of an evaluation set; an unknown one, or a wrong size or seed, raises."""
    if evaluation not in evaluations:
        raise unknown_name("evaluation set", evaluation, evaluations)
    require_integer("size", size)
    require_integer("seed", seed, 0)
    return Stream.EVALUATION + evaluations.index(evaluation)


@runtime_checkable
class Task(Protocol):
    """The attributes and methods that training and measures need of a task.

    Both methods are pure functions of their arguments: the same call returns the same sequences.

    A task may also declare these, which some analyses need:

    * ``corruptions`` and ``corrupted``: corrupt twins of its sequences (`mechinterp.tasks.corruption.Corruptible`);
    * ``token_parts``: Mapping of a name to the slice of a token's dimensions that carries it, as ``position``, the
      one-hot position, and ``content``; analyses of weights split attention scores by them;
    * ``label_vectors``: Float [n_labels, content dimensions], the content of the token that shows a label;
    * ``guessing_levels``: Mapping of a way of guessing to its accuracy, which is named where a curve reaches it;
    * ``train_batches(steps, size)``: the training batches of several steps in one call, which may be faster.
    """

    d_model: int
    """Width of a vector; 0 of a task with tokens, which declares ``d_vocab``, the number of different ones."""
    n_pos: int
    """Tokens in a sequence; the last one is the target."""
    n_labels: int
    """Number of classes to choose from."""
    evaluations: tuple[str, ...]
    """Names of the evaluation sets. Attention measures are taken on the first."""

    def train_batch(self, step: int, size: int) -> Batch:
        """The training batch of update `step` (from 0)."""
        ...

    def sample(self, evaluation: str, size: int, seed: int = 0) -> Batch:
        """`size` sequences of an evaluation set; another seed gives other sequences of the same distribution."""
        ...


def require_task(task: object) -> None:
    """MechinterpError for what lacks an attribute or a method of a `Task`."""
    needed = ("d_model", "n_pos", "n_labels", "evaluations", "train_batch", "sample")
    if isinstance(task, type):
        raise MechinterpError(f"task is the class {task.__name__}; give one of it: {task.__name__}()")
    if missing := [name for name in needed if not hasattr(task, name)]:
        raise MechinterpError(
            f"task is a {type(task).__name__}, which has no {', '.join(missing)}; expected a task, as run.task"
        )
