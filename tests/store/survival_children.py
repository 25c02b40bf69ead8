"""What the child processes of test_survival run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

import mechinterp as mi
from mechinterp.errors import MechinterpError
from mechinterp.store.layout import digest
from mechinterp.training.runs import resume


@contextmanager
def one_thread() -> Iterator[None]:
    """Children train on one thread: a forked process must not use torch's thread pool of its parent."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train_or_resume(path: str, config: str) -> None:
    """Start the run, or go on with what is there."""
    torch.set_num_threads(1)
    if Path(path).exists():
        resume(path, progress=False)
    else:
        mi.train(mi.RunConfig.model_validate_json(config), path, progress=False)


def read_all(path: str) -> dict[int, str] | MechinterpError:
    """The digests of what the file gives as weights, or the error it is refused with."""
    try:
        run = mi.open_run(path)
        return {step: digest(run.weights(step)).hex() for step in run.steps}
    except MechinterpError as error:
        return error


def read_damaged(path: str, seed: int, flips: int) -> None:
    """Read a file with bits flipped and ends cut off; never other weights than were written."""
    good, expected, refused = Path(path).read_bytes(), read_all(path), 0
    assert isinstance(expected, dict)
    rng = np.random.default_rng(seed)
    cases = [("cut", at) for at in range(0, len(good), 65536)]
    cases += [("flip", int(at)) for at in rng.integers(len(good), size=flips)]
    cases += [("flip", int(at)) for at in rng.integers(20_000, size=flips)]
    for kind, at in cases:
        damaged = bytearray(good[:at] if kind == "cut" else good)
        if kind == "flip":
            damaged[at] ^= 1 << int(rng.integers(8))
        bad = Path(path).with_name("bad.h5")
        bad.write_bytes(damaged)
        found = read_all(str(bad))
        if isinstance(found, dict):
            assert found.items() <= expected.items(), (kind, at)
        else:
            refused += 1
            assert "\n" not in str(found), (kind, at)
    assert refused > len(cases) / 3  # often all: only a flip in unused space does no harm
