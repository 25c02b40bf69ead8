"""Fixtures: networks whose circuits several test modules measure."""

import pandas as pd
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits.diagram import circuit_edges
from mechinterp.models.network import Network
from mechinterp.models.planted import induction_head
from tests.helpers import random_network


@pytest.fixture(scope="session")
def full() -> mi.RunConfig:
    """The config of the paper."""
    return mi.RunConfig.preset("reddy2023")


@pytest.fixture(scope="session")
def small() -> mi.RunConfig:
    """That of the paper with short contexts of few dimensions and a linear readout."""
    few = {"n_pairs": 4, "content_dim": 32, "n_labels": 8, "n_classes": 128, "position_dim": 17}
    changes = {f"task.{name}": value for name, value in few.items()} | {"model.classifier_depth": 0}
    return mi.RunConfig.preset("reddy2023").updated(changes)


@pytest.fixture(scope="session")
def planted(full) -> pd.DataFrame:
    """The edges of the planted induction head. Tests only read them."""
    return circuit_edges(induction_head(full), mi.build_task(full), n_pairs=100)


@pytest.fixture(scope="session")
def deep(tiny_config) -> tuple[Network, pd.DataFrame]:
    """Random weights of three layers with two heads, and their edges."""
    config = tiny_config.updated({"model.n_layers": 3, "model.n_heads": 2})
    network = random_network(config, seed=3, dtype=torch.float32)
    return network, circuit_edges(network, mi.build_task(config), heads="together", n_pairs=20)
