"""The update rule of `TrainingConfig`, for one run or several stacked on a leading axis.

With g = ∂ℒ/∂p of the update from step t, scaled down if its norm over all parameters exceeds `gradient_clip`, and the
learning rate η = `TrainingConfig.learning_rate_at(t)`:

    sgd     m ← μ m + g,                                          p ← p − η m
    adam    m ← β₁ m + (1−β₁) g,  v ← β₂ v + (1−β₂) g²,           p ← p − η m̂ / (√v̂ + ε)

with m̂ = m/(1−β₁^{t+1}), v̂ = v/(1−β₂^{t+1}), and moments 0 at first. Weight decay λ comes before that: p ← (1−λ) p
(per_step), p ← (1−ηλ) p (times_learning_rate; adamw), or g ← g + λ p (gradient; adam). Sources: Kingma & Ba 2015,
Loshchilov & Hutter 2019; the rules are those of torch.optim.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mechinterp.config import TrainingConfig

Number = float | Tensor
Parts = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Names and shapes of parameters that are updated as one tensor, by the first of the names."""


class Optimizer:
    """Updates parameters in place, and has their moments.

    Parameters that share λ may be given as one tensor, under the name of one of them (`alike`), or under plain SGD
    under the beginning of their names, ``blocks.`` or ``classifier.``. With several runs, the leading axis is the run,
    and rates and decays may differ.
    """

    def __init__(self, trainings: Sequence[TrainingConfig], parameters: Mapping[str, Tensor]):
        self._trainings, self._rule = trainings, trainings[0]
        self._moments = {
            f"{name}.{moment}": torch.zeros_like(value, requires_grad=False)
            for name, value in parameters.items()
            for moment in moments_of(self._rule)
        }

    def state(self, run: int = 0) -> dict[str, Tensor]:
        """The moments of a run, by parameter and moment: views of the tensors that are updated."""
        return {name: value[run] for name, value in self._moments.items()}

    @torch.no_grad()
    def update(
        self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], steps: Sequence[int] | None = None
    ) -> list[float]:
        """One update from these steps, in place; the norm of the gradient of every run."""
        trainings, steps = self._trainings, steps or [0] * len(self._trainings)
        squares = [value.reshape(len(trainings), -1).square().sum(dim=1) for value in gradients.values()]
        norms = torch.stack(squares).sum(dim=0).sqrt().tolist()
        rates = [training.learning_rate_at(step) for training, step in zip(trainings, steps, strict=True)]
        for name, value in parameters.items():
            gradient = self._clipped(gradients[name], norms)
            if self._rule.decay_kind == "gradient":
                if _is_not_zero(decay := self._by_run([training.decay(name) for training in trainings], value)):
                    gradient = gradient + decay * value
            elif _is_not_zero(decay := self._by_run(self._factors(name, rates), value)):
                value.mul_(1 - decay)
            self._move(name, value, gradient, rates, steps)
        return norms

    def _factors(self, name: str, rates: Sequence[float]) -> list[float]:
        """The fraction of a parameter that weight decay subtracts from it, of every run."""
        return [training.decay_factor(name, rate) for training, rate in zip(self._trainings, rates, strict=True)]

    def _clipped(self, gradient: Tensor, norms: Sequence[float]) -> Tensor:
        limits = [training.gradient_clip for training in self._trainings]
        if limits == [None] * len(limits):
            return gradient
        shares = [
            1.0 if limit is None else min(1.0, limit / (norm + 1e-6)) for limit, norm in zip(limits, norms, strict=True)
        ]
        return gradient * self._by_run(shares, gradient)

    def _move(self, name: str, value: Tensor, gradient: Tensor, rates: Sequence[float], steps: Sequence[int]) -> None:
        rule = self._rule
        if rule.optimizer == "sgd":
            if rule.momentum:
                gradient = self._moments[f"{name}.momentum"].mul_(rule.momentum).add_(gradient)
            _subtract(value, gradient, self._by_run(rates, value))
            return
        mean, square = self._moments[f"{name}.exp_avg"], self._moments[f"{name}.exp_avg_sq"]
        mean.lerp_(gradient, 1 - rule.beta1)
        square.mul_(rule.beta2).addcmul_(gradient, gradient, value=1 - rule.beta2)
        corrections = [(1 - rule.beta1 ** (step + 1), (1 - rule.beta2 ** (step + 1)) ** 0.5) for step in steps]
        sizes = [rate / first for rate, (first, _) in zip(rates, corrections, strict=True)]
        root = (square.sqrt() / self._by_run([second for _, second in corrections], value)).add_(rule.epsilon)
        _subtract(value, mean / root, self._by_run(sizes, value))

    def _by_run(self, numbers: Sequence[float], value: Tensor) -> Number:
        """The number that all runs share, or one per run, which broadcasts to a stacked parameter."""
        if len(set(numbers)) == 1:
            return numbers[0]
        return value.new_tensor(numbers).view(-1, *(1,) * (value.ndim - 1))


def alike(trainings: Sequence[TrainingConfig], shapes: Mapping[str, Iterable[int]]) -> Parts:
    """The parameters in parts that may be given as one tensor: those that share λ in every run.

    Under plain SGD each is alone: so released runs were trained, and the bits of their norms depend on it.
    """
    parts: dict[object, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        together = name if trainings[0].is_plain else tuple(training.decay(name) for training in trainings)
        parts.setdefault(together, {})[name] = tuple(shape)
    return {next(iter(part)): part for part in parts.values()}


def by_name(flat: Mapping[str, Tensor], parts: Parts) -> dict[str, Tensor]:
    """Views of every parameter, or its moments, in the last axis of the tensors of the parts."""
    views = {}
    for key, value in flat.items():
        first = next(first for first in parts if f"{key}.".startswith(f"{first}."))
        moment, shapes = key.removeprefix(first), parts[first]
        pieces = value.split([math.prod(shape) for shape in shapes.values()], dim=-1)
        views |= {
            f"{name}{moment}": piece.unflatten(-1, shape) if shape else piece[..., 0]
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
        }
    return views


def moments_of(training: TrainingConfig) -> tuple[str, ...]:
    """Names of the moments that the rule keeps of every parameter."""
    if training.optimizer == "sgd":
        return ("momentum",) if training.momentum else ()
    return ("exp_avg", "exp_avg_sq")


def moment_shapes(training: TrainingConfig, shapes: Mapping[str, Iterable[int]]) -> dict[str, tuple[int, ...]]:
    """Shape of every moment, as `Optimizer.state` names them."""
    return {f"{name}.{moment}": tuple(shape) for name, shape in shapes.items() for moment in moments_of(training)}


def _subtract(value: Tensor, change: Tensor, factor: Number) -> None:
    if isinstance(factor, Tensor):
        value.addcmul_(change, factor, value=-1)
    else:
        value.sub_(change, alpha=factor)


def _is_not_zero(number: Number) -> bool:
    return isinstance(number, Tensor) or number != 0
