"""The config of a run: task, model, training, checkpoint schedule, interventions and seed.

It determines the run completely, and is written into the run file as canonical JSON. Unknown keys are refused, and all
faults of a file are listed at once.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field, ValidationError, model_validator

from mechinterp.config.interventions import InterventionConfig
from mechinterp.config.messages import explain
from mechinterp.config.model import ModelConfig, TransformerConfig
from mechinterp.config.presets import PRESETS
from mechinterp.config.section import Family, OneOf, Section
from mechinterp.config.task import ItemLabelConfig, TaskConfig
from mechinterp.config.training import CheckpointConfig, TrainingConfig
from mechinterp.errors import ConfigError, UnknownNameError, unknown_name
from mechinterp.files import read_toml


class RunConfig(Section):
    """Everything that determines a run."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything random: class means, initial weights, training data, evaluation sets."""
    task: Annotated[TaskConfig, OneOf(default="item_label")] = ItemLabelConfig()
    """The task, which draws the sequences."""
    model: Annotated[ModelConfig, OneOf(default="transformer")] = TransformerConfig()
    """The network."""
    training: TrainingConfig = TrainingConfig()
    """The optimisation."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """The steps that are saved."""
    interventions: Annotated[
        tuple[Annotated[InterventionConfig, OneOf()], ...], Field(strict=False), tyro.conf.Suppress
    ] = ()
    """Interventions during training; see `mechinterp.config.interventions`."""

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        self.checkpoints.require_fits(self.training)
        self.model.require_fits(self.task)
        self.task.require_batch(self.training.batch_size)
        if self.training.loss_at != "target" and not self.model.answers_everywhere:
            raise ValueError(
                f"training.loss_at = {self.training.loss_at!r}: a classifier answers at the target only: set"
                " model.output = 'unembedding', or leave loss_at out"
            )
        for intervention in self.interventions:
            intervention.require_fits(self.model, self.training)
        return self

    @property
    def attention_init_std(self) -> float:
        """Standard deviation of the initial W_Q, W_K, W_V: as configured, or 1/√D (Reddy 2023)."""
        return self.model.initial_attention_std(self.task)

    @classmethod
    def preset(cls, name: str, *, seed: int = 0) -> "RunConfig":
        """A named config, one of `PRESETS`, which docs/configuration.md explains; UnknownNameError for another name."""
        if name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        return cls.from_dict({**PRESETS[name], "seed": seed}, source=f"preset {name}")

    @classmethod
    def from_toml(cls, path: str | Path) -> "RunConfig":
        """The config in a TOML file; settings that are not in the file are those of its `preset`, or else defaults."""
        values = read_toml(path)
        if isinstance(values.get("variants", values.get("grids")), dict):
            raise ConfigError(f"{path}: this is the file of a study; carry it out by: mechinterp study {path}")
        if isinstance(values.get("task"), dict) and values["task"].get("kind") == "custom":
            raise ConfigError(
                f"{path}: task.kind: a custom task cannot be made from a file; pass it to train() in Python"
            )
        if "preset" not in values:
            return cls.from_dict(values, source=str(path))
        if not isinstance(preset := values.pop("preset"), str):
            raise ConfigError(f"{path}: preset is {preset!r}; name one of: {', '.join(PRESETS)}")
        try:
            return cls.preset(preset).updated(flat(values), source=str(path))
        except UnknownNameError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config") -> "RunConfig":
        """The config of nested `values`; a ConfigError lists every fault, with dotted paths and nearest names."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{source}: {explain(error, cls)}") from None

    def updated(self, changes: Mapping[str, Any], *, source: str = "config") -> "RunConfig":
        """This config with dotted keys replaced, validated anew: `config.updated({"task.n_classes": 512})`.

        Another `kind` of task or model starts from that kind's defaults. Errors name the `source` of the changes.
        """
        values = self.model_dump()
        for dotted, value in sorted(changes.items(), key=lambda change: not change[0].endswith(".kind")):
            *sections, key = dotted.split(".")
            target = values
            for section in sections:
                if not isinstance(target.get(section), dict):
                    raise ConfigError(
                        f"{source}: {dotted}: there is no section {section!r}; known: {', '.join(target)}"
                    )
                target = target[section]
            if key == "kind" and target.get("kind") != value:
                target.clear()
            target[key] = value
        return self.from_dict(values, source=source)

    def canonical_json(self) -> str:
        """The config as JSON with sorted keys and no blanks: equal configs give equal text."""
        return canonical(self.model_dump(mode="json"))

    def distinguishing(self) -> dict[str, Any]:
        """The seed, the kinds, and all settings other than defaults, as JSON values, of which a run's id is made.

        A setting that a later version adds does not change the ids of existing runs.
        """
        sections = ("task", "model", "training", "checkpoints")
        return {
            "seed": self.seed,
            "interventions": [_distinguishing(intervention) for intervention in self.interventions],
            **{name: _distinguishing(getattr(self, name)) for name in sections},
        }


def _distinguishing(section: Section) -> dict[str, Any]:
    kind = {"kind": section.kind} if isinstance(section, Family) else {}
    return section.model_dump(mode="json", exclude_defaults=True) | kind


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    values: dict[str, Any] = {}
    for key, value in nested.items():
        is_section = isinstance(value, dict) and key != "interventions"
        values |= flat(value, f"{prefix}{key}.") if is_section else {f"{prefix}{key}": value}
    return values


def canonical(values: dict[str, Any]) -> str:
    """Values as JSON with sorted keys and no blanks: equal values give equal text."""
    return json.dumps(_positive_zeros(values), sort_keys=True, separators=(",", ":"))


def _positive_zeros(value: Any) -> Any:
    """The values with 0.0 in place of −0.0, which equals it."""
    if isinstance(value, dict):
        return {key: _positive_zeros(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_positive_zeros(entry) for entry in value]
    return value + 0.0 if isinstance(value, float) else value


def require_config(config: object) -> None:
    """ConfigError for what is no config, such as the name of a preset."""
    if not isinstance(config, RunConfig):
        raise ConfigError(
            f"config is a {type(config).__name__}; expected a RunConfig, as mi.RunConfig.preset('reddy2023-fast')"
        )
