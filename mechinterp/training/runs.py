"""Training: a new run, the continuation of one, and several runs in one batch."""

from collections.abc import Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from mechinterp.config import Graft, RunConfig
from mechinterp.config.run import require_config
from mechinterp.errors import ConfigError, DivergedError, MechinterpError, require_integer, unknown_name
from mechinterp.files import FileLock, require_path, require_writable
from mechinterp.interventions.forward import ForwardInterventions, forward_interventions
from mechinterp.interventions.parameters import ParameterInterventions, pin_graft_digests
from mechinterp.models.registry import initial_parameters
from mechinterp.progress import say
from mechinterp.run import Run, open_run
from mechinterp.store import RunWriter, lock_run_file
from mechinterp.tasks import Task, build_task
from mechinterp.tasks.base import require_task
from mechinterp.tasks.registry import config_of_task
from mechinterp.torch_state import recorded_threads, torch_defaults, torch_threads
from mechinterp.tracking import TrackerName, require_tracker, tracking
from mechinterp.training.engines import BATCHED, AutogradEngine, Device, build_engine, require_device
from mechinterp.training.loop import RunningMean
from mechinterp.training.recording import continued_run_file, new_run_file
from mechinterp.training.replay import environment_changes, moments_at, usable_device
from mechinterp.training.spikes import LossSpikes
from mechinterp.training.stopping import StopRule
from mechinterp.training.trainer import WrittenRun, train_runs


@torch_defaults()
def train(
    config: RunConfig,
    path: str | Path,
    *,
    task: Task | None = None,
    device: Device = "cpu",
    overwrite: bool = False,
    progress: bool = True,
    track: TrackerName | None = None,
) -> Run:
    """Train the network of `config` and write its trajectory to `path`; returns the finished run.

    Pass `task` to train on a custom task; the config then records only its name and shape. Training stops early
    by a stop rule of the config. On `device="cuda"` the same steps are taken on a GPU. A loss or weight that is
    not finite raises DivergedError; Ctrl-C raises KeyboardInterrupt; either way every checkpoint committed before is
    in the file, and `resume` continues from the last. With `track`, an experiment tracker gets the numbers of the run
    (`mechinterp.tracking`), which changes nothing of it.
    """
    require_config(config)
    require_path(path)
    if task is not None:
        require_task(task)
    if track:
        require_tracker(track)
        require_writable(Path(path), overwrite)
    config = pin_graft_digests(config if task is None else config_of_task(task, config))
    for intervention in config.interventions:
        if isinstance(intervention, Graft) and Path(intervention.run).resolve() == Path(path).resolve():
            raise ConfigError(f"{path}: is the run that is grafted from; choose another file for the new one")
    trained_on: Task = build_task(config) if task is None else task
    if task is not None:
        _require_batches(task)
    parameters = initial_parameters(config)
    for pattern in config.training.decayed:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise ConfigError(f"training.decayed: {unknown_name('parameter', pattern, parameters)}")
    ParameterInterventions(config).apply_scheduled(0, parameters)
    engine = build_engine(config, parameters, device=device)  # which begins to compile, beside the sampler of the task
    size, where = config.training.batch_size, config.training.loss_at
    first = trained_on.train_batch(0, min(size, 2))
    if where not in ("target", "all", *first.roles):
        raise ConfigError(f"training.loss_at: {unknown_name('role', where, ['target', 'all', *first.roles])}")
    if where != "target" and not bool((trained_on.train_batch(0, size).answers_at(where) >= 0).any()):
        raise ConfigError(
            f"training.loss_at = {where!r}: no position of the first batch has an answer there; choose another role,"
            " a larger training.batch_size or longer sequences"
        )
    ForwardInterventions(forward_interventions(config), first, config.model.n_layers - 1).hooks()  # raises if it cannot
    with tracking(track, path, config.model_dump(mode="json")) as tracker:
        writer = new_run_file(path, config, overwrite=overwrite, engine=engine.name, device=engine.device)
        _write_first(writer, engine.parameters, engine.states[0])
        rule, steps = StopRule(config, trained_on), range(config.training.steps)
        run = WrittenRun(config, trained_on, engine.parameters, writer, steps, rule, tracker=tracker)
        train_runs([run], engine, progress=progress)
    if run.error:
        raise run.error
    return open_run(path, task=trained_on)


