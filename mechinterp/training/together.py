"""Many runs in one batch: on a GPU, one network as small as these leaves nearly all of it idle.

The runs' parameters are stacked, [run, …], and a step of all of them is one forward and backward pass of the plain
function under `torch.func.vmap`. Each run draws the very batches that it draws alone, keeps its own learning rate and
decay, and leaves when it is done; what differs from training it alone is the order of floating-point sums. On the CPU,
where `fused` computes one run many times faster than autograd, nothing is gained by it.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from mechinterp.config import RunConfig
from mechinterp.errors import ConfigError, DivergedError, MechinterpError
from mechinterp.models.conventions import folded
from mechinterp.models.functional import forward
from mechinterp.models.parameters import initial_parameters, parameter_shapes
from mechinterp.store import Run, RunWriter, open_run
from mechinterp.tasks.base import Batch, Task
from mechinterp.training.engine import TOGETHER, Device, require_device
from mechinterp.training.loop import RecentMean
from mechinterp.training.stopping import StopRule


class TogetherEngine:
    """Advances the parameters of several runs of one model by SGD, each on its own batch."""

    name = TOGETHER

    def __init__(self, configs: Sequence[RunConfig], parameters: Sequence[dict[str, Tensor]], device: str = "cpu"):
        first = configs[0]
        for config in configs:
            if config.model != first.model or parameter_shapes(config) != parameter_shapes(first):
                raise ConfigError("runs that are trained together need one model and one shape of task")
            if config.interventions:
                raise ConfigError("a run with interventions is trained alone")
        self.device, self._model = device, first
        self._stacked = {
            name: torch.stack([each[name].detach() for each in parameters]).to(device).requires_grad_()
            for name in parameters[0]
        }
        kind = next(iter(self._stacked.values()))
        self._learning_rates = kind.new_tensor([config.training.learning_rate for config in configs])
        self._shrinkages = {
            name: kind.new_tensor([config.training.shrinkage(name) for config in configs]) for name in self._stacked
        }

    def of(self, index: int) -> dict[str, Tensor]:
        """The parameters of one run: views of what the engine updates."""
        return {name: value.detach()[index] for name, value in self._stacked.items()}

    def step(self, batches: Sequence[Batch]) -> tuple[list[float], list[float]]:
        """p ← (1−shrinkage)·p − lr·∂ℒ/∂p for every run; their losses ℒ and accuracies, before the update."""
        kind = next(iter(self._stacked.values()))
        inputs = torch.stack([batch.inputs for batch in batches]).to(kind)
        labels = torch.stack([batch.labels for batch in batches]).to(kind.device)
        logits = torch.func.vmap(self._logits)(self._stacked, inputs)
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = losses.view(labels.shape).mean(dim=1)
        gradients = torch.autograd.grad(losses.sum(), list(self._stacked.values()))
        with torch.no_grad():
            for (name, value), gradient in zip(self._stacked.items(), gradients, strict=True):
                per_run = (-1, *[1] * (value.ndim - 1))
                value.mul_(1 - self._shrinkages[name].view(per_run))
                value.addcmul_(gradient, self._learning_rates.view(per_run), value=-1)
        accuracies = (logits.argmax(dim=-1) == labels).double().mean(dim=1)
        return losses.tolist(), accuracies.tolist()

    def _logits(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return forward(folded(self._model, parameters), inputs, target_only=True)[0]


@dataclass
class _Member:
    """One of the runs."""

    config: RunConfig
    task: Task
    writer: RunWriter
    step: int
    parameters: dict[str, Tensor]
    stop: StopRule
    recent: RecentMean = field(default_factory=RecentMean)
    error: DivergedError | None = None
    done: bool = False

    def __post_init__(self) -> None:
        self._scheduled = {*self.config.checkpoints.schedule(self.config.training.steps)}
        self.done = self.step >= self.config.training.steps

    def draw(self, step: int) -> Batch:
        """The training batch of a step."""
        return self.task.train_batch(step, self.config.training.batch_size)

    def advanced(self, loss: float, accuracy: float, parameters: Callable[[], dict[str, Tensor]]) -> None:
        """Count one step; a checkpoint where it is due. A run that ends, or diverges, is done."""
        try:
            if not math.isfinite(loss):
                raise DivergedError(f"the loss is {loss} at step {self.step}; lower training.learning_rate")
            self.recent.add(loss, accuracy)
            self.step += 1
            if self.step in self._scheduled:
                weights, metrics = parameters(), self.recent.take()
                self.writer.append(self.step, weights, metrics)
                if self.stop.reached(self.step, weights, metrics) or self.step == self.config.training.steps:
                    self.leave(None)
        except DivergedError as error:
            self.error = error
            self.leave(error)

    def leave(self, error: BaseException | None) -> None:
        """Close the file, saying how the run ended."""
        self.done = True
        self.writer.__exit__(error and type(error), error, None)


def train_together(configs: Sequence[RunConfig], paths: Sequence[str | Path], *, device: Device = "cpu") -> list[Run]:
    """Train several runs in one batch, each to its own file; returns them in order. They need one model, one shape of
    task and one batch size, and no interventions.

    A file that exists already is resumed from its last checkpoint; one that is complete is left as it is. A run that
    diverges, or has before, leaves the others alone; when they are done, DivergedError names it.
    """
    require_device(device)
    if len({config.training.batch_size for config in configs}) > 1:
        raise ConfigError("runs that are trained together need one batch size")
    TogetherEngine(configs, [initial_parameters(config) for config in configs])  # is refused if it cannot be
    members: list[_Member] = []
    wild: list[str] = []
    try:
        for config, path in zip(configs, paths, strict=True):
            try:
                member = _member(config, Path(path), device)
            except DivergedError as error:
                wild.append(str(error))
            else:
                members += [member] if member else []
        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="sampler") as samplers:
            while going := [member for member in members if not member.done]:
                _advance(going, samplers, device)
    except BaseException as error:
        for member in members:
            if not member.done:
                member.leave(error)
        raise
    wild += [f"{member.writer.path}: {member.error}" for member in members if member.error]
    if wild:
        raise DivergedError(wild[0])
    return [open_run(path) for path in paths]


def _member(config: RunConfig, path: Path, device: str) -> _Member | None:
    """A run at its last checkpoint, or at the start; None if it is complete."""
    task = config.build_task()
    stop = StopRule(config, task)
    if not path.exists():
        writer, parameters = RunWriter(path, config, engine=TOGETHER, device=device), initial_parameters(config)
        writer.append(0, parameters, RecentMean().take())
        return _Member(config, task, writer, 0, parameters, stop)
    run = open_run(path)
    if run.config != config:
        raise MechinterpError(f"{path}: holds another run; choose another file")
    if run.status == "complete":
        return None
    if run.status == "diverged":
        raise DivergedError(f"{path}: the run diverged; lower training.learning_rate")
    last, ended = run.file.steps[-1], stop.recall(run.file)
    writer = RunWriter(path, config, continues=run.file, last=last, engine=TOGETHER, device=device)
    member = _Member(config, task, writer, last, run.file.weights(last), stop)
    if ended or member.done:  # its writer was killed before it could say so
        member.leave(None)
    return member


def _advance(going: list[_Member], samplers: ThreadPoolExecutor, device: str) -> None:
    """Steps of all these runs, until one of them is done."""
    engine = TogetherEngine([member.config for member in going], [member.parameters for member in going], device)
    waiting = [samplers.submit(member.draw, member.step) for member in going]
    while not any(member.done for member in going):
        batches = [each.result() for each in waiting]
        waiting = [samplers.submit(member.draw, member.step + 1) for member in going]  # while this step runs
        losses, accuracies = engine.step(batches)
        for index, member in enumerate(going):
            member.advanced(losses[index], accuracies[index], partial(engine.of, index))
    for index, member in enumerate(going):
        member.parameters = {name: value.clone() for name, value in engine.of(index).items()}
