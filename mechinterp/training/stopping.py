"""The rules that end a run before its last step: `training.stop_accuracy` and `training.stop_plateau`.

`stop_plateau` = W ends a run when the loss and the in-context and in-weights accuracies no longer change: at a
checkpoint s ≥ W, with means over the checkpoints of (s−W, s−W/2] and of (s−W/2, s],

    |Δ training loss| ≤ 0.01 nats   and   |Δ accuracy| ≤ 0.01 on the evaluation sets icl and iwl

(all evaluation sets of a task that has neither). Accuracies are those of the weights without interventions, on 500
sequences, the same ones at every checkpoint. They are a function of stored weights, so a resumed run stops at the same
step. W must be so long that the loss changes by more than this in the slow phase, in which accuracies do not change.
"""

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.models.forward import forward
from mechinterp.models.network import Network
from mechinterp.store.file import RunFile
from mechinterp.tasks.base import Task

TOLERANCE = 0.01
"""The largest change of the loss (nats), and of an accuracy, that counts as none."""
_SEQUENCES = 500


class StopRule:
    """The stop rules of a run, which take its checkpoints in order."""

    def __init__(self, config: RunConfig, task: Task):
        self._config = config
        self._window = config.training.stop_plateau or 0
        self._seen: deque[tuple[int, Tensor]] = deque()
        evaluations = [name for name in task.evaluations if name in ("icl", "iwl")] or list(task.evaluations)
        self._batches = [task.sample(name, _SEQUENCES) for name in evaluations] if self._window else []

    def reached(self, step: int, weights: Mapping[str, Tensor], metrics: Mapping[str, float]) -> bool:
        """Whether the run ends at a checkpoint, given the mean training metrics since the one before."""
        limit = self._config.training.stop_accuracy
        return self._at_rest(step, weights, metrics["train_loss"]) or (
            limit is not None and metrics["train_accuracy"] >= limit
        )

    def recall(self, file: RunFile) -> bool:
        """Whether the run has ended at the last stored checkpoint; takes all that the rule still depends on."""
        metrics, ended = file.metrics(), False  # read once: another process may be writing the file
        last = int(metrics.index[-1])
        for step in map(int, metrics.index):
            if step > last - self._window or step == last:
                row = {str(name): float(value) for name, value in metrics.loc[step].items()}
                ended = self.reached(step, file.weights(step), row)
        return ended

    def _at_rest(self, step: int, weights: Mapping[str, Tensor], train_loss: float) -> bool:
        if not self._window or step == 0:  # before the first update there is no training loss
            return False
        self._seen.append((step, torch.tensor([train_loss, *self._accuracies(weights)], dtype=torch.float64)))
        while self._seen[0][0] <= step - self._window:
            self._seen.popleft()
        middle = step - self._window / 2
        before, after = ([values for at, values in self._seen if (at > middle) == late] for late in (False, True))
        if step < self._window or not before:
            return False
        change = torch.stack(after).mean(dim=0) - torch.stack(before).mean(dim=0)
        return bool((change.abs() <= TOLERANCE).all())

    def _accuracies(self, weights: Mapping[str, Tensor]) -> list[float]:
        accuracies = []
        with torch.no_grad():
            network = Network(self._config, {name: value.detach().cpu() for name, value in weights.items()})
            for batch in self._batches:
                parts = [forward(network, part.inputs, target_only=True) for part in batch.split(250)]
                accuracies.append(float((torch.cat(parts).argmax(dim=-1) == batch.labels).double().mean()))
        return accuracies
