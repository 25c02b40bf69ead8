"""The circuit diagram as a graph: nodes, and the edges of `diagram` with their measured effects."""

import math
from typing import Any

import networkx as nx
import pandas as pd
from torch import nn

from mechinterp.circuits.certainty import edge_level, resolved
from mechinterp.circuits.diagram import Heads, Weight, checked, circuit_edges, head_of, least_weight, weighted
from mechinterp.circuits.svg import to_svg
from mechinterp.display import drawing
from mechinterp.errors import MechinterpError, member
from mechinterp.models.network import Network
from mechinterp.tasks.base import Task
from mechinterp.tasks.corruption import Pairs


class CircuitGraph(nx.DiGraph):
    """The graph of a circuit, which a notebook shows as its picture (`svg.to_svg`)."""

    def __repr__(self) -> str:
        if not self.graph.keys() >= {"resolved", "n_pairs"}:
            return f"<CircuitGraph: {len(self)} nodes, {self.number_of_edges()} edges>"
        drawn = sum(edge["drawn"] for *_, edge in self.edges(data=True))
        why = "" if self.graph["resolved"] else ", as nothing is resolved"
        edges = f"{self.number_of_edges()} edges, of which {drawn} are drawn{why}"
        return f"<CircuitGraph: {len(self)} nodes, {edges}; on {self.graph['n_pairs']} pairs>"

    def _repr_svg_(self) -> str | None:
        return to_svg(self) if self.graph.keys() >= {"n_layers", "weight"} and len(self) else None

    def _repr_html_(self) -> str | None:
        svg = self._repr_svg_()
        return svg and drawing(svg)


def circuit_graph(
    model: Network | nn.Module,
    task: Task,
    *,
    weight: Weight | str = Weight.effect,
    heads: Heads | str = Heads.apart,
    threshold: float | None = None,
    pairs: Pairs | None = None,
    n_pairs: int = 256,
    seed: int = 0,
) -> CircuitGraph:
    """The circuit of a network (`run.network(step)`) or hooked model: `graph_of` its `circuit_edges`."""
    weight, threshold = checked(weight, threshold)
    table = circuit_edges(model, task, heads=heads, pairs=pairs, n_pairs=n_pairs, seed=seed)
    return graph_of(table, weight=weight, threshold=threshold)


def graph_of(
    table: pd.DataFrame, *, weight: Weight | str = Weight.effect, threshold: float | None = None
) -> CircuitGraph:
    """The graph of a table of `circuit_edges`, or of the rows of one step of ``mi.analyse(run, "circuit")``.

    Nodes have ``kind`` (token, written, mlp, value, key, query, answer), ``layer`` (−1 for tokens), ``head`` (−1 for
    none), ``role``, ``effect``, ``error``, of several heads together ``heads``, and ``below_mlp``: whether an MLP of
    its layer is drawn above it. Edges have the columns of `circuit_edges`, with ``weight`` and ``drawn`` for the chosen
    weight and threshold. The graph has ``n_layers``, ``roles`` (the columns), ``weight``, ``threshold``, ``level`` (the
    standard errors that an effect must exceed), ``n_pairs``, ``span``, ``span_error``, ``ahead`` and ``resolved``. NaN
    becomes None. Places are those of `layout`. Raises for the rows of several steps.
    """
    if table.empty or table.duplicated(["source", "target"]).any():
        raise MechinterpError("a circuit graph is of one step; choose its rows: table[table['step'] == step]")
    weight, table = member(Weight, weight), weighted(table, weight, threshold)
    threshold = least_weight(table) if threshold is None else threshold
    first = table.iloc[0]
    attributes = {name: _json_value(first[name]) for name in ("span", "span_error", "ahead", "n_pairs")}
    n_layers, level = int(table["layer"].max()), edge_level(len(table))
    leads = resolved(first["span"], first["span_error"], first["ahead"])
    order = dict(
        zip([*table["source"], *table["target"]], [*table["source_column"], *table["target_column"]], strict=True)
    )
    roles = {_role(name, order): column for name, column in order.items()}
    attributes |= {"roles": sorted(roles, key=roles.__getitem__), "level": level, "resolved": leads}
    graph = CircuitGraph(n_layers=n_layers, weight=weight.name, threshold=threshold, **attributes)
    columns = [
        name for name in table if not str(name).startswith(("step", "source", "target", "span", "ahead", "n_pairs"))
    ]
    columns.append("source_head")
    mlps = any(".mlp." in name for name in order)
    of_node = [name for name in ("effect", "error", "heads") if f"source_{name}" in table]
    for row in table.to_dict("records"):
        for end in ("source", "target"):
            if row[end] not in graph:
                measured = {name: _json_value(row[f"{end}_{name}"]) for name in of_node}
                graph.add_node(row[end], **_node(row[end], _role(row[end], order), n_layers, mlps), **measured)
        graph.add_edge(row["source"], row["target"], **{str(name): _json_value(row[name]) for name in columns})
    return graph


_KINDS = {"q": "query", "k": "key", "v": "value", "mlp": "mlp"}


def _role(name: str, order: dict[str, int]) -> str:
    """The role of a node; that of the answer is the last column's."""
    if name != "answer":
        return name.rpartition(".")[2]
    return next(other.rpartition(".")[2] for other in order if order[other] == order[name] and other != "answer")


def _node(name: str, role: str, n_layers: int, mlps: bool) -> dict[str, Any]:
    """A node's kind, layer, head and role."""
    place = name.split(".")[:-1]
    kind = "answer" if name == "answer" else "token" if place == ["token"] else _KINDS.get(place[-1], "written")
    layer = n_layers if kind == "answer" else -1 if kind == "token" else int(place[0])
    place = {"kind": kind, "layer": layer, "head": head_of(name), "role": role}
    return place | {"below_mlp": mlps and kind == "written"}


def to_dict(graph: nx.DiGraph) -> dict[str, Any]:
    """The graph as node-link data for JSON, nodes and edges in their order."""
    return nx.node_link_data(graph, edges="edges")


def _json_value(value: Any) -> Any:
    """A value as JSON has it; a float that is not finite becomes None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
