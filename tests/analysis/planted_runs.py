"""Runs whose networks at every checkpoint are set by hand."""

from collections.abc import Mapping
from pathlib import Path

import torch

import mechinterp as mi
from mechinterp.models.network import Network
from mechinterp.models.planted import induction_head

TASK = {"n_classes": 32, "n_labels": 8, "n_pairs": 5, "position_dim": 24, "content_dim": 24, "p_in_context": 1.0}
CONFIG = mi.RunConfig.from_dict({"task": TASK, "model": {"classifier_depth": 1, "classifier_width": 24}})
"""Item–label sequences of 11 tokens, and a ReLU layer through which logits pass."""


class PlantedRun(mi.Run):
    """A run of given networks."""

    def __init__(self, path: Path, networks: Mapping[int, Network]):
        self.path, self._networks = path, dict(networks)
        self._task = mi.build_task(next(iter(networks.values())).config)

    @property
    def steps(self) -> list[int]:
        return sorted(self._networks)

    @property
    def network_config(self) -> mi.RunConfig:
        return self.network(self.steps[0]).config

    def network(self, step: int | str) -> Network:
        return self._networks[self.numbered(step)]

    def digest(self, step: int | str) -> str:
        return f"{self.path}, {step}"


def of_heads(first: list[float], second: list[float], *, alpha: float | None = None) -> Network:
    """The planted induction head with as many heads in both layers as there are numbers, each writing that much of what
    the one head writes: of layer 1 into the buffer, of layer 2 into the output."""
    single = induction_head(CONFIG) if alpha is None else induction_head(CONFIG, alpha=alpha)
    config = CONFIG.updated({"model.n_heads": len(first)})
    parameters = {
        name: torch.cat([value] * len(first)) if name.startswith("blocks.") else value.clone()
        for name, value in single.parameters.items()
    }
    for layer, gains in enumerate((first, second)):
        parameters[f"blocks.{layer}.attn.W_V"] *= torch.tensor(gains, dtype=torch.float64)[:, None, None]
    return Network(config, parameters)


def saturating(network: Network, most: float = 20.0) -> Network:
    """The same network with logits of at most `most`, so that half of its output is as good as all of it."""
    parameters, L = dict(network.parameters), network.config.task.n_labels
    for name in ("classifier.layers.0.W", "classifier.layers.0.b", "classifier.readout.W"):
        parameters[name] = parameters[name].clone()
    W = parameters["classifier.layers.0.W"]
    W[:, :L] = W[:, L : 2 * L].clone()  # relu(most − x), of which x = most − relu(most − x)
    W[:, L:] = 0
    parameters["classifier.layers.0.b"][:L] = most
    parameters["classifier.readout.W"].zero_()
    parameters["classifier.readout.W"][:L] = -torch.eye(L, dtype=W.dtype)
    return Network(network.config, parameters)


def permuted(network: Network, orders: tuple[list[int], list[int]]) -> Network:
    """The same network with the heads of its two layers in other orders."""
    parameters = dict(network.parameters)
    for layer, order in enumerate(orders):
        for name in ("W_Q", "W_K", "W_V"):
            key = f"blocks.{layer}.attn.{name}"
            parameters[key] = parameters[key][order]
    return Network(network.config, parameters)
