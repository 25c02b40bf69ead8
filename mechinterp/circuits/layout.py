"""The places of a circuit's nodes: columns are roles, rows follow the computation upwards, heads stand side by side.

A layout is that of one or several graphs, so that pictures of several checkpoints can be superimposed. Where heads have
nodes of their own, a column has those nodes only that an edge or an effect touches in any of the graphs; heads without
any are counted. Otherwise all nodes have places, which do not depend on weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import wrap

import networkx as nx

from mechinterp.circuits.look import Look

RADIUS, PORT, ANSWER = 10.0, 9.0, (72, 26)
"""Radius of a circle; half the side of a square; width and height of the answer. Pixels."""
_TOP, _HEADS, _STAGGER = 104, 30, 34
"""Height above the answer; distance of heads side by side; of their keys above their values. Pixels."""
_HEIGHTS = {"written 0": 100, "key": 92, "query": 74, "written": 74, "mlp": 70, "answer": 76}
"""Distance of a row to the one below, in pixels; values of a single head stand beside its keys."""
_WIDE, _NARROW, _NARROWEST = 150.0, 96.0, 54.0
"""Distances of columns: by default, below which names take two lines, and the least. Pixels."""


@dataclass(frozen=True)
class Layout:
    """Places in pixels, downwards from the top left corner."""

    places: Mapping[str, tuple[float, float]]
    """Of the nodes that are shown."""
    columns: Mapping[str, float]
    """The middle of every role's column."""
    halves: Mapping[str, float]
    """Half the width that heads side by side take in a column."""
    rows: Sequence[tuple[str, int, float]]
    """Kind, layer and place of every row, upwards; of values and keys one."""
    idle: Mapping[int, int]
    """By layer, the number of its heads without a node; empty where heads have no nodes of their own."""
    left: float
    """Where names of rows end."""
    width: int
    height: int
    """Of the picture without its legend; ``width`` is that of the columns, before `Look.width` makes all smaller."""
    narrow: bool
    """Whether names of columns and rows take two lines."""
    cramped: bool
    """Whether there is no room for numbers beside names of operations."""

    @classmethod
    def of(cls, graphs: Iterable[nx.DiGraph], look: Look, distance: float | None = None) -> "Layout":
        """The layout of graphs with the same nodes; `distance` is that of their columns, by default from the look."""
        graphs = list(graphs)
        first = graphs[0]
        n_layers, roles = first.graph["n_layers"], _columns(first)
        apart = any(node["head"] >= 0 for node in first.nodes.values())
        shown = {name for graph in graphs for name in _active(graph)} if apart else set(first)
        groups: dict[tuple[int, str], list[int]] = {}
        for name in first:
            node = first.nodes[name]
            if name in shown and node["head"] >= 0:
                heads = groups.setdefault((node["layer"], node["role"]), [])
                groups[node["layer"], node["role"]] = sorted({*heads, node["head"]})
        room = {
            role: _HEADS * (max([len(h) for (_, r), h in groups.items() if r == role] or [1]) - 1) for role in roles
        }
        halves = {role: width / 2 + (_HEADS / 4 if apart and width else 0) for role, width in room.items()}
        lanes = 68 + 12 * n_layers + halves[roles[-1]]  # of the edges to the answer
        narrow = (distance or _WIDE) < _NARROW or bool(look.width and look.width < 640)
        left = 100.0 if narrow else 150.0
        start = left + 22 + 20 * n_layers + halves[roles[0]]  # beside a column, edges that skip layers run side by side
        step = distance or _WIDE
        if distance is None and look.width:
            taken = start + lanes + sum(halves[one] + halves[other] for one, other in pairwise(roles))
            step = min(max((look.width - taken) / max(1, len(roles) - 1), _NARROWEST), 2 * _WIDE)
        narrow = narrow or step < _NARROW
        columns, x = {roles[0]: start}, start
        for one, other in pairwise(roles):
            aside = halves[one] + halves[other]
            x += max(step, 0.6 * step + aside) if distance is None and not look.width else step + aside
            columns[other] = x
        rows = _rows(n_layers, any(node["kind"] == "mlp" for node in first.nodes.values()), apart)
        at_row = {(kind, layer): y for kind, layer, y in rows}
        places = {}
        for name, node in first.nodes.items():
            if name not in shown and node["kind"] not in ("token", "answer"):
                continue
            kind, layer, role = node["kind"], node["layer"], node["role"]
            x, y = columns[role], at_row["key" if kind == "value" else kind, layer]
            if node["head"] >= 0:
                heads = groups[layer, role]
                x += _HEADS * (heads.index(node["head"]) - (len(heads) - 1) / 2)
                x += {"value": -_HEADS / 4, "key": _HEADS / 4}.get(kind, 0.0)
                y += _STAGGER if kind == "value" else 0
            else:
                x -= 30 if kind == "value" else 0
            places[name] = (x, float(y))
        idle = {}
        if apart:
            for layer in range(n_layers):
                heads = {node["head"] for node in first.nodes.values() if node["layer"] == layer and node["head"] >= 0}
                seen = {first.nodes[name]["head"] for name in shown if first.nodes[name]["layer"] == layer}
                idle[layer] = len(heads - seen)
        height = int(max(y for _, _, y in rows)) + (56 if narrow else 44)
        width = int(columns[roles[-1]] + lanes)
        return cls(places, columns, halves, rows, idle, left, width, height, narrow, step < 0.8 * _NARROW)

    def column_name(self, role: str, look: Look) -> list[str]:
        """The name of a column, in one or two lines."""
        name = look.name(role)
        return wrap(name, max(8, len(name) // 2 + 2)) if self.narrow else [name]


def _columns(graph: nx.DiGraph) -> list[str]:
    """The roles of the nodes from left to right, also those that someone has changed; the target's is the last."""
    of_nodes = dict.fromkeys(node["role"] for node in graph.nodes.values())
    known = [role for role in graph.graph["roles"] if role in of_nodes]
    added, last = [role for role in of_nodes if role not in known], graph.nodes["answer"]["role"]
    return [role for role in [*known, *added] if role != last] + [last]


def _active(graph: nx.DiGraph) -> set[str]:
    """The nodes that an edge that is drawn touches, or whose effect is large enough and beyond noise."""
    found = {end for *ends, edge in graph.edges(data=True) if edge["drawn"] for end in ends}
    least, level = graph.graph["threshold"], graph.graph["level"]
    for name, node in graph.nodes.items():
        effect = node["effect"]
        if effect is not None and abs(effect) >= max(least, level * node["error"]):
            found.add(name)
    return found


def _rows(n_layers: int, mlps: bool, apart: bool) -> list[tuple[str, int, float]]:
    """Kind, layer and place of every row, from the tokens up to the answer."""
    levels = [("token", -1)]
    for layer in range(n_layers):
        levels += [("key", layer), ("query", layer)] if layer else []
        levels += [("written", layer), *([("mlp", layer)] if mlps else [])]
    levels.append(("answer", n_layers))
    distances = [_HEIGHTS.get(f"{kind} {layer}") or _HEIGHTS[kind] for kind, layer in levels[1:]]
    if apart:
        distances = [each + _STAGGER * (kind == "key") for each, (kind, _) in zip(distances, levels[1:], strict=True)]
    return [(kind, layer, float(_TOP + sum(distances[number:]))) for number, (kind, layer) in enumerate(levels)]