@torch_defaults()
def resume(path: str | Path, *, until: int | None = None, task: Task | None = None, progress: bool = True) -> Run:
    """Continue a run from its last checkpoint, to the configured end or to step `until`; returns the run.

    The same bits follow as in a run that never stopped, if the environment is the same. The file that a killed writer
    has left is gone on with after its last checkpoint. An `until` beyond the configured end prolongs the run, without a
    stop rule. A run that another process is writing is refused.
    """
    require_path(path)
    if until is not None:
        require_integer("until", until, 0)
    with ExitStack() as unlocked:
        run, lock = _locked_run(path, task, unlocked)
        last, end = run.file.steps[-1], run.config.training.steps if until is None else until
        rule = None if until is not None else StopRule(run.config, run.task)
        if rule and rule.recall(run.file):
            if run.status != "running":
                raise MechinterpError(
                    f"{run.path}: its stop rule ended it at step {last}; go beyond it with --until STEP (until=)"
                )
            end = last  # its writer was killed before it recorded the end
        if end < last:
            raise MechinterpError(
                f"{run.path}: has reached step {last} already; name a later step to prolong it: --until STEP (until=)"
            )
        if end == last and run.status == "complete":
            return run
        config = run.config
        if end > config.training.steps:
            if config.training.schedule != "constant":
                raise MechinterpError(
                    f"{run.path}: its learning rate has a schedule that ends at step {config.training.steps}, beyond"
                    " which the run cannot be prolonged"
                )
            config = config.updated({"training.steps": end})
        device, state = usable_device(run.environment), moments_at(run.file, run.task, last)
        engine = build_engine(config, run.file.weights(last), run.environment.get("engine"), device, state)
        for change in environment_changes(run.environment):
            say(f"{run.path}: {change}; what follows is no longer the bits of the original environment")
        if run.status == "running":
            say(f"{run.path}: its writer was killed; goes on after {len(run.file.steps)} checkpoints, at step {last}")
        unfinished = "interrupted" if until is not None and end < config.training.steps else None
        recorded = run.file.metrics_at(last)
        with torch_threads(recorded_threads(run.environment)):
            writer = continued_run_file(run.file, lock, config, end, engine=engine.name, device=device)
            unlocked.pop_all()  # the writer has the lock now
            resumed = WrittenRun(
                config, run.task, engine.parameters, writer, range(last, end), rule, unfinished, recorded
            )
            train_runs([resumed], engine, progress=progress)
    if resumed.error:
        raise resumed.error
    return open_run(path, task=run.task)


@torch_defaults()
def train_batched(configs: Sequence[RunConfig], paths: Sequence[str | Path], *, device: Device = "cpu") -> list[Run]:
    """Train several runs in one batch, to one file per run; returns them in order.

    They must share model, task shape and batch size, and have no interventions on the forward pass.

    A file that exists already is resumed from its last checkpoint; one that is complete is left as it is. A run that
    diverges, or has before, does not affect the others; when they are done, DivergedError names it.
    """
    require_device(device)
    if not configs or isinstance(paths, str | Path) or len(configs) != len(paths):
        raise MechinterpError(f"{len(configs)} configs take as many paths, and at least one; the paths are {paths!r}")
    AutogradEngine(configs, [initial_parameters(config) for config in configs])  # raises if it cannot be
    runs: list[WrittenRun] = []
    diverged: list[DivergedError] = []
    try:
        for config, path in zip(configs, paths, strict=True):
            try:
                runs += _begun_or_resumed(config, Path(path), device)
            except DivergedError as error:
                diverged.append(error)
    except BaseException as error:
        for run in runs:
            run.close(error)
        raise
    train_runs(runs, device=device)
    diverged += [run.error for run in runs if run.error]
    if diverged:
        raise diverged[0]
    return [open_run(path) for path in paths]


