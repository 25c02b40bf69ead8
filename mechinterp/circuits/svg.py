"""Circuit graphs as SVG documents; the same graph gives the same bytes.

Places come from the graph and do not depend on weights, so pictures of several checkpoints can be superimposed. Numbers
have a fixed precision, no element has an id, and arrowheads are separate shapes. Colours follow the reader's choice of
a light or dark page (``prefers-color-scheme``), and the style applies to the picture alone. Signs differ in colour
(Okabe–Ito) and in dashes.
"""

import math
import re
from collections.abc import Mapping
from textwrap import wrap
from typing import Any
from xml.sax.saxutils import escape

import networkx as nx

from mechinterp.circuits.curves import Curve, Point, at_distance, piece, point_at
from mechinterp.circuits.diagram import NOISE
from mechinterp.errors import MechinterpError

_STYLE = """
.circuit text{font:13px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;fill:#1a1a1a}
.circuit .title{font-size:16px;font-weight:600}
.circuit .quiet{fill:#595959;font-size:12px}
.circuit .middle{text-anchor:middle}.circuit .end{text-anchor:end}
.circuit .ground,.circuit .node{fill:#fff}
.circuit .rail{stroke:#d4d4d4;stroke-width:1.2;fill:none}
.circuit .node{stroke:#767676;stroke-width:1.2}
.circuit .line{fill:none}
.circuit .helps{stroke:#0072b2}.circuit .hurts{stroke:#d55e00;stroke-dasharray:6 4}
.circuit .helps-head{fill:#0072b2}.circuit .hurts-head{fill:#d55e00}
.circuit .pill{fill:#fff;stroke:#0072b2;stroke-width:1.2}
.circuit text.letter{font-size:12px}.circuit text.on{fill:#fff}
.circuit .note{stroke:#fff;stroke-width:6px;paint-order:stroke;stroke-linejoin:round}
@media (prefers-color-scheme:dark){
.circuit text{fill:#ececec}.circuit .quiet{fill:#b0b0b0}
.circuit .ground,.circuit .node,.circuit .pill{fill:#16181c}
.circuit .rail{stroke:#3c3f45}.circuit .node{stroke:#9a9a9a}
.circuit .helps,.circuit .pill{stroke:#56b4e9}.circuit .hurts{stroke:#f08a3c}
.circuit .helps-head{fill:#56b4e9}.circuit .hurts-head{fill:#f08a3c}
.circuit text.on{fill:#16181c}.circuit .note{stroke:#16181c}
}
"""
_NAMES = {
    "other_item": "other items",
    "other_label": "other labels",
    "other": "other tokens",
    "correct_item": "correct item",
    "correct_label": "correct label",
    "target": "target",
}
_RADIUS, _PORT, _ANSWER = 10.0, 9.0, (72, 26)
"""Radius of a circle; half the side of a square; width and height of the answer. Pixels."""
_BELOW, _LEFT_OF_COLUMNS = 44, 140
"""Height under the tokens; where row names end. Pixels."""
_WIDEST = 7.0
"""Width of a line of weight 1, in pixels; heavier ones grow up to 1.5."""


def to_svg(graph: nx.DiGraph, title: str = "Circuit") -> str:
    """A graph of `graph.circuit_graph` as an SVG document, with its legend. Markup in the title is escaped."""
    width, height = _size(graph)
    legend, below = _legend(graph, width)
    parts = [_ground(graph), _contents(graph, title), _moved(0, height, legend)]
    return _document(title, _described(graph), width, height + below, parts)


def film_strip(graphs: Mapping[int, nx.DiGraph], title: str = "Circuit over training") -> str:
    """Graphs by training step, as one SVG document: equal panels from left to right and downwards, and one legend.

    Raises without graphs, and for graphs that one legend does not describe: of another weight, threshold, number of
    pairs or number of layers.
    """
    first = _alike(graphs)
    width, height = _size(first)
    n = min(4, math.ceil(math.sqrt(len(graphs))))
    cut = 122  # row names stand in the first panel of a line only
    total = n * (width - cut) + cut
    parts = [_title(20, title, total)]
    for number, (step, graph) in enumerate(graphs.items()):
        line, column = divmod(number, n)
        panel = _ground(graph, rows=column == 0) + _contents(graph, f"step {step:,}", left=142 if column else 20)
        parts.append(_moved(column * (width - cut), 44 + line * height, panel))
    drawn = 44 + math.ceil(len(graphs) / n) * height
    legend, below = _legend(first, total)
    content = "\n".join(f"Step {step:,}: {_described(graph)}" for step, graph in graphs.items())
    return _document(title, content, total, drawn + below, [*parts, _moved(0, drawn, legend)])


