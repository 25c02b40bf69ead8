"""Random numbers as a pure function of (seed, stream, step).

A counter-based generator (Philox) has (seed, stream) as its key and counts from the step on. Streams never overlap, so
an additional evaluation set cannot change training, and any step can be drawn without the steps before it. The bits do
not depend on the number of threads or on the CPU's vector width.

`generator` is NumPy's, for numbers that are drawn once. `draw_uniform` and `draw_normal` are for compiled code that
draws in every step: they fill arrays, several times as fast.
"""

import math
from enum import IntEnum

import numpy as np

from mechinterp.compilation import compiler
from mechinterp.errors import require_integer


class Stream(IntEnum):
    """The purpose of a stream of random numbers. Evaluation set i of a task uses stream EVALUATION + i."""

    INIT = 0
    TASK = 1
    TRAIN = 2
    BOOTSTRAP = 3
    CORRUPTION = 4
    NOVEL = 5
    LANGEVIN = 6
    EVALUATION = 16


def generator(seed: int, stream: int, step: int = 0) -> np.random.Generator:
    """NumPy's generator of one (seed, stream, step), three integers in [0, 2^64).

    Philox 4x64 with the key (seed, stream); its counter starts at step · 2^192.
    """
    for name, number in (("seed", seed), ("stream", stream), ("step", step)):
        require_integer(name, number, 0)
    key, counter = np.array([seed, stream], np.uint64), np.array([0, 0, 0, step], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


_WORD = np.uint64(0xFFFFFFFF)
_BLOCKS = 256
"""Philox blocks, of four words and so four normal numbers each, that are drawn together."""

# Without fast-math, so that compiled code rounds alike on every CPU; with NumPy's division, so that loops vectorise.
_compiled = compiler(cache=True, error_model="numpy", no_cfunc_wrapper=True)


@_compiled
def stream_key(seed, stream, step):
    """Key of `draw_uniform` and `draw_normal` for one (seed, stream, step): four words of Philox.

    The keys of two streams or steps are equal with probability 2^−128.
    """
    shift, words, key = np.uint64(32), np.empty((4, 1), np.uint32), np.empty(4, np.uint64)
    seed, stream = np.uint64(seed), np.uint64(stream)
    key[0], key[1], key[2], key[3] = seed & _WORD, seed >> shift, stream & _WORD, stream >> shift
    philox(key, np.uint64(step), words)
    for k in range(4):
        key[k] = words[k, 0]
    return key


@_compiled
def draw_uniform(key, first, result):
    """Fills an array with uniform numbers of [0, 1), multiples of 2⁻⁵³; counts Philox's blocks from `first` on."""
    words, flat = np.empty((4, _BLOCKS), np.uint32), result.reshape(result.size)
    for start in range(0, flat.size, 2 * _BLOCKS):
        philox(key, np.uint64(first + start // 2), words)
        into = flat[start : start + 2 * _BLOCKS]
        for k in range(into.size):
            row, column = 2 * (k // _BLOCKS), k % _BLOCKS
            bits = (np.uint64(words[row, column]) << np.uint64(21)) ^ (
                np.uint64(words[row + 1, column]) >> np.uint64(11)
            )
            into[k] = np.float64(np.int64(bits)) * 2.0**-53


@_compiled
def draw_normal(key, first, std, result):
    """Fills an array with N(0, std²), by Box and Muller's transform; counts Philox's blocks from `first` on.

    Computed in double precision; |η| < 6.8 std, as the uniform numbers behind it have 32 bits.
    """
    words, normal, flat = np.empty((4, _BLOCKS), np.uint32), np.empty((4, _BLOCKS)), result.reshape(result.size)
    drawn = normal.reshape(normal.size)
    for start in range(0, flat.size, drawn.size):
        philox(key, np.uint64(first + start // 4), words)
        box_muller(words[0], words[1], normal[0], normal[1])
        box_muller(words[2], words[3], normal[2], normal[3])
        into = flat[start : start + drawn.size]
        for k in range(into.size):
            into[k] = std * drawn[k]


@_compiled
def philox(key, first, words):
    """words[:, i] = Philox 4x32-10 (Salmon et al. 2011) of key (key₀, key₁) and counter first + i, then key₂, key₃."""
    shift = np.uint64(32)
    for i in range(words.shape[1]):
        index = np.uint64(first) + np.uint64(i)
        a, b, c, d = index & _WORD, index >> shift, key[2], key[3]
        k, m = key[0], key[1]
        for _ in range(10):
            x, y = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
            a, b, c, d = (y >> shift) ^ b ^ k, y & _WORD, (x >> shift) ^ d ^ m, x & _WORD
            k, m = (k + np.uint64(0x9E3779B9)) & _WORD, (m + np.uint64(0xBB67AE85)) & _WORD
        words[0, i], words[1, i], words[2, i], words[3, i] = a, b, c, d


@_compiled
def box_muller(radial, angular, x, y):
    """(x, y) = √(−2 ln u) (cos φ, sin φ), u = (radial + ½)/2³² and φ = 2π (angular + ½)/2³² − π; both to 1e-9.

    ln u = e ln 2 + ln m with m in [√½, √2), by the series of artanh((m − 1)/(m + 1)); the sine and cosine of φ/2 by
    theirs, and then of φ.
    """
    shift, root = np.int64(52), np.int64(0x3FE6A09E667F3BCD)  # the bits of √½
    for i in range(radial.shape[0]):
        bits = np.float64((np.float64(np.int64(radial[i])) + 0.5) * 2.0**-32).view(np.int64)
        e = (bits - root) >> shift
        m = np.int64(bits - (e << shift)).view(np.float64)
        t = (m - 1) / (m + 1)
        square = t * t
        series = 0.0
        for odd in (9, 7, 5, 3, 1):
            series = series * square + 1 / odd
        radius = math.sqrt(-2 * (2 * t * series + e * 0.6931471805599453))
        half = ((np.float64(np.int64(angular[i])) + 0.5) * 2.0**-32 - 0.5) * math.pi
        square = -half * half
        sine, cosine = 0.0, 0.0
        for factorial in (1307674368000, 6227020800, 39916800, 362880, 5040, 120, 6, 1):
            sine = sine * square + 1 / factorial
        for factorial in (87178291200, 479001600, 3628800, 40320, 720, 24, 2, 1):
            cosine = cosine * square + 1 / factorial
        sine *= half
        x[i], y[i] = radius * (cosine * cosine - sine * sine), radius * 2 * sine * cosine
