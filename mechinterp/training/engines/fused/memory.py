"""The arrays of a step, which are allocated once: fresh pages of memory cost more time than the arithmetic.

Shapes are given beside the fields; the package's docstring lists the symbols.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mechinterp.training.engines.fused.primitives import compiled, inlined, matrix, square
from mechinterp.training.engines.fused.synchronisation import new_arrivals

CHUNK = 16
"""Sequences that are computed together, so few that their activations and the weights stay in cache."""
_LANES = 16
"""Contents are padded to a multiple of this, so that loops over them have no remainder."""
_TOGETHER = 4
"""Tokens are padded to a multiple of this, the number that is added up at once."""


class Sizes(NamedTuple):
    """The network's shape."""

    d_model: int
    depth: int  # hidden layers of the classifier
    width: int  # W
    n_labels: int  # L


class Update(NamedTuple):
    """The update of the parameters: p ← (1−shrinkage)·p − rate·∂ℒ/∂p, or none."""

    wanted: bool  # otherwise only the gradient is kept
    shrinkage: float
    rate: float


class Tokens(NamedTuple):
    """A batch as arrays; see `TokenTable`. Without a table, contents are not shared and P = 0."""

    shared: NDArray  # (n_shared, D) contents that many tokens carry
    own: NDArray  # (B, n_own, D) contents of one sequence
    content: NDArray  # (B, T) index of a token's content: first the shared ones, then those of the sequence
    positions: NDArray  # (B, T) index of a token's position, below P
    labels: NDArray  # (B)


class Clamps(NamedTuple):
    """Fixed patterns that take the place of attention: A ← free·A + fixed in layer 1, a ← free·a + fixed in layer 2."""

    on: bool  # False where nothing is clamped; the arrays are then not read
    free1: NDArray  # (1) what is left of layer 1's pattern
    fixed1: NDArray  # (T, T) what is added to it, by query and key
    free2: NDArray  # (B) what is left of the target's pattern in layer 2
    fixed2: NDArray  # (B, T) what is added to it, by key


class Common(NamedTuple):
    """The memory that the parts of a step share; a part computes some rows of the matrices and one share."""

    flat: NDArray  # (parameters) W_Q¹, W_K¹, W_V¹, W_Q², W_K², W_V², then weights and biases of the classifier
    gradient: NDArray  # (parameters)
    shares: NDArray  # (parts, parameters) of the gradient; in place of W_Q¹'s stands that of M
    M: NDArray  # (d, d) W_Q¹ W_K¹ᵀ; its columns have the content first, then the position
    transposed: NDArray  # (parameters − 2d²) transposes of all matrices but the first two, in the same places
    arrivals: NDArray  # see `synchronisation`
    correct: NDArray  # (parts) correct answers; −1 where the batch is invalid


class Scratch(NamedTuple):
    """The memory of one part. The name d… stands for the derivative of the loss with respect to …."""

    room: NDArray  # (parameters − 2d²) products on their way into a sum
    old: NDArray  # (2d²) W_Q¹, and W_K¹ with content rows first, from before the update
    padded: NDArray  # (D′) a content on its way
    pairs: NDArray  # (T′) numbers by token on their way
    y: NDArray  # (T, D′) u_i M, and its slope
    dS: NDArray  # (T, T′) slopes of layer 1's scores, of one sequence
    shared_M: NDArray  # (n_shared, d) shared contents times M
    own_M: NDArray  # (C, n_own, d) own contents times M
    dshared_M: NDArray  # (n_shared, d)
    down_M: NDArray  # (C, n_own, d)
    dM: NDArray  # (D, d) a product on its way into M's gradient
    c: NDArray  # (C, T′, D′) contents of the tokens
    A: NDArray  # (C, T, T′) pattern of layer 1
    free_A: NDArray  # (C, T, T′) the same before it was clamped
    a: NDArray  # (C, T′) pattern of the target in layer 2
    free_a: NDArray  # (C, T′) the same before it was clamped
    ds: NDArray  # (C, T′)
    u_rho: NDArray  # (C, T′) u_m·ρ
    db: NDArray  # (C, T′)
    rows: NDArray  # (4, C, d) vectors that are needed within a chunk only
    left: NDArray  # (3, n, d) mean token under b, dρ and x: their outer products with `right` sum to the slope of W_V¹
    right: NDArray  # (3, n, d) dz, κ and dv
    v: NDArray  # (n, d) the target after layer 1
    q: NDArray  # (n, d) its query in layer 2
    z: NDArray  # (n, d)
    dw: NDArray  # (n, d)
    dq: NDArray  # (n, d)
    dkappa: NDArray  # (n, d)
    hidden: NDArray  # (n·(d + depth·W)) inputs of the classifier's layers, one layer after another
    dhidden: NDArray  # (n·(d + depth·W))
    logits: NDArray  # (n, L), and their slopes
    sums: NDArray  # (2) loss and number of correct answers, in double precision


class Weights(NamedTuple):
    """The transformer's matrices, all (d, d). BLAS takes a few rows times a transpose that is stored twice as fast."""

    M: NDArray
    V1: NDArray
    Q2: NDArray
    K2: NDArray
    V2: NDArray
    V1T: NDArray
    Q2T: NDArray
    K2T: NDArray
    V2T: NDArray


