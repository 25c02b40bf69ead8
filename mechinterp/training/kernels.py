"""Compiled kernels of the fused engine: the gradient of a part of the batch, and the update.

`fused.py` gives the equations and names. Sequences go through in chunks small enough that a chunk's activations and the
weights stay in a core's cache; matrix products are BLAS calls on a chunk's rows, everything of one sequence is a loop.
No kernel holds Python's interpreter lock or allocates, so parts of a batch run on threads of their own. They meet twice
in a step, in `step_part`: waking a thread takes as long as hundreds of products.
"""

import math
import sys
from typing import NamedTuple, no_type_check

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  what np.dot calls; loaded here so that its threads can be limited
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

CHUNK = 16
"""Sequences that go through the network together."""
_BLOCK = 48
"""Rows that are multiplied together: BLAS is fastest where the product takes less than 10⁶ multiplications."""
_LANES = 16
"""Contents are padded to a multiple of this, so that loops over them have no remainder."""
_TOGETHER = 4
"""Tokens are padded to a multiple of this: so many are added up at once, while the sum is in registers."""
_PIECE = 1024
"""Parameters that are updated together: what is added up stays in the innermost cache."""
_TILE = 16
"""Side of the squares in which a matrix is transposed: the lines of a column of 16 fit in the innermost cache."""

_LINE = 8
"""Integers in a cache line."""
_LOOKS = 10_000
"""How often a part looks whether the others have come, before it lets other threads run: some 20 µs."""
_yield = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())

_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


class Sizes(NamedTuple):
    """The network's shape."""

    d_model: int
    depth: int
    width: int
    n_labels: int


class Tokens(NamedTuple):
    """A batch as arrays; see `TokenTable`. Without a table every content is a sequence's own and fills the token."""

    shared: NDArray
    own: NDArray
    content: NDArray
    positions: NDArray
    labels: NDArray


class Clamps(NamedTuple):
    """Fixed patterns that take the place of attention: A ← free·A + fixed in layer 1, a ← free·a + fixed in layer 2."""

    on: bool
    """False where nothing is clamped; the arrays are then not read."""
    free1: NDArray
    """What is left of layer 1's pattern, [1]."""
    fixed1: NDArray
    """What is added to it, [query, key]."""
    free2: NDArray
    """What is left of the target's pattern in layer 2, [sequence]."""
    fixed2: NDArray
    """What is added to it, [sequence, key]."""


class Common(NamedTuple):
    """What the parts of a step share: each fills its rows of M and of the transposes."""

    M: NDArray
    transposed: NDArray
    arrived: NDArray
    """The last meeting that each part has reached, a cache line apart; the last entry is not 0 if one was given up."""
    correct: NDArray
    """Correct answers of each part; −1 where the batch is invalid."""


class Scratch(NamedTuple):
    """One part's memory, allocated once: fresh pages cost more than the arithmetic on them."""

    room: NDArray
    old: NDArray
    by_shared: NDArray
    by_own: NDArray
    dby_shared: NDArray
    dby_own: NDArray
    dM: NDArray
    c: NDArray
    seek: NDArray
    y: NDArray
    A: NDArray
    dA: NDArray
    a: NDArray
    free_A: NDArray
    free_a: NDArray
    ds: NDArray
    seen: NDArray
    dseen: NDArray
    rows: NDArray
    left: NDArray
    right: NDArray
    v: NDArray
    q: NDArray
    z: NDArray
    dw: NDArray
    dq: NDArray
    dkappa: NDArray
    hidden: NDArray
    dhidden: NDArray
    logits: NDArray


def classifier_size(sizes: Sizes) -> int:
    """Number of the classifier's weights and biases."""
    hidden = (sizes.d_model + 1) * sizes.width + (sizes.depth - 1) * (sizes.width + 1) * sizes.width
    return (hidden + sizes.width * sizes.n_labels) if sizes.depth else sizes.d_model * sizes.n_labels


