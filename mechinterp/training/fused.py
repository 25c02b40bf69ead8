"""The exact loss and gradient of the two-layer, one-head network, by hand: no autograd, no hooks, no allocation.

Only the target's row of layer 2 is read, so by associativity neither layer's value matrix, nor layer 2's keys, need
act on every token. With u_i the tokens (rows), T the target, A = softmax(S) the pattern of layer 1 and a that of the
target in layer 2:

    S   = U M Uᵀ,  M = W_Q¹ W_K¹ᵀ                      scores of layer 1
    x   = Σ_m A_Tm u_m,    v_T = u_T + x W_V¹          the target after layer 1
    κ   = v_T W_Q² W_K²ᵀ,  ρ = κ W_V¹ᵀ                 what layer 2 looks for in v_j = u_j + Σ_m A_jm u_m W_V¹
    s_j = u_j·κ + Σ_m A_jm (u_m·ρ),  a = softmax(s)    scores and pattern of the target in layer 2
    z   = Σ_j a_j u_j + (Σ_m b_m u_m) W_V¹,  b = aᵀ A  the mean of v_j under a
    w   = v_T + z W_V²                                 what the classifier reads

The backward pass is the same chain reversed. Inputs need no gradient. Where a task says so (`TokenTable`), tokens are
e(p) ⊕ c: their position blocks are looked up, and a content that many tokens carry is multiplied once.

The batch is cut into as many parts as torch has threads. Each part runs through `kernels.py` on a thread of its own;
the parts' gradients are added in order, so the bits depend on the number of threads, not on their timing.
"""

import math
import os
from collections.abc import Callable
from itertools import pairwise
from queue import SimpleQueue
from threading import Thread, current_thread
from typing import Any
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError
from mechinterp.models.parameters import parameter_shapes
from mechinterp.tasks.base import Batch
from mechinterp.training.interventions import Under
from mechinterp.training.kernels import (
    CHUNK,
    Clamps,
    Common,
    Scratch,
    Sizes,
    Tokens,
    common,
    give_up,
    scratch,
    step_part,
)

_Memory = tuple[list[tuple[int, int]], list[Scratch], NDArray, Common]


