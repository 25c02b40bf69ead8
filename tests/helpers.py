"""What several test modules share: random parameters, networks of them, and parts that a batch or file may lack."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mechinterp as mi
from mechinterp.models.hooked import HookedNetwork
from mechinterp.models.hooked_lens import MAJOR
from mechinterp.models.network import Network
from mechinterp.models.registry import parameter_shapes
from mechinterp.store import Header, RunFile
from mechinterp.store.file import rest_digest
from mechinterp.store.layout import END_TYPE, digest, sealed
from mechinterp.tasks.base import Batch

by_hooked_transformer = pytest.mark.skipif(
    MAJOR > 3, reason="TransformerLens 4 has no HookedTransformer to compare with"
)
"""Of tests of which the known answer is HookedTransformer's."""


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


def hooked(network: Network) -> HookedNetwork:
    """The hooked model of a network, which runs in TransformerLens."""
    return HookedNetwork(network)


def token_labels(batch: Batch) -> Tensor:
    """The labels that the tokens of a batch show, of a task that gives them."""
    assert batch.token_labels is not None
    return batch.token_labels


def copied(run: mi.Run, path: Path) -> mi.Run:
    """A copy of a run with the tables that have been computed of it, which are then not computed again."""
    shutil.copy(run.path, path)
    kept, to = (place.with_name(f"{place.name}.cache") for place in (run.path, path))
    if kept.is_dir():
        shutil.copytree(kept, to)
    return mi.open_run(path)


def with_header(path: Path, changes: dict[str, Any]) -> Header:
    """Give a run file's header other values, as someone would who knows the format; the header that there was."""
    before = RunFile(path).header
    with path.open("r+b") as content:
        content.write(before.model_copy(update=changes).to_bytes())
    return before


def as_if_killed(path: Path, config: mi.RunConfig | None = None) -> None:
    """Turn the file of a run that has ended into the one that its writer would have left if it had been killed.

    With a `config`, as if it had been trained by that one.
    """
    header = with_header(path, {} if config is None else {"config": json.loads(config.canonical_json())})
    with path.open("r+b") as content:
        content.seek(header.end)
        content.write(bytes(2 * END_TYPE.itemsize))


def with_checkpoint(
    path: Path, step: int, change: Callable[[dict[str, Tensor], dict[str, float], dict[str, np.ndarray]], object]
) -> None:
    """Change the weights, metrics and series of a checkpoint in place, and make its record fit."""
    file = RunFile(path)
    header, row, table = file.header, file.steps.index(step), file.series(step)
    weights, metrics = file.weights(step), file.metrics_at(step)
    series = {name: table[name].to_numpy(array.dtype, copy=True) for name, array in header.contents.series.items()}
    change(weights, metrics, series)
    with path.open("r+b") as content:
        for name, array in header.contents.series.items():
            content.seek(array.offset + (table.index[0] // header.contents.series_every - 1) * array.row_bytes)
            content.write(series[name].tobytes())
        for name, array in header.contents.weights.items():
            content.seek(array.offset + row * array.row_bytes)
            content.write(weights[name].numpy().tobytes())
        content.seek(header.checkpoints + row * header.record_type.itemsize)
        record = np.frombuffer(content.read(header.record_type.itemsize), header.record_type).copy()[0:1].reshape(())
        record["digest"] = np.frombuffer(digest(weights), "u1")
        record["rest_digest"] = np.frombuffer(rest_digest(series, {}), "u1")
        record["metrics"] = tuple(metrics.values())
        content.seek(header.checkpoints + row * header.record_type.itemsize)
        content.write(sealed(header.id, row, record))
