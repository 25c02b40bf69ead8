"""Gradients by automatic differentiation of the forward pass: every network, one run or many in one batch.

The parameters of several runs are stacked, [run, …], and a step of all of them is one forward and backward pass under
`torch.func.vmap`. Batches, learning rate and decay of a run are those of training it alone; the order of floating-point
sums differs.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import ConfigError
from mechinterp.interventions.forward import ForwardInterventions, forward_interventions
from mechinterp.models.classifier import require_labels
from mechinterp.models.forward import Tap, run_unchecked
from mechinterp.models.network import Network, require_inputs
from mechinterp.models.registry import parameter_shapes
from mechinterp.tasks.base import Batch
from mechinterp.training.engines.base import Engine, StepResult
from mechinterp.training.objective import answer_losses, trained_answers
from mechinterp.training.optimizers import Optimizer, alike, by_name

BATCHED = "batched"
"""The engine's name in the files of runs that were trained in one batch with others."""
_ALIKE = ("batch_size", "loss", "loss_at", "optimizer", "momentum", "beta1", "beta2", "epsilon")
"""Settings of training in which runs that are trained together must agree."""


class AutogradEngine(Engine):
    """One run, or several runs without forward interventions that share model, task shape and batch size."""

    name = "autograd"

    def __init__(self, configs: Sequence[RunConfig], parameters: Sequence[Mapping[str, Tensor]], device: str = "cpu"):
        super().__init__(configs, parameters, device)
        if len(configs) > 1:
            _require_alike(configs)
            self.name = BATCHED
        self._model = configs[0]
        self._shared: dict[int, tuple[Tensor, Tensor]] = {}
        trainings, every = [config.training for config in configs], range(len(configs))
        self._parts = alike(trainings, {name: value.shape for name, value in parameters[0].items()})
        self._flat = {
            first: torch.stack([torch.cat([run[name].detach().flatten() for name in part]) for run in parameters]).to(
                device
            )
            for first, part in self._parts.items()
        }
        """The parameters of all runs, [run, …]: those updated alike as one tensor, under the name of the first."""
        self._optimizer = Optimizer(trainings, self._flat)
        self.states = [by_name(self._optimizer.state(run), self._parts) for run in every]
        views = [by_name({first: value[run] for first, value in self._flat.items()}, self._parts) for run in every]
        self.runs = [{name: of_run[name] for name in parameters[0]} for of_run in views]
        stacked = self.runs[0] if len(configs) == 1 else by_name(self._flat, self._parts)
        self._leaves = {name: stacked[name].detach().requires_grad_() for name in parameters[0]}
        """Those that gradients are computed of: views, without the axis of runs if there is one."""

    @classmethod
    def supports(cls, config: RunConfig, device: str) -> bool:
        """Always."""
        return True

    def step_runs(
        self,
        batches: Sequence[Batch],
        interventions: Sequence[ForwardInterventions | None],
        steps: Sequence[int] | None = None,
    ) -> list[StepResult]:
        """One step of every run; a label that no output answers to raises MechinterpError."""
        for batch, step in zip(batches, steps or [0] * len(batches), strict=True):
            require_labels(batch, self._model.task.n_labels, step)
            if self._model.task.d_vocab:
                require_inputs(batch.inputs, (), self._model.task.d_vocab)
        results, gradients = self._gradients(batches, interventions)
        flat = {
            first: torch.cat([gradients[name].reshape(len(batches), -1) for name in part], dim=1)
            for first, part in self._parts.items()
        }
        norms = self._optimizer.update(self._flat, flat, steps)
        return [StepResult(*result, norm) for result, norm in zip(results, norms, strict=True)]

    def gradients(
        self, batch: Batch, interventions: ForwardInterventions | None = None
    ) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every parameter of the only run."""
        ((loss, accuracy),), gradients = self._gradients([batch], [interventions])
        return loss, accuracy, gradients

    def _gradients(
        self, batches: Sequence[Batch], interventions: Sequence[ForwardInterventions | None]
    ) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
        """Loss and accuracy of every run, and the gradients of the leaves."""
        dtype, training = next(iter(self._leaves.values())).dtype, self._model.training
        inputs = [self._inputs(batch).to(self.device) for batch in batches]
        inputs = [tokens.to(dtype) if tokens.is_floating_point() else tokens for tokens in inputs]
        labels = torch.stack([trained_answers(training, batch) for batch in batches]).to(self.device)
        hooks = None
        if len(batches) == 1:
            hooks = interventions[0].hooks() if interventions[0] else None
            logits = self._logits(self._leaves, inputs[0], hooks)[None]
        else:
            logits = torch.func.vmap(self._logits)(self._leaves, torch.stack(inputs))
        losses, right = answer_losses(training, logits, labels), logits.argmax(dim=-1) == labels
        if training.loss_at == "target":
            losses, accuracies = losses.mean(dim=1), right.double().mean(dim=1)
        else:
            count = (labels >= 0).sum(dim=(1, 2)).clamp(min=1)  # a batch without an answer there has loss 0
            losses, accuracies = losses.sum(dim=(1, 2)) / count, right.double().sum(dim=(1, 2)) / count
        gradients = torch.autograd.grad(
            losses.sum(), list(self._leaves.values()), allow_unused=bool(hooks), materialize_grads=bool(hooks)
        )
        results = list(zip(losses.tolist(), accuracies.tolist(), strict=True))
        return results, dict(zip(self._leaves, gradients, strict=True))

    def _inputs(self, batch: Batch) -> Tensor:
        """The tokens of a batch; on a GPU, contents that all batches share are looked up there."""
        table = batch.table
        if self.device == "cpu" or table is None or table.own.shape[1] or table.position_dim:
            return batch.inputs
        kept = self._shared.get(id(table.shared))
        if kept is None:
            kept = self._shared[id(table.shared)] = (
                table.shared,
                table.shared.to(self.device),
            )  # both, so the id stays
        return kept[1][table.content.to(self.device, non_blocking=True)]

    def _logits(self, parameters: dict[str, Tensor], inputs: Tensor, hooks: dict | None = None) -> Tensor:
        network, at_target = Network(self._model, parameters), self._model.training.loss_at == "target"
        activations = run_unchecked(network, inputs, Tap(hooks, fused_attention=len(self.runs) == 1), at_target)
        return activations.logits if at_target else activations["unembed.hook_out"]


def _require_alike(configs: Sequence[RunConfig]) -> None:
    first = configs[0]
    for config in configs:
        if config.model != first.model or parameter_shapes(config) != parameter_shapes(first):
            raise ConfigError("runs that are trained together need one model and one shape of task")
        if forward_interventions(config):
            raise ConfigError("a run with interventions on the forward pass is trained alone")
        pairs = [(getattr(config.training, name), getattr(first.training, name)) for name in _ALIKE]
        in_gradient = [run.training.decay_kind == "gradient" for run in (config, first)]
        if any(ours != theirs for ours, theirs in (*pairs, in_gradient)):
            raise ConfigError(
                "runs that are trained together need one batch size, loss and optimizer; rates and decays may differ"
            )
