"""One step of SGD by automatic differentiation through the hooked model: the reference for every other engine."""

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from mechinterp.config import RunConfig
from mechinterp.models.hooked import HookedNetwork
from mechinterp.models.network import Network
from mechinterp.tasks.base import Batch
from mechinterp.training.engines import StepResult


class ReferenceEngine:
    """Advances parameters through TransformerLens' forward pass; slow, and as simple as can be.

    Parameters of an architecture that is not canonical are differentiated through its canonical network.
    """

    def __init__(self, config: RunConfig, parameters: dict[str, Tensor]):
        self._config = config
        self.parameters = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        """The trained parameters, updated in place by `step`."""
        self.model = HookedNetwork(Network(config, parameters))

    def step(self, batch: Batch) -> StepResult:
        """p ← (1−λ)·p − lr·∂ℒ/∂p; returns loss ℒ, accuracy and ‖∂ℒ/∂p‖ on the batch, before the update."""
        loss, accuracy, gradients = self.gradients(batch)
        training = self._config.training
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if decay := training.decay_factor(name):
                    parameter.mul_(1 - decay)
                parameter.sub_(gradients[name], alpha=training.learning_rate)
        norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item()
        return StepResult(loss, accuracy, norm)

    def gradients(self, batch: Batch) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every trained parameter."""
        canonical = Network(self._config, self.parameters).parameters
        logits = functional_call(self.model, canonical, (batch.inputs,))
        loss = functional.cross_entropy(logits, batch.labels)
        gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        accuracy = (logits.argmax(dim=-1) == batch.labels).double().mean()
        return loss.item(), accuracy.item(), dict(zip(self.parameters, gradients, strict=True))
