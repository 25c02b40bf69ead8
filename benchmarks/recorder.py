"""What recording costs a training loop of one's own: the same loop with and without a recorder, in turn.

python -m benchmarks.recorder [--rounds 10] [--every 100] [--json]

The network is a GPT-2 of two layers in plain PyTorch's modules, at a batch with which a step takes about 10 ms.
"""

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import mechinterp as mi
from analyses._common import run_analysis
from benchmarks.timing import interleaved, machine, median_ratio

STEPS = 200
"""Updates in a round of a loop."""


def network() -> nn.Module:
    """Two layers of four heads at a width of 64: about 0.1 million parameters."""
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, dropout=0.0, norm_first=True)
    return nn.Sequential(
        nn.Embedding(64, 64), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, 64)
    )


@dataclass
class Recorder:
    """Time a loop with a recorder against the same loop without one."""

    rounds: int = 10
    """Rounds, each running every variant in turn."""
    every: int = 100
    """The recorder saves every so many steps."""
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> None:
        torch.manual_seed(0)
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        tokens = torch.randint(64, (24, 33))

        def update() -> float:
            loss = functional.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        with tempfile.TemporaryDirectory() as folder:
            schedule, path = mi.Schedule(every=self.every), Path(folder) / "x.h5"
            with mi.record(path, model, schedule=schedule, optimizer=optimizer) as recorder:

                def plain() -> int:
                    for _ in range(STEPS):
                        update()
                    return STEPS

                def recorded() -> int:
                    for _ in range(STEPS):
                        recorder(recorder.last_step + 1, loss=update())
                    return STEPS

                times = interleaved({"plain": plain, "recorded": recorded}, self.rounds)
                saves = [self._save(recorder) for _ in range(20)]
                idle = self._idle(recorder)
            size = path.stat().st_size
        result: dict[str, object] = {
            "step_ms": round(statistics.median(times["plain"]), 2),
            "recorded_over_plain": round(median_ratio(times["recorded"], times["plain"]), 4),
            "save_ms": round(statistics.median(saves) * 1e3, 2),
            "save_per_cent_of_the_steps_between": round(
                1e5 * statistics.median(saves) / self.every / statistics.median(times["plain"]), 2
            ),
            "call_without_save_us": round(idle * 1e6, 2),
            "file_mb": round(size / 1e6, 1),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
        result |= machine()
        print(json.dumps(result) if self.json else "\n".join(f"{name:36}{value}" for name, value in result.items()))

    def _save(self, recorder: mi.Recorder) -> float:
        """Seconds of one call that saves."""
        step = (recorder.last_step // self.every + 1) * self.every
        started = time.perf_counter()
        recorder(step, loss=0.0)
        return time.perf_counter() - started

    def _idle(self, recorder: mi.Recorder) -> float:
        """Seconds of one call that saves nothing."""
        first = (recorder.last_step // self.every + 1) * self.every + 1
        started = time.perf_counter()
        for step in range(first, first + self.every - 2):
            recorder(step, loss=0.0)
        return (time.perf_counter() - started) / (self.every - 2)


if __name__ == "__main__":
    run_analysis(Recorder)
