"""One step of SGD for the canonical two-layer, one-head network, by compiled loops.

The batch is divided into as many parts as torch has threads. Parts are computed by `step.py`, on one thread per part;
their gradients are added in order, so bits depend on the number of threads and not on timing.
"""

import math
import os
from itertools import pairwise
from typing import Any
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError
from mechinterp.interventions.forward import ForwardInterventions
from mechinterp.models.registry import parameter_shapes
from mechinterp.tasks.base import Batch
from mechinterp.training.engines.base import StepResult
from mechinterp.training.engines.fused import ahead
from mechinterp.training.engines.fused.memory import (
    CHUNK,
    Clamps,
    Common,
    Scratch,
    Sizes,
    Tokens,
    Update,
    allocate_common,
    allocate_scratch,
)
from mechinterp.training.engines.fused.step import step_part
from mechinterp.training.engines.fused.synchronisation import give_up
from mechinterp.training.engines.fused.workers import Worker

_Memory = tuple[list[tuple[int, int]], list[Scratch], Common]


class FusedStep:
    """The parameters of a canonical network, and their step of SGD.

    The parameters lie in one flat buffer, the gradients in another; the named tensors are views of them.
    """

    def __init__(self, config: RunConfig, parameters: dict[str, Tensor]):
        if config.model.n_layers != 2 or config.model.n_heads != 1:
            raise MechinterpError("the fused engine computes networks of two layers with one head each")
        self._training, self._decay = config.training, config.training.decay_factor("")
        model, task = config.model, config.task
        self._sizes = Sizes(task.d_model, model.classifier_depth, model.classifier_width, task.n_labels)
        shapes = parameter_shapes(config)
        self._flat = np.concatenate([parameters[name].detach().numpy().ravel() for name in shapes])
        self._flat_gradient = np.zeros_like(self._flat)
        self.parameters = _views(self._flat, shapes)
        self._gradients = _views(self._flat_gradient, shapes)
        self._memory: tuple[tuple[int, ...], _Memory] | None = None
        self._workers: list[Worker] = []
        self._turn = 0
        beside = ahead.begin(next(iter(parameters.values())).dtype)
        self._compiled = finalize(self, beside.end) if beside else None
        self._blas = ThreadpoolController().select(user_api="blas")

    def step(self, batch: Batch, interventions: ForwardInterventions | None = None) -> StepResult:
        """p ← (1−λ)·p − lr·∂ℒ/∂p; returns loss ℒ, accuracy and norm of the gradient on the batch, before the update.

        All are those of the forward pass under interventions, which may clamp patterns.
        """
        return self._run(batch, Update(True, self._decay, self._training.learning_rate), interventions)

    def gradients(
        self, batch: Batch, interventions: ForwardInterventions | None = None
    ) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every parameter (overwritten next time)."""
        loss, accuracy, _ = self._run(batch, Update(False, 0.0, 0.0), interventions)
        return loss, accuracy, self._gradients

    def _run(self, batch: Batch, update: Update, interventions: ForwardInterventions | None) -> StepResult:
        tokens, clamps = self._tokens(batch), self._clamps(interventions, batch)
        bounds, scratches, common = self._memory_for(tokens)
        self._turn += 1
        arguments = [
            (self._sizes, update, tokens, clamps, bound, part, self._turn, common, memory)
            for part, (bound, memory) in enumerate(zip(bounds, scratches, strict=True))
        ]
        try:
            with self._blas.limit(limits=1):  # parts are the threads
                for part in range(1, len(arguments)):
                    self._worker(part).send(_step_part, *arguments[part])
                done = [_step_part(*arguments[0])]
                done += [self._worker(part).receive() for part in range(1, len(arguments))]
        except BaseException:
            # A worker may still be computing, and writes to the old memory until it ends.
            give_up(common.arrivals)
            for worker in self._workers:
                worker.stop()
            self._workers, self._memory = [], None
            raise
        if self._compiled:
            self._compiled()
        losses, corrects, squares = zip(*done, strict=True)
        if min(corrects) < 0:
            raise MechinterpError("a label of the batch, or a content or position of its table, is out of range")
        return StepResult(sum(losses) / len(batch), sum(corrects) / len(batch), math.sqrt(sum(squares)))

    def _worker(self, part: int) -> "Worker":
        if self._workers and self._workers[0].process != os.getpid():
            self._workers = []  # threads do not survive a fork
        while len(self._workers) < part:
            self._workers.append(Worker())
        return self._workers[part - 1]

    def _tokens(self, batch: Batch) -> Tokens:
        """The batch's arrays; without a table, every token is a content that belongs to its sequence.

        All shapes are checked here, since the compiled functions do not check them.
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
        D = d_model - width
        if (own.ndim, shared.ndim, len(own), own.shape[-1], shared.shape[-1]) != (3, 2, size, D, D):
            raise MechinterpError(
                f"the batch's contents are {own.shape} and {shared.shape} (shared), expected"
                f" ({size}, …, {D}) and (…, {D}) for {size} labels and d_model = {d_model}"
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

    def _clamps(self, interventions: ForwardInterventions | None, batch: Batch) -> Clamps:
        """The clamped patterns of a batch, in the engine's type."""
        if interventions is None:
            none = np.empty(0, self._flat.dtype)
            return Clamps(False, none, none[None], none, none[None])
        arrays = (np.ascontiguousarray(array, self._flat.dtype) for array in interventions.clamped_patterns())
        return Clamps(True, *arrays)

    def _memory_for(self, tokens: Tokens) -> _Memory:
        """Bounds and memory of the parts, and their common memory; kept while shapes stay the same."""
        size, n_parts = len(tokens.labels), max(1, min(torch.get_num_threads(), len(tokens.labels) // CHUNK))
        key = (n_parts, *tokens.content.shape, *tokens.shared.shape, tokens.own.shape[1])
        if self._memory is None or self._memory[0] != key:
            bounds = list(pairwise(size * part // n_parts for part in range(n_parts + 1)))
            scratches = [allocate_scratch(self._sizes, tokens, stop - start, self._flat.size) for start, stop in bounds]
            common = allocate_common(self._flat, self._flat_gradient, self._sizes.d_model, n_parts)
            self._memory = (key, (bounds, scratches, common))
        return self._memory[1]


def _step_part(*arguments: Any) -> tuple[float, int, float]:
    """`step_part`; if it fails to start, the parts that wait for it give up."""
    try:
        return step_part(*arguments)
    except BaseException:
        give_up(arguments[-2].arrivals)
        raise


def _views(flat: NDArray, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Named views of one flat buffer."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    pieces = np.split(flat, ends[:-1])
    return {
        name: torch.from_numpy(piece.reshape(shape))
        for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }
