"""Fuzz: run files whose bytes or structure were changed, put through what a user does with a file from somebody else.

Every mutant is read in a process of its own, by the commands `info`, `verify` and `measure` and by `run.weights` of
every step; every 20th also by `circuit` and `report`. What must not be: a traceback, a crash, more than 8 seconds,
more than 300 MB, a message of several lines, of more than 500 characters or with control characters, and weights that
are not those that were written.
"""

import io
import json
import os
import re
import resource
import select
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import mechinterp as mi
from benchmarks.faults.scenarios import digest
from mechinterp.cli import main
from mechinterp.errors import MechinterpError
from mechinterp.store.layout import header_length

SECONDS, MEGABYTES, CHARACTERS = 8, 300, 500
_ODD: list[Any] = [
    *(None, True, -1, 0, 1, 7, 2**31, 2**62, 2**63, 2**64, 10**300, 1e300, -1e300, 1e-300, 0.5, "NaN", "Infinity"),
    *("", "x", "\x1b[31mred", "a\nb", "\u202e", "x" * 10_000, "../../etc/passwd", [], {}, [[]], {"a": {}}),
]


def byte_mutant(good: bytes, rng: np.random.Generator) -> bytes:
    """The file with some bits flipped, bytes overwritten, a part cut out, doubled or set to zero, or cut off."""
    content = bytearray(good)
    early = rng.random() < 0.5
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(min(20_000, len(content)) if early else len(content)))
        length = int(rng.integers(1, 5_000))
        match int(rng.integers(6)):
            case 0 | 1:
                content[at] ^= 1 << int(rng.integers(8))
            case 2:
                content[at : at + 8] = rng.bytes(8)[: len(content) - at]
            case 3:
                content[at : at + length] = bytes(len(content[at : at + length]))
            case 4:
                del content[at : at + length]
            case _:
                content[at:at] = content[at : at + length]
        if rng.random() < 0.1:
            del content[int(rng.integers(len(content))) :]
        if not content:
            break
    return bytes(content)


def structure_mutant(path: Path, rng: np.random.Generator) -> str:
    """Change the header, with a seal that fits, or the HDF5; what was changed."""
    if rng.random() < 0.25:
        return _change_hdf5(path, rng)
    content = path.read_bytes()
    line = content[: content.index(b"\n") + 1]
    values = json.loads(content[len(line) : len(line) + header_length(line)])
    places = list(_places(values))
    parent, key = places[int(rng.integers(len(places)))]
    what = f"{key} was {str(parent[key])[:40]}"
    match int(rng.integers(8)):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[f"{key}\x1b" if rng.random() < 0.5 else "extra"] = parent[key]
        case 2:
            parent[key] = _deep(int(rng.integers(1, 200_000)))
        case 3 if isinstance(parent[key], int):
            parent[key] = int(parent[key]) + int(rng.integers(-10_000, 10_000))
        case _:
            parent[key] = _ODD[int(rng.integers(len(_ODD)))]
    text = _dumped(values)
    body = text.encode("utf-8", "surrogatepass")
    import hashlib

    line = f"mechinterp-run 2 {len(body):020} {hashlib.sha256(body).hexdigest()}\n".encode()
    with path.open("r+b") as file:
        file.write(line + body)
    return what


class _Deep:
    def __init__(self, depth: int):
        self.depth = depth


def _deep(depth: int) -> _Deep:
    return _Deep(depth)


def _dumped(values: Any) -> str:
    """JSON, with a deep list in place of every `_Deep`."""
    deep: list[int] = []

    def mark(value: _Deep) -> str:
        deep.append(value.depth)
        return f"@deep{len(deep) - 1}@"

    text = json.dumps(values, default=mark)
    return re.sub(r'"@deep(\d+)@"', lambda m: "[" * deep[int(m[1])] + "]" * deep[int(m[1])], text)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a nested value."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _change_hdf5(path: Path, rng: np.random.Generator) -> str:
    """Change the HDF5 part by h5py, which leaves the header as it is."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = names[int(rng.integers(len(names)))]
        what = int(rng.integers(9))
        if what == 0:
            del file[name]
        elif what == 1:
            file.attrs[["config", "created", "new"][int(rng.integers(3))]] = str(_ODD[int(rng.integers(len(_ODD)))])[
                :999
            ]
        else:
            parent = file["weights"]
            assert isinstance(parent, h5py.Group)
            if name not in ("weights", "series") and what < 8:
                del file[name]
            else:
                name = "weights/more"
            if what == 2:
                file[name] = h5py.SoftLink("/weights")
            elif what == 3:
                file[name] = h5py.ExternalLink("/etc/hostname", "/x")
            elif what == 4:
                file[name] = file["weights"]  # a cycle
            elif what == 5:
                file.create_dataset(name, (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip")
            elif what == 6:
                layout = h5py.VirtualLayout((11, 4), "f4")
                layout[:] = h5py.VirtualSource("nope.h5", "x", (11, 4))
                file.create_virtual_dataset(name, layout)
            elif what == 7:
                file.create_dataset(name, (16,), "u1", external=[("/etc/hostname", 0, 16)])
            else:
                group = file.create_group(name)
                for _ in range(200):
                    group = group.create_group("g")
    return f"HDF5 {what} at {name}"


def examine(use: Callable[[], list[str]], seconds: float = SECONDS) -> list[str]:
    """What `use` says is wrong with how a mutant is taken, in a process of its own; and if it takes long, or much."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        faults = use()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
        faults += [f"{grown:.0f} MB"] if grown > MEGABYTES else []
        os.write(writing, json.dumps(faults).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], seconds)
    if not ready:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    if not ready:
        return ["slow"]
    return json.loads(text) if text else [f"crash (status {status})"]


def use(path: Path, expected: dict[int, str], *, thorough: bool) -> list[str]:
    """What is wrong with how commands and `open_run` take a file."""
    faults: list[str] = []
    commands = [["info"], ["verify"], ["measure", "--n-sequences", "10"]]
    commands += [["circuit", "--n-pairs", "8"], ["report", "--out", str(path.with_suffix(".html"))]] if thorough else []
    for name, *options in commands:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = main([name, str(path), *options])
            except BaseException:
                faults.append(f"traceback in {name} ({traceback.format_exc().strip().splitlines()[-1][:150]})")
                continue
        message = err.getvalue().strip() if code == 2 else ""
        if code == 2:
            faults += faults_of(name, message)
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out.getvalue()):
            faults.append(f"control characters in the output of {name}")
    return faults + _values(lambda: mi.open_run(path), expected)


def faults_of(name: str, message: str) -> list[str]:
    """What is wrong with the message of a user's error."""
    faults = [] if len(message.splitlines()) == 1 else [f"a message of {name} has several lines"]
    faults += [f"a message of {name} is long ({len(message)})"] if len(message) > CHARACTERS else []
    return faults + ([] if message.isprintable() or "\n" in message else [f"control characters in a message of {name}"])


def _values(opened: Callable[[], mi.Run], expected: dict[int, str]) -> list[str]:
    """Weights that are read are those that were written."""
    try:
        run = opened()
        wrong = [step for step in run.steps if digest(run.weights(step)) != expected.get(step)]
        run.network(run.steps[-1])
        return ["wrong weights"] if wrong else []
    except MechinterpError as error:
        return faults_of("open_run", str(error))
    except Exception as error:
        return [f"traceback in Python ({type(error).__name__}: {str(error)[:100]})"]
