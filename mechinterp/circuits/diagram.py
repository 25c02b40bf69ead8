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
whole activation by the other sequence's; that of the answer is 1. The heads of a layer are taken together; where there
are several, a node names those that have an effect alone. `graph` makes a graph of it, and `svg` draws that.

Nodes and edges are those of Elhage et al. 2021 (queries, keys, values and their composition), operations those of an
induction head (Olsson et al. 2022). Edges of kind ``path`` are patched as in Wang et al. 2023 and Goldowsky-Dill et
al. 2023, all others and nodes as in `patching`.
"""

import math
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechinterp.circuits.activations import network_of
from mechinterp.circuits.evidence import MOST_OFF, Fact, induction_head_evidence, require_separate_tokens
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import Site, patched
from mechinterp.circuits.paths import Receiver, Scale, receivers
from mechinterp.circuits.standard_errors import standard_error
from mechinterp.errors import MechinterpError, NamedEnum, member
from mechinterp.models.forward import Activations, attention_scores, run_with_cache
from mechinterp.models.layer import attention_pattern
from mechinterp.models.network import Network
from mechinterp.models.planted import Operation
from mechinterp.tasks.base import Task
from mechinterp.tasks.corruption import Corruption, Pairs, corrupted_pairs
from mechinterp.torch_state import torch_defaults

ROLES = ("other_item", "other_label", "other", "correct_item", "correct_label", "target")
"""The columns that a task may have, from left to right. The other pairs stand before and after the correct one."""
THRESHOLD = 0.1
"""The least |weight| of an edge that is drawn, and of an operation's edge."""
NOISE = 3.0
"""Standard errors that the lead and an effect must exceed. Three, as a run has dozens of checkpoints."""


class Weight(NamedEnum):
    """The quantity that the width of an edge shows."""

    effect = "the share of the lead that goes without the edge"
    attention = "attention edges only: attention × OV, the length of what is moved over that of what it is added to"


