"""Help on all commands, the version, and completion in the shell."""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any, Literal, Union

import tyro

from mechinterp.cli.commands import COMMANDS, command_of, spelled
from mechinterp.cli.parsing import parse


@dataclass
class Version:
    """Print the version."""

    def execute(self) -> None:
        print(f"mechinterp {version('mechinterp')}")


@dataclass
class Completion:
    """Print a script that completes commands and options in a shell: source <(mechinterp completion bash)."""

    shell: Annotated[
        Literal["bash", "zsh", "fish"], tyro.conf.Positional, tyro.conf.arg(help="The shell that reads the script.")
    ]

    def execute(self) -> None:
        parts = [
            Annotated[command_of(word), tyro.conf.subcommand(word, description="")] for word in map(spelled, COMMANDS)
        ]
        union: Any = Union[tuple(parts)]  # noqa: UP007  (made at run time)
        try:
            parse(union, ["--tyro-print-completion", self.shell], prog="mechinterp")
        except SystemExit:  # the script has been printed
            return
