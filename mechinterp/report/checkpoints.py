"""Figures of a network at every checkpoint, which follow the report's slider.

Every function returns a part of the page with its caption. Analyses of checkpoints are cached beside the run.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechinterp import figures, labels
from mechinterp.analysis.checkpoints import analyse
from mechinterp.models.forward import run_with_cache
from mechinterp.report import html
from mechinterp.report.html import Drawing
from mechinterp.run import Run


def attention(run: Run, steps: Sequence[int]) -> str:
    """Every head's attention on one sequence of the first evaluation set, query × key."""
    evaluation = run.task.evaluations[0]
    batch = run.task.sample(evaluation, 1)
    hooks = [f"blocks.{layer}.attn.hook_pattern" for layer in range(run.network_config.model.n_layers)]
    caches = [run_with_cache(run.network(step), batch.inputs, hooks) for step in steps]
    names = figures.token_names(batch.inputs.shape[1], {role: mask[0].numpy() for role, mask in batch.roles.items()})
    drawings = []
    for layer, head in product(range(run.network_config.model.n_layers), range(run.network_config.model.n_heads)):
        patterns = np.stack([cache[hooks[layer]][0, head].numpy() for cache in caches])
        title = labels.head_name(layer, head, run.network_config.model.n_heads)
        visible = np.tri(len(names), dtype=bool) & np.isfinite(patterns)
        frames = np.where(visible, np.rint(254 * np.nan_to_num(patterns)), 255).astype(np.uint8)
        drawings.append(Drawing(figures.attention_map(patterns[-1], names, title), frames=frames, scale=1 / 254))
    model = run.network_config.model
    at_target = run.network_config.training.loss_at == "target"
    of_use = " Of the last layer only the target's row is used." if at_target else ""
    marks = (
        " x are items, ℓ their labels; ★ marks the label that answers the target."
        if "item" in batch.roles and names[0].startswith("x")
        else ""
    )
    return html.figure(
        drawings,
        f"Attention of each token (row) to itself and those before it (column) on one sequence of the evaluation set"
        f" “{labels.set_label(evaluation).name}”, the same one at every step.{marks} Rows sum to 1.{of_use}"
        " The CSV is in steps of 1/254.",
        title="Attention",
        scales=[html.Scale("attention", 0.0, 1.0, _colours(drawings[0]))],
        in_row=model.n_heads if model.n_heads > 1 else min(model.n_layers, 3),
        wide=model.n_heads > 1,
        columns={"x": "key", "y": "query", "z": "attention"},
    )


def circuit(run: Run, steps: Sequence[int], n_pairs: int, *, progress: bool = False) -> str:
    """The circuit diagram, every edge measured."""
    from mechinterp.circuits.graph import graph_of
    from mechinterp.circuits.svg import panels

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
    table = table.loc[table["quantity"].isin(["qk", "ov"])]
    tops = {name: float(table.loc[table["quantity"] == name, "value"].max()) for name in ("qk", "ov")}
    for key, rows in table.groupby(["quantity", "layer", "head"], sort=False):
        quantity, layer, head = tuple(key)  # pyright: ignore[reportArgumentType]
        first, second = rows["part"].drop_duplicates().tolist(), rows["other"].drop_duplicates().tolist()
        steps = rows["step"].drop_duplicates()
        values = rows["value"].to_numpy(dtype=np.float32).reshape(len(steps), len(first), len(second))
        name = f"{quantity.upper()}, {labels.head_name(layer, head, n_heads)}"
        drawing = figures.block_map(values[-1], first, second, name, tops[str(quantity)], reads=quantity == "qk")
        drawings.append(Drawing(drawing, frames=values))
    scales = [
        html.Scale(f"{quantity.upper()}, strength", 0.0, top, _colours(drawings[0])) for quantity, top in tops.items()
    ]
    n_layers = int(table["layer"].max()) + 1
    order = f" Rows and columns are {', '.join(_parts(table))}, in this order." if n_heads > html.SMALL_FROM else ""
    return html.figure(
        drawings,
        "QK: how strongly each query–key interaction moves attention, as the spread of its part of the scores over the"
        " keys a query may choose from (1 makes attention e times larger). OV: the length of what each part of a seen"
        f" token writes into each part of the residual stream. Means over {n_sequences} sequences; buffer is what"
        f" earlier layers wrote. The colour scale is the same at all steps.{order}",
        title="QK and OV circuits",
        scales=scales,
        in_row=n_heads if n_heads > 1 else min(2 * n_layers, html.SMALL_FROM),
        wide=n_heads > 1 or n_layers > 1,
        columns={"x": "to", "y": "from", "z": "strength"},
    )