def panels(graphs: Mapping[int, nx.DiGraph], title: str = "Circuit over training") -> tuple[str, dict[int, str]]:
    """The frame that all graphs share, and its content by training step.

    The frame is an ``<svg>`` element with style, columns, rows, legend and an empty ``<g class="panel"></g>``; a page
    shows a step by giving this group that step's markup as its content. Raises as `film_strip`.
    """
    first = _alike(graphs)
    width, height = _size(first)
    legend, below = _legend(first, width)
    parts = [_ground(first), '<g class="panel"></g>', _moved(0, height, legend)]
    return _document(title, "", width, height + below, parts), {
        step: _contents(graph, f"step {step:,}") for step, graph in graphs.items()
    }


def _document(title: str, content: str, width: int, height: int, parts: list[str]) -> str:
    """An image that is described by its content; without such a description, a group whose parts are read."""
    described = f"<desc>{_safe(content)}</desc>\n" if content else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="circuit" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" role="{"img" if content else "group"}">\n'
        f"<title>{_safe(title)}</title>\n{described}<style>{_STYLE}</style>\n"
        f'<rect class="ground" width="{width}" height="{height}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _described(graph: nx.DiGraph) -> str:
    """A description of the picture in words."""
    drawn = [edge for _, _, edge in graph.edges(data=True) if edge["drawn"]]
    operations = [f"{_named(edge)} {edge['weight']:.2f}" for edge in drawn if edge["operation"]]
    edges = f"{len(drawn)} of {graph.number_of_edges()} edges drawn" if drawn else " ".join(_why_empty(graph))
    return f"{_lead(graph)}. {edges.rstrip('.')}. Operations found: {', '.join(operations) or 'none'}."


def _size(graph: nx.DiGraph) -> tuple[int, int]:
    """Width and height in pixels."""
    right = 68 + 12 * graph.graph["n_layers"]  # of the edges to the answer
    x, y = (max(node[axis] for node in graph.nodes.values()) for axis in "xy")
    return int(x) + right, int(y) + _BELOW


def _alike(graphs: Mapping[int, nx.DiGraph]) -> nx.DiGraph:
    """The first of the graphs, if all share what places and the legend depend on; else MechinterpError."""
    if not graphs:
        raise MechinterpError("no graphs to draw; give at least one step")
    first, *others = graphs.values()
    for name in ("n_layers", "weight", "threshold", "n_pairs"):
        for other in others:
            if other.graph[name] != first.graph[name]:
                different = f"{first.graph[name]} and {other.graph[name]}"
                raise MechinterpError(f"graphs of {name} {different} share no legend; draw them apart")
    return first


def _moved(x: int, y: int, markup: str) -> str:
    return f'<g transform="translate({x} {y})">{markup}</g>'


def _ground(graph: nx.DiGraph, *, rows: bool = True) -> str:
    """The part that does not depend on weights: the residual stream, the names of columns and, if asked, of rows."""
    parts = _rails(graph)
    for node in graph.nodes.values():
        if node["kind"] == "token":
            parts.append(_text(node["x"], node["y"] + 30, _NAMES[node["role"]], "middle"))
        if rows and node["role"] == "target" and (name := _row_name(node)):
            parts.append(_text(_LEFT_OF_COLUMNS, node["y"] + 4, name, "quiet end"))
    return "\n".join(parts)


def _contents(graph: nx.DiGraph, title: str, *, left: int = 20) -> str:
    """The part that depends on weights: a title with the lead, edges, nodes and the names of operations."""
    parts = [_title(left, title, _size(graph)[0]), _text(left, 51, _lead(graph), "quiet")]
    drawn = [(graph.nodes[a], graph.nodes[b], edge) for a, b, edge in graph.edges(data=True) if edge["drawn"]]
    parts += [_edge(*arrow) for arrow in sorted(drawn, key=lambda arrow: -abs(arrow[2]["weight"]))]
    parts += [_shape(node) for node in graph.nodes.values()]
    parts += [_pill(source, target, edge) for source, target, edge in drawn if edge["operation"]]
    if not drawn:
        parts += _note(graph)
    return "\n".join(parts)


