"""The exact loss and gradient of the two-layer, one-head network, by hand: no autograd, no hooks, no allocation.

Only the target's row of layer 2 is read, so by associativity neither layer's value matrix, nor layer 2's keys, need
act on every token. With u_i the tokens (rows), T the target, A = softmax(S) the pattern of layer 1 and a that of the
target in layer 2:

    S   = U M Uᵀ,  M = W_Q¹ W_K¹ᵀ                      scores of layer 1
    x   = Σ_m A_Tm u_m,    v_T = u_T + x W_V¹          the target after layer 1
    q   = v_T W_Q²,  κ = q W_K²ᵀ,  ρ = κ W_V¹ᵀ         what layer 2 looks for in v_j = u_j + Σ_m A_jm u_m W_V¹
    s_j = u_j·κ + Σ_m A_jm (u_m·ρ),  a = softmax(s)    scores and pattern of the target in layer 2
    z   = Σ_j a_j u_j + (Σ_m b_m u_m) W_V¹,  b = aᵀ A  the mean of v_j under a
    w   = v_T + z W_V²                                 what the classifier reads

The backward pass is the same chain reversed; dx is the slope of the loss by x. Inputs need no gradient. Where a task
says so (`TokenTable`), tokens are u = e(p) ⊕ c: their position blocks are looked up, and a content that many tokens
carry is multiplied once.

Sequences go through in chunks small enough that a chunk's activations and the weights stay in a core's cache. Matrix
products are BLAS calls on a chunk's rows, everything of one sequence is a loop.
"""

import math

import numpy as np

from mechinterp.training.engines.fused.memory import (
    Chunk,
    Common,
    Scratch,
    Sizes,
    Tokens,
    Weights,
    classifier_layer,
    layer_inputs,
)
from mechinterp.training.engines.fused.primitives import (
    add,
    add_outer,
    blockwise_dot,
    clamp,
    clear,
    compiled,
    copy,
    dot,
    exponential,
    fill,
    inlined,
    matrix,
    normalise,
    outer,
    project,
    softmax,
    softmax_slopes,
    square,
    subtract_largest,
    weighted_sum,
)


@compiled
def in_range(sizes: Sizes, P, tokens: Tokens, start, stop):
    """Whether labels, contents and positions of the sequences start … stop point to something."""
    n_contents = tokens.shared.shape[0] + tokens.own.shape[1]
    for b in range(start, stop):
        if not 0 <= tokens.labels[b] < sizes.n_labels:
            return False
        for i in range(tokens.content.shape[1]):
            if not (0 <= tokens.content[b, i] < n_contents and (P == 0 or 0 <= tokens.positions[b, i] < P)):
                return False
    return True


@inlined
def begin(P, M, shared, memory: Scratch, dM):
    """What comes before the chunks: shared contents (n_shared, D) times M (d, d); zeros in what is summed, as dM."""
    clear(memory.padded)  # what pads contents must be finite: it is multiplied by 0
    clear(memory.y)
    if shared.shape[0]:
        np.dot(shared, M[P:], memory.shared_M)
        clear(memory.dshared_M)
    clear(dM)


@inlined
def content_row(index, shared, own):
    """Row `index` of shared (n_shared, …) and own (n_own, …), one below the other."""
    return shared[index] if index < shared.shape[0] else own[index - shared.shape[0]]


@inlined
def layer1_forward(P, weights: Weights, shared, chunk: Chunk, memory: Scratch):
    """S = U M Uᵀ and A = softmax(S) of every token; x = Σ_m A_Tm u_m and v_T = u_T + x W_V¹.

    Takes the shared contents (n_shared, D).
    """
    (size, T), (_, n_own, D) = chunk.content.shape, chunk.own.shape
    clamps = chunk.clamps
    M, y, shared_M = weights.M, memory.y, memory.shared_M
    wide = min(y.shape[1], D + P)  # contents, and padding or positions that are multiplied by 0
    own_rows = size * n_own
    own_M = memory.own_M[:size]  # (C, n_own, d)
    blockwise_dot(chunk.own.reshape(own_rows, D), M[P:], own_M.reshape(own_rows, D + P))
    for b in range(size):
        c, A, content, positions = memory.c[b], memory.A[b], chunk.content[b], chunk.positions[b]
        own, by_own = chunk.own[b], own_M[b]  # (n_own, D), (n_own, d)
        for i in range(T):
            copy(content_row(content[i], shared, own), D, c[i])
        for i in range(T):  # y = U M, its content columns
            by_content = content_row(content[i], shared_M, by_own)  # (d)
            if P:
                by_position, by_token = M[positions[i]], y[i]
                for k in range(wide):
                    by_token[k] = by_content[k] + by_position[k]
            else:
                copy(by_content, D, y[i])
        np.dot(y, c.T, A)  # (T, D′) (D′, T′)
        for i in range(T):
            scores = A[i]
            if P:
                by_content, by_position = content_row(content[i], shared_M, by_own), M[positions[i]]
                for j in range(i + 1):
                    scores[j] += by_content[D + positions[j]] + by_position[D + positions[j]]
            subtract_largest(scores, i + 1)
    exponential(memory.A[:size])
    for b in range(size):
        A = memory.A[b]
        for i in range(T):
            normalise(A[i])
        if clamps.on:
            for i in range(T):
                clamp(A[i], i + 1, clamps.free1[0], clamps.fixed1[i], memory.free_A[b, i])
        weighted_sum(A[T - 1], memory.c[b], chunk.positions[b], memory.padded, P, chunk.x[b])
    v = chunk.v
    np.dot(chunk.x, weights.V1, v)  # (C, d) (d, d)
    for b in range(size):
        for k in range(D):
            v[b, P + k] += memory.c[b, T - 1, k]
        if P:
            v[b, chunk.positions[b, T - 1]] += 1


@inlined
def layer2_forward(P, weights: Weights, chunk: Chunk, memory: Scratch):
    """s_j = u_j·κ + Σ_m A_jm (u_m·ρ) and a = softmax(s) of the target; z, and w = v_T + z W_V²."""
    size, T = chunk.content.shape
    clamps = chunk.clamps
    padded, u_kappa, mixed = memory.padded, memory.pairs, memory.pairs  # (D′), (T′), (T′)
    np.dot(chunk.v, weights.Q2, chunk.q)  # (C, d) (d, d), as all products below
    np.dot(chunk.q, weights.K2T, chunk.kappa)
    np.dot(chunk.kappa, weights.V1T, chunk.rho)
    for b in range(size):
        c, A, a, positions, u_rho = memory.c[b], memory.A[b], memory.a[b], chunk.positions[b], memory.u_rho[b]
        project(chunk.kappa[b], c, positions, padded, P, u_kappa)
        project(chunk.rho[b], c, positions, padded, P, u_rho)
        for j in range(T):
            a[j] = u_kappa[j] + dot(A[j], u_rho, j + 1)
        softmax(a, T)
        if clamps.on:
            clamp(a, T, clamps.free2[b], clamps.fixed2[b], memory.free_a[b])
        fill(mixed, T, 0)
        for j in range(T):  # b = aᵀ A
            for m in range(j + 1):
                mixed[m] += a[j] * A[j, m]
        weighted_sum(a, c, positions, padded, P, chunk.z[b])
        weighted_sum(mixed, c, positions, padded, P, chunk.mean[b])
    z, w, spare = chunk.z, chunk.w, chunk.spare
    np.dot(chunk.mean, weights.V1, spare)
    add(spare, z)
    np.dot(z, weights.V2, w)
    add(chunk.v, w)


