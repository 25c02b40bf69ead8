"""The reading of a command's options by tyro, with messages and help in plain words.

Numbers may be written as 6000, 6_000 or 6e3. An option that may be without a value takes ``none``.
"""

import re
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from textwrap import wrap
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import tyro
from pydantic import ValidationError
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from mechinterp.config import Family, RunConfig, Section, explain
from mechinterp.errors import ConfigError, MechinterpError, unknown_name

_RULES = ConstructorRegistry()


def parse(command: Any, arguments: list[str] | None, **options: Any) -> Any:
    """The command, or the one of a union of commands, that the arguments name, with the options that they set.

    MechinterpError, in one line, for options that are wrong; SystemExit after help has been printed.
    """
    complaint, shown = _Text(), _Text()
    try:
        with redirect_stderr(complaint), redirect_stdout(shown):
            return tyro.cli(command, args=arguments, registry=_RULES, **options)
    except SystemExit as stop:
        if stop.code != 2:
            print(_plain_help(shown.getvalue()), end="")
            raise
        if fault := _fault_of_config(stop):
            raise ConfigError(fault) from None
        raise _in_words(_one_line(complaint.getvalue()), str(options.get("prog", ""))) from None
    except ValidationError as error:
        raise ConfigError(explain(error, RunConfig)) from None


class _Text(StringIO):
    """Text that tyro takes for that of a terminal which shows Unicode, without colours."""

    encoding = "utf-8"


@_RULES.primitive_rule
def _number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Integers and other numbers, which a message asks for in words."""
    if info.type not in (int, float):
        return None
    read = _integer if info.type is int else _float
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT" if info.type is int else "FLOAT",
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, info.type) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def _integer(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        pass
    number = _float(word, "an integer")
    if not number.is_integer():
        raise ValueError(f"expected an integer, got {word!r}")
    return int(number)


def _float(word: str, what: str = "a number") -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"expected {what}, got {word!r}") from None


@_RULES.primitive_rule
def _step(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """A step (`cli.common.Step`), or none."""
    if not _is_step(info.type):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="STEP",
        instance_from_str=lambda words: _read_step(words[0]),
        is_instance=lambda value: isinstance(value, int | str | None),
        str_from_instance=lambda value: [str(value)],
    )


def _is_step(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and {*get_args(kind)} - {NoneType} == {int, str}


def _read_step(word: str) -> int | str:
    if word in ("first", "last"):
        return word
    try:
        return _integer(word)
    except ValueError:
        raise ValueError(f"expected a step, or first or last, got {word!r}") from None


@_RULES.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """A value of one type, or none: shown as that type."""
    inner = [kind for kind in get_args(info.type) if kind is not NoneType]
    if get_origin(info.type) not in (Union, UnionType) or len(inner) != 1 or len(get_args(info.type)) != 2:
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(inner[0], info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec) or spec.nargs != 1:
        return None

    def read(words: list[str]) -> Any:
        if words[0].lower() == "none":
            return None
        if spec.choices is not None and words[0] not in spec.choices:
            raise ValueError(str(unknown_name("value", words[0], spec.choices)))
        return spec.instance_from_str(words)

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=spec.metavar,
        instance_from_str=read,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
    )


@_RULES.primitive_rule
def _integers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Any number of integers, or of steps."""
    inner = [getattr(kind, "__origin__", kind) for kind in get_args(info.type)]  # without annotations
    if get_origin(info.type) is not tuple or inner[1:] != [...] or not (inner[0] is int or _is_step(inner[0])):
        return None
    read, name = (_integer, "INT") if inner[0] is int else (_read_step, "STEP")
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[{name} [{name} ...]]",
        instance_from_str=lambda words: tuple(map(read, words)),
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(each, int | str) for each in value),
        str_from_instance=lambda value: [str(each) for each in value],
    )


def _fault_of_config(stop: SystemExit) -> str | None:
    """The faults of a config that pydantic has found, if they are why tyro stops."""
    error: BaseException | None = stop
    while error is not None and not isinstance(error, ValidationError):
        error = error.__context__
    if error is None:
        return None
    for section in _derived(Section):
        if section.__name__ == error.title:
            prefix = _prefix(section)
            return "; ".join(f"{prefix}{fault}" for fault in explain(error, section).split("; "))
    return None


def _derived(base: type) -> list[Any]:
    return [each for derived in base.__subclasses__() for each in (derived, *_derived(derived))]


def _prefix(section: type[Section]) -> str:
    """The name of a section and a dot, as a dotted path begins; empty for the whole config."""
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(section, field.annotation):
            return f"{name}."
    return ""


def _plain_help(text: str) -> str:
    """Tyro's help, without the defaults of options that have none, and with all kinds of task and model."""
    absent = r"\(default:(\s*│\n│\s*|\s*)(None)?\)"
    text = re.sub(absent, lambda found: re.sub(r"[^│\n]", " ", found.group()), text)
    text = re.sub(r"^│ (--(task|model)\.kind) .*\n", _kinds, text, flags=re.MULTILINE)
    return re.sub(r"^│ +│\n", "", text, flags=re.MULTILINE)


def _kinds(line: re.Match[str]) -> str:
    """The lines of help on the option that chooses the kind of task or model."""
    family, room = RunConfig.model_fields[line[2]].annotation, len(line[0]) - 5
    assert isinstance(family, type)
    assert issubclass(family, Family)
    words = wrap(f"The kind: {', '.join(kind for kind in family.kinds() if kind != 'custom')}.", room - 6)
    return "".join(f"│ {text:{room}} │\n" for text in [f"{line[1]} KIND", *(f"      {each}" for each in words)])


def _one_line(box: str) -> str:
    """The sentence inside one of tyro's boxes, without the frame."""
    return " ".join(re.sub(r"[╭╮╰╯│─]+", " ", box).split()).replace("Error parsing ", "")


def _in_words(text: str, program: str) -> MechinterpError:
    """The error that a sentence of tyro's tells."""
    text = re.sub(r" (For full helptext,|Argument helptext:) .*", "", text)
    if found := re.search(r"Perhaps you meant: ([^\s,]+)", text):
        given = re.search(r"nrecognized options: ([^\s,]+)", text)
        return MechinterpError(f"{given[1] if given else 'an option'} is unknown; did you mean {found[1]}?")
    if found := re.search(r"nrecognized options: ([^\s,]+)", text):
        return MechinterpError(f"{found[1]} is not expected; {program or 'the command'} --help lists the options")
    if found := re.search(r"invalid choice '(.*?)' for argument '-*(\S+?)'\. Expected one of \((.*?)\)", text):
        return unknown_name(found[2], found[1], [name.strip(" '\"") for name in found[3].split(",") if name.strip()])
    if found := re.search(r"Missing value for argument '(\S+?)'", text):
        return MechinterpError(f"{found[1]}: its value is missing")
    if found := re.search(r"(?:Missing from [^:]*|required): (\S+) (.*?) ?\(required\)", text):
        return MechinterpError(f"{found[1]} is missing: {found[2].rstrip('.')}; {program} --help lists the options")
    return MechinterpError(re.sub(r"^(Parsing|Value|Validation) (error|value)s?:? ", "", text).strip())
