"""The fused engine: SGD of networks of any convention by kernels for the canonical network."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mechinterp.attention_patterns import AttentionPattern
from mechinterp.config import Clamp, RunConfig, TransformerConfig
from mechinterp.errors import member
from mechinterp.interventions.forward import ForwardInterventions, forward_interventions
from mechinterp.models.registry import architecture_of
from mechinterp.tasks.base import Batch
from mechinterp.training.engines.base import Engine, StepResult, pull_back
from mechinterp.training.engines.fused.driver import FusedStep
from mechinterp.training.optimizers import Optimizer


class FusedEngine(Engine):
    """One run of a network of two layers with one head, of any convention, also with clamped attention patterns.

    The kernels compute the gradient of the canonical network, and update its parameters if these are the trained ones.
    """

    name = "fused"

    def __init__(self, configs: Sequence[RunConfig], parameters: Sequence[Mapping[str, Tensor]], device: str = "cpu"):
        super().__init__(configs, parameters, device)
        (self._config,), (start,) = configs, parameters
        canonical = architecture_of(self._config).canonical(self._config, start)
        self._kernels = FusedStep(canonical.config, canonical.parameters)
        self._optimizer: Optimizer | None = None
        self.runs = [self._kernels.parameters]
        if canonical.config != self._config or self._config.training.attention_weight_decay is not None:
            self.runs = [{name: value.detach().clone() for name, value in start.items()}]
            self._optimizer = Optimizer([self._config.training], start)

    @classmethod
    def supports(cls, config: RunConfig, device: str) -> bool:
        """Two classic layers of one head by plain SGD on the CPU, without optional parameters.

        Of interventions, clamped patterns of layer 1 and of the target's row of layer 2.
        """
        model = config.model
        if device != "cpu" or not isinstance(model, TransformerConfig) or (model.n_layers, model.n_heads) != (2, 1):
            return False
        if model.trained_layer_norm or model.readout_bias or not (model.is_classic and config.training.is_plain):
            return False
        return all(
            isinstance(intervention, Clamp)
            and (intervention.layer == 1 or member(AttentionPattern, intervention.pattern).is_whole)
            for intervention in forward_interventions(config)
        )

    def step_runs(
        self,
        batches: Sequence[Batch],
        interventions: Sequence[ForwardInterventions | None],
        steps: Sequence[int] | None = None,
    ) -> list[StepResult]:
        """One step of the only run."""
        if self._optimizer is None:
            return [self._kernels.step(batches[0], interventions[0])]
        loss, accuracy, gradients = self.gradients(batches[0], interventions[0])
        (norm,) = self._optimizer.update(self.parameters, gradients)
        return [StepResult(loss, accuracy, norm)]

    def gradients(
        self, batch: Batch, interventions: ForwardInterventions | None = None
    ) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every parameter (overwritten next time)."""
        if self._optimizer is None:
            return self._kernels.gradients(batch, interventions)
        with torch.no_grad():
            canonical = architecture_of(self._config).canonical(self._config, self.parameters).parameters
            for name, value in canonical.items():
                self._kernels.parameters[name].copy_(value)
        loss, accuracy, gradients = self._kernels.gradients(batch, interventions)
        return loss, accuracy, pull_back(self._config, self.parameters, gradients)
