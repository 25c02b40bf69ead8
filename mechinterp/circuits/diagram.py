"""The circuit diagram: a graph with the measured effect of every edge on the answer (Reddy 2023, figure 5).

Columns are the roles of an in-context sequence, and rows follow the computation: tokens, what a layer's heads write and
what its MLP writes, the values, keys and queries that a later layer reads, the answer. With m(·) the lead of the
correct label, the logit of the answer minus that of another label of the context, mean over clean sequences,

    effect of an edge = (m(clean) − m(without the edge)) / (m(clean) − m(another sequence)),

the share of the lead that is lost when the edge is removed: 1 for an edge on which all of it depends, 0 for an edge
without effect, negative for an edge that lowers the lead. To remove an edge, the forward pass is continued with

* ``attention`` (layer, key role → query role): p_ij = 0 for all i, j of the roles, the rest of the row scaled up;
* ``match`` (key of a role → query of a role): scores S_ij = q_i·k_j with the keys k_j of another sequence;
* ``select`` (query → what its head writes): the query of another sequence;
* ``path`` (a token, or what heads or an MLP wrote → key, query or value of a later layer, an MLP, or the output): at
  this role, what the receiver reads of this sender is that of another sequence (`paths`, with one role instead of all,
  and the scale of the patched input).

The other sequence is the one before in the batch, at the same positions. The effect of a node is that of replacing its
whole activation by the other sequence's; that of the answer is 1. Every head has edges and nodes of its own, unless the
heads of a layer are taken together (`Heads`): two heads that do the same work, of which either suffices, have small
effects apart and a large one together. A circuit is drawn where the answer leads, and of it what is beyond noise
(`certainty`). `graph` makes a graph of it, and `svg` draws that.

Nodes and edges are those of Elhage et al. 2021 (queries, keys, values and their composition), operations those of an
induction head (Olsson et al. 2022). Edges of kind ``path`` are patched as in Wang et al. 2023 and Goldowsky-Dill et
al. 2023, all others and nodes as in `patching`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn

from mechinterp.circuits.activations import network_of
from mechinterp.circuits.certainty import edge_level
from mechinterp.circuits.columns import with_columns
from mechinterp.circuits.cuts import Cuts, Effects
from mechinterp.circuits.edges import Receiver, Scale, receivers
from mechinterp.circuits.evidence import MOST_OFF, Fact, induction_head_evidence, lacks_of_evidence
from mechinterp.errors import MechinterpError, NamedEnum, member, require_number
from mechinterp.models.forward import attention_scores
from mechinterp.models.layer import attention_pattern
from mechinterp.models.network import Network
from mechinterp.models.planted import Operation
from mechinterp.tasks.base import Task
from mechinterp.tasks.corruption import Pairs
from mechinterp.torch_state import torch_defaults

THRESHOLD, THRESHOLD_APART = 0.1, 0.05
"""The least |weight| of an edge that is drawn, and of an operation's edge: of heads together, and of heads apart, which
share out among them what a layer does."""

_Part = tuple[list[dict[str, Any]], dict[str, torch.Tensor], dict[str, torch.Tensor]]
"""Of some sequences: edges with leads without them and sums over tokens, leads with nodes replaced, and leads in clean
and other sequences."""
_SUMS = ("attention", "moved", "size")
"""Of attention edges: sums over tokens of attention, of the length of what is moved, and of the length of what it is
added to, each with the number of tokens."""
_ALONE = " head "
"""Between a node's name and a head that is replaced alone."""


class Weight(NamedEnum):
    """The quantity that the width of an edge shows."""

    effect = "the share of the lead that goes without the edge"
    attention = "attention edges only: attention × OV, the length of what is moved over that of what it is added to"


class Heads(NamedEnum):
    """Whether the heads of a layer have nodes and edges of their own."""

    apart = "every head has nodes and edges of its own"
    together = "the heads of a layer share their nodes and edges, which are cut in all of them at once"