class Chunk(NamedTuple):
    """Views of a chunk's C sequences in the batch and in a part's memory; names and shapes are those of `Scratch`."""

    first: int  # the first sequence's number within the part
    own: NDArray  # (C, n_own, D)
    content: NDArray  # (C, T)
    positions: NDArray  # (C, T)
    labels: NDArray  # (C)
    clamps: Clamps  # those of the chunk
    v: NDArray  # (C, d), as all that follow
    q: NDArray
    z: NDArray
    dw: NDArray
    dq: NDArray
    dkappa: NDArray
    mean: NDArray  # Σ_m b_m u_m
    drho: NDArray
    x: NDArray
    dz: NDArray
    kappa: NDArray
    dv: NDArray
    rho: NDArray
    w: NDArray
    dx: NDArray
    spare: NDArray


def allocate_common(flat: NDArray, gradient: NDArray, d: int, n_parts: int) -> Common:
    """The memory that n parts share, with the parameters and their gradient."""
    return Common(
        flat=flat,
        gradient=gradient,
        shares=np.zeros((n_parts, flat.size), flat.dtype),
        M=np.zeros((d, d), flat.dtype),
        transposed=np.zeros(flat.size - 2 * d * d, flat.dtype),
        arrivals=new_arrivals(n_parts),
        correct=np.zeros(n_parts, np.int64),
    )


def allocate_scratch(sizes: Sizes, tokens: Tokens, n: int, n_parameters: int) -> Scratch:
    """Memory for a part of n sequences of a batch."""
    d, T, (n_shared, D), n_own = sizes.d_model, tokens.content.shape[1], tokens.shared.shape, tokens.own.shape[1]
    T_padded, D_padded = -(-T // _TOGETHER) * _TOGETHER, -(-D // _LANES) * _LANES

    def of(*shape: int) -> NDArray:
        return np.zeros(shape, tokens.shared.dtype)

    return Scratch(
        room=of(n_parameters - 2 * d * d),
        old=of(2 * d * d),
        padded=of(D_padded),
        pairs=of(T_padded),
        y=of(T, D_padded),
        dS=of(T, T_padded),
        shared_M=of(n_shared, d),
        own_M=of(CHUNK, n_own, d),
        dshared_M=of(n_shared, d),
        down_M=of(CHUNK, n_own, d),
        dM=of(D, d),
        c=of(CHUNK, T_padded, D_padded),
        A=of(CHUNK, T, T_padded),
        free_A=of(CHUNK, T, T_padded),
        a=of(CHUNK, T_padded),
        free_a=of(CHUNK, T_padded),
        ds=of(CHUNK, T_padded),
        u_rho=of(CHUNK, T_padded),
        db=of(CHUNK, T_padded),
        rows=of(4, CHUNK, d),
        left=of(3, n, d),
        right=of(3, n, d),
        v=of(n, d),
        q=of(n, d),
        z=of(n, d),
        dw=of(n, d),
        dq=of(n, d),
        dkappa=of(n, d),
        hidden=of(n * (d + sizes.depth * sizes.width)),
        dhidden=of(n * (d + sizes.depth * sizes.width)),
        logits=of(n, sizes.n_labels),
        sums=np.zeros(2),
    )


@compiled
def weights_of(common: Common) -> Weights:
    """The matrices that the kernels multiply by."""
    flat, turned, d = common.flat, common.transposed, common.M.shape[0]
    V1, Q2, K2, V2 = square(flat, 2, d), square(flat, 3, d), square(flat, 4, d), square(flat, 5, d)
    V1T, Q2T, K2T, V2T = square(turned, 0, d), square(turned, 1, d), square(turned, 2, d), square(turned, 3, d)
    return Weights(common.M, V1, Q2, K2, V2, V1T, Q2T, K2T, V2T)


@compiled
def chunk_of(tokens: Tokens, clamps: Clamps, memory: Scratch, start, first, stop) -> Chunk:
    """Views of the sequences first … stop of the batch, for the part that begins at `start`."""
    lo, hi, size = first - start, stop - start, stop - first
    return Chunk(
        lo,
        tokens.own[first:stop],
        tokens.content[first:stop],
        tokens.positions[first:stop],
        tokens.labels[first:stop],
        Clamps(clamps.on, clamps.free1, clamps.fixed1, clamps.free2[first:stop], clamps.fixed2[first:stop]),
        memory.v[lo:hi],
        memory.q[lo:hi],
        memory.z[lo:hi],
        memory.dw[lo:hi],
        memory.dq[lo:hi],
        memory.dkappa[lo:hi],
        memory.left[0, lo:hi],
        memory.left[1, lo:hi],
        memory.left[2, lo:hi],
        memory.right[0, lo:hi],
        memory.right[1, lo:hi],
        memory.right[2, lo:hi],
        memory.rows[0, :size],
        memory.rows[1, :size],
        memory.rows[2, :size],
        memory.rows[3, :size],
    )


@compiled
def classifier_layer(sizes: Sizes, layer):
    """Where a layer of the classifier begins in the flat parameters, and the number of its inputs."""
    d, width = sizes.d_model, sizes.width
    if layer == 0:
        return 6 * d * d, d
    return 6 * d * d + (d + 1) * width + (layer - 1) * (width + 1) * width, width


@inlined
def layer_inputs(flat, sizes: Sizes, n, layer, first, size):
    """View (size, d or W) of what goes into a layer of the classifier, in memory for the n sequences of a part."""
    if layer == 0:
        return matrix(flat, first * sizes.d_model, size, sizes.d_model)
    return matrix(flat, n * (sizes.d_model + (layer - 1) * sizes.width) + first * sizes.width, size, sizes.width)
