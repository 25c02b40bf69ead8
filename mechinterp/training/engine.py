"""Engines advance the parameters by one step of SGD. All take the same step; they differ in speed and reach."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.tasks.base import Batch
from mechinterp.training.fused import FusedEngine


@runtime_checkable
class Engine(Protocol):
    """Holds the parameters and advances them."""

    name: str
    parameters: dict[str, Tensor]

    def step(self, batch: Batch) -> tuple[float, float]:
        """Update the parameters in place; return the batch's loss and accuracy before the update."""
        ...


def build_engine(config: RunConfig, parameters: dict[str, Tensor], name: str | None = None) -> Engine:
    """The fastest engine that computes this network exactly: fused where it fits, else the hooked model's autograd.

    `name` asks for the engine that a run was trained with.
    """
    if FusedEngine.fits(config) and name != "hooked":
        return FusedEngine(config, parameters)
    from mechinterp.training.hooked import HookedEngine  # imports TransformerLens, which takes seconds

    return HookedEngine(config, parameters)
