"""What a person waits for: whole commands, against the import of torch.

    python -m benchmarks.commands RUN [--rounds 5] [--json]

`--help`, `info` and `emergence` are asked of a copy of the run that has been measured and located; the others of one
from which nothing has been computed. Commands take turns, and a ratio is the median over rounds of a command's time
over that of `python -c "import torch"` in the same round. The processor's time tells what other work on the machine
has added.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

from analyses._common import run_analysis
from benchmarks.timing import machine, median_ratio
from mechinterp.cli.common import RunPath

UNIT = "import torch"
ASKED_AGAIN = ("--help", "info", "emergence")
COMPUTED = ("measure", "circuit", "circuit --all", "patch --all", "paths --all", "ablate --all", "report")


@dataclass
class Commands:
    """Time commands."""

    run: RunPath
    rounds: int = 5
    """Rounds, each calling every command once."""
    only: tuple[str, ...] = ()
    """Commands to time; all by default."""
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> None:
        names = [name for name in (*ASKED_AGAIN, *COMPUTED) if not self.only or name in self.only]
        wall, cpu = ({name: list[float]() for name in (UNIT, *names)} for _ in range(2))
        with tempfile.TemporaryDirectory() as folder:
            known, new = (Path(shutil.copy(self.run, Path(folder) / f"{name}.h5")) for name in ("known", "new"))
            _seconds(_program("emergence", known))
            steps = [str(step) for step in _steps(new)]
            for _ in range(self.rounds):
                for name in (UNIT, *names):
                    shutil.rmtree(f"{new}.cache", ignore_errors=True)
                    seconds = _seconds(_program(name, known if name in ASKED_AGAIN else new, steps))
                    for times, value in zip((wall, cpu), seconds, strict=True):
                        times[name].append(value)
        rows = {
            name: {
                "seconds": round(statistics.median(wall[name]), 3),
                "cpu_seconds": round(statistics.median(cpu[name]), 3),
                "over_torch": round(median_ratio(wall[name], wall[UNIT]), 2),
            }
            for name in (UNIT, *names)
        }
        if self.json:
            print(json.dumps({"commands": rows, **machine()}))
            return
        print(f"{'':16}{'seconds':>9}{'of CPU':>9}{'× torch':>9}")
        for name, row in rows.items():
            print(f"{name:16}{row['seconds']:9.2f}{row['cpu_seconds']:9.2f}{row['over_torch']:9.2f}")


def _program(name: str, run: Path, steps: list[str] | None = None) -> list[str]:
    """The words after ``python`` that call a command."""
    if name == UNIT:
        return ["-c", UNIT]
    if name.startswith("--"):
        return ["-m", "mechinterp", name]
    if name == "circuit --all":
        return ["-m", "mechinterp", "circuit", str(run), "--json", "--steps", *(steps or [])]
    return ["-m", "mechinterp", name.split()[0], str(run), *name.split()[1:]]


def _steps(run: Path) -> list[int]:
    from mechinterp.store import Trajectory

    return list(Trajectory(run).steps)


def _seconds(program: list[str]) -> tuple[float, float]:
    """Wall time and processor time of a process."""
    before, started = getrusage(RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *program], check=True, capture_output=True)
    wall, after = time.perf_counter() - started, getrusage(RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    run_analysis(Commands)
