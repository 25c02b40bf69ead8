"""How often the verdicts on transitions are right, on curves whose truth is known.

    python -m benchmarks.emergence [--curves 200] [--workers 2] [--out FOLDER]

`coverage.csv`: of curves with one logistic rise of 0.9 over `width` checkpoints (10–90 %) and AR(`correlation`) noise
of standard deviation 0.03, the share that is located, and of these the share whose 95 % interval contains the true
midpoint, which is uniform over the middle quarter of the checkpoints. `verdicts.csv`: shares of the shapes that are
named for curves of a known shape, and of transitions that are located in noise without one. No random number is shared
between cells.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from analyses._common import run_analysis
from mechinterp.emergence import Shape, locate_emergence
from mechinterp.emergence.locate import MAX_WIDTH, Scale
from mechinterp.emergence.logistic import WIDTH_IN_SCALES

WIDTHS, CORRELATIONS, COUNTS = (2, 5, 10, 20, 30), (0.0, 0.5, 0.8, 0.95), (20, 61, 150, 300)
NOISE = 0.03


@dataclass
class EmergenceBenchmark:
    """Measure how often the verdicts on transitions are right."""

    curves: int = 200
    """Curves in a cell."""
    workers: int = 2
    """Processes."""
    out: Path = Path("results/emergence_benchmark")
    """Folder of the two tables."""

    def execute(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        scales: tuple[Scale, ...] = ("step", "log_step")
        cells = [
            (scale, n, width, rho, self.curves)
            for scale, n, width, rho in product(scales, COUNTS, WIDTHS, CORRELATIONS)
            if width < MAX_WIDTH * n
        ]
        shapes = [(name, n, self.curves) for name, n in product(CURVES, (61, 150))]
        with ProcessPoolExecutor(self.workers) as pool:
            coverage, verdicts = (
                list(pool.map(coverage_of, *zip(*cells, strict=True))),
                list(pool.map(verdicts_of, *zip(*shapes, strict=True))),
            )
        for name, rows in (("coverage", coverage), ("verdicts", verdicts)):
            table = pd.DataFrame(rows)
            table.to_csv(self.out / f"{name}.csv", index=False)
            print(table.to_string(index=False))


def coverage_of(scale: Scale, n: int, width: int, rho: float, n_curves: int) -> dict[str, object]:
    """One cell of the grid of coverage."""
    rng, located, covered, lengths = np.random.default_rng([n, width, int(100 * rho), len(scale)]), 0, 0, []
    steps, x = grid(scale, n)
    spacing = (x[-1] - x[0]) / (n - 1)
    with threadpool_limits(1):
        for _ in range(n_curves):
            truth = rng.uniform(x[0] + 0.375 * (x[-1] - x[0]), x[0] + 0.625 * (x[-1] - x[0]))
            y = 0.05 + 0.9 * logistic(x, truth, width * spacing) + ar_noise(rng, n, rho)
            emergence = locate_emergence(pd.Series(y, index=steps), scale=scale)
            if not emergence.transition:
                continue
            assert emergence.low is not None
            assert emergence.high is not None
            ends = np.array([emergence.low, emergence.high])
            low, high = np.log1p(ends) if scale == "log_step" else ends
            located, covered = located + 1, covered + int(low <= truth <= high)
            lengths.append((high - low) / spacing)
    return {
        "scale": scale,
        "checkpoints": n,
        "width": width,
        "correlation": rho,
        "located": located / n_curves,
        "coverage": round(covered / located, 3) if located else np.nan,
        "checkpoints_in_interval": round(float(np.median(lengths)), 2) if lengths else np.nan,
    }


def verdicts_of(name: str, n: int, n_curves: int) -> dict[str, object]:
    """How often a curve of a known shape is given every shape, and located."""
    rng, counts, located = (
        np.random.default_rng([len(name), n, sum(map(ord, name))]),
        dict.fromkeys(Shape.__members__, 0),
        0,
    )
    steps = np.linspace(0, 6000, n)
    with threadpool_limits(1):
        for _ in range(n_curves):
            emergence = locate_emergence(pd.Series(CURVES[name](rng, steps), index=steps))
            counts[emergence.shape] += 1
            located += emergence.transition
    shares = {shape: count / n_curves for shape, count in counts.items()}
    return {"curve": name, "checkpoints": n, "located": located / n_curves, **shares}


def grid(scale: Scale, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps of n checkpoints, and the x in which they are equally spaced."""
    x = np.linspace(0.0, 6000.0 if scale == "step" else np.log1p(60_000.0), n)
    return (x, x) if scale == "step" else (np.expm1(x), x)


def logistic(x: np.ndarray, midpoint: float, width: float) -> np.ndarray:
    """A rise from 0 to 1, with its 10–90 % width."""
    return 1 / (1 + np.exp(-np.clip((x - midpoint) * WIDTH_IN_SCALES / width, -500, 500)))


def ar_noise(rng: np.random.Generator, n: int, rho: float, scale: float = NOISE) -> np.ndarray:
    """Stationary AR(1) noise."""
    values = rng.standard_normal(n)
    for i in range(1, n):
        values[i] = rho * values[i - 1] + np.sqrt(1 - rho**2) * values[i]
    return scale * values


def _sum(*rises: tuple[float, float, float]):
    """Logistic rises of (height, midpoint, width), with AR(0.5) noise."""

    def curve(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
        return sum((h * logistic(x, m, w) for h, m, w in rises), 0.05 + ar_noise(rng, len(x), 0.5))

    return curve


CURVES = {
    "one step": _sum((0.9, 3000, 400)),
    "one slow step": _sum((0.9, 3000, 2000)),
    "two equal steps": _sum((0.45, 1500, 300), (0.45, 4500, 300)),
    "a small step, a large one": _sum((0.2, 1500, 300), (0.7, 4500, 300)),
    "a large step, a small one": _sum((0.7, 1500, 300), (0.2, 4500, 300)),
    "a step and a late jump": _sum((0.25, 1500, 300), (0.65, 5600, 100)),
    "a transient": _sum((0.9, 2000, 300), (-0.9, 4000, 300)),
    "a fall at the end": _sum((0.9, 1100, 300), (-0.45, 5000, 300)),
    "a ramp that ends in a jump": lambda rng, x: (
        0.3 + 0.3 * np.clip((x - 1500) / 1900, 0, 1) + 0.35 * logistic(x, 3450, 200) + ar_noise(rng, len(x), 0.5)
    ),
    "a line": lambda rng, x: x / 6000 + ar_noise(rng, len(x), 0.5),
    "a saturating rise": lambda rng, x: 1 - np.exp(-x / 1500) + ar_noise(rng, len(x), 0.5),
    "white noise": lambda rng, x: 0.5 + ar_noise(rng, len(x), 0.0),
    "AR(0.7) noise": lambda rng, x: 0.5 + ar_noise(rng, len(x), 0.7),
    "AR(0.9) noise": lambda rng, x: 0.5 + ar_noise(rng, len(x), 0.9),
    "AR(0.97) noise": lambda rng, x: 0.5 + ar_noise(rng, len(x), 0.97),
    "a random walk": lambda rng, x: 0.5 + NOISE * np.cumsum(rng.standard_normal(len(x))),
}


if __name__ == "__main__":
    run_analysis(EmergenceBenchmark)
