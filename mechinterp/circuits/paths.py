"""Path patching: which edge between two components carries an effect.

A receiver (a head's query, key or value, or the classifier) reads the sum of what senders wrote (the embedding, earlier
heads). On the edge sender → receiver, only what this receiver reads from this sender is taken from the other run:

    x′ = x_base − s_base + s_source,   and the receiver's activation becomes x′ W.

Edges are direct: what passes through components between belongs to other edges. Attribution is the linear guess at the
same number, ⟨∂m/∂(receiver), (s_source − s_base) W⟩, one backward pass for all edges of a receiver.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import Direction, measured_span
from mechinterp.circuits.rerun import Activations, Parameters, activations, parameters_of, rerun
from mechinterp.errors import member
from mechinterp.tasks.corruption import Pairs


@dataclass(frozen=True)
class Receiver:
    """What reads the residual stream: a head through its query, key or value, or the classifier."""

    layer: int
    """For the classifier, the number of layers."""
    head: int = 0
    through: str = "classifier"
    """``q``, ``k``, ``v``, or ``classifier``."""

    def __str__(self) -> str:
        return "classifier" if self.through == "classifier" else f"{self.layer}.{self.head}.{self.through}"

    @property
    def hook(self) -> str:
        """The hook of its activation."""
        classifier = self.through == "classifier"
        return "classifier.hook_in" if classifier else f"blocks.{self.layer}.attn.hook_{self.through}"

    def reads(self, parameters: Mapping[str, Tensor], change: Float[Tensor, "batch pos d_model"]) -> Tensor:
        """How its activation changes with the residual stream, which it reads linearly."""
        if self.through == "classifier":
            return change[:, -1]
        W = parameters[f"blocks.{self.layer}.attn.W_{self.through.upper()}"]
        result = change.new_zeros(*change.shape[:2], W.shape[0], W.shape[2])
        result[:, :, self.head] = change @ W[self.head]
        return result


def senders(run: Activations, before: int) -> dict[str, Float[Tensor, "batch pos d_model"]]:
    """What each component below a layer wrote: ``embed`` and every head, as ``layer.head``. They sum to its input."""
    written = {"embed": run["hook_embed"]}
    for layer in range(before):
        z = run[f"blocks.{layer}.attn.hook_z"]  # W_O is the identity
        written |= {f"{layer}.{head}": z[:, :, head] for head in range(z.shape[2])}
    return written


def receivers(run: Activations) -> list[Receiver]:
    """Query, key and value of every head, and the classifier."""
    heads = [(layer, head) for layer in range(run.n_layers) for head in range(run.n_heads)]
    return [Receiver(layer, head, through) for layer, head in heads for through in "qkv"] + [Receiver(run.n_layers)]


def patch_paths(
    parameters: Parameters | nn.Module,
    pairs: Pairs,
    *,
    metric: Metric | str = Metric.logit_difference,
    direction: Direction | str = Direction.denoise,
) -> pd.DataFrame:
    """Every edge: the metric's ``value``, the normalised ``effect`` (see `patching`), and its ``attribution``.

    The attribution is the linear approximation of the effect's distance from the unpatched run, added to it, so that
    both columns can be compared. A metric without gradient (accuracy) has no attribution. ``span`` and ``span_error``
    as in `patch`.
    """
    metric, direction, parameters = member(Metric, metric), member(Direction, direction), parameters_of(parameters)
    with torch.no_grad():
        clean, corrupt = (activations(parameters, batch.inputs) for batch in (pairs.clean, pairs.corrupt))
    base, source = (corrupt, clean) if direction is Direction.denoise else (clean, corrupt)
    low, span, error = measured_span(metric, clean.logits, corrupt.logits, pairs)
    start, unit, rows = low if base is corrupt else low + span, span or float("nan"), []
    for receiver in receivers(base):
        slope = _slope(base, receiver, metric, pairs)
        ours, theirs = senders(base, receiver.layer), senders(source, receiver.layer)
        for sender in ours:
            with torch.no_grad():
                change = receiver.reads(parameters, theirs[sender] - ours[sender])
                logits = rerun(base, receiver.hook, base[receiver.hook] + change)
                value = float(metric.of(logits, pairs.answers, pairs.foils))
            guess = start + float((slope * change).sum()) if slope is not None else float("nan")
            rows.append(
                {
                    "sender": sender,
                    "receiver": str(receiver),
                    "value": value,
                    "effect": (value - low) / unit,
                    "attribution": (guess - low) / unit,
                    "span": span,
                    "span_error": error,
                }
            )
    return pd.DataFrame(rows)


def _slope(base: Activations, receiver: Receiver, metric: Metric, pairs: Pairs) -> Tensor | None:
    """∂ metric / ∂ receiver's activation in the unpatched run."""
    if metric is Metric.accuracy:
        return None
    with torch.enable_grad():
        activation = base[receiver.hook].detach().requires_grad_()
        number = metric.of(rerun(base, receiver.hook, activation), pairs.answers, pairs.foils)
        return torch.autograd.grad(number, activation)[0]
