"""Figures of a run's network: its attention, circuits and order parameters, at a step or over training."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechinterp.analysis.checkpoints import analyse, circuit_graphs
from mechinterp.analysis.tables import null_bands
from mechinterp.circuits.ablation import Ablation
from mechinterp.circuits.graph import CircuitGraph
from mechinterp.circuits.patching import mask_unresolved
from mechinterp.errors import MechinterpError, require_integer
from mechinterp.figures.lines import trajectories
from mechinterp.figures.maps import attention_map, block_map, token_names
from mechinterp.figures.planes import order_parameter_curves, plane
from mechinterp.figures.style import styled
from mechinterp.labels import ablated_name, block_name, edge_name, head_name
from mechinterp.models.forward import run_with_cache
from mechinterp.run import Run, require_run

SIZES: Mapping[str, Mapping[str, int]] = {
    "circuit": {"n_pairs": 128},
    "paths": {"n_pairs": 64},
    "qkov": {"n_sequences": 50},
    "order_parameters": {"n_sequences": 200},
    "ablate": {"n_sequences": 100},
}
"""Sequences on which analyses of all checkpoints are measured; fewer than for a single checkpoint. By analysis."""
SYMBOLS = {"beta1": "β₁", "alpha": "α", "beta2": "β₂", "xi": "ξ", "beta": "β", "w": "w", "c1": "c₁"}
"""Symbols of order parameters."""


def attention(run: Run, step: int | str = "last", *, sequence: int = 0, across: int | None = None) -> go.Figure:
    """Every head's attention on one sequence of the first evaluation set: query (row) × key (column), in [0, 1].

    Keys after their query are blank. `sequence` counts from 0; `across` is the number of maps side by side, by default
    all heads of a layer, or all layers of networks with one head.
    """
    (at,), n = _step(run, step), require_integer("sequence", sequence, least=0)
    task, model = run.task, run.network_config.model
    batch = task.sample(task.evaluations[0], n + 1)
    hooks = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.n_layers)]
    cache = run_with_cache(run.network(at), batch.inputs[n:], hooks)
    names = token_names(batch.inputs.shape[1], {role: mask[n].numpy() for role, mask in batch.roles.items()})
    maps = []
    for layer, head in product(range(model.n_layers), range(model.n_heads)):
        pattern = cache[hooks[layer]][0, head].numpy()
        pattern = np.where(np.tri(len(names), dtype=bool), pattern, np.nan)
        maps.append(attention_map(pattern, names, head_name(layer, head, model.n_heads)))
    maps[-1].update_traces(showscale=True, colorbar={"title": "attention", "len": 0.5})
    wide = across or (model.n_heads if model.n_heads > 1 else model.n_layers)
    return _side_by_side(maps, f"Attention at step {at:,}", wide, square=True)


def qk_ov(run: Run, step: int | str = "last", *, across: int | None = None, **sizes: Any) -> go.Figure:
    """Strengths of the blocks of every head's QK and OV circuits at a step (analysis ``qkov``).

    QK: the spread of a query part's and a key part's share of the scores, over keys; 1 makes attention e times larger.
    OV: the length of what a read part writes into each part. All maps of a kind share their colour scale, from 0.
    """
    (at,) = _step(run, step)
    table, n_heads = analyse(run, "qkov", steps=at, **{**SIZES["qkov"], **sizes}), run.network_config.model.n_heads
    table, maps = table[table["quantity"].isin(["qk", "ov"])], []
    for key, rows in table.groupby(["quantity", "layer", "head"], sort=False):
        quantity, layer, head = tuple(key)  # pyright: ignore[reportArgumentType]
        wide = rows.pivot_table(index="part", columns="other", values="value", sort=False)
        top = float(table.loc[table["quantity"] == quantity, "value"].max())
        name = f"{quantity.upper()}, {head_name(layer, head, n_heads)}"
        parts, others = list(map(str, wide.index)), list(map(str, wide.columns))
        maps.append(block_map(wide.to_numpy(), parts, others, name, top, reads=quantity == "qk"))
    return _side_by_side(maps, f"QK and OV circuits at step {at:,}", across or len(maps) // 2)


def circuit(run: Run, step: int | str = "last", **arguments: Any) -> CircuitGraph:
    """The circuit at a step, every edge measured: a graph, which a notebook shows as its drawing.

    `circuits.svg.to_svg` makes an SVG document of it. Arguments are those of `analysis.circuit_graphs`: ``weight``,
    ``threshold``, ``n_pairs``, ``seed``.
    """
    (at,) = _step(run, step)
    return circuit_graphs(run, steps=at, **{**SIZES["circuit"], **arguments})[at]


def order_parameters(run: Run, *, in_plane: bool = False, **sizes: Any) -> go.Figure:
    """The order parameters of the task's theory over training, or with `in_plane` their path in the plane of two.

    β₁, α, β₂ and ξ of the minimal induction head on item–label sequences (Reddy 2023, eqs 4 to 8); β, c₁ and w of the
    additive model on paired items (Nguyen & Reddy 2024). All are without unit.
    """
    _require_network(run)
    wide = order_parameter_table(analyse(run, "order_parameters", **{**SIZES["order_parameters"], **sizes}))
    if "beta1" in wide:
        axes, left, right = ("beta1", "alpha"), ("beta1", "alpha", "beta2"), "xi"
    else:
        axes, left, right = ("beta", "w"), ("beta", "c1"), "w"
    if in_plane:
        x, y = (wide[name].to_numpy(dtype=np.float32) for name in axes)
        return plane(x, y, SYMBOLS[axes[0]], SYMBOLS[axes[1]])
    return order_parameter_curves(wide, {name: SYMBOLS[name] for name in left}, (right, SYMBOLS[right]))


def order_parameter_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table of the analysis ``order_parameters`` as step × parameter."""
    return table.pivot(index="step", columns="parameter", values="value")


