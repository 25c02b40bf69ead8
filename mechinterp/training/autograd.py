"""One step of SGD by automatic differentiation through the plain function of the network: whatever it is."""

import torch
from torch import Tensor
from torch.nn import functional

from mechinterp.config import RunConfig
from mechinterp.models.conventions import folded
from mechinterp.models.functional import forward
from mechinterp.tasks.base import Batch
from mechinterp.training.interventions import Under


class AutogradEngine:
    """Advances the parameters of any model by SGD; the same step as `HookedEngine`, several times faster."""

    name = "autograd"

    def __init__(self, config: RunConfig, parameters: dict[str, Tensor], device: str = "cpu"):
        self.device, self._config, self._training = device, config, config.training
        self.parameters = {
            name: value.detach().to(device, copy=True).requires_grad_() for name, value in parameters.items()
        }

    def step(self, batch: Batch, under: Under | None = None) -> tuple[float, float]:
        """p ← (1−shrinkage)·p − lr·∂ℒ/∂p; returns loss ℒ and accuracy on the batch, before the update.

        Both, and the gradient, are those of the forward pass under interventions.
        """
        loss, accuracy, gradients = self.gradients(batch, under)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if shrinkage := self._training.shrinkage(name):
                    parameter.mul_(1 - shrinkage)
                parameter.sub_(gradients[name], alpha=self._training.learning_rate)
        return loss, accuracy

    def gradients(self, batch: Batch, under: Under | None = None) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every parameter."""
        labels, hooks = batch.labels.to(self.device), under.hooks() if under else None
        inputs = batch.inputs.to(self.device, self.parameters["classifier.readout.W"].dtype)
        logits, _ = forward(folded(self._config, self.parameters), inputs, hooks, target_only=True)
        loss = functional.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(
            loss, list(self.parameters.values()), allow_unused=bool(hooks), materialize_grads=bool(hooks)
        )
        accuracy = (logits.argmax(dim=-1) == labels).double().mean()
        return loss.item(), accuracy.item(), dict(zip(self.parameters, gradients, strict=True))