@inlined
def classifier_forward(sizes: Sizes, B, common: Common, chunk: Chunk, memory: Scratch, loss, correct):
    """The loss and the number of correct answers so far, with the chunk's; leaves the slopes of its logits (C, L)."""
    size, n, flat = chunk.labels.shape[0], memory.logits.shape[0], common.flat
    zero, scale = flat.dtype.type(0), flat.dtype.type(1 / B)
    hidden = layer_inputs(memory.hidden, sizes, n, 0, chunk.first, size)  # (C, d)
    copy(chunk.w.reshape(chunk.w.size), chunk.w.size, hidden.reshape(hidden.size))
    for layer in range(sizes.depth):
        at, inner = classifier_layer(sizes, layer)
        W = matrix(flat, at, inner, sizes.width)
        bias = flat[at + inner * sizes.width : at + (inner + 1) * sizes.width]
        following = layer_inputs(memory.hidden, sizes, n, layer + 1, chunk.first, size)  # (C, W)
        np.dot(hidden, W, following)
        for b in range(size):
            for k in range(sizes.width):
                following[b, k] = max(following[b, k] + bias[k], zero)
        hidden = following
    at, inner = classifier_layer(sizes, sizes.depth)
    logits = memory.logits[chunk.first : chunk.first + size]
    np.dot(hidden, matrix(flat, at, inner, sizes.n_labels), logits)
    for b in range(size):
        row, label = logits[b], chunk.labels[b]
        best = 0
        for k in range(1, sizes.n_labels):
            if row[k] > row[best]:
                best = k
        above = row[best] - row[label]
        softmax(row, sizes.n_labels)
        correct += best == label
        loss += above - math.log(row[best])
        row[label] -= 1
        for k in range(sizes.n_labels):
            row[k] *= scale
    return loss, correct


@inlined
def classifier_backward(sizes: Sizes, common: Common, chunk: Chunk, memory: Scratch):
    """From the slopes of the logits (C, L) to dw (C, d)."""
    size, n, offset = chunk.labels.shape[0], memory.logits.shape[0], 2 * sizes.d_model * sizes.d_model
    at, inner = classifier_layer(sizes, sizes.depth)
    dhidden = layer_inputs(memory.dhidden, sizes, n, sizes.depth, chunk.first, size)  # (C, d or W)
    logits = memory.logits[chunk.first : chunk.first + size]
    np.dot(logits, matrix(common.transposed, at - offset, sizes.n_labels, inner), dhidden)
    for layer in range(sizes.depth - 1, -1, -1):
        hidden = layer_inputs(memory.hidden, sizes, n, layer + 1, chunk.first, size)  # (C, W)
        for b in range(size):
            for k in range(sizes.width):
                if not hidden[b, k] > 0:
                    dhidden[b, k] = 0
        at, inner = classifier_layer(sizes, layer)
        following = layer_inputs(memory.dhidden, sizes, n, layer, chunk.first, size)  # (C, d or W)
        np.dot(dhidden, matrix(common.transposed, at - offset, sizes.width, inner), following)
        dhidden = following
    copy(dhidden.reshape(dhidden.size), dhidden.size, chunk.dw.reshape(chunk.dw.size))


@inlined
def layer2_backward(P, weights: Weights, chunk: Chunk, memory: Scratch):
    """From dw to dv, through the values (z), the pattern a, and then κ and ρ."""
    size, T = chunk.content.shape
    clamps = chunk.clamps
    padded, u_dz, mixed = memory.padded, memory.pairs, memory.pairs  # (D′), (T′), (T′)
    dkappa, dv, spare, one = chunk.dkappa, chunk.dv, chunk.spare, memory.c.dtype.type(1)
    np.dot(chunk.dw, weights.V2T, chunk.dz)  # (C, d) (d, d), as all products below
    np.dot(chunk.dz, weights.V1T, spare)
    for b in range(size):
        c, A, ds, db, positions = memory.c[b], memory.A[b], memory.ds[b], memory.db[b], chunk.positions[b]
        project(chunk.dz[b], c, positions, padded, P, u_dz)
        project(spare[b], c, positions, padded, P, db)
        for j in range(T):
            ds[j] = u_dz[j] + dot(A[j], db, j + 1)
        if clamps.on:
            softmax_slopes(memory.free_a[b], T, clamps.free2[b], ds)
        else:
            softmax_slopes(memory.a[b], T, one, ds)
        fill(mixed, T, 0)
        for j in range(T):  # dsᵀ A
            for m in range(j + 1):
                mixed[m] += ds[j] * A[j, m]
        weighted_sum(ds, c, positions, padded, P, dkappa[b])
        weighted_sum(mixed, c, positions, padded, P, chunk.drho[b])
    np.dot(chunk.drho, weights.V1, spare)
    add(spare, dkappa)
    np.dot(dkappa, weights.K2, chunk.dq)
    np.dot(chunk.dq, weights.Q2T, dv)
    add(chunk.dw, dv)


