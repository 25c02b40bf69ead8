"""The state of torch on which results depend: default type, recording of gradients, and the number of threads."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Context, or decorator of a function, with torch as it starts: float32, gradients recorded, no inference mode.

    What is trained and measured does not depend on the state in which a user calls it.
    """
    before = torch.get_default_dtype()
    with torch.inference_mode(False), torch.enable_grad():
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Context with a number of threads.

    One is best for the products of small networks: they are hardly faster on two, and ten times slower where another
    job occupies a core, as threads then wait at every product.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def recorded_threads(environment: Mapping[str, str]) -> int:
    """The number of threads in a recorded environment; the present number if it has no valid one."""
    recorded = environment.get("threads", "")
    return int(recorded) if recorded.isdecimal() and 0 < int(recorded) <= 1024 else torch.get_num_threads()


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside those of torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(module, torch._dynamo.OptimizedModule):
            module = module._orig_mod
        else:
            return module
