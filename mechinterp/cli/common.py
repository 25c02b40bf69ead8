"""Arguments that commands share, and the printing of results."""

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
    """Print a command's result: `values` as one JSON object, or `text`."""
    print(json.dumps(plain_json(values)) if as_json else text)


def sentence(name: str, emergence: Any) -> str:
    """A measure's transition in one line."""
    if not emergence.transition:
        return f"{name}: no transition: {emergence.reason}"
    return (
        f"{name}: transition at step {emergence.step:.0f} (95 % interval {emergence.low:.0f} to {emergence.high:.0f},"
        f" 10–90 % width {emergence.width:.0f} steps, from {emergence.before:.3f} to {emergence.after:.3f})"
    )
