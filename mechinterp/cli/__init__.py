"""The command line: commands are dataclasses whose fields are the options and whose method `execute` runs them.

A command is imported when it is called, and large packages by commands only, so that help is instant. A user's error is
one line on standard error and exit code 2.
"""

import os
import sys
from contextlib import suppress
from dataclasses import fields
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from mechinterp.cli.commands import COMMANDS, command_of, described, overview
from mechinterp.errors import ConfigError, MechinterpError, unknown_name

if TYPE_CHECKING:
    from mechinterp.config import RunConfig


def main(arguments: list[str] | None = None) -> int:
    """The exit code of a command, after running it:

    0, 1 (a file fails to verify, or a run of a study failed), 2 (a user's error) or 130 (Ctrl-C).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if " ".join(arguments[:2]) in COMMANDS:  # a command of two words
        arguments[:2] = ["-".join(arguments[:2])]
    elif _is_misspelt(arguments):
        return _fail(unknown_name("command", " ".join(arguments[:2]), COMMANDS))
    if arguments == ["--version"]:
        arguments = ["version"]
    try:
        arguments = _take_shared(arguments or ["start"])
        arguments, kinds = _take_kinds(arguments)
        name, *rest = arguments or ["start"]
        if name in ("-h", "--help"):
            print(overview())
            return 0
        name = "completion" if name == "--tyro-print-completion" else name
        command: Any = command_of(name)
        options: dict[str, Any] = {"prog": f"mechinterp {name}", "description": described(command)}
        if "settings" in {field.name for field in fields(command)}:  # its options are also those of a config
            options["default"] = command(settings=_base_config(rest).updated(kinds))
    except MechinterpError as error:
        return _fail(error)
    return run_command(command, rest, **options)


def _is_misspelt(arguments: list[str]) -> bool:
    """Whether the arguments begin as a command of two words does, but go on with a word that is no file's name."""
    first, second = (*arguments[:2], "", "")[:2]
    begins = first in {name.split()[0] for name in COMMANDS if " " in name}
    return begins and second.replace("-", "").isalpha() and second[0] != "-" and not os.path.exists(second)


def run_command(command: Any, arguments: list[str] | None = None, **options: Any) -> int:
    """The exit code of a command, or of one in a union of commands, that `arguments` name; it is executed.

    A user's error, including tyro's boxed messages, becomes one line on standard error and exit code 2.
    """
    from pydantic import ValidationError

    from mechinterp.cli.parsing import parse

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack β and –
    called: Any = None
    try:
        called = parse(command, arguments, **options)
        code = called.execute() or 0
        if sys.stdout:
            sys.stdout.flush()
        return code
    except MechinterpError as error:
        return _fail(error)
    except ValidationError as error:
        from mechinterp.config import RunConfig, explain

        return _fail(ConfigError(explain(error, RunConfig)))
    except MemoryError as error:
        return _fail(MechinterpError(f"out of memory ({error}); lower the sizes"))
    except BrokenPipeError:  # the reader of the output has ended
        _leave_output()
        return 0
    except OSError as error:
        place = error.filename or "standard output"
        _leave_output()
        return _fail(MechinterpError(f"{place}: {error.strerror or error}; free some space, or choose another place"))
    except KeyboardInterrupt:
        go_on = called.go_on() if hasattr(called, "go_on") else None
        more = f"; go on by: {go_on}" if go_on else ""
        print(f"mechinterp: interrupted; every checkpoint written so far is kept{more}", file=sys.stderr)
        return 130


def _leave_output() -> None:
    """Send what is still to be printed nowhere."""
    with suppress(OSError, ValueError):  # a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: MechinterpError) -> int:
    with suppress(OSError):  # standard error is full: the exit code says it
        print(f"mechinterp: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return 2


def _base_config(arguments: list[str]) -> "RunConfig":
    """The config that --config or --preset names; the other options then override it."""
    from mechinterp.config import RunConfig

    named = {argument.partition("=")[0] for argument in arguments}
    if {"--config", "--preset"} <= named:
        raise MechinterpError("--config and --preset are both given; start from one of them")
    for option, load in (("--config", RunConfig.from_toml), ("--preset", RunConfig.preset)):
        for index, argument in enumerate(arguments):
            name, has_value, value = argument.partition("=")
            if name == option and (has_value or index + 1 < len(arguments)):
                return load(value if has_value else arguments[index + 1])
    return RunConfig.preset("reddy2023-fast")


def _take_shared(arguments: list[str]) -> list[str]:
    """The arguments without those that every command takes, which have acted: --quiet and --threads N."""
    rest, waiting = list[str](), list(arguments)
    quiet = "--quiet" in waiting or "-q" in waiting
    if quiet or "mechinterp.progress" in sys.modules:  # its import takes a while
        from mechinterp.progress import be_quiet

        be_quiet(quiet)
    while waiting:
        name, has_value, value = waiting.pop(0).partition("=")
        if name == "--threads":
            text = value if has_value or not waiting else waiting.pop(0)
            if not (text.isdecimal() and 0 < int(text) <= 1024):
                raise MechinterpError(f"--threads is {text!r}; expected a number of threads, 1 or more")
            os.environ["OMP_NUM_THREADS"] = text  # torch reads it when it is imported
            if torch := sys.modules.get("torch"):
                torch.set_num_threads(int(text))
        elif name not in ("--quiet", "-q"):
            rest.append(name + has_value + value)
    return rest


def _take_kinds(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without --task.kind and --model.kind, which choose the options that there are, and their values."""
    rest, kinds, waiting = list[str](), dict[str, str](), list(arguments)
    while waiting:
        name, has_value, value = waiting[0].partition("=")
        if name in ("--task.kind", "--model.kind") and (has_value or len(waiting) > 1):
            kind = value if has_value else waiting.pop(1)
            if kind == "custom":
                raise MechinterpError(f"{name} custom: a task of your own has no options; give it to mi.train(task=…)")
            kinds[name.removeprefix("--")] = kind
        else:
            rest.append(waiting[0])
        waiting.pop(0)
    return rest, kinds
