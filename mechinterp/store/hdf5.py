"""The HDF5 of a run file: made in memory by h5py, before anything is written.

All arrays are contiguous, allocated at creation and never filled, so HDF5 itself writes some kilobytes of metadata.
They do not change afterwards, and no HDF5 call is made while checkpoints are written or read.
"""

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mechinterp.errors import RunFileError
from mechinterp.store.layout import Header

_BLOCK = 4096
"""Bytes to whose multiples arrays are aligned, so that a record lies in one sector."""


class _Pieces(io.RawIOBase):
    """A file in memory that keeps what is written to it, in order, and reads as zeros elsewhere."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []
        self.size = self._at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def write(self, data: Any) -> int:
        self.pieces.append((self._at, bytes(data)))
        self._at += len(self.pieces[-1][1])
        self.size = max(self.size, self._at)
        return len(self.pieces[-1][1])

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), max(self.size - self._at, 0))
        content = bytearray(length)
        for at, piece in self.pieces:
            low, high = max(at, self._at), min(at + len(piece), self._at + length)
            if low < high:
                content[low - self._at : high - self._at] = piece[low - at : high - at]
        buffer[:length] = content
        self._at += length
        return length

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size


def hdf5_pieces(header: Header, start: int) -> tuple[list[tuple[int, bytes]], dict[str, int], int]:
    """The HDF5 metadata of a file: pieces with their offsets; the offsets of the arrays, by path; the file's size.

    The first `start` bytes of the file, a power of two from 512 on, are left to the header.
    """
    recorded = _Pieces()
    with h5py.File(
        recorded,
        "w",
        libver=("v110", "v110"),
        userblock_size=start,
        alignment_threshold=512,
        alignment_interval=_BLOCK,
    ) as file:
        for name, text in header.attributes().items():
            file.attrs[name] = np.bytes_(text.encode())
        offsets = {path: _allocated(file, path, shape, dtype) for path, (shape, dtype) in header.datasets().items()}
    return recorded.pieces, offsets, recorded.size


def require_same_hdf5(path: Path, header: Header) -> None:
    """RunFileError unless the HDF5 of a file has the arrays and attributes of its header, where the header says."""
    offsets, expected, present = header.offsets(), header.datasets(), dict[str, h5py.Dataset]()
    try:
        with h5py.File(path) as file:

            def visit(name: str, item: Any) -> bool | None:
                if isinstance(item, h5py.Dataset):
                    present[name] = item
                return len(present) > len(expected) or None  # then it is not the same

            file.visititems(visit)
            attributes = {name: bytes(np.bytes_(value)).decode() for name, value in file.attrs.items()}
            arrays = {name: ((item.shape, item.dtype), item.id.get_offset()) for name, item in present.items()}
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise RunFileError(f"{path}: its HDF5 is damaged ({str(error).splitlines()[0][:200]})") from None
    if attributes != header.attributes():
        raise RunFileError(f"{path}: the attributes of its HDF5 are not those of its header; it was changed")
    if arrays != {name: (array, offsets[name]) for name, array in expected.items()}:
        raise RunFileError(f"{path}: the arrays of its HDF5 are not those of its header; it was changed")


def _allocated(file: h5py.File, path: str, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """The offset of a new contiguous array in the file."""
    creation, links = (h5py.h5p.create(kind) for kind in (h5py.h5p.DATASET_CREATE, h5py.h5p.LINK_CREATE))
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links.set_create_intermediate_group(True)
    kind, space = h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple(shape)
    return int(h5py.h5d.create(file.id, path.encode(), kind, space, creation, links).get_offset())
