"""The interface of engines, which update the parameters of one run, or of several of one shape, by SGD."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.interventions.forward import ForwardInterventions
from mechinterp.models.registry import architecture_of
from mechinterp.tasks.base import Batch


class StepResult(NamedTuple):
    """Numbers of an update, all of before it."""

    loss: float
    """The loss of the batch, by default the mean cross-entropy at the target, nats."""
    accuracy: float
    """Share of targets classified correctly."""
    gradient_norm: float
    """Euclidean norm of the loss's gradient with respect to all parameters, also those that an intervention freezes;
    without weight decay."""


class Engine(ABC):
    """Takes steps of the config's optimizer (`training.optimizers`) on its loss ℒ.

    Losses, accuracies and gradients are those of the forward pass under interventions.
    """

    name: str = ""
    """Its name in run files; unique."""

    def __init__(self, configs: Sequence[RunConfig], parameters: Sequence[Mapping[str, Tensor]], device: str = "cpu"):
        self.device = device
        self.runs: list[dict[str, Tensor]] = []
        """The parameters of every run, by name: views of the tensors that are updated."""
        self.states: list[dict[str, Tensor]] = [{} for _ in configs]
        """The optimizer's moments of every run, by parameter and moment: views as well."""

    def restore(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on from these moments of every run; at first all are 0, which an empty state leaves."""
        for current, stored in zip(self.states, states, strict=True):
            for name, value in stored.items():
                current[name].copy_(value)

    @classmethod
    @abstractmethod
    def supports(cls, config: RunConfig, device: str) -> bool:
        """Whether it can compute a run exactly on a device."""

    @abstractmethod
    def step_runs(
        self,
        batches: Sequence[Batch],
        interventions: Sequence[ForwardInterventions | None],
        steps: Sequence[int] | None = None,
    ) -> list[StepResult]:
        """Update every run on its batch, in place; `steps` are those before the update, by default 0."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters of the first run."""
        return self.runs[0]

    def step(self, batch: Batch, interventions: ForwardInterventions | None = None, step: int = 0) -> StepResult:
        """Update the only run, from a step, on a batch."""
        return self.step_runs([batch], [interventions], [step])[0]


def pull_back(
    config: RunConfig, parameters: Mapping[str, Tensor], canonical_gradients: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The gradient with respect to an architecture's parameters, from that with respect to its canonical network's.

    It is the vector–Jacobian product of `Architecture.canonical`.
    """
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        canonical = architecture_of(config).canonical(config, leaves).parameters
    same = {name for name, leaf in leaves.items() if canonical.get(name) is leaf}
    changed = [name for name, value in canonical.items() if name not in same and value.requires_grad]
    slopes = torch.autograd.grad(
        [canonical[name] for name in changed],
        list(leaves.values()),
        [canonical_gradients[name] for name in changed],
        allow_unused=True,
    )
    gradients = {}
    for name, slope in zip(leaves, slopes, strict=True):
        direct = canonical_gradients[name] if name in same else None
        terms = [term for term in (direct, slope) if term is not None]
        gradients[name] = sum(terms[1:], terms[0]) if terms else torch.zeros_like(leaves[name])
    return gradients
