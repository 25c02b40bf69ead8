"""Train a network on a task and keep its trajectory."""

import math
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor
from tqdm import tqdm

from mechinterp.config import CustomTaskConfig, ItemLabelConfig, RunConfig
from mechinterp.errors import ConfigError, DivergedError
from mechinterp.models.parameters import initial_parameters
from mechinterp.store import Run, RunWriter, open_run
from mechinterp.tasks.base import Batch, Task
from mechinterp.tasks.item_label import ItemLabelTask
from mechinterp.training.fused import FusedEngine


@runtime_checkable
class Engine(Protocol):
    """Holds the parameters and advances them by one step of SGD."""

    name: str
    parameters: dict[str, Tensor]

    def step(self, batch: Batch) -> tuple[float, float]:
        """Update the parameters in place; return the batch's loss and accuracy before the update."""
        ...


def train(
    config: RunConfig, path: str | Path, *, task: Task | None = None, overwrite: bool = False, progress: bool = True
) -> Run:
    """Train the network of `config` and write its trajectory to `path`; returns the finished run.

    Pass `task` to train on a task of your own; the config then records only its name and shape. Training stops
    early at the config's stop rule. A loss or weight that is not finite raises DivergedError; Ctrl-C raises
    KeyboardInterrupt; either way every checkpoint committed before is in the file.
    """
    if task is not None:
        config = _config_for(task, config)
    trained_on: Task = config.build_task() if task is None else task
    engine = build_engine(config, initial_parameters(config))
    with RunWriter(path, config, overwrite=overwrite, engine=engine.name) as writer:
        _advance(engine, trained_on, config, writer, progress=progress)
    return open_run(path, task=trained_on)


def build_engine(config: RunConfig, parameters: dict[str, Tensor]) -> Engine:
    """The fastest engine that computes this network exactly: fused where it fits, else the hooked model's autograd."""
    if FusedEngine.fits(config):
        return FusedEngine(config, parameters)
    from mechinterp.training.hooked import HookedEngine  # imports TransformerLens, which takes seconds

    return HookedEngine(config, parameters)


def _advance(engine: Engine, task: Task, config: RunConfig, writer: RunWriter, *, progress: bool) -> None:
    """Steps, and checkpoints at the scheduled ones, from step 0 to the end or the stop rule."""
    training = config.training
    scheduled = set(config.checkpoints.schedule(training.steps))
    recent = _RecentMean()
    bar = tqdm(total=training.steps, unit="step", disable=None if progress else True, mininterval=0.5)
    with bar:
        for step in range(training.steps + 1):
            if step in scheduled:
                metrics = recent.take()
                writer.append(step, engine.parameters, metrics)
                bar.set_postfix(loss=f"{metrics['train_loss']:.3f}", accuracy=f"{metrics['train_accuracy']:.3f}")
                if training.stop_accuracy is not None and metrics["train_accuracy"] >= training.stop_accuracy:
                    return
            if step < training.steps:
                loss, accuracy = engine.step(task.train_batch(step, training.batch_size))
                if not math.isfinite(loss):
                    raise DivergedError(
                        f"{writer.path}: the loss is {loss} at step {step}; lower training.learning_rate"
                        f" (now {training.learning_rate:g}). Earlier checkpoints are kept"
                    )
                recent.add(loss, accuracy)
                bar.update()


class _RecentMean:
    """Mean loss and accuracy of the steps since it was last taken."""

    def __init__(self) -> None:
        self._count, self._loss, self._accuracy = 0, 0.0, 0.0

    def add(self, loss: float, accuracy: float) -> None:
        self._count, self._loss, self._accuracy = self._count + 1, self._loss + loss, self._accuracy + accuracy

    def take(self) -> dict[str, float]:
        count = self._count or math.nan
        metrics = {"train_loss": self._loss / count, "train_accuracy": self._accuracy / count}
        self.__init__()
        return metrics


def _config_for(task: Task, config: RunConfig) -> RunConfig:
    """The config with its task section describing the given task."""
    if isinstance(task, ItemLabelTask):
        section: ItemLabelConfig | CustomTaskConfig = task.config
        if task.seed != config.seed:
            raise ConfigError(f"the task's seed is {task.seed}, the config's {config.seed}; make them equal")
    else:
        section = CustomTaskConfig(
            name=type(task).__qualname__, d_model=task.d_model, n_pos=task.n_pos, n_labels=task.n_labels
        )
    return config.model_copy(update={"task": section})
