"""One step of SGD by automatic differentiation through the hooked model: the reference for every other engine."""

import torch
from torch import Tensor
from torch.nn import functional

from mechinterp.config import RunConfig
from mechinterp.models.induction_head import InductionHead
from mechinterp.models.transformer import VectorTransformer, build_model
from mechinterp.tasks.base import Batch


class HookedEngine:
    """Advances the parameters of a hooked model; slow, and as simple as can be."""

    name = "hooked"

    def __init__(self, config: RunConfig, parameters: dict[str, Tensor], device: str = "cpu"):
        self.device = device
        self._training = config.training
        if config.model.kind == "induction_head":
            self.model: InductionHead | VectorTransformer = InductionHead(config, parameters)
            self.model.to(device)
        else:
            self.model = build_model(config, parameters).to(device, print_details=False)
        by_name = dict(self.model.named_parameters())
        self.parameters: dict[str, Tensor] = {name: by_name[name] for name in self.model.trained}
        """The trained parameters, updated in place by `step`."""

    def step(self, batch: Batch) -> tuple[float, float]:
        """p ← (1−shrinkage)·p − lr·∂ℒ/∂p; returns loss ℒ and accuracy on the batch, before the update."""
        loss, accuracy, gradients = self.gradients(batch)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if shrinkage := self._training.shrinkage(name):
                    parameter.mul_(1 - shrinkage)
                parameter.sub_(gradients[name], alpha=self._training.learning_rate)
        return loss, accuracy

    def gradients(self, batch: Batch) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every trained parameter."""
        labels = batch.labels.to(self.device)
        logits = self.model(batch.inputs.to(self.device))
        loss = functional.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        accuracy = (logits.argmax(dim=-1) == labels).double().mean()
        return loss.item(), accuracy.item(), dict(zip(self.parameters, gradients, strict=True))