def _begun_or_resumed(config: RunConfig, path: Path, device: str) -> list[WrittenRun]:
    """A run of a batch at its last checkpoint, or at the start; none if it is complete."""
    config, task = pin_graft_digests(config), build_task(config)
    rule, end = StopRule(config, task), config.training.steps
    if not path.exists():
        parameters = initial_parameters(config)
        ParameterInterventions(config).apply_scheduled(0, parameters)
        writer = new_run_file(path, config, engine=BATCHED, device=device)
        moments = {name: torch.zeros(array.shape) for name, array in writer.header.contents.optimizer.items()}
        _write_first(writer, parameters, moments)
        return [WrittenRun(config, task, parameters, writer, range(end), rule)]
    with ExitStack() as unlocked:
        run, lock = _locked_run(path, task, unlocked)
        if run.config != config:
            raise MechinterpError(f"{path}: holds another run; choose another file")
        if run.status == "complete":
            return []
        if run.status == "diverged":
            raise DivergedError(f"{path}: the run diverged; lower training.learning_rate")
        last = run.file.steps[-1]
        end = last if rule.recall(run.file) else end  # its writer was killed before it recorded the end
        weights, recorded, state = run.file.weights(last), run.file.metrics_at(last), moments_at(run.file, task, last)
        writer = continued_run_file(run.file, lock, config, end, engine=BATCHED, device=device)
        unlocked.pop_all()  # the writer has the lock now
        resumed = WrittenRun(config, task, weights, writer, range(last, end), rule, None, recorded)
        resumed.state = state
        return [resumed]


def _locked_run(path: str | Path, task: Task | None, unlocked: ExitStack) -> tuple[Run, FileLock]:
    """A run, and the right to write its file, which is given up when `unlocked` is left."""
    open_run(path, task=task)  # raises if it is none
    lock = unlocked.enter_context(lock_run_file(Path(path)))
    return open_run(path, task=task), lock


def _write_first(writer: RunWriter, parameters: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
    """Write the checkpoint of step 0; on an error, the file is closed."""
    try:
        writer.append(0, parameters, RunningMean().pop() | LossSpikes().pop(), optimizer=moments)
    except BaseException as error:
        writer.close(error)
        raise


def _require_batches(task: Task) -> None:
    """ConfigError unless a task's first batch has the shapes and types that networks take."""
    batch, name = task.train_batch(0, 2), type(task).__qualname__
    d_vocab = getattr(task, "d_vocab", 0)
    expected = ((2, task.n_pos), torch.int64) if d_vocab else ((2, task.n_pos, task.d_model), torch.float32)
    if (tuple(batch.inputs.shape), batch.inputs.dtype) != expected:
        got = f"{tuple(batch.inputs.shape)} {batch.inputs.dtype}"
        raise ConfigError(f"task {name}: inputs are {got}, expected {expected[0]} {expected[1]}")
    if d_vocab and not bool(((batch.inputs >= 0) & (batch.inputs < d_vocab)).all()):
        raise ConfigError(f"task {name}: its tokens must be numbers from 0 to {d_vocab - 1}")
    is_vector = batch.labels.shape == (2,) and batch.labels.dtype == torch.int64
    if not is_vector or not bool(((batch.labels >= 0) & (batch.labels < task.n_labels)).all()):
        raise ConfigError(f"task {name}: labels must be 2 int64 from 0 to {task.n_labels - 1}, got {batch.labels}")
    answers = batch.answers
    if answers is None:
        return
    if (tuple(answers.shape), answers.dtype) != ((2, task.n_pos), torch.int64):
        got = f"{tuple(answers.shape)} {answers.dtype}"
        raise ConfigError(f"task {name}: answers are {got}, expected {(2, task.n_pos)} torch.int64")
    if not bool(((answers >= -1) & (answers < task.n_labels)).all()) or not torch.equal(answers[:, -1], batch.labels):
        raise ConfigError(f"task {name}: answers must be -1 (none) to {task.n_labels - 1}, the last ones the labels")