@inlined
def layer1_backward(P, weights: Weights, chunk: Chunk, memory: Scratch, dM):
    """Adds the slopes of M (d, d), or those of contents times M. A is read by b, by s, and the target's row by x."""
    (size, T), (_, n_own, D) = chunk.content.shape, chunk.own.shape
    clamps = chunk.clamps
    dS, y, u_dx, one = memory.dS, memory.y, memory.pairs, memory.c.dtype.type(1)
    wide, own_rows = min(y.shape[1], D + P), size * n_own
    down_M = memory.down_M[:size]  # (C, n_own, d)
    clear(down_M)
    np.dot(chunk.dv, weights.V1T, chunk.dx)
    for b in range(size):
        c, A, a, ds = memory.c[b], memory.A[b], memory.a[b], memory.ds[b]
        content, positions = chunk.content[b], chunk.positions[b]
        u_rho, db, dby_shared, dby_own = memory.u_rho[b], memory.db[b], memory.dshared_M, down_M[b]
        project(chunk.dx[b], c, positions, memory.padded, P, u_dx)
        for i in range(T):
            slopes = dS[i]
            for j in range(i + 1):
                slopes[j] = a[i] * db[j] + ds[i] * u_rho[j]
            if i == T - 1:
                for j in range(T):
                    slopes[j] += u_dx[j]
            if clamps.on:
                softmax_slopes(memory.free_A[b, i], i + 1, clamps.free1[0], slopes)
            else:
                softmax_slopes(A[i], i + 1, one, slopes)
        np.dot(dS, c, y)  # (T, T′) (T′, D′)
        for i in range(T):
            by_content, by_token = content_row(content[i], dby_shared, dby_own), y[i]
            for k in range(wide):
                by_content[k] += by_token[k]
            if P:
                slopes, by_position = dS[i], dM[positions[i]]
                for k in range(wide):
                    by_position[k] += by_token[k]
                for j in range(i + 1):
                    by_content[D + positions[j]] += slopes[j]
                    by_position[D + positions[j]] += slopes[j]
    add_outer(chunk.own.reshape(own_rows, D), down_M.reshape(own_rows, D + P), memory.dM, dM[P:])


@inlined
def weight_gradients(sizes: Sizes, P, shared, memory: Scratch, share):
    """The gradients of weights and biases, over all n sequences of a part, in its share (parameters)."""
    n, d, width, room = memory.logits.shape[0], sizes.d_model, sizes.width, memory.room
    if shared.shape[0]:
        add_outer(shared, memory.dshared_M, memory.dM, square(share, 0, d)[P:])
    outer(memory.left.reshape(3 * n, d), memory.right.reshape(3 * n, d), room, square(share, 2, d))  # W_V¹
    outer(memory.v, memory.dq, room, square(share, 3, d))  # W_Q²
    outer(memory.dkappa, memory.q, room, square(share, 4, d))  # W_K²
    outer(memory.z, memory.dw, room, square(share, 5, d))  # W_V²
    for layer in range(sizes.depth):
        at, inner = classifier_layer(sizes, layer)
        hidden = layer_inputs(memory.hidden, sizes, n, layer, 0, n)  # (n, d or W)
        dhidden = layer_inputs(memory.dhidden, sizes, n, layer + 1, 0, n)  # (n, W)
        outer(hidden, dhidden, room, matrix(share, at, inner, width))
        bias = share[at + inner * width : at + (inner + 1) * width]
        clear(bias)
        for b in range(n):
            for k in range(width):
                bias[k] += dhidden[b, k]
    at, inner = classifier_layer(sizes, sizes.depth)
    hidden = layer_inputs(memory.hidden, sizes, n, sizes.depth, 0, n)
    outer(hidden, memory.logits, room, matrix(share, at, inner, sizes.n_labels))