def scratch(sizes: Sizes, n: int, n_pos: int, n_shared: int, n_own: int, content_dim: int, dtype: np.dtype) -> Scratch:
    """Memory for a part of n sequences."""
    d, padded = sizes.d_model, -(-content_dim // _LANES) * _LANES
    n_tokens = -(-n_pos // _TOGETHER) * _TOGETHER

    def of(*shape: int) -> NDArray:
        return np.zeros(shape, dtype)

    return Scratch(
        room=of(4 * d * d + classifier_size(sizes)),
        old=of(2 * d * d),
        by_shared=of(n_shared, d),
        by_own=of(CHUNK * n_own, d),
        dby_shared=of(n_shared, d),
        dby_own=of(CHUNK * n_own, d),
        dM=of(content_dim, d),
        c=of(CHUNK, n_tokens, padded),
        seek=of(padded),
        y=of(n_pos, padded),
        A=of(CHUNK, n_pos, n_tokens),
        dA=of(n_pos, n_tokens),
        a=of(CHUNK, n_tokens),
        free_A=of(CHUNK, n_pos, n_tokens),
        free_a=of(CHUNK, n_tokens),
        ds=of(CHUNK, n_tokens),
        seen=of(CHUNK, 2, n_tokens),
        dseen=of(CHUNK, 2, n_tokens),
        rows=of(4, CHUNK, d),
        left=of(3, n, d),
        right=of(3, n, d),
        v=of(n, d),
        q=of(n, d),
        z=of(n, d),
        dw=of(n, d),
        dq=of(n, d),
        dkappa=of(n, d),
        hidden=of((sizes.depth + 1) * n * max(d, sizes.width)),
        dhidden=of((sizes.depth + 1) * n * max(d, sizes.width)),
        logits=of(n, sizes.n_labels),
    )


def common(sizes: Sizes, n_parts: int, dtype: np.dtype) -> Common:
    """Memory that n parts share."""
    d = sizes.d_model
    return Common(
        M=np.zeros((d, d), dtype),
        transposed=np.zeros(4 * d * d + classifier_size(sizes), dtype),
        arrived=np.zeros(_LINE * (n_parts + 1), np.int64),
        correct=np.zeros(n_parts, np.int64),
    )


def give_up(shared: Common) -> None:
    """Releases the parts that wait for one that will not come."""
    shared.arrived[-1] = 1


@_compiled
@no_type_check
def _matrix(flat, at, rows, columns):
    return flat[at : at + rows * columns].reshape(rows, columns)


@_compiled
@no_type_check
def _transpose(matrix, part, n_parts, result):
    """A part's rows of the matrix as columns of its transpose.

    BLAS takes a few rows times a matrix twice as fast as times a transposed one.
    """
    rows, columns = matrix.shape
    stop = rows * (part + 1) // n_parts
    for top in range(rows * part // n_parts, stop, _TILE):
        for left in range(0, columns, _TILE):
            for j in range(left, min(left + _TILE, columns)):
                for i in range(top, min(top + _TILE, stop)):
                    result[j, i] = matrix[i, j]


@_compiled
@no_type_check
def _set(x, n, value):
    """x[:n] = value; for short vectors a loop is several times faster than NumPy's assignment."""
    value = x.dtype.type(value)
    for k in range(n):
        x[k] = value


@_compiled
@no_type_check
def _copy(x, n, to):
    """to[:n] = x[:n], sixteen at a time; the last sixteen may overlap those before."""
    if n < 16:
        for k in range(n):
            to[k] = x[k]
        return
    for block in range(0, n - 15, 16):
        for k in range(16):
            to[block + k] = x[block + k]
    for k in range(16):
        to[n - 16 + k] = x[n - 16 + k]


@_compiled
@no_type_check
def _add(matrix, to):
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            to[i, j] += matrix[i, j]


@_compiled
@no_type_check
def _outer(left, right, room, out):
    """out = leftᵀ right; `room` takes the products of blocks of rows."""
    np.dot(left[:_BLOCK].T, right[:_BLOCK], out)
    temporary = _matrix(room, 0, *out.shape)
    for block in range(_BLOCK, left.shape[0], _BLOCK):
        np.dot(left[block : block + _BLOCK].T, right[block : block + _BLOCK], temporary)
        _add(temporary, out)


@_compiled
@no_type_check
def _exp(x):
    """eˣ for x ≤ 0, to 3e-14: 2ᵏ times the series of a rest r, |r| ≤ ln 2/2. Unlike math.exp, loops of it vectorise."""
    x = -700.0 if x < -700.0 else x  # a NaN passes
    k = np.rint(x * 1.4426950408889634)
    r = x - k * 0.6931471803691238 - k * 1.9082149292705877e-10
    series = 1 / 6227020800
    for factorial in (479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1):
        series = series * r + 1 / factorial
    return series * np.int64((np.int64(k) + 1023) << 52).view(np.float64)


@_compiled
@no_type_check
def _below_largest(row, n):
    """Subtracts the largest of the first n entries; the others become so small that their exponential is 0."""
    largest = row[0]
    for j in range(1, n):
        largest = max(largest, row[j])
    for j in range(n):
        row[j] -= largest
    _set(row[n:], row.shape[0] - n, -700)


@_compiled
@no_type_check
def _exponential(x):
    """In place, of all entries."""
    flat = x.reshape(x.size)
    for k in range(flat.shape[0]):
        flat[k] = _exp(flat[k])


@_compiled
@no_type_check
def _normalise(row):
    total = row.dtype.type(0)
    for j in range(row.shape[0]):
        total += row[j]
    inverse = 1 / total
    for j in range(row.shape[0]):
        row[j] *= inverse


@_compiled
@no_type_check
def _softmax(row, n):
    """In place, of the first n entries; the others become 0."""
    _below_largest(row, n)
    _exponential(row)
    _normalise(row)


@_compiled
@no_type_check
def _clamp(row, n, free, fixed, kept):
    """row ← free·row + fixed for the first n entries of a pattern; `kept` takes what it was."""
    for j in range(n):
        kept[j] = row[j]
        row[j] = free * row[j] + fixed[j]


@_compiled
@no_type_check
def _softmax_slopes(pattern, n, free, slopes):
    """In place, from the slopes ∂ℒ/∂(free·p + fixed) to those of the scores that p is the softmax of."""
    mean = _dot(pattern, slopes, n)
    for j in range(n):
        slopes[j] = free * (pattern[j] * (slopes[j] - mean))


@_compiled
@no_type_check
def _dot(x, y, n):
    total = x.dtype.type(0)
    for k in range(n):
        total += x[k] * y[k]
    return total


@_compiled
@no_type_check
def _read(seek, c, positions, padded, P, out):
    """out_j = u_j · seek for the tokens u_j = one-hot(p_j) ⊕ c_j; `padded` takes seek's content."""
    D = seek.shape[0] - P
    _copy(seek[P:], D, padded)
    for j in range(positions.shape[0]):
        out[j] = _dot(c[j], padded, c.shape[1])
    if P:
        for j in range(positions.shape[0]):
            out[j] += seek[positions[j]]


@_compiled
@no_type_check
def _mean(weights, c, positions, padded, P, out):
    """out = Σ_j weights_j u_j; `weights` is 0 where c is padding, and `padded` takes the sum of contents."""
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
        _set(out, P, 0)
        for j in range(positions.shape[0]):
            out[positions[j]] += weights[j]
    _copy(padded, out.shape[0] - P, out[P:])


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


@_compiled
@no_type_check
def _meet(arrived, part, n_parts, meeting):
    """Waits until every part has reached a meeting, the number of which grows; False if one was given up.

    It looks again and again, as parts arrive within microseconds of each other; after a while, as the others may have
    no core to run on, it offers them its own in between.
    """
    _store(arrived, _LINE * part, meeting)
    looked = 0
    for other in range(n_parts):
        while _load(arrived, _LINE * other) < meeting:
            gave_up = _load(arrived, arrived.shape[0] - 1) != 0
            if gave_up and _load(arrived, _LINE * other) < meeting:  # else it came before somebody gave up
                return False
            looked += 1
            if looked > _LOOKS:
                _yield()
    return True


@_compiled
@no_type_check
def step_part(sizes, flat, shares, gradient, update, tokens, clamps, bounds, part, turn, shared, memory):
    """A part's share of a step: of what all parts need, of the batch's gradient, and of the update.

    Returns the summed loss and number of correct answers of the part's sequences. The number is −1, and no part
    updates anything, if a label, content or position of the batch is out of range.
    """
    n_parts = shares.shape[0]
    P = sizes.d_model - tokens.shared.shape[1]
    _prepare(sizes, P, flat, part, n_parts, shared, memory)
    if not _meet(shared.arrived, part, n_parts, 2 * turn - 1):
        return 0.0, 0
    loss, correct = part_gradient(sizes, flat, shares[part], tokens, clamps, bounds[0], bounds[1], shared, memory)
    shared.correct[part] = correct
    if not _meet(shared.arrived, part, n_parts, 2 * turn) or shared.correct.min() < 0:
        return loss, correct
    _update(sizes, P, flat, shares, gradient, update, part, memory)
    return loss, correct


@_compiled
@no_type_check
def _prepare(sizes, P, flat, part, n_parts, shared, memory):
    """The part's rows of M and of the transposes; and a copy of W_Q¹ and W_K¹, whose rows are turned: content first."""
    d, depth, width, n_labels = sizes
    D, square, turned, old = d - P, d * d, shared.transposed, memory.old
    _copy(flat, square, old)
    _copy(flat[square + P * d :], D * d, old[square:])
    _copy(flat[square:], P * d, old[square + D * d :])
    first, stop = d * part // n_parts, d * (part + 1) // n_parts
    np.dot(_matrix(flat, first * d, stop - first, d), _matrix(old, square, d, d).T, shared.M[first:stop])
    for slot in range(4):  # W_V¹, W_Q², W_K², W_V²
        _transpose(_matrix(flat, (slot + 2) * square, d, d), part, n_parts, _matrix(turned, slot * square, d, d))
    at, inner = 6 * square, d
    for _ in range(depth):
        _transpose(_matrix(flat, at, inner, width), part, n_parts, _matrix(turned, at - 2 * square, width, inner))
        at, inner = at + inner * width + width, width
    into = _matrix(turned, at - 2 * square, n_labels, inner)
    _transpose(_matrix(flat, at, inner, n_labels), part, n_parts, into)


@_compiled
@no_type_check
def part_gradient(sizes, flat, gradient, tokens, clamps, start, stop, shared, memory):
    """Summed loss and number of correct answers of sequences start … stop; their share of the gradient.

    `gradient` has the layout of the parameters, except that in place of W_Q¹'s stands that of M.
    """
    d, depth, width, n_labels = sizes
    known, own, content, positions, labels = tokens
    B, T = content.shape
    n_shared, n_own, D = known.shape[0], own.shape[1], own.shape[2]
    P, n = d - D, stop - start
    for b in range(start, stop):
        if not 0 <= labels[b] < n_labels:
            return 0.0, -1
        for i in range(T):
            if not (0 <= content[b, i] < n_shared + n_own and (P == 0 or 0 <= positions[b, i] < P)):
                return 0.0, -1
    square = d * d
    V1, Q2 = _matrix(flat, 2 * square, d, d), _matrix(flat, 3 * square, d, d)
    K2, V2 = _matrix(flat, 4 * square, d, d), _matrix(flat, 5 * square, d, d)
    turned = shared.transposed
    V1T, Q2T = _matrix(turned, 0, d, d), _matrix(turned, square, d, d)
    K2T, V2T = _matrix(turned, 2 * square, d, d), _matrix(turned, 3 * square, d, d)
    wide = min(memory.c.shape[2], d)  # contents, and padding or positions that are multiplied by 0
    M, by_shared, padded = shared.M, memory.by_shared, memory.seek
    padded[:] = 0  # what pads contents must be finite: it is multiplied by 0
    memory.y[:] = 0
    if n_shared:
        np.dot(known, M[P:], by_shared)
        memory.dby_shared[:] = 0
    dM = _matrix(gradient, 0, d, d)
    dM[:] = 0
    loss, correct, zero, one, scale = 0.0, 0, flat.dtype.type(0), flat.dtype.type(1), flat.dtype.type(1 / B)

    for first in range(start, stop, CHUNK):
        here = min(CHUNK, stop - first)
        lo, hi = first - start, first - start + here
        v, q, z, dw, dq, dkappa = (
            memory.v[lo:hi],
            memory.q[lo:hi],
            memory.z[lo:hi],
            memory.dw[lo:hi],
            memory.dq[lo:hi],
            memory.dkappa[lo:hi],
        )
        mean_m, drho, x = memory.left[0, lo:hi], memory.left[1, lo:hi], memory.left[2, lo:hi]
        dz, kappa, dv = memory.right[0, lo:hi], memory.right[1, lo:hi], memory.right[2, lo:hi]
        rho, w, dx, temporary = (
            memory.rows[0, :here],
            memory.rows[1, :here],
            memory.rows[2, :here],
            memory.rows[3, :here],
        )

        # Layer 1: scores and pattern of every token, and the mean token that the target reads.
        contents = own[first : first + here].reshape(here * n_own, D)
        by_own, dby_own = memory.by_own[: here * n_own], memory.dby_own[: here * n_own]
        for block in range(0, here * n_own, _BLOCK):
            np.dot(contents[block : block + _BLOCK], M[P:], by_own[block : block + _BLOCK])
        for b in range(here):
            c, A, where = memory.c[b], memory.A[b], positions[first + b]
            for i in range(T):
                index = content[first + b, i]
                if index < n_shared:
                    _copy(known[index], D, c[i])
                else:
                    _copy(own[first + b, index - n_shared], D, c[i])
            y = memory.y
            for i in range(T):
                index = content[first + b, i]
                source = by_shared[index] if index < n_shared else by_own[b * n_own + index - n_shared]
                if P:
                    of_position, of_token = M[where[i]], y[i]
                    for k in range(wide):
                        of_token[k] = source[k] + of_position[k]
                else:
                    _copy(source, D, y[i])
            np.dot(y, c.T, A)
            for i in range(T):
                row = A[i]
                if P:
                    index = content[first + b, i]
                    source = by_shared[index] if index < n_shared else by_own[b * n_own + index - n_shared]
                    of_position = M[where[i]]
                    for j in range(i + 1):
                        row[j] += source[D + where[j]] + of_position[D + where[j]]
                _below_largest(row, i + 1)
        _exponential(memory.A[:here])
        for b in range(here):
            c, A, where = memory.c[b], memory.A[b], positions[first + b]
            for i in range(T):
                _normalise(A[i])
            if clamps.on:
                for i in range(T):
                    _clamp(A[i], i + 1, clamps.free1[0], clamps.fixed1[i], memory.free_A[b, i])
            _mean(A[T - 1], c, where, padded, P, x[b])
        np.dot(x, V1, v)
        for b in range(here):
            for k in range(D):
                v[b, P + k] += memory.c[b, T - 1, k]
            if P:
                v[b, positions[first + b, T - 1]] += 1

        # Layer 2: scores and pattern of the target, through κ and ρ, and what it reads.
        np.dot(v, Q2, q)
        np.dot(q, K2T, kappa)
        np.dot(kappa, V1T, rho)
        for b in range(here):
            c, A, a, where = memory.c[b], memory.A[b], memory.a[b], positions[first + b]
            by_u, by_m = memory.seen[b, 0], memory.seen[b, 1]
            _read(kappa[b], c, where, padded, P, by_u)
            _read(rho[b], c, where, padded, P, by_m)
            for j in range(T):
                a[j] = by_u[j] + _dot(A[j], by_m, j + 1)
            _softmax(a, T)
            if clamps.on:
                _clamp(a, T, clamps.free2[first + b], clamps.fixed2[first + b], memory.free_a[b])
            mixed = memory.dseen[b, 0]
            _set(mixed, T, 0)
            for j in range(T):
                for m in range(j + 1):
                    mixed[m] += a[j] * A[j, m]
            _mean(a, c, where, padded, P, z[b])
            _mean(mixed, c, where, padded, P, mean_m[b])
        np.dot(mean_m, V1, temporary)
        z += temporary
        np.dot(z, V2, w)
        w += v

        # Classifier.
        at, inner = 6 * square, d
        held = 0
        hidden = _matrix(memory.hidden, lo * d, here, d)
        hidden[:] = w
        for _ in range(depth):
            W = _matrix(flat, at, inner, width)
            bias = flat[at + inner * width : at + inner * width + width]
            at += inner * width + width
            held += n * inner
            following = _matrix(memory.hidden, held + lo * width, here, width)
            np.dot(hidden, W, following)
            for b in range(here):
                for k in range(width):
                    following[b, k] = max(following[b, k] + bias[k], zero)
            hidden, inner = following, width
        readout = _matrix(flat, at, inner, n_labels)
        logits = memory.logits[lo:hi]
        np.dot(hidden, readout, logits)
        for b in range(here):
            row, label = logits[b], labels[first + b]
            best = 0
            for k in range(1, n_labels):
                if row[k] > row[best]:
                    best = k
            above = row[best] - row[label]
            _softmax(row, n_labels)
            correct += best == label
            loss += above - math.log(row[best])
            row[label] -= 1
            row *= scale
        dhidden = _matrix(memory.dhidden, held + lo * inner, here, inner)
        np.dot(logits, _matrix(turned, at - 2 * square, n_labels, inner), dhidden)
        for layer in range(depth - 1, -1, -1):
            outer = width if layer else d
            at -= outer * width + width
            WT = _matrix(turned, at - 2 * square, width, outer)
            hidden = _matrix(memory.hidden, held + lo * width, here, width)
            for b in range(here):
                for k in range(width):
                    if not hidden[b, k] > 0:
                        dhidden[b, k] = 0
            held -= n * outer
            following = _matrix(memory.dhidden, held + lo * outer, here, outer)
            np.dot(dhidden, WT, following)
            dhidden = following
        dw[:] = dhidden

        # Layer 2, backward: value path, pattern, then κ and ρ.
        np.dot(dw, V2T, dz)
        np.dot(dz, V1T, temporary)
        for b in range(here):
            c, A, a, ds, where = memory.c[b], memory.A[b], memory.a[b], memory.ds[b], positions[first + b]
            dby_u, dby_m = memory.dseen[b, 0], memory.dseen[b, 1]
            _read(dz[b], c, where, padded, P, dby_u)
            _read(temporary[b], c, where, padded, P, dby_m)
            for j in range(T):
                ds[j] = dby_u[j] + _dot(A[j], dby_m, j + 1)
            if clamps.on:
                _softmax_slopes(memory.free_a[b], T, clamps.free2[first + b], ds)
            else:
                _softmax_slopes(a, T, one, ds)
            mixed = dby_u
            _set(mixed, T, 0)
            for j in range(T):
                for m in range(j + 1):
                    mixed[m] += ds[j] * A[j, m]
            _mean(ds, c, where, padded, P, dkappa[b])
            _mean(mixed, c, where, padded, P, drho[b])
        np.dot(drho, V1, temporary)
        dkappa += temporary
        np.dot(dkappa, K2, dq)
        np.dot(dq, Q2T, dv)
        dv += dw

        # Layer 1, backward: its pattern is read by b and by layer 2's scores, and in the target's row by v.
        np.dot(dv, V1T, dx)
        dby_own[:] = 0
        for b in range(here):
            c, A, a, ds, where = memory.c[b], memory.A[b], memory.a[b], memory.ds[b], positions[first + b]
            by_m, dby_m, from_x = memory.seen[b, 1], memory.dseen[b, 1], memory.dseen[b, 0]
            _read(dx[b], c, where, padded, P, from_x)
            y, slopes = memory.y, memory.dA
            for i in range(T):
                row = slopes[i]
                for j in range(i + 1):
                    row[j] = a[i] * dby_m[j] + ds[i] * by_m[j]
                if i == T - 1:
                    for j in range(T):
                        row[j] += from_x[j]
                if clamps.on:
                    _softmax_slopes(memory.free_A[b, i], i + 1, clamps.free1[0], row)
                else:
                    _softmax_slopes(A[i], i + 1, one, row)
            np.dot(slopes, c, y)
            for i in range(T):
                index = content[first + b, i]
                to = memory.dby_shared[index] if index < n_shared else dby_own[b * n_own + index - n_shared]
                of_token = y[i]
                for k in range(wide):
                    to[k] += of_token[k]
                if P:
                    row, of_position = slopes[i], dM[where[i]]
                    for k in range(wide):
                        of_position[k] += of_token[k]
                    for j in range(i + 1):
                        to[D + where[j]] += row[j]
                        of_position[D + where[j]] += row[j]
        for block in range(0, here * n_own, _BLOCK):
            np.dot(contents[block : block + _BLOCK].T, dby_own[block : block + _BLOCK], memory.dM)
            _add(memory.dM, dM[P:])

    # Gradients of the weights, over all sequences of the part.
    if n_shared:
        np.dot(known.T, memory.dby_shared, memory.dM)
        _add(memory.dM, dM[P:])
    left, right = memory.left.reshape(3 * n, d), memory.right.reshape(3 * n, d)
    room = memory.room
    _outer(left, right, room, _matrix(gradient, 2 * square, d, d))
    _outer(memory.v[:n], memory.dq[:n], room, _matrix(gradient, 3 * square, d, d))
    _outer(memory.dkappa[:n], memory.q[:n], room, _matrix(gradient, 4 * square, d, d))
    _outer(memory.z[:n], memory.dw[:n], room, _matrix(gradient, 5 * square, d, d))
    at, held, inner = 6 * square, 0, d
    for _ in range(depth):
        hidden = _matrix(memory.hidden, held, n, inner)
        held += n * inner
        dhidden = _matrix(memory.dhidden, held, n, width)
        _outer(hidden, dhidden, room, _matrix(gradient, at, inner, width))
        bias = gradient[at + inner * width : at + inner * width + width]
        bias[:] = 0
        for b in range(n):
            for k in range(width):
                bias[k] += dhidden[b, k]
        at, inner = at + inner * width + width, width
    _outer(_matrix(memory.hidden, held, n, inner), memory.logits[:n], room, _matrix(gradient, at, inner, n_labels))
    return loss, correct


@_compiled
@no_type_check
def _descend(flat, at, total, gradient, update):
    """p ← (1−shrinkage)·p − rate·total for the parameters from `at` on, or only keeps their gradient."""
    wanted, shrinkage, rate = update
    if not wanted:
        _copy(total, total.shape[0], gradient[at:])
        return
    keep, step = flat.dtype.type(1 - shrinkage), flat.dtype.type(rate)
    for k in range(total.shape[0]):
        flat[at + k] = keep * flat[at + k] - step * total[k]


@_compiled
@no_type_check
def _update(sizes, P, flat, shares, gradient, update, part, memory):
    """The gradient, as the sum of the parts' shares, and what `_descend` does with it, for a part of the parameters.

    The shares hold the gradient of M = W_Q¹ W_K¹ᵀ where that of W_Q¹ belongs: ∂W_Q¹ = ∂M W_K¹ and ∂W_K¹ = ∂Mᵀ W_Q¹, of
    which this part takes its rows, from the weights that `_prepare` has kept.
    """
    d, n_parts = sizes.d_model, shares.shape[0]
    D, square = d - P, d * d
    first, stop = d * part // n_parts, d * (part + 1) // n_parts
    rows, old, room = stop - first, memory.old, memory.room
    of_rows, of_columns = _matrix(room, 0, rows, d), _matrix(room, rows * d, d, rows)
    total = room[2 * rows * d : 3 * rows * d]
    of_rows[:] = 0
    of_columns[:] = 0
    n_turned = max(0, min(stop, P) - first)  # of these columns, those of positions, which the shares have last
    for share in range(n_parts):
        dM = _matrix(shares[share], 0, d, d)
        _add(dM[first:stop], of_rows)
        _add(dM[:, D + first : D + first + n_turned], of_columns[:, :n_turned])
        _add(dM[:, first + n_turned - P : stop - P], of_columns[:, n_turned:])
    np.dot(of_rows, _matrix(old, square, d, d), total.reshape(rows, d))
    _descend(flat, first * d, total, gradient, update)
    np.dot(of_columns.T, _matrix(old, 0, d, d), total.reshape(rows, d))
    _descend(flat, square + first * d, total, gradient, update)
    others = flat.shape[0] - 2 * square
    first, stop = 2 * square + others * part // n_parts, 2 * square + others * (part + 1) // n_parts
    for at in range(first, stop, _PIECE):
        total = room[: min(_PIECE, stop - at)]
        _copy(shares[0, at:], total.shape[0], total)
        for share in range(1, n_parts):
            of_share = shares[share, at:]
            for k in range(total.shape[0]):
                total[k] += of_share[k]
        _descend(flat, at, total, gradient, update)
