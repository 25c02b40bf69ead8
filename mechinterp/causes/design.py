"""The design of a causal audit: which measures are held up or removed, how strongly, and when.

Times are fractions of the control's transition step t₀, of each seed its own: `Time`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechinterp.config import RunConfig
from mechinterp.config.run import require_config
from mechinterp.errors import ConfigError, MechinterpError, NamedEnum, member, unknown_name
from mechinterp.interventions.parameters import pin_graft_digests
from mechinterp.measures import MEASURES, columns_for, main_measure
from mechinterp.measures.manipulations import Manipulation, Manipulations
from mechinterp.studies.study import Study
from mechinterp.tasks import build_task

CONTROL = "control"
"""The variant without interventions."""
STRENGTHS = (1 / 3, 2 / 3, 1.0)
"""The strengths at which a measure is manipulated for the whole run."""


class Way(NamedEnum):
    """How a measure is manipulated."""

    hold = "the measure is held up"
    remove = "the measure is removed"


class Time(NamedEnum):
    """When a measure is manipulated: start and stop, as fractions of the control's transition step; None: the end."""

    whole = (0.0, None)
    before = (0.0, 0.5)
    across = (0.75, 1.25)
    after = (1.0, 4 / 3)

    def window(self, transition_step: float) -> tuple[int, int | None]:
        """The first step of the window, and the first after it; None for the end of training."""
        start, stop = self.value
        return round(start * transition_step), None if stop is None else round(stop * transition_step)


@dataclass(frozen=True)
class Condition:
    """One way of training: a measure, manipulated."""

    measure: str
    way: Way
    strength: float
    time: Time
    manipulation: Manipulation

    @property
    def variant(self) -> str:
        """Its name in the studies."""
        return f"{self.measure} {self.way.name} {self.strength:.2g} {self.time.name}"

    def interventions(self, transition_step: float) -> list[dict[str, Any]]:
        """The interventions, as values of a config, for a control's transition step."""
        return self.manipulation.during(*self.time.window(transition_step), self.strength)


@dataclass(frozen=True)
class Audit:
    """What is trained in a causal audit: a config, its manipulations, and the outcome that is watched."""

    name: str
    config: RunConfig
    conditions: tuple[Condition, ...]
    outcome: str
    """The column whose transition is watched; it rises, or falls, once."""
    seeds: tuple[int, ...]
    stop_accuracy: float | None = None
    """Training accuracy at which runs under a manipulation of the whole run end, which saves their rest."""

    @classmethod
    def of(
        cls,
        config: RunConfig,
        measures: str | Sequence[str] | Mapping[str, Manipulations] | None = None,
        *,
        seeds: Sequence[int] = (0, 1, 2),
        strengths: Sequence[int | float] = STRENGTHS,
        times: Sequence[Time | str] = (Time.before, Time.across, Time.after),
        outcome: str | None = None,
        stop_accuracy: float | None = None,
        name: str = "audit",
    ) -> "Audit":
        """The audit of measures by their registered manipulations, or by those of a mapping; by default of all that
        a config admits.

        Each is held and removed at the `strengths` for the whole run (`Time.whole`), and at strength 1 at the `times`;
        none is held after the transition, which no longer depends on it.
        Manipulations without a strength are done in whole. A measure without manipulations, or whose manipulations do
        not fit the config, raises.
        """
        require_config(config)
        if config.interventions:
            raise ConfigError("interventions: an audit makes its own; remove those of the config")
        if bad := [strength for strength in strengths if not 0 <= strength <= 1]:
            raise MechinterpError(f"strengths has {bad[0]:g}; expected numbers from 0 to 1")
        if not seeds or not strengths:
            raise MechinterpError(f"{'strengths' if seeds else 'seeds'} is empty; name at least one")
        task = build_task(config)
        if measures is None:
            chosen = audited_measures(config)
            if not chosen:
                known = [measure for measure, entry in MEASURES.items() if entry.manipulations]
                raise MechinterpError(
                    f"no measure with manipulations applies to this config; they are: {', '.join(known)}"
                )
        elif isinstance(measures, Mapping):
            chosen = dict(measures)
        else:
            names = [measures] if isinstance(measures, str) else list(measures)
            chosen = {measure: _manipulations(config, measure) for measure in names}
        conditions = []
        for measure, manipulations in chosen.items():
            for way, manipulation in ((Way.hold, manipulations.hold), (Way.remove, manipulations.remove)):
                if manipulation is None:
                    continue
                whole = [float(strength) for strength in strengths] if manipulation.graded else [1.0]
                at = [(strength, Time.whole) for strength in whole]
                skipped = (Time.whole, Time.after) if way is Way.hold else (Time.whole,)
                at += [(1.0, member(Time, time)) for time in times if member(Time, time) not in skipped]
                conditions += [Condition(measure, way, *each, manipulation) for each in dict.fromkeys(at)]
        for condition in conditions:
            _require_fits(config, condition)
        outcome = outcome or main_measure(task)
        columns_for(task, config.model, [outcome])
        return cls(name, config, tuple(conditions), outcome, tuple(seeds), stop_accuracy)

    @property
    def measures(self) -> tuple[str, ...]:
        """The audited measures."""
        return tuple(dict.fromkeys(condition.measure for condition in self.conditions))

    def controls(self) -> Study:
        """The study of the controls."""
        return Study.of(f"{self.name} controls", self.config, {CONTROL: {}}, self.seeds, [self.outcome], "last")

    def study(self, seed: int, transition_step: float) -> Study:
        """The study of one seed, whose control makes its transition at `transition_step`: control and conditions.

        MechinterpError if a window starts after the last step.
        """
        variants: dict[str, dict[str, Any]] = {CONTROL: {}}
        for condition in self.conditions:
            changes: dict[str, Any] = {"interventions": condition.interventions(transition_step)}
            if condition.time is Time.whole and self.stop_accuracy is not None:
                changes["training.stop_accuracy"] = self.stop_accuracy
            variants[condition.variant] = changes
        return Study.of(f"{self.name} seed {seed}", self.config, variants, [seed], [self.outcome], "last")


