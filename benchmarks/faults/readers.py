"""Live readers: processes that open and read a file again and again, while it is written, damaged and exchanged.

A reader has a run open for a while, as a notebook would, and opens it anew in between. What it reads must be what a run
wrote at that step of that seed; or it must be told, in one line, that it cannot be read.
"""

import json
import os
import random
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

import mechinterp as mi
from benchmarks.faults import scenarios
from mechinterp.errors import MechinterpError

_Digests = Mapping[int, Mapping[int, str]]
_CONFIGS = [scenarios.CONFIG.updated({"seed": seed}) for seed in (0, 1)]


def watched(folder: Path, changes: int, n_readers: int, seed: int) -> Counter[str]:
    """How often a file was changed and read, and with what result, by so many readers at once."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    path, expected, series, copies = folder / "run.h5", {}, {}, []
    for config in _CONFIGS:
        copies.append(folder / f"copy{config.seed}.h5")
        run = mi.train(config, copies[-1], progress=False)
        scenarios.go_on(copies[-1], until=scenarios.TIMED_OUT, progress=False)
        expected[config.seed] = {step: run.digest(step) for step in run.steps}
        series[config.seed] = run.series
    shutil.copy(copies[0], path)
    readers = [_Reader(path, expected, series, seed + number) for number in range(n_readers)]
    rng, counts = random.Random(seed), Counter[str]()
    for _ in range(changes):
        what = rng.choice(sorted(_CHANGES))
        counts[f"change: {what}"] += 1
        try:
            _CHANGES[what](path, copies, rng)
        except MechinterpError:
            counts[f"change: {what}, refused"] += 1
    for reader in readers:
        counts += reader.counts()
    return counts


def _train(path: Path, copies: list[Path], rng: random.Random) -> None:
    mi.train(rng.choice(_CONFIGS), path, overwrite=True, progress=False)


def _resume(path: Path, copies: list[Path], rng: random.Random) -> None:
    scenarios.go_on(path, until=scenarios.TIMED_OUT, progress=False)


def _exchange(path: Path, copies: list[Path], rng: random.Random) -> None:
    for _ in range(20):
        shutil.copy(rng.choice(copies), new := path.with_name("new.h5"))
        os.replace(new, path)


def _overwrite_in_place(path: Path, copies: list[Path], rng: random.Random) -> None:
    for _ in range(20):
        shutil.copy(rng.choice(copies), path)


def _cut(path: Path, copies: list[Path], rng: random.Random) -> None:
    for _ in range(10):
        shutil.copy(rng.choice(copies), new := path.with_name("new.h5"))
        os.replace(new, path)
        os.truncate(path, rng.randrange(path.stat().st_size))


def _damage(path: Path, copies: list[Path], rng: random.Random) -> None:
    for _ in range(10):
        shutil.copy(rng.choice(copies), new := path.with_name("new.h5"))
        os.replace(new, path)
        with path.open("r+b") as file:
            for _ in range(5):
                file.seek(rng.randrange(path.stat().st_size))
                file.write(rng.randbytes(rng.randrange(1, 2000)))


def _delete(path: Path, copies: list[Path], rng: random.Random) -> None:
    for _ in range(10):
        path.unlink(missing_ok=True)
        shutil.copy(rng.choice(copies), path)


_CHANGES = {
    "train": _train,
    "resume": _resume,
    "exchange": _exchange,
    "overwrite in place": _overwrite_in_place,
    "cut": _cut,
    "damage": _damage,
    "delete": _delete,
}


class _Reader:
    """A process that reads the run at a path until `counts` are asked for."""

    def __init__(self, path: Path, expected: _Digests, series: Mapping[int, pd.DataFrame], seed: int):
        self._reading, writing = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            os.close(self._reading)
            stop = []
            signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
            counts = _read(path, expected, series, random.Random(seed), stop)
            os.write(writing, json.dumps(counts).encode())
            os._exit(0)
        os.close(writing)

    def counts(self) -> Counter[str]:
        """How often it read what; the process ends."""
        os.kill(self._process, signal.SIGTERM)
        with os.fdopen(self._reading) as answer:
            text = answer.read()
        _, status = os.waitpid(self._process, 0)
        return Counter(json.loads(text)) if text else Counter({f"BAD reader: crash (status {status})": 1})


def _read(
    path: Path, expected: _Digests, series: Mapping[int, pd.DataFrame], rng: random.Random, stop: list[bool]
) -> Counter[str]:
    counts = Counter[str]()
    while not stop:
        begin = time.perf_counter()
        try:
            run = mi.open_run(path)
            for _ in range(rng.randrange(1, 60)):
                step = rng.choice(run.steps)
                right = scenarios.digest(run.weights(step)) == expected[run.config.seed].get(step)
                counts["read: right" if right else "BAD read: wrong weights"] += 1
                updates = run.series
                right = updates.equals(series[run.config.seed].iloc[: len(updates)])
                counts["read: right" if right else "BAD read: wrong series"] += 1
        except MechinterpError as error:
            told = str(error)
            good = told.isprintable() and len(told) <= 500
            counts["read: refused in a line" if good else f"BAD message: {told[:100]!r}"] += 1
        except Exception:
            counts[f"BAD traceback: {traceback.format_exc().strip().splitlines()[-1][:120]}"] += 1
        counts["BAD read: slower than 8 s"] += time.perf_counter() - begin > 8
    return +counts
