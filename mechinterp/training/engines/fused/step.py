"""A part's share of a step. The parts run at the same time, one per thread, and wait twice for all others."""

import numpy as np

from mechinterp.training.engines.fused.gradient import (
    begin,
    classifier_backward,
    classifier_forward,
    in_range,
    layer1_backward,
    layer1_forward,
    layer2_backward,
    layer2_forward,
    weight_gradients,
)
from mechinterp.training.engines.fused.memory import (
    CHUNK,
    Clamps,
    Common,
    Scratch,
    Sizes,
    Tokens,
    Update,
    chunk_of,
    classifier_layer,
    weights_of,
)
from mechinterp.training.engines.fused.primitives import (
    add,
    clear,
    compiled,
    copy,
    entry,
    kept,
    matrix,
    product,
    square,
    transpose,
)
from mechinterp.training.engines.fused.synchronisation import barrier

_PIECE = 1024
"""Parameters that are updated together, so few that their sums stay in the innermost cache."""


@entry
def step_part(
    sizes: Sizes,
    update: Update,
    tokens: Tokens,
    clamps: Clamps,
    bounds: tuple[int, int],
    part: int,
    turn: int,
    common: Common,
    memory: Scratch,
):
    """A part's share of a step: of what all parts need, of the batch's gradient, and of the update.

    Takes the first and last (exclusive) of the part's sequences and the number of the step, from 1. Returns their
    summed loss and number of correct answers, and the sum of squares of the gradient of the parameters that this
    part updates. The number is −1, and no part updates anything, if a label, content or position of the batch is
    out of range.
    """
    n_parts, B, P = common.shares.shape[0], tokens.labels.shape[0], sizes.d_model - tokens.shared.shape[1]
    arrivals, of_parts, shared, sums, room, old = (
        common.arrivals,
        common.correct,
        tokens.shared,
        memory.sums,
        memory.room,
        memory.old,
    )
    (start, stop), share, weights = bounds, common.shares[part], weights_of(common)
    dM, n_labels = square(share, 0, sizes.d_model), sizes.n_labels
    clear(sums)
    prepare(sizes, P, part, n_parts, common, old)
    if not barrier(arrivals, part, n_parts, 2 * turn - 1):
        return 0.0, 0, 0.0
    if in_range(n_labels, P, tokens, start, stop):
        begin(P, weights.M, shared, memory, dM)
        for first in range(start, stop, CHUNK):
            chunk = chunk_of(tokens, clamps, memory, start, first, min(first + CHUNK, stop))
            layer1_forward(P, weights, shared, chunk, memory)
            layer2_forward(P, weights, chunk, memory)
            classifier_forward(sizes, B, common, chunk, memory)
            classifier_backward(sizes, common, chunk, memory)
            layer2_backward(P, weights, chunk, memory)
            layer1_backward(P, weights, chunk, memory, dM)
        weight_gradients(sizes, P, shared, memory, share)
    else:
        sums[1] = -1
    loss, correct, squares = sums[0], np.int64(sums[1]), 0.0
    of_parts[part] = correct
    if barrier(arrivals, part, n_parts, 2 * turn) and not any_negative(of_parts):
        squares = update_part(sizes, P, update, part, n_parts, common, old, room)
    return loss, correct, squares


def compiled_beside(
    sizes: Sizes,
    update: Update,
    tokens: Tokens,
    clamps: Clamps,
    bounds: tuple[int, int],
    part: int,
    turn: int,
    common: Common,
    memory: Scratch,
):
    """What another process compiles while this one compiles `step_part` (`ahead`); never run.

    It has the arguments of `step_part`, so that what it calls is compiled for the same types: the largest function, and
    then the others from the last one on, until both processes meet.
    """
    P, shared, share, weights, dM = sizes.d_model, tokens.shared, common.shares[part], weights_of(common), common.M
    chunk = chunk_of(tokens, clamps, memory, bounds[0], bounds[0], bounds[1])
    layer1_forward(P, weights, shared, chunk, memory)
    update_part(sizes, P, update, part, turn, common, memory.old, memory.room)
    weight_gradients(sizes, P, shared, memory, share)
    layer1_backward(P, weights, chunk, memory, dM)
    layer2_backward(P, weights, chunk, memory)
    classifier_backward(sizes, common, chunk, memory)
    classifier_forward(sizes, bounds[0], common, chunk, memory)
    layer2_forward(P, weights, chunk, memory)


