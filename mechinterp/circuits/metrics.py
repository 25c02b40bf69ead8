"""Metrics: one number for the logits of a batch, with which patching and ablation are scored."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mechinterp.errors import MechinterpError, NamedEnum, member

MetricFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits [batch, n_labels], answers [batch], wrong labels [batch]) → one number per sequence [batch]."""


class Metric(NamedEnum):
    """One number for the logits of a batch, given the answer and a wrong label of every sequence."""

    logit_difference = "logit of the answer minus logit of the wrong label, mean over sequences"
    probability = "probability of the answer, mean over sequences; in [0, 1]"
    accuracy = "share of sequences in which the answer has the largest logit; in [0, 1]"
    loss = "cross-entropy of the answer, mean over sequences (nats)"

    def of(
        self, logits: Float[Tensor, "batch n_labels"], answers: Int[Tensor, "batch"], wrong: Int[Tensor, "batch"]
    ) -> Float[Tensor, ""]:
        """The metric's value: the mean of `per_sequence`."""
        return self.per_sequence(logits, answers, wrong).mean()

    def per_sequence(
        self, logits: Float[Tensor, "batch n_labels"], answers: Int[Tensor, "batch"], wrong: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        """The metric of every sequence."""
        if self is Metric.logit_difference:
            pair = logits.gather(1, torch.stack([answers, wrong], dim=1))
            return pair[:, 0] - pair[:, 1]
        if self is Metric.probability:
            return logits.softmax(dim=-1).gather(1, answers[:, None])[:, 0]
        if self is Metric.accuracy:
            return (logits.argmax(dim=-1) == answers).to(logits.dtype)
        return functional.cross_entropy(logits, answers, reduction="none")


@dataclass(frozen=True)
class CustomMetric:
    """A metric that the user defines by a function, used like a member of `Metric`."""

    function: MetricFunction

    def of(self, logits: Tensor, answers: Tensor, wrong: Tensor) -> Tensor:
        """The mean over sequences."""
        return self.per_sequence(logits, answers, wrong).mean()

    def per_sequence(self, logits: Tensor, answers: Tensor, wrong: Tensor) -> Tensor:
        """The function's numbers; another shape than [batch] raises MechinterpError."""
        values = self.function(logits.clone(), answers, wrong)
        if not isinstance(values, Tensor) or values.shape != answers.shape:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise MechinterpError(f"the metric returned {got}; expected a number for each of {len(answers)} sequences")
        return values.to(logits.dtype)


AnyMetric = Metric | CustomMetric


def metric_of(metric: Metric | str | MetricFunction | CustomMetric) -> AnyMetric:
    """A metric from a member of `Metric`, its name, or a function (`MetricFunction`)."""
    if isinstance(metric, Metric | str):
        return member(Metric, metric)
    if not callable(metric) and not isinstance(metric, CustomMetric):
        raise MechinterpError(f"metric is {metric!r}; expected one of {', '.join(Metric.__members__)}, or a function")
    return metric if isinstance(metric, CustomMetric) else CustomMetric(metric)
