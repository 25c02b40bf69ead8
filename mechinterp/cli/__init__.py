"""The command line: commands are dataclasses whose fields are the options and whose method `execute` runs them.

Large packages are imported by commands only, so that help is instant. A user's error is one line on standard error and
exit code 2.
"""

import os
import re
import sys
from contextlib import redirect_stderr, suppress
from io import StringIO, TextIOWrapper
from typing import Annotated, Any, Union

import tyro
from pydantic import ValidationError

from mechinterp.cli.analyses import Circuit, Emergence, Measure, analysis_commands
from mechinterp.cli.exchange import Export, Import
from mechinterp.cli.report import Report
from mechinterp.cli.runs import Info, Replay, Resume, Run, Train, Verify
from mechinterp.cli.study import Study, StudyCollect, StudyRetry, StudyStatus
from mechinterp.config import RunConfig, explain
from mechinterp.errors import ConfigError, MechinterpError

_COMMANDS: dict[str, type] = {
    "run": Run,
    "train": Train,
    "resume": Resume,
    "replay": Replay,
    "verify": Verify,
    "info": Info,
    "measure": Measure,
    "emergence": Emergence,
    "circuit": Circuit,
    "report": Report,
    "import": Import,
    "export": Export,
    "study": Study,
    "study status": StudyStatus,
    "study retry": StudyRetry,
    "study collect": StudyCollect,
}


def main(arguments: list[str] | None = None) -> int:
    """The exit code of a command, after running it:

    0, 1 (a file fails to verify, or a run of a study failed), 2 (a user's error) or 130 (Ctrl-C).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if " ".join(arguments[:2]) in _COMMANDS:  # a command of two words
        arguments[:2] = ["-".join(arguments[:2])]

    try:
        arguments, kinds = _take_kinds(arguments)
        base = _base_config(arguments)
        base = base.updated(kinds) if kinds else base
    except MechinterpError as error:
        return _fail(error)
    commands = []
    for name, command in {**_COMMANDS, **analysis_commands(next(iter(arguments), ""))}.items():
        default: dict[str, Any] = {"default": command(settings=base)} if issubclass(command, Train) else {}
        commands.append(Annotated[command, tyro.conf.subcommand(name.replace(" ", "-"), **default)])
    about = "When, how and why does a circuit form in a small attention network?"
    union = Union[tuple(commands)]  # noqa: UP007  (made at run time)
    return run_command(union, arguments, prog="mechinterp", description=about)


def run_command(command: Any, arguments: list[str] | None = None, **options: Any) -> int:
    """The exit code of a command, or of one in a union of commands, that `arguments` name; it is executed.

    A user's error, including tyro's boxed messages, becomes one line on standard error and exit code 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack β and –
    try:
        code = _parse(command, arguments, options).execute() or 0
        if sys.stdout:
            sys.stdout.flush()
        return code
    except MechinterpError as error:
        return _fail(error)
    except ValidationError as error:
        return _fail(ConfigError(f"config: {explain(error, RunConfig)}"))
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
        print("mechinterp: interrupted; every checkpoint written so far is kept", file=sys.stderr)
        return 130


def _leave_output() -> None:
    """Send what is still to be printed nowhere."""
    with suppress(OSError, ValueError):  # a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: MechinterpError) -> int:
    with suppress(OSError):  # standard error is full: the exit code says it
        print(f"mechinterp: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return 2


def _parse(command: Any, arguments: list[str] | None, options: dict[str, Any]) -> Any:
    complaint = StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(command, args=arguments, **options)
    except SystemExit as stop:
        if stop.code != 2:
            raise
        raise MechinterpError(_one_line(complaint.getvalue())) from None


def _base_config(arguments: list[str]) -> RunConfig:
    """The config that --config or --preset names; the other options then override it."""
    named = {argument.partition("=")[0] for argument in arguments}
    if {"--config", "--preset"} <= named:
        raise MechinterpError("--config and --preset are both given; start from one of them")
    for option, load in (("--config", RunConfig.from_toml), ("--preset", RunConfig.preset)):
        for index, argument in enumerate(arguments):
            name, has_value, value = argument.partition("=")
            if name == option and (has_value or index + 1 < len(arguments)):
                return load(value if has_value else arguments[index + 1])
    return RunConfig.preset("reddy2023-fast")


def _take_kinds(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without --task.kind and --model.kind, which choose the options that there are, and their values."""
    rest, kinds, waiting = list[str](), dict[str, str](), list(arguments)
    while waiting:
        name, has_value, value = waiting[0].partition("=")
        if name in ("--task.kind", "--model.kind") and (has_value or len(waiting) > 1):
            kinds[name.removeprefix("--")] = value if has_value else waiting.pop(1)
        else:
            rest.append(waiting[0])
        waiting.pop(0)
    return rest, kinds


def _one_line(box: str) -> str:
    """The sentence inside one of tyro's boxes, without the frame, pydantic's references and the parser's names."""
    text = " ".join(re.sub(r"[╭╮╰╯│─]+", " ", box).split())
    text = re.sub(r"\[type=.*?\] For further information visit \S+( v/\S+)?", "", text)
    text = re.sub(r"Error parsing \S*?settings\.?(\S*): \d+ validation errors? for \w+", r"\1:", text)
    text = re.sub(r"^(Parsing|Value|Validation|Unrecognized|Invalid) (error|options|choice|value)s?:? ", "", text)
    text = re.sub(r"Perhaps you meant: ([^\s,]+).*", r"is unknown; did you mean \1?", text)
    text = re.sub(r" (For full helptext|Argument helptext|Arguments similar to|See ).*", "", text)
    return text.replace("Value error, ", "").replace("Error parsing ", "").strip()
