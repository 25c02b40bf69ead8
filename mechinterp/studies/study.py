"""What a study is: a base config × variants × seeds, from Python or TOML; and what one is made of: runs with ids.

preset = "reddy2023-fast"                 # or config = "run.toml", beside this file
seeds = [0, 1, 2]
measures = ["icl_accuracy", "ila1"]       # whose transitions are located; the first is the main one

[base]                                    # what differs from the preset, in all variants
checkpoints.every = 50

[variants.free]

[variants.copying]                        # what differs from the base
interventions = [{ kind = "copy" }]

[paper_scale]                             # what --paper-scale changes, in all variants; also preset and seeds
training.steps = 60_000
variants.copying.training.steps = 20_000  # or in one
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechinterp.config import RunConfig
from mechinterp.errors import ConfigError, unknown_name
from mechinterp.files import read_toml

DEFAULT_MEASURES = ("icl_accuracy", "cla", "tla2", "ila1", "tila2")
_KEYS = ("name", "preset", "config", "seeds", "measures", "base", "variants", "paper_scale")


@dataclass(frozen=True)
class StudyRun:
    """One run of a study."""

    variant: str
    seed: int
    config: RunConfig

    @property
    def id(self) -> str:
        """The first 16 digits of the SHA-256 of the config: what is configured alike is the same run."""
        return hashlib.sha256(self.config.canonical_json().encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Study:
    """A base config × variants × seeds."""

    name: str
    """What its table and page are called."""
    variants: Mapping[str, RunConfig]
    """The config of each variant; the first is what the others are compared with. Seeds replace theirs."""
    seeds: Sequence[int] = (0, 1, 2)
    """The seeds that every variant is trained with."""
    measures: Sequence[str] = DEFAULT_MEASURES
    """Measures whose transitions are located; the first is the main one."""

    def __post_init__(self) -> None:
        for what in ("variants", "seeds", "measures"):
            values = list(getattr(self, what))
            if not values:
                raise ConfigError(f"study {self.name}: {what} is empty; name at least one")
            if twice := [each for each in values if values.count(each) > 1]:
                raise ConfigError(f"study {self.name}: {what} names {twice[0]!r} twice; remove one")
        if "/" in self.name or not self.name:
            raise ConfigError(f"study {self.name!r}: the name becomes that of files; choose one without /")
        _ = self.runs  # seeds are validated

    @property
    def runs(self) -> list[StudyRun]:
        """Every run: variants × seeds."""
        return [
            StudyRun(variant, seed, config.updated({"seed": seed}))
            for variant, config in self.variants.items()
            for seed in self.seeds
        ]

    @classmethod
    def of(
        cls,
        name: str,
        base: RunConfig,
        variants: Mapping[str, Mapping[str, Any]],
        seeds: Sequence[int] = (0, 1, 2),
        measures: Sequence[str] = DEFAULT_MEASURES,
    ) -> "Study":
        """A study from a base config and each variant's changes to it, as `RunConfig.updated` takes them."""
        configs = {}
        for variant, changes in variants.items():
            try:
                configs[variant] = base.updated(changes)
            except ConfigError as error:
                raise ConfigError(f"study {name}: variant {variant!r}: {error}") from None
        return cls(name, configs, tuple(seeds), tuple(measures))

    @classmethod
    def from_toml(cls, path: str | Path, *, paper_scale: bool = False) -> "Study":
        """Read a study from a TOML file; every variant and seed is validated.

        With `paper_scale`, the file's section of that name is applied to the base, before the variants.
        """
        path = Path(path)
        values = read_toml(path)
        try:
            return cls._from_values(values, path, paper_scale)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def _from_values(cls, values: dict[str, Any], path: Path, paper_scale: bool) -> "Study":
        for key in values:
            if key not in _KEYS:
                raise ConfigError(str(unknown_name("key", key, _KEYS)))
        for key, kind in (("base", dict), ("variants", dict), ("paper_scale", dict), ("seeds", list)):
            if not isinstance(values.get(key, kind()), kind):
                raise ConfigError(f"{key} is {values[key]!r}; expected a {'table' if kind is dict else 'list'}")
        larger = values.get("paper_scale", {})
        if paper_scale and not larger:
            raise ConfigError("has no section [paper_scale]; leave --paper-scale out")
        values = values | {key: larger[key] for key in ("preset", "config", "seeds") if paper_scale and key in larger}
        if "preset" in values and "config" in values:
            raise ConfigError("has a preset and a config; start from one of them")
        if "config" in values:
            base = RunConfig.from_toml(path.parent / str(values["config"]))
        else:
            base = RunConfig.preset(values.get("preset", "reddy2023-fast"))
        base = base.updated(flat(values.get("base", {})))
        variants = values.get("variants", {"base": {}})
        for variant, changes in variants.items():
            if not isinstance(changes, dict):
                raise ConfigError(f"variants.{variant} is {changes!r}; expected a table of settings")
        variants = {variant: flat(changes) for variant, changes in variants.items()}
        if paper_scale:
            of_all = {key: each for key, each in larger.items() if key not in ("preset", "config", "seeds", "variants")}
            base = base.updated(flat(of_all))
            for variant, changes in larger.get("variants", {}).items():
                if variant not in variants:
                    raise ConfigError(f"paper_scale: {unknown_name('variant', variant, variants)}")
                variants[variant] |= flat(changes)
        return cls.of(
            str(values.get("name", path.stem)),
            base,
            variants,
            values.get("seeds", (0, 1, 2)),
            values.get("measures", DEFAULT_MEASURES),
        )


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
