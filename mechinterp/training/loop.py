"""The training loop itself: batches through an engine, one step after another."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch

from mechinterp.config import RunConfig
from mechinterp.errors import DivergedError
from mechinterp.tasks.base import Task
from mechinterp.training.engine import Engine, EngineUnder
from mechinterp.training.interventions import Interventions
from mechinterp.training.prefetch import batches


class RecentMean:
    """Mean loss and accuracy of the steps since it was last taken; not a number when there was none."""

    def __init__(self) -> None:
        self._count, self._loss, self._accuracy = 0, 0.0, 0.0

    def add(self, loss: float, accuracy: float) -> None:
        """Count one step."""
        self._count, self._loss, self._accuracy = self._count + 1, self._loss + loss, self._accuracy + accuracy

    def take(self) -> dict[str, float]:
        """The means, and start anew."""
        count = self._count or math.nan
        metrics = {"train_loss": self._loss / count, "train_accuracy": self._accuracy / count}
        self._count, self._loss, self._accuracy = 0, 0.0, 0.0
        return metrics


def advance(engine: Engine, task: Task, config: RunConfig, start: int, stop: int, recent: RecentMean) -> Iterator[int]:
    """Take the engine from step `start` to `stop`, under the run's interventions; yields every step reached before the
    next update.

    Whoever iterates sees the engine's parameters at the yielded step: at `start` first, and, once exhausted, at
    `stop`, which is not yielded. A loss that is not finite raises DivergedError.
    """
    interventions = Interventions(config)
    for step, batch in zip(
        range(start, stop), batches(task, range(start, stop), config.training.batch_size), strict=True
    ):
        yield step
        with interventions.held(step, engine.parameters):
            under = interventions.at(step, batch)
            loss, accuracy = cast(EngineUnder, engine).step(batch, under) if under else engine.step(batch)
        interventions.settle(step + 1, engine.parameters)
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} at step {step}; lower training.learning_rate"
                f" (now {config.training.learning_rate:g}). Earlier checkpoints are kept"
            )
        recent.add(loss, accuracy)


@contextmanager
def recorded_threads(environment: Mapping[str, str]) -> Iterator[None]:
    """Run with the number of torch threads that an environment records: sums depend on how they are split."""
    before, wanted = torch.get_num_threads(), environment.get("threads", "")
    torch.set_num_threads(int(wanted) if wanted.isdecimal() and 0 < int(wanted) <= 1024 else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