def _title(x: int, title: str, width: int) -> str:
    """A title, cut to the width of the picture."""
    fits = (width - 2 * x) // 9
    return _text(x, 32, title if len(title) <= fits else title[: fits - 1] + "…", "title")


def _lead(graph: nx.DiGraph) -> str:
    return f"lead {_number(graph.graph['span'])} ± {_number(graph.graph['span_error'])} (logits)"


def _row_name(node: Mapping[str, Any]) -> str:
    layer = f"layer {node['layer'] + 1}"
    names = {"token": "tokens", "written": f"{layer} writes", "query": f"{layer}: queries", "answer": "answer"}
    names |= {"mlp": f"{layer}: MLP"} | ({"written": f"{layer}: heads write"} if node["below_mlp"] else {})
    return names.get(node["kind"], f"{layer}: values, keys" if node["kind"] == "key" else "")


def _rails(graph: nx.DiGraph) -> list[str]:
    """The residual stream: every column from its token up to the last layer that reads it."""
    tops: dict[float, list[float]] = {}
    for node in graph.nodes.values():
        tops.setdefault(node["x"], []).append(node["y"])
    tokens = {node["x"]: node["y"] for node in graph.nodes.values() if node["kind"] == "token"}
    return [f'<path class="rail" d="M{_xy((x, y))}V{_n(min(tops[x]))}"/>' for x, y in tokens.items()]


def _edge(source: Mapping[str, Any], target: Mapping[str, Any], edge: Mapping[str, Any]) -> str:
    """An arrow with a tooltip that names the edge and its weight."""
    width = _width(edge["weight"])
    curve, sign = _curve(source, target, edge["kind"]), "helps" if edge["weight"] > 0 else "hurts"
    error = f" ± {edge['error']:.3f}" if edge["weight"] == edge["effect"] else ""
    label = f"{edge['kind']}, {_place(source)} → {_place(target)}: {edge['weight']:+.3f}{error}"
    name = f" ({_named(edge)})" if edge["operation"] else ""
    return f"<g><title>{_safe(label + name)}</title>{_arrow(curve, width, sign)}</g>"


def _place(node: Mapping[str, Any]) -> str:
    role = node["role"].replace("_", " ")
    if node["kind"] in ("token", "answer"):
        return role if node["kind"] == "token" else "answer"
    return f"layer {node['layer'] + 1} {node['kind']} at {role}"


def _named(edge: Mapping[str, Any]) -> str:
    return edge["operation"].replace("_", " ")


def _width(weight: float) -> float:
    return max(1.2, _WIDEST * min(abs(weight), 1.5))


def _curve(source: Mapping[str, Any], target: Mapping[str, Any], kind: str) -> Curve:
    """The curve of an edge: straight, around the nodes in between, or, for keys, upwards and then across."""
    (x0, y0), (x1, y1) = ((node["x"], node["y"]) for node in (source, target))
    y1 += _ANSWER[1] / 2 - _RADIUS if target["kind"] == "answer" else 0  # which is higher than other nodes
    dx, dy = x1 - x0, y1 - y0
    if dx and (kind == "match" or source["kind"] == "value"):  # a long curve arrives horizontally, a short one upwards
        below = -0.3 * dy * max(0.0, 1 - abs(dx) / 480)
        beside_query = source["kind"] == "value" and 0 < dx < 200 and target["role"] != "target"
        return (
            (x0, y0),
            (x0 + (-0.08 if beside_query else 0.1) * dx, y0 + 0.8 * dy),
            (x0 + 0.5 * dx, y1 + below),
            (x1, y1),
        )
    below_mlp = source["below_mlp"] and (target["kind"], source["layer"]) != ("mlp", target["layer"])
    if kind == "path" and not (target["kind"] == "answer" and source["layer"] == target["layer"] - 1 and not below_mlp):
        skips = target["layer"] - source["layer"] - 1 + below_mlp + (target["kind"] == "mlp")  # rows between
        if target["kind"] == "answer":
            out, end = 58 + 16 * skips, 8 + 5 * skips
            return (x0, y0), (x0 + out, y0 - 50), (x0 + out, y1 + 50), (x1 + end, y1)
        if target["kind"] in ("query", "mlp"):
            out = 20 + 12 * skips
            return (x0, y0), (x0 + out * 1.2, y0 + 0.33 * dy), (x1 + out, y1 - 0.33 * dy), (x1, y1)
        if passed := _rows_passed(source, target):
            out = {"key": 62, "value": 56}[target["kind"]] + 8 * passed + (10 if source["kind"] == "token" else 0)
            return (x0, y0), (x0 - out, y0 - 25), (x1 - out, y1 + 45), (x1, y1)
        if skips:
            out = {"key": 32, "value": 40}[target["kind"]]
            return (x0, y0), (x0 - out * 1.2, y0 + 0.33 * dy), (x1 - out, y1 - 0.33 * dy), (x1, y1)
    if kind == "attention" and source["kind"] == "token" and not dx:
        return (x0, y0), (x0 + 26, y0 + 0.3 * dy), (x1 + 26, y1 - 0.3 * dy), (x1, y1)
    return (x0, y0), (x0 + dx / 3, y0 + dy / 3), (x1 - dx / 3, y1 - dy / 3), (x1, y1)


