"""SGD by an architecture's formulas for the gradient (`Architecture.gradients`), in torch operations."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.interventions.forward import ForwardInterventions, forward_interventions
from mechinterp.models.base import Gradients
from mechinterp.models.registry import architecture_of, parameter_shapes
from mechinterp.tasks.base import Batch
from mechinterp.training.engines.base import Engine, StepResult, pull_back
from mechinterp.training.optimizers import Optimizer


class AnalyticEngine(Engine):
    """One run whose architecture or canonical network has formulas for the gradient."""

    name = "analytic"

    def __init__(self, configs: Sequence[RunConfig], parameters: Sequence[Mapping[str, Tensor]], device: str = "cpu"):
        super().__init__(configs, parameters, device)
        (self._config,), (start,) = configs, parameters
        shapes, like = parameter_shapes(self._config), start["classifier.readout.W"]
        self._flat, current = flat_views(shapes, like)
        self._flat_gradients, self._gradients = flat_views(shapes, like)
        for name, value in start.items():
            current[name].copy_(value)
        self.runs = [current]
        self._optimizer = Optimizer([self._config.training], self._flat)
        self._architecture = architecture_of(self._config)
        self._canonical: RunConfig | None = None
        self._canonical_gradients: dict[str, Tensor] = {}
        if not self._architecture.has_gradients(self._config):
            self._canonical = self._architecture.canonical(self._config, current).config

    @classmethod
    def supports(cls, config: RunConfig, device: str) -> bool:
        """Plain SGD on the CPU, without interventions on the forward pass."""
        if device != "cpu" or forward_interventions(config) or not config.training.is_plain:
            return False
        architecture = architecture_of(config)
        return architecture.has_gradients(config) or architecture.canonical_has_gradients(config)

    def step_runs(
        self,
        batches: Sequence[Batch],
        interventions: Sequence[ForwardInterventions | None],
        steps: Sequence[int] | None = None,
    ) -> list[StepResult]:
        """One step of the only run."""
        loss, accuracy, _ = self.gradients(batches[0])
        (norm,) = self._optimizer.update(self._flat, self._flat_gradients)
        return [StepResult(loss, accuracy, norm)]

    @torch.no_grad()
    def gradients(self, batch: Batch) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every parameter (overwritten next time)."""
        if self._canonical is None:
            loss, correct = self._architecture.gradients(self._config, self.parameters, batch, self._gradients)
        else:
            loss, correct = self._through_canonical(self._canonical, batch)
        return loss.item(), correct.item() / len(batch), self._gradients

    def _through_canonical(self, config: RunConfig, batch: Batch) -> Gradients:
        """The gradients of the canonical network, of this config, pulled back."""
        parameters = self._architecture.canonical(self._config, self.parameters).parameters
        if not self._canonical_gradients:
            self._canonical_gradients = {name: torch.empty_like(value) for name, value in parameters.items()}
        result = architecture_of(config).gradients(config, parameters, batch, self._canonical_gradients)
        for name, gradient in pull_back(self._config, self.parameters, self._canonical_gradients).items():
            self._gradients[name].copy_(gradient)
        return result


def flat_views(shapes: Mapping[str, tuple[int, ...]], like: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two flat buffers of the dtype of `like`, of attention and of the classifier, and named views of them."""
    flat, views = {}, {}
    for part in ("blocks.", "classifier."):
        named = {name: shape for name, shape in shapes.items() if name.startswith(part)}
        sizes = [torch.Size(shape).numel() for shape in named.values()]
        flat[part] = like.new_zeros(sum(sizes))
        pieces = flat[part].split(sizes)
        views |= {name: piece.view(shape) for (name, shape), piece in zip(named.items(), pieces, strict=True)}
    return flat, views
