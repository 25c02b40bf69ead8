"""What a person waits for before a command speaks: wall time and processor time, against the import of torch.

python -m benchmarks.startup RUN [--rounds 5] [--json]

The run is copied and every command called once before it is timed, so that what it computes has been kept. Commands
take turns, and a ratio is the median over rounds of its processor time over that of `python -c "import torch"` in the
same round.
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
COMMANDS = {
    "--help": ["--help"],
    "(no command)": [],
    "info RUN": ["info", "run.h5"],
    "runs": ["runs"],
    "emergence RUN": ["emergence", "run.h5"],
    "measure RUN": ["measure", "run.h5"],
    "compare RUN": ["compare", "run.h5", "--steps", "first", "last"],
    "circuit RUN": ["circuit", "run.h5"],
}


@dataclass
class Startup:
    """Time commands on a measured run."""

    run: RunPath
    rounds: int = 5
    """Rounds, each calling every command once."""
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> None:
        programs = {UNIT: ["-c", UNIT], **{name: ["-m", "mechinterp", *words] for name, words in COMMANDS.items()}}
        wall, cpu = ({name: list[float]() for name in programs} for _ in range(2))
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(self.run, Path(folder) / "run.h5")
            for index in range(self.rounds + 1):
                for name, program in programs.items():
                    seconds = _seconds([sys.executable, *program], folder)
                    for times, value in zip((wall, cpu), seconds, strict=True):
                        times[name] += [value] if index else []  # the first call measures, and loads from the disk
        rows = {
            name: {
                "wall_seconds": round(statistics.median(wall[name]), 3),
                "cpu_seconds": round(statistics.median(cpu[name]), 3),
                "cpu_over_torch": round(median_ratio(cpu[name], cpu[UNIT]), 2),
            }
            for name in programs
        }
        if self.json:
            print(json.dumps({"commands": rows, **machine()}))
            return
        print(f"{'':16}{'wall s':>8}{'CPU s':>8}{'× torch':>9}")
        for name, row in rows.items():
            print(f"{name:16}{row['wall_seconds']:8.2f}{row['cpu_seconds']:8.2f}{row['cpu_over_torch']:9.2f}")


def _seconds(command: list[str], folder: str) -> tuple[float, float]:
    """Wall time and processor time of a process."""
    before, started = getrusage(RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    wall, after = time.perf_counter() - started, getrusage(RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    run_analysis(Startup)
