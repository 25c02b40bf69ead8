"""The layout of a run file: the datasets that its config implies, with types and shapes.

Writer and reader both use `layout`, so a file whose datasets disagree with its config is refused.
"""

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_name
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.models.registry import parameter_shapes
from mechinterp.training.spikes import SPIKES, STATE

FORMAT = "mechinterp-run"
SCHEMA_VERSION = 1
STATUSES = ("running", "complete", "interrupted", "diverged", "failed")
"""The meaning of the number in /status; `running` in a file without a writer: its writer was killed."""
LATER_METRICS = (*SPIKES, *STATE)
"""Metrics that files of version 0.5 and before do not have."""
METRICS = ("train_loss", "train_accuracy", *LATER_METRICS)
"""Of the training batches since the previous checkpoint: mean loss and accuracy; the number of loss spikes, and step
and loss of the highest, 0 without one; and two means and the variance of the loss, from which spikes are told
(`training.spikes`). Not a number at step 0, except the counts."""


@dataclass(frozen=True)
class Dataset:
    """One dataset with a row per checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    chunk_rows: int


def layout(config: RunConfig) -> dict[str, Dataset]:
    """Every dataset of a run file but /status, by path; /step, the commit marker, comes last."""
    datasets = [
        Dataset(f"weights/{name}", shape, np.dtype("<f4"), 1) for name, shape in parameter_shapes(config).items()
    ]
    datasets += [Dataset(f"metrics/{name}", (), np.dtype("<f8"), 256) for name in METRICS]
    datasets += [Dataset("digest", (32,), np.dtype("u1"), 256), Dataset("step", (), np.dtype("<i8"), 256)]
    return {dataset.name: dataset for dataset in datasets}


def dense_path(path: Path) -> Path:
    """The path of a run's side file of rebuilt steps: fast.dense.h5 beside fast.h5."""
    return path.with_suffix(f".dense{path.suffix}")


def digest(parameters: Mapping[str, Tensor]) -> bytes:
    """SHA-256 of a checkpoint: of the names, shapes and float32 little-endian bytes of its parameters, in order."""
    sha = hashlib.sha256()
    for name, value in parameters.items():
        array = np.ascontiguousarray(value.detach().cpu().numpy(), dtype="<f4")
        sha.update(f"{name}{array.shape}".encode())
        sha.update(array.data)
    return sha.digest()


def environment(device: str = "cpu") -> dict[str, str]:
    """The properties on which the bits of a run depend: package versions, processor and number of threads."""
    return {
        "mechinterp": version("mechinterp"),
        "torch": torch.__version__,
        **{package: version(package) for package in ("numpy", "numba", "scipy", "h5py")},
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
        "cpu": get_host_cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "threads": str(torch.get_num_threads()),
    }
