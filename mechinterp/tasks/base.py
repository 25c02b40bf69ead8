"""The protocol of a task: vectors in, labels out, and a role for every position.

Any object with these attributes and methods trains, is measured and analysed like the built-in task.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Never, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mechinterp.errors import unknown_name


@dataclass(frozen=True)
class TokenTable:
    """Tokens as a look-up: one-hot(positions[b, t]) ⊕ contents[content[b, t]] of a sequence's contents.

    Those are the shared ones, then its own. A task whose tokens have this form may say so; training is then faster,
    and not otherwise different.
    """

    position_dim: int
    """P, how many dimensions the one-hot position takes, or 0; the content fills the others."""
    shared: Float[Tensor, "shared content_dim"]
    """Contents that every sequence may use."""
    own: Float[Tensor, "batch own content_dim"]
    """Contents of a sequence's own; all finite, also those that no token carries."""
    content: Int[Tensor, "batch pos"]
    """Which content a token carries; the shared ones are counted first."""
    positions: Int[Tensor, "batch pos"]
    """Which position a token carries; all different within a sequence."""

    def contents(self) -> Float[Tensor, "batch pos content_dim"]:
        """What every token carries beside its position."""
        n_shared, (n_batch, n_own, _) = len(self.shared), self.own.shape
        if not n_own:
            return self.shared[self.content]
        offset = n_shared + n_own * torch.arange(n_batch)[:, None]
        every = torch.cat([self.shared, self.own.flatten(0, 1)])
        return every[torch.where(self.content < n_shared, self.content, self.content - n_shared + offset)]

    def dense(self) -> Float[Tensor, "batch pos d_model"]:
        """The tokens as vectors."""
        contents = self.contents()
        if not self.position_dim:
            return contents
        return torch.cat([functional.one_hot(self.positions, self.position_dim).to(contents), contents], dim=-1)


class Roles(dict[str, Bool[Tensor, "batch pos"]]):
    """Positions by role; a misspelt role raises with the nearest one."""

    def __missing__(self, role: str) -> Never:
        raise unknown_name("role", role, self)


class Batch:
    """Sequences with what is known about them.

    * ``labels``: Int [batch], the correct label of the last token, the target; 0 … n_labels−1.
    * ``roles``: Bool [batch, pos] by name: which positions play a role. Measures and patching address positions through
      roles. The built-in names: item, label, target, correct_item and correct_label (those of the target's class).
    * ``token_labels``: Int [batch, pos], the label that a token shows, −1 where it shows none; or None.
    * ``table``: the tokens as a look-up, where they have that form; or None.
    """

    def __init__(
        self,
        inputs: Float[Tensor, "batch pos d_model"] | None,
        labels: Int[Tensor, "batch"],
        roles: Mapping[str, Bool[Tensor, "batch pos"]] | None = None,
        token_labels: Int[Tensor, "batch pos"] | None = None,
        table: TokenTable | None = None,
    ):
        """With a `table`, `inputs` may be None: they are made from it when somebody reads them."""
        if inputs is None and table is None:
            raise TypeError("a batch needs inputs or a table")
        self.labels, self.roles, self.token_labels, self.table = labels, Roles(roles or {}), token_labels, table
        self._inputs = inputs

    @cached_property
    def inputs(self) -> Float[Tensor, "batch pos d_model"]:
        """The tokens, as vectors (float32)."""
        if self._inputs is not None:
            return self._inputs
        assert self.table is not None
        return self.table.dense()

    def split(self, size: int) -> "list[Batch]":
        """The same sequences in parts of `size`, the last of which may be smaller."""
        pieces = [slice(start, start + size) for start in range(0, len(self), size)]
        shown = self.token_labels
        return [
            Batch(
                self.inputs[piece],
                self.labels[piece],
                {role: mask[piece] for role, mask in self.roles.items()},
                None if shown is None else shown[piece],
            )
            for piece in pieces
        ]

    def __len__(self) -> int:
        return len(self.labels)


@runtime_checkable
class Task(Protocol):
    """What the trainer and the measures ask of a task.

    Both methods are pure functions of their arguments: the same call returns the same sequences.
    """

    d_model: int
    """Width of a token."""
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
        """`size` sequences of an evaluation set; another seed gives other sequences of the same kind."""
        ...
