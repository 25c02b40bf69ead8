"""Engines advance the parameters by one step of SGD. All take the same step; they differ in speed and reach.

| engine   | computes                                            | on                                   |
|----------|-----------------------------------------------------|--------------------------------------|
| fused    | one or two layers of one head, the minimal models   | CPU: gradients by hand               |
| folded   | such a transformer of another convention or decay   | CPU: fused, and the chain rule       |
| captured | two layers of one head                              | CUDA: the whole step as one graph    |
| autograd | every network, under all interventions               | both: autograd of a plain function   |
| together | many runs of one network in one batch               | both: autograd under vmap            |
| hooked   | every network                                       | both: autograd of the hooked model   |
"""

from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError
from mechinterp.models.conventions import plain
from mechinterp.tasks.base import Batch
from mechinterp.training.interventions import Under, acts_on_activations, only_clamps_patterns

Device = Literal["cpu", "cuda"]
TOGETHER = "together"
"""The engine of runs that were trained in one batch (`training.together`); alone, such a run is replayed by another."""


def require_device(device: str) -> None:
    """Refuse a device that is not there."""
    if device not in ("cpu", "cuda"):
        raise MechinterpError(f"there is no device {device!r}; known: 'cpu', 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise MechinterpError("torch finds no CUDA device; use --device cpu, or install torch's CUDA build")


@runtime_checkable
class Engine(Protocol):
    """Holds the parameters and advances them."""

    name: str
    parameters: dict[str, Tensor]
    device: str

    def step(self, batch: Batch) -> tuple[float, float]:
        """Update the parameters in place; return the batch's loss and accuracy before the update."""
        ...


class EngineUnder(Engine, Protocol):
    """An engine that takes steps under interventions on activations, which `build_engine` gives a run that has some."""

    def step(self, batch: Batch, under: Under | None = None) -> tuple[float, float]:
        """The same, of the forward pass under interventions."""
        ...


def build_engine(
    config: RunConfig, parameters: dict[str, Tensor], name: str | None = None, device: str = "cpu"
) -> Engine:
    """The fastest engine that computes this network exactly on this device.

    With a `name`, "hooked" or "autograd", as a run that was trained so asks for, it is always that one. A device that
    is not there raises MechinterpError.
    """
    require_device(device)
    # Imported when needed: TransformerLens and compiled kernels take seconds.
    conventional = plain(config) != config
    if name == "hooked":
        if conventional:
            raise MechinterpError(
                "the hooked engine trains plain networks; use 'autograd' for this config's convention"
            )
        from mechinterp.training.hooked import HookedEngine

        return HookedEngine(config, parameters, device)
    by_hand = name != "autograd" and config.model.n_layers <= 2 and config.model.n_heads == 1
    one_layer = config.model.n_layers == 1
    if acts_on_activations(config):
        clampable = config.model.kind == "transformer" and not one_layer and only_clamps_patterns(config)
        by_hand = by_hand and device == "cpu" and clampable
    if by_hand and device == "cpu":
        return _by_hand(config, parameters, conventional or config.training.attention_weight_decay is not None)
    if by_hand and config.model.kind == "transformer" and not conventional and not one_layer:
        from mechinterp.training.captured import CapturedEngine

        return CapturedEngine(config, parameters, device)
    from mechinterp.training.autograd import AutogradEngine

    return AutogradEngine(config, parameters, device)


def _by_hand(config: RunConfig, parameters: dict[str, Tensor], fold: bool) -> Engine:
    """The engine on a CPU whose gradients are written out."""
    if config.model.kind == "induction_head":
        from mechinterp.training.fused_induction_head import InductionHeadEngine

        return InductionHeadEngine(config, parameters)
    if config.model.kind == "additive":
        from mechinterp.training.fused_additive import AdditiveEngine

        return AdditiveEngine(config, parameters)
    if fold:
        from mechinterp.training.folded import FoldedEngine

        return FoldedEngine(config, parameters)
    if config.model.n_layers == 1:
        from mechinterp.training.fused_one_layer import OneLayerEngine

        return OneLayerEngine(config, parameters)
    from mechinterp.training.fused import FusedEngine

    return FusedEngine(config, parameters)
