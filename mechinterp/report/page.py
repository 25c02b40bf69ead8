"""The report of a run: one HTML file that works offline, with plotly.js inside it, once."""

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from mechinterp.emergence import emergence_table
from mechinterp.errors import MechinterpError
from mechinterp.models.functional import forward
from mechinterp.report import figures, html
from mechinterp.store import Run


def write_report(run: Run, table: pd.DataFrame, path: str | Path, *, measure: str | None = None) -> Path:
    """Write the page of a run, from its table of measures, and return its path.

    `measure` is the column whose transition is the headline, by default the first.

    It shows what was run, the curves with their located transitions, attention maps before and after, what carries the
    answer over training (item–label task), and the emergence table. An existing page is replaced; a run file never is.
    """
    html.require_page(Path(path))
    emergence = emergence_table(table)
    headline = measure or str(table.columns[0])
    parts = [
        html.lead(verdict(emergence, headline)),
        *(html.figure(*each) for each in _figures(run, table, emergence, headline)),
        "<h2>Emergence</h2>",
        "<p>A four-parameter logistic in the step, against a constant and a line; 95 % interval by a moving-block"
        " bootstrap.</p>",
        html.table(emergence),
        "<h2>What was run</h2>",
        html.table(_facts(run)),
        html.code(run.config.model_dump_json(indent=2)),
    ]
    return html.write_page(Path(path), f"Run {run.path.name}", parts)


def verdict(emergence: pd.DataFrame, name: str) -> str:
    """The main result in a sentence: the transition of a measure."""
    found = emergence.loc[name]
    if not found["transition"]:
        return f"{name}: no transition ({found['reason']})."
    return (
        f"{name} makes its transition at step {found['step']:.0f} (95 % interval {found['low']:.0f} to"
        f" {found['high']:.0f}, 10–90 % width {found['width']:.0f} steps)."
    )


def _figures(run: Run, table: pd.DataFrame, emergence: pd.DataFrame, headline: str) -> list[tuple[go.Figure, str]]:
    accuracies = [name for name in table if name.endswith("_accuracy")]
    progress = [name for name in ("icl_accuracy", "ila1", "tila2", "cla", "tla2") if name in table]
    made = [
        (
            figures.curves(table, accuracies, "Accuracy over training"),
            "Accuracy on each evaluation set; the same sequences at every step.",
        )
    ]
    if len(progress) > 1:
        caption = "Progress measures. Dotted lines: located transitions; shaded: their 95 % intervals."
        made.append((figures.curves(table, progress, "Progress measures", emergence), caption))
    if run.config.model.n_layers >= 2:
        made.append(_attention(run, emergence.loc[headline]))
    if run.config.model.n_layers >= 2 and run.config.task.kind == "item_label":
        made += _circuit(run)
    return made


def _circuit(run: Run) -> list[tuple[go.Figure, str]]:
    """What carries the answer, over training: query–key interactions, paths, and what ablations cost.

    An analysis that this run does not admit (a context with one label has no other to suggest) is left out.
    """
    from mechinterp.circuits.patching import resolved  # these import TransformerLens, which takes seconds
    from mechinterp.circuits.trajectory import analyse, null_bands

    made = []
    for analysis, size, columns, value, title, caption in _CIRCUIT:
        try:
            table = analyse(run, analysis, **size)
        except MechinterpError:
            continue
        table, bands = table.assign(label=_labels(table, columns)), {}
        if analysis == "qkov":
            table, untrained = table[table["quantity"].str.startswith("qk ")], null_bands(run, **size)
            bands = dict(
                zip(_labels(untrained, columns), zip(untrained["low"], untrained["high"], strict=True), strict=True)
            )
        elif analysis == "ablate":
            table["cost"] = table["intact"] - table["value"]
        else:
            table = resolved(table)
        end = table[table["step"] == table["step"].max()]
        shown = list(end.assign(size=end[value].abs()).nlargest(8, "size")["label"])
        made.append((figures.trajectories({run.path.stem: table}, "label", value, shown, title, bands), caption))
    return made


def _labels(table: pd.DataFrame, columns: tuple[str, ...]) -> pd.Series:
    return table[columns[0]].str.cat([table[column] for column in columns[1:]], sep=" ")


_CIRCUIT: tuple[tuple[str, dict[str, int], tuple[str, ...], str, str, str], ...] = (
    (
        "qkov",
        {"n_sequences": 50},
        ("quantity", "part"),
        "value",
        "Query–key interactions",
        "How strongly each interaction (query part–key part) of each head moves attention, in score units; buffer is"
        " what earlier layers wrote. The eight strongest at the end; shaded: the same in untrained networks.",
    ),
    (
        "paths",
        {"n_pairs": 64},
        ("sender", "receiver"),
        "effect",
        "Paths that carry the pairing",
        "Path patching with shuffled positions: the share of the answer that one edge (sender, receiver)"
        " restores, where there is an answer to restore (beyond two standard errors).",
    ),
    (
        "ablate",
        {"n_sequences": 100},
        ("hook", "ablation"),
        "cost",
        "What an ablation costs",
        "Accuracy on the first evaluation set that is lost when a component is taken out in one way.",
    ),
)


def _attention(run: Run, found: pd.Series) -> tuple[go.Figure, str]:
    """Attention on one sequence at three steps: before and after the located transition, and at the end."""
    steps = run.steps
    before = after = steps[len(steps) // 2]
    if found["transition"]:
        before = max([step for step in steps if step <= found["step"] - found["width"]], default=steps[0])
        after = min([step for step in steps if step >= found["step"] + found["width"]], default=steps[-1])
    batch = run.task.sample(run.task.evaluations[0], 1)
    patterns = {}
    for step in sorted({before, after, steps[-1]}):
        _, cache = forward(run.weights(step), batch.inputs)
        layer1, layer2 = (cache[f"blocks.{layer}.attn.hook_pattern"][0, 0].numpy() for layer in (0, 1))
        patterns[step] = (layer1, layer2[-1])
    names = figures.token_names(batch.inputs.shape[1], {role: mask[0].numpy() for role, mask in batch.roles.items()})
    caption = (
        "Attention on one sequence of the first evaluation set (head 1). Top: layer 1, query (row) to key (column)."
        " Bottom: the target's row of layer 2; ★ is the target's correct label."
    )
    return figures.attention_maps(patterns, names, "Attention before and after"), caption


def _facts(run: Run) -> pd.DataFrame:
    steps = run.steps
    facts = {"file": run.path.name, "status": run.status, "created": run.created, "saved steps": len(steps)}
    facts |= {"last step": steps[-1], "digest of the last weights": run.digest(steps[-1]), **run.environment}
    return pd.DataFrame({"value": {name: str(value) for name, value in facts.items()}}).rename_axis("fact")
