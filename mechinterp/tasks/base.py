"""The protocol of a task: vectors in, labels out, and a role for every position.

Any object with these attributes and methods trains, is measured and analysed like the built-in task.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TokenTable:
    """The same tokens as a look-up: inputs[b, t] = one-hot(positions[b, t]) ⊕ rows[content[b, t]].

    A task whose tokens have this form may say so; training is then faster, and not otherwise different.
    """

    rows: Float[Tensor, "row content_dim"]
    """The distinct contents; one-hot positions fill the first d_model − content_dim dimensions."""
    content: Int[Tensor, "batch pos"]
    """Which row a token carries."""
    positions: Int[Tensor, "batch pos"]
    """Which position a token carries; all different within a sequence."""


@dataclass(frozen=True)
class Batch:
    """Sequences with what is known about them."""

    inputs: Float[Tensor, "batch pos d_model"]
    """The tokens, as vectors (float32)."""
    labels: Int[Tensor, "batch"]
    """The correct label of the last token, the target; 0 … n_labels−1."""
    roles: Mapping[str, Bool[Tensor, "batch pos"]] = field(default_factory=dict)
    """Which positions play a role, by name. Measures and patching address positions through roles. The built-in
    names: item, label, target, correct_item and correct_label (those of the target's class)."""
    token_labels: Int[Tensor, "batch pos"] | None = None
    """The label that a token shows, −1 where it shows none."""
    table: TokenTable | None = None
    """The inputs as a look-up, where they have that form."""

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
