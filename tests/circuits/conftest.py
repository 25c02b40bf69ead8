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
def planted(full) -> pd.DataFrame:
    """The edges of the planted induction head. Tests only read them."""
    return circuit_edges(induction_head(full), mi.build_task(full), n_pairs=100)


@pytest.fixture(scope="session")
def deep(tiny_config) -> tuple[Network, pd.DataFrame]:
    """Random weights of three layers with two heads, and their edges."""
    config = tiny_config.updated({"model.n_layers": 3, "model.n_heads": 2})
    network = random_network(config, seed=3, dtype=torch.float32)
    return network, circuit_edges(network, mi.build_task(config), n_pairs=20)
