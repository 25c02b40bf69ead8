"""The marks of a circuit's picture: arrows, nodes and the names of operations, as SVG."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import networkx as nx

from mechinterp.circuits.certainty import opacity
from mechinterp.circuits.curves import Curve, Point, at_distance, piece, point_at
from mechinterp.circuits.layout import ANSWER, PORT, RADIUS, Layout
from mechinterp.circuits.look import Look
from mechinterp.labels import node_name

WIDEST = 7.0
"""Width of a line of weight 1, in pixels; heavier ones grow up to 1.5."""
_LETTERS = {"query": "q", "key": "k", "value": "v", "mlp": "m"}
_SPOTS = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)
"""Where along its edge the name of an operation may stand, the best place first."""


@dataclass(frozen=True)
class Marks:
    """The marks of graphs with one layout; names of operations have places that suit all of these graphs."""

    graphs: Iterable[nx.DiGraph]
    layout: Layout
    look: Look

    def __post_init__(self):
        object.__setattr__(self, "graphs", list(self.graphs))
        object.__setattr__(self, "_pills", self._placed_pills())

    def of(self, graph: nx.DiGraph) -> list[str]:
        """Edges that are drawn, the heaviest first, nodes, and names of operations."""
        drawn = sorted(_drawn(graph), key=lambda each: -abs(each[2]["weight"]))
        full = 1.0 if graph.graph["weight"] != "effect" else opacity(graph.graph["span"], graph.graph["span_error"])
        parts = [self._edge(graph, *each, full) for each in drawn]
        touched = {end for source, target, _ in drawn for end in (source, target)}
        parts += [self._node(graph, name, name in touched) for name in self.layout.places]
        named = _by_operation(graph)
        return parts + [self._pill(graph, *edges[0], len(edges) - 1) for edges in named.values()]

    def named(self, edge: Mapping[str, Any]) -> str:
        """The name of an edge's operation."""
        return self.look.name(edge["operation"])

    def _edge(self, graph: nx.DiGraph, source: str, target: str, edge: Mapping[str, Any], full: float) -> str:
        """An arrow with a tooltip that names the edge and its weight."""
        curve, sign = self._curve(graph, source, target), "helps" if edge["weight"] > 0 else "hurts"
        error = f" ± {edge['error']:.3f}" if edge["weight"] == edge["effect"] else ""
        ends = " → ".join(self.place_name(graph, name) for name in (source, target))
        name = f" ({self.named(edge)})" if edge["operation"] else ""
        label = f"{edge['kind']}, {ends}: {edge['weight']:+.3f}{error}{name}"
        faint = f' opacity="{full:.2f}"' if full < 0.995 else ""
        own = self.look.own_class(edge["operation"]) if edge["operation"] else ""
        return f"<g{faint}><title>{safe(label)}</title>{arrow(curve, line_width(edge['weight']), sign, own)}</g>"

    def place_name(self, graph: nx.DiGraph, name: str) -> str:
        """A node in words: "layer 2, head 3: keys of the correct label"."""
        return self.look.labels.get(name) or node_name(name, self.look.name(graph.nodes[name]["role"]))

    def _node(self, graph: nx.DiGraph, name: str, touched: bool) -> str:
        """A node, shaded by its effect: a square with a letter for q, k and v, a box for the answer, else a circle; a
        dot where neither an edge nor an effect touches it."""
        node, (x, y) = graph.nodes[name], self.layout.places[name]
        effect, error, kind = node["effect"], node["error"], node["kind"]
        letter, head = _LETTERS.get(kind, ""), f"{node['head'] + 1}" if node["head"] >= 0 else ""
        label, shade, sign = "no effect resolved", 0.0, "helps"
        if effect is not None:
            label = f"effect {effect:+.3f} ± {error:.3f}"
            shade = min(1.0, abs(effect)) if abs(effect) > graph.graph["level"] * error else 0.0
            sign = "helps" if effect > 0 else "hurts"
        if node.get("heads"):
            label += f"; heads {_heads(node['heads'])}"
        title = f"<g><title>{safe(f'{self.place_name(graph, name)}: {label}')}</title>"
        if kind not in ("token", "answer") and not touched and shade < graph.graph["threshold"]:
            return f'{title}<circle cx="{n(x)}" cy="{n(y)}" r="3.2" class="idle"/></g>'
        if kind == "answer":
            width, height = ANSWER
            shape = f'<rect x="{n(x - width / 2)}" y="{n(y - height / 2)}" width="{width}" height="{height}" rx="13"'
        elif letter:
            half = PORT + (2 if head else 0)
            shape = f'<rect x="{n(x - half)}" y="{n(y - PORT)}" width="{n(2 * half)}" height="{n(2 * PORT)}" rx="3"'
        else:
            shape = f'<circle cx="{n(x)}" cy="{n(y)}" r="{n(RADIUS)}"'
        own = self.look.own_class(name)
        parts = [title, f'{shape} class="node{" " * bool(own)}{own}"/>']
        if shade >= 0.005:
            parts.append(f'{shape} class="{own or sign}-head" fill-opacity="{shade:.2f}"/>')
        if inside := "answer" if kind == "answer" else letter + head if letter or kind == "written" else "":
            size = "port" if head and letter else "letter"
            parts.append(text(x, y + 4, inside, f"{size} middle{' on' if shade > 0.75 else ''}"))
        if name in self.look.labels:
            parts.append(text(x + RADIUS + 4, y + 4, self.look.labels[name], "small"))
        elif node.get("heads"):
            parts.append(text(x + RADIUS + 4, y + 16, f"h {_heads(node['heads'])}", "small"))
        return "".join(parts) + "</g>"

    def _pill(self, graph: nx.DiGraph, source: str, target: str, edge: Mapping[str, Any], more: int) -> str:
        """The name of an operation with the weight of its heaviest edge, beside that edge."""
        x, y = self._pills[source, target]  # pyright: ignore[reportAttributeAccessIssue]
        words = self._words(edge, more)
        half = _half(words)
        own = self.look.own_class(edge["operation"])
        box = f'<rect class="pill{" " * bool(own)}{own}" x="{n(x - half)}" y="{n(y - 10)}"'
        return f'{box} width="{n(2 * half)}" height="20" rx="10"/>' + text(x, y + 4, words, "letter middle")

    def _words(self, edge: Mapping[str, Any], more: int) -> str:
        """An operation's name, and where there is room the weight of its heaviest edge, and how many others do it."""
        if self.layout.cramped:
            return self.named(edge)
        return f"{self.named(edge)} {edge['weight']:.2f}" + (f" +{more}" if more else "")

    def _placed_pills(self) -> dict[tuple[str, str], Point]:
        """The middle of the name of every operation's heaviest edges, where it hides the least in any graph."""
        wanted: dict[tuple[str, str], tuple[nx.DiGraph, str]] = {}
        edges: dict[tuple[str, str], tuple[Curve, float]] = {}
        for graph in self.graphs:
            for source, target, edge in _drawn(graph):
                width = max(line_width(edge["weight"]), edges.get((source, target), (None, 0.0))[1])
                edges[source, target] = self._curve(graph, source, target), width
            for found in _by_operation(graph).values():
                (source, target, edge), more = found[0], len(found) - 1
                words = self._words(edge, more)
                if len(words) > len(wanted.get((source, target), (graph, ""))[1]):
                    wanted[source, target] = graph, words
        lines = {
            ends: ([point_at(curve, t / 40) for t in range(2, 39)], width) for ends, (curve, width) in edges.items()
        }
        boxes = [
            (x - RADIUS - 3, y - RADIUS - 3, x + RADIUS + 3, y + RADIUS + 3) for x, y in self.layout.places.values()
        ]
        bottom = self.layout.rows[0][2]
        for role, x in self.layout.columns.items():
            half = 3.6 * max(len(line) for line in self.layout.column_name(role, self.look))
            boxes.append((x - half, bottom + 14, x + half, self.layout.height))
        placed: dict[tuple[str, str], Point] = {}
        for ends in sorted(wanted):
            half, (curve, width) = _half(wanted[ends][1]), edges[ends]
            best = min(
                (self._cost(ends, box, lines, boxes) + 0.6 * rank + 0.04 * away, rank, x, y, box)
                for rank, t in enumerate(_SPOTS)
                for x, y, away in _beside(curve, t, half, width)
                for box in [(x - half, y - 10, x + half, y + 10)]
            )
            placed[ends] = best[2], best[3]
            boxes.append(best[4])
        return placed

    def _cost(self, ends: tuple[str, str], box: tuple, lines: Mapping, boxes: Iterable[tuple]) -> float:
        """How much a box hides: other boxes before all, then its own edge, then others."""
        left, top, right, bottom = box
        if left < 4 or top < 62 or right > self.layout.width - 4 or bottom > self.layout.height - 4:
            return 1e6
        cost = sum(
            1e3 for other in boxes if left < other[2] and other[0] < right and top < other[3] and other[1] < bottom
        )
        cost += 30.0 * (left < self.layout.left + 4)
        for other, (points, width) in lines.items():
            reach = width / 2 + 1
            hidden = sum(left - reach < x < right + reach and top - reach < y < bottom + reach for x, y in points)
            cost += hidden * (4.0 if other == ends else 1.5)
        return cost

    def _curve(self, graph: nx.DiGraph, source: str, target: str) -> Curve:
        """The curve of an edge: straight, around the nodes in between, or, for keys, upwards and then across."""
        from_node, to_node, kind = graph.nodes[source], graph.nodes[target], graph.edges[source, target]["kind"]
        (x0, y0), (x1, y1) = (self.layout.places[name] for name in (source, target))
        y1 += ANSWER[1] / 2 - RADIUS if to_node["kind"] == "answer" else 0  # which is higher than other nodes
        dx, dy = x1 - x0, y1 - y0
        same = from_node["role"] == to_node["role"]
        if not same and (kind == "match" or from_node["kind"] == "value"):  # a long curve arrives horizontally
            below = -0.3 * dy * max(0.0, 1 - abs(dx) / 480)
            beside_query = from_node["kind"] == "value" and 0 < dx < 200 and to_node["role"] != graph.graph["roles"][-1]
            across = 0.0 if from_node["head"] >= 0 else -0.08 if beside_query else 0.1
            if dx > 0 and self._has_neighbour(graph, target):  # on the side that the curve comes from
                return (x0, y0), (x0, y0 + 0.8 * dy), (x1 - 30, y1 + 70), (x1, y1)
            return (x0, y0), (x0 + across * dx, y0 + 0.8 * dy), (x0 + 0.5 * dx, y1 + below), (x1, y1)
        below_mlp = from_node["below_mlp"] and (to_node["kind"], from_node["layer"]) != ("mlp", to_node["layer"])
        to_answer = to_node["kind"] == "answer"
        if kind == "path" and not (to_answer and from_node["layer"] == to_node["layer"] - 1 and not below_mlp):
            skips = to_node["layer"] - from_node["layer"] - 1 + below_mlp + (to_node["kind"] == "mlp")  # rows between
            column, half = self.layout.columns[to_node["role"]], self.layout.halves[to_node["role"]] / 0.75
            aside = [(x - column) / 0.75 + half if half else 0.0 for x in (x0, x1)]  # to the left edge of the heads
            if to_answer:
                out, end = 58 + 16 * skips + half, 8 + 5 * skips
                return (x0, y0), (x0 + out, y0 - 50), (x0 + out, y1 + 50), (x1 + end, y1)
            if to_node["kind"] in ("query", "mlp"):
                out = 20 + 12 * skips + half
                return (x0, y0), (x0 + out * 1.2, y0 + 0.33 * dy), (x1 + out, y1 - 0.33 * dy), (x1, y1)
            if passed := _rows_passed(from_node, to_node):
                out = (
                    {"key": 62, "value": 56}.get(to_node["kind"], 50) + 8 * passed + 10 * (from_node["kind"] == "token")
                )
                return (x0, y0), (x0 - out - aside[0], y0 - 25), (x1 - out - aside[1], y1 + 45), (x1, y1)
            if skips:
                out = {"key": 32, "value": 40}.get(to_node["kind"], 30)
                control = (x0 - out * 1.2 - aside[0], y0 + 0.33 * dy), (x1 - out - aside[1], y1 - 0.33 * dy)
                return (x0, y0), *control, (x1, y1)
        if kind == "attention" and from_node["kind"] == "token" and same:
            return (x0, y0), (x0 + 26, y0 + 0.3 * dy), (x1 + 26, y1 - 0.3 * dy), (x1, y1)
        return (x0, y0), (x0 + dx / 3, y0 + dy / 3), (x1 - dx / 3, y1 - dy / 3), (x1, y1)

    def _has_neighbour(self, graph: nx.DiGraph, name: str) -> bool:
        """Whether another head's node of the same kind stands to the left of a node."""
        alike, (x, y) = ("kind", "layer", "role"), self.layout.places[name]
        return any(
            other_y == y and other_x < x
            for other, (other_x, other_y) in self.layout.places.items()
            if all(graph.nodes[other][each] == graph.nodes[name][each] for each in alike)
        )


