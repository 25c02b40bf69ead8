"""Small compiled helpers. Loops over short vectors are several times faster than NumPy's operations on them."""

from typing import Any

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  what products call; loaded here so that its threads can be limited
from numba import types
from numba.extending import intrinsic
from numba.np.linalg import dot_3_mm, ensure_blas

from mechinterp.compilation import compiler

_BLOCK = 48
"""Rows that are multiplied together: BLAS is fastest where the product takes less than 10⁶ multiplications."""
_TILE = 16
"""Side of the squares in which a matrix is transposed: the lines of a column of 16 fit in the innermost cache."""

_FAST: Any = {"error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz"}, "_nrt": False}

entry = compiler(**_FAST, cache=True, no_cfunc_wrapper=True)
"""Compiles a function that Python calls, without the interpreter's lock, and keeps the result on disk."""
compiled = compiler(**_FAST, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Compiles a function that compiled functions call. Python cannot call it."""
kept = compiler(**_FAST, cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""The same, with the result on disk, where another process may have put it (`step.compiled_beside`)."""
inlined = compiler(**_FAST, inline="always", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""The same as part of its callers: to hand over dozens of arrays would cost a tenth of the step."""


@intrinsic
def _product(typing, left, right, out):
    """As np.dot(left, right, out), which returns an array, and so needs references to be counted."""

    def generate(context, builder, signature, arguments):
        ensure_blas()
        dot_3_mm(context, builder, out(left, right, out), arguments)
        return context.get_dummy_value()

    return types.void(left, right, out), generate


@compiled
def product(left, right, out):
    """out = left right, by BLAS, for matrices (rows, k), (k, m) and (rows, m)."""
    _product(left, right, out)  # pyright: ignore[reportCallIssue]


@inlined
def matrix(flat, at, rows, columns):
    """View of flat[at:] as a matrix (rows, columns)."""
    return flat[at : at + rows * columns].reshape(rows, columns)


@inlined
def square(flat, slot, d):
    """View (d, d) of the slot-th of the square matrices with which `flat` begins."""
    return matrix(flat, slot * d * d, d, d)


@compiled
def transpose(source, part, n_parts, target):
    """A part's rows of the source (rows, columns) as columns of the target (columns, rows)."""
    rows, columns = source.shape
    stop = rows * (part + 1) // n_parts
    for top in range(rows * part // n_parts, stop, _TILE):
        for left in range(0, columns, _TILE):
            for j in range(left, min(left + _TILE, columns)):
                for i in range(top, min(top + _TILE, stop)):
                    target[j, i] = source[i, j]


@compiled
def fill(x, n, value):
    """x[:n] = value, for a vector x."""
    value = x.dtype.type(value)
    for k in range(n):
        x[k] = value


@compiled
def clear(x):
    """x = 0, for a contiguous array."""
    fill(x.reshape(x.size), x.size, 0)


@compiled
def copy(x, n, to):
    """to[:n] = x[:n] for vectors, sixteen entries at a time; the last sixteen may overlap those before."""
    if n < 16:
        for k in range(n):
            to[k] = x[k]
        return
    for block in range(0, n - 15, 16):
        for k in range(16):
            to[block + k] = x[block + k]
    for k in range(16):
        to[n - 16 + k] = x[n - 16 + k]


@compiled
def add(source, to):
    """to += source, for matrices of one shape."""
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            to[i, j] += source[i, j]


@compiled
def dot(x, y, n):
    """Σ_k x_k y_k over the first n entries of two vectors."""
    total = x.dtype.type(0)
    for k in range(n):
        total += x[k] * y[k]
    return total


@compiled
def blockwise_dot(left, right, out):
    """out = left right, for matrices (rows, k), (k, m) and (rows, m)."""
    for block in range(0, left.shape[0], _BLOCK):
        product(left[block : block + _BLOCK], right, out[block : block + _BLOCK])


@compiled
def outer(left, right, room, out):
    """out = leftᵀ right, for matrices (rows, k), (rows, m) and (k, m); `room` (≥ k·m) takes products of blocks."""
    product(left[:_BLOCK].T, right[:_BLOCK], out)
    of_block = matrix(room, 0, out.shape[0], out.shape[1])
    for block in range(_BLOCK, left.shape[0], _BLOCK):
        product(left[block : block + _BLOCK].T, right[block : block + _BLOCK], of_block)
        add(of_block, out)


@compiled
def add_outer(left, right, of_block, to):
    """to += leftᵀ right, for matrices (rows, k), (rows, m) and (k, m); `of_block` (k, m) takes products of blocks."""
    for block in range(0, left.shape[0], _BLOCK):
        product(left[block : block + _BLOCK].T, right[block : block + _BLOCK], of_block)
        add(of_block, to)


@compiled
def exp(x):
    """eˣ for x ≤ 0, to 3e-14: 2ᵏ times the series of a rest r, |r| ≤ ln 2/2. Unlike math.exp, loops of it vectorise."""
    x = -700.0 if x < -700.0 else x  # a NaN passes
    k = np.rint(x * 1.4426950408889634)
    r = x - k * 0.6931471803691238 - k * 1.9082149292705877e-10
    series = 1 / 6227020800
    for factorial in (479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1):
        series = series * r + 1 / factorial
    return series * np.int64((np.int64(k) + 1023) << 52).view(np.float64)


@compiled
def subtract_largest(row, n):
    """Subtracts the largest of the first n entries; the others become so small that their exponential is 0."""
    largest = row[0]
    for j in range(1, n):
        largest = max(largest, row[j])
    for j in range(n):
        row[j] -= largest
    fill(row[n:], row.shape[0] - n, -700)


@compiled
def exponential(x):
    """x ← eˣ for all entries of a contiguous array, none above 0."""
    flat = x.reshape(x.size)
    for k in range(flat.shape[0]):
        flat[k] = exp(flat[k])


@compiled
def normalise(row):
    """Divides a vector by its sum."""
    total = row.dtype.type(0)
    for j in range(row.shape[0]):
        total += row[j]
    inverse = 1 / total
    for j in range(row.shape[0]):
        row[j] *= inverse


@compiled
def softmax(row, n):
    """In place, of the first n entries of a vector; the others become 0."""
    subtract_largest(row, n)
    exponential(row)
    normalise(row)


@compiled
def softmax_slopes(pattern, n, free, slopes):
    """In place, from the slopes ∂ℒ/∂(free·p + fixed) to those of the n scores that p is the softmax of."""
    mean = dot(pattern, slopes, n)
    for j in range(n):
        slopes[j] = free * (pattern[j] * (slopes[j] - mean))


@compiled
def clamp(row, n, free, fixed, unclamped):
    """row ← free·row + fixed for the first n entries of a pattern; `unclamped` takes what they were."""
    for j in range(n):
        unclamped[j] = row[j]
        row[j] = free * row[j] + fixed[j]


@compiled
def project(direction, c, positions, padded, P, out):
    """out_j = u_j · direction for the tokens u_j = one-hot(p_j) ⊕ c_j of one sequence.

    Takes a direction (d), contents c (T′, D′) and positions (T); gives out (T). `padded` (D′) takes the direction's
    content; what pads it must be finite.
    """
    D = direction.shape[0] - P
    copy(direction[P:], D, padded)
    for j in range(positions.shape[0]):
        out[j] = dot(c[j], padded, c.shape[1])
    if P:
        for j in range(positions.shape[0]):
            out[j] += direction[positions[j]]


@compiled
def weighted_sum(weights, c, positions, padded, P, out):
    """out = Σ_j weights_j u_j over the tokens u_j = one-hot(p_j) ⊕ c_j of one sequence.

    Takes weights (T′), 0 where c is padding, contents c (T′, D′) and positions (T); gives out (d). `padded` (D′) takes
    the sum of the contents, four at once while it is in registers.
    """
    for j in range(0, c.shape[0], 4):
        a0, a1, a2, a3 = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        c0, c1, c2, c3 = c[j], c[j + 1], c[j + 2], c[j + 3]
        if j:
            for k in range(c.shape[1]):
                padded[k] += a0 * c0[k] + a1 * c1[k] + a2 * c2[k] + a3 * c3[k]
        else:
            for k in range(c.shape[1]):
                padded[k] = a0 * c0[k] + a1 * c1[k] + a2 * c2[k] + a3 * c3[k]
    if P:
        fill(out, P, 0)
        for j in range(positions.shape[0]):
            out[positions[j]] += weights[j]
    copy(padded, out.shape[0] - P, out[P:])
