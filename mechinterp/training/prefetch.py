"""Training batches prepared ahead of the step that needs them; their order and bits are unchanged.

With a core to spare they are drawn on another thread while the current step runs. Where the step's threads already
fill the cores, one more would only delay them (measured: slower than no overlap). On several threads the built-in task
then draws a few batches at a time between steps, on all cores; otherwise each is drawn when it is needed.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat

import torch

from mechinterp.tasks.base import Batch, Task
from mechinterp.tasks.item_label import ItemLabelTask

AHEAD = 16
"""How many batches are prepared before they are needed."""

_cores = os.cpu_count() or 1


def limit_cores(cores: int) -> None:
    """Draw as if the machine had so many cores: what shares it with others, each on its own, leaves theirs alone."""
    global _cores
    _cores = cores


def batches(task: Task, steps: range, size: int) -> Iterator[Batch]:
    """The training batches of `steps`, in order. An error in the task surfaces before the step that it belongs to."""
    if _cores > torch.get_num_threads():
        return _overlapped(task, steps, size)
    if torch.get_num_threads() > 1 and type(task) is ItemLabelTask:  # and not a user's, derived from it
        return _in_bursts(task, steps, size)
    return (task.train_batch(step, size) for step in steps)


def _in_bursts(task: ItemLabelTask, steps: range, size: int) -> Iterator[Batch]:
    n_threads = torch.get_num_threads()
    with ThreadPoolExecutor(max_workers=n_threads, thread_name_prefix="sampler") as samplers:
        for start in range(0, len(steps), AHEAD):
            burst = steps[start : start + AHEAD]
            shares = [burst[len(burst) * k // n_threads : len(burst) * (k + 1) // n_threads] for k in range(n_threads)]
            yield from chain.from_iterable(list(samplers.map(task.train_batches, shares, repeat(size))))


def _overlapped(task: Task, steps: range, size: int) -> Iterator[Batch]:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampler") as sampler:
        waiting = deque(sampler.submit(task.train_batch, step, size) for step in steps[:AHEAD])
        try:
            for step in steps:
                batch = waiting.popleft().result()
                if step + AHEAD < steps.stop:
                    waiting.append(sampler.submit(task.train_batch, step + AHEAD, size))
                yield batch
        finally:
            for each in waiting:
                each.cancel()
