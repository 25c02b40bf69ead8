"""Engines, which update parameters: all by the same steps, for different networks and at different speed.

| engine   | computes                                                                      | on                  |
|----------|-------------------------------------------------------------------------------|---------------------|
| fused    | two classic layers of one head, also clamped, plain SGD: compiled gradients   | CPU                 |
| analytic | one such layer, and the minimal models, plain SGD: gradients by formulas      | CPU                 |
| autograd | every network, rule and intervention; many runs of one shape in one batch     | CPU and GPU         |
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError
from mechinterp.training.engines.analytic import AnalyticEngine
from mechinterp.training.engines.autograd import BATCHED, AutogradEngine
from mechinterp.training.engines.base import Engine, StepResult
from mechinterp.training.engines.fused.engine import FusedEngine

__all__ = [
    "BATCHED",
    "ENGINES",
    "AnalyticEngine",
    "AutogradEngine",
    "Device",
    "Engine",
    "FusedEngine",
    "StepResult",
    "build_engine",
]

Device = Literal["cpu", "cuda"]
ENGINES: tuple[type[Engine], ...] = (FusedEngine, AnalyticEngine, AutogradEngine)
"""In order of preference: the fastest first."""


def require_device(device: str) -> None:
    """MechinterpError for a device that is not known or not available."""
    if device not in ("cpu", "cuda"):
        raise MechinterpError(f"there is no device {device!r}; known: 'cpu', 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise MechinterpError("torch finds no CUDA device; use --device cpu, or install torch's CUDA build")


def build_engine(
    config: RunConfig,
    parameters: Mapping[str, Tensor],
    name: str | None = None,
    device: str = "cpu",
    state: Mapping[str, Tensor] | None = None,
) -> Engine:
    """The engine called `name` if it computes this run exactly on this device, else the fastest that does.

    `state` has the moments of the optimizer, by default 0. A device that is not available raises MechinterpError.
    """
    require_device(device)
    able = [engine for engine in ENGINES if engine.supports(config, device)]
    chosen = next((engine for engine in able if engine.name == name), able[0])
    engine = chosen([config], [parameters], device)
    engine.restore([state or {}])
    return engine