@compiled
def any_negative(x):
    """Whether a vector has an entry below 0."""
    found = False
    for k in range(x.shape[0]):
        found |= x[k] < 0
    return found


@compiled
def prepare(sizes: Sizes, P, part, n_parts, common: Common, old):
    """The part's rows of M and of the transposes; and a copy of W_Q¹ and W_K¹, whose rows are turned: content first."""
    d, flat, turned = sizes.d_model, common.flat, common.transposed
    D, size = d - P, d * d
    copy(flat, size, old)
    copy(flat[size + P * d :], D * d, old[size:])
    copy(flat[size:], P * d, old[size + D * d :])
    first, stop = d * part // n_parts, d * (part + 1) // n_parts
    product(square(flat, 0, d)[first:stop], square(old, 1, d).T, common.M[first:stop])
    for slot in range(4):  # W_V¹, W_Q², W_K², W_V²
        transpose(square(flat, slot + 2, d), part, n_parts, square(turned, slot, d))
    for layer in range(sizes.depth + 1):
        at, inner = classifier_layer(sizes, layer)
        outer = sizes.width if layer < sizes.depth else sizes.n_labels
        transpose(matrix(flat, at, inner, outer), part, n_parts, matrix(turned, at - 2 * size, outer, inner))


@kept
def update_part(sizes: Sizes, P, update: Update, part, n_parts, common: Common, old, room):
    """The gradient, as the sum of the parts' shares, and what `sgd_update` does with it, for a part of the parameters.

    The shares hold the gradient of M = W_Q¹ W_K¹ᵀ where that of W_Q¹ belongs: ∂W_Q¹ = ∂M W_K¹ and ∂W_K¹ = ∂Mᵀ W_Q¹, of
    which this part takes its rows, from the weights that `prepare` has kept. Returns the sum of the gradient's squares.
    """
    d, flat, shares = sizes.d_model, common.flat, common.shares
    D, size = d - P, d * d
    first, stop = d * part // n_parts, d * (part + 1) // n_parts
    rows = stop - first
    of_rows, of_columns = matrix(room, 0, rows, d), matrix(room, rows * d, d, rows)
    total = room[2 * rows * d : 3 * rows * d]
    clear(of_rows)
    clear(of_columns)
    n_turned = max(0, min(stop, P) - first)  # of these columns, those of positions, which the shares have last
    for share in range(n_parts):
        dM = square(shares[share], 0, d)
        add(dM[first:stop], of_rows)
        add(dM[:, D + first : D + first + n_turned], of_columns[:, :n_turned])
        add(dM[:, first + n_turned - P : stop - P], of_columns[:, n_turned:])
    product(of_rows, square(old, 1, d), total.reshape(rows, d))
    squares = sgd_update(update, flat, first * d, total, common.gradient)
    product(of_columns.T, square(old, 0, d), total.reshape(rows, d))
    squares += sgd_update(update, flat, size + first * d, total, common.gradient)
    others = flat.shape[0] - 2 * size
    first, stop = 2 * size + others * part // n_parts, 2 * size + others * (part + 1) // n_parts
    for at in range(first, stop, _PIECE):
        total = room[: min(_PIECE, stop - at)]
        copy(shares[0, at:], total.shape[0], total)
        for share in range(1, n_parts):
            of_share = shares[share, at:]
            for k in range(total.shape[0]):
                total[k] += of_share[k]
        squares += sgd_update(update, flat, at, total, common.gradient)
    return squares


@compiled
def sgd_update(update: Update, flat, at, total, gradient):
    """p ← (1−shrinkage)·p − rate·total for the parameters flat[at:] with gradient `total`; or only keeps that.

    Returns the sum of squares of `total`.
    """
    squares = np.float64(np.dot(total, total))
    if not update.wanted:
        copy(total, total.shape[0], gradient[at:])
        return squares
    keep, step = flat.dtype.type(1 - update.shrinkage), flat.dtype.type(update.rate)
    for k in range(total.shape[0]):
        flat[at + k] = keep * flat[at + k] - step * total[k]
    return squares
