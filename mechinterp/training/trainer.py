"""Train a network on a task and keep its trajectory; resume a run that stopped."""

import sys
from pathlib import Path

import torch
from tqdm import tqdm

from mechinterp.config import CustomTaskConfig, ItemLabelConfig, PairedItemsConfig, RunConfig
from mechinterp.errors import ConfigError, DivergedError, MechinterpError
from mechinterp.interventions import Graft
from mechinterp.models.parameters import initial_parameters
from mechinterp.store import Run, RunWriter, open_run
from mechinterp.tasks import ItemLabelTask, PairedItemsTask
from mechinterp.tasks.base import Task
from mechinterp.training.engine import Device, Engine, build_engine
from mechinterp.training.interventions import Interventions, noted
from mechinterp.training.loop import RecentMean, advance, recorded_threads
from mechinterp.training.replay import environment_changes, usable_device
from mechinterp.training.stopping import StopRule


def train(
    config: RunConfig,
    path: str | Path,
    *,
    task: Task | None = None,
    device: Device = "cpu",
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Train the network of `config` and write its trajectory to `path`; returns the finished run.

    Pass `task` to train on a task of your own; the config then records only its name and shape. Training stops
    early at a stop rule of the config. On `device="cuda"` the same steps are taken on a GPU. A loss or weight that is
    not finite raises DivergedError; Ctrl-C raises KeyboardInterrupt; either way every checkpoint committed before is
    in the file, and `resume` goes on from there.
    """
    config = noted(config if task is None else _config_for(task, config))
    for each in config.interventions:
        if isinstance(each, Graft) and Path(each.run).resolve() == Path(path).resolve():
            raise ConfigError(f"{path}: is the run that is grafted from; choose another file for the new one")
    trained_on: Task = config.build_task() if task is None else task
    if task is not None:
        _check_batch(task)
    parameters, interventions = initial_parameters(config), Interventions(config)
    interventions.require(trained_on.train_batch(0, 2))
    interventions.settle(0, parameters)
    engine = build_engine(config, parameters, device=device)
    with RunWriter(path, config, overwrite=overwrite, engine=engine.name, device=engine.device) as writer:
        writer.append(0, engine.parameters, RecentMean().take())
        stop = StopRule(config, trained_on)
        _train(engine, trained_on, config, writer, range(config.training.steps), stop, progress)
    return open_run(path, task=trained_on)


def resume(path: str | Path, *, until: int | None = None, task: Task | None = None, progress: bool = True) -> Run:
    """Go on with a run from its last checkpoint, to the configured end or to step `until`; returns the run.

    The same bits follow as in a run that never stopped, if the environment is the same. A file left behind by a
    killed writer is recovered: its committed checkpoints are copied to a new file, which replaces it. An `until`
    beyond the configured end prolongs the run, and no rule stops it before. A run that another process is writing is
    refused.
    """
    run = open_run(path, task=task)
    if not run.file.steps:
        raise MechinterpError(f"{run.path}: holds no checkpoint; train it anew")
    last, end = run.file.steps[-1], run.config.training.steps if until is None else until
    stop = None if until is not None else StopRule(run.config, run.task)
    if stop and stop.recall(run.file):
        if run.status != "running":
            raise MechinterpError(f"{run.path}: its stop rule ended it at step {last}; go beyond with --until")
        end = last  # its writer was killed before it could say that it was done
    if end < last:
        raise MechinterpError(f"{run.path}: has reached step {last} already; give an --until beyond it")
    config = run.config if end <= run.config.training.steps else run.config.updated({"training.steps": end})
    device = usable_device(run.environment)
    engine = build_engine(config, run.file.weights(last), run.environment.get("engine"), device)
    for change in environment_changes(run.environment):
        _say(f"{run.path}: {change}; what follows is no longer the bits of the original environment")
    if run.status == "running":
        _say(f"{run.path}: its writer was killed; recovered {len(run.file.steps)} checkpoints up to step {last}")
    with (
        recorded_threads(run.environment),
        RunWriter(path, config, continues=run.file, last=last, engine=engine.name, device=device) as writer,
    ):
        _train(engine, run.task, config, writer, range(last, end), stop, progress)
        if until is not None and end < config.training.steps:
            writer.finish("interrupted")
    return open_run(path, task=run.task)


def _say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)


def _train(
    engine: Engine,
    task: Task,
    config: RunConfig,
    writer: RunWriter,
    steps: range,
    stop: StopRule | None,
    progress: bool,
) -> None:
    """The updates `steps`, with a checkpoint at every scheduled step and at the last, unless a stop rule ends them."""
    scheduled, recent = {*config.checkpoints.schedule(config.training.steps), steps.stop}, RecentMean()

    def save(step: int) -> bool:
        """Write a checkpoint; True if the stop rule ends the run here."""
        metrics = recent.take()
        writer.append(step, engine.parameters, metrics)
        bar.set_postfix(loss=f"{metrics['train_loss']:.3f}", accuracy=f"{metrics['train_accuracy']:.3f}")
        return stop is not None and stop.reached(step, engine.parameters, metrics)

    hidden = None if progress else True
    with tqdm(initial=steps.start, total=steps.stop, unit="step", disable=hidden, mininterval=0.5) as bar:
        try:
            for step in advance(engine, task, config, steps.start, steps.stop, recent):
                if step > steps.start:
                    bar.update()
                    if step in scheduled and save(step):
                        return
        except DivergedError as error:
            raise DivergedError(f"{writer.path}: {error}") from None
        if len(steps):
            bar.update()
            save(steps.stop)


def _check_batch(task: Task) -> None:
    """A task's own first batch must be what the network takes; said before anything is written."""
    batch, name = task.train_batch(0, 2), type(task).__qualname__
    expected = (2, task.n_pos, task.d_model)
    if tuple(batch.inputs.shape) != expected or batch.inputs.dtype != torch.float32:
        found = f"{tuple(batch.inputs.shape)} {batch.inputs.dtype}"
        raise ConfigError(f"task {name}: inputs are {found}, expected {expected} torch.float32")
    right = batch.labels.shape == (2,) and batch.labels.dtype == torch.int64
    if not right or not bool(((batch.labels >= 0) & (batch.labels < task.n_labels)).all()):
        raise ConfigError(f"task {name}: labels must be 2 int64 from 0 to {task.n_labels - 1}, got {batch.labels}")


def _config_for(task: Task, config: RunConfig) -> RunConfig:
    """The config with its task section describing the given task."""
    if isinstance(task, ItemLabelTask | PairedItemsTask):
        section: ItemLabelConfig | PairedItemsConfig | CustomTaskConfig = task.config
        if task.seed != config.seed:
            raise ConfigError(f"the task's seed is {task.seed}, the config's {config.seed}; make them equal")
    else:
        section = CustomTaskConfig(
            name=type(task).__qualname__, d_model=task.d_model, n_pos=task.n_pos, n_labels=task.n_labels
        )
    return config.model_copy(update={"task": section})
