"""The page of a study: its variants compared, the curves of all runs, and where their transitions are."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from mechinterp.errors import MechinterpError
from mechinterp.report import figures, html
from mechinterp.report.page import aligned
from mechinterp.studies.conduct import compare, measured
from mechinterp.studies.study import Study


def write_study_report(study: Study, table: pd.DataFrame, folder: Path, path: Path) -> Path:
    """Write the page of a study from its table and the measures of its runs in `folder`; returns its path."""
    compared, tables = compare(table), measured(study, folder)
    done, wanted = int((table["status"] == "done").sum()), len(table)
    curves = []
    for name in (study.measures[0], f"clamped_{study.measures[0]}"):
        if any(name in each for each in tables.values()):
            caption = f"{name} over training, a line for each seed, a colour for each variant."
            curves.append(html.figure(variant_curves(study, tables, name), caption))
    if tables:
        caption = "Where each run makes its transition; runs that make none are left out."
        curves.append(html.figure(transition_steps(table), caption))
    parts = [
        html.lead(f"{done} of {wanted} runs done: {len(study.variants)} variants, {len(study.seeds)} seeds."),
        html.grid(curves),
        html.section("Variants"),
        html.table(compared),
        html.section("Seeds, aligned", "The progress measures of each variant's runs, where they form the circuit."),
        html.grid(_aligned(study, tables)),
        html.section("Runs"),
        html.table(table.set_index("variant")),
        html.section("What was run"),
    ]
    for variant, config in study.variants.items():
        parts += [f"<h3>{escape(variant)}</h3>", html.code(config.model_dump_json(indent=2))]
    return html.write_page(path, f"Study {study.name}", parts)


def _aligned(study: Study, tables: dict[tuple[str, int], pd.DataFrame]) -> Iterator[str]:
    """For each variant, its runs laid over each other; or why there is nothing to lay."""
    for variant in study.variants:
        own = {f"seed {seed}": table for (name, seed), table in tables.items() if name == variant}
        try:
            drawing, caption, _ = aligned(own, study.measures[0], variant)
            yield html.figure(drawing, caption)
        except MechinterpError as error:
            yield f"<div>{html.section(variant, f'{error}.')}</div>"


def variant_curves(study: Study, tables: dict[tuple[str, int], pd.DataFrame], measure: str) -> go.Figure:
    """A measure over training: a colour for each variant, a line for each seed.

    Where nothing is clamped, a clamped measure is the released one.
    """
    by_seed = {f"seed {seed}": [pd.DataFrame(columns=["step", "variant", measure])] for seed in study.seeds}
    for (variant, seed), table in tables.items():
        values = pd.Series(table[measure if measure in table else measure.removeprefix("clamped_")]).to_numpy()
        by_seed[f"seed {seed}"].append(pd.DataFrame({"step": table.index, "variant": variant, measure: values}))
    drawn = {seed: pd.concat(rows[1:]) if rows[1:] else rows[0] for seed, rows in by_seed.items()}
    return figures.trajectories(drawn, "variant", measure, list(study.variants), f"{measure} by variant")


def transition_steps(table: pd.DataFrame) -> go.Figure:
    """The main measure's transition of every run, with its interval; variants in rows."""
    found = table.loc[table["transition"].eq(True)]
    figure = go.Figure()
    figure.add_scatter(
        x=found["step"].astype(float).to_numpy(),
        y=found["variant"].to_numpy(),
        error_x={
            "type": "data",
            "symmetric": False,
            "array": (found["high"] - found["step"]).astype(float).to_numpy(),
            "arrayminus": (found["step"] - found["low"]).astype(float).to_numpy(),
        },
        mode="markers",
        text=[f"seed {seed}" for seed in found["seed"]],
        marker={"size": 8, "color": "#D55E00", "opacity": 0.7},
    )
    figure.update_yaxes(categoryorder="array", categoryarray=list(dict.fromkeys(table["variant"]))[::-1])
    title = "Step of the transition, with its 95 % interval"
    return figure.update_layout(template="plotly_white", title=title, xaxis_title="step (updates)")
