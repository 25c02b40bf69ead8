"""Heads of several networks matched by role, so that "the first induction head" is the same thing in all of them.

Which number a head has is an accident of the random start: a permutation of the heads of a layer changes nothing. Heads
are therefore named by what they do (`heads.head_roles`): "previous token 1", "induction 1", "induction 2", "idle 1", ….
In the first network, which is the reference, the heads of a role are numbered by their effect, the largest first. The
heads of every other network are assigned to these names, role by role, so that the sum of distances is smallest (the
assignment problem, Kuhn 1955). The distance of two heads is that between their scores,

    d² = Σ over previous_token, correct_label, alone, needed of the squared differences, + 1 if the layers differ,

with scores that are not resolved taken as 0. Heads beyond those of the reference take the next numbers.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mechinterp.circuits.ablation import another_sequence
from mechinterp.circuits.activations import network_of
from mechinterp.circuits.heads import MATTERS, HeadRole, head_roles
from mechinterp.circuits.metrics import Metric
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import forward, run_with_cache
from mechinterp.models.network import Network
from mechinterp.tasks.base import Task
from mechinterp.tasks.corruption import composition_corruption, corrupted_pairs
from mechinterp.torch_state import torch_defaults

SCORES = ("previous_token", "correct_label", "alone", "needed")
"""The scores of a head by which it is matched, as `head_roles` has them."""
TITLES = {HeadRole.previous_token: "previous token", HeadRole.induction: "induction", HeadRole.none: "idle"}
"""The names of roles."""


def matched_heads(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The tables of `head_roles` of several networks, by network, in one, with the columns ``run`` and ``name``.

    The first one is the reference. Sorted by run, as given, and by layer and head.
    """
    if not tables:
        raise MechinterpError("heads are matched of one network or more; none is given")
    known: dict[HeadRole, list[pd.Series]] = {role: [] for role in TITLES}
    parts = []
    for run, table in tables.items():
        names = {}
        for role, title in TITLES.items():
            heads = table[table["role"] == role.name]
            for index, number in _assigned(heads, known[role]).items():
                names[index] = f"{title} {number + 1}"
        named = table.assign(name=pd.Series(names))
        parts.append(named.assign(run=run)[["run", "layer", "head", "role", "name", *SCORES, "redundant"]])
    return pd.concat(parts, ignore_index=True)


def _assigned(heads: pd.DataFrame, known: list[pd.Series]) -> dict[object, int]:
    """A number for each of the heads of one role, by index; new ones are added to the `known`."""
    effect = heads[["alone", "needed"]].fillna(0).max(axis=1) + heads[["previous_token", "correct_label"]].max(axis=1)
    heads = heads.loc[effect.sort_values(ascending=False, kind="stable").index]
    cost = np.array([[_distance(head, other) for other in known] for _, head in heads.iterrows()])
    numbers: dict[object, int] = {}
    if known and len(heads):
        rows, columns = linear_sum_assignment(cost.reshape(len(heads), len(known)))
        numbers = {heads.index[row]: int(column) for row, column in zip(rows, columns, strict=True)}
    for index, head in heads.iterrows():
        if index not in numbers:
            numbers[index] = len(known)
            known.append(head)
    return numbers


def _distance(head: pd.Series, other: pd.Series) -> float:
    """The distance of two heads, squared."""
    gaps = [np.nan_to_num(float(head[name])) - np.nan_to_num(float(other[name])) for name in SCORES]
    return float(np.square(gaps).sum()) + float(head["layer"] != other["layer"])


@torch_defaults()
def role_redundancy(model: Network | nn.Module, task: Task, *, n_pairs: int = 256, seed: int = 0) -> pd.DataFrame:
    """One row per role that heads have: whether several heads do it, and stand in for one another.

    ``role``; ``n_heads``; ``together``, the share of the lead of the correct label that is lost when the outputs of all
    of them are those of another sequence; ``apart``, the sum of what is lost without each alone; ``redundant``: two
    heads or more, of which together is `MATTERS` or more, and apart less than half of that. Heads whose work adds up
    have apart = together.
    """
    network = network_of(model)
    table = head_roles(network, task, n_pairs=n_pairs, seed=seed)
    pairs = corrupted_pairs(task, composition_corruption(task), n_pairs=n_pairs, seed=seed)
    hooks = [f"blocks.{layer}.attn.hook_z" for layer in range(network.n_layers)]
    with torch.no_grad():
        intact = run_with_cache(network, pairs.clean.inputs, hooks)
    other = another_sequence(len(pairs.clean), seed)

    def lead(logits: Tensor) -> float:
        return float(Metric.logit_difference.of(logits, pairs.answers, pairs.wrong_labels))

    def lost(heads: pd.DataFrame) -> float:
        """The share of the lead that is lost without some heads."""
        changes = {}
        for layer, of_layer in heads.groupby("layer"):
            hook, mask = hooks[int(str(layer))], torch.zeros(network.n_heads, dtype=torch.bool)
            mask[of_layer["head"].tolist()] = True
            changes[hook] = lambda z, hook=hook, mask=mask: torch.where(mask[:, None], intact[hook][other], z)
        with torch.no_grad():
            return 1 - lead(forward(network, pairs.clean.inputs, changes)) / lead(intact.logits)

    rows = []
    for role in (HeadRole.previous_token, HeadRole.induction):
        heads = table[table["role"] == role.name]
        if heads.empty:
            continue
        together, apart = lost(heads), sum(lost(heads.loc[[index]]) for index in heads.index)
        redundant = len(heads) > 1 and together >= MATTERS and apart < together / 2
        numbers = {"together": together, "apart": apart, "redundant": redundant}
        rows.append({"role": role.name, "n_heads": len(heads), **numbers})
    return pd.DataFrame(rows, columns=["role", "n_heads", "together", "apart", "redundant"])
