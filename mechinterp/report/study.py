"""The page of a study: comparison of its variants, curves of all runs, and the steps of their transitions."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from mechinterp import figures
from mechinterp.errors import MechinterpError
from mechinterp.files import require_ending
from mechinterp.labels import measure_label, measure_name
from mechinterp.report import html
from mechinterp.report.facts import difference_table, differences, nearest_preset
from mechinterp.report.run_page import aligned
from mechinterp.studies.runner import compare, describe_guessing, describe_spikes, measured
from mechinterp.studies.study import Study

_OF_VARIANTS = {
    "step": "median step",
    "step_low": "first step",
    "step_high": "last step",
    "after": "level after",
    "ratio": "step ÷ first variant's",
    "ratio_low": "ratio, least",
    "ratio_high": "ratio, most",
}
"""What the table of variants calls its columns."""
_OF_RUNS = {
    "low": "95 % from",
    "high": "to",
    "width": "10–90 % width",
    "before": "level before",
    "after": "level after",
}
"""What the table of runs calls its columns."""


def write_study_report(study: Study, table: pd.DataFrame, folder: Path, path: Path) -> html.Page:
    """The path of a study's page, written from the study's table and the measures of its runs in `folder`."""
    require_ending(path, ".html", ".htm")
    compared, tables = compare(table), measured(study, folder)
    n_done = int((table["status"] == "done").sum())
    curves = []
    for name in (study.measures[0], f"clamped_{study.measures[0]}"):
        if any(name in measures for measures in tables.values()):
            caption = f"{measure_name(name)} over training, a line for each seed, a colour for each variant."
            curves.append(html.figure(html.Drawing(variant_curves(study, tables, name), cursor=0.0), caption))
    if tables:
        caption = (
            "Where each run makes its transition, with its 95 % interval; seeds of a variant one below the other. Runs"
            " that make none are left out."
        )
        curves.append(html.figure(transition_steps(table), caption))
    main = measure_label(study.measures[0])
    meaning = f" {main.name}: {main.meaning}." if main.meaning else ""
    parts = [
        html.lead(f"{n_done} of {len(table)} runs done: {len(study.variants)} variants, {len(study.seeds)} seeds."),
        html.note(f"Transitions are those of {main.name}.{meaning}"),
        *(
            [html.note(f"{guessing[:1].upper()}{guessing[1:]}.")]
            if (guessing := describe_guessing(study, table))
            else []
        ),
        *([html.note(f"{spikes}.")] if (spikes := describe_spikes(table)) else []),
        html.grid(curves),
        html.section("Variants"),
        html.table(compared, _columns(compared) | _OF_VARIANTS),
        html.section("Seeds, aligned", "The progress measures of each variant's runs, where they form the circuit."),
        html.grid(_aligned(study, tables)),
        html.section("Runs"),
        html.folded(f"All {len(table)} runs", html.table(table.set_index("variant"), _columns(table) | _OF_RUNS)),
        html.section("What was run"),
        *_what_was_run(study),
    ]
    return html.write_page(path, f"Study {study.name}", parts)


def _columns(table: pd.DataFrame) -> dict[str, str]:
    """What the page calls the columns of a study's table."""
    names = {str(name): str(name).replace("_", " ") for name in table}
    finals = [name for name in names if name.startswith("final_")]
    return names | {name: f"final {measure_name(name.removeprefix('final_'))}" for name in finals}


def _what_was_run(study: Study) -> Iterator[str]:
    """What the first variant differs in from the nearest preset, the others from the first, and, folded, all."""
    (first, config), *others = study.variants.items()
    if preset := nearest_preset(config):
        name, found = preset
        found = {setting: values for setting, values in found.items() if setting != "seed"}
        yield html.paragraph(f"{first}: the preset {name}" + (", but for these settings:" if found else "."))
        if found:
            yield html.table(difference_table(found, name))
    for variant, other in others:
        yield html.paragraph(f"{variant}: as {first}, but for these settings:")
        yield html.table(difference_table(differences(other, config), first))
    for variant, other in study.variants.items():
        yield html.folded(f"All settings of {variant}", html.code(other.model_dump_json(indent=2)))


def _aligned(study: Study, tables: dict[tuple[str, int], pd.DataFrame]) -> Iterator[str]:
    """For every variant, the figure of its runs, aligned; or the reason for which there is none."""
    for variant in study.variants:
        by_seed = {f"seed {seed}": table for (name, seed), table in tables.items() if name == variant}
        try:
            drawing, caption, _ = aligned(by_seed, study.measures[0], variant)
            yield html.figure(html.Drawing(drawing, cursor=0.0), caption)
        except MechinterpError as error:
            yield f"<div>{html.section(variant, f'{error}.')}</div>"


def variant_curves(study: Study, tables: dict[tuple[str, int], pd.DataFrame], measure: str) -> go.Figure:
    """A measure over training: a colour for every variant, a line for every seed.

    Runs without the measure have no line: of a variant without interventions there is no clamped measure.
    """
    by_seed = {f"seed {seed}": [pd.DataFrame(columns=["step", "variant", measure])] for seed in study.seeds}
    for (variant, seed), table in tables.items():
        if measure in table:
            values = pd.Series(table[measure]).to_numpy()
            by_seed[f"seed {seed}"].append(pd.DataFrame({"step": table.index, "variant": variant, measure: values}))
    drawn = {seed: pd.concat(rows[1:]) if rows[1:] else rows[0] for seed, rows in by_seed.items()}
    figure = figures.trajectories(
        drawn, "variant", measure, list(study.variants), f"{measure_name(measure)} by variant"
    )
    shown = {variant for (variant, _), table in tables.items() if measure in table}
    figure.data = tuple(trace for trace in figure.data if trace.name in shown)  # no legend without a line
    return figure.update_yaxes(title_text=measure_name(measure))


def transition_steps(table: pd.DataFrame) -> go.Figure:
    """The main measure's transition of every run, with its interval; variants in rows, seeds of one below each other.

    A variant has the colour of its curves.
    """
    variants, seeds = list(dict.fromkeys(table["variant"])), sorted(set(table["seed"]))
    figure = go.Figure()
    for row, variant in enumerate(variants):
        located = table.loc[table["transition"].eq(True) & table["variant"].eq(variant)]
        places = [row + 0.6 * ((seeds.index(seed) + 0.5) / len(seeds) - 0.5) for seed in located["seed"]]
        colour = figures.PALETTE[row % len(figures.PALETTE)]
        steps = located["step"].astype(float).to_numpy()
        figure.add_scatter(
            x=steps,
            y=places,
            error_x={
                "type": "data",
                "symmetric": False,
                "array": located["high"].astype(float).to_numpy() - steps,
                "arrayminus": steps - located["low"].astype(float).to_numpy(),
                "thickness": 1.5,
            },
            mode="markers",
            name=variant,
            text=[f"{variant}, seed {seed}" for seed in located["seed"]],
            hoverinfo="text+x",
            marker={"size": 7, "color": colour},
        )
    figure.update_yaxes(
        tickvals=list(range(len(variants))), ticktext=variants, range=[len(variants) - 0.5, -0.5], zeroline=False
    )
    title = "Step of the transition, with its 95 % interval"
    return figures.styled(figure, title, "step (updates)", None)
