"""Activation patching of every hook × role at a checkpoint: `patch` against a loop of `run_with_hooks`, interleaved.

    python -m benchmarks.patching RUN [--rounds 5] [--json]

The loop is what one would write with TransformerLens: cache the clean run once, then one hooked forward pass a cell.
Both give the same numbers, which is checked. All checkpoints of a run take as many times one.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

import mechinterp as mi
from analyses._common import run_analysis
from benchmarks.timing import interleaved, machine, median_ratio
from mechinterp.circuits.activations import activations_of
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import Site, patch, replaced, sites
from mechinterp.errors import MechinterpError
from mechinterp.models.hooked_lens import HookedRootModule
from mechinterp.models.network import Network
from mechinterp.tasks.corruption import Corruption, Pairs, corrupted_pairs


@dataclass
class Patching:
    """Time activation patching."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run file."""
    rounds: int = 5
    """Rounds, each running both in turn."""
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> None:
        run = mi.open_run(self.run)
        step = run.steps[-1]
        pairs = corrupted_pairs(run.task, Corruption.replace_target, n_pairs=256)
        network, model = run.network(step), run.model(step)
        where = sites(activations_of(network)(pairs.clean.inputs[:2]), pairs.roles)
        ways, worst = two_ways(network, model, pairs, where)
        times = interleaved(ways, self.rounds)
        result: dict[str, object] = {
            f"{name}_ms_per_cell": round(statistics.median(values), 3) for name, values in times.items()
        }
        result |= {"cells": len(where), "ratio": round(median_ratio(times["run_with_hooks"], times["patch"]), 2)}
        result |= {"largest_difference": worst, **machine()}
        print(json.dumps(result) if self.json else "\n".join(f"{name:28}{value}" for name, value in result.items()))


def two_ways(
    network: Network, model: HookedRootModule, pairs: Pairs, where: Sequence[Site]
) -> tuple[dict[str, Callable[[], int]], float]:
    """Patching of all sites by `patch` and by a loop of `run_with_hooks`, and their largest difference."""

    def ours() -> list[float]:
        return patch(network, pairs, where)["value"].tolist()

    def loop() -> list[float]:
        with torch.no_grad():
            _, source = model.run_with_cache(pairs.clean.inputs)
            values = []
            for site in where:

                def put(activation, hook, site=site):
                    return replaced(activation, source[hook.name], site, pairs.roles)

                logits = model.run_with_hooks(pairs.corrupt.inputs, fwd_hooks=[(site.hook, put)])
                logits = logits[:, -1] if logits.ndim == 3 else logits
                values.append(float(Metric.logit_difference.of(logits, pairs.answers, pairs.wrong_labels)))
        return values

    worst = max(abs(a - b) for a, b in zip(ours(), loop(), strict=True))
    if worst > 1e-3:
        raise MechinterpError(f"the two ways of patching differ by {worst:g}")
    return {"patch": lambda: len(ours()), "run_with_hooks": lambda: len(loop())}, worst


if __name__ == "__main__":
    run_analysis(Patching)
