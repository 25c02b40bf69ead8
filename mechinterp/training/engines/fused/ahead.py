"""Compilation of the step in two processes, where it is not kept: numba compiles on one core of a process only."""

from contextlib import suppress

import numba
import numpy as np
import torch

from mechinterp.compilation import compile_called, is_missing, say_once
from mechinterp.parallel import Forked, can_fork
from mechinterp.training.engines.fused.memory import (
    Clamps,
    Sizes,
    Tokens,
    Update,
    allocate_common,
    allocate_scratch,
)
from mechinterp.training.engines.fused.step import compiled_beside, step_part


def begin(dtype: torch.dtype) -> Forked | None:
    """A process that compiles the last functions of the step for parameters of a type, if they are not kept and a
    second core may be used."""
    types = argument_types(dtype)
    with suppress(OSError):  # the folder may be another user's, and the system may refuse a process
        if can_fork() and torch.get_num_threads() > 1 and is_missing(step_part, types):
            say_once()  # which the other process would say again
            return Forked(compile_called, compiled_beside, types)
    return None


def argument_types(dtype: torch.dtype) -> tuple[numba.types.Type, ...]:
    """The types of the arguments of `step_part`."""

    def of(*shape: int) -> np.ndarray:
        return torch.zeros(shape, dtype=dtype).numpy()

    sizes, update, numbers = Sizes(1, 1, 1, 1), Update(True, 0.0, 0.0), np.zeros((1, 1), np.int64)
    tokens = Tokens(of(1, 1), of(1, 1, 1), numbers, numbers, numbers[0])
    clamps = Clamps(False, of(1), of(1, 1), of(1), of(1, 1))
    common, memory = allocate_common(of(9), of(9), 1, 1), allocate_scratch(sizes, tokens, 1, 9)
    arguments = sizes, update, tokens, clamps, (0, 1), 0, 1, common, memory
    return tuple(numba.typeof(argument) for argument in arguments)
