"""Circuit graphs as SVG documents; the same graph gives the same bytes.

Places come from the graphs (`layout`) and are the same in all pictures of a film strip or a page, so that they can be
superimposed. Numbers have a fixed precision, no element has an id, and arrowheads are separate shapes. Colours follow
the reader's choice of a light or dark page, or are fixed (`look.Theme`), and the style applies to the picture alone.
Signs differ in colour (Okabe–Ito) and in dashes. Edges are the paler the larger the relative error of the lead
(`certainty.opacity`).
"""

from collections.abc import Mapping
from textwrap import wrap

import networkx as nx

from mechinterp.circuits.certainty import LEAST_AHEAD
from mechinterp.circuits.curves import Curve
from mechinterp.circuits.layout import Layout
from mechinterp.circuits.look import Look
from mechinterp.circuits.marks import Marks, arrow, line_width, n, safe, text
from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.models.planted import Operation

_STRIP = 104.0
"""Distance of the columns in a film strip, in pixels."""


def to_svg(graph: nx.DiGraph, title: str = "Circuit", look: Look | None = None) -> str:
    """A graph of `graph.circuit_graph` as an SVG document, with its legend. Markup in the title is escaped.

    Raises for labels and colours of nodes, roles and operations that the graph does not have.
    """
    look = _checked(look, graph)
    layout = Layout.of([graph], look)
    marks, width, height = Marks([graph], layout, look), layout.width, layout.height
    legend, below = _legend(graph, width, look)
    parts = [_ground(graph, layout, look), _contents(graph, title, marks), _moved(0, height, legend)]
    return _document(title, _described(graph, marks), width, height + below, parts, look)


