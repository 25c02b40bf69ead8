"""When a run ends before its last step: the rules `training.stop_accuracy` and `training.stop_plateau`.

`stop_plateau` = W ends it when the loss and the in-context and in-weights accuracies have come to rest: at a
checkpoint s ≥ W, with means over the checkpoints of (s−W, s−W/2] and of (s−W/2, s],

    |Δ training loss| ≤ 0.01 nats   and   |Δ accuracy| ≤ 0.01 on each of the evaluation sets icl and iwl

(all evaluation sets of a task that has neither). Accuracies are those of the weights alone, on 500 sequences, the same
ones at every checkpoint: a function of what is stored, so a resumed run stops where it would have stopped. W must be
long enough for the slow phase in which nothing seems to happen: accuracies rest there, but the loss does not.
"""

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.models.conventions import folded
from mechinterp.models.functional import forward
from mechinterp.store.file import RunFile
from mechinterp.tasks.base import Task

TOLERANCE = 0.01
"""The largest change of the loss (nats), and of an accuracy, that counts as rest."""
_SEQUENCES = 500


class StopRule:
    """Watches a run's checkpoints, in order."""

    def __init__(self, config: RunConfig, task: Task):
        self._config = config
        self._window = config.training.stop_plateau or 0
        self._seen: deque[tuple[int, Tensor]] = deque()
        watched = [name for name in task.evaluations if name in ("icl", "iwl")] or list(task.evaluations)
        self._batches = [task.sample(name, _SEQUENCES) for name in watched] if self._window else []

    def reached(self, step: int, weights: Mapping[str, Tensor], metrics: Mapping[str, float]) -> bool:
        """Count one checkpoint, with the means over training since the one before; whether the run ends at it."""
        limit = self._config.training.stop_accuracy
        return self._at_rest(step, weights, metrics["train_loss"]) or (
            limit is not None and metrics["train_accuracy"] >= limit
        )

    def recall(self, file: RunFile) -> bool:
        """Count the stored checkpoints, as far as they still matter; whether the run has ended at the last one."""
        metrics, last, ended = file.metrics(), file.steps[-1], False
        for step in file.steps:
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
        found = []
        with torch.no_grad():
            parameters = folded(self._config, {name: value.detach().cpu() for name, value in weights.items()})
            for batch in self._batches:
                parts = [forward(parameters, part.inputs, target_only=True)[0] for part in batch.split(250)]
                found.append(float((torch.cat(parts).argmax(dim=-1) == batch.labels).double().mean()))
        return found
