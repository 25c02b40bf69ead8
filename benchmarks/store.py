"""What the trajectory costs: writing a checkpoint against the steps between two, and replaying against training.

python -m benchmarks.store [--rounds 10] [--checkpoints 100000] [--json]
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import mechinterp as mi
from analyses._common import run_analysis
from benchmarks.timing import interleaved, machine, median_ratio
from mechinterp.models.registry import initial_parameters
from mechinterp.run import replay
from mechinterp.training.engines import build_engine
from mechinterp.training.prefetch import batches
from mechinterp.training.recording import new_run_file

BETWEEN = 100
"""Steps between two checkpoints."""


@dataclass
class Store:
    """Time checkpoints and replay."""

    rounds: int = 10
    """Rounds, each running every variant in turn."""
    checkpoints: int = 0
    """Also time the reading of a file of so many checkpoints of a tiny network."""
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> None:
        config = mi.RunConfig.preset("reddy2023-fast").updated(
            {"training.steps": BETWEEN, "checkpoints.every": BETWEEN}
        )
        long = config.updated({"training.steps": 1_000, "checkpoints.every": 1})
        task = mi.build_task(config)
        engine = build_engine(config, initial_parameters(config))
        with tempfile.TemporaryDirectory() as folder:
            run = mi.train(config, Path(folder) / "run.h5", progress=False)
            with new_run_file(Path(folder) / "writes.h5", long) as writer:
                step = iter(range(10**9))

                def write() -> int:
                    writer.append(next(step), engine.parameters, {"train_loss": 0.0, "train_accuracy": 0.0})
                    return 1

                def train() -> int:
                    for batch in batches(task, range(BETWEEN), config.training.batch_size):
                        engine.step(batch)
                    return 1

                def rebuild() -> int:
                    assert replay(run, [BETWEEN // 2], lambda *kept: None).exact
                    return 1

                times = interleaved({"write": write, "train": train, "replay": rebuild}, self.rounds)
        result: dict[str, object] = {
            f"{name}_ms": round(statistics.median(values), 2) for name, values in times.items()
        }
        result["write_per_cent_of_training"] = round(100 / median_ratio(times["train"], times["write"]), 2)
        result["replay_over_training"] = round(median_ratio(times["replay"], times["train"]), 2)
        result |= machine() | (reading(self.checkpoints) if self.checkpoints else {})
        print(json.dumps(result) if self.json else "\n".join(f"{name:28}{value}" for name, value in result.items()))


def reading(n_checkpoints: int) -> dict[str, object]:
    """Seconds to open a file of so many checkpoints, and to read all digests, weights and series of it."""
    sizes = {"task.content_dim": 3, "task.position_dim": 5, "task.n_pairs": 2, "task.n_classes": 8, "task.n_labels": 4}
    sizes |= {"task.n_novel_classes": 8, "model.classifier_width": 4, "model.classifier_depth": 1}
    config = mi.RunConfig().updated(sizes | {"training.steps": n_checkpoints - 1, "checkpoints.every": 1})
    parameters, times = initial_parameters(config), dict[str, object]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.h5"
        with patch("mechinterp.store.writer.sync"), new_run_file(path, config) as writer:  # written without syncs
            for step in range(n_checkpoints):
                writer.append(step, parameters, {})
        run = mi.open_run(path)
        looks: dict[str, Callable[[], object]] = {
            "open": lambda: mi.open_run(path),
            "digests": run.digests,
            "weights": lambda: [run.weights(step) and None for step in run.steps],
            "series": lambda: run.series,
        }
        for name, look in looks.items():
            started = time.monotonic()
            look()
            times[f"{name}_of_{n_checkpoints}_s"] = round(time.monotonic() - started, 2)
    return times


if __name__ == "__main__":
    run_analysis(Store)
