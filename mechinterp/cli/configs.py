"""Commands that show and check configs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mechinterp.cli.common import Json, print_result
from mechinterp.config import PRESETS, RunConfig
from mechinterp.config.dotted import nearest_preset, written
from mechinterp.errors import ConfigError, unknown_name

_HELP = "A run's TOML file, a run file, a preset"
Named = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE|PRESET", help=f"{_HELP}.")]
NamedOrStudy = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE|PRESET", help=f"{_HELP}, or a study's TOML file.")
]


@dataclass
class ConfigShow:
    """Print a config, with all of its settings, as a TOML file that `train --config` takes."""

    name: Named
    json: Json = False

    def execute(self) -> None:
        config = config_of(self.name)
        preset, changed = nearest_preset(config)
        about = "no preset has its task and model" if preset is None else _relation(preset, changed)
        print_result(config.model_dump(mode="json"), self.json, f"# {self.name}: {about}\n{toml(config)}")


@dataclass
class ConfigCheck:
    """Check a run's or a study's TOML file, and say in a line what it describes; every fault is listed."""

    name: NamedOrStudy
    json: Json = False

    def execute(self) -> None:
        if (study := _study_of(self.name)) is not None:
            result: dict[str, Any] = {"variants": list(study.variants), "seeds": list(study.seeds)}
            result |= {"runs": len(study.runs), "measures": list(study.measures)}
            seeds = ", ".join(map(str, study.seeds))
            text = f"a study of {len(study.runs)} runs: {', '.join(study.variants)}; seeds {seeds}"
        else:
            config = config_of(self.name)
            preset, changed = nearest_preset(config)
            result = {"preset": preset, "changed": changed, "steps": config.training.steps}
            about = f"{config.task.kind}, {config.model.kind}" if preset is None else _relation(preset, changed)
            text = f"{about}; {config.training.steps:,} steps"
        print_result({"sound": True} | result, self.json, f"{self.name}: sound: {text}")


def config_of(name: str) -> RunConfig:
    """The config that a preset, a TOML file or a run file names."""
    path = Path(name)
    if name in PRESETS:
        return RunConfig.preset(name)
    if path.suffix == ".toml":
        return RunConfig.from_toml(path)
    if path.exists():
        from mechinterp.store import RunFile

        return RunFile(path).config
    if path.suffix:
        raise ConfigError(f"{name}: does not exist; give a run's TOML file, a run file or a preset")
    raise unknown_name("preset", name, PRESETS)


def toml(config: RunConfig) -> str:
    """A config as TOML. Settings without a value are comments, as TOML has no word for that."""
    values = config.model_dump(mode="json")
    interventions, lines = values.pop("interventions"), [f"seed = {values.pop('seed')}"]
    for section, settings in values.items():
        lines += ["", f"[{section}]", *(_setting(key, value) for key, value in settings.items())]
    for intervention in interventions:
        present = {key: value for key, value in intervention.items() if value is not None}
        lines += ["", "[[interventions]]", *(_setting(key, value) for key, value in present.items())]
    return "\n".join(lines)


def _setting(key: str, value: Any) -> str:
    return f"# {key} has no value" if value is None else f"{key} = {json.dumps(value, ensure_ascii=False)}"


def _relation(preset: str, changed: dict[str, Any]) -> str:
    return f"preset {preset}, with {written(changed)}" if changed else f"preset {preset}"


def _study_of(name: str):
    """The study of a TOML file; None for anything else."""
    if Path(name).suffix != ".toml":
        return None
    from mechinterp.files import read_toml

    if not isinstance((values := read_toml(name)).get("variants", values.get("grids")), dict):
        return None
    from mechinterp.studies.study import Study

    return Study.from_toml(name)