def _parts(table: pd.DataFrame) -> list[str]:
    """The parts of the residual stream, in the order in which maps have them."""
    return list(dict.fromkeys(table["part"]))


def _colours(drawing: Drawing) -> list[str]:
    """The colour scale of a map."""
    return [colour for _, colour in drawing.figure.data[0].colorscale]  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]


def order_parameters(table: pd.DataFrame, n_sequences: int) -> str:
    """The order parameters of the theory: their path in a plane, and their values over training.

    On item–label sequences β₁, α, β₂ and ξ of the minimal induction head, on paired items β, w and c₁ of the additive
    model.
    """
    wide = figures.order_parameter_table(table)
    if "beta1" in wide:
        x, y, left, right = ("beta1", "β₁ (previous token)"), ("alpha", "α (match)"), ("beta1", "alpha", "beta2"), "xi"
        explained, of = (
            {
                "β₁": "beta1_explained",
                "α and β₂": "layer2_explained",
                "α alone": "alpha_explained",
                "β₂ alone": "beta2_explained",
                "ξ": "xi_explained",
            },
            "scores and logits",
        )
        caption = (
            "The network in the coordinates of the minimal induction head (Reddy 2023, eqs 4 to 8): β₁, how much layer"
            " 1 prefers the previous token; α, how much layer 2 prefers matching content; β₂, how much it prefers"
            f" labels; ξ, how much of what is seen reaches the logits. Least squares on {n_sequences} in-context"
            " sequences"
        )
    else:
        x, y, left, right = ("beta", "β (match)"), ("w", "w (labels)"), ("beta", "c1"), "w"
        explained = {"β": "beta_explained", "w": "w_explained"}
        of = "the attention to items and of the labels' effect"
        caption = (
            "The network in the coordinates of the race (Nguyen & Reddy 2024): β, how much the target prefers its own"
            " item; w, how much the labels that it sees reach the answer; c₁, how wrong the classifier alone is on"
            f" items of training (½: nothing is memorised). On {n_sequences} sequences"
        )
    xs, ys = (wide[name].to_numpy(dtype=np.float32) for name in (x[0], y[0]))
    plane = Drawing(figures.plane(xs, ys, x[1], y[1]), dot=(xs, ys))
    over = Drawing(
        figures.order_parameter_curves(
            wide, {name: figures.SYMBOLS[name] for name in left}, (right, figures.SYMBOLS[right])
        ),
        cursor=0.0,
    )
    shares = ", ".join(f"{name} {wide[column].iloc[-1]:.2f}" for name, column in explained.items())
    return html.figure(
        [plane, over],
        f"{caption}. R² of the fit at the end: {shares}, of {of}.",
        title="Order parameters",
        columns={"x": f"{figures.SYMBOLS[x[0]]} or step", "y": f"{figures.SYMBOLS[y[0]]} or value"},
    )


def over_training(
    drawing: go.Figure,
    caption: str,
    *,
    origin: float = 0.0,
    names: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> str:
    """Curves over training with the slider's step marked; `origin` is the step at which the x axis has its zero.

    `names` are what the legend calls the curves, `notes` what they are, in a line.
    """
    return html.figure(Drawing(drawing, cursor=origin, names=names, notes=notes), caption)
