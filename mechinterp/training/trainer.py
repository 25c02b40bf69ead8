"""Training of runs with their files: one run by its engine, or several runs in one batch."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import DivergedError
from mechinterp.progress import Progress
from mechinterp.store import RunWriter
from mechinterp.tasks.base import Task
from mechinterp.tracking import MOST_POINTS, Tracker
from mechinterp.training.engines import AutogradEngine, Engine, StepResult
from mechinterp.training.loop import TrainingRun, advance
from mechinterp.training.recording import SERIES
from mechinterp.training.stopping import StopRule


class WrittenRun(TrainingRun):
    """A run in training with its file, which writes the scheduled checkpoints and ends by its stop rule."""

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        parameters: Mapping[str, Tensor],
        writer: RunWriter,
        steps: range,
        stop_rule: StopRule | None = None,
        last_status: str | None = None,
        recorded: Mapping[str, float] | None = None,
        tracker: Tracker | None = None,
    ):
        """`steps` are its updates; `last_status` is the status of the file at the end, by default "complete".

        `recorded` are the metrics of the checkpoint from which it goes on. A `tracker` gets the numbers of updates
        (``update/…``) and checkpoints (``checkpoint/…``).
        """
        every = writer.header.contents.series_every
        super().__init__(config, task, parameters, steps.start, steps.stop, recorded, every)
        self.writer, self._stop_rule, self._last_status = writer, stop_rule, last_status
        self._scheduled = {*config.checkpoints.schedule(config.training.steps), steps.stop}
        self.new_metrics: dict[str, float] = {}
        """Training loss and accuracy at the newest checkpoint, until the progress bar has them."""
        self.done = False
        self._tracker, self._tracked_every = tracker, max(1, -(-len(steps) // MOST_POINTS))

    def advanced(self, result: StepResult) -> None:
        """Count one update, and commit a scheduled checkpoint. A run that ends, or diverges, is closed."""
        super().advanced(result)
        try:
            if self.error:
                raise DivergedError(f"{self.writer.path}: {self.error}")
            if self._tracker and self.step % self._tracked_every == 0:
                self._tracker.log(
                    self.step, {f"update/{name}": value for name, value in zip(SERIES, result, strict=True)}
                )
            if self.step in self._scheduled:
                self.new_metrics = metrics = self.pop_metrics()
                series = self.pop_series()
                self.writer.append(self.step, self.parameters, metrics, series=series, optimizer=self.state)
                if self._tracker:
                    self._tracker.log(self.step, {f"checkpoint/{name}": value for name, value in metrics.items()})
                stopped = self._stop_rule and self._stop_rule.reached(self.step, self.parameters, metrics)
                if stopped or self.step == self.stop:
                    self.close()
        except DivergedError as error:
            self.error = error
            self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Close the file, with the status in which the run ended."""
        self.done = True
        self._batches.close()
        if error is None and self._last_status:
            self.writer.finish(self._last_status)
        else:
            self.writer.close(error)


def train_runs(
    runs: Sequence[WrittenRun], engine: Engine | None = None, *, device: str = "cpu", progress: bool = False
) -> None:
    """Take all runs to their end: one by its engine, several in one batch on a device.

    A run that diverges leaves the others alone. Any other error, and Ctrl-C, closes all files and is raised.
    """
    current = list(runs)
    try:
        for run in current:
            if run.step >= run.stop:
                run.close()
        current = [run for run in current if not run.done]
        first, last = (runs[0].step, runs[0].stop) if len(runs) == 1 else (0, 0)
        with Progress("step", last, done=first, shown=progress and len(runs) == 1) as bar:
            while current:
                if engine is None:
                    configs, parameters = [run.config for run in current], [run.parameters for run in current]
                    engine = AutogradEngine(configs, parameters, device)
                    engine.restore([run.state for run in current])
                for run, updated, state in zip(current, engine.runs, engine.states, strict=True):
                    run.parameters, run.state = updated, state
                while not any(run.done for run in current):
                    advance(engine, current)
                    bar.advance()
                    if metrics := runs[0].new_metrics:
                        bar.note(loss=metrics["train_loss"], accuracy=metrics["train_accuracy"])
                        runs[0].new_metrics = {}
                current, engine = [run for run in current if not run.done], None
    except BaseException as error:
        for run in current:
            if not run.done:
                run.close(error)
        raise
