"""Studies: a base config × variants × seeds, from Python or TOML, and their runs with ids.

preset = "reddy2023-fast"                 # or config = "run.toml", beside this file
seeds = [0, 1, 2]
measures = ["icl_accuracy", "ila1"]       # whose transitions are located; the first is the main one; else a default

[base]                                    # what differs from the preset, in all variants; the sections of a run's
checkpoints.every = 50                    # file, [task], [model], [training] and [checkpoints], say the same

[variants.free]

[variants.copying]                        # what differs from the base
interventions = [{ kind = "copy" }]

[grids.classes]                           # every combination of listed values is a variant,
task.n_classes = [128, 512, 2048]         # "classes n_classes=128 burstiness=1" and so on
task.burstiness = [1, 2]

[settings.large]                          # with settings, every variant is done in each of them: "large free", …
task.n_classes = 1024

[paper_scale]                             # what --paper-scale changes, in all variants; also preset and seeds
training.steps = 60_000
variants.copying.training.steps = 20_000  # or in one
grids.classes.checkpoints.every = 500     # or in those of one grid

With `keep = "last"`, only the last checkpoint of a run is kept once it has been measured.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from mechinterp.config import RunConfig, Section, canonical, explain
from mechinterp.config.run import flat, require_config
from mechinterp.errors import ConfigError, MechinterpError, unknown_name
from mechinterp.files import read_toml

DEFAULT_MEASURES = ("icl_accuracy", "cla", "tla2", "ila1", "tila2")

Keep = Literal["all", "last"]
"""Which checkpoints are kept of a completed run."""


@dataclass(frozen=True)
class StudyRun:
    """One run of a study."""

    variant: str
    seed: int
    config: RunConfig
    id: str
    """The first 16 digits of the SHA-256 of the config: runs of equal configs have equal ids."""


@dataclass(frozen=True)
class Study:
    """A base config × variants × seeds."""

    name: str
    """Name of the study's table and page."""
    variants: Mapping[str, RunConfig]
    """The config of every variant; the others are compared with the first. Their seeds are replaced by `seeds`."""
    seeds: Sequence[int] = (0, 1, 2)
    """The seeds with which every variant is trained."""
    measures: Sequence[str] = DEFAULT_MEASURES
    """Measures whose transitions are located; the first is the main one. By default `DEFAULT_MEASURES`, or where a
    variant lacks one of them, the accuracy on the task's first evaluation set and those of them that all have."""
    keep: Keep = "all"
    """Which checkpoints are kept of a completed run; with "last", the last one and the measured curves."""

    def __post_init__(self) -> None:
        if self.measures is DEFAULT_MEASURES and self.variants:  # nobody named them
            object.__setattr__(self, "measures", _default_measures(self.variants.values()))
        for what in ("variants", "seeds", "measures"):
            values = list(getattr(self, what))
            if not values:
                raise ConfigError(f"study {self.name}: {what} is empty; name at least one")
            if twice := [value for value, count in Counter(values).items() if count > 1]:
                raise ConfigError(f"study {self.name}: {what} names {twice[0]!r} twice; remove one")
        if not re.fullmatch(r"\w[\w.=+ -]*", self.name):
            raise ConfigError(f"study {self.name!r}: the name becomes that of files; use letters, digits, _ and -")
        for seed in self.seeds:
            next(iter(self.variants.values())).updated({"seed": seed})  # raises if it is no seed

    @cached_property
    def runs(self) -> list[StudyRun]:
        """Every run: variants × seeds. The digests of grafted weights are part of the config, and so of the id."""
        runs = []
        for variant, config in self._with_graft_digests().items():
            values = config.distinguishing()  # once for all seeds: studies may have thousands
            for seed in self.seeds:
                digest = hashlib.sha256(canonical({**values, "seed": seed}).encode()).hexdigest()
                runs.append(StudyRun(variant, seed, config.model_copy(update={"seed": seed}), digest[:16]))
        return runs

    def _with_graft_digests(self) -> Mapping[str, RunConfig]:
        """The variants, with the digests of the weights that they graft."""
        if not any(rule.kind == "graft" for config in self.variants.values() for rule in config.interventions):
            return self.variants
        from mechinterp.interventions.parameters import pin_graft_digests  # imports torch

        pinned = {}
        for variant, config in self.variants.items():
            try:
                pinned[variant] = pin_graft_digests(config)
            except MechinterpError as error:
                raise ConfigError(f"study {self.name}: variant {variant!r}: {error}") from None
        return pinned

    @classmethod
    def of(
        cls,
        name: str,
        base: RunConfig,
        variants: Mapping[str, Mapping[str, Any]],
        seeds: Sequence[int] = (0, 1, 2),
        measures: Sequence[str] = DEFAULT_MEASURES,
        keep: Keep = "all",
    ) -> "Study":
        """A study from a base config and the changes of every variant, as `RunConfig.updated` takes them.

        ConfigError for a variant that cannot be; UnknownNameError, with the nearest name, for a measure that does not
        exist; another MechinterpError for one that a variant lacks.
        """
        study = cls._of(name, base, variants, seeds, measures, keep)
        if study.measures is not DEFAULT_MEASURES:
            _require_measures(study)
        return study

    @classmethod
    def _of(cls, name: str, base: RunConfig, variants: Any, seeds: Any, measures: Any, keep: Keep = "all") -> "Study":
        """As `of`; the names of measures are not looked up, which takes torch."""
        if not isinstance(variants, Mapping) or not all(isinstance(changes, Mapping) for changes in variants.values()):
            raise ConfigError(
                f"study {name}: variants is {variants!r}; expected what each changes by its name, as"
                ' {"free": {}, "large": {"task.n_classes": 512}}'
            )
        for what, values, example in (("seeds", seeds, "[0, 1, 2]"), ("measures", measures, '["icl_accuracy"]')):
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise ConfigError(f"study {name}: {what} is {values!r}; expected several, as {example}")
        require_config(base)
        configs = {}
        for variant, changes in variants.items():
            if "seed" in changes:
                raise ConfigError(f"study {name}: variant {variant!r}: seeds are the study's; remove its seed")
            try:
                configs[variant] = base.updated(changes)
            except ConfigError as error:
                raise ConfigError(f"study {name}: variant {variant!r}: {error}") from None
        return cls(name, configs, tuple(seeds), tuple(measures), keep)

    @classmethod
    def from_toml(cls, path: str | Path, *, paper_scale: bool = False) -> "Study":
        """A study from a TOML file; every variant and seed is validated.

        With `paper_scale`, the file's section of that name is applied to the base, before the variants.
        """
        values = read_toml(path)
        if not {"variants", "grids"} & values.keys():
            raise ConfigError(
                f"{path}: is no study's file: it has no section [variants.NAME]; that of a run is trained by:"
                f" mechinterp train --config {path}"
            )
        try:
            return cls._from_values(values, Path(path), paper_scale)
        except MechinterpError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def _from_values(cls, values: dict[str, Any], path: Path, paper_scale: bool) -> "Study":
        file = _validated(_File, values)
        larger = _validated(_Larger, file.paper_scale)
        if paper_scale and not file.paper_scale:
            raise ConfigError("has no section [paper_scale]; leave --paper-scale out")
        variants = {variant: flat(changes) for variant, changes in file.variants.items()}
        grids = {grid: _combinations(grid, flat(values)) for grid, values in file.grids.items()}
        for combinations in grids.values():
            if both := [variant for variant in combinations if variant in variants]:
                raise ConfigError(f"two variants are called {both[0]!r}; rename the variant or the grid")
            variants |= combinations
        base, preset, config, seeds = _base_of(file), file.preset, file.config, file.seeds
        if paper_scale:
            if larger.preset or larger.config:
                preset, config = larger.preset, larger.config
            seeds = seeds if larger.seeds is None else larger.seeds
            base |= flat(larger.model_extra or {})
            for grid, changes in larger.grids.items():
                if grid not in grids:
                    raise unknown_name("grid", grid, grids)
                for variant in grids[grid]:
                    variants[variant] |= flat(changes)
            for variant, changes in larger.variants.items():
                if variant not in variants:
                    raise unknown_name("variant", variant, variants)
                variants[variant] |= flat(changes)
        if file.settings:
            variants = _crossed({setting: flat(changes) for setting, changes in file.settings.items()}, variants)
        if preset and config:
            raise ConfigError("has a preset and a config; start from one of them")
        start = RunConfig.from_toml(path.parent / config) if config else RunConfig.preset(preset or "reddy2023-fast")
        return cls._of(file.name or path.stem, start.updated(base), variants, seeds, file.measures, file.keep)


