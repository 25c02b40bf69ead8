"""Stochastic gradient descent with decay, for one run or several stacked on a leading axis."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mechinterp.config import TrainingConfig


class SGD:
    """p ← (1 − λ)·p − lr·∂ℒ/∂p, with the decay factor λ of a parameter's name (`TrainingConfig.decay_factor`).

    Parameters that share λ may be given as one tensor under the beginning of their names, ``blocks.`` or
    ``classifier.``. With several runs, the leading axis is the run, and rates and decays may differ.
    """

    def __init__(self, trainings: Sequence[TrainingConfig], names: Iterable[str]):
        self._rate = [training.learning_rate for training in trainings]
        self._decay = {name: [training.decay_factor(name) for training in trainings] for name in names}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> list[float]:
        """One step, in place; the norm of the gradient of every run."""
        squares = [value.reshape(len(self._rate), -1).square().sum(dim=1) for value in gradients.values()]
        for name, value in parameters.items():
            decay = _by_run(self._decay[name], value)
            if isinstance(decay, Tensor) or decay:
                value.mul_(1 - decay)
            rate = _by_run(self._rate, value)
            if isinstance(rate, Tensor):
                value.addcmul_(gradients[name], rate, value=-1)
            else:
                value.sub_(gradients[name], alpha=rate)
        return torch.stack(squares).sum(dim=0).sqrt().tolist()


def _by_run(numbers: list[float], value: Tensor) -> float | Tensor:
    """The number that all runs share, or one per run, which broadcasts to a stacked parameter."""
    if len(set(numbers)) == 1:
        return numbers[0]
    return value.new_tensor(numbers).view(-1, *(1,) * (value.ndim - 1))
