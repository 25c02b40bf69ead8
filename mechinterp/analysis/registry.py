"""The analyses of a checkpoint, by name. To add one, write a function that returns a table, and a line here.

The function takes a network, its task, and keyword-only arguments: integers, and members of an enum. Arguments are
annotated with type and description, from which the command line makes options. The function's module is imported when
the analysis is used.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from mechinterp.errors import MechinterpError, member, unknown_name

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Argument:
    """A keyword argument of an analysis."""

    name: str
    type: type
    """`int`, or an enum."""
    default: Any
    """None if the default depends on the task."""
    help: str

    def checked(self, value: Any) -> Any:
        """The value, converted to the type; an unknown member, another type or a number too small raises."""
        if issubclass(self.type, Enum):
            return None if value is None is self.default else member(self.type, str(value) if value is None else value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise MechinterpError(f"{self.name} is {value!r}; expected {self.type.__name__}")
        if value < (least := 0 if self.name == "seed" else 1):
            raise MechinterpError(f"{self.name} is {value}; expected {least} or more")
        return value


@dataclass(frozen=True)
class Analysis:
    """One analysis."""

    home: str
    """The module of its function, which has the name of the analysis."""
    summary: str
    """Its question, in a line."""

    def function(self, name: str) -> "Callable[..., pd.DataFrame]":
        """The function from a network, its task and the arguments to a table."""
        return getattr(import_module(self.home), name)

    def arguments(self, name: str) -> dict[str, Argument]:
        """Its keyword arguments."""
        function = self.function(name)
        hints = get_type_hints(function, include_extras=True)
        arguments = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                hint, text = get_args(hints[parameter.name])[:2]
                value_type = next((option for option in get_args(hint) if option is not type(None)), hint)
                arguments[parameter.name] = Argument(parameter.name, value_type, parameter.default, text)
        return arguments


_TABLES = "mechinterp.analysis.tables"
_CIRCUITS = "mechinterp.analysis.whole_circuits"
ANALYSES: dict[str, Analysis] = {
    "patch": Analysis(_TABLES, "Activation patching at every hook and role: which activation carries the answer?"),
    "paths": Analysis(_TABLES, "Path patching: which edge between components carries the answer?"),
    "attribution": Analysis(
        _CIRCUITS, "Attribution patching of sites and edges, with integrated gradients: where does it miss the effect?"
    ),
    "faithfulness": Analysis(
        _CIRCUITS, "Circuits alone, edge by edge: how many edges does it take to do what the network does?"
    ),
    "ablate": Analysis(_TABLES, "Ablate every layer's pattern, values and output, in every way: what is lost?"),
    "qkov": Analysis(
        _TABLES, "QK and OV circuits: strengths of the query–key interactions, composition and copying scores."
    ),
    "logits": Analysis(
        _TABLES, "Direct logit attribution and logit lens: who writes the answer, and where is it there?"
    ),
    "order_parameters": Analysis(
        _TABLES, "The network in the coordinates of its task's theory, and what they explain."
    ),
    "evidence": Analysis(_TABLES, "Is it an induction head? The facts that together only an induction head shows."),
    "heads": Analysis(_TABLES, "Which heads play the roles of an induction head, and which of them are redundant?"),
    "circuit": Analysis(_TABLES, "Every edge of the circuit diagram, measured."),
}


def analysis_of(name: str) -> Analysis:
    """The analysis of a name; an unknown one raises with the nearest."""
    if not isinstance(name, str) or name not in ANALYSES:
        raise unknown_name("analysis", name, ANALYSES)
    return ANALYSES[name]


def checked_arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All keyword arguments of an analysis: the given ones, checked, and defaults. An unknown one raises."""
    known = analysis_of(name).arguments(name)
    for argument in given:
        if argument not in known:
            raise unknown_name(f"argument of {name}", argument, known)
    return {
        argument.name: argument.checked(given[argument.name]) if argument.name in given else argument.default
        for argument in known.values()
    }
