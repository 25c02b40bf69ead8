"""The worker processes of this process: started on demand, kept for the next request, ended with this process.

A worker is kept because starting one takes seconds: it imports torch. It ends itself when this process has ended.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from tempfile import TemporaryFile
from typing import Any

from mechinterp.studies import WORKER_GONE

_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
_TOLD_TO_END = (WORKER_GONE, 130, -signal.SIGTERM, -signal.SIGINT)

_lock = threading.Lock()
_idle: list["_Process"] = []
_busy: set["_Process"] = set()
_stopping = threading.Event()


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """A worker's answer: ``error`` is None or one line, ``output`` the traceback or other text that goes with it.

    If the worker ends without an answer, ``error`` says why; ``told_to_end`` means: stopped from outside.
    """
    with _lock:
        if _stopping.is_set():
            return {"error": "the study was stopped", "output": "", "told_to_end": True}
        while _idle and not (_idle[-1].owner == os.getpid() and _idle[-1].process.poll() is None):
            _idle.pop()
        process = _idle.pop() if _idle else _Process()
        _busy.add(process)
    reply = process.ask(request)
    with _lock:
        _busy.discard(process)
        if process.process.poll() is None and not _stopping.is_set():
            _idle.append(process)
        else:
            process.end()
    return reply


def begin(workers: int = 0) -> None:
    """Allow requests, also after a `stop`, and start processes until `workers` are idle."""
    _stopping.clear()
    with _lock:
        _idle.extend(_Process() for _ in range(workers - len(_idle)))


def stop() -> None:
    """End the busy workers, and refuse requests until `begin`."""
    with _lock:
        _stopping.set()
        for process in _busy:
            process.process.terminate()


def end() -> None:
    """End the idle workers."""
    with _lock:
        while _idle:
            _idle.pop().end()


atexit.register(end)


class _Process:
    """One worker."""

    def __init__(self) -> None:
        self.owner, self._errors = os.getpid(), TemporaryFile()  # noqa: SIM115  closed when it ends
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mechinterp.studies.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | _ONE_THREAD,
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer, or the cause if it ended without one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line.endswith("\n") else self._why_it_ended()

    def _why_it_ended(self) -> dict[str, Any]:
        code = self.process.wait()
        self._errors.seek(0)
        output = self._errors.read().decode(errors="replace")
        if code in _TOLD_TO_END:
            return {"error": "its process was told to end", "output": output, "told_to_end": True}
        if code < 0:
            return {"error": f"its process was ended by signal {-code}", "output": output}
        last = output.strip().splitlines()
        return {"error": last[-1] if last else f"its process ended with exit code {code}", "output": output}

    def end(self) -> None:
        """Kill the process and close its pipes."""
        self.process.kill()
        with self.process, self._errors:  # closes the pipes and waits
            pass
