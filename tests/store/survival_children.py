"""What the child processes of test_survival run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import mechinterp as mi
from mechinterp.training import resume


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