def film_strip(graphs: Mapping[int, nx.DiGraph], title: str = "Circuit over training", look: Look | None = None) -> str:
    """Graphs by training step, as one SVG document: equal panels from left to right, up to four in a row, and one
    legend.

    Raises without graphs, and for graphs that one legend does not describe: of another weight, threshold, number of
    pairs, number of layers, or with other columns.
    """
    first = _alike(graphs)
    look = _checked(look, first)
    layout = Layout.of(graphs.values(), look, _STRIP)
    marks, width, height = Marks(graphs.values(), layout, look), layout.width, layout.height
    a_row = len(graphs) if len(graphs) <= 4 else min((4, 3), key=lambda each: -len(graphs) % each)
    cut = int(layout.left) - 18  # row names stand in the first panel of a line only
    total = a_row * (width - cut) + cut
    parts = [_title(20, title, total)]
    for number, (step, graph) in enumerate(graphs.items()):
        line, column = divmod(number, a_row)
        left = 20 + cut if column else 20
        panel = _ground(graph, layout, look, rows=column == 0) + _contents(graph, f"step {step:,}", marks, left=left)
        parts.append(_moved(column * (width - cut), 40 + line * height, panel))
    drawn = 40 + -(-len(graphs) // a_row) * height
    legend, below = _legend(first, total, look)
    content = "\n".join(f"Step {step:,}: {_described(graph, marks)}" for step, graph in graphs.items())
    return _document(title, content, total, drawn + below, [*parts, _moved(0, drawn, legend)], look)


def panels(
    graphs: Mapping[int, nx.DiGraph], title: str = "Circuit over training", look: Look | None = None
) -> tuple[str, dict[int, str]]:
    """The frame that all graphs share, and its content by training step.

    The frame is an ``<svg>`` element with style, columns, rows, legend and an empty ``<g class="panel"></g>``; a page
    shows a step by giving this group that step's markup as its content. Raises as `film_strip`.
    """
    first = _alike(graphs)
    look = _checked(look, first)
    layout = Layout.of(graphs.values(), look)
    marks, width, height = Marks(graphs.values(), layout, look), layout.width, layout.height
    legend, below = _legend(first, width, look)
    parts = [_ground(first, layout, look), '<g class="panel"></g>', _moved(0, height, legend)]
    return _document(title, "", width, height + below, parts, look), {
        step: _contents(graph, f"step {step:,}", marks) for step, graph in graphs.items()
    }


def _checked(look: Look | None, graph: nx.DiGraph) -> Look:
    """The look; labels and colours of what is not there raise."""
    look = look or Look()
    known = {*graph, *(node["role"] for node in graph.nodes.values()), *(each.name for each in Operation)}
    for noun, names in (("label", look.labels), ("colour", look.colours)):
        for name in names:
            if name not in known and not (noun == "colour" and name in ("helps", "hurts")):
                raise unknown_name(f"node, role or operation of a {noun}", name, sorted(known))
    return look


def _document(title: str, content: str, width: int, height: int, parts: list[str], look: Look) -> str:
    """An image that is described by its content; without such a description, a group whose parts are read."""
    described = f"<desc>{safe(content)}</desc>\n" if content else ""
    scale = look.width / width if look.width else 1.0
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="circuit" width="{round(scale * width)}"'
        f' height="{round(scale * height)}" viewBox="0 0 {width} {height}" role="{"img" if content else "group"}">\n'
        f"<title>{safe(title)}</title>\n{described}<style>{look.style()}</style>\n"
        f'<rect class="ground" width="{width}" height="{height}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _described(graph: nx.DiGraph, marks: Marks) -> str:
    """A description of the picture in words."""
    drawn = [edge for _, _, edge in graph.edges(data=True) if edge["drawn"]]
    operations = [f"{marks.named(edge)} {edge['weight']:.2f}" for edge in drawn if edge["operation"]]
    edges = f"{len(drawn)} of {graph.number_of_edges()} edges drawn" if drawn else _why_empty(graph)
    return f"{_lead(graph)}. {edges.rstrip('.')}. Operations found: {', '.join(operations) or 'none'}."


def _alike(graphs: Mapping[int, nx.DiGraph]) -> nx.DiGraph:
    """The first of the graphs, if all share what places and the legend depend on; else MechinterpError."""
    if not graphs:
        raise MechinterpError("no graphs to draw; give at least one step")
    first, *others = graphs.values()
    for name in ("n_layers", "roles", "weight", "threshold", "n_pairs"):
        for other in others:
            if other.graph[name] != first.graph[name]:
                different = f"{first.graph[name]} and {other.graph[name]}"
                raise MechinterpError(f"graphs of {name} {different} share no legend; draw them apart")
    if any(set(other) != set(first) for other in others):
        raise MechinterpError("graphs of heads apart and heads together share no nodes; draw them apart")
    return first


def _moved(x: int, y: int, markup: str) -> str:
    return f'<g transform="translate({x} {y})">{markup}</g>'


def _ground(graph: nx.DiGraph, layout: Layout, look: Look, *, rows: bool = True) -> str:
    """The part that does not depend on weights: the residual stream, the names of columns and, if asked, of rows."""
    bottom = layout.rows[0][2]
    tops = {role: bottom for role in layout.columns}
    for name, (_, y) in layout.places.items():
        role = graph.nodes[name]["role"]
        tops[role] = min(tops[role], y)
    parts = [f'<path class="rail" d="M{n(x)} {n(bottom)}V{n(tops[role])}"/>' for role, x in layout.columns.items()]
    for role, x in layout.columns.items():
        lines = layout.column_name(role, look)
        parts += [text(x, bottom + 28 + 14 * number, line, "middle") for number, line in enumerate(lines)]
    for kind, layer, y in layout.rows if rows else ():
        words = _row_name(kind, layer, graph)
        lines = words.split(": ") if layout.narrow else [words]
        if layer in layout.idle and kind == "written" and layout.idle[layer]:
            idle = layout.idle[layer]
            heads = {node["head"] for node in graph.nodes.values() if node["layer"] == layer and node["head"] >= 0}
            number = "all" if idle == len(heads) else str(idle)
            noun = "" if layout.narrow else " head" if idle == 1 and number != "all" else " heads"
            lines.append(f"{number}{noun} without effect")
        start = y + 4 - 7 * (len(lines) - 1)
        styles = ["quiet" if "effect" not in line else "small" for line in lines]
        parts += [
            text(layout.left, start + 14 * number, line, f"{style} end")
            for number, (line, style) in enumerate(zip(lines, styles, strict=True))
        ]
    return "\n".join(parts)


def _row_name(kind: str, layer: int, graph: nx.DiGraph) -> str:
    below_mlp = any(node["kind"] == "mlp" for node in graph.nodes.values())
    names = {"token": "tokens", "answer": "answer", "written": "heads write" if below_mlp else "writes"}
    names |= {"query": "queries", "key": "values, keys", "mlp": "MLP"}
    return names[kind] if kind in ("token", "answer") else f"layer {layer + 1}: {names[kind]}"


def _contents(graph: nx.DiGraph, title: str, marks: Marks, *, left: int = 20) -> str:
    """The part that depends on weights: a title with the lead, edges, nodes and the names of operations."""
    parts = [_title(left, title, marks.layout.width), text(left, 51, _lead(graph), "quiet")]
    if not any(edge["drawn"] for _, _, edge in graph.edges(data=True)):
        lines = wrap(_why_empty(graph), max(24, int((marks.layout.width - left) / 7)))
        parts += [text(left, 68 + 15 * number, line, "note") for number, line in enumerate(lines)]
    return "\n".join(parts + marks.of(graph))


def _title(x: int, title: str, width: int) -> str:
    """A title, cut to the width of the picture."""
    fits = (width - 2 * x) // 9
    return text(x, 32, title if len(title) <= fits else title[: fits - 1] + "…", "title")


def _lead(graph: nx.DiGraph) -> str:
    span, error, ahead = (graph.graph[name] for name in ("span", "span_error", "ahead"))
    return f"the answer leads by {_number(span)} ± {_number(error)} logits, and in {ahead:.0%} of sequences"


def _why_empty(graph: nx.DiGraph) -> str:
    """The reason why no edge is drawn."""
    if graph.graph["weight"] == "effect" and not graph.graph["resolved"]:
        least = f"in {LEAST_AHEAD:.0%} of sequences" if graph.graph["ahead"] < LEAST_AHEAD else "beyond noise"
        return f"No circuit is drawn: the correct label does not lead {least}."
    return f"No edge has a weight of {graph.graph['threshold']:g} or more beyond noise."


_MEASURED = {
    "effect": (
        "Width, shade: share of the lead (logit of the answer minus that of another label of the context) that goes"
        " without the edge or node; drawn from {threshold:g} on, beyond {level:.1f} standard errors, over {n_pairs}"
        " sequences. Pale: the lead itself is uncertain."
    ),
    "attention": (
        "Width: attention × OV, the length of what is moved over that of what it is added to, from {threshold:g} on;"
        " {n_pairs} sequences. Shade: share of the lead that goes without the node, if beyond {level:.1f} standard"
        " errors."
    ),
}


def _legend(graph: nx.DiGraph, width: int, look: Look) -> tuple[str, int]:
    """The legend of widths, shades and colours, with its caption, and the height of both."""
    parts, x, y = [], 15.0, 8
    samples = [("0.25", 0.25, "helps"), ("0.50", 0.5, "helps"), ("1.00", 1.0, "helps"), ("≥ 1.50", 1.5, "helps")]
    if graph.graph["weight"] == "effect":
        samples += [("helps", 0.5, "helps"), ("hurts", 0.5, "hurts")]
    for words, weight, sign in samples if look.legend else ():
        line: Curve = ((x, 16.0), (x + 20, 16.0), (x + 40, 16.0), (x + 60, 16.0))
        if x + 60 + 7 * len(words) > width:
            break
        parts += [arrow(line, line_width(weight), sign), text(x + 56, 20, words, "quiet")]
        x += 70 + 7 * len(words)
        y = 40
    lines = wrap(_MEASURED[graph.graph["weight"]].format(**graph.graph), int((width - 40) / 6)) if look.caption else []
    parts += [text(20, y + 16 * number, line, "small") for number, line in enumerate(lines)]
    return "\n".join(parts), y + 16 * len(lines) if parts else 0


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")