def interactions(run: Run, *, bands: bool = True, most: int = 8, **sizes: Any) -> go.Figure:
    """Strengths of query–key interactions over training, in score units: the `most` that are largest at the end.

    With `bands`, the range of 95 % of untrained networks is shaded, where it is known how the weights began.
    """
    _require_network(run)
    chosen = {**SIZES["qkov"], **sizes}
    rows, expected = _blocks(analyse(run, "qkov", **chosen), run), None
    if bands and run.origin is None:
        untrained = _blocks(null_bands(run, **chosen), run)
        limits = zip(untrained["low"], untrained["high"], strict=True)
        expected = dict(zip(untrained["label"], limits, strict=True))
    title = "Query–key interactions"
    return _strongest(run, rows, "value", title, "strength (score units)", most, expected)


def paths(run: Run, *, most: int = 8, **arguments: Any) -> go.Figure:
    """The share of the answer that one edge restores (path patching), over training: the `most` largest at the end.

    Where there is no answer to restore, beyond two standard errors, nothing is drawn; where there never is,
    MechinterpError.
    """
    _require_network(run)
    rows = mask_unresolved(analyse(run, "paths", **{**SIZES["paths"], **arguments}))
    if bool(pd.Series(rows["effect"]).isna().all()):
        raise MechinterpError("at no step is there an answer to restore, beyond two standard errors")
    ends = zip(rows["sender"], rows["receiver"], strict=True)
    named = rows.assign(label=[edge_name(first, second, run.network_config.model.n_heads) for first, second in ends])
    return _strongest(run, named, "effect", "Paths that carry the answer", "share restored", most)


TAKEN_OUT = (Ablation.mean.name, Ablation.not_previous_token.name)
"""The ablations that take something out and leave the rest as it is."""


