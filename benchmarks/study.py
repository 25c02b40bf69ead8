"""What studies cost: two workers against one, what is neither training nor measuring, and thousands of runs.

python -m benchmarks.study [--rounds 3] [--tiny 1000] [--synthetic 10000] [--json]
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from analyses._common import run_analysis
from benchmarks.timing import machine
from mechinterp.emergence import locate_emergence
from mechinterp.measures import MEASURES
from mechinterp.studies import processes
from mechinterp.studies.cost import spent
from mechinterp.studies.jobs import jobs_of
from mechinterp.studies.results import Results, file_of, write_outcome
from mechinterp.studies.runner import run_study
from mechinterp.studies.study import Study

RUNS = """
preset = "reddy2023-fast"
seeds = [{seeds}]
measures = ["icl_accuracy", "ila1"]
[base]
training.steps = {steps}
[variants.free]
"""
TINY = """
seeds = [{seeds}]
measures = ["icl_accuracy"]
[task]
n_classes = 8
n_labels = 4
n_pairs = 3
content_dim = 11
position_dim = 13
n_novel_classes = 8
[model]
classifier_width = 19
[training]
batch_size = 16
steps = 20
[checkpoints]
every = 2
[variants.free]
"""


@dataclass
class Studies:
    """Time a small study on one worker and on two, and the commands on a large one that is done."""

    rounds: int = 3
    """Rounds, each doing the small study with one worker and with two; 0 leaves it out."""
    steps: int = 6_000
    """Steps of each of its eight runs."""
    tiny: int = 1_000
    """Runs of 20 steps and 11 checkpoints, by one worker; 0 leaves them out."""
    synthetic: int = 10_000
    """Runs of the large one, whose outcomes are made up; 0 leaves it out."""
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            parts = ((self.rounds, self._workers), (self.tiny, self._tiny), (self.synthetic, self._large))
            result = dict[str, float | str]()
            for wanted, part in parts:
                result |= part(Path(folder)) if wanted else {}
            result |= machine()
        print(json.dumps(result) if self.json else "\n".join(f"{name:28}{value}" for name, value in result.items()))

    def _workers(self, folder: Path) -> dict[str, float]:
        """Runs per hour on two workers over those on one, and the part of the workers' time that is no run's."""
        ratios, overheads = [], []
        for index in range(self.rounds):
            wall = {}
            for workers in (1, 2):
                seeds = ", ".join(str(10 * index + each) for each in range(8))
                study = _study(folder, "small", RUNS.format(seeds=seeds, steps=self.steps))
                runs, start = folder / f"{index}-{workers}", time.perf_counter()
                run_study(study, runs, workers=workers, progress=False)
                wall[workers] = time.perf_counter() - start
                busy = spent(study, Results(runs), runs).core_seconds
                overheads.append(workers * wall[workers] / busy - 1)
            ratios.append(wall[1] / wall[2])
        return {
            "two_workers_over_one": round(statistics.median(ratios), 3),
            "overhead_per_cent": round(100 * statistics.median(overheads), 2),
        }

    def _tiny(self, folder: Path) -> dict[str, float]:
        """Milliseconds per run of a sweep, by the clock and of the processor; and those that are no steps or measures.

        The worker's start and the index of the runs are in it. Steps and measures are those of a trial before it, so
        that the difference is of use on a quiet machine only.
        """
        study = _study(folder, "tiny", TINY.format(seeds=", ".join(map(str, range(self.tiny)))))
        config = study.variants["free"].model_dump(mode="json")
        try:
            trial = processes.ask({"what": "clock", "config": config, "cwd": str(folder)})
        finally:
            processes.end()
        before, start = _processor(), time.perf_counter()
        table = run_study(study, folder / "tiny", workers=1, progress=False)
        wall, busy = time.perf_counter() - start, _processor() - before
        assert (table["status"] == "done").all()
        work = 20 * trial["step"] + 11 * trial["checkpoint"]
        parts = {"wall": wall, "processor": busy}
        result = {f"tiny_{name}_ms": round(1e3 * seconds / self.tiny, 1) for name, seconds in parts.items()}
        result |= {f"tiny_{name}_ms": round(1e3 * trial[key] * n, 1) for name, key, n in _WORK}
        return result | {"tiny_overhead_ms": round(1e3 * (wall / self.tiny - work), 1)}

    def _large(self, folder: Path) -> dict[str, float]:
        """Seconds and megabytes of the commands on a study whose runs are all done; then with its index."""
        seeds = ", ".join(map(str, range(self.synthetic // 10)))
        text = RUNS.format(seeds=seeds, steps=6_000).replace("[variants.free]", "[grids.epsilon]")
        study = _study(folder, "large", text + f"task.epsilon = {[i / 10 for i in range(10)]}\n")
        runs = folder / "large"
        runs.mkdir()
        for _, job in jobs_of(study, runs):
            write_outcome(job, _made_up(job["config"]["seed"], job["measures"]))
            for ending in (".h5", ".csv"):
                file_of(job, ending).touch()
        result: dict[str, float] = {}  # the first command makes the index
        for name in ("status", "status", "collect", "resume"):
            command = ["study", *([name] if name != "resume" else []), str(folder / "large.toml"), "--runs", str(runs)]
            command += [] if name == "status" else ["--out", str(folder / "out")]
            seconds, megabytes = _timed(command)
            kind = "status_without_index" if not result else name
            result |= {f"{kind}_seconds": round(seconds, 2), f"{kind}_megabytes": round(megabytes)}
        start = time.perf_counter()
        Results(runs)
        return {**result, "index_seconds": round(time.perf_counter() - start, 2)}


_WORK = (("steps", "step", 20), ("measures", "checkpoint", 11))


def _processor() -> float:
    """Seconds of the processor that this process and its children that have ended have taken."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _study(folder: Path, name: str, text: str) -> Study:
    (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return Study.from_toml(folder / f"{name}.toml")


def _made_up(seed: int, measures: list[str]) -> dict[str, object]:
    """An outcome with as many numbers as real ones have."""
    curve = pd.Series(expit((np.arange(61) - 30 - seed / 1e3) / 2), index=np.arange(0, 6_001, 100))
    transition = locate_emergence(curve).to_dict()
    finals = {f"{kind}_accuracy": 0.5 + seed / 1e6 for kind in ("icl", "iwl", "swap", "train")}
    located = dict.fromkeys([*measures, *(name for name in MEASURES if name.islower())], transition)
    cost = {"steps": 6_000, "checkpoints": 61, "training_seconds": 27.0, "measuring_seconds": 9.0}
    made = {"version": "0", "kept": "all", "steps": 6_000, "digest": f"{seed:064x}", "transitions": located}
    return {**made, "final": finals, "cost": {**cost, "checkpoint_bytes": 600_000}}


def _timed(arguments: list[str]) -> tuple[float, float]:
    """Seconds of a command, and the most memory (MB) that it has held."""
    watch = "import sys; from pathlib import Path; from mechinterp.cli import main; code = main(sys.argv[1:]);"
    watch += "print('peak', Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]); sys.exit(code)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", watch, *arguments], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, int(done.stdout.split()[-1]) / 1e3


if __name__ == "__main__":
    run_analysis(Studies)
