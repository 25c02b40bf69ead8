"""Reading of a run file, which may come from an untrusted source and may still be growing.

The file is opened read-only and checked against the layout that its config implies: hard links only, exact names,
types and shapes, no external or virtual storage, known filters. Every read opens the file anew and uses only the rows
that /step covers.
"""

import ctypes
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import ConfigError, MechinterpError, RunFileError
from mechinterp.models.registry import parameter_shapes
from mechinterp.store.schema import FORMAT, LATER_METRICS, METRICS, SCHEMA_VERSION, STATUSES, Dataset, layout

_PATIENCE = 0.25
"""Seconds for which a read that fails is repeated while the file has a writer."""
_METADATA_ATTEMPTS = 28
"""Reads of metadata that HDF5 repeats; its pauses, from 1 ns on, double, and add up to a quarter of a second."""
_MAX_TEXT = 1 << 20
"""Bytes of the longest text attribute of a run file."""


class RunFile:
    """One HDF5 file of checkpoints: config, steps, weights, digests, metrics and status."""

    def __init__(self, path: Path):
        self.path = path
        with self._open() as file:
            self.config, self.environments, self.created = _read_about(file)
            _check_datasets(file, self.config)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the latest updates: versions, CPU capability, threads, engine."""
        return self.environment_at(max(map(int, self.environments)))

    def environment_at(self, step: int) -> dict[str, str]:
        """The environment of the update from `step` on; it changes where a run was resumed elsewhere."""
        return self.environments[str(max(start for start in map(int, self.environments) if start <= step))]

    @contextmanager
    def _open(self) -> Iterator[h5py.File]:
        if not self.path.is_file():
            what = "is a folder" if self.path.is_dir() else "does not exist"
            raise RunFileError(f"{self.path}: {what}; give the path of a run file")
        try:
            file = _open_read_only(self.path)
        except (OSError, RuntimeError, ValueError):
            raise RunFileError(f"{self.path}: is no HDF5 file, or is damaged; give the path of a run file") from None
        try:
            yield file
        except MechinterpError as error:
            raise type(error)(f"{self.path}: {error}") from None
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise RunFileError(f"{self.path}: cannot be read, it is damaged ({str(error).splitlines()[0]})") from None
        finally:
            file.close()

    @property
    def steps(self) -> list[int]:
        """The committed steps, ascending."""
        with self._open() as file:
            return _committed(file)

    @property
    def status(self) -> str:
        """How the run ended, or "running"."""
        with self._open() as file:
            number = int(_read(file, "status", 0))
            if not 0 <= number < len(STATUSES):
                raise RunFileError(f"/status is {number}, expected 0 to {len(STATUSES) - 1}; the file is damaged")
            return STATUSES[number]

    def metrics(self) -> pd.DataFrame:
        """The training metrics (`schema.METRICS`) by step; what an older file lacks is not a number."""
        with self._open() as file:
            steps, recorded = _committed(file), _names(file, "metrics")
            columns = {
                name: _read(file, f"metrics/{name}", slice(len(steps))) if name in recorded else math.nan
                for name in METRICS
            }
        return pd.DataFrame(columns, index=pd.Index(steps, name="step"), dtype=float)

    def metrics_at(self, step: int) -> dict[str, float]:
        """The training metrics of a committed step."""
        return {str(name): float(value) for name, value in self.metrics().loc[step].items()}

    def weights(self, step: int) -> dict[str, Tensor]:
        """The parameters at a committed step, by name (float32)."""
        with self._open() as file:
            row = _committed(file).index(step)
            arrays = {name: _read(file, f"weights/{name}", row) for name in parameter_shapes(self.config)}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise RunFileError(f"{self.path}: {name} at step {step} is not finite; the file is damaged")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def digest(self, step: int) -> str:
        """The stored SHA-256 of the weights at a committed step (hexadecimal)."""
        with self._open() as file:
            return _read(file, "digest", _committed(file).index(step)).tobytes().hex()


def _open_read_only(path: Path) -> h5py.File:
    """The opened file, in SWMR mode if it has a writer or its writer was killed, as HDF5 then allows no other mode.

    In SWMR mode HDF5 repeats a read of metadata whose checksum fails, because a writer may be changing them: by default
    100 times with pauses of 1, 2, 4, … ns, which does not end in a damaged file. The number is therefore lowered.
    """
    flags, access = h5py.h5f.ACC_RDONLY, h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    if _has_writer(path):
        flags |= h5py.h5f.ACC_SWMR_READ
        with suppress(AttributeError):  # h5py has no such call, and some builds hide that of the HDF5 library
            set_attempts = ctypes.CDLL(h5py.h5p.__file__).H5Pset_metadata_read_attempts
            set_attempts(ctypes.c_int64(access.id), ctypes.c_uint(_METADATA_ATTEMPTS))
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, fapl=access))


def _has_writer(path: Path) -> bool:
    """Whether, by the superblock, a writer has the file open in SWMR mode or was killed while it had."""
    with path.open("rb") as file:
        superblock = file.read(12)
    return superblock[:8] == b"\x89HDF\r\n\x1a\n" and len(superblock) == 12 and bool(superblock[11] & 0x04)


def _read_about(file: h5py.File) -> tuple[RunConfig, dict[str, dict[str, str]], str]:
    """Config, environments by the step they start from, and date, from the file's attributes."""
    if _text(file, "format") != FORMAT:
        raise RunFileError("is an HDF5 file, but no run file; give the path of a run file")
    schema = _text(file, "schema_version")
    if schema != str(SCHEMA_VERSION):
        raise RunFileError(f"has schema version {schema}, this package reads {SCHEMA_VERSION}; use a matching package")
    try:
        config = RunConfig.from_dict(json.loads(_text(file, "config")), source="its config")
        environments = json.loads(_text(file, "environments"))
    except ConfigError as error:
        raise RunFileError(str(error)) from None
    except (json.JSONDecodeError, RecursionError):
        raise RunFileError("its config is not valid JSON; the file is damaged") from None
    if not _are_environments(environments):
        raise RunFileError("its environments are no tables of text by step; the file is damaged")
    return config, environments, _text(file, "created")


