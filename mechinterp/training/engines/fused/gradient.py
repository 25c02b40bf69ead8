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
    kept,
    matrix,
    normalise,
    outer,
    product,
    project,
    softmax,
    softmax_slopes,
    square,
    subtract_largest,
    weighted_sum,
)


@compiled
def in_range(n_labels, P, tokens: Tokens, start, stop):
    """Whether labels, contents and positions of the sequences start … stop point to something."""
    content, positions, labels = tokens.content, tokens.positions, tokens.labels
    n_contents = tokens.shared.shape[0] + tokens.own.shape[1]
    for b in range(start, stop):
        if not 0 <= labels[b] < n_labels:
            return False
        for i in range(content.shape[1]):
            if not (0 <= content[b, i] < n_contents and (P == 0 or 0 <= positions[b, i] < P)):
                return False
    return True


@compiled
def begin(P, M, shared, memory: Scratch, dM):
    """What comes before the chunks: shared contents (n_shared, D) times M (d, d); zeros in what is summed, as dM."""
    shared_M, dshared_M = memory.shared_M, memory.dshared_M
    clear(memory.padded)  # what pads contents must be finite: it is multiplied by 0
    clear(memory.y)
    if shared.shape[0]:
        product(shared, M[P:], shared_M)
        clear(dshared_M)
    clear(dM)


@inlined
def content_row(index, shared, own):
    """Row `index` of shared (n_shared, …) and own (n_own, …), one below the other."""
    return shared[index] if index < shared.shape[0] else own[index - shared.shape[0]]


@kept
def layer1_forward(P, weights: Weights, shared, chunk: Chunk, memory: Scratch):
    """S = U M Uᵀ and A = softmax(S) of every token; x = Σ_m A_Tm u_m and v_T = u_T + x W_V¹.

    Takes the shared contents (n_shared, D).
    """
    (size, T), (_, n_own, D) = chunk.content.shape, chunk.own.shape
    contents, patterns, unclamped, padded = memory.c, memory.A, memory.free_A, memory.padded
    M, y, shared_M, own_M = weights.M, memory.y, memory.shared_M, memory.own_M[:size]  # own_M (C, n_own, d)
    chunk_content, chunk_positions, chunk_own, x, v = chunk.content, chunk.positions, chunk.own, chunk.x, chunk.v
    clamped, free1, fixed1 = chunk.clamps.on, chunk.clamps.free1, chunk.clamps.fixed1
    V1 = weights.V1
    wide = min(y.shape[1], D + P)  # contents, and padding or positions that are multiplied by 0
    own_rows = size * n_own
    blockwise_dot(chunk_own.reshape(own_rows, D), M[P:], own_M.reshape(own_rows, D + P))
    for b in range(size):
        c, A, content, positions = contents[b], patterns[b], chunk_content[b], chunk_positions[b]
        own, by_own = chunk_own[b], own_M[b]  # (n_own, D), (n_own, d)
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
        product(y, c.T, A)  # (T, D′) (D′, T′)
        for i in range(T):
            scores = A[i]
            if P:
                by_content, by_position = content_row(content[i], shared_M, by_own), M[positions[i]]
                for j in range(i + 1):
                    scores[j] += by_content[D + positions[j]] + by_position[D + positions[j]]
            subtract_largest(scores, i + 1)
    exponential(patterns[:size])
    for b in range(size):
        A = patterns[b]
        for i in range(T):
            normalise(A[i])
        if clamped:
            for i in range(T):
                clamp(A[i], i + 1, free1[0], fixed1[i], unclamped[b, i])
        weighted_sum(A[T - 1], contents[b], chunk_positions[b], padded, P, x[b])
    product(x, V1, v)  # (C, d) (d, d)
    for b in range(size):
        for k in range(D):
            v[b, P + k] += contents[b, T - 1, k]
        if P:
            v[b, chunk_positions[b, T - 1]] += 1


@kept
def layer2_forward(P, weights: Weights, chunk: Chunk, memory: Scratch):
    """s_j = u_j·κ + Σ_m A_jm (u_m·ρ) and a = softmax(s) of the target; z, and w = v_T + z W_V²."""
    size, T = chunk.content.shape
    padded, u_kappa, mixed = memory.padded, memory.pairs, memory.pairs  # (D′), (T′), (T′)
    contents, patterns, of_target, unclamped = memory.c, memory.A, memory.a, memory.free_a
    chunk_positions, kappa, rho, u_rhos = chunk.positions, chunk.kappa, chunk.rho, memory.u_rho
    v, q, z, w, mean, spare = chunk.v, chunk.q, chunk.z, chunk.w, chunk.mean, chunk.spare
    clamped, free2, fixed2 = chunk.clamps.on, chunk.clamps.free2, chunk.clamps.fixed2
    V1, V2 = weights.V1, weights.V2
    product(v, weights.Q2, q)  # (C, d) (d, d), as all products below
    product(q, weights.K2T, kappa)
    product(kappa, weights.V1T, rho)
    for b in range(size):
        c, A, a, positions, u_rho = contents[b], patterns[b], of_target[b], chunk_positions[b], u_rhos[b]
        project(kappa[b], c, positions, padded, P, u_kappa)
        project(rho[b], c, positions, padded, P, u_rho)
        for j in range(T):
            a[j] = u_kappa[j] + dot(A[j], u_rho, j + 1)
        softmax(a, T)
        if clamped:
            clamp(a, T, free2[b], fixed2[b], unclamped[b])
        fill(mixed, T, 0)
        for j in range(T):  # b = aᵀ A
            for m in range(j + 1):
                mixed[m] += a[j] * A[j, m]
        weighted_sum(a, c, positions, padded, P, z[b])
        weighted_sum(mixed, c, positions, padded, P, mean[b])
    product(mean, V1, spare)
    add(spare, z)
    product(z, V2, w)
    add(v, w)


