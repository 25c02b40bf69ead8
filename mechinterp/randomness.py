"""All randomness is a pure function of (seed, stream, step).

A counter-based generator (Philox 4x64) is keyed with (seed, stream), and its counter starts at step · 2^192. Two
streams never overlap, so adding an evaluation set cannot change training, and any step can be drawn without the
steps before it. NumPy's bits do not depend on the number of threads or on the CPU's vector width.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a stream of random numbers is for. Evaluation set i of a task uses stream EVALUATION + i."""

    INIT = 0
    TASK = 1
    TRAIN = 2
    BOOTSTRAP = 3
    CORRUPTION = 4
    EVALUATION = 16


def generator(seed: int, stream: int, step: int = 0) -> np.random.Generator:
    """The generator of one (seed, stream, step); each of them an integer in [0, 2^64)."""
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([0, 0, 0, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
