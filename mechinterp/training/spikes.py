"""Loss spikes: batches whose loss is far above its recent level.

With ℓ the loss of a batch, m and f its exponentially weighted means over `MEMORY` and `RECENT` steps, and v the
weighted mean of (ℓ − f)² over `MEMORY` steps where ℓ > f − 3 √v, all of the batches before, a step is a spike if

    ℓ − l > max(0.3 nats, l, 6 √v),   l = min(m, f).

So the loss must at least double, by more than noise explains, and by an amount that matters. After an abrupt fall of
the loss, l has followed within some ten steps, and v, which has the noise but not the fall, within some hundred. A
spike enters m and f as the threshold, and v not at all; a loss that stays high becomes the level after some hundred
steps. SGD at too large a learning rate spikes long after the loss has fallen, and what the network had learned may be
gone afterwards.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

SPIKES = ("spikes", "spike_step", "spike_height")
"""Metrics of a checkpoint: the number of spikes since the one before, and step and loss of the highest (0: none)."""
STATE = ("loss_level", "loss_recent", "loss_variance")
"""Metrics of a checkpoint from which spikes are told: m, f and v."""
MEMORY = 200
"""Steps over which the slower mean and the variance forget."""
RECENT = 20
"""Steps over which the faster mean forgets."""
FALL = 3.0
"""Standard deviations by which a loss below the faster mean is part of a fall, and not of the noise."""
LEAST = 0.3
"""Nats: the least excess of a spike."""
DEVIATIONS = 6.0
"""The least excess of a spike, in standard deviations."""


class LossSpikes:
    """Counts the spikes between checkpoints; its state is stored with them, so that a resumed run finds the same."""

    def __init__(self, recorded: Mapping[str, float] | None = None):
        """`recorded` are the metrics of the checkpoint from which a run goes on."""
        state = recorded or {}
        self._level, self._recent, self._variance = (state.get(name, math.nan) for name in STATE)
        self._count, self._step, self._loss = 0, 0, 0.0

    def add(self, step: int, loss: float) -> None:
        """Take the loss of the batch of the update that led to `step`."""
        if not math.isfinite(self._level + self._recent + self._variance):
            self._level, self._recent, self._variance = loss, loss, 0.0
            return
        level = min(self._level, self._recent)
        most = level + max(LEAST, level, DEVIATIONS * math.sqrt(self._variance))
        if loss > most:
            self._count += 1
            if loss > self._loss:
                self._step, self._loss = step, loss
            loss = most
        elif loss > self._recent - FALL * math.sqrt(self._variance):
            self._variance += ((loss - self._recent) ** 2 - self._variance) / MEMORY
        self._level += (loss - self._level) / MEMORY
        self._recent += (loss - self._recent) / RECENT

    def pop(self) -> dict[str, float]:
        """The metrics of a checkpoint; the count is then reset."""
        metrics = {
            "spikes": float(self._count),
            "spike_step": float(self._step),
            "spike_height": self._loss,
            **dict(zip(STATE, (self._level, self._recent, self._variance), strict=True)),
        }
        self._count, self._step, self._loss = 0, 0, 0.0
        return metrics


@dataclass(frozen=True)
class Spikes:
    """The loss spikes of a run."""

    count: int
    """Number of batches, at least 1."""
    first: int
    """Step of the first; if several lie between the same two checkpoints, of the highest of those."""
    step: int
    """Step of the highest."""
    height: float
    """Loss of the highest, nats."""
    steps: tuple[int, ...]
    """Step of the highest between any two neighbouring checkpoints that have one, ascending."""

    def __str__(self) -> str:
        batches = "1 batch" if self.count == 1 else f"{self.count:,} batches"
        return (
            f"loss spikes: {batches}, the first at step {self.first:,}, the highest, {self.height:.2g} nats, at step"
            f" {self.step:,}; what is measured after step {self.first:,} may be their doing, and a lower"
            " training.learning_rate avoids them"
        )


def spikes_of(metrics: pd.DataFrame) -> Spikes | None:
    """The loss spikes in a run file's metrics (`RunFile.metrics`), or in a table of measures of all its checkpoints.

    None without a spike, and if the file was written before spikes were recorded. With steps that were rebuilt between
    checkpoints (`Run.densify`), a spike counts twice.
    """
    if any(name not in metrics for name in SPIKES):
        return None
    spiking = metrics.loc[metrics["spikes"] > 0, list(SPIKES)]
    if spiking.empty:
        return None
    steps = [int(step) for step in spiking["spike_step"]]
    highest = int(spiking["spike_height"].to_numpy().argmax())
    height = float(spiking["spike_height"].iloc[highest])
    return Spikes(int(spiking["spikes"].sum()), steps[0], steps[highest], height, tuple(steps))