def ablation(run: Run, *, most: int = 8, **arguments: Any) -> go.Figure:
    """Accuracy that is lost when a component is taken out, over training: the `most` largest losses at the end.

    A component is averaged over sequences, or its attention to the token before is taken away. Of curves that lie on
    each other, within 0.02 at all steps, one is drawn.
    """
    _require_network(run)
    rows, n_heads = analyse(run, "ablate", **{**SIZES["ablate"], **arguments}), run.network_config.model.n_heads
    rows = rows[rows["ablation"].isin(TAKEN_OUT)]
    heads = rows["head"] if "head" in rows else [None] * len(rows)
    places = zip(rows["hook"], rows["ablation"], heads, strict=True)
    names = [
        ablated_name(hook, kind, None if head is None or pd.isna(head) else int(head), n_heads)
        for hook, kind, head in places
    ]
    named = rows.assign(label=names, cost=rows["intact"] - rows["value"])
    return _strongest(run, _apart(named, "cost"), "cost", "What an ablation costs", "accuracy lost", most)


def _apart(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """The rows without those of labels whose curve lies on that of one before, within 0.02 everywhere."""
    curves = rows.pivot(index="step", columns="label", values=value)[rows["label"].drop_duplicates()]
    kept = list[str]()
    for name in curves:
        if all(float((curves[name] - curves[other]).abs().max()) > 0.02 for other in kept):
            kept.append(str(name))
    return rows[rows["label"].isin(kept)]


def _strongest(
    run: Run,
    rows: pd.DataFrame,
    value: str,
    title: str,
    y: str,
    most: int,
    bands: dict[str, tuple[float, float]] | None = None,
) -> go.Figure:
    """A line for each of the labels whose value is largest in size at the last step where there is one."""
    finite = rows.dropna(subset=[value])
    end = finite[finite["step"] == finite["step"].max()]
    names = list(end.assign(size=pd.Series(end[value]).abs()).nlargest(most, "size")["label"])
    figure = trajectories({run.path.stem: rows}, "label", value, names, title, bands)
    return figure.update_yaxes(title_text=y)


def _blocks(rows: pd.DataFrame, run: Run) -> pd.DataFrame:
    """The rows of query–key interactions, with their labels."""
    rows = rows[rows["quantity"] == "qk"]
    places = zip(rows["layer"], rows["head"], rows["part"], rows["other"], strict=True)
    n_heads = run.network_config.model.n_heads
    return rows.assign(label=[block_name(layer, head, first, other, n_heads) for layer, head, first, other in places])


def _side_by_side(maps: Sequence[go.Figure], title: str, across: int, *, square: bool = False) -> go.Figure:
    """Heat maps in rows of `across`, each with its title and its axes."""
    across = max(1, min(across, len(maps)))
    down = math.ceil(len(maps) / across)
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=[str(each.layout.title.text) for each in maps],  # pyright: ignore[reportAttributeAccessIssue]
        horizontal_spacing=0.26 / across if across > 1 else 0,
        vertical_spacing=0.3 / down if down > 1 else 0,
    )
    for number, each in enumerate(maps):
        place = {"row": number // across + 1, "col": number % across + 1}
        figure.add_trace(each.data[0], **place)
        x, y = each.layout.xaxis, each.layout.yaxis  # pyright: ignore[reportAttributeAccessIssue]
        figure.update_xaxes(title_text=x.title.text, showgrid=False, constrain="domain", **place)
        figure.update_yaxes(title_text=y.title.text, showgrid=False, autorange="reversed", constrain="domain", **place)
        if square:
            anchor = "x" if number == 0 else f"x{number + 1}"
            figure.update_yaxes(scaleanchor=anchor, **place)
    return styled(figure, title, None, None).update_layout(
        height=90 + 350 * down, margin={"t": 90}, meta={"across": across}
    )


def _step(run: Run, step: int | str) -> list[int]:
    """The one step, after asking that the network can be drawn at all."""
    _require_network(run)
    if not isinstance(step, int | str) or isinstance(step, bool):
        raise MechinterpError(f"step is {step!r}; expected a saved step, 'first' or 'last'")
    return run.chosen_steps(step)


def _require_network(run: Run) -> None:
    require_run(run)
    if not run.can_be_analysed:
        raise MechinterpError(f"{run.path}: {run.why_not_analysed}")