def _rows_passed(source: Mapping[str, Any], target: Mapping[str, Any]) -> int:
    """The number of rows of values and keys between two nodes."""
    return target["layer"] - max(source["layer"] + 1, 1)


def _arrow(curve: Curve, width: float, sign: str) -> str:
    """A line with its head, between the borders of the nodes at both ends."""
    head = 5 + 0.9 * width
    start, tip = at_distance(curve, _RADIUS + 1), at_distance(curve, _RADIUS + 1, from_end=True)
    line = piece(curve, start, at_distance(curve, _RADIUS + head, from_end=True))
    (x, y), (bx, by) = point_at(curve, tip), line[3]
    length = math.hypot(x - bx, y - by) or 1.0
    ux, uy = (x - bx) / length, (y - by) / length
    half = 2.5 + 0.62 * width
    wings = [(bx - uy * half, by + ux * half), (bx + uy * half, by - ux * half)]
    path = f"M{_xy(line[0])}C{_xy(line[1])} {_xy(line[2])} {_xy(line[3])}"
    shape = f"M{_xy((x, y))}L{_xy(wings[0])}L{_xy(wings[1])}Z"
    return f'<path class="line {sign}" stroke-width="{width:.2f}" d="{path}"/><path class="{sign}-head" d="{shape}"/>'


def _shape(node: Mapping[str, Any]) -> str:
    """A node, shaded by its effect: a square with a letter for q, k and v, a box for the answer, else a circle."""
    x, y, effect, error = (node[name] for name in ("x", "y", "effect", "error"))
    letter = {"query": "q", "key": "k", "value": "v", "mlp": "m"}.get(node["kind"])
    if node["kind"] == "answer":
        width, height = _ANSWER
        shape = f'<rect x="{_n(x - width / 2)}" y="{_n(y - height / 2)}" width="{width}" height="{height}" rx="13"'
    elif letter:
        shape = f'<rect x="{_n(x - _PORT)}" y="{_n(y - _PORT)}" width="{_n(2 * _PORT)}" height="{_n(2 * _PORT)}" rx="3"'
    else:
        shape = f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(_RADIUS)}"'
    label, shade, sign = "no effect resolved", 0.0, "helps"
    if effect is not None:
        label = f"effect {effect:+.3f} ± {error:.3f}"
        shade, sign = min(1.0, abs(effect)) if abs(effect) > NOISE * error else 0.0, "helps" if effect > 0 else "hurts"
    if node.get("heads"):
        label += f"; heads {node['heads'].replace(' ', ', ')}"
    parts = [f"<g><title>{_safe(f'{_place(node)}: {label}')}</title>", f'{shape} class="node"/>']
    if shade >= 0.005:
        parts.append(f'{shape} class="{sign}-head" fill-opacity="{shade:.2f}"/>')
    if text := "answer" if node["kind"] == "answer" else letter:
        parts.append(_text(x, y + 4, text, f"letter middle{' on' if shade > 0.75 else ''}"))
    if node.get("heads"):
        parts.append(_text(x + _RADIUS + 4, y + 16, f"h {node['heads'].replace(' ', ', ')}", "quiet"))
    return "".join(parts) + "</g>"