@torch_defaults()
def circuit_edges(
    model: Network | nn.Module,
    task: Task,
    *,
    weight: Weight | str = Weight.effect,
    n_pairs: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per edge, also of those that are not drawn; the same edges in the same order at all checkpoints.

    * ``source``, ``target``: nodes, as ``token.ROLE``, ``LAYER.ROLE`` (what the layer's heads write),
      ``LAYER.mlp.ROLE``, ``LAYER.q.ROLE`` (a query; so ``k``, ``v``) or ``answer``; layers count from 0, as in hook
      names;
    * ``layer`` of the attention or MLP it belongs to, or the number of layers for the output; ``kind`` as above;
    * ``value``: the lead without it, in logits; ``effect`` and its standard error over pairs, ``error``;
    * ``attention``, of attention edges: ⟨Σ_j p_ij⟩_i over the tokens of both roles, in [0, 1];
    * ``moved``, of attention edges: attention × OV, ⟨|Σ_j p_ij v_j|⟩_i / ⟨|x_i|⟩_i with x the residual stream;
    * ``weight``: the effect, or what is moved; ``drawn``: |weight| ≥ `THRESHOLD`, and an effect beyond noise;
    * ``operation``: the edge's operation in an induction head (`operations`), or empty;
    * ``source_effect``, ``source_error``, ``target_effect``, ``target_error`` of the nodes; with several heads also
      ``source_heads`` and ``target_heads``, those with an effect of `THRESHOLD` or more alone, the largest first;
    * ``span``, m(clean) − m(another sequence), with its standard error, ``span_error``.

    Where the span is not positive, or within `NOISE` standard errors, no lead is resolved and effects are not numbers.
    Raises where `corrupted_pairs` does, and for fewer than two pairs.
    """
    weight = member(Weight, weight)
    if n_pairs < 2:
        raise MechinterpError(f"n_pairs is {n_pairs}; edges carry what they carry in another sequence: give 2 or more")
    require_separate_tokens(task)
    pairs = corrupted_pairs(task, Corruption.swap_label, n_pairs=n_pairs, seed=seed)
    network = network_of(model)
    with torch.no_grad():
        cuts = _Cuts(run_with_cache(network, pairs.clean.inputs), pairs)
        rows = _attention(cuts) + _paths(cuts)
        nodes = _nodes(cuts)
    for row in rows:
        row |= {f"{end}_{name}": value for end in ("source", "target") for name, value in nodes[row[end]].items()}
    table, names = pd.DataFrame(rows).assign(span=cuts.span, span_error=cuts.error, n_pairs=n_pairs), {}
    if cuts.resolved:  # else no effect is a number
        names = operations(table, induction_head_evidence(network, task, n_pairs=n_pairs, seed=seed))
    table["operation"] = [names.get(edge, "") for edge in zip(table["source"], table["target"], strict=True)]
    return weighted(table, weight)


def weighted(table: pd.DataFrame, weight: Weight | str = Weight.effect, threshold: float = THRESHOLD) -> pd.DataFrame:
    """The table of `circuit_edges` with the columns ``weight`` and ``drawn`` for another weight or threshold (> 0)."""
    weight, threshold = checked(weight, threshold)
    chosen = table["effect" if weight is Weight.effect else "moved"]
    beyond = table["effect"].abs() > NOISE * table["error"] if weight is Weight.effect else True
    return table.assign(weight=chosen, drawn=(chosen.abs() >= threshold) & beyond)


def checked(weight: Weight | str, threshold: float) -> tuple[Weight, float]:
    """The weight and the threshold; MechinterpError where one is not valid."""
    if not 0 < threshold < math.inf:
        raise MechinterpError(f"threshold is {threshold}; expected more than 0")
    return member(Weight, weight), threshold


def operations(table: pd.DataFrame, evidence: pd.DataFrame) -> dict[tuple[str, str], str]:
    """The operations of an induction head that a network has (names of `planted.Operation`), by edge.

    It has an operation where the corresponding fact of `induction_head_evidence` has a value of 0.5 or more and the
    effect of the edge is at least `THRESHOLD` and beyond noise. With a value far above 1, which is no share of the
    answer, the fact does not hold, but the operation is there: a network copies labels although it copies all. Effects
    are on the answer: if one operation is missing, the others have none.
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
    helps = (table["effect"] >= THRESHOLD) & (table["effect"] > NOISE * table["error"])
    edges = set(zip(table["source"][helps], table["target"][helps], strict=True))
    return {edge: operation.name for edge, (operation, fact_holds) in by_edge.items() if fact_holds and edge in edges}


@dataclass
class _Cuts:
    """A network's activations on clean sequences, and its forward pass without an edge."""

    base: Activations
    pairs: Pairs
    other: Activations = field(init=False)
    """Every activation in the other sequence."""
    layers: range = field(init=False)
    span: float = field(init=False)
    error: float = field(init=False)

    def __post_init__(self):
        self.other = Activations(self.base.network, {hook: x.roll(1, 0) for hook, x in self.base.values.items()})
        self.layers, pairs = range(self.base.n_layers), self.pairs
        self._lead = self.lead(self.base.logits)
        classes = None if pairs.target_classes is None else pairs.target_classes[:, 0]
        self._classes = None if classes is None else torch.stack([classes, classes.roll(1)], dim=1)
        difference = self._lead - self.lead(self.other.logits)
        self.span, self.error = float(difference.mean()), standard_error(difference, self._classes)

    @property
    def resolved(self) -> bool:
        """Whether the lead is beyond noise."""
        return self.span > NOISE * self.error

    def at(self, role: str) -> Bool[Tensor, "batch pos"]:
        return self.pairs.roles[role]

    def replaced(self, hook: str, value: Tensor) -> dict[str, float]:
        """The lead with an activation replaced, and the effect with its error."""
        return self.measured(self.base.forward_from(hook, value))

    def elsewhere(self, hook: str, role: str, head: int | None = None) -> dict[str, float]:
        """The lead with the other sequence's activation at the tokens of a role, and the effect with its error."""
        return self.measured(patched(self.base, self.other, Site(hook, role, head), self.pairs.roles))

    def measured(self, logits: Float[Tensor, "batch n_labels"]) -> dict[str, float]:
        """The lead in these logits, and the effect with its error."""
        lead, unit = self.lead(logits), self.span if self.resolved else float("nan")
        lost = self._lead - lead
        error = standard_error(lost, self._classes) / unit
        return {"value": float(lead.mean()), "effect": float(lost.mean()) / unit, "error": error}

    def lead(self, logits: Float[Tensor, "batch n_labels"]) -> Float[Tensor, "batch"]:
        """The lead of every sequence in these logits."""
        return Metric.logit_difference.per_sequence(logits, self.pairs.answers, self.pairs.wrong_labels)

    @property
    def roles(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(role for role in ROLES if role in self.pairs.roles)

    def queries(self, layer: int) -> tuple[str, ...]:
        """Roles of the queries that are read: all, and in the last layer the target alone."""
        return ("target",) if layer == self.layers[-1] else self.roles

    def links(self, layer: int) -> dict[tuple[str, str], Bool[Tensor, "batch 1 query key"]]:
        """The pairs of tokens of a key role and a query role, as masks; without roles that have no such pair."""
        causal = torch.ones(2 * (self.pairs.roles["target"].shape[1],), dtype=torch.bool).tril()
        masks = {
            (key, query): (self.at(query)[:, :, None] & self.at(key)[:, None, :] & causal)[:, None]
            for query, key in product(self.queries(layer), self.roles)
        }
        return {roles: mask for roles, mask in masks.items() if mask.any()}

    def changes(self, receiver: Receiver) -> dict[str, Float[Tensor, "batch pos d_model"]]:
        """What tokens, heads and MLPs before a receiver write in the other sequence, minus what they write here."""
        hooks = {"token": "hook_embed"}
        for n in range(receiver.n_layers_read(self.base.network.model)):
            hooks[str(n)] = f"blocks.{n}.hook_attn_out"
            hooks |= {f"{n}.mlp": f"blocks.{n}.hook_mlp_out"} if n < receiver.layer and self.mlps else {}
        return {name: self.other[hook] - self.base[hook] for name, hook in hooks.items()}

    @property
    def mlps(self) -> bool:
        """Whether layers have MLPs."""
        return not self.base.network.model.attn_only


def _attention(cuts: _Cuts) -> list[dict[str, Any]]:
    """Attention edges of every layer, and edges of kind ``match`` and ``select`` of all layers but the first."""
    rows, base = [], cuts.base
    for layer in cuts.layers:
        attn, reads = f"blocks.{layer}.attn", f"{layer}." if layer else ""
        q, v, z, scores, pattern = (base[f"{attn}.hook_{name}"] for name in ("q", "v", "z", "attn_scores", "pattern"))
        W_O = base.network.parameters.get(f"{attn}.W_O")
        write = v if W_O is None else torch.einsum("bphk,hkd->bphd", v, W_O)
        size, links = base[f"blocks.{layer}.hook_resid_pre"].norm(dim=-1), cuts.links(layer)
        rows_read = slice(-1 if layer == cuts.layers[-1] else None, None)  # of the last layer, the target's row only
        from_key = {}
        for key in cuts.roles:
            keys = cuts.at(key)[:, None, None]
            left = attention_pattern(scores[:, :, rows_read].masked_fill(keys, -torch.inf))
            left = left.nan_to_num(0.0)  # a query without another key attends to nothing
            on_keys = pattern[:, :, rows_read] * keys
            moved = torch.einsum("bhqp,bphd->bqd", on_keys, write).norm(dim=-1)
            from_key[key] = torch.einsum("bhqp,bphk->bqhk", left, v), on_keys.sum(dim=-1).mean(dim=1), moved
        for key, query in links:
            (written, attention, moved), at = from_key[key], cuts.at(query)
            rows.append(
                {"source": f"{reads}v.{key}" if layer else f"token.{key}", "target": f"{layer}.{query}"}
                | {"layer": layer, "kind": "attention"}
                | cuts.replaced(f"{attn}.hook_z", torch.where(at[:, :, None, None], written, z))
                | {"attention": float(attention[at[:, rows_read]].mean())}
                | {"moved": float(moved[at[:, rows_read]].mean() / size[at].mean())}
            )
        if not layer:
            continue
        elsewhere = attention_scores(base.network, layer, q, cuts.other[f"{attn}.hook_k"])
        for (key, query), mask in links.items():
            effect = cuts.replaced(f"{attn}.hook_attn_scores", torch.where(mask, elsewhere, scores))
            ends = {"source": f"{layer}.k.{key}", "target": f"{layer}.q.{query}"}
            rows.append(ends | {"layer": layer, "kind": "match", **effect})
        for role in cuts.queries(layer):
            ends = {"source": f"{layer}.q.{role}", "target": f"{layer}.{role}"}
            rows.append(ends | {"layer": layer, "kind": "select", **cuts.elsewhere(f"{attn}.hook_q", role)})
    return rows


def _paths(cuts: _Cuts) -> list[dict[str, Any]]:
    """Edges from tokens and from what heads and MLPs wrote to what later components read, role by role."""
    rows, base = [], cuts.base
    readers: dict[tuple[int, str], list[Receiver]] = {}
    for receiver in receivers(base):
        if receiver.layer or receiver.through == "mlp":  # of layer 0, attention reads tokens
            readers.setdefault((receiver.layer, receiver.through), []).append(receiver)
    for (layer, through), heads in readers.items():
        output, hook = heads[0].is_output, heads[0].hook
        asks = through in ("q", "mlp")
        roles = ("target",) if output else cuts.queries(layer) if asks else cuts.roles
        for sender, change in cuts.changes(heads[0]).items():
            changed = base[hook] + sum(receiver.reads(base, change, Scale.recomputed) for receiver in heads)
            for role in roles:
                at = torch.tensor(True) if output else cuts.at(role).view(*change.shape[:2], *(changed.ndim - 2) * (1,))
                ends = {"source": f"{sender}.{role}", "target": "answer" if output else f"{layer}.{through}.{role}"}
                effect = cuts.replaced(hook, torch.where(at, changed, base[hook]))
                rows.append(ends | {"layer": layer, "kind": "path", **effect})
    return rows


def _nodes(cuts: _Cuts) -> dict[str, dict[str, Any]]:
    """The effect of every node, with its error, and with several heads those that have an effect alone; that of the
    answer is 1."""
    hooks = {f"token.{role}": ("hook_embed", role) for role in cuts.roles}
    for layer in cuts.layers:
        hooks |= {f"{layer}.{role}": (f"blocks.{layer}.hook_attn_out", role) for role in cuts.queries(layer)}
        if cuts.mlps:
            hooks |= {f"{layer}.mlp.{role}": (f"blocks.{layer}.hook_mlp_out", role) for role in cuts.queries(layer)}
        for name in "qkv" if layer else "":
            roles = cuts.queries(layer) if name == "q" else cuts.roles
            hooks |= {f"{layer}.{name}.{role}": (f"blocks.{layer}.attn.hook_{name}", role) for role in roles}
    nodes: dict[str, dict[str, Any]] = {node: cuts.elsewhere(hook, role) for node, (hook, role) in hooks.items()}
    nodes["answer"] = cuts.measured(cuts.other.logits)
    if cuts.base.n_heads > 1:
        for node in nodes.values():
            node["heads"] = ""
        for layer in cuts.layers:
            for role in cuts.queries(layer):
                nodes[f"{layer}.{role}"]["heads"] = _heads(cuts, f"blocks.{layer}.attn.hook_z", role)
    for node in nodes.values():
        del node["value"]
    return nodes


def _heads(cuts: _Cuts, hook: str, role: str) -> str:
    """The heads that have an effect alone, the largest first."""
    alone = {head: cuts.elsewhere(hook, role, head) for head in range(cuts.base.n_heads)}
    of_size = [
        (-abs(found["effect"]), head)
        for head, found in alone.items()
        if abs(found["effect"]) >= THRESHOLD and abs(found["effect"]) > NOISE * found["error"]
    ]
    return " ".join(str(head) for _, head in sorted(of_size))
