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
