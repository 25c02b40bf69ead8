"""The main result of a run in sentences: what rose, to what level, and whether it is an induction head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mechinterp.analysis.checkpoints import analyse
from mechinterp.circuits.evidence import Fact
from mechinterp.emergence import Emergence, describe, steps_around
from mechinterp.errors import MechinterpError
from mechinterp.measures import main_measure
from mechinterp.run import Run
from mechinterp.tasks.base import Task

_NEAR = 0.03
"""The greatest distance of a plateau from the accuracy of a way of guessing that is named."""


@dataclass(frozen=True)
class Headline:
    """What a run has come to."""

    transition: str
    """The transition of a measure in a sentence."""
    level: str | None = None
    """The way of guessing whose accuracy it reaches, or None."""
    induction_head: bool | None = None
    """Whether the network is an induction head at the end; None where that is not tested."""
    evidence: str | None = None
    """The evidence before a transition and at the end, in a sentence."""

    def __str__(self) -> str:
        level = self.level and f"what it reaches is {self.level}"
        return "; ".join(part for part in (self.transition, level, self.evidence) if part)

    def to_dict(self) -> dict[str, str | bool | None]:
        """The level, whether it is an induction head, and the evidence."""
        return {"level": self.level, "induction_head": self.induction_head, "evidence": self.evidence}


@dataclass(frozen=True)
class Evidence:
    """Whether a network is an induction head (`circuits.evidence`) at a first and a last step."""

    first: int
    last: int
    before: bool
    """Whether it is one at the first step."""
    holds: bool
    """Whether it is one at the last step."""
    weakest_before: float
    """The value of the weakest fact at the first step, 1 of an ideal head; NaN where it is not resolved."""
    weakest: float
    """The same at the last step."""
    composition: str
    """``K`` or ``Q``, of the last step."""
    lacking: tuple[Fact, ...]
    """The facts that do not hold at the last step; of the two compositions, where neither does, the first."""
    values: Mapping[Fact, float]
    """The values of the facts at the last step, 1 of an ideal head; of the two compositions, that of `composition`."""


def headline(run: Run, curve: pd.Series, emergence: Emergence | pd.Series) -> Headline:
    """The transition of a measure, the level of guessing that IC accuracy has reached if it is one, and the evidence.

    `curve` is the measure by step, `emergence` what `locate_emergence` says of it. A rise is not yet an induction head:
    an accuracy also rises from guessing any label to guessing among the labels of the context. That level is compared
    with the plateau after the transition; without a transition with the median of the last tenth of the curve. The
    evidence (`circuits.evidence`) is of the checkpoints before the transition and at the end, or of the end alone. Of a
    run without a task, or whose network is not known, there is the transition alone.
    """
    measure = str(curve.name)
    after = emergence.after if emergence.transition else curve.iloc[-max(len(curve) // 10, 1) :].median()
    if not run.can_be_analysed:
        return Headline(describe(measure, emergence))
    level = guessing_level(run.task, float(after or 0.0)) if measure == main_measure(run.task) else None
    steps = steps_around(emergence, run.steps) if emergence.transition else run.steps[-1:]
    try:
        found = induction_evidence(run, steps)
    except MechinterpError as error:
        return Headline(
            describe(measure, emergence), level, None, f"whether it is an induction head was not tested: {error}"
        )
    return Headline(describe(measure, emergence), level, found.holds, _in_a_sentence(found))


def guessing_level(task: Task, accuracy: float) -> str | None:
    """The way of guessing whose accuracy this is; None if it is none of those that the task declares."""
    levels = guessing_levels(task)
    near = [name for name, level in levels.items() if abs(accuracy - level) <= _NEAR]
    return min(near, key=lambda name: abs(accuracy - levels[name]), default=None)


def guessing_levels(task: Task) -> Mapping[str, float]:
    """The accuracies of ways of guessing that a task declares."""
    return getattr(task, "guessing_levels", {})


def at_most_guessing(task: Task, accuracy: float) -> str | None:
    """The best way of guessing that the task declares, if the accuracy is not beyond it; None if it is."""
    levels = guessing_levels(task)
    best = max(levels, key=lambda name: levels[name], default=None)
    return best if best is not None and accuracy <= levels[best] + _NEAR else None


def induction_evidence(run: Run, steps: Sequence[int]) -> Evidence:
    """The evidence for an induction head at the first and the last of the steps. Raises MechinterpError where the task
    or the network does not admit the test."""
    first, last = steps[0], steps[-1]
    table = analyse(run, "evidence", steps=dict.fromkeys([first, last]))
    before, after = (table[table["step"] == step].set_index("fact") for step in (first, last))
    whole, by_keys = Fact.induction_head.name, bool(after["holds"][Fact.k_composition.name])
    needed = (Fact.answers_from_context, Fact.target_query_selects, Fact.correct_label_copied)
    composition = Fact.k_composition if by_keys else Fact.q_composition
    lacking = [fact for fact in needed if not after["holds"][fact.name]]
    if not (by_keys or after["holds"][Fact.q_composition.name]):
        lacking.append(Fact.k_composition)
    return Evidence(
        *(first, last, bool(before["holds"][whole]), bool(after["holds"][whole])),
        *(float(before["value"][whole]), float(after["value"][whole]), "K" if by_keys else "Q", tuple(lacking)),
        {fact: float(after["value"][fact.name]) for fact in (needed[0], composition, *needed[1:])},
    )


def _in_a_sentence(found: Evidence) -> str:
    if not found.holds:
        names = [
            "k_composition or q_composition" if fact is Fact.k_composition else fact.name for fact in found.lacking
        ]
        return f"no induction head at step {found.last:,}: it lacks {', '.join(names)}"
    then = "not resolved" if pd.isna(found.weakest_before) else f"{found.weakest_before:.2f}"
    return (
        f"an induction head by {found.composition}-composition at step {found.last:,}: its weakest fact has the value"
        f" {found.weakest:.2f}" + (f", at step {found.first:,} {then}" if found.first != found.last else "")
    )
