"""What was run, as differences from the nearest preset, and what to do next, as commands of the shell."""

import shlex
from collections.abc import Mapping
from typing import Any

import pandas as pd

from mechinterp.config import RunConfig
from mechinterp.config.presets import PRESETS
from mechinterp.labels import measure_label
from mechinterp.run import Run

MOST_DIFFERENCES = 12
"""Of more differences than that, a config is not called a variant of a preset."""


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a config by dotted name."""
    found = dict[str, Any]()
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flattened(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def differences(config: RunConfig, other: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The settings in which a config differs from another: theirs and its own, None where one has no such setting."""
    own, theirs = (flattened(each.model_dump(mode="json")) for each in (config, other))
    names = dict.fromkeys([*own, *theirs])
    return {name: (theirs.get(name), own.get(name)) for name in names if own.get(name) != theirs.get(name)}


def nearest_preset(config: RunConfig) -> tuple[str, dict[str, tuple[Any, Any]]] | None:
    """The preset from which a config differs least, with the differences; None if there are many."""
    found = {name: differences(config, RunConfig.preset(name)) for name in PRESETS}
    name = min(found, key=lambda each: len(found[each]))
    return (name, found[name]) if len(found[name]) <= MOST_DIFFERENCES else None


def called(run: Run) -> str:
    """What kind of run it is, in a line: preset and seed, updates, checkpoints."""
    steps = run.steps
    extent = f"{steps[-1]:,} updates, {len(steps):,} checkpoints"
    if not run.origin and steps[-1] < run.config.training.steps:
        extent = f"{steps[-1]:,} of {run.config.training.steps:,} updates so far, {len(steps):,} checkpoints"
    if run.origin:
        return f"Trained elsewhere, {run.origin.how} here: {extent}."
    preset, more = nearest_preset(run.config), ""
    if preset and (others := [name for name in preset[1] if name != "seed"]):
        more = f" with {len(others)} other setting{'s' if len(others) > 1 else ''}"
    name = f"Preset {preset[0]}{more}" if preset else f"Task {run.config.task.kind.replace('_', ' ')}"
    return f"{name}, seed {run.config.seed}: {extent}."


def difference_table(found: Mapping[str, tuple[Any, Any]], of: str) -> pd.DataFrame:
    """Settings in rows: that of the preset or variant `of`, and that of the run."""
    rows = {name: {of: _shown(theirs), "here": _shown(own)} for name, (theirs, own) in found.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=[of, "here"]).rename_axis("setting")


def _shown(value: Any) -> str:
    return "–" if value is None else str(value)


def next_commands(run: Run, measure: str, emergence: pd.Series) -> dict[str, str]:
    """Three commands that fit the run, each with what it is for."""
    path, stem = shlex.quote(run.path.name), run.path.stem
    name = measure_label(measure).name
    if run.origin:
        others = [column for column in run.metrics if column != measure]
        found = {f"mechinterp emergence {path} --measure {shlex.quote(column)}": _LOCATE for column in others[:1]}
        found[f"mechinterp report {path} OTHER.h5"] = (
            f"Lay another run over this one, aligned where {name} crosses half."
        )
        found[f"mechinterp export {path} --out {shlex.quote(f'{stem}.csv')}"] = "Take all measures away."
        return found
    found = dict[str, str]()
    again, other = _train_again(run), shlex.quote(f"{stem}-seed{run.config.seed + 1}.h5")
    if emergence["transition"]:
        low = max(run.steps[0], int(emergence["step"] - emergence["width"]))
        high = min(run.steps[-1], int(emergence["step"] + emergence["width"]))
        every = max(1, round((high - low) / 100))
        found[f"mechinterp replay {path} --from {low} --to {high} --every {every}\nmechinterp report {path}"] = (
            "See the transition closer: rebuild checkpoints inside it, and write the report again."
        )
    elif again:
        longer = shlex.quote(f"{stem}-longer.h5")
        steps = 2 * run.config.training.steps
        found[f"{again} --seed {run.config.seed} --training.steps {steps} --out {longer}"] = (
            "See whether it comes later: train twice as long."
        )
    if again:
        found[f"{again} --seed {run.config.seed + 1} --out {other}\nmechinterp report {path} {other}"] = (
            "See whether another seed does the same, and lay both over each other."
        )
    if run.can_be_analysed and run.network_config.model.n_heads > 1:
        found[f"mechinterp heads {path}"] = "See which heads do what, and which of them are redundant."
    else:
        found[f"mechinterp patch {path}"] = "See which activation carries the answer, by patching every one."
    return found


_LOCATE = "Locate the transition of another number that was recorded."


def _train_again(run: Run) -> str | None:
    """The command that trains such a run, without seed and place; None if its settings are no options."""
    preset = nearest_preset(run.config)
    if preset is None or any(not isinstance(own, int | float | str) for _, own in preset[1].values()):
        return None
    options = [f"--{name} {shlex.quote(str(own))}" for name, (_, own) in preset[1].items() if name != "seed"]
    return " ".join(["mechinterp train --preset", preset[0], *options])
