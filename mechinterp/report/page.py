"""The report of a run: one HTML file that works offline, with plotly.js inside it, once."""

import html
import os
from pathlib import Path
from string import Template

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mechinterp.emergence import emergence_table
from mechinterp.errors import MechinterpError
from mechinterp.models.functional import forward
from mechinterp.report import figures
from mechinterp.store import Run

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
 style-src 'unsafe-inline'; img-src data: blob:; font-src data:">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.85rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:last-child { text-align: left; }
.scroll { overflow-x: auto; }
.verdict { font-size: 1.2rem; }
figure { margin: 2rem 0; } figcaption { color: #555; font-size: 0.9rem; }
pre { background: #f6f6f6; padding: 0.8rem; overflow-x: auto; font-size: 0.8rem; }
</style>
<script>$plotly</script>
</head>
<body>
<h1>$title</h1>
<p class="verdict">$verdict</p>
$figures
<h2>Emergence</h2>
<p>A four-parameter logistic in the step, against a constant and a line; 95 % interval by a moving-block bootstrap.</p>
<div class="scroll">$emergence</div>
<h2>What was run</h2>
<div class="scroll">$facts</div>
<pre>$config</pre>
</body>
</html>
""")


def write_report(run: Run, table: pd.DataFrame, path: str | Path, *, measure: str | None = None) -> Path:
    """Write the page of a run, from its table of measures, and return its path.

    `measure` is the column whose transition is the headline, by default the first.

    It shows what was run, the curves with their located transitions, attention maps before and after, what carries the
    answer over training (item–label task), and the emergence table. An existing page is replaced; a run file never is.
    """
    path = Path(path)
    if path.is_file() and path.read_bytes()[:4] == b"\x89HDF":
        raise MechinterpError(f"{path}: is a run file, not a page; choose another file for the report")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise MechinterpError(f"{path}: cannot be written; choose another file")
    emergence = emergence_table(table)
    headline = measure or str(table.columns[0])
    page = _PAGE.substitute(
        title=html.escape(f"Run {run.path.name}"),
        plotly=get_plotlyjs(),
        verdict=html.escape(verdict(emergence, headline)),
        figures="\n".join(_figure(*each) for each in _figures(run, table, emergence, headline)),
        emergence=_html_table(emergence),
        facts=_html_table(_facts(run)),
        config=html.escape(run.config.model_dump_json(indent=2)),
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise MechinterpError(f"{path}: cannot be written ({error.strerror}); choose another file") from None
    return path


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


def _figure(figure: go.Figure, caption: str) -> str:
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
    return f"<figure>{drawn}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _facts(run: Run) -> pd.DataFrame:
    steps = run.steps
    facts = {"file": run.path.name, "status": run.status, "created": run.created, "saved steps": len(steps)}
    facts |= {"last step": steps[-1], "digest of the last weights": run.digest(steps[-1]), **run.environment}
    return pd.DataFrame({"value": {name: str(value) for name, value in facts.items()}}).rename_axis("fact")


def _html_table(table: pd.DataFrame) -> str:
    def shown(value: object) -> str:
        if value is None or value != value:
            return "–"
        return (
            f"{value:.4g}"
            if isinstance(value, float) and abs(value) < 100
            else (f"{value:,.0f}" if isinstance(value, float) else str(value))
        )

    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in [table.index.name or "", *table.columns])
    rows = (
        "<tr>" + "".join(f"<td>{html.escape(shown(value))}</td>" for value in [index, *row]) + "</tr>"
        for index, row in zip(table.index, table.to_numpy(dtype=object), strict=True)
    )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"