@kept
def classifier_forward(sizes: Sizes, B, common: Common, chunk: Chunk, memory: Scratch):
    """Adds the chunk's loss and number of correct answers to `sums`; leaves the slopes of its logits (C, L)."""
    size, n, flat, w, first = chunk.labels.shape[0], memory.logits.shape[0], common.flat, chunk.w, chunk.first
    inputs, labels, depth, width, n_labels = memory.hidden, chunk.labels, sizes.depth, sizes.width, sizes.n_labels
    logits, sums = memory.logits[first : first + size], memory.sums
    zero, scale = flat.dtype.type(0), flat.dtype.type(1 / B)
    hidden = layer_inputs(inputs, sizes, n, 0, first, size)  # (C, d)
    copy(w.reshape(w.size), w.size, hidden.reshape(hidden.size))
    for layer in range(depth):
        at, inner = classifier_layer(sizes, layer)
        W = matrix(flat, at, inner, width)
        bias = flat[at + inner * width : at + (inner + 1) * width]
        following = layer_inputs(inputs, sizes, n, layer + 1, first, size)  # (C, W)
        product(hidden, W, following)
        for b in range(size):
            for k in range(width):
                following[b, k] = max(following[b, k] + bias[k], zero)
        hidden = following
    at, inner = classifier_layer(sizes, depth)
    product(hidden, matrix(flat, at, inner, n_labels), logits)
    for b in range(size):
        row, label = logits[b], labels[b]
        best = 0
        for k in range(1, n_labels):
            if row[k] > row[best]:
                best = k
        above = row[best] - row[label]
        softmax(row, n_labels)
        sums[0] += above - math.log(row[best])
        sums[1] += best == label
        row[label] -= 1
        for k in range(n_labels):
            row[k] *= scale


@kept
def classifier_backward(sizes: Sizes, common: Common, chunk: Chunk, memory: Scratch):
    """From the slopes of the logits (C, L) to dw (C, d)."""
    size, n, offset = chunk.labels.shape[0], memory.logits.shape[0], 2 * sizes.d_model * sizes.d_model
    inputs, dinputs, transposed, dw, first = memory.hidden, memory.dhidden, common.transposed, chunk.dw, chunk.first
    depth, width, n_labels, logits = sizes.depth, sizes.width, sizes.n_labels, memory.logits[first : first + size]
    at, inner = classifier_layer(sizes, depth)
    dhidden = layer_inputs(dinputs, sizes, n, depth, first, size)  # (C, d or W)
    product(logits, matrix(transposed, at - offset, n_labels, inner), dhidden)
    for layer in range(depth - 1, -1, -1):
        hidden = layer_inputs(inputs, sizes, n, layer + 1, first, size)  # (C, W)
        for b in range(size):
            for k in range(width):
                if not hidden[b, k] > 0:
                    dhidden[b, k] = 0
        at, inner = classifier_layer(sizes, layer)
        following = layer_inputs(dinputs, sizes, n, layer, first, size)  # (C, d or W)
        product(dhidden, matrix(transposed, at - offset, width, inner), following)
        dhidden = following
    copy(dhidden.reshape(dhidden.size), dhidden.size, dw.reshape(dw.size))


