"""Interventions as options: 'clamp layer=0 pattern=previous_token start=1000 stop=2000'."""

import shlex
from typing import Annotated, Any

import tyro
from pydantic import ValidationError

from mechinterp.config import InterventionConfig, RunConfig, explain
from mechinterp.errors import ConfigError, unknown_name

_HELP = (
    "An intervention during training: a kind (clamp, silence, copy, temperature, fix, freeze or graft) and its settings"
    " as KEY=VALUE, in quotes, as 'clamp layer=0 pattern=previous_token start=1000 stop=2000'; several names after"
    " parameters= are parted by commas. Give the option again for a further one; those of --config stay."
)
Interventions = Annotated[
    tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="'KIND KEY=VALUE …'", help=_HELP)
]


def with_interventions(config: RunConfig, texts: tuple[str, ...]) -> RunConfig:
    """The config with interventions added to its own; ConfigError, with what is wrong in which one, if it cannot be."""
    if not texts:
        return config
    for text in texts:
        _intervention(text)  # raises with the text
    added = [_intervention(text).model_dump() for text in texts]
    return config.updated({"interventions": [*(each.model_dump() for each in config.interventions), *added]})


def _intervention(text: str) -> InterventionConfig:
    """The intervention that a text names."""
    where = f"--intervention {text!r}"
    try:
        kind, *settings = shlex.split(text)
    except ValueError:
        raise ConfigError(f"{where}: expected 'KIND KEY=VALUE …', as 'silence layer=0 start=100'") from None
    kinds = InterventionConfig.kinds()
    if kind not in kinds:
        raise ConfigError(f"{where}: {unknown_name('kind of intervention', kind, kinds)}")
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not (key and equals and value):
            raise ConfigError(f"{where}: {setting!r} is no setting; expected KEY=VALUE, as layer=0")
        if key in values:
            raise ConfigError(f"{where}: {key} is given twice; leave one out")
        values[key] = tuple(value.split(",")) if key == "parameters" else _value(value)
    try:
        section = kinds[kind].model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, kinds[kind])}") from None
    assert isinstance(section, InterventionConfig)
    return section


def _value(text: str) -> Any:
    """A number, or else the text itself."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
