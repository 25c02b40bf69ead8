"""Errors that a user can cause.

Every message is one line: it names the file, key, step or hook, says what was expected and what to do.
The command line prints such an error without a traceback and exits with code 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from enum import Enum, EnumMeta
from operator import index
from typing import Any, TypeVar

Member = TypeVar("Member", bound=Enum)
MOST = 480
"""Characters of the longest message on a run file."""
MOST_NAMES = 20
"""So many known names are listed where none is near."""


class MechinterpError(Exception):
    """An error that the user can correct; the message says how, in one line without control characters."""

    def __init__(self, message: object = ""):
        super().__init__(printable(" ".join(str(message).split())))


def printable(text: str) -> str:
    """The text, with a mark in place of every character that a terminal would not show, but obey."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


class ConfigError(MechinterpError):
    """A config is malformed or describes an impossible run."""


class RunFileError(MechinterpError):
    """A run file is missing, damaged, exists already, or is another file."""

    def __init__(self, message: object = ""):
        text = str(message)
        half = MOST // 2 - 2  # the file is named at the beginning, and what to do at the end
        super().__init__(text if len(text) <= MOST else f"{text[:half]} … {text[-half:]}")


class BusyError(RunFileError):
    """Another process is writing the run file."""


class UnknownNameError(MechinterpError, KeyError):
    """A measure, hook, step, role, evaluation set or preset that does not exist."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0])


class UnknownMemberError(UnknownNameError, AttributeError):
    """A member of an enum that does not exist."""


class UnrecognisedNetwork(MechinterpError):
    """A network of another library has a part that the forward pass here lacks, or its settings are not known."""


class DivergedError(MechinterpError):
    """Training met a loss or weight that is not finite."""


class _Named(EnumMeta):
    """Raises UnknownMemberError for `Enum.name` and `Enum["name"]` without such a member."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in cls.__members__:
            return cls.__members__[name]
        raise UnknownMemberError(str(unknown_name(cls.__name__.lower(), name, cls.__members__)))

    def __getitem__(cls, name: str) -> Any:
        return getattr(cls, name)


class NamedEnum(Enum, metaclass=_Named):
    """An enum whose errors for misspelt members name the nearest one."""


def require_integer(name: str, value: object, least: int = 1) -> int:
    """The value as an integer; MechinterpError for another type or a smaller number."""
    try:
        number = None if isinstance(value, bool) else index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = None
    if number is None:
        raise MechinterpError(f"{name} is {value!r}; expected an integer")
    if number < least:
        raise MechinterpError(f"{name} is {number}; expected {least} or more")
    return number


def require_number(name: str, value: Any) -> float:
    """The value, a number or a tensor or array of one, as a float; MechinterpError for anything else."""
    try:
        return float(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise MechinterpError(f"{name} is {str(value)[:80]!r}; expected one number") from None


def unknown_name(noun: str, name: object, known: Iterable[object]) -> UnknownNameError:
    """The error for a misspelt `name`: it names the nearest of the known names, or lists them."""
    names = [str(candidate) for candidate in known]
    small = {candidate.lower(): candidate for candidate in reversed(names)}
    near = [small[each] for each in get_close_matches(str(name).lower(), small, n=1, cutoff=0.6)]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    known = f"known: {', '.join(names[:MOST_NAMES]) or 'none'}{more}"
    hint = f"did you mean {near[0]!r}?" if near else known
    return UnknownNameError(f"unknown {noun} {str(name)!r}; {hint}")


def member(enum: type[Member], value: Member | str) -> Member:
    """The member of an enum that `value` is or names; UnknownNameError, with the nearest name, if there is none."""
    if isinstance(value, enum):
        return value
    if not isinstance(value, str) or value not in enum.__members__:
        raise unknown_name(enum.__name__.lower(), value, enum.__members__)
    return enum[value]
