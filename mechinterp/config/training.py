"""Optimisation and checkpoint schedule of a run."""

import math
from typing import Annotated, Literal

from pydantic import Field

from mechinterp.config.section import Section

MAX_CHECKPOINTS = 1_000_000
"""The largest number of checkpoints in a file; more are taken for a mistake."""


class TrainingConfig(Section):
    """Stochastic gradient descent (momentum 0) on the cross-entropy at the target; fresh data at every step."""

    steps: int = Field(default=6_000, ge=0, le=1_000_000_000)
    """Number of updates."""
    batch_size: int = Field(default=128, ge=1, le=100_000)
    """Sequences a step."""
    learning_rate: float = Field(default=0.1, gt=0.0, allow_inf_nan=False)
    """Step size lr."""
    weight_decay: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay λ of every trained parameter, biases included."""
    attention_weight_decay: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Decay of the attention parameters (blocks.…); by default λ."""
    weight_decay_convention: Literal["per_step", "times_learning_rate"] = "per_step"
    """per_step: p ← (1−λ)p − lr·g. times_learning_rate: p ← (1−lr·λ)p − lr·g, as torch.optim.SGD has it."""
    stop_accuracy: float | None = Field(default=None, gt=0.0, le=1.0)
    """Stop at the first checkpoint whose training accuracy (mean since the last one, under the run's interventions)
    reaches this; default never."""
    stop_plateau: int | None = Field(default=None, ge=2)
    """Stop at the first checkpoint at which neither the loss nor the in-context and in-weights accuracies have changed
    for so many steps (`mechinterp.training.stopping`); default never."""

    def decay_factor(self, name: str) -> float:
        """The fraction of a parameter that weight decay subtracts from it at every step."""
        of_attention = self.attention_weight_decay if name.startswith("blocks.") else None
        decay = self.weight_decay if of_attention is None else of_attention
        return decay if self.weight_decay_convention == "per_step" else decay * self.learning_rate


class CheckpointConfig(Section):
    """The steps that are saved: the union of the three rules, step 0 and the last step."""

    every: int | None = Field(default=100, ge=1)
    """Every so many steps."""
    per_decade: int | None = Field(default=None, ge=1)
    """So many logarithmically spaced steps per decade."""
    at: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), strict=False)
    """These very steps."""

    def schedule(self, last: int) -> list[int]:
        """The saved steps of a run of `last` updates, ascending; step s is the state after s updates."""
        steps = {0, last} | {step for step in self.at if step <= last}
        if self.every:
            steps.update(range(0, last + 1, self.every))
        if self.per_decade and last:
            n_points = int(self.per_decade * math.log10(last)) + 1
            steps.update(min(last, round(10 ** (i / self.per_decade))) for i in range(n_points))
        return sorted(steps)

    def require_fits(self, training: TrainingConfig) -> None:
        """ValueError for a schedule that does not fit the number of steps or the stop rule."""
        steps, late = training.steps, [step for step in self.at if step > training.steps]
        if late:
            raise ValueError(f"checkpoints.at has {late[0]}, after the last step (training.steps = {steps}): remove it")
        if self.every and steps // self.every > MAX_CHECKPOINTS:
            least = -(-steps // MAX_CHECKPOINTS)
            raise ValueError(
                f"checkpoints.every = {self.every} gives {steps // self.every:,} checkpoints: use {least} or more"
            )
        if self.per_decade and self.per_decade * math.log10(max(steps, 10)) > MAX_CHECKPOINTS:
            raise ValueError(f"checkpoints.per_decade = {self.per_decade} gives over {MAX_CHECKPOINTS:,} checkpoints")
        window, distance = training.stop_plateau, self.every or steps
        if window and 2 * distance > window:
            raise ValueError(
                f"training.stop_plateau = {window} compares two halves, and checkpoints are {distance} steps apart:"
                f" set checkpoints.every to {window // 2} or less"
            )