@kept
def layer2_backward(P, weights: Weights, chunk: Chunk, memory: Scratch):
    """From dw to dv, through the values (z), the pattern a, and then κ and ρ."""
    size, T = chunk.content.shape
    padded, u_dz, mixed = memory.padded, memory.pairs, memory.pairs  # (D′), (T′), (T′)
    contents, patterns, of_target, unclamped = memory.c, memory.A, memory.a, memory.free_a
    all_ds, all_db, chunk_positions, clamped, free2 = (
        memory.ds,
        memory.db,
        chunk.positions,
        chunk.clamps.on,
        chunk.clamps.free2,
    )
    dw, dz, drho, dkappa, dq, dv, spare = chunk.dw, chunk.dz, chunk.drho, chunk.dkappa, chunk.dq, chunk.dv, chunk.spare
    V1, K2, Q2T, one = weights.V1, weights.K2, weights.Q2T, contents.dtype.type(1)
    product(dw, weights.V2T, dz)  # (C, d) (d, d), as all products below
    product(dz, weights.V1T, spare)
    for b in range(size):
        c, A, ds, db, positions = contents[b], patterns[b], all_ds[b], all_db[b], chunk_positions[b]
        project(dz[b], c, positions, padded, P, u_dz)
        project(spare[b], c, positions, padded, P, db)
        for j in range(T):
            ds[j] = u_dz[j] + dot(A[j], db, j + 1)
        if clamped:
            softmax_slopes(unclamped[b], T, free2[b], ds)
        else:
            softmax_slopes(of_target[b], T, one, ds)
        fill(mixed, T, 0)
        for j in range(T):  # dsᵀ A
            for m in range(j + 1):
                mixed[m] += ds[j] * A[j, m]
        weighted_sum(ds, c, positions, padded, P, dkappa[b])
        weighted_sum(mixed, c, positions, padded, P, drho[b])
    product(drho, V1, spare)
    add(spare, dkappa)
    product(dkappa, K2, dq)
    product(dq, Q2T, dv)
    add(dw, dv)


@kept
def layer1_backward(P, weights: Weights, chunk: Chunk, memory: Scratch, dM):
    """Adds the slopes of M (d, d), or those of contents times M. A is read by b, by s, and the target's row by x."""
    (size, T), (_, n_own, D) = chunk.content.shape, chunk.own.shape
    dS, y, u_dx, one = memory.dS, memory.y, memory.pairs, memory.c.dtype.type(1)
    contents, patterns, of_target, unclamped = memory.c, memory.A, memory.a, memory.free_A
    all_ds, all_db, u_rhos, dby_shared = memory.ds, memory.db, memory.u_rho, memory.dshared_M
    chunk_content, chunk_positions, chunk_own, dx = chunk.content, chunk.positions, chunk.own, chunk.dx
    clamped, free1, padded, of_block = chunk.clamps.on, chunk.clamps.free1, memory.padded, memory.dM
    wide, own_rows = min(y.shape[1], D + P), size * n_own
    down_M = memory.down_M[:size]  # (C, n_own, d)
    clear(down_M)
    product(chunk.dv, weights.V1T, dx)
    for b in range(size):
        c, A, a, ds = contents[b], patterns[b], of_target[b], all_ds[b]
        content, positions = chunk_content[b], chunk_positions[b]
        u_rho, db, dby_own = u_rhos[b], all_db[b], down_M[b]
        project(dx[b], c, positions, padded, P, u_dx)
        for i in range(T):
            slopes = dS[i]
            for j in range(i + 1):
                slopes[j] = a[i] * db[j] + ds[i] * u_rho[j]
            if i == T - 1:
                for j in range(T):
                    slopes[j] += u_dx[j]
            if clamped:
                softmax_slopes(unclamped[b, i], i + 1, free1[0], slopes)
            else:
                softmax_slopes(A[i], i + 1, one, slopes)
        product(dS, c, y)  # (T, T′) (T′, D′)
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
    add_outer(chunk_own.reshape(own_rows, D), down_M.reshape(own_rows, D + P), of_block, dM[P:])


@kept
def weight_gradients(sizes: Sizes, P, shared, memory: Scratch, share):
    """The gradients of weights and biases, over all n sequences of a part, in its share (parameters)."""
    n, d, depth, width, room = memory.logits.shape[0], sizes.d_model, sizes.depth, sizes.width, memory.room
    dshared_M, of_block, inputs, dinputs, logits = (
        memory.dshared_M,
        memory.dM,
        memory.hidden,
        memory.dhidden,
        memory.logits,
    )
    outer(memory.left.reshape(3 * n, d), memory.right.reshape(3 * n, d), room, square(share, 2, d))  # W_V¹
    outer(memory.v, memory.dq, room, square(share, 3, d))  # W_Q²
    outer(memory.dkappa, memory.q, room, square(share, 4, d))  # W_K²
    outer(memory.z, memory.dw, room, square(share, 5, d))  # W_V²
    if shared.shape[0]:
        add_outer(shared, dshared_M, of_block, square(share, 0, d)[P:])
    for layer in range(depth):
        at, inner = classifier_layer(sizes, layer)
        hidden = layer_inputs(inputs, sizes, n, layer, 0, n)  # (n, d or W)
        dhidden = layer_inputs(dinputs, sizes, n, layer + 1, 0, n)  # (n, W)
        outer(hidden, dhidden, room, matrix(share, at, inner, width))
        bias = share[at + inner * width : at + (inner + 1) * width]
        clear(bias)
        for b in range(n):
            for k in range(width):
                bias[k] += dhidden[b, k]
    at, inner = classifier_layer(sizes, depth)
    hidden = layer_inputs(inputs, sizes, n, depth, 0, n)
    outer(hidden, logits, room, matrix(share, at, inner, sizes.n_labels))
