"""A training step, data included: fused engine, hooked model, and plain autograd, interleaved.

    python -m benchmarks.step [--rounds 10] [--json]

Also how much of the fused step is large matrix products (over all tokens, or of size batch × d_model²), by timing them
alone.
"""

import json
import statistics
from dataclasses import dataclass

import torch
from torch.nn import functional

import mechinterp as mi
from analyses._common import run_analysis
from benchmarks.timing import interleaved, machine, median_ratio
from mechinterp.config import ItemLabelConfig
from mechinterp.models.forward import forward
from mechinterp.models.network import Network
from mechinterp.models.registry import initial_parameters
from mechinterp.training.engines import build_engine
from mechinterp.training.prefetch import batches
from tests.reference_engine import ReferenceEngine


@dataclass
class Step:
    """Time a training step, data included."""

    rounds: int = 10
    """Rounds, each running every variant in turn."""
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> None:
        times = interleaved(_cases(), self.rounds)
        result = {f"{name}_ms": round(statistics.median(values), 3) for name, values in times.items()}
        result["ratio"] = round(median_ratio(times["hooked"], times["fused"]), 2)
        result["ratio_autograd"] = round(median_ratio(times["autograd"], times["fused"]), 2)
        result["share_of_matrix_products"] = round(1 / median_ratio(times["fused"], times["matrix_products"]), 2)
        result |= machine()
        print(json.dumps(result) if self.json else "\n".join(f"{name:28}{value}" for name, value in result.items()))


def _cases():
    config = mi.RunConfig.preset("reddy2023-fast")
    task = mi.build_task(config)
    assert isinstance(config.task, ItemLabelConfig)
    fused = build_engine(config, initial_parameters(config))
    hooked = ReferenceEngine(config, initial_parameters(config))
    plain = {name: value.requires_grad_() for name, value in initial_parameters(config).items()}
    rate, size = config.training.learning_rate, config.training.batch_size
    d, rows = config.task.d_model, config.task.n_labels + size * (config.task.n_pairs + 1)
    vectors, square, result = torch.randn(size, d), torch.randn(d, d), torch.empty(d, d)
    contents, block = torch.randn(rows, config.task.content_dim), torch.randn(config.task.content_dim, d)
    by_row = torch.randn(rows, d)

    def run_fused() -> int:
        for batch in batches(task, range(96), size):
            fused.step(batch)
        return 96

    def run_hooked() -> int:
        for step in range(16):
            hooked.step(task.train_batch(step, size))
        return 16

    def run_autograd() -> int:
        for step in range(16):
            batch = task.train_batch(step, size)
            logits = forward(Network(config, plain), batch.inputs)
            gradients = torch.autograd.grad(functional.cross_entropy(logits, batch.labels), list(plain.values()))
            with torch.no_grad():
                for value, gradient in zip(plain.values(), gradients, strict=True):
                    value.sub_(gradient, alpha=rate)
        return 16

    def run_sampler() -> int:
        for _ in batches(task, range(96), size):
            pass
        return 96

    def run_products() -> int:
        for _ in range(96):
            torch.mm(contents, block, out=by_row)
            torch.mm(contents.T, by_row)
            for _ in range(30):
                torch.mm(vectors, square, out=result)
        return 96

    return {
        "fused": run_fused,
        "hooked": run_hooked,
        "autograd": run_autograd,
        "sampler": run_sampler,
        "matrix_products": run_products,
    }


if __name__ == "__main__":
    run_analysis(Step)
