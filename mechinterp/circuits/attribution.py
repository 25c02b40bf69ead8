"""Attributions: approximations of the effects of patching by gradients, which take no forward pass per site or edge.

Let a be what is patched, an activation at a hook, or the residual stream that a receiver reads; a′ its value in the
other run; and δ_c the part of a′ − a that belongs to a site or sender c, so that Σ_c δ_c = a′ − a. With the metric m,

    attribution_c = ⟨∂m/∂a at a, δ_c⟩                                     first order: attribution patching, Nanda 2023
    integrated_c  = ⟨∫₀¹ ∂m/∂a at a + t (a′ − a) dt, δ_c⟩                 integrated gradients, Sundararajan et al. 2017

The first is exact where m is linear in a; where it saturates, as a softmax or a ReLU does, the slope at a says nothing
of the way to a′. The second is complete: Σ_c integrated_c = m(a′) − m(a), the effect of patching all of a; so it is
exact wherever all of the change belongs to one c. What it still misses is interaction: of several c that act together
it gives each a share, where patching one alone may do nothing. The integral is the mean over the midpoints of n equal
steps. Hanna et al. 2024 apply integrated gradients to edges with a straight line in the network's inputs; here the line
is in what the receiver reads, so that the sum over the edges of a receiver has a known answer.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.circuits.activations import AnyActivations
from mechinterp.circuits.edges import Receiver, Scale
from mechinterp.circuits.metrics import AnyMetric, Metric
from mechinterp.errors import require_integer
from mechinterp.models.forward import Activations

Answers = tuple[Tensor, Tensor]
"""Answers and wrong labels [batch], as metrics take them."""
_ROWS = 256
"""Sequences times steps in one backward pass."""


def activation_slope(
    run: AnyActivations,
    hook: str,
    toward: Tensor,
    metric: AnyMetric,
    answers: Answers,
    n_steps: int | None = None,
) -> Tensor | None:
    """∂m/∂a of every sequence at a hook: in the run, or with `n_steps` its mean on the line to a + `toward`.

    The shape is that of the activation; the metric is that of each sequence, not its mean. None where the metric has no
    gradient (accuracy), or does not depend on the activation.
    """

    def logits(part: AnyActivations, change: Tensor) -> Tensor:
        return part.forward_from(hook, part[hook] + change)

    return _mean_slope(run, logits, toward, metric, answers, n_steps)


def read_slope(
    run: Activations,
    receiver: Receiver,
    toward: Float[Tensor, "batch pos d_model"],
    metric: AnyMetric,
    answers: Answers,
    *,
    scale: Scale = Scale.recomputed,
    n_steps: int | None = None,
) -> Float[Tensor, "batch pos d_model"] | None:
    """The same of the residual stream that a receiver reads, with the derivative through this receiver alone."""

    def logits(part: AnyActivations, change: Tensor) -> Tensor:
        assert isinstance(part, Activations)
        return with_change(part, receiver, change, scale)

    return _mean_slope(run, logits, toward, metric, answers, n_steps)


def with_change(run: Activations, receiver: Receiver, change: Tensor, scale: Scale) -> Float[Tensor, "batch n_labels"]:
    """Logits of a run with a change of the residual stream that one receiver reads."""
    return run.forward_from(receiver.hook, run[receiver.hook] + receiver.reads(run, change, scale))


def _mean_slope(
    run: AnyActivations,
    logits: Callable[[AnyActivations, Tensor], Tensor],
    toward: Tensor,
    metric: AnyMetric,
    answers: Answers,
    n_steps: int | None,
) -> Tensor | None:
    """The slope at 0 change, or its mean over the midpoints of `n_steps` equal steps to `toward`; steps in batches."""
    if metric is Metric.accuracy:
        return None
    if n_steps is None:
        points = torch.zeros(1)
    else:
        points = (torch.arange(require_integer("integration_steps", n_steps)) + 0.5) / n_steps
    at_once = max(1, _ROWS // len(toward)) if isinstance(run, Activations) else 1
    total = torch.zeros_like(toward)
    for some in points.split(at_once):
        n = len(some)
        many = repeated(run, n) if isinstance(run, Activations) and n > 1 else run
        share = some.to(toward).view(n, *toward.ndim * (1,))
        with torch.enable_grad():
            change = (share * toward).flatten(0, 1).requires_grad_()
            per_sequence = metric.per_sequence(logits(many, change), *(labels.repeat(n) for labels in answers))
            if not per_sequence.requires_grad:
                return None
            slope = torch.autograd.grad(per_sequence.sum(), change, allow_unused=True)[0]
        if slope is None:
            return None
        total += slope.unflatten(0, (n, -1)).sum(dim=0)
    return total / len(points)


def repeated(run: Activations, n: int) -> Activations:
    """The activations of a batch that repeats the run's sequences n times."""
    return Activations(run.network, {name: of.repeat(n, *(of.ndim - 1) * (1,)) for name, of in run.values.items()})


def change_between(base: Tensor, source: Tensor) -> Tensor:
    """source − base, 0 where both are the same infinity, as masked scores are."""
    return torch.where(source == base, torch.zeros_like(base), source - base)
