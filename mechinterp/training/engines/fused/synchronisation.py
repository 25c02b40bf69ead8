"""Barriers between the parts of a step without the operating system, which takes 50 µs or more to wake a thread.

A part writes the number of the last barrier that it has reached into its cache line of `arrivals`, which all parts
read. The last entry is not 0 once a barrier has been given up.
"""

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from mechinterp.training.engines.fused.primitives import compiled

_LINE = 8
"""Integers in a cache line."""
_LOOKS = 10_000
"""How often a part looks whether the others have come, before it lets other threads run: some 20 µs."""
_yield = types.ExternalFunction("sched_yield", types.int32())


def new_arrivals(n_parts: int) -> NDArray:
    """Memory for the barriers of n parts."""
    return np.zeros(_LINE * (n_parts + 1), np.int64)


def give_up(arrivals: NDArray) -> None:
    """Releases the parts that wait for one that will not come."""
    arrivals[-1] = 1


@intrinsic
def _load(typing, array, index):
    """array[index], which another thread may be writing (atomic, acquire)."""

    def generate(context, builder, signature, arguments):
        pointer = builder.gep(context.make_array(array)(context, builder, arguments[0]).data, [arguments[1]])
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(array, types.intp), generate


@intrinsic
def _store(typing, array, index, value):
    """array[index] = value, which other threads may be reading (atomic, release)."""

    def generate(context, builder, signature, arguments):
        pointer = builder.gep(context.make_array(array)(context, builder, arguments[0]).data, [arguments[1]])
        builder.store_atomic(arguments[2], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), generate


@compiled
def barrier(arrivals, part, n_parts, number):
    """Waits until every part has reached the barrier of this number, which grows; False if one was given up.

    It polls, since parts arrive within microseconds; after `_LOOKS` polls it also yields its core, which another part
    may be waiting for.
    """
    _store(arrivals, _LINE * part, number)  # pyright: ignore[reportCallIssue]
    looked = 0
    for other in range(n_parts):
        while _load(arrivals, _LINE * other) < number:
            gave_up = _load(arrivals, arrivals.shape[0] - 1) != 0
            if gave_up and _load(arrivals, _LINE * other) < number:  # else it came before somebody gave up
                return False
            looked += 1
            if looked > _LOOKS:
                _yield()
    return True
