"""The circuit diagram as a graph: nodes with their places, and the edges of `diagram` with their measured effects."""

import math
from dataclasses import dataclass
from typing import Any

import networkx as nx
import pandas as pd
from torch import nn

from mechinterp.circuits.diagram import NOISE, ROLES, THRESHOLD, Weight, checked, circuit_edges, weighted
from mechinterp.circuits.svg import to_svg
from mechinterp.display import drawing
from mechinterp.errors import MechinterpError, member
from mechinterp.models.network import Network
from mechinterp.tasks.base import Task


class CircuitGraph(nx.DiGraph):
    """The graph of a circuit, which a notebook shows as its picture (`svg.to_svg`)."""

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
    threshold: float = THRESHOLD,
    n_pairs: int = 256,
    seed: int = 0,
) -> CircuitGraph:
    """The circuit of a network (`run.network(step)`) or hooked model: `graph_of` its `circuit_edges`."""
    weight, threshold = checked(weight, threshold)
    return graph_of(circuit_edges(model, task, n_pairs=n_pairs, seed=seed), weight=weight, threshold=threshold)


def graph_of(
    table: pd.DataFrame, *, weight: Weight | str = Weight.effect, threshold: float = THRESHOLD
) -> CircuitGraph:
    """The graph of a table of `circuit_edges`, or of the rows of one step of ``mi.analyse(run, "circuit")``.

    Nodes have ``kind`` (token, written, mlp, value, key, query, answer), ``layer`` (−1 for tokens), ``role``,
    ``effect``, ``error``, with several heads ``heads``, and their place ``x``, ``y`` (pixels, downwards), which depends
    on layers, MLPs and roles only; ``below_mlp``: whether an MLP of its layer is drawn above it. Edges have
    the columns of `circuit_edges`, with ``weight`` and ``drawn`` for the chosen weight and threshold. The graph has
    ``n_layers``, ``weight``, ``threshold``, ``n_pairs``, ``span``, ``span_error`` and ``resolved``. NaN becomes None.
    Raises for the rows of several steps.
    """
    if table.empty or table.duplicated(["source", "target"]).any():
        raise MechinterpError("a circuit graph is of one step; choose its rows: table[table['step'] == step]")
    weight, table = member(Weight, weight), weighted(table, weight, threshold)
    first = table.iloc[0]
    attributes = {name: _json_value(first[name]) for name in ("span", "span_error", "n_pairs")}
    n_layers, resolved = int(table["layer"].max()), bool(first["span"] > NOISE * first["span_error"])
    graph = CircuitGraph(n_layers=n_layers, weight=weight.name, threshold=threshold, resolved=resolved, **attributes)
    columns = [name for name in table if not str(name).startswith(("step", "source", "target", "span", "n_pairs"))]
    places, of_node = _Places.of(table), [name for name in ("effect", "error", "heads") if f"source_{name}" in table]
    for row in table.to_dict("records"):
        for end in ("source", "target"):
            if row[end] not in graph:
                measured = {name: _json_value(row[f"{end}_{name}"]) for name in of_node}
                graph.add_node(row[end], **places.node(row[end]), **measured)
        graph.add_edge(row["source"], row["target"], **{str(name): _json_value(row[name]) for name in columns})
    return graph


def to_dict(graph: nx.DiGraph) -> dict[str, Any]:
    """The graph as node-link data for JSON, nodes and edges in their order."""
    return nx.node_link_data(graph, edges="edges")


def _json_value(value: Any) -> Any:
    """A value as JSON has it; a float that is not finite becomes None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


_KINDS = {"q": "query", "k": "key", "v": "value", "mlp": "mlp"}
_COLUMN, _TOP = 140, 96
_HEIGHTS = {"written 0": 96, "key": 92, "query": 70, "written": 70, "mlp": 70, "answer": 76}
"""Distance of a row to the one below, in pixels; values stand beside keys."""


@dataclass(frozen=True)
class _Places:
    """The places of nodes: columns are roles, rows follow the computation upwards."""

    n_layers: int
    mlps: bool
    roles: tuple[str, ...]

    @classmethod
    def of(cls, table: pd.DataFrame) -> "_Places":
        """Those of the nodes in a table."""
        nodes = {*table["source"], *table["target"]}
        roles = {name.split(".")[-1] for name in nodes}
        mlps = any(".mlp." in name for name in nodes)
        return cls(int(table["layer"].max()), mlps, tuple(role for role in ROLES if role in roles))

    def node(self, name: str) -> dict[str, Any]:
        """A node's kind, layer, role and place."""
        *place, role = ("", "target") if name == "answer" else name.split(".")
        kind = "answer" if name == "answer" else "token" if place == ["token"] else _KINDS.get(place[-1], "written")
        layer = {"answer": self.n_layers, "token": -1}.get(kind) if kind in ("answer", "token") else int(place[0])
        levels = ["token"]
        for n in range(self.n_layers):
            levels += [f"key {n}", f"query {n}"] if n else []
            levels += [f"written {n}", *([f"mlp {n}"] if self.mlps else [])]
        levels.append("answer")
        heights = [0] + [_HEIGHTS.get(level) or _HEIGHTS[level.split()[0]] for level in levels[1:]]
        row = levels.index(kind if kind in ("answer", "token") else f"{'key' if kind == 'value' else kind} {layer}")
        left = 162 + 20 * self.n_layers  # beside a column, the edges that skip layers run side by side
        x = left + _COLUMN * self.roles.index(role) - (30 if kind == "value" else 0)
        y = float(_TOP + sum(heights[row + 1 :]))
        below_mlp = self.mlps and kind == "written"
        return {"kind": kind, "layer": layer, "role": role, "x": float(x), "y": y, "below_mlp": below_mlp}
