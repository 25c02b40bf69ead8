"""Arguments that commands share, and the printing of results."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError, printable
from mechinterp.files import plain_json

if TYPE_CHECKING:
    from mechinterp.training.spikes import Spikes

RunPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="A run file.")]
Json = Annotated[bool, tyro.conf.arg(help="Print one JSON object.")]
Step = int | str
"""A step by its number, or ``first`` or ``last``."""
Settings = Annotated[RunConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]


def print_result(values: dict[str, Any], as_json: bool, text: str) -> None:
    """Print a command's result: `values` as one JSON object, or `text`."""
    print(json.dumps(plain_json(values)) if as_json else "\n".join(map(printable, text.split("\n"))))


def spikes_result(spikes: "Spikes | None") -> dict[str, Any]:
    """The loss spikes of a run as a result: null without one."""
    return {"spikes": None if spikes is None else asdict(spikes)}


def with_spikes(text: str, spikes: "Spikes | None") -> str:
    """The text, and a line that says which loss spikes a run has, if there are any."""
    return text if spikes is None else f"{text}\n{spikes}"


def require_one_form(csv: bool, json: bool) -> None:
    """MechinterpError where two forms of output are asked for."""
    if csv and json:
        raise MechinterpError("--csv and --json exclude each other; give one of them")
