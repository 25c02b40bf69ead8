"""The fused training step at many sizes, against its own matrix products alone, and a model of its time.

    python -m benchmarks.sizes [--rounds 5] [--json]

A row's products are those of one step, by torch, with the same shapes and counts for the whole batch. Their time and
the step's, without drawing of batches, are the processor's on one thread: other work on the machine disturbs it least.
Of the rounds, which run in turn, the fastest counts. The model of the time is

    t = a₀ + a₁·C + a₂·F + a₃·S + a₄·B T² + a₅·n

with the FLOP C of products of a row for every sequence, which are computed by chunks of 16 rows, S of products within
single sequences and F of all others, batch B, T = 2N + 1 tokens and n parameters. Its coefficients are not negative and
have the least squares of relative errors; a row's prediction comes from coefficients of all other rows.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls

import mechinterp as mi
from analyses._common import run_analysis
from benchmarks.timing import machine
from mechinterp.config import ItemLabelConfig, TransformerConfig
from mechinterp.models.registry import initial_parameters
from mechinterp.training.engines import build_engine

SIZES = [
    (8, 128, 32, 128),
    *((N, 128, 32, 128) for N in (16, 32, 64)),
    *((8, d, 32, 128) for d in (64, 256, 512)),
    *((8, 128, L, 128) for L in (2, 8, 128)),
    *((8, 128, 32, B) for B in (32, 64, 256, 512)),
    *((8, 64, 2, 32), (64, 64, 2, 128), (8, 512, 128, 32), (32, 256, 32, 64), (16, 64, 32, 512), (64, 128, 32, 32)),
    *(
        (16, 512, 2, 64),
        (16, 256, 128, 256),
        (64, 256, 8, 32),
        (32, 64, 128, 64),
        (32, 512, 32, 32),
        (64, 512, 128, 64),
    ),
]
"""Pairs N, d_model, labels L and batch B."""


@dataclass
class Sizes:
    """Time the fused step at many sizes."""

    rounds: int = 5
    """Rounds, each timing the step and its products in turn."""
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> None:
        torch.set_num_threads(1)
        rows = [_measured(size, self.rounds) for size in SIZES]
        times = np.array([row["step_ms"] for row in rows])
        terms = np.array([row.pop("terms") for row in rows])
        others = [np.arange(len(rows)) != i for i in range(len(rows))]
        for row, term, other in zip(rows, terms, others, strict=True):
            row["predicted_ms"] = float(term @ _coefficients(terms[other], times[other]))
            row["predicted / step"] = row["predicted_ms"] / row["step_ms"]
        result = {"rows": rows, "coefficients": _coefficients(terms, times).tolist(), **machine()}
        print(json.dumps(result) if self.json else _table(result))


def _measured(size: tuple[int, int, int, int], rounds: int) -> dict:
    """A row of the table, and the terms of the model in its `terms`."""
    N, d, L, B = size
    T = 2 * N + 1
    P = T if d >= 2 * T else 0  # positions where they take less than half of d
    task = {"n_pairs": N, "n_labels": L, "n_classes": 256, "n_novel_classes": 128, "distinct_labels": L >= N}
    sizes = {f"task.{name}": value for name, value in {**task, "content_dim": d - P, "position_dim": P}.items()}
    config = mi.RunConfig.preset("reddy2023-fast").updated({**sizes, "training.batch_size": B})
    parameters = initial_parameters(config)
    engine, drawn = build_engine(config, parameters), mi.build_task(config)
    batches = [drawn.train_batch(step, B) for step in range(4)]
    products, sequences = many_rows(config), single_sequences(config)

    def step() -> None:
        for batch in batches:
            engine.step(batch)

    calls = [_product(1, *shape) for shape, count in products for _ in range(count)]
    calls += [_product(B, *shape) for shape, count in sequences for _ in range(count)]

    def multiply() -> None:
        for _ in batches:
            for call in calls:
                call()

    step_ms, products_ms = (1e3 * seconds / len(batches) for seconds in _fastest(step, multiply, rounds=rounds))
    chunks = sum(2.0 * count * np.prod(shape) for shape, count in products if shape[0] == B)
    others = sum(2.0 * count * np.prod(shape) for shape, count in products if shape[0] != B)
    of_sequences = sum(2.0 * B * count * np.prod(shape) for shape, count in sequences)
    n = sum(value.numel() for value in parameters.values())
    return {
        **dict(zip(("N", "d_model", "L", "batch"), size, strict=True)),
        "step_ms": step_ms,
        "products_ms": products_ms,
        "ratio": step_ms / products_ms,
        "terms": [1.0, chunks / 1e9, others / 1e9, of_sequences / 1e9, B * T * T / 1e6, n / 1e6],
    }


def many_rows(config: mi.RunConfig) -> list[tuple[tuple[int, int, int], int]]:
    """The shapes (rows, inner, columns) of a step's products over many rows, with how often each is computed."""
    assert isinstance(config.task, ItemLabelConfig)
    assert isinstance(config.model, TransformerConfig)
    B, d, D, L = config.training.batch_size, config.task.d_model, config.task.content_dim, config.task.n_labels
    W, depth = config.model.classifier_width, config.model.classifier_depth
    own = B * (config.task.n_pairs + 1)
    shapes = [
        ((d, d, d), 3),  # M, and from its gradient those of W_Q¹ and W_K¹
        *(((rows, D, d), 1) for rows in (L, own)),  # contents times M: shared ones, and those of sequences
        *(((D, rows, d), 1) for rows in (L, own)),  # the gradient of M
        ((B, d, d), 12),  # forward and backward through the matrices of both layers
        ((d, B, d), 6),  # gradients of W_Q², W_K², W_V², and of W_V¹ from three batches of rows
    ]
    inputs = d
    for outputs in (*(W for _ in range(depth)), L):
        shapes += [((B, inputs, outputs), 1), ((B, outputs, inputs), 1), ((inputs, B, outputs), 1)]
        inputs = outputs
    return shapes


