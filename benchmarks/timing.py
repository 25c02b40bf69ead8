"""Interleaved timing: on a noisy machine only ratios of neighbouring runs mean anything."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def interleaved(cases: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Run every case in turn, `rounds` times; milliseconds per unit of work, of which a case returns the number."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()  # warm up
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            units = case()
            times[name].append((time.perf_counter() - start) / units * 1e3)
    return times


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of slow/fast within the same round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
