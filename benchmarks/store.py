"""What the trajectory costs: writing a checkpoint against the steps between two, and replaying against training.

python -m benchmarks.store [--rounds 10] [--json]
"""

import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

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
        result |= machine()
        print(json.dumps(result) if self.json else "\n".join(f"{name:28}{value}" for name, value in result.items()))


if __name__ == "__main__":
    run_analysis(Store)