class FusedEngine:
    """Advances the parameters by SGD; the same step as `HookedEngine`, many times faster.

    Parameters and gradients each lie in one flat buffer, of which the named tensors are views.
    """

    name, device = "fused", "cpu"

    def __init__(self, config: RunConfig, parameters: dict[str, Tensor]):
        if config.model.n_layers != 2 or config.model.n_heads != 1:
            raise MechinterpError("the fused engine computes networks of two layers with one head each")
        self._training, self._shrinkage = config.training, config.training.shrinkage("")
        model, task = config.model, config.task
        self._sizes = Sizes(task.d_model, model.classifier_depth, model.classifier_width, task.n_labels)
        shapes = parameter_shapes(config)
        self._flat = np.concatenate([parameters[name].detach().numpy().ravel() for name in shapes])
        self._flat_gradient = np.zeros_like(self._flat)
        self.parameters = _views(self._flat, shapes)
        self._gradients = _views(self._flat_gradient, shapes)
        self._memory: tuple[tuple[int, ...], _Memory] | None = None
        self._workers: list[_Worker] = []
        self._turn = 0
        self._blas = ThreadpoolController().select(user_api="blas")

    def step(self, batch: Batch, under: Under | None = None) -> tuple[float, float]:
        """p ← (1−shrinkage)·p − lr·∂ℒ/∂p; returns loss ℒ and accuracy on the batch, before the update.

        Both, and the gradient, are those of the forward pass under interventions, which may clamp patterns.
        """
        return self._run(batch, (True, self._shrinkage, self._training.learning_rate), under)

    def gradients(self, batch: Batch, under: Under | None = None) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every parameter (overwritten next time)."""
        loss, accuracy = self._run(batch, (False, 0.0, 0.0), under)
        return loss, accuracy, self._gradients

    def _run(self, batch: Batch, update: tuple[bool, float, float], under: Under | None) -> tuple[float, float]:
        tokens, clamps = self._tokens(batch), self._clamps(under, batch)
        bounds, scratches, shares, shared = self._memory_for(tokens)
        self._turn += 1
        whole = (self._sizes, self._flat, shares, self._flat_gradient, update, tokens, clamps)
        arguments = [
            (*whole, bound, part, self._turn, shared, memory)
            for part, (bound, memory) in enumerate(zip(bounds, scratches, strict=True))
        ]
        try:
            with self._blas.limit(limits=1):  # parts are the threads
                for part in range(1, len(arguments)):
                    self._worker(part).send(_step_part, *arguments[part])
                done = [_step_part(*arguments[0])]
                done += [self._worker(part).receive() for part in range(1, len(arguments))]
        except BaseException:
            # A worker may still be computing: it finishes, and the memory that it writes to is left to it.
            give_up(shared)
            for worker in self._workers:
                worker.stop()
            self._workers, self._memory = [], None
            raise
        if any(correct < 0 for _, correct in done):
            raise MechinterpError("a label of the batch, or a content or position of its table, is out of range")
        return sum(loss for loss, _ in done) / len(batch), sum(correct for _, correct in done) / len(batch)

    def _worker(self, part: int) -> "_Worker":
        if self._workers and self._workers[0].process != os.getpid():
            self._workers = []  # threads do not survive a fork
        while len(self._workers) < part:
            self._workers.append(_Worker())
        return self._workers[part - 1]

    def _tokens(self, batch: Batch) -> Tokens:
        """The batch's arrays; without a table, every token is a content of its sequence's own.

        All shapes are checked, as the kernels do not.
        """
        dtype, table, labels, d_model = self._flat.dtype, batch.table, batch.labels.numpy(), self._sizes.d_model
        if table is not None:
            shared, own = table.shared.numpy(), table.own.numpy()
            content, positions, width = table.content.numpy(), table.positions.numpy(), table.position_dim
        else:
            own, width = batch.inputs.numpy(), 0
            shared, content = np.empty((0, own.shape[-1]), dtype), np.tile(np.arange(own.shape[1]), (len(own), 1))
            positions = content
        size = len(labels)
        if (own.ndim, shared.ndim, len(own), own.shape[-1], shared.shape[-1]) != (
            3,
            2,
            size,
            d_model - width,
            d_model - width,
        ):
            raise MechinterpError(
                f"the batch's contents are {own.shape} and {shared.shape} (shared), expected"
                f" ({size}, …, {d_model - width}) and (…, {d_model - width}) for {size} labels and d_model = {d_model}"
            )
        if labels.ndim != 1 or content.ndim != 2 or content.shape != positions.shape or len(content) != size:
            raise MechinterpError(
                f"the batch's labels are {labels.shape}, its contents and positions point to {content.shape} and"
                f" {positions.shape} tokens; expected (batch,), (batch, pos) and (batch, pos)"
            )
        if 0 in content.shape:
            raise MechinterpError(f"the batch has {size} sequences of {content.shape[1]} tokens; one of each is needed")
        return Tokens(
            *(np.ascontiguousarray(array, dtype) for array in (shared, own)),
            *(np.ascontiguousarray(array, np.int64) for array in (content, positions, labels)),
        )

    def _clamps(self, under: Under | None, batch: Batch) -> Clamps:
        """The patterns that take the place of attention, in the engine's type."""
        if under is None:
            none = np.empty(0, self._flat.dtype)
            return Clamps(False, none, none[None], none, none[None])
        arrays = (np.ascontiguousarray(each, self._flat.dtype) for each in under.clamped())
        return Clamps(True, *arrays)

    def _memory_for(self, tokens: Tokens) -> _Memory:
        """The parts' bounds, their scratch memory and the shares of the gradient; kept while shapes stay the same."""
        (size, n_pos), (n_shared, content_dim), n_own = tokens.content.shape, tokens.shared.shape, tokens.own.shape[1]
        n_parts = max(1, min(torch.get_num_threads(), size // CHUNK))
        key = (n_parts, size, n_pos, n_shared, n_own, content_dim)
        if self._memory is None or self._memory[0] != key:
            edges = [size * part // n_parts for part in range(n_parts + 1)]
            bounds = list(pairwise(edges))
            dtype, shares = self._flat.dtype, np.zeros((n_parts, self._flat.size), self._flat.dtype)
            scratches = [
                scratch(self._sizes, stop - start, n_pos, n_shared, n_own, content_dim, dtype) for start, stop in bounds
            ]
            self._memory = (key, (bounds, scratches, shares, common(self._sizes, n_parts, dtype)))
        return self._memory[1]


class _Worker:
    """A thread that computes what it is sent; an executor's futures would cost a tenth of a step."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._jobs: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        thread = Thread(target=_work, args=(self._jobs, self._results), name="fused", daemon=True)
        thread.start()
        self.stop = finalize(self, _stop, thread, self._jobs)

    def send(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._jobs.put((function, arguments))

    def receive(self) -> Any:
        result, error = self._results.get()
        if error is not None:
            raise error
        return result


def _step_part(*arguments: Any) -> tuple[float, int]:
    """`step_part`; should it fail to start, the parts that wait for it go home."""
    try:
        return step_part(*arguments)
    except BaseException:
        give_up(arguments[-2])
        raise


def _work(jobs: SimpleQueue, results: SimpleQueue) -> None:
    for function, arguments in iter(jobs.get, None):
        try:
            results.put((function(*arguments), None))
        except BaseException as error:
            results.put((None, error))


def _stop(thread: Thread, jobs: SimpleQueue) -> None:
    """Ends a worker after what it computes now; without waiting, it could wake when the interpreter is gone."""
    jobs.put(None)
    if thread is not current_thread():
        thread.join(timeout=5)


def _views(flat: NDArray, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Named views of one flat buffer."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    pieces = np.split(flat, ends[:-1])
    return {
        name: torch.from_numpy(piece.reshape(shape))
        for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }
