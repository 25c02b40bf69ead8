"""The verdicts of a causal audit: what each manipulation does to the transition, and what a measure is to it.

The **ratio** of a manipulation, in one seed, is the step at which the outcome crosses the control's middle for good
(`level_crossing`), over the step t₀ at which the control does. The outcome is that under the manipulation, as trained,
if the window is the whole run; otherwise that of the weights themselves, released from it. From the ratios r of
n ≥ `MIN_SEEDS` seeds, with r = ∞ if the transition is not made:

    accelerates   all r < 1 − MARGIN
    no_effect     all r within 1 ± MARGIN
    abolishes     all r = ∞, with the manipulation on to the end, and runs of WAIT·t₀ steps or more
    delays        all r > 1 + MARGIN otherwise, where runs last longer than that
    not_resolved  anything else

The interval of a ratio is from the least to the largest over seeds. It contains the median of the law of seeds with
probability 1 − 2^(1−n), which the column ``coverage`` gives: no more than ½ with two seeds.

The role of a measure follows from two manipulations of the whole run. It is **held** at the least strength, where
training still has most of its gradients and the held part does not do the task alone; it is **removed** in whole,
since what is left of it can be made up for:

    cause         held, it accelerates; removed, it delays or abolishes
    necessary     removed, it delays or abolishes; held, it does not accelerate
    sufficient    held, it accelerates; removed, it has no effect
    obstacle      held, it delays or abolishes; removed, it accelerates
    only_leads    no effect of either
    not_resolved  anything else, and where a manipulation is lacking or did not move the measure (by `MOVED`)

A manipulation sets more than its measure: ``side_effects`` names what (`SideEffect`). A role is therefore one of the
measure by this manipulation. Rules and constants were fixed before the runs of `analyses.causal_audit`, but for one: at
first a held measure was compared with the control's over the whole run, not up to t₀.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechinterp.causes.design import CONTROL, Audit, Condition, Time, Way
from mechinterp.emergence.crossing import level_crossing, plateaus
from mechinterp.errors import MechinterpError, NamedEnum

MARGIN = 0.05
"""A ratio within 1 ± MARGIN is none: freezing what does not move gives up to 1.01."""
WAIT = 1.4
"""Times t₀ that runs last at least, before a transition that is not made counts as abolished."""
MIN_SEEDS = 2
"""Seeds that a verdict takes."""
MOVED = 0.02
"""Mean difference from the control by which a manipulation has moved a measure."""


class Verdict(NamedEnum):
    """What a manipulation does to the transition."""

    accelerates = "the transition comes sooner in every seed"
    delays = "the transition comes later in every seed"
    abolishes = "no seed makes the transition"
    no_effect = "the transition comes when it comes without"
    not_resolved = "seeds differ, are too few, or do not train for long enough"


class Role(NamedEnum):
    """What a measure is to the transition."""

    cause = "more of it brings the transition forward, and without it the transition comes late or not at all"
    necessary = "without it the transition comes late or not at all; more of it does not bring it forward"
    sufficient = "more of it brings the transition forward, which comes as well without it"
    obstacle = "more of it holds the transition up, and without it it comes sooner"
    only_leads = "neither more nor less of it moves the transition"
    not_resolved = "the manipulations do not tell"


def audit_table(audit: Audit, tables: Mapping[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """The audit of measures, one row for each condition, from the measures of the runs (step × measure) by variant
    and seed, which `mechinterp.studies.runner.measured` gives; runs that are missing count as not done.

    Columns: ``measure``, ``way``, ``strength``, ``time``, ``start`` and ``stop`` (fractions of t₀); ``n_seeds``, of
    which ``n_transitions`` make the transition; ``ratio``, the median over seeds of step/t₀ (∞: none), with
    ``ratio_low``, ``ratio_high`` and ``coverage``; ``verdict``; ``value`` and ``control_value``, the mean of the
    measure in the window, as trained, and of the control's at the same steps, up to t₀ if it is held for the whole run,
    since afterwards the control's is high by itself; ``outcome`` and ``control_outcome``, the same of the outcome at
    the last checkpoint in the window; ``side_effects``.
    """
    controls = {seed: table for (variant, seed), table in tables.items() if variant == CONTROL}
    middles = {seed: middle_of(table[audit.outcome], seed) for seed, table in controls.items()}
    rows = []
    for condition in audit.conditions:
        seeds = [seed for seed in audit.seeds if seed in controls and (condition.variant, seed) in tables]
        pairs = [
            _Pair(tables[condition.variant, seed], controls[seed], middles[seed], condition, audit.outcome)
            for seed in seeds
        ]
        rows.append(_row(condition, pairs))
    return pd.DataFrame(rows)


def _row(condition: Condition, pairs: "Sequence[_Pair]") -> dict[str, Any]:
    """The row of a condition, from its runs, each with the control of its seed."""
    start, stop = condition.time.value
    ratios = [pair.ratio for pair in pairs]
    verdict = judge(ratios, [pair.waited for pair in pairs], ends=condition.time is not Time.whole)
    return {
        "measure": condition.measure,
        "way": condition.way.name,
        "strength": condition.strength,
        "time": condition.time.name,
        "start": start,
        "stop": np.nan if stop is None else stop,
        "n_seeds": len(pairs),
        "n_transitions": int(np.isfinite(ratios).sum()),
        "ratio": _median(ratios),
        "ratio_low": min(ratios, default=np.nan),
        "ratio_high": max(ratios, default=np.nan),
        "coverage": 1 - 2.0 ** (1 - len(pairs)) if pairs else 0.0,
        "verdict": verdict.name,
        "value": _median([pair.value(pair.run) for pair in pairs]),
        "control_value": _median([pair.value(pair.control) for pair in pairs]),
        "outcome": _median([pair.last_outcome(pair.run) for pair in pairs]),
        "control_outcome": _median([pair.last_outcome(pair.control) for pair in pairs]),
        "side_effects": " ".join(effect.name for effect in condition.manipulation.side_effects),
    }


def judge(ratios: Sequence[int | float], waited: Sequence[int | float], *, ends: bool) -> Verdict:
    """The verdict on a manipulation, from step/t₀ (∞: no transition) and (last step)/t₀ of each seed.

    `ends`: whether the manipulation ends before training does.
    """
    made = np.isfinite(ratios)
    bounds = np.where(made, ratios, waited)  # of a transition that is not made, the least that its ratio may be
    if len(ratios) < MIN_SEEDS:
        return Verdict.not_resolved
    if not ends and not made.any() and min(waited) >= WAIT:
        return Verdict.abolishes
    if (bounds > 1 + MARGIN).all():
        return Verdict.delays
    if made.all() and (bounds < 1 - MARGIN).all():
        return Verdict.accelerates
    if made.all() and (abs(bounds - 1) <= MARGIN).all():
        return Verdict.no_effect
    return Verdict.not_resolved


def audit_roles(table: pd.DataFrame) -> pd.DataFrame:
    """The role of every measure (`Role`), from the table of an audit: columns ``hold``, ``remove`` (verdicts) and
    ``role``, with ``hold_ratio``, ``remove_ratio`` and the strengths that they are of."""
    rows = {}
    for measure, conditions in table.groupby("measure", sort=False):
        whole = conditions[(conditions["time"] == Time.whole.name) & (conditions["strength"] > 0)]
        held = whole[whole["way"] == Way.hold.name].nsmallest(1, "strength")
        removed = whole[(whole["way"] == Way.remove.name) & (whole["strength"] == 1)]
        row: dict[str, Any] = {}
        for way, found, sign in ((Way.hold, held, 1), (Way.remove, removed, -1)):
            values = found.iloc[0].to_dict() if len(found) else {}
            moved = sign * (values.get("value", np.nan) - values.get("control_value", np.nan)) >= MOVED
            row[way.name] = values["verdict"] if values and moved else Verdict.not_resolved.name
            row[f"{way.name}_strength"] = values.get("strength", np.nan)
            row[f"{way.name}_ratio"] = values.get("ratio", np.nan)
        row["role"] = role_of(Verdict[row["hold"]], Verdict[row["remove"]]).name
        rows[measure] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("measure")


def role_of(hold: Verdict, remove: Verdict) -> Role:
    """The role of a measure, from what holding and removing it do."""
    if Verdict.not_resolved in (hold, remove):
        return Role.not_resolved
    harms = (Verdict.delays, Verdict.abolishes)
    if remove in harms:
        return Role.cause if hold is Verdict.accelerates else Role.necessary
    if remove is Verdict.accelerates:
        return Role.obstacle if hold in harms else Role.not_resolved
    return {Verdict.accelerates: Role.sufficient, Verdict.no_effect: Role.only_leads}.get(hold, Role.not_resolved)


@dataclass(frozen=True)
class Middle:
    """The middle of a control's transition."""

    step: float
    level: float
    sign: float
    """1 if the outcome rises, −1 if it falls."""


def middle_of(curve: pd.Series, seed: int) -> Middle:
    levels = plateaus(curve)
    before, after = levels or (0.0, 0.0)
    sign, level = (1.0 if after > before else -1.0), (before + after) / 2
    step = level_crossing(sign * curve, sign * level) if levels else None
    if step is None:
        raise MechinterpError(
            f"the control of seed {seed} makes no transition of {curve.name}: train longer (training.steps), choose"
            " other seeds, or another outcome"
        )
    return Middle(step, level, sign)


def _as_trained(table: pd.DataFrame, name: str) -> pd.Series:
    """A measure under the interventions of its step; without interventions on activations, of the weights."""
    clamped = f"clamped_{name}"
    return pd.Series(table[clamped if clamped in table else name]) if name in table else pd.Series(dtype=float)


@dataclass(frozen=True)
class _Pair:
    """A run under a manipulation, and the control of its seed: step × measure."""

    run: pd.DataFrame
    control: pd.DataFrame
    middle: Middle
    condition: Condition
    watched: str
    """The outcome."""

    @property
    def waited(self) -> float:
        """The last step, over t₀."""
        return self.run.index[-1] / self.middle.step

    @property
    def ratio(self) -> float:
        """The step of the transition, over t₀; ∞ without one."""
        released = self.condition.time is not Time.whole
        curve = pd.Series(self.run[self.watched]) if released else _as_trained(self.run, self.watched)
        height, level = self.middle.sign * curve, self.middle.sign * self.middle.level
        step = level_crossing(height, level)
        if step is None and (height >= level).mean() > 0.5:
            step = float(curve.index[0])  # above from the first checkpoint on
        return np.inf if step is None else step / self.middle.step

    def value(self, table: pd.DataFrame) -> float:
        """The mean of the audited measure in the window, as trained; up to t₀ if it is held for the whole run."""
        inside = self._inside(table)
        if self.condition.time is Time.whole and self.condition.way is Way.hold:
            inside = inside.loc[: self.middle.step]
        return float(_as_trained(inside, self.condition.measure).mean())

    def last_outcome(self, table: pd.DataFrame) -> float:
        """The outcome at the last checkpoint in the window, as trained."""
        curve = _as_trained(self._inside(table), self.watched)
        return float(curve.iloc[-1]) if len(curve) else np.nan

    def _inside(self, table: pd.DataFrame) -> pd.DataFrame:
        """The checkpoints at which the manipulation is on, as far as the run has them."""
        start, stop = self.condition.time.window(self.middle.step)
        steps = self.run.index[(self.run.index >= start) & (self.run.index < (np.inf if stop is None else stop))]
        return table.loc[table.index.intersection(steps)]


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else np.nan
