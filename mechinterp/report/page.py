"""The report of a run: one HTML file that works offline, with a slider over all of its checkpoints."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from mechinterp.emergence import emergence_table
from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.files import require_ending, require_path, require_place
from mechinterp.labels import measure_name
from mechinterp.measures.table import main_column
from mechinterp.report import html, transitions
from mechinterp.report.facts import called, difference_table, nearest_preset, next_commands
from mechinterp.report.run_page import Part, RunPage
from mechinterp.run import Run, require_run

_SLIDER = "Drag the slider, or press the arrow keys (with shift, ten at a time), Home, End, or space to play."
_BAND = " The band on it is the 95 % interval of the transition."
_CURSOR = (
    "The vertical line is the step that the slider shows, and the legends give the values there; a click between the"
    " axes goes to another step, a click on a legend hides a curve."
)


def write_report(
    run: Run,
    table: pd.DataFrame,
    path: str | Path,
    *,
    measure: str | None = None,
    others: Mapping[str, pd.DataFrame] | None = None,
    progress: bool = False,
) -> html.Page:
    """The path of a run's page, written from its table of measures; in a notebook it shows the page.

    `measure` is the column whose transition is the headline, by default the run's main one. `others` are the tables of
    other runs, by name, which are drawn over this run, aligned where that measure crosses 50 %. With `progress`, bars
    show the progress of the analyses.

    A summary in words comes first. A slider over the table's checkpoints moves the circuit, attention, the QK and OV
    circuits and the order parameters, and marks its step on all curves. The transitions of all measures, commands to go
    on with, and the config follow. Parts that do not apply to the run's task or network are left out, and the page says
    why. An existing page is replaced; a run file never is.
    """
    require_run(run)
    require_place(require_ending(require_path(path), ".html", ".htm"))
    if table.empty:
        raise MechinterpError(f"{run.path}: holds no checkpoint; train it anew")
    headline = measure or (name if (name := main_column(run)) in table else str(table.columns[0]))
    if headline not in table:
        raise unknown_name("measure", headline, list(table.columns))
    if run.path.stem in (others or {}):
        raise MechinterpError(f"{run.path.stem} names two runs; give the other one another name")
    page = RunPage(run, table, emergence_table(table), headline, others or {}, progress)
    views, views_omitted = _applicable(page.at_a_step())
    curves, curves_omitted = _applicable(page.over_training())
    why = f"Circuits and attention: {run.why_not_analysed}." if not run.can_be_analysed else ""
    omitted = [*filter(None, [why]), *views_omitted, *curves_omitted]
    found, row = page.summary(), page.emergence.loc[headline]
    spikes = [html.note(f"{str(spikes).capitalize()}.")] if (spikes := page.spikes) else []
    chart = transitions.strip_chart(page.emergence, page.steps, headline)
    readout = page.readout()
    parts = [
        html.note(called(run)),
        html.columns(html.lead(found.lead) + html.told(found.parts) + "".join(spikes), html.terms(found.terms)),
        html.scrubber(page.steps, table[readout], row.to_dict(), {name: measure_name(name) for name in readout}),
        *([html.hint(_SLIDER + (_BAND if row["transition"] else "")), html.grid(views)] if views else []),
        html.section("Over training", _CURSOR),
        html.grid([*([chart] if chart else []), *curves]),
        html.section("Transitions", transitions.WHAT),
        transitions.table(page.emergence, page.steps),
        html.section("What next", f"In the folder of {run.path.name}:"),
        html.commands(next_commands(run, headline, row)),
        html.section("What was run"),
        *_what_was_run(run),
        *([html.folded("Not shown, and why", *map(html.paragraph, omitted))] if omitted else []),
    ]
    return html.write_page(Path(path), f"Run {run.path.name}", parts)


def _what_was_run(run: Run) -> list[str]:
    """What differs from the nearest preset, and, folded away, all settings, the environment and the file."""
    parts = []
    if run.origin is None and (preset := nearest_preset(run.config)):
        name, found = preset
        text = f"The settings of the preset {name}" + (", but for these:" if found else ", unchanged.")
        parts = [html.paragraph(text), *([html.table(difference_table(found, name))] if found else [])]
    config = (run.origin or run.config).model_dump_json(indent=2)
    return [
        *parts,
        html.folded("All settings", html.code(config)),
        html.folded("File and environment", html.table(_facts(run))),
    ]


def _applicable(parts: Mapping[str, Part]) -> tuple[list[str], list[str]]:
    """The parts that apply to a run, and the reasons for which the others do not."""
    drawn, reasons = [], []
    for name, part in parts.items():
        try:
            drawn.append(part())
        except MechinterpError as error:
            reasons.append(f"{name}: {error}.")
    return drawn, reasons


def _facts(run: Run) -> pd.DataFrame:
    steps = run.steps
    facts = {"file": run.path.name, "status": run.status, "created": run.created, "saved steps": len(steps)}
    facts |= {"last step": steps[-1], "digest of the last weights": run.digest(steps[-1]), **run.environment}
    return pd.DataFrame({"value": {name: str(value) for name, value in facts.items()}}).rename_axis("fact")