def _require_measures(study: Study) -> None:
    """Raise unless every variant has the study's measures; a custom task's are not known without it."""
    from mechinterp.measures import columns_for  # imports torch
    from mechinterp.tasks import build_task

    for config in study.variants.values():
        if config.task.kind != "custom":
            columns_for(build_task(config), config.model, [name.removeprefix("clamped_") for name in study.measures])


def _default_measures(configs: Iterable[RunConfig]) -> tuple[str, ...]:
    """`Study.measures` by default."""
    if all(config.task.kind == "item_label" and not config.model.answers_everywhere for config in configs):
        return DEFAULT_MEASURES
    from mechinterp.measures import columns_for, main_measure  # imports torch
    from mechinterp.tasks import build_task

    tasks = [(build_task(config), config.model) for config in configs]
    known = [{column.name for column in columns_for(task, model)} for task, model in tasks]
    main = dict.fromkeys(main_measure(task) for task, _ in tasks)
    if len(main) > 1:
        raise ConfigError(f"variants have tasks with different main measures ({', '.join(main)}): name measures")
    return (*main, *(name for name in DEFAULT_MEASURES[1:] if all(name in each for each in known)))


class _Larger(Section):
    """The section [paper_scale]: what --paper-scale changes; its other keys are those of a config."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    preset: str | None = None
    config: str | None = None
    seeds: Annotated[tuple[Annotated[int, Field(strict=True)], ...] | None, Field(strict=False)] = None
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    grids: dict[str, dict[str, Any]] = Field(default_factory=dict)


class _File(Section):
    """A study's TOML file."""

    name: str | None = None
    preset: str | None = None
    config: str | None = None
    seeds: Annotated[tuple[Annotated[int, Field(strict=True)], ...], Field(strict=False)] = (0, 1, 2)
    measures: Annotated[tuple[Annotated[str, Field(strict=True)], ...], Field(strict=False)] = DEFAULT_MEASURES
    base: dict[str, Any] = Field(default_factory=dict)
    task: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    checkpoints: dict[str, Any] = Field(default_factory=dict)
    interventions: Any = None
    keep: Keep = "all"
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    grids: dict[str, dict[str, Any]] = Field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    paper_scale: dict[str, Any] = Field(default_factory=dict)


