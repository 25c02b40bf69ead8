"""How an answer is scored when part of a network is replaced."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mechinterp.errors import NamedEnum


class Metric(NamedEnum):
    """One number for the logits of a batch, given answers and foils."""

    logit_difference = "logit of the answer minus logit of the foil, mean over sequences"
    probability = "probability of the answer, mean over sequences; in [0, 1]"
    accuracy = "share of sequences in which the answer has the largest logit; in [0, 1]"
    loss = "cross-entropy of the answer, mean over sequences (nats)"

    def of(
        self, logits: Float[Tensor, "batch n_labels"], answers: Int[Tensor, "batch"], foils: Int[Tensor, "batch"]
    ) -> Float[Tensor, ""]:
        """The metric's value: the mean of `each`."""
        return self.each(logits, answers, foils).mean()

    def each(
        self, logits: Float[Tensor, "batch n_labels"], answers: Int[Tensor, "batch"], foils: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        """The metric of every sequence."""
        if self is Metric.logit_difference:
            pair = logits.gather(1, torch.stack([answers, foils], dim=1))
            return pair[:, 0] - pair[:, 1]
        if self is Metric.probability:
            return logits.softmax(dim=-1).gather(1, answers[:, None])[:, 0]
        if self is Metric.accuracy:
            return (logits.argmax(dim=-1) == answers).to(logits.dtype)
        return functional.cross_entropy(logits, answers, reduction="none")