def _rows_passed(source: Mapping[str, Any], target: Mapping[str, Any]) -> int:
    """The number of rows of values and keys between two nodes."""
    return target["layer"] - max(source["layer"] + 1, 1)


def _beside(curve: Curve, t: float, half: float, width: float) -> Iterable[tuple[float, float, float]]:
    """Middles of boxes that touch the curve at a parameter from either side, with their distance from it."""
    (x, y), (ax, ay), (bx, by) = (point_at(curve, s) for s in (t, t - 0.02, t + 0.02))
    length = math.hypot(bx - ax, by - ay) or 1.0
    nx_, ny_ = -(by - ay) / length, (bx - ax) / length  # the normal
    for gap in (4.0, 9.0, 16.0, 26.0):
        away = abs(nx_) * half + abs(ny_) * 10 + width / 2 + gap
        for side in (1, -1):
            yield x + side * nx_ * away, y + side * ny_ * away, gap


def _drawn(graph: nx.DiGraph) -> list[tuple[str, str, Mapping[str, Any]]]:
    return [each for each in graph.edges(data=True) if each[2]["drawn"]]


def _by_operation(graph: nx.DiGraph) -> dict[tuple[str, int], list[tuple[str, str, Mapping[str, Any]]]]:
    """The edges of every operation in every layer that are drawn, the heaviest first."""
    found: dict[tuple[str, int], list] = {}
    for each in sorted(_drawn(graph), key=lambda each: -abs(each[2]["weight"])):
        if each[2]["operation"]:
            layer = graph.nodes[each[0]]["layer"] if each[2]["operation"] == "write" else each[2]["layer"]
            found.setdefault((each[2]["operation"], layer), []).append(each)
    return found