def _base_of(file: _File) -> dict[str, Any]:
    """What differs from the preset in all variants, by dotted key: the section [base] and the sections of a run."""
    sections = {name: getattr(file, name) for name in ("task", "model", "training", "checkpoints")}
    of_run = flat(sections) | ({} if file.interventions is None else {"interventions": file.interventions})
    base = flat(file.base)
    if twice := [key for key in of_run if key in base]:
        raise ConfigError(f"{twice[0]} is set in [base] too; remove one of the two")
    return of_run | base


_Schema = TypeVar("_Schema", bound=Section)


def _validated(schema: type[_Schema], values: dict[str, Any]) -> _Schema:
    for key in values:
        if key not in schema.model_fields and schema.model_config.get("extra") == "forbid":
            raise unknown_name("key", key, schema.model_fields)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, schema)) from None


def _combinations(grid: str, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The variants of a grid: every combination of the values in its lists; its other values are in all of them."""
    axes = {key: value for key, value in values.items() if isinstance(value, list)}
    if empty := [key for key, axis in axes.items() if not axis]:
        raise ConfigError(f"grid {grid!r}: {empty[0]} is an empty list; name at least one value")
    if not axes or any(isinstance(value, list | dict) for axis in axes.values() for value in axis):
        raise ConfigError(f"grid {grid!r}: lists of plain values say what is varied, as task.n_classes = [64, 128]")
    for key, axis in axes.items():
        if twice := [value for value, count in Counter(axis).items() if count > 1]:
            raise ConfigError(f"grid {grid!r}: {key} names {twice[0]!r} twice; remove one")
    variants = {}
    for combination in product(*axes.values()):
        point = dict(zip(axes, combination, strict=True))
        name = " ".join([grid, *(f"{key.rsplit('.')[-1]}={value}" for key, value in point.items())])
        variants[name] = {**values, **point}
    return variants


def _crossed(
    settings: Mapping[str, dict[str, Any]], variants: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Every variant in every setting; where both set a key, the variant's value counts."""
    for variant, changes in variants.items():
        seen: dict[str, str] = {}
        for setting, common in settings.items():
            same = seen.setdefault(canonical({**common, **changes}), setting)
            if same != setting:
                raise ConfigError(
                    f"settings {same!r} and {setting!r} do not differ for variant {variant!r}, whose own keys go before"
                    " theirs; remove one"
                )
    return {f"{s} {v}": {**settings[s], **variants[v]} for s, v in product(settings, variants)}
