"""What several test modules share: random parameters, networks of them, and parts that a batch or file may lack."""

import h5py
import numpy as np
import torch
from torch import Tensor

import mechinterp as mi
from mechinterp.models.hooked import VectorTransformer
from mechinterp.models.network import Network
from mechinterp.models.registry import parameter_shapes
from mechinterp.tasks.base import Batch


def random_parameters(
    config: mi.RunConfig, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float | None = None
) -> dict[str, Tensor]:
    """Every trained parameter, biases too, drawn from N(0, scale²); by default with 1/√(last size) for the scale."""
    rng = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(rng.normal(size=shape) * (shape[-1] ** -0.5 if scale is None else scale)).to(dtype)
        for name, shape in parameter_shapes(config).items()
    }


def random_network(
    config: mi.RunConfig, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float | None = None
) -> Network:
    """The network of `random_parameters`."""
    return Network(config, random_parameters(config, seed, dtype, scale))


def hooked(network: Network) -> VectorTransformer:
    """The hooked model of a network, which runs in TransformerLens."""
    return VectorTransformer(network)


def token_labels(batch: Batch) -> Tensor:
    """The labels that the tokens of a batch show, of a task that gives them."""
    assert batch.token_labels is not None
    return batch.token_labels


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset of this name in a file."""
    found = file[name]
    assert isinstance(found, h5py.Dataset)
    return found
