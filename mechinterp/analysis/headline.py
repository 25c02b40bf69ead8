"""The main result of a run in sentences: what rose, to what level, and whether it is an induction head."""

from collections.abc import Mapping
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
    return Headline(describe(measure, emergence), level, *_induction_head(run, steps))


def guessing_level(task: Task, accuracy: float) -> str | None:
    """The way of guessing whose accuracy this is; None if it is none of those that the task declares."""
    levels: Mapping[str, float] = getattr(task, "guessing_levels", {})
    near = [name for name, level in levels.items() if abs(accuracy - level) <= _NEAR]
    return min(near, key=lambda name: abs(accuracy - levels[name]), default=None)


def _induction_head(run: Run, steps: list[int]) -> tuple[bool | None, str]:
    """Whether the network is an induction head at the last of the steps, and a sentence, also on an earlier first."""
    first, last = steps[0], steps[-1]
    try:
        table = analyse(run, "evidence", steps=dict.fromkeys([first, last]))
    except MechinterpError as error:
        return None, f"whether it is an induction head was not tested: {error}"
    before, after = (table[table["step"] == step].set_index("fact") for step in (first, last))
    whole = Fact.induction_head.name
    if not after["holds"][whole]:
        needed = [Fact.answers_from_context, Fact.target_query_selects, Fact.correct_label_copied]
        lacking = [fact.name for fact in needed if not after["holds"][fact.name]]
        if not (after["holds"][Fact.k_composition.name] or after["holds"][Fact.q_composition.name]):
            lacking.append("k_composition or q_composition")
        return False, f"no induction head at step {last:,}: it lacks {', '.join(lacking)}"
    by_keys = bool(after["holds"][Fact.k_composition.name])
    weakest, earlier = float(after["value"][whole]), float(before["value"][whole])
    composition, then = "K" if by_keys else "Q", "not resolved" if pd.isna(earlier) else f"{earlier:.2f}"
    text = f"an induction head by {composition}-composition at step {last:,}: its weakest fact has the value"
    return True, f"{text} {weakest:.2f}" + (f", at step {first:,} {then}" if first != last else "")
