"""Error messages for configs: one line, with dotted paths and the nearest names."""

from difflib import get_close_matches
from typing import Any, get_args

from pydantic import ValidationError

from mechinterp.config.section import Family, Section
from mechinterp.errors import unknown_name


def explain(error: ValidationError, root: type[Section]) -> str:
    """Every fault that pydantic found in a section of the class `root`, on one line."""
    return "; ".join(_explain(fault, root) for fault in error.errors())


def _explain(fault: Any, root: type[Section]) -> str:
    """One fault of pydantic's list, as `dotted.path: what is wrong`."""
    path, section = _locate(fault["loc"], root)
    dotted = ".".join(path)
    if fault["type"] == "extra_forbidden":
        known = list(section.model_fields)
        near = get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"{dotted}: unknown key; {hint}"
    if fault["type"] == "union_tag_invalid":
        known = [kind for kind in section.kinds() if kind != "custom"] if issubclass(section, Family) else []
        return f"{dotted}.kind: {unknown_name(dotted, fault['ctx']['tag'], known)}"
    if fault["type"] == "union_tag_not_found" and issubclass(section, Family):
        return f"{dotted}: has no kind; name one of {', '.join(section.kinds())}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]} (got {_short(fault['input'])})"
    return f"{dotted}: {message}" if path else message


def _short(value: object) -> str:
    """A value as it is written in Python, cut off if it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:98]} …"


def _locate(location: tuple[int | str, ...], root: type[Section]) -> tuple[list[str], type[Section]]:
    """A fault's path, without the kinds that pydantic adds to it, and the innermost section or family on the path."""
    path, section = [], root
    for part in location:
        if issubclass(section, Family) and "kind" not in section.model_fields and part in section.kinds():
            section = section.kinds()[str(part)]
            continue
        path.append(str(part))
        if field := section.model_fields.get(str(part)):
            section = _section_in(field.annotation) or section
    return path, section


def _section_in(annotation: Any) -> type[Section] | None:
    """The section in the annotation of a field, also within a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)
