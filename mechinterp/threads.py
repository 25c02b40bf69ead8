"""The number of torch's threads, on which the order of sums and so bits depend."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


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
