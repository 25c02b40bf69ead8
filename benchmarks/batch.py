"""Runs of one shape on one core: one after the other, each by its engine, or in one batch.

python -m benchmarks.batch [--rounds 5] [--runs 8] [--json]
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

import mechinterp as mi
from analyses._common import run_analysis
from benchmarks.timing import interleaved, machine, median_ratio
from mechinterp.models.registry import initial_parameters
from mechinterp.studies.jobs import faster_together, work_of_a_step
from mechinterp.training.engines import AutogradEngine, build_engine

PRESETS = (
    "reddy2023-fast",
    "reddy2023-minimal",
    "nguyen2024-fast",
    "nguyen2024-minimal",
    "edelman2024",
    "induction-tokens",
    "singh2024",
    "grokking",
)
COMMON: dict[str, Any] = {"kind": "transformer", "input": "tokens", "output": "unembedding", "n_layers": 2}
COMMON |= {
    "n_heads": 2,
    "normalization_type": "LN",
    "positional_embedding_type": "rotary",
    "use_attn_scale": True,
    "output_matrix": "trained",
}
SIZES = tuple(product((16, 64), (16, 48), (16, 64)))
"""d_model, sequence length, batch size of networks on repeated random tokens."""


@dataclass
class Batch:
    """Time a step of a run, of several runs one after the other and in one batch."""

    rounds: int = 5
    """Rounds, each running both in turn."""
    runs: int = 8
    """Runs in a batch."""
    only: tuple[str, ...] = ()
    """Cases to run; all by default."""
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> None:
        torch.set_num_threads(1)
        result: dict[str, Any] = {}
        for name, config in cases().items():
            if self.only and name not in self.only:
                continue
            engine, variants = _variants(config, self.runs)
            times = interleaved(variants, self.rounds)
            row = {f"{variant}_ms": round(statistics.median(values), 3) for variant, values in times.items()}
            row |= {"alone/together": round(median_ratio(times["alone"], times["together"]), 2)}
            row |= {"engine": engine, "million_products": round(work_of_a_step(config) / 1e6, 2)}
            result[name] = row | {"batched": faster_together(config)}
            if not self.json:
                print(f"{name:28}", *(f"{key} {value}" for key, value in result[name].items()), sep="  ", flush=True)
        print(json.dumps(result | machine()) if self.json else machine())


def cases() -> dict[str, mi.RunConfig]:
    """Presets, and networks of several sizes on repeated random tokens."""
    configs = {name: mi.RunConfig.preset(name) for name in PRESETS}
    for width, n_pos, size in SIZES:
        task = {
            "kind": "induction_tokens",
            "n_tokens": 32,
            "n_pos": n_pos,
            "min_period": 4,
            "max_period": n_pos // 2 - 1,
        }
        model = COMMON | {"d_model": width, "d_head": width // 2}
        values = {"task": task, "model": model, "training": {"optimizer": "adamw", "batch_size": size}}
        configs[f"tokens, {width} x {n_pos} x {size}"] = mi.RunConfig.from_dict(values)
    return configs


def _variants(config: mi.RunConfig, n_runs: int) -> tuple[str, dict[str, Callable[[], int]]]:
    """The engine of a run alone; and steps alone and together, which return their number."""
    configs = [config.updated({"seed": seed}) for seed in range(n_runs)]
    size, count = config.training.batch_size, 4
    batches = [[mi.build_task(each).train_batch(step, size) for step in range(count)] for each in configs]
    engines = [build_engine(each, initial_parameters(each)) for each in configs]
    batched = AutogradEngine(configs, [initial_parameters(each) for each in configs])

    def alone() -> int:
        for engine, of_run in zip(engines, batches, strict=True):
            for step, batch in enumerate(of_run):
                engine.step(batch, step=step)
        return count * n_runs

    def together() -> int:
        for step in range(count):
            batched.step_runs([of_run[step] for of_run in batches], [None] * n_runs, [step] * n_runs)
        return count * n_runs

    return engines[0].name, {"alone": alone, "together": together}


if __name__ == "__main__":
    run_analysis(Batch)
