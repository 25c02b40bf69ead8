"""What a network looked like at every checkpoint: the figures that the report's slider moves.

Each takes a run and the steps, analyses every one of them (once: results are kept beside the run), and gives a part of
the page, with its caption.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechinterp.models.conventions import folded
from mechinterp.models.functional import forward
from mechinterp.report import figures, html
from mechinterp.report.html import Drawing
from mechinterp.store import Run


def attention(run: Run, steps: Sequence[int]) -> str:
    """Every head's attention on one sequence of the first evaluation set, query × key."""
    evaluation = run.task.evaluations[0]
    batch = run.task.sample(evaluation, 1)
    seen = [forward(folded(run.config, run.weights(step)), batch.inputs)[1] for step in steps]
    names = figures.token_names(batch.inputs.shape[1], {role: mask[0].numpy() for role, mask in batch.roles.items()})
    drawings = []
    for layer, head in product(range(run.config.model.n_layers), range(run.config.model.n_heads)):
        patterns = np.stack([each[f"blocks.{layer}.attn.hook_pattern"][0, head].numpy() for each in seen])
        title = figures.head_name(layer, head, run.config.model.n_heads)
        drawing = figures.attention_map(patterns[-1], names, title)
        known = np.tri(len(names), dtype=bool) & np.isfinite(patterns)
        frames = np.where(known, np.rint(254 * np.nan_to_num(patterns)), 255).astype(np.uint8)
        drawings.append(Drawing(drawing, frames=frames, scale=1 / 254))
    marks = " x are items, ℓ their labels; ★ marks the label that answers the target." if "item" in batch.roles else ""
    return html.figure(
        drawings,
        f"Attention of each token (row) to itself and those before it (column) on one sequence of the evaluation set"
        f" “{evaluation}”, the same one at every step, from 0 (dark) to 1 (bright).{marks} Rows sum to 1. Of the last"
        " layer only the target's row is used. The CSV is in steps of 1/254.",
        title="Attention",
        columns={"x": "key", "y": "query", "z": "attention"},
    )


_SYMBOLS = {"beta1": "β₁", "alpha": "α", "beta2": "β₂", "xi": "ξ", "beta": "β", "w": "w", "c1": "c₁"}


def circuit(run: Run, steps: Sequence[int], n_pairs: int, *, progress: bool = False) -> str:
    """The circuit diagram, every edge measured."""
    from mechinterp.circuits.diagram import graph_of  # these import TransformerLens, which takes seconds
    from mechinterp.circuits.svg import panels
    from mechinterp.circuits.trajectory import analyse

    table = analyse(run, "circuit", steps=steps, n_pairs=n_pairs, progress=progress)
    frame, markup = panels({step: graph_of(table[table["step"] == step]) for step in steps})
    columns = ["step", "source", "target", "kind", "weight", "drawn", "operation"]
    return html.panels(
        frame,
        [markup[step] for step in steps],
        f"What carries the answer: every edge is measured, by taking it out in {n_pairs} in-context sequences. An"
        " operation of an induction head is named where its evidence is found, and only there.",
        table[columns].round({"weight": 5}),
        title="Circuit",
    )


def blocks(table: pd.DataFrame, n_sequences: int, n_heads: int) -> str:
    """QK and OV circuits of every head, in blocks of position, content and buffer, from the table of ``qkov``."""
    drawings = []
    table = table.loc[table["quantity"].str.match(r"(qk|ov) ")]
    for quantity, rows in table.groupby("quantity", sort=False):
        kind, place = str(quantity).split()
        layer, head = map(int, place.split("."))
        first, second = (list(dict.fromkeys(each)) for each in zip(*rows["part"].str.split("[–→]"), strict=True))
        steps = rows["step"].drop_duplicates()
        values = rows["value"].to_numpy(dtype=np.float32).reshape(len(steps), len(first), len(second))
        top = float(table.loc[table["quantity"].str.startswith(kind), "value"].max())
        name = f"{kind.upper()}, {figures.head_name(layer, head, n_heads)}"
        drawing = figures.block_map(values[-1], first, second, name, top, reads=kind == "qk")
        drawings.append(Drawing(drawing, frames=values))
    return html.figure(
        drawings,
        "QK: how strongly each query–key interaction moves attention, as the spread of its part of the scores over the"
        " keys a query may choose from (1 makes attention e times larger). OV: the length of what each part of a seen"
        f" token writes into each part of the residual stream. Means over {n_sequences} sequences; buffer is what"
        " earlier layers wrote. The colour scale is the same at all steps.",
        title="QK and OV circuits",
        columns={"x": "to", "y": "from", "z": "strength"},
    )


def order_parameters(table: pd.DataFrame, n_sequences: int) -> str:
    """The theory's coordinates: their path in a plane, and each over training.

    On item–label sequences β₁, α, β₂ and ξ of the minimal induction head, on paired items β, w and c₁ of the race.
    """
    wide = table.pivot(index="step", columns="parameter", values="value")
    if "beta1" in wide:
        x, y, left, right = ("beta1", "β₁ (previous token)"), ("alpha", "α (match)"), ("beta1", "alpha", "beta2"), "xi"
        named, of = {"β₁": "beta1_explained", "α and β₂": "layer2_explained", "ξ": "xi_explained"}, "scores and logits"
        caption = (
            "The network in the coordinates of the minimal induction head (Reddy 2023, eqs 4 to 8): β₁, how much layer"
            " 1 prefers the previous token; α, how much layer 2 prefers matching content; β₂, how much it prefers"
            f" labels; ξ, how much of what is seen reaches the logits. Least squares on {n_sequences} in-context"
            " sequences"
        )
    else:
        x, y, left, right = ("beta", "β (match)"), ("w", "w (labels)"), ("beta", "c1"), "w"
        named = {"β": "beta_explained", "w": "w_explained"}
        of = "the attention to items and of the labels' effect"
        caption = (
            "The network in the coordinates of the race (Nguyen & Reddy 2024): β, how much the target prefers its own"
            " item; w, how much the labels that it sees reach the answer; c₁, how wrong the classifier alone is on"
            f" items of training (½: nothing is memorised). On {n_sequences} sequences"
        )
    xs, ys = (wide[name].to_numpy(dtype=np.float32) for name in (x[0], y[0]))
    plane = Drawing(figures.plane(xs, ys, x[1], y[1]), dot=(xs, ys))
    over = Drawing(
        figures.order_parameters(wide, {name: _SYMBOLS[name] for name in left}, (right, _SYMBOLS[right])), cursor=0.0
    )
    shares = ", ".join(f"{name} {wide[column].iloc[-1] * 100:.0f} %" for name, column in named.items())
    return html.figure(
        [plane, over],
        f"{caption}; at the end they explain {shares} of {of}.",
        title="Order parameters",
        columns={"x": f"{_SYMBOLS[x[0]]} or step", "y": f"{_SYMBOLS[y[0]]} or value"},
    )


def over_training(drawing: go.Figure, caption: str, *, origin: float = 0.0) -> str:
    """Curves over training, in which the current step is marked; `origin` is the step where their x axis has its 0."""
    return html.figure(Drawing(drawing, cursor=origin), caption)