@torch_defaults()
def circuit_edges(
    model: Network | nn.Module,
    task: Task,
    *,
    weight: Weight | str = Weight.effect,
    heads: Heads | str = Heads.apart,
    pairs: Pairs | None = None,
    n_pairs: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per edge, also of those that are not drawn; the same edges in the same order at all checkpoints.

    * ``source``, ``target``: nodes, as ``token.ROLE``, ``LAYER.ROLE`` (what the layer's heads write),
      ``LAYER.mlp.ROLE``, ``LAYER.q.ROLE`` (a query; so ``k``, ``v``) or ``answer``; layers count from 0, as in hook
      names. Where a layer has several heads and they are taken apart, head 3 has ``LAYER.h3.ROLE`` and
      ``LAYER.h3.q.ROLE``; heads count from 0 too;
    * ``layer`` of the attention or MLP it belongs to, or the number of layers for the output; ``kind`` as above;
    * ``head`` that it belongs to (of ``attention``, ``match``, ``select``) or that reads (``path``), and
      ``source_head``, the head that wrote what is read; −1 for none (tokens, MLPs, the output, heads together);
    * ``value``: the lead without it, in logits; ``effect`` and its standard error over pairs, ``error``;
    * ``attention``, of attention edges: ⟨Σ_j p_ij⟩_i over the tokens of both roles, in [0, 1], mean over heads;
    * ``moved``, of attention edges: attention × OV, ⟨|Σ_j p_ij v_j|⟩_i / ⟨|x_i|⟩_i with x the residual stream;
    * ``weight``: the effect, or what is moved; ``drawn``: |weight| ≥ `least_weight`, and an effect beyond noise;
    * ``operation``: the edge's operation in an induction head (`operations`), or empty;
    * ``source_effect``, ``source_error``, ``target_effect``, ``target_error`` of the nodes; of several heads together
      also ``source_heads`` and ``target_heads``, those with an effect of `THRESHOLD` or more alone, the largest first;
    * ``span``, m(clean) − m(another sequence), with its standard error, ``span_error``; ``ahead``, the share of
      sequences in which the correct label leads; ``source_column`` and ``target_column``, the places of the nodes'
      roles from left to right, counted from 0.

    Where no lead is resolved (`certainty.resolved`) effects are not numbers. `pairs` are sequences of one's own, by
    default `corrupted_pairs` of the task: m is the lead of their answers over their wrong labels. Columns are those of
    `columns.with_columns`. Raises where `corrupted_pairs` and `with_columns` do, and for fewer than two pairs.
    """
    weight, heads = member(Weight, weight), member(Heads, heads)
    if pairs is None and n_pairs < 2:
        raise MechinterpError(f"n_pairs is {n_pairs}; edges carry what they carry in another sequence: give 2 or more")
    own = pairs is not None
    pairs, roles = with_columns(task, pairs, n_pairs=n_pairs, seed=seed)
    network = network_of(model)
    apart = network.n_heads > 1 and heads is Heads.apart
    with torch.no_grad():
        edges, nodes, ends = _joined([_measured(cuts) for cuts in Cuts.parts(network, pairs, roles, apart=apart)])
    effects = Effects(ends["clean"], ends["other"], pairs)
    rows = _rows(edges, effects)
    of_nodes = _effects_of_nodes(nodes, effects, heads=network.n_heads > 1 and not apart)
    for row in rows:
        row |= {f"{end}_{name}": value for end in ("source", "target") for name, value in of_nodes[row[end]].items()}
    table, names = pd.DataFrame(rows), {}
    table.insert(4, "head", [head_of(name) for name in table["target"]])
    table.insert(5, "source_head", [head_of(name) for name in table["source"]])
    number = {role: column for column, role in enumerate(roles)}
    for end in ("source", "target"):
        table[f"{end}_column"] = [
            number[roles[-1] if name == "answer" else name.rpartition(".")[2]] for name in table[end]
        ]
    table = table.assign(span=effects.span, span_error=effects.error, ahead=effects.ahead, n_pairs=len(pairs.clean))
    if effects.resolved and not lacks_of_evidence(task):  # else no effect is a number, or no fact is known
        n_evidence = 256 if own else n_pairs
        names = operations(table, induction_head_evidence(network, task, n_pairs=n_evidence, seed=seed))
    table["operation"] = [names.get(edge, "") for edge in zip(table["source"], table["target"], strict=True)]
    return weighted(table, weight)


def weighted(table: pd.DataFrame, weight: Weight | str = Weight.effect, threshold: float | None = None) -> pd.DataFrame:
    """The table of `circuit_edges` with the columns ``weight`` and ``drawn`` for another weight or threshold (> 0; by
    default `least_weight`)."""
    weight, threshold = checked(weight, threshold)
    threshold = least_weight(table) if threshold is None else threshold
    chosen = table["effect" if weight is Weight.effect else "moved"]
    beyond = table["effect"].abs() > edge_level(len(table)) * table["error"] if weight is Weight.effect else True
    return table.assign(weight=chosen, drawn=(chosen.abs() >= threshold) & beyond)


def head_of(node: str) -> int:
    """The head that a node belongs to, counted from 0; −1 for none."""
    found = re.match(r"\d+\.h(\d+)\.", node)
    return int(found[1]) if found else -1


def _without_head(node: str) -> str:
    """The name of a node where heads are taken together."""
    return re.sub(r"^(\d+\.)h\d+\.", r"\1", node)


def least_weight(table: pd.DataFrame) -> float:
    """The threshold of a table of heads together, or apart."""
    return THRESHOLD_APART if bool((table["head"] >= 0).any()) else THRESHOLD


def checked(weight: Weight | str, threshold: float | None) -> tuple[Weight, float | None]:
    """The weight and the threshold, which may be None; MechinterpError where one is not valid."""
    if threshold is not None and not 0 < require_number("threshold", threshold) < math.inf:
        raise MechinterpError(f"threshold is {threshold}; expected more than 0")
    return member(Weight, weight), threshold


def operations(table: pd.DataFrame, evidence: pd.DataFrame) -> dict[tuple[str, str], str]:
    """The operations of an induction head that a network has (names of `planted.Operation`), by edge.

    It has an operation where the corresponding fact of `induction_head_evidence` has a value of 0.5 or more and the
    effect of the edge is at least `least_weight` and beyond noise. With a value far above 1, which is no share of the
    answer, the fact does not hold, but the operation is there: a network copies labels although it copies all. Effects
    are on the answer: if one operation is missing, the others have none. Several heads may do one operation.
    """
    last = int(table["layer"].max()) - 1
    holds = dict(zip(evidence["fact"], evidence["value"] >= 1 - MOST_OFF, strict=True))
    facts = (Fact.k_composition, Fact.target_query_selects, Fact.correct_label_copied)
    keys, queries, values = (holds[fact.name] for fact in facts)
    by_edge = {}
    for layer in range(last):
        item = f"{layer}.v.correct_item" if layer else "token.correct_item"
        by_edge[item, f"{layer}.correct_label"] = (Operation.previous_token, keys)
        by_edge[f"{layer}.correct_label", f"{last}.k.correct_label"] = (Operation.write, keys)
    by_edge[f"{last}.k.correct_label", f"{last}.q.target"] = (Operation.match, queries)
    by_edge[f"{last}.v.correct_label" if last else "token.correct_label", f"{last}.target"] = (Operation.copy, values)
    by_edge[f"{last}.target", "answer"] = (Operation.readout, values)
    helps = (table["effect"] >= least_weight(table)) & (table["effect"] > edge_level(len(table)) * table["error"])
    found = {}
    for edge in zip(table["source"][helps], table["target"][helps], strict=True):
        operation, fact_holds = by_edge.get((_without_head(edge[0]), _without_head(edge[1])), ("", False))
        if fact_holds:
            found[edge] = operation.name
    return found


def _measured(cuts: Cuts) -> _Part:
    """All edges and nodes on a part of the sequences."""
    ends = {"clean": cuts.lead(cuts.base.logits), "other": cuts.lead(cuts.other.logits)}
    edges, nodes = _attention(cuts) + _paths(cuts), _nodes(cuts)
    # In one piece of memory: many small ones between large activations would keep those from being used again.
    leads = torch.stack([*(edge["lead"] for edge in edges), *nodes.values()]).unbind()
    for edge, lead in zip(edges, leads, strict=False):
        edge["lead"] = lead
    return edges, dict(zip(nodes, leads[len(edges) :], strict=True)), ends


def _joined(parts: Sequence[_Part]) -> _Part:
    """The parts as one: leads one after the other, and sums over tokens added."""
    edges = [
        first
        | {"lead": torch.cat([edge["lead"] for edge in (first, *others)])}
        | {name: sum(edge[name] for edge in (first, *others)) for name in _SUMS if name in first}
        for first, *others in zip(*(edges for edges, _, _ in parts), strict=True)
    ]
    nodes = {name: torch.cat([nodes[name] for _, nodes, _ in parts]) for name in parts[0][1]}
    ends = {name: torch.cat([ends[name] for _, _, ends in parts]) for name in parts[0][2]}
    return edges, nodes, ends


def _rows(edges: Sequence[dict[str, Any]], effects: Effects) -> list[dict[str, Any]]:
    """The edges with their effects, and means over tokens in place of sums."""
    rows = list[dict[str, Any]]()
    for edge, effect in zip(edges, effects.of([edge["lead"] for edge in edges]), strict=True):
        row = {name: edge[name] for name in ("source", "target", "layer", "kind")} | effect
        if "attention" in edge:
            attention, moved, size = (float(total / n) for total, n in (edge[name] for name in _SUMS))
            row |= {"attention": attention, "moved": moved / size}
        rows.append(row)
    return rows


def _sum_and_number(values: torch.Tensor) -> torch.Tensor:
    """The sum of values over tokens, and how many there are."""
    return torch.stack([values.double().sum(), torch.tensor(float(values.numel()), dtype=torch.float64)])


def _attention(cuts: Cuts) -> list[dict[str, Any]]:
    """Attention edges of every layer, and edges of kind ``match`` and ``select`` of all layers but the first."""
    rows, base = [], cuts.base
    for layer in cuts.layers:
        attn = f"blocks.{layer}.attn"
        q, v, z, scores, pattern = (base[f"{attn}.hook_{name}"] for name in ("q", "v", "z", "attn_scores", "pattern"))
        W_O = base.network.parameters.get(f"{attn}.W_O")
        write = v if W_O is None else torch.einsum("bphk,hkd->bphd", v, W_O)
        size = base[f"blocks.{layer}.hook_resid_pre"].norm(dim=-1)
        from_key = {}
        for key in cuts.roles:
            keys = cuts.masks[key][:, None, None]
            left = attention_pattern(scores.masked_fill(keys, -torch.inf))
            left = left.nan_to_num(0.0)  # a query without another key attends to nothing
            from_key[key] = torch.einsum("bhqp,bphk->bqhk", left, v), pattern * keys
        elsewhere = attention_scores(base.network, layer, q, cuts.other[f"{attn}.hook_k"]) if layer else scores
        for head in cuts.heads:
            of_head, name = cuts.of_head(head), _head(layer, head)
            moved_by = {
                key: torch.einsum("bhqp,bphd->bqd", on_keys[:, of_head], write[:, :, of_head]).norm(dim=-1)
                for key, (_, on_keys) in from_key.items()
            }
            for key, query in cuts.linked[layer]:
                (left, on_keys), at = from_key[key], cuts.at(query, f"{attn}.hook_z")
                attention = on_keys[:, of_head].sum(dim=-1).mean(dim=1)
                rows.append(
                    {"source": f"{name}.v.{key}" if layer else f"token.{key}", "target": f"{name}.{query}"}
                    | {"layer": layer, "kind": "attention"}
                    | {
                        "lead": cuts.replaced(
                            f"{attn}.hook_z", torch.where(at[:, :, None, None] & of_head[:, None], left, z)
                        )
                    }
                    | {"attention": _sum_and_number(attention[at]), "moved": _sum_and_number(moved_by[key][at])}
                    | {"size": _sum_and_number(size[cuts.masks[query]])}
                )
            if not layer:
                continue
            for key, query in cuts.linked[layer]:
                mask = cuts.link(key, query, layer) & of_head[:, None, None]
                lead = cuts.replaced(f"{attn}.hook_attn_scores", torch.where(mask, elsewhere, scores))
                ends = {"source": f"{name}.k.{key}", "target": f"{name}.q.{query}"}
                rows.append(ends | {"layer": layer, "kind": "match", "lead": lead})
            for role in cuts.queries(layer):
                ends = {"source": f"{name}.q.{role}", "target": f"{name}.{role}"}
                lead = cuts.elsewhere(f"{attn}.hook_q", role, head)
                rows.append(ends | {"layer": layer, "kind": "select", "lead": lead})
    return rows


def _head(layer: int, head: int | None) -> str:
    """The beginning of the names of a head's nodes."""
    return f"{layer}" if head is None else f"{layer}.h{head}"


def _paths(cuts: Cuts) -> list[dict[str, Any]]:
    """Edges from tokens and from what heads and MLPs wrote to what later components read, role by role."""
    rows, base = [], cuts.base
    readers: dict[tuple[int, str, int | None], list[Receiver]] = {}
    for receiver in receivers(base):
        if receiver.layer or receiver.through == "mlp":  # of layer 0, attention reads tokens
            head = receiver.head if cuts.apart and receiver.through in "qkv" else None
            readers.setdefault((receiver.layer, receiver.through, head), []).append(receiver)
    sent: dict[int, dict[str, torch.Tensor]] = {}
    for (layer, through, head), group in readers.items():
        output, hook = group[0].is_output, group[0].hook
        asks, name = through in ("q", "mlp"), f"{_head(layer, head)}.{through}"
        roles = cuts.roles[-1:] if output else cuts.queries(layer) if asks else cuts.roles
        changes = sent.get(layer) if head is not None else None
        if changes is None:
            changes = cuts.changes(group[0])
            sent |= {layer: changes} if head is not None else {}
        for sender, change in changes.items():
            changed = base[hook] + sum(receiver.reads(base, change, Scale.recomputed) for receiver in group)
            for role in roles:
                at = torch.tensor(True) if output else cuts.at(role, hook)[(...,) + (changed.ndim - 2) * (None,)]
                ends = {"source": f"{sender}.{role}", "target": "answer" if output else f"{name}.{role}"}
                lead = cuts.replaced(hook, torch.where(at, changed, base[hook]))
                rows.append(ends | {"layer": layer, "kind": "path", "lead": lead})
    return rows


def _nodes(cuts: Cuts) -> dict[str, torch.Tensor]:
    """The lead with every node replaced; that of several heads together also with every head alone, under the node's
    name and `_ALONE`."""
    places = {f"token.{role}": ("hook_embed", role, None) for role in cuts.roles}
    for layer in cuts.layers:
        block, queries = f"blocks.{layer}", cuts.queries(layer)
        for head in cuts.heads:
            written = f"{block}.hook_attn_out" if head is None else f"{block}.attn.hook_z"
            places |= {f"{_head(layer, head)}.{role}": (written, role, head) for role in queries}
            for through in "qkv" if layer else "":
                roles, hook = queries if through == "q" else cuts.roles, f"{block}.attn.hook_{through}"
                places |= {f"{_head(layer, head)}.{through}.{role}": (hook, role, head) for role in roles}
        if cuts.mlps:
            places |= {f"{layer}.mlp.{role}": (f"{block}.hook_mlp_out", role, None) for role in queries}
        for head in range(cuts.base.n_heads) if cuts.base.n_heads > 1 and not cuts.apart else ():
            places |= {f"{layer}.{role}{_ALONE}{head}": (f"{block}.attn.hook_z", role, head) for role in queries}
    leads = {node: cuts.elsewhere(*place) for node, place in places.items()}
    return leads | {"answer": cuts.lead(cuts.other.logits)}


def _effects_of_nodes(nodes: Mapping[str, torch.Tensor], effects: Effects, *, heads: bool) -> dict[str, dict[str, Any]]:
    """The effect of every node, with its error, and with `heads` those heads of several together that have an effect of
    `THRESHOLD` or more alone, the largest first; the effect of the answer is 1."""
    measured = dict(zip(nodes, effects.of(list(nodes.values())), strict=True))
    of_nodes: dict[str, dict[str, Any]] = {
        node: {"effect": found["effect"], "error": found["error"]}
        for node, found in measured.items()
        if _ALONE not in node
    }
    level = edge_level(len(of_nodes))
    for node, found in of_nodes.items() if heads else ():
        alone = {name.rpartition(_ALONE)[2]: each for name, each in measured.items() if name.startswith(node + _ALONE)}
        of_size = [
            (-abs(each["effect"]), int(head))
            for head, each in alone.items()
            if abs(each["effect"]) >= THRESHOLD and abs(each["effect"]) > level * each["error"]
        ]
        found["heads"] = " ".join(str(head) for _, head in sorted(of_size))
    return of_nodes
