"""Named attention patterns, as clamps, ablations and analyses use them.

A pattern is [query, key] or [batch, query, key]; its rows sum to 1 over the keys j ≤ i.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.errors import MechinterpError, NamedEnum, UnknownNameError
from mechinterp.tasks.base import Batch


class AttentionPattern(NamedEnum):
    """The name of an attention pattern."""

    uniform = "every token attends equally to all tokens up to itself"
    previous_token = "every token attends to the one before it, the first to itself (ILA1 = 1)"
    correct_label = "the target attends to its correct label, equally to several copies (TILA2 = 1)"
    labels = "the target attends equally to all labels of the context (TLA2 = 1)"
    after_same_token = "every token attends equally to those that followed it before (prefix matching = 1)"

    @property
    def is_whole(self) -> bool:
        """Whether it has a row for every token, and not for the target alone."""
        return self in (AttentionPattern.uniform, AttentionPattern.previous_token)

    @property
    def role(self) -> str | None:
        """The role whose tokens the target attends to."""
        return {AttentionPattern.correct_label: "correct_label", AttentionPattern.labels: "label"}.get(self)


def uniform(n_pos: int) -> Float[Tensor, "query key"]:
    """p_ij = 1/i for j ≤ i, counted from 1 (float64)."""
    allowed = torch.ones(n_pos, n_pos, dtype=torch.float64).tril()
    return allowed / allowed.sum(dim=1, keepdim=True)


def previous_token_mask(n_pos: int) -> Bool[Tensor, "query key"]:
    """δ_{i−1,j}: the key that is the token before the query."""
    return torch.ones(n_pos - 1, dtype=torch.bool).diag(-1)


def previous_token(n_pos: int) -> Float[Tensor, "query key"]:
    """p_ij = δ_{i−1,j}, and p = 1 from the first token to itself (float64)."""
    pattern = previous_token_mask(n_pos).double()
    pattern[0, 0] = 1
    return pattern


def after_earlier_occurrences(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch query key"]:
    """1 where the token before the key is the same as the query's, and the key is no later than the query."""
    same = tokens[:, :, None] == tokens.roll(1, dims=1)[:, None, :]
    same[:, :, 0] = False
    return same.tril().float()


def pattern_of(
    name: AttentionPattern, batch: Batch
) -> tuple[Float[Tensor, "some query key"], Float[Tensor, "some query"]]:
    """The pattern, [batch or 1, query, key], and 1 for queries for which it has a row, else 0.

    A target without a token of the role has no row, and no token that has not occurred before has one of
    `after_same_token`. A batch without the role raises UnknownNameError; one of vectors instead of tokens,
    MechinterpError.
    """
    n_pos = batch.n_pos
    if name is AttentionPattern.after_same_token:
        if batch.inputs.ndim != 2:
            raise MechinterpError("the pattern after_same_token needs sequences of tokens; this task's are of vectors")
        followed = after_earlier_occurrences(batch.inputs)
        occurrences = followed.sum(dim=-1, keepdim=True)
        return followed / occurrences.clamp(min=1), (occurrences[..., 0] > 0).float()
    if name.role is None:
        whole = uniform(n_pos) if name is AttentionPattern.uniform else previous_token(n_pos)
        return whole[None], torch.ones(1, n_pos)
    if name.role not in batch.roles:
        raise UnknownNameError(
            f"the pattern {name.name} needs the role {name.role!r}, which this task's batches do not have"
        )
    role = batch.roles[name.role]
    count, rows = role.sum(dim=1, keepdim=True), torch.zeros(role.shape)
    rows[:, -1] = count[:, 0] > 0
    return (role / count.clamp(min=1))[:, None, :].expand(-1, n_pos, -1), rows
