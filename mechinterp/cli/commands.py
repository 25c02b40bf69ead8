"""All commands by name, and help on them. The module of a command, and what that takes, is imported when it is called.

Help reads the sources: it imports neither commands nor configs.
"""

import ast
import re
from functools import cache
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from textwrap import fill

from mechinterp.analysis.registry import ANALYSES
from mechinterp.errors import unknown_name

COMMANDS = {
    "start": "folder.Start",
    "run": "runs.Run",
    "train": "runs.Train",
    "resume": "runs.Resume",
    "replay": "runs.Replay",
    "verify": "runs.Verify",
    "info": "info.Info",
    "runs": "folder.Runs",
    "compare": "folder.Compare",
    "config show": "configs.ConfigShow",
    "config check": "configs.ConfigCheck",
    "measure": "analyses.Measure",
    "emergence": "analyses.Emergence",
    "circuit": "analyses.Circuit",
    "transplant": "comparison.Transplant",
    "interpolate": "comparison.Interpolate",
    "sufficiency": "sufficiency.Sufficiency",
    "geometry": "geometry.Geometry",
    "report": "report.Report",
    "import": "exchange.Import",
    "export": "exchange.Export",
    "study": "study.Study",
    "study status": "study.StudyStatus",
    "study retry": "study.StudyRetry",
    "study collect": "study.StudyCollect",
    "audit": "audit.Audit",
    "completion": "help.Completion",
    "version": "help.Version",
}
"""The module of `mechinterp.cli` and the class of every command that is not made from the registry of analyses."""
SHARED = "Every command also takes --quiet (show no progress) and --threads N (threads of a new run, and of analyses)."
_WIDTH = 100


def spelled(name: str) -> str:
    """The one word that a command or an analysis is on the command line: study-status, order-parameters."""
    return name.replace(" ", "-").replace("_", "-")


def analyses() -> dict[str, str]:
    """The analyses that are commands by themselves, by the word: all but the circuit, whose command draws it."""
    return {spelled(name): name for name in ANALYSES if name != "circuit"}


def command_of(word: str) -> type:
    """The class of the command that a word names (`spelled`); an unknown one raises with the nearest."""
    homes = {spelled(name): home for name, home in COMMANDS.items()}
    if word in homes:
        module, name = homes[word].split(".")
        return getattr(import_module(f"mechinterp.cli.{module}"), name)
    if word not in analyses():
        raise unknown_name("command", word, [*COMMANDS, *analyses()])
    from mechinterp.cli.analyses import analysis_command

    return analysis_command(analyses()[word])


def described(command: type) -> str:
    """What help says of a command."""
    return f"{cleandoc(command.__doc__ or '')}\n\n{SHARED}"


def overview() -> str:
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
    for name, (module, about) in _documented().items():
        sentence = re.split(r"(?<=[.?])\s", " ".join(about.split()), maxsplit=1)[0]
        text = fill(sentence, _WIDTH - 21, break_long_words=False).replace("\n", "\n" + " " * 21)
        groups.setdefault(_group(module), []).append(f"  {name:18} {text}")
    for group, entries in groups.items():
        lines += ["", f"{group}:", *entries]
    return "\n".join([*lines, "", SHARED])


def _documented() -> dict[str, tuple[str, str]]:
    """The module of every command, and what its documentation says."""
    found = {}
    for name, home in COMMANDS.items():
        module, wanted = home.split(".")
        nodes = [node for node in _tree(module).body if isinstance(node, ast.ClassDef) and node.name == wanted]
        found[name] = module, ast.get_docstring(nodes[0]) or ""
    return found | {word: ("analyses", ANALYSES[name].summary) for word, name in analyses().items()}


def _group(module: str) -> str:
    """What the commands of a module do, by its first line."""
    about = (ast.get_docstring(_tree(module)) or "").split("\n")[0].rstrip(".")
    text = re.sub("^Commands (that|of) ", "", about)
    return text[:1].upper() + text[1:]


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