def _are_environments(value: object) -> bool:
    """Whether a value maps steps, 0 among them, to tables of text."""
    return (
        isinstance(value, dict)
        and "0" in value
        and all(step.isdecimal() and len(step) < 20 for step in value)
        and all(isinstance(row, dict) and all(isinstance(v, str) for v in row.values()) for row in value.values())
    )


def _text(file: h5py.File, name: str) -> str:
    """A fixed-length text attribute of bounded size."""
    if name not in file.attrs:
        if name == "format":
            raise RunFileError("is an HDF5 file, but no run file; give the path of a run file")
        raise RunFileError(f"lacks the attribute {name!r}; the file is damaged")
    attribute = file.attrs.get_id(name)
    if attribute.dtype.kind != "S" or attribute.shape != () or attribute.get_storage_size() > _MAX_TEXT:
        raise RunFileError(f"the attribute {name!r} is no text of at most {_MAX_TEXT} bytes; the file is damaged")
    return bytes(file.attrs[name]).decode(errors="replace")


def _check_datasets(file: h5py.File, config: RunConfig) -> None:
    """Raise RunFileError unless the datasets are exactly those of the config's layout, with their types and shapes."""
    expected = {**layout(config), "status": Dataset("status", (), np.dtype("<i8"), 1)}
    present = {
        f"{group}/{name}" if group else name for group in ("", "weights", "metrics") for name in _names(file, group)
    }
    present -= {"weights", "metrics"}
    later = {f"metrics/{name}" for name in LATER_METRICS}
    if not later & present:
        expected = {name: spec for name, spec in expected.items() if name not in later}
    for name in sorted(expected.keys() - present):
        raise RunFileError(f"the dataset /{name} is missing; the file is damaged or from another version")
    for name in sorted(present - expected.keys()):
        raise RunFileError(f"the dataset /{name} does not belong in a run file; it is not opened")
    committed = len(_checked_dataset(file, expected["step"]))
    for spec in expected.values():
        rows = len(_checked_dataset(file, spec))
        if rows < (1 if spec.name == "status" else committed):
            raise RunFileError(f"/{spec.name} has {rows} rows, expected at least {committed}; the file is damaged")
    _committed(file)


def _names(file: h5py.File, group: str) -> list[str]:
    """Names of a group's members; a link to another place or file is refused and not followed."""
    link = file.get(group, getlink=True) if group else h5py.HardLink()
    if not isinstance(link, h5py.HardLink):
        raise RunFileError(f"/{group} is missing or no hard link; the file is not opened")
    members = file[group] if group else file
    if not isinstance(members, h5py.Group):
        raise RunFileError(f"/{group} is no group; the file is damaged")
    for name in members:
        if not isinstance(members.get(name, getlink=True), h5py.HardLink):
            raise RunFileError(f"/{group}/{name} is a link to another place; such a file is not opened")
    return list(members)


def _checked_dataset(file: h5py.File, spec: Dataset) -> h5py.Dataset:
    """The dataset, if it is what the layout says; RunFileError otherwise."""
    dataset = file[spec.name]
    if not isinstance(dataset, h5py.Dataset):
        raise RunFileError(f"/{spec.name} is no dataset; the file is damaged")
    if dataset.is_virtual or dataset.external:
        raise RunFileError(f"/{spec.name} keeps its data outside the file; such a file is not opened")
    if dataset.dtype != spec.dtype:
        raise RunFileError(f"/{spec.name} has type {dataset.dtype}, expected {spec.dtype}; the file is damaged")
    if dataset.ndim != 1 + len(spec.shape) or dataset.shape[1:] != spec.shape:
        shape = ", ".join(["checkpoint", *map(str, spec.shape)])
        raise RunFileError(f"/{spec.name} has shape {dataset.shape}, expected ({shape}); the file is damaged")
    filters = dataset.id.get_create_plist()
    for index in range(filters.get_nfilters()):
        if filters.get_filter(index)[0] not in (
            h5py.h5z.FILTER_SHUFFLE,
            h5py.h5z.FILTER_DEFLATE,
            h5py.h5z.FILTER_FLETCHER32,
        ):
            raise RunFileError(f"/{spec.name} uses an unknown filter; such a file is not opened")
    stored = int(np.prod(spec.shape)) * spec.dtype.itemsize
    if dataset.shape[0] * stored > max(2 * file.id.get_filesize(), 1 << 22):
        raise RunFileError(f"/{spec.name} declares {dataset.shape[0]} rows, more than the file holds; it is damaged")
    return dataset


def _read(file: h5py.File, name: str, rows: int | slice = slice(None)) -> np.ndarray:
    """Rows of a dataset.

    While a writer rewrites the chunk of these rows, its checksum fails for a moment. HDF5 repeats reads of metadata
    only; in files with a writer, reads of data are repeated here for `_PATIENCE` seconds.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return np.asarray(cast(h5py.Dataset, file[name])[rows])
        except OSError:
            if not file.swmr_mode or time.monotonic() > end:
                raise
            time.sleep(0.001)


def _committed(file: h5py.File) -> list[int]:
    """The committed steps, ascending; RunFileError if they do not ascend."""
    steps = _read(file, "step").tolist()
    if any(after <= before for before, after in zip([-1, *steps], steps, strict=False)):
        raise RunFileError("/step is not ascending; the file is damaged")
    return steps
