"""SGD by automatic differentiation through the forward pass: every network, one run or many in one batch.

The parameters of the runs are stacked, [run, …], and a step of all of them is one forward and backward pass under
`torch.func.vmap`. Batches, learning rate and decay of a run are those of training it alone; the order of floating-point
sums differs.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mechinterp.config import RunConfig
from mechinterp.errors import ConfigError
from mechinterp.interventions.forward import ForwardInterventions, forward_interventions
from mechinterp.models.forward import forward
from mechinterp.models.network import Network
from mechinterp.models.registry import parameter_shapes
from mechinterp.tasks.base import Batch
from mechinterp.training.engines.base import Engine, StepResult
from mechinterp.training.sgd import SGD

BATCHED = "batched"
"""The engine's name in the files of runs that were trained in one batch with others."""


class AutogradEngine(Engine):
    """One run, or several runs without forward interventions that share model, task shape and batch size."""

    name = "autograd"

    def __init__(self, configs: Sequence[RunConfig], parameters: Sequence[Mapping[str, Tensor]], device: str = "cpu"):
        super().__init__(configs, parameters, device)
        if len(configs) > 1:
            _require_alike(configs)
            self.name = BATCHED
        self._model = configs[0]
        self._stacked = {
            name: torch.stack([of_run[name].detach() for of_run in parameters]).to(device).requires_grad_()
            for name in parameters[0]
        }
        self._shared: dict[int, tuple[Tensor, Tensor]] = {}
        self._sgd = SGD([config.training for config in configs], self._stacked)
        self.runs = [
            {name: value.detach()[index] for name, value in self._stacked.items()} for index in range(len(configs))
        ]

    @classmethod
    def supports(cls, config: RunConfig, device: str) -> bool:
        """Always."""
        return True

    def step_runs(
        self, batches: Sequence[Batch], interventions: Sequence[ForwardInterventions | None]
    ) -> list[StepResult]:
        """One step of every run."""
        results, gradients = self._gradients(batches, interventions)
        norms = self._sgd.update(self._stacked, gradients)
        return [StepResult(*result, norm) for result, norm in zip(results, norms, strict=True)]

    def gradients(
        self, batch: Batch, interventions: ForwardInterventions | None = None
    ) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every parameter of the only run."""
        ((loss, accuracy),), gradients = self._gradients([batch], [interventions])
        return loss, accuracy, {name: value[0] for name, value in gradients.items()}

    def _gradients(
        self, batches: Sequence[Batch], interventions: Sequence[ForwardInterventions | None]
    ) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
        """Loss and accuracy of every run, and the stacked gradients."""
        like = self._stacked["classifier.readout.W"]
        inputs = [self._inputs(batch).to(self.device, like.dtype) for batch in batches]
        labels = torch.stack([batch.labels for batch in batches]).to(self.device)
        hooks = None
        if len(batches) == 1:
            hooks = interventions[0].hooks() if interventions[0] else None
            logits = self._logits({name: value[0] for name, value in self._stacked.items()}, inputs[0], hooks)[None]
        else:
            logits = torch.func.vmap(self._logits)(self._stacked, torch.stack(inputs))
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = losses.view(labels.shape).mean(dim=1)
        gradients = torch.autograd.grad(
            losses.sum(), list(self._stacked.values()), allow_unused=bool(hooks), materialize_grads=bool(hooks)
        )
        accuracies = (logits.argmax(dim=-1) == labels).double().mean(dim=1)
        results = list(zip(losses.tolist(), accuracies.tolist(), strict=True))
        return results, dict(zip(self._stacked, gradients, strict=True))

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
        return forward(Network(self._model, parameters), inputs, hooks, target_only=True)


def _require_alike(configs: Sequence[RunConfig]) -> None:
    first = configs[0]
    for config in configs:
        if config.model != first.model or parameter_shapes(config) != parameter_shapes(first):
            raise ConfigError("runs that are trained together need one model and one shape of task")
        if forward_interventions(config):
            raise ConfigError("a run with interventions on the forward pass is trained alone")
        if config.training.batch_size != first.training.batch_size:
            raise ConfigError("runs that are trained together need one batch size")
