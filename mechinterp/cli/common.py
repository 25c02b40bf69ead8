"""What the commands share: arguments that they have in common, and how results are printed."""

import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from mechinterp.config import RunConfig
from mechinterp.files import plain_json

RunPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="A run file.")]
Json = Annotated[bool, tyro.conf.arg(help="Print one JSON object.")]
Settings = Annotated[RunConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]


def print_result(values: dict[str, Any], as_json: bool, text: str) -> None:
    """A command's result: `values` as one JSON object, or `text`."""
    print(json.dumps(plain_json(values)) if as_json else text)


def sentence(name: str, found: Any) -> str:
    """What was found of a measure's transition, in one line."""
    if not found.transition:
        return f"{name}: no transition: {found.reason}"
    return (
        f"{name}: transition at step {found.step:.0f} (95 % interval {found.low:.0f} to {found.high:.0f},"
        f" 10–90 % width {found.width:.0f} steps, from {found.before:.3f} to {found.after:.3f})"
    )
