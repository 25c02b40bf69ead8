"""Optimisation and checkpoint schedule of a run."""

import math
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mechinterp.config.section import Section

MAX_CHECKPOINTS = 1_000_000
"""The largest number of checkpoints in a file; more are taken for a mistake."""
_NOT_PLAIN = ("loss", "loss_at", "optimizer", "momentum", "warmup_steps", "schedule", "gradient_clip", "decayed")
"""Settings that plain SGD leaves at their defaults."""


class TrainingConfig(Section):
    """The optimisation: by default plain stochastic gradient descent on the cross-entropy at the target."""

    steps: int = Field(default=6_000, ge=0, le=1_000_000_000)
    """Number of updates."""
    batch_size: int = Field(default=128, ge=1, le=100_000)
    """Sequences a step."""
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    """mse: the mean over labels of (logit − [it is the correct one])²."""
    loss_at: str = Field(default="target", min_length=1, max_length=200)
    """The positions whose answers are trained: target, the last one; all, every position for which the task has an
    answer; or those of them that have the role of this name. Positions other than the target need an unembedding."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """The update rule (`mechinterp.training.optimizers`)."""
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    """μ of sgd."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """β₁ of adam and adamw: decay of the mean gradient."""
    beta2: float = Field(default=0.999, ge=0.0, lt=1.0)
    """β₂ of adam and adamw: decay of the mean squared gradient."""
    epsilon: float = Field(default=1e-8, gt=0.0, allow_inf_nan=False)
    """ε of adam and adamw."""
    learning_rate: float = Field(default=0.1, gt=0.0, allow_inf_nan=False)
    """Step size lr, the largest of a schedule."""
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000_000)
    """Updates in which the learning rate rises in equal parts to its largest value."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after that: it falls linearly, or as half a cosine, to its final value at the last step."""
    final_learning_rate: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """The learning rate at the end of a schedule."""
    gradient_clip: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """The largest norm of the gradient over all parameters, to which a larger one is scaled down; default none."""
    weight_decay: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Decay λ of every trained parameter, biases included; what a step subtracts (λ or lr·λ, by the convention) is less
    than the whole parameter."""
    decayed: tuple[str, ...] = Field(default=("*",), strict=False)
    """Names of the parameters that decay, or patterns with * and ?, as ``blocks.*.W_*``."""
    attention_weight_decay: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """Decay of the attention parameters (blocks.…); by default λ."""
    weight_decay_convention: Literal["per_step", "times_learning_rate", "gradient"] = "per_step"
    """Of sgd. per_step: p ← (1−λ)p − lr·g. times_learning_rate: p ← (1−lr·λ)p − lr·g. gradient: g ← g + λp, before
    momentum; without momentum the same as times_learning_rate, as torch.optim.SGD has it. adam: gradient; adamw:
    times_learning_rate."""
    stop_accuracy: float | None = Field(default=None, gt=0.0, le=1.0)
    """Stop at the first checkpoint whose training accuracy (mean since the last one, under the run's interventions)
    reaches this; default never."""
    stop_plateau: int | None = Field(default=None, ge=2)
    """Stop at the first checkpoint at which neither the loss nor the in-context and in-weights accuracies have changed
    for so many steps (`mechinterp.training.stopping`); default never."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingConfig":
        sgd, scheduled = self.optimizer == "sgd", self.schedule != "constant"
        for name, takes, has_effect in (
            ("momentum", "optimizer = 'sgd'", sgd),
            ("weight_decay_convention", "optimizer = 'sgd'", sgd),
            *((name, "optimizer = 'adam' or 'adamw'", not sgd) for name in ("beta1", "beta2", "epsilon")),
            ("final_learning_rate", "a schedule", scheduled),
        ):
            if not has_effect and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect without {takes}: leave it out")
        for name in ("weight_decay", "attention_weight_decay"):
            subtracted = (getattr(self, name) or 0.0) * (1 if self.decay_kind == "per_step" else self.learning_rate)
            if subtracted >= 1:
                raise ValueError(f"{name} subtracts {subtracted:g} times a parameter at every step: lower it below 1")
        if self.final_learning_rate > self.learning_rate:
            raise ValueError("final_learning_rate must not exceed learning_rate: swap or lower it")
        if scheduled and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps} leaves no step for the schedule: use fewer")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether it is SGD with a constant rate on the cross-entropy at the target."""
        plain = all(getattr(self, name) == type(self).model_fields[name].default for name in _NOT_PLAIN)
        return plain and self.weight_decay_convention != "gradient"

    @property
    def decay_kind(self) -> str:
        """The convention of weight decay."""
        return {"adam": "gradient", "adamw": "times_learning_rate"}.get(self.optimizer, self.weight_decay_convention)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the update from `step`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = min((step - self.warmup_steps) / (self.steps - self.warmup_steps), 1.0)
        share = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.final_learning_rate + share * (self.learning_rate - self.final_learning_rate)

    def decay(self, name: str) -> float:
        """λ of a parameter."""
        if self.decayed != ("*",) and not any(fnmatchcase(name, pattern) for pattern in self.decayed):
            return 0.0
        of_attention = self.attention_weight_decay if name.startswith("blocks.") else None
        return self.weight_decay if of_attention is None else of_attention

    def decay_factor(self, name: str, learning_rate: float | None = None) -> float:
        """The fraction of a parameter that weight decay subtracts from it, at a learning rate (by default the
        configured one), where it is not added to the gradient."""
        rate = self.learning_rate if learning_rate is None else learning_rate
        return self.decay(name) * (1 if self.decay_kind == "per_step" else rate)


class CheckpointConfig(Section):
    """The steps that are saved: the union of the three rules, step 0 and the last step."""

    every: int | None = Field(default=100, ge=1)
    """Every so many steps."""
    per_decade: int | None = Field(default=None, ge=1)
    """So many logarithmically spaced steps per decade."""
    at: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), strict=False)
    """These very steps."""
    optimizer_every: int = Field(default=1, ge=1, le=1_000_000)
    """Every so-manyth checkpoint has the optimizer's moments too, if the optimizer has any; from the others, training
    goes on by way of the last one that has."""

    def schedule(self, last: int) -> list[int]:
        """The saved steps of a run of `last` updates, ascending; step s is the state after s updates."""
        steps = {0, last} | {step for step in self.at if step <= last}
        if self.every:
            steps.update(range(0, last + 1, self.every))
        if self.per_decade and last:
            n_points = int(self.per_decade * math.log10(last)) + 1
            steps.update(min(last, logarithmic_step(index, self.per_decade)) for index in range(n_points))
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


def logarithmic_step(index: int, per_decade: int) -> int:
    """The step with a number, from 0, among so many logarithmically spaced ones per decade."""
    return round(10 ** (index / per_decade))
