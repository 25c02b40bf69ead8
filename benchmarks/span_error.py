"""Whether the standard error of the span is right: over untrained networks, span/error has standard deviation 1.

    python -m benchmarks.span_error [--networks 200] [--pairs 256] [--out FOLDER]

`span_errors.csv`: for every task, corruption and metric, z = span/error over networks of different seeds, each with its
own classes, labels and weights. ``sd_independent`` is the root mean square of z with the error of independent pairs
(s/√n), ``sd`` that with the error of `patch`, for which pairs whose targets share a class are correlated;
``beyond_two_independent`` and ``beyond_two`` are the shares of |z| > 2. Standard deviations are known to about
sd/√(2 · networks). Networks without any difference between the runs (of the accuracy) are left out.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from analyses._common import run_analysis
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.standard_errors import standard_error
from mechinterp.config import RunConfig
from mechinterp.models.forward import forward
from mechinterp.models.network import Network
from mechinterp.tasks.corruption import corrupted_pairs, corruptions_of
from mechinterp.tasks.registry import build_task

PRESETS = ("reddy2023", "nguyen2024-fast")


@dataclass
class SpanErrorBenchmark:
    """Measure the standard deviation of span/error over untrained networks."""

    networks: int = 200
    """Networks of a preset, with seeds from 0."""
    pairs: int = 256
    """Pairs of clean and corrupt sequences."""
    out: Path = Path("results/span_error")
    """Folder of the table."""

    def execute(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        table = pd.concat([span_errors(preset, self.networks, self.pairs) for preset in PRESETS])
        table.to_csv(self.out / "span_errors.csv", index=False, float_format="%.3f")
        print(table.to_string(index=False, float_format="%.3f"))


def span_errors(preset: str, n_networks: int, n_pairs: int) -> pd.DataFrame:
    """One row per corruption and metric: the spread of span/error over untrained networks of a preset."""
    ratios: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for seed in range(n_networks):
        config = RunConfig.preset(preset, seed=seed)
        network, task = Network.initial(config), build_task(config)
        for corruption in corruptions_of(task):
            pairs = corrupted_pairs(task, corruption, n_pairs=n_pairs, seed=seed)
            with torch.no_grad():
                logits = [forward(network, batch.inputs) for batch in (pairs.clean, pairs.corrupt)]
            for metric in Metric:
                clean, corrupt = (metric.per_sequence(x, pairs.answers, pairs.wrong_labels) for x in logits)
                values = (clean - corrupt).double()
                errors = standard_error(values), standard_error(values, pairs.target_classes)
                if errors[0] > 0:
                    span = float(values.mean())
                    ratios[corruption.name, metric.name].append((span / errors[0], span / errors[1]))
    rows = []
    for (corruption, metric), listed in ratios.items():
        z = pd.DataFrame(listed, columns=["independent", "clustered"])
        sd, beyond = (z**2).mean() ** 0.5, (z.abs() > 2).mean()
        rows.append(
            {
                "preset": preset,
                "corruption": corruption,
                "metric": metric,
                "networks": len(z),
                "pairs": n_pairs,
                "sd_independent": sd["independent"],
                "sd": sd["clustered"],
                "beyond_two_independent": beyond["independent"],
                "beyond_two": beyond["clustered"],
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run_analysis(SpanErrorBenchmark)
