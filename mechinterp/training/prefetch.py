"""Training batches prepared on another thread while the current step runs; their order and bits are unchanged."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from mechinterp.tasks.base import Batch, Task

AHEAD = 4
"""How many batches are prepared before they are needed."""


def batches(task: Task, steps: range, size: int) -> Iterator[Batch]:
    """The training batches of `steps`, in order. An error in the task surfaces at the step that it belongs to."""
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
