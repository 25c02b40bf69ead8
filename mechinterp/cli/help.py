"""Help on all commands, the version, and completion in the shell."""

import re
import sys
from dataclasses import dataclass
from importlib.metadata import version
from inspect import cleandoc
from textwrap import fill
from typing import Annotated, Any, ClassVar, Literal, Union

import tyro

from mechinterp.cli.parsing import parse

SHARED = "Every command also takes --quiet (show no progress) and --threads N (threads of a new run, and of analyses)."
_WIDTH = 100


def spelled(name: str) -> str:
    """The one word that a command is, whose name has two: study-status of study status."""
    return name.replace(" ", "-")


def described(command: type) -> str:
    """What help says of a command."""
    return f"{cleandoc(command.__doc__ or '')}\n\n{SHARED}"


def overview(commands: dict[str, type]) -> str:
    """Help on all commands: the first sentence on each, under what the commands of its module do."""
    lines = [
        "usage: mechinterp COMMAND [OPTIONS]",
        "",
        "When, how and why does a circuit form in a small attention network?",
        "",
        "mechinterp                  says what to do next in this folder",
        "mechinterp COMMAND --help   explains a command's options",
        "mechinterp --version",
    ]
    groups: dict[str, list[str]] = {}
    for name, command in commands.items():
        about = re.split(r"(?<=[.?])\s", " ".join((command.__doc__ or "").split()), maxsplit=1)[0]
        word = re.sub("^(study|config)-", r"\1 ", name)
        text = fill(about, _WIDTH - 21, break_long_words=False).replace("\n", "\n" + " " * 21)
        groups.setdefault(_group(command), []).append(f"  {word:18} {text}")
    for group, entries in groups.items():
        lines += ["", f"{group}:", *entries]
    return "\n".join([*lines, "", SHARED])


def _group(command: type) -> str:
    """What the commands of a command's module do, by the first line of the module."""
    about = (sys.modules[command.__module__].__doc__ or "").split("\n")[0].rstrip(".")
    text = re.sub("^Commands (that|of) ", "", about)
    return text[:1].upper() + text[1:]


@dataclass
class Version:
    """Print the version."""

    def execute(self) -> None:
        print(f"mechinterp {version('mechinterp')}")


@dataclass
class Completion:
    """Print a script that completes commands and options in a shell: source <(mechinterp completion bash)."""

    commands: ClassVar[dict[str, type]]
    shell: Annotated[
        Literal["bash", "zsh", "fish"], tyro.conf.Positional, tyro.conf.arg(help="The shell that reads the script.")
    ]

    def execute(self) -> None:
        parts = [
            Annotated[command, tyro.conf.subcommand(spelled(name), description="")]
            for name, command in self.commands.items()
        ]
        union: Any = Union[tuple(parts)]  # noqa: UP007  (made at run time)
        try:
            parse(union, ["--tyro-print-completion", self.shell], prog="mechinterp")
        except SystemExit:  # the script has been printed
            return
