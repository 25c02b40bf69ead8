"""The training loop: updates of one run, or of several runs at once, by an engine."""

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import DivergedError
from mechinterp.interventions.forward import ForwardInterventions, forward_interventions
from mechinterp.interventions.parameters import ParameterInterventions
from mechinterp.tasks.base import Task
from mechinterp.training.engines import Engine, StepResult
from mechinterp.training.prefetch import batches
from mechinterp.training.recording import SERIES
from mechinterp.training.spikes import LossSpikes


class RunningMean:
    """Mean loss and accuracy of the steps since the last `pop`; NaN without steps."""

    def __init__(self) -> None:
        self._count, self._loss, self._accuracy = 0, 0.0, 0.0

    def add(self, loss: float, accuracy: float) -> None:
        """Count one step."""
        self._count, self._loss, self._accuracy = self._count + 1, self._loss + loss, self._accuracy + accuracy

    def pop(self) -> dict[str, float]:
        """The means, which are then reset."""
        count = self._count or math.nan
        metrics = {"train_loss": self._loss / count, "train_accuracy": self._accuracy / count}
        self._count, self._loss, self._accuracy = 0, 0.0, 0.0
        return metrics


class TrainingRun:
    """A run in training from step `start` to step `stop`: its parameters, their step, and its batches."""

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        parameters: Mapping[str, Tensor],
        start: int,
        stop: int,
        recorded: Mapping[str, float] | None = None,
        series_every: int = 1,
    ):
        """`recorded` are the metrics of the checkpoint at `start`; the series has every so-manyth update."""
        self.config, self.parameters, self.step, self.stop = config, parameters, start, stop
        self.state: Mapping[str, Tensor] = {}
        """The optimizer's moments, as `Engine.states` has them; none are 0."""
        self.recent, self._spikes = RunningMean(), LossSpikes(recorded)
        self._series, self._series_every = array("f"), series_every
        self.error: DivergedError | None = None
        """Set when its loss, or a weight, is not finite."""
        self._batches = batches(task, range(start, stop), config.training.batch_size)
        self._on_parameters = ParameterInterventions(config)
        self._has_hooks = bool(forward_interventions(config))

    def advanced(self, result: StepResult) -> None:
        """Count one update."""
        if not math.isfinite(result.loss):
            self.error = DivergedError(
                f"the loss is {result.loss} at step {self.step}; lower training.learning_rate"
                f" (now {self.config.training.learning_rate:g}). Earlier checkpoints are kept"
            )
        self.step += 1
        self._on_parameters.apply_scheduled(self.step, self.parameters)
        self.recent.add(result.loss, result.accuracy)
        self._spikes.add(self.step, result.loss)
        if self.step % self._series_every == 0:
            self._series.extend(result)

    def pop_series(self) -> dict[str, np.ndarray]:
        """The `SERIES` of the updates since the last call."""
        columns = np.array(self._series, "<f4").reshape(-1, len(SERIES)).T
        self._series = array("f")
        return dict(zip(SERIES, columns, strict=True))

    def pop_metrics(self) -> dict[str, float]:
        """What is recorded at a checkpoint, of the steps since the last call."""
        return self.recent.pop() | self._spikes.pop()


def advance(engine: Engine, runs: Sequence[TrainingRun]) -> None:
    """One update of every run, under its interventions; `runs` are those of the engine, in order."""
    run_batches = [next(run._batches) for run in runs]
    interventions = [
        ForwardInterventions.at(run.config, run.step, batch) if run._has_hooks else None
        for run, batch in zip(runs, run_batches, strict=True)
    ]
    with ExitStack() as frozen:
        for run in runs:
            frozen.enter_context(run._on_parameters.frozen_during_step(run.step, run.parameters))
        results = engine.step_runs(run_batches, interventions, [run.step for run in runs])
    for run, result in zip(runs, results, strict=True):
        run.advanced(result)


def steps_of(engine: Engine, run: TrainingRun) -> Iterator[int]:
    """Every step of the engine's only run, until its stop (excluded); the run is updated after every yield.

    At a yield, the parameters are those of the step. A loss that is not finite raises DivergedError.
    """
    while run.step < run.stop:
        yield run.step
        advance(engine, [run])
        if run.error:
            raise run.error
