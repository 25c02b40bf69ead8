"""Configs as dotted keys: what differs between two, and the preset that one is nearest to."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mechinterp.config.presets import PRESETS
from mechinterp.config.run import RunConfig, flat


class Difference(NamedTuple):
    """The two values of a setting; None where there is no such setting, or no value."""

    first: Any
    second: Any


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Every setting of a config by its dotted key, as JSON values; interventions are one setting, a list."""
    return flat(config.model_dump(mode="json"))


def differences(first: RunConfig, second: RunConfig) -> dict[str, Difference]:
    """The settings in which two configs differ, by dotted key, in the order of the sections.

    Where the tasks or the models are of different kinds, that kind alone is named: their settings are not comparable.
    """
    one, other = settings_of(first), settings_of(second)
    apart = [section for section in ("task", "model") if one[f"{section}.kind"] != other[f"{section}.kind"]]
    found = {
        key: Difference(one.get(key), other.get(key))
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    }
    return {key: pair for key, pair in found.items() if key.endswith(".kind") or key.split(".")[0] not in apart}


def nearest_preset(config: RunConfig) -> tuple[str | None, dict[str, Any]]:
    """The preset with the fewest settings that differ from a config, seed aside, and the config's values of those.

    Of equally near ones it is the first. None, and no values, where no preset has the same kinds of task and model.
    """
    nearest: tuple[str | None, dict[str, Any]] = None, {}
    for name in PRESETS:
        changed = differences(RunConfig.preset(name, seed=config.seed), config)
        if "task.kind" in changed or "model.kind" in changed:
            continue
        if nearest[0] is None or len(changed) < len(nearest[1]):
            nearest = name, {key: pair.second for key, pair in changed.items()}
    return nearest


def written(values: Mapping[str, Any]) -> str:
    """Settings on one line: ``task.n_classes = 512, training.steps = 100``; interventions by their kinds."""
    return ", ".join(f"{key} = {_value(key, value)}" for key, value in values.items())


def _value(key: str, value: Any) -> str:
    if key == "interventions":
        return " and ".join(str(each["kind"]) for each in value) or "none"
    return "none" if value is None else str(value)
