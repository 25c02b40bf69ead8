"""Training batches prepared ahead of the step that needs them; their order and bits are unchanged.

If a core is free, batches are drawn on another thread while the current step runs. If the step's threads occupy all
cores, another thread makes training slower (measured). On several threads a task with `train_batches` then draws
several batches between steps, on all cores; otherwise a batch is drawn when it is needed.
"""

import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat

import torch

from mechinterp.tasks.base import Batch, Task

AHEAD = 16
"""Number of batches that are prepared in advance."""

_cores = os.cpu_count() or 1


def limit_cores(cores: int) -> None:
    """Set the number of cores that this process may use, where other processes use the rest."""
    global _cores
    _cores = cores


def batches(task: Task, steps: range, size: int) -> Generator[Batch]:
    """The training batches of `steps`, in order; an error of the task is raised at its step."""
    if _cores > torch.get_num_threads():
        return _overlapped(task, steps, size)
    if torch.get_num_threads() > 1 and (train_batches := _train_batches(task)):
        return _in_bursts(train_batches, steps, size)
    return (task.train_batch(step, size) for step in steps)


def _train_batches(task: Task) -> Callable[[range, int], list[Batch]] | None:
    """The task's `train_batches`; None if it has none, or if a derived class has another `train_batch`."""
    defining = next((ancestor for ancestor in type(task).__mro__ if "train_batch" in vars(ancestor)), None)
    return getattr(task, "train_batches", None) if defining and "train_batches" in vars(defining) else None


def _in_bursts(train_batches: Callable[[range, int], list[Batch]], steps: range, size: int) -> Generator[Batch]:
    n_threads = torch.get_num_threads()
    with ThreadPoolExecutor(max_workers=n_threads, thread_name_prefix="sampler") as samplers:
        for start in range(0, len(steps), AHEAD):
            burst = steps[start : start + AHEAD]
            shares = [burst[len(burst) * k // n_threads : len(burst) * (k + 1) // n_threads] for k in range(n_threads)]
            yield from chain.from_iterable(list(samplers.map(train_batches, shares, repeat(size))))


def _overlapped(task: Task, steps: range, size: int) -> Generator[Batch]:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampler") as sampler:
        waiting = deque(sampler.submit(task.train_batch, step, size) for step in steps[:AHEAD])
        try:
            for step in steps:
                batch = waiting.popleft().result()
                if step + AHEAD < steps.stop:
                    waiting.append(sampler.submit(task.train_batch, step + AHEAD, size))
                yield batch
        finally:
            for batch in waiting:
                batch.cancel()
