"""Work on several items on all cores: processes that are forked from this one, each of which takes a share of them.

Analyses of a checkpoint are many small operations, which threads of one process do not speed up. A forked process has
all that this one has in memory, and begins within milliseconds. There is one for every thread of torch
(``--threads``), where the system is Linux, and where the work takes longer than a second.
"""

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

LEAST_SECONDS = 1.0
"""The work of one process that is worth the start of others."""


def computed(
    function: Callable[[Item], Result], items: Sequence[Item], *, cores: int | None = None
) -> Generator[Result, None, None]:
    """function(item) of all items, in their order, each as soon as it is ready.

    It takes as many processes as torch has threads, or `cores`. Results must be such as can be pickled, and function
    must not depend on what it did to other items. What it raises is raised here, at its item. A process that ends
    without its results, as one that is killed for want of memory, is no loss: they are computed here.
    """
    left, cores = list(items), torch.get_num_threads() if cores is None else cores
    while left:
        start = time.monotonic()
        yield function(left.pop(0))
        lasts = (time.monotonic() - start) * len(left)
        if cores > 1 and len(left) > 1 and lasts > LEAST_SECONDS and can_fork():
            yield from _on_cores(function, left, min(cores, len(left)))
            return


def can_fork() -> bool:
    """Whether processes are forked here: elsewhere than on Linux, libraries that this program uses forbid it, and the
    processes of a pool may have none of their own."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def _on_cores(function: Callable[[Item], Result], items: Sequence[Item], n: int) -> Iterator[Result]:
    """The results of n processes, of which each takes every nth item."""
    workers = [_Worker(function, items[first::n]) for first in range(n)]
    try:
        for index, item in enumerate(items):
            done, result = workers[index % n].next_result()
            yield result if done else function(item)
    finally:
        for worker in workers:
            worker.end()


class Forked:
    """A process that calls a function, with all that this one has in memory; it is stopped when this one exits."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self._parent, context = os.getpid(), multiprocessing.get_context("fork")
        self._process = context.Process(target=_call, args=(function, *arguments), daemon=True)
        with warnings.catch_warnings():
            # Of locks of other threads: those that the work takes are released in the child (the allocator's, HDF5's).
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()

    def end(self) -> None:
        """Stop the process; nothing in a copy of this object in another process, whose it is not."""
        if os.getpid() == self._parent:
            self._process.terminate()
            self._process.join()


def _call(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function on one thread; its error is no output of the program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    with suppress(Exception):
        function(*arguments)


class _Worker:
    """A process that computes results and sends them in their order."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]):
        self._results, sending = multiprocessing.get_context("fork").Pipe(duplex=False)
        self._process = Forked(_send_all, function, items, sending)
        sending.close()

    def next_result(self) -> tuple[bool, Any]:
        """Whether there is one, and the next result."""
        try:
            return True, self._results.recv()
        except (EOFError, OSError):
            return False, None

    def end(self) -> None:
        """Stop the process."""
        self._results.close()
        self._process.end()


def _send_all(function: Callable[[Any], Any], items: Sequence[Any], results: Connection) -> None:
    """Send the results, up to the first that fails: the error is raised where that item is computed again."""
    for item in items:
        results.send(function(item))