def single_sequences(config: mi.RunConfig) -> list[tuple[tuple[int, int, int], int]]:
    """The same of products of one sequence, which are computed for every sequence of the batch."""
    assert isinstance(config.task, ItemLabelConfig)
    T, D = config.task.n_pos, config.task.content_dim
    return [((T, D, T), 1), ((T, T, D), 1)]  # scores of layer 1, and their slopes


def _product(batch: int, rows: int, inner: int, columns: int) -> Callable[[], object]:
    left, right, out = (torch.randn(batch, *shape) for shape in ((rows, inner), (inner, columns), (rows, columns)))
    if batch == 1:
        return lambda: torch.mm(left[0], right[0], out=out[0])
    return lambda: torch.bmm(left, right, out=out)


def _fastest(*functions: Callable[[], None], rounds: int) -> list[float]:
    """The shortest of `rounds` times of every function in seconds, after one call to warm up."""
    best = [float("inf")] * len(functions)
    for turn in range(rounds + 1):
        for i, function in enumerate(functions):
            start = time.process_time()
            function()
            if turn:
                best[i] = min(best[i], time.process_time() - start)
    return best


def _coefficients(terms: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Of least squares of relative errors, none negative."""
    return nnls(terms / times[:, None], np.ones(len(times)))[0]


def _table(result: dict) -> str:
    names = list(result["rows"][0])
    lines = [" ".join(f"{name:>16}" for name in names)]
    for row in result["rows"]:
        lines.append(
            " ".join(f"{row[name]:16.2f}" if isinstance(row[name], float) else f"{row[name]:16}" for name in names)
        )
    units = ("step", "GFLOP by chunks", "other GFLOP", "GFLOP in sequences", "10⁶ B T²", "10⁶ parameters")
    lines += ["", "milliseconds per:"]
    lines += [f"  {unit:20}{value:8.3f}" for unit, value in zip(units, result["coefficients"], strict=True)]
    lines += [f"{name:20}{result[name]}" for name in ("processor", "cores", "threads", "cpu_capability", "torch")]
    return "\n".join(lines)


if __name__ == "__main__":
    run_analysis(Sizes)
