"""Processes whose changes of files can be recorded, killed or made to fail: forked from one that has imported all."""

import ctypes
import json
import os
import select
import subprocess
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from enum import IntEnum
from io import StringIO
from pathlib import Path
from typing import Any


class Fault(IntEnum):
    """What happens at a process's nth change of a file; the numbers are those of shim.c."""

    NONE = 0
    LOG = 1
    """Every change is recorded."""
    KILL = 2
    """SIGKILL before it."""
    TEAR = 3
    """SIGKILL after half of a write."""
    FAIL_ONCE = 4
    FAIL_ON = 5
    """That change and all after it fail."""
    FAIL_SYNC = 6
    """Syncs fail from there on."""
    PAUSE = 7
    """It makes the file `log`, and waits until that is deleted."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    signal: int
    """0 if no signal has ended it."""
    error: str | None
    """The message of its MechinterpError."""
    trace: str | None
    """The traceback of any other exception."""
    changes: int
    """How many changes of files it has made; −1 if it was killed."""


class Processes:
    """A server in a process of its own that forks a child for every scenario."""

    def __init__(self, folder: Path):
        """The library is compiled into `folder`."""
        library = folder / "shim.so"
        source = Path(__file__).with_name("shim.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        here = Path(__file__).parents[2]
        environment = os.environ | {
            "LD_PRELOAD": str(library),
            "FAULT_SHIM": str(library),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")]),
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=here,
        )

    def run(
        self, scenario: str, path: Path, fault: Fault = Fault.NONE, at: int = 0, errno: int = 0, log: Path | None = None
    ) -> Ended:
        """Carry out a scenario (`scenarios`) on a file."""
        self.start(scenario, path, fault, at, errno, log)
        return self.result()

    def start(
        self, scenario: str, path: Path, fault: Fault = Fault.NONE, at: int = 0, errno: int = 0, log: Path | None = None
    ) -> None:
        """Begin a scenario, whose `result` is to be asked for."""
        request = {"scenario": scenario, "path": str(path), "fault": int(fault), "at": at, "errno": errno}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request | {"log": str(log or "")}) + "\n")
        self._server.stdin.flush()

    def has_result(self) -> bool:
        """Whether the scenario has ended."""
        assert self._server.stdout is not None
        return bool(select.select([self._server.stdout], [], [], 0)[0])

    def result(self) -> Ended:
        """How the scenario ended, which is waited for."""
        assert self._server.stdout is not None
        return Ended(**json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        with self._server:  # closes the pipes and waits
            self._server.stdin.close()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _serve() -> None:
    import torch

    from benchmarks.faults import scenarios

    torch.set_num_threads(1)
    scenarios.warm_up()
    for line in sys.stdin:
        request = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            os.write(writing, json.dumps(_child(request, scenarios)).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            text = answer.read()
        _, status = os.waitpid(child, 0)
        killed = {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else -1, "error": None, "trace": None}
        print(json.dumps(json.loads(text) if text else killed | {"changes": -1}), flush=True)


def _child(request: dict[str, Any], scenarios: Any) -> dict[str, Any]:
    from mechinterp.errors import MechinterpError

    shim = ctypes.CDLL(os.environ["FAULT_SHIM"])
    ended: dict[str, Any] = {"signal": 0, "error": None, "trace": None}
    path = Path(request["path"])

    def acknowledge(step: int, digest: str) -> None:
        shim.fault_ack(f"{step} {digest}".encode())

    arguments = (str(path.parent).encode(), request["fault"], ctypes.c_long(request["at"]), request["errno"])
    with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        try:
            shim.fault_arm(*arguments, request["log"].encode())
            getattr(scenarios, request["scenario"])(path, acknowledge)
        except MechinterpError as error:
            ended["error"] = str(error)
        except BaseException:
            ended["trace"] = traceback.format_exc()[-1500:]
        finally:
            shim.fault_count.restype = ctypes.c_long
            ended["changes"] = shim.fault_count()
            shim.fault_arm(b"/", 0, ctypes.c_long(0), 0, b"")
    return ended


if __name__ == "__main__":
    _serve()
