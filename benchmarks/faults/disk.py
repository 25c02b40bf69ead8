"""A model of a disk under a power loss, for the log of a process's changes of files.

What was synced is there. Of later writes, every unit of 512 or 4,096 bytes has the content of before or of any later
write, independently of all others; a later change of a file's length has happened or not; and of later changes of
names, those up to some point have happened. So the model forgets and tears more than file systems do.
"""

import struct
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_HEAD = struct.Struct("<cQQQ")


@dataclass(frozen=True)
class Change:
    """An entry of the log."""

    kind: str
    inode: int
    offset: int
    data: bytes


def read_log(path: Path) -> list[Change]:
    """The entries of a log of shim.c."""
    content, at, changes = path.read_bytes(), 0, []
    while at < len(content):
        kind, inode, offset, length = _HEAD.unpack_from(content, at)
        at += _HEAD.size
        changes.append(Change(kind.decode(), inode, offset, content[at : at + length]))
        at += length
    return changes


@dataclass
class _File:
    """A file: what is on the disk, and what was done since the last sync, in order."""

    durable: bytearray = field(default_factory=bytearray)
    current: bytearray = field(default_factory=bytearray)
    writes: list[tuple[int, bytes]] = field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        _resize(self.current, max(len(self.current), offset + len(data)))
        self.current[offset : offset + len(data)] = data
        self.writes.append((offset, data))

    def resize(self, size: int) -> None:
        _resize(self.current, size)

    def sync(self) -> None:
        self.durable, self.writes = bytearray(self.current), []

    def after_power_loss(self, rng: np.random.Generator, unit: int) -> bytes:
        """A content that the disk may have."""
        grown = len(self.current) != len(self.durable) and rng.random() < 0.5
        content = bytearray(self.durable)
        _resize(content, len(self.current) if grown else len(self.durable))
        versions: dict[int, list[bytes]] = defaultdict(list)
        for offset, data in self.writes:
            for start in range(offset - offset % unit, offset + len(data), unit):
                low, high = max(offset, start), min(offset + len(data), start + unit)
                before = versions[start][-1] if versions[start] else _padded(self.durable, start, unit)
                changed = bytearray(before)
                changed[low - start : high - start] = data[low - offset : high - offset]
                versions[start].append(bytes(changed))
        for start, later in versions.items():
            kept = int(rng.integers(len(later) + 1))
            if kept:
                end = min(start + unit, len(content))
                content[start:end] = later[kept - 1][: max(end - start, 0)]
        return bytes(content)


class Disk:
    """The files of a folder, whose changes are applied one by one."""

    def __init__(self) -> None:
        self.files: dict[int, _File] = defaultdict(_File)
        self.durable_names: dict[str, int] = {}
        self.names: dict[str, int] = {}
        self._pending: list[dict[str, int]] = []

    @classmethod
    def of(cls, folder: Path) -> "Disk":
        """The disk with the files that are in a folder, all of them synced."""
        disk = cls()
        for path in folder.iterdir():
            disk.names[str(path)] = path.stat().st_ino
            disk.files[path.stat().st_ino] = _File(bytearray(path.read_bytes()), bytearray(path.read_bytes()))
        disk.durable_names = dict(disk.names)
        return disk

    def apply(self, change: Change) -> None:
        """Carry out one change."""
        file, text = self.files[change.inode], change.data.decode(errors="replace") if change.kind in "ordlu" else ""
        match change.kind:
            case "w":
                file.write(change.offset, change.data)
            case "t":
                file.resize(change.offset)
            case "a":
                file.resize(max(change.offset, len(file.current)))
            case "s":
                file.sync()
            case "d":
                self.durable_names, self._pending = dict(self.names), []
            case "o":
                if self.names.get(text) != change.inode:
                    self.files[change.inode] = _File()  # a new file may have the inode of a deleted one
                    self._name({text: change.inode}, None)
            case "r":
                source, target = text.split("\n")
                self._name({target: self.names[source]}, source)
            case "l":
                source, target = text.split("\n")
                self._name({target: self.names[source]}, None)
            case "u":
                self._name({}, text)

    def _name(self, added: dict[str, int], removed: str | None) -> None:
        self.names = {name: inode for name, inode in self.names.items() if name != removed} | added
        self._pending.append(dict(self.names))

    def after_power_loss(self, rng: np.random.Generator, unit: int) -> dict[str, bytes]:
        """Files, by path, that the disk may have."""
        states = [self.durable_names, *self._pending]
        names = states[int(rng.integers(len(states)))]
        return {name: self.files[inode].after_power_loss(rng, unit) for name, inode in names.items()}


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _padded(content: bytes | bytearray, start: int, unit: int) -> bytes:
    return bytes(content[start : start + unit]).ljust(unit, b"\0")