def _pill(source: Mapping[str, Any], target: Mapping[str, Any], edge: Mapping[str, Any]) -> str:
    """The name of an operation with its weight, on its edge, or beside an upright edge."""
    operation, curve, side, along = edge["operation"], _curve(source, target, edge["kind"]), 0, 0.5
    if operation == "readout":
        side = -1
    elif operation == "write":
        passed = _rows_passed(source, target)
        side, along = (-1, 0.88 - 0.03 * passed) if passed else (1, 0.5)
    elif operation == "previous_token":
        along = 0.28 if source["kind"] == "token" else 0.6
    x, y = point_at(curve, along)
    text = f"{_named(edge)} {edge['weight']:.2f}"
    half = 3.1 * len(text) + 8
    x += side * (half + _width(edge["weight"]) / 2 + 3)
    box = f'<rect class="pill" x="{_n(x - half)}" y="{_n(y - 10)}" width="{_n(2 * half)}" height="20" rx="10"/>'
    return box + _text(x, y + 4, text, "letter middle")


def _note(graph: nx.DiGraph) -> list[str]:
    """The reason why no edge is drawn, in the middle of the picture."""
    width, height = _size(graph)
    return [_text(width / 2 + 20, height / 2 + 18 * n, line, "middle note") for n, line in enumerate(_why_empty(graph))]


def _why_empty(graph: nx.DiGraph) -> list[str]:
    if graph.graph["weight"] == "effect" and not graph.graph["resolved"]:
        return ["Nothing is resolved:", "the correct label has no lead beyond noise."]
    return [f"No edge has a weight of {graph.graph['threshold']:g} or more."]


_MEASURED = {
    "effect": (
        "Width of an edge, shade of a node: the share of the lead that goes when it is taken out. The lead is the logit"
        " of the correct label minus that of another label of the context, above what an unrelated sequence gives;"
        " mean over {n_pairs} in-context sequences ± standard error. Attention edges (from a token or a value to what a"
        " layer writes) are cut, and the rest of the attention is scaled up; all other edges and nodes are given what"
        " they carry in another sequence. Drawn: shares of {threshold:g} or more, beyond three standard errors; shaded:"
        " any beyond three."
    ),
    "attention": (
        "Width of an edge: attention × OV, the length of what attention moves along it over the length of what it is"
        " added to; mean over {n_pairs} in-context sequences. Drawn from {threshold:g} on. Shade of a node: the share"
        " of the lead (logit of the correct label minus that of another label of the context, above what an unrelated"
        " sequence gives) that goes when it holds what it holds in another sequence, if beyond three standard errors."
    ),
}


def _legend(graph: nx.DiGraph, width: int) -> tuple[str, int]:
    """The legend of widths, shades and colours, and its height."""
    parts, x = [], 15.0
    samples = [("0.25", 0.25, "helps"), ("0.50", 0.5, "helps"), ("1.00", 1.0, "helps"), ("≥ 1.50", 1.5, "helps")]
    if graph.graph["weight"] == "effect":
        samples += [("helps", 0.5, "helps"), ("hurts", 0.5, "hurts")]
    for text, weight, sign in samples:
        line: Curve = ((x, 16.0), (x + 20, 16.0), (x + 40, 16.0), (x + 60, 16.0))
        parts += [_arrow(line, _width(weight), sign), _text(x + 56, 20, text, "quiet")]
        x += 70 + 7 * len(text)
    lines = wrap(_MEASURED[graph.graph["weight"]].format(**graph.graph), int((width - 40) / 6.2))
    parts += [_text(20, 46 + 17 * n, line, "quiet") for n, line in enumerate(lines)]
    return "\n".join(parts), 46 + 17 * len(lines) + 6


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def _text(x: float | int, y: float | int, text: str, style: str) -> str:
    """A line of text in the classes of `style`."""
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{style}">{_safe(text)}</text>'


def _n(pixels: float | int) -> str:
    """Pixels to a tenth, in few characters."""
    return f"{pixels:.1f}".removesuffix(".0")


def _xy(point: Point) -> str:
    return f"{_n(point[0])} {_n(point[1])}"


def _safe(text: str) -> str:
    """Text for XML: markup escaped, and characters that XML does not allow replaced by U+FFFD."""
    return escape(re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))