def _heads(names: str) -> str:
    """Heads as a picture counts them, from 1."""
    return ", ".join(str(int(head) + 1) for head in names.split())


def _half(words: str) -> float:
    return 3.2 * len(words) + 8


def line_width(weight: float) -> float:
    """The width of an edge, in pixels."""
    return max(1.2, WIDEST * min(abs(weight), 1.5))


def arrow(curve: Curve, width: float, sign: str, own: str = "") -> str:
    """A line with its head, between the borders of the nodes at both ends; `own` is the class of its colour."""
    head = 5 + 0.9 * width
    start, tip = at_distance(curve, RADIUS + 1), at_distance(curve, RADIUS + 1, from_end=True)
    line = piece(curve, start, at_distance(curve, RADIUS + head, from_end=True))
    (x, y), (bx, by) = point_at(curve, tip), line[3]
    length = math.hypot(x - bx, y - by) or 1.0
    ux, uy = (x - bx) / length, (y - by) / length
    half = 2.5 + 0.62 * width
    wings = [(bx - uy * half, by + ux * half), (bx + uy * half, by - ux * half)]
    path = f"M{_xy(line[0])}C{_xy(line[1])} {_xy(line[2])} {_xy(line[3])}"
    shape = f"M{_xy((x, y))}L{_xy(wings[0])}L{_xy(wings[1])}Z"
    also = f" {own}" if own else ""
    return (
        f'<path class="line {sign}{also}" stroke-width="{width:.2f}" d="{path}"/>'
        f'<path class="{own or sign}-head" d="{shape}"/>'
    )


def text(x: float | int, y: float | int, words: str, style: str) -> str:
    """A line of text in the classes of `style`."""
    return f'<text x="{n(x)}" y="{n(y)}" class="{style}">{safe(words)}</text>'


def n(pixels: float | int) -> str:
    """Pixels to a tenth, in few characters."""
    return f"{pixels:.1f}".removesuffix(".0")


def _xy(point: Point) -> str:
    return f"{n(point[0])} {n(point[1])}"


def safe(words: str) -> str:
    """Text for XML: markup escaped, and characters that XML does not allow replaced by U+FFFD."""
    return escape(re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", words))
