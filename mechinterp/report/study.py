"""The page of a study: comparison of its variants, curves of all runs, and the steps of their transitions."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from mechinterp.errors import MechinterpError
from mechinterp.report import figures, html
from mechinterp.report.page import aligned
from mechinterp.studies.runner import compare, describe_spikes, measured
from mechinterp.studies.study import Study


def write_study_report(study: Study, table: pd.DataFrame, folder: Path, path: Path) -> html.Page:
    """The path of a study's page, written from the study's table and the measures of its runs in `folder`."""
    compared, tables = compare(table), measured(study, folder)
    n_done = int((table["status"] == "done").sum())
    curves = []
    for name in (study.measures[0], f"clamped_{study.measures[0]}"):
        if any(name in measures for measures in tables.values()):
            caption = f"{name} over training, a line for each seed, a colour for each variant."
            curves.append(html.figure(variant_curves(study, tables, name), caption))
    if tables:
        caption = "Where each run makes its transition; runs that make none are left out."
        curves.append(html.figure(transition_steps(table), caption))
    parts = [
        html.lead(f"{n_done} of {len(table)} runs done: {len(study.variants)} variants, {len(study.seeds)} seeds."),
        *([html.note(f"{spikes}.")] if (spikes := describe_spikes(table)) else []),
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
    """For every variant, the figure of its runs, aligned; or the reason for which there is none."""
    for variant in study.variants:
        by_seed = {f"seed {seed}": table for (name, seed), table in tables.items() if name == variant}
        try:
            drawing, caption, _ = aligned(by_seed, study.measures[0], variant)
            yield html.figure(drawing, caption)
        except MechinterpError as error:
            yield f"<div>{html.section(variant, f'{error}.')}</div>"


def variant_curves(study: Study, tables: dict[tuple[str, int], pd.DataFrame], measure: str) -> go.Figure:
    """A measure over training: a colour for every variant, a line for every seed.

    Without interventions, a clamped measure equals the unclamped one.
    """
    by_seed = {f"seed {seed}": [pd.DataFrame(columns=["step", "variant", measure])] for seed in study.seeds}
    for (variant, seed), table in tables.items():
        values = pd.Series(table[measure if measure in table else measure.removeprefix("clamped_")]).to_numpy()
        by_seed[f"seed {seed}"].append(pd.DataFrame({"step": table.index, "variant": variant, measure: values}))
    drawn = {seed: pd.concat(rows[1:]) if rows[1:] else rows[0] for seed, rows in by_seed.items()}
    return figures.trajectories(drawn, "variant", measure, list(study.variants), f"{measure} by variant")


def transition_steps(table: pd.DataFrame) -> go.Figure:
    """The main measure's transition of every run, with its interval; variants in rows."""
    located = table.loc[table["transition"].eq(True)]
    figure = go.Figure()
    figure.add_scatter(
        x=located["step"].astype(float).to_numpy(),
        y=located["variant"].to_numpy(),
        error_x={
            "type": "data",
            "symmetric": False,
            "array": (located["high"] - located["step"]).astype(float).to_numpy(),
            "arrayminus": (located["step"] - located["low"]).astype(float).to_numpy(),
        },
        mode="markers",
        text=[f"seed {seed}" for seed in located["seed"]],
        marker={"size": 8, "color": "#D55E00", "opacity": 0.7},
    )
    figure.update_yaxes(categoryorder="array", categoryarray=list(dict.fromkeys(table["variant"]))[::-1])
    title = "Step of the transition, with its 95 % interval"
    return figure.update_layout(template="plotly_white", title=title, xaxis_title="step (updates)")
