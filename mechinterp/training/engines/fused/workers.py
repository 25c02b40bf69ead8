"""The threads on which all parts of a step but the first are computed."""

import os
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread, current_thread
from typing import Any
from weakref import finalize


class Worker:
    """A thread that computes the calls that it is sent; an executor's futures would cost a tenth of a step."""

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
        """The result of the call that was sent first; its error is raised here."""
        result, error = self._results.get()
        if error is not None:
            raise error
        return result


def _work(jobs: SimpleQueue, results: SimpleQueue) -> None:
    for function, arguments in iter(jobs.get, None):
        try:
            results.put((function(*arguments), None))
        except BaseException as error:
            results.put((None, error))


def _stop(thread: Thread, jobs: SimpleQueue) -> None:
    """End a worker after its current call, and wait for it: it must not run when the interpreter has ended."""
    jobs.put(None)
    if thread is not current_thread():
        thread.join(timeout=5)
