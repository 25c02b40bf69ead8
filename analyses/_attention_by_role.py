"""Where attention goes, by role: what items, labels and the target pay to each kind of token.

A row of an attention pattern sums to 1. It is split by what its keys are,

    A(query, key) = ⟨ Σ_{j of that kind} p_ij ⟩ over sequences and over the queries i of that role,

so that the kinds of keys of a query add up to 1. For an item or a label they are itself, the token before, other items
and other labels; for the target itself, correct item, correct label (all copies of its class), other items and other
labels. ILA1 is label → token before, TILA2 is target → correct label, TLA2 is target → both kinds of labels.
"""

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.attention_patterns import previous_token_mask, uniform
from mechinterp.models.forward import run_with_cache
from mechinterp.models.network import Network
from mechinterp.tasks.base import Batch

KEYS = ("itself", "token before", "correct item", "correct label", "other items", "other labels")
"""All kinds of keys."""
_PART = 250
"""Sequences in one forward pass."""


def attention_by_role(network: Network, batch: Batch) -> pd.DataFrame:
    """Attention by role in every layer and head: ``layer``, ``head`` (from 0), ``query``, ``key``, ``attention``.

    ``uniform`` is what uniform attention to all tokens up to the query gives. All numbers are in [0, 1]. The batch
    needs the roles item, label, correct_item and correct_label; a missing one raises.
    """
    kinds = _kinds(batch)
    even = uniform(batch.n_pos).float().expand(len(batch), 1, -1, -1)
    hooks = [f"blocks.{layer}.attn.hook_pattern" for layer in range(network.n_layers)]
    with torch.no_grad():
        parts = [run_with_cache(network, part.inputs, hooks) for part in batch.split(_PART)]
    rows = []
    for layer, hook in enumerate(hooks):
        pattern = torch.cat([part[hook] for part in parts])
        for (query, key), (queries, pairs) in kinds.items():
            expected = _mean(even, queries, pairs).item()
            for head, value in enumerate(_mean(pattern, queries, pairs).tolist()):
                where = {"layer": layer, "head": head, "query": query, "key": key}
                rows.append(where | {"attention": value, "uniform": expected})
    return pd.DataFrame(rows)


def _mean(
    pattern: Float[Tensor, "batch head query key"],
    queries: Bool[Tensor, "batch query"],
    pairs: Bool[Tensor, "batch query key"],
) -> Float[Tensor, "head"]:
    """Σ over the pairs, mean over the queries."""
    return torch.einsum("bhqk,bqk->h", pattern, pairs.to(pattern)) / queries.sum()


def _kinds(
    batch: Batch,
) -> dict[tuple[str, str], tuple[Bool[Tensor, "batch query"], Bool[Tensor, "batch query key"]]]:
    """Which tokens are queries of a role, and which pairs of tokens are such a query and such a key."""
    item, label, correct_item, correct_label = (
        batch.roles[role][:, None] for role in ("item", "label", "correct_item", "correct_label")
    )
    n_pos = item.shape[-1]
    itself = torch.eye(n_pos, dtype=torch.bool)[None]
    before = previous_token_mask(n_pos)[None]
    in_context = {
        "itself": itself,
        "token before": before,
        "other items": item & ~itself & ~before,
        "other labels": label & ~itself & ~before,
    }
    of_target = {
        "itself": itself,
        "correct item": correct_item,
        "correct label": correct_label,
        "other items": item & ~correct_item,
        "other labels": label & ~correct_label,
    }
    target = torch.zeros_like(batch.roles["item"])
    target[:, -1] = True
    queries = {"item": (batch.roles["item"], in_context), "label": (batch.roles["label"], in_context)}
    queries |= {"target": (target, of_target)}
    return {
        (query, key): (mask, mask[:, :, None] & pairs)
        for query, (mask, keys) in queries.items()
        for key, pairs in keys.items()
    }
