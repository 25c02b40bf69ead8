"""The settings of another library's network, read by name and checked one by one.

Every setting is used, has no effect on what the network computes, or must have the value at which it has none. A
setting that is in none of these lists is refused, unless it is None: an addition to the other library is not passed
over.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, NamedTuple, TypeGuard

from mechinterp.errors import UnrecognisedNetwork

REQUIRED = object()
"""In place of a default: the setting must be given."""


class Known(NamedTuple):
    """The settings that a format knows."""

    used: Mapping[str, Any]
    """Those that are read, with the value of those that are missing."""
    fixed: Mapping[str, Any]
    """Those that must have this value, or be missing."""
    irrelevant: Collection[str]
    """Those that do not change what a network in evaluation mode computes."""
    defaults_are_off: bool = False
    """Whether other settings are accepted where they have the default that the class of the settings declares."""


class Settings(Mapping[str, Any]):
    """The used settings, by name; UnrecognisedNetwork for a setting that stands against the conversion."""

    def __init__(self, source: object, known: Known, title: str):
        """`source` is an object with attributes, such as a dataclass or a config of transformers, or a mapping."""
        values, self._title = values_of(source), title
        for name, value in known.fixed.items():
            if name in values and not _equal(values[name], value):
                raise self._refusal(name, values[name], f"networks here have {value!r} only")
        for name in values.keys() - known.used.keys() - known.fixed.keys() - set(known.irrelevant):
            default = known.defaults_are_off and _is_default(source, name, values[name])
            if values[name] is not None and not name.startswith("_") and not default:
                raise self._refusal(name, values[name], "this setting is not known; leave it out if it has no effect")
        if missing := [name for name, value in known.used.items() if value is REQUIRED and name not in values]:
            raise UnrecognisedNetwork(f"the settings of a {title} lack {', '.join(missing)}: give network=… with them")
        self._values = {name: values.get(name, value) for name, value in known.used.items()}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self):
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def integer(self, name: str) -> int:
        """A positive integer."""
        value = self[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refusal(name, "expected a positive integer")
        return value

    def switch(self, name: str) -> bool:
        """True or False."""
        if not isinstance(self[name], bool):
            raise self.refusal(name, "expected True or False")
        return self[name]

    def number(self, name: str) -> float:
        """A finite number."""
        value = self[name]
        if not _is_number(value) or not math.isfinite(value):
            raise self.refusal(name, "expected a number")
        return float(value)

    def refusal(self, name: str, reason: str) -> UnrecognisedNetwork:
        """The error that a used setting cannot be converted."""
        return self._refusal(name, self[name], reason)

    def _refusal(self, name: str, value: object, reason: str) -> UnrecognisedNetwork:
        text = repr(value)
        text = text if len(text) <= 80 else f"{text[:79]}…"
        return UnrecognisedNetwork(f"a {self._title} with {name} = {text} cannot become a Network: {reason}")


def values_of(source: object) -> dict[str, Any]:
    """Names and values of the settings of an object or a mapping."""
    if isinstance(source, Mapping):
        return {str(name): value for name, value in source.items()}
    to_dict = getattr(source, "to_dict", None)
    if callable(to_dict) and isinstance(values := to_dict(), Mapping):
        return {str(name): value for name, value in values.items()}
    try:
        return dict(vars(source))
    except TypeError:
        raise UnrecognisedNetwork(
            f"network is a {type(source).__name__}; expected the network's config, or a dict of its settings"
        ) from None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(value: object, expected: object) -> bool:
    """Whether a value is the expected one; numbers up to rounding, and nothing is as good as an empty collection."""
    if _is_number(value) and _is_number(expected):
        return math.isclose(value, expected, rel_tol=1e-6)
    if isinstance(expected, Collection) and not isinstance(expected, str) and value is None:
        return not expected
    return type(value) is type(expected) and value == expected


def _is_default(source: object, name: str, value: object) -> bool:
    """Whether a setting has the default that the class of the settings declares."""
    declared = fields(source) if is_dataclass(source) and not isinstance(source, type) else ()
    return any(field.name == name and field.default is not MISSING and field.default == value for field in declared)
