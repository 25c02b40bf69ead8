"""Engines whose parameters are views of one flat buffer, so that an update is one operation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from mechinterp.config import RunConfig, TrainingConfig
from mechinterp.models.parameters import parameter_shapes
from mechinterp.tasks.base import Batch


class FlatEngine(ABC):
    """Takes steps of SGD by gradients that a subclass writes out: the same step as `HookedEngine`'s."""

    name, device = "fused", "cpu"

    def __init__(self, config: RunConfig, parameters: dict[str, Tensor], device: str = "cpu"):
        self.device = device
        self._training, self._n_labels = config.training, config.task.n_labels
        shapes, kind = parameter_shapes(config), parameters["classifier.readout.W"].to(device)
        self._flat, self.parameters = flat_views(shapes, kind)
        self._flat_gradient, self._gradients = flat_views(shapes, kind)
        for name, value in parameters.items():
            self.parameters[name].copy_(value)

    def step(self, batch: Batch) -> tuple[float, float]:
        """p ← (1−shrinkage)·p − lr·∂ℒ/∂p; returns loss ℒ and accuracy on the batch, before the update."""
        loss, accuracy, _ = self.gradients(batch)
        self._descend()
        return loss, accuracy

    @abstractmethod
    def gradients(self, batch: Batch) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every parameter (overwritten next time)."""

    def _descend(self) -> None:
        descend(self._training, self._flat, self._flat_gradient, self.parameters)

    def _new(self, _: str, *shape: int) -> Tensor:
        """Memory for what lies between, new every time."""
        return self._flat.new_empty(shape)


def descend(training: TrainingConfig, flat: Tensor, gradient: Tensor, parameters: Mapping[str, Tensor]) -> None:
    """p ← (1−shrinkage)·p − lr·∂ℒ/∂p, of parameters that are views of one flat buffer."""
    if training.attention_weight_decay is not None:
        for name, value in parameters.items():
            value.mul_(1 - training.shrinkage(name))
    elif training.weight_decay:
        flat.mul_(1 - training.shrinkage("classifier"))
    flat.sub_(gradient, alpha=training.learning_rate)


def flat_views(shapes: dict[str, tuple[int, ...]], kind: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """One flat buffer of the dtype and device of `kind`, and named views of it."""
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    flat = kind.new_zeros(sum(sizes))
    pieces = flat.split(sizes)
    return flat, {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
