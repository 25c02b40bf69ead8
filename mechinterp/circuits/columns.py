"""The columns of the circuit diagram: roles that share no token, from left to right, and the sequences it measures on.

A task with the roles ``correct_item`` and ``correct_label`` has the columns `ROLES`. Another task has its own: its
attribute ``diagram_roles``, or else the roles of its batches in their order, before them ``other``, the tokens that
have none of these, and at the end ``target``, the last token.
"""

from itertools import combinations

import torch

from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.tasks.base import Roles, Task, require_task
from mechinterp.tasks.corruption import Corruption, Pairs, corrupted_pairs, corruptions_of, require_pairs

ROLES = ("other_item", "other_label", "other", "correct_item", "correct_label", "target")
"""The columns of a task with in-context pairs, of those it has. The other pairs stand before and after the correct
one."""


def with_columns(
    task: Task, pairs: Pairs | None = None, *, n_pairs: int = 256, seed: int = 0
) -> tuple[Pairs, tuple[str, ...]]:
    """The pairs to measure on, with a role for every column, and the columns, of which the last is the target.

    Without `pairs`, they are `corrupted_pairs` of the task with ``swap_label``, or its first corruption: the wrong
    labels say what the answer leads over. Raises where `corrupted_pairs` does, and for columns that share tokens or
    miss the last one.
    """
    name = type(task).__qualname__
    require_task(task)
    if pairs is not None:
        require_pairs(pairs)
    else:
        known = corruptions_of(task)
        corruption = Corruption.swap_label if Corruption.swap_label in known or not known else known[0]
        pairs = corrupted_pairs(task, corruption, n_pairs=n_pairs, seed=seed)
    if len(pairs.clean) < 2:
        raise MechinterpError(f"pairs: {len(pairs.clean)} sequence; edges carry what they carry in another: give 2")
    roles, last = dict(pairs.roles), torch.zeros(pairs.clean.labels.shape[0], pairs.clean.n_pos, dtype=torch.bool)
    last[:, -1] = True
    declared = getattr(task, "diagram_roles", None)
    if declared is not None:
        if isinstance(declared, str) or len(set(declared)) < len(tuple(declared)):
            raise MechinterpError(f"{name}.diagram_roles is {declared!r}; expected several names, none of them twice")
        for role in declared:
            if role not in {*roles, "target", "other"}:
                raise unknown_name(f"role in {name}.diagram_roles", role, roles)
        columns = [role for role in declared if role != "target"]
    elif {"correct_item", "correct_label"} <= roles.keys():
        if not pairs.clean.has_separate_label_tokens:
            raise MechinterpError(
                "a circuit joins items and labels that are separate tokens, and this task's are one token:"
                " use patch, paths or ablate"
            )
        columns = [role for role in ROLES if role in roles and role != "target"]
    else:
        columns = [role for role in roles if role != "target"]
        columns = ["other", *columns] if "other" not in roles else columns
    roles.setdefault("target", last)
    without_other = [role for role in columns if role != "other" or "other" in pairs.roles]
    rest = ~torch.stack([roles[role] for role in (*without_other, "target")]).any(dim=0)
    if "other" in columns and "other" not in roles:
        roles["other"] = rest
        columns = columns if rest.any() else without_other
    columns.append("target")
    if declared is not None or "correct_label" not in roles:
        _require_apart(name, {role: roles[role] for role in columns})
    if not bool(torch.equal(roles["target"], last)):
        raise MechinterpError(f"{name}: the role target is the last token of every sequence, and only that; mend roles")
    return Pairs(pairs.clean, pairs.corrupt, Roles(roles)), tuple(columns)


def _require_apart(name: str, columns: dict[str, torch.Tensor]) -> None:
    """Raise where two columns share a token, or a name cannot be a node's."""
    for role in columns:
        if "." in role or not role:
            raise MechinterpError(f"{name}: the role {role!r} has a point in its name or none; give it another")
    for one, other in combinations(columns, 2):
        if bool((columns[one] & columns[other]).any()):
            raise MechinterpError(
                f"{name}: the roles {one} and {other} share tokens, and a token stands in one column of the diagram:"
                f" set {name}.diagram_roles to roles that share none, from left to right"
            )