def audited_measures(config: RunConfig) -> dict[str, Manipulations]:
    """The measures with manipulations that a config's task and model admit; of manipulations, those that fit it."""
    columns = columns_for(build_task(config), config.model)
    found = {}
    for name in dict.fromkeys(column.measure.name for column in columns):
        if manipulations := MEASURES[name].manipulations:
            hold, remove = (
                each if each is not None and _fits(config, each) else None
                for each in (manipulations.hold, manipulations.remove)
            )
            if hold or remove:
                found[name] = Manipulations(hold, remove)
    return found


def _manipulations(config: RunConfig, name: str) -> Manipulations:
    """The manipulations of a measure; MechinterpError if it has none or does not apply."""
    audited = list(audited_measures(config))
    if name in audited:
        return audited_measures(config)[name]
    columns = {column.name: column.measure for column in columns_for(build_task(config), config.model)}
    if name not in MEASURES and name not in columns:
        raise unknown_name("measure", name, audited)
    if name in MEASURES and MEASURES[name].manipulations is not None:
        columns_for(build_task(config), config.model, [name])  # raises, and says what the measure needs
    raise MechinterpError(
        f"{name} has no manipulations: give them as {{{name!r}: mi.Manipulations(hold=…, remove=…)}}, or audit one of"
        f" {', '.join(audited)}"
    )


def _fits(config: RunConfig, manipulation: Manipulation) -> bool:
    try:
        _require_interventions(config, manipulation.during(0, None))
    except ConfigError:
        return False
    return True


def _require_fits(config: RunConfig, condition: Condition) -> None:
    try:
        _require_interventions(config, condition.manipulation.during(0, None, condition.strength))
    except MechinterpError as error:
        raise ConfigError(f"{condition.variant}: {error}") from None


def _require_interventions(config: RunConfig, interventions: Sequence[Mapping[str, Any]]) -> None:
    """MechinterpError for interventions that a config does not admit, and for roles that its task lacks."""
    pin_graft_digests(config.updated({"interventions": list(interventions)}))
