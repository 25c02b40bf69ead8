"""Path patching: the effect of every edge between two components (Wang et al. 2023, Goldowsky-Dill et al. 2023).

A receiver (a head's query, key or value, or the classifier) reads x, the sum of what senders (the embedding and earlier
heads) write into the residual stream. To patch the edge sender → receiver, the sender's term s is taken from the other
run, in the input of this receiver alone:

    x′ = x_base − s_base + s_source,   and the receiver's activation becomes x′ W.

Edges are direct, as in Wang et al. 2023: heads between sender and receiver keep their outputs of the base run, and
components after the receiver are computed anew. Decomposing the receiver's input into what earlier heads write is the
path expansion of Elhage et al. 2021.

The attribution of an edge is the first-order approximation of its effect, ⟨∂m/∂(receiver), (s_source − s_base) W⟩, by
one backward pass for all edges of a receiver: attribution patching (Nanda 2023), applied to edges.
"""

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.circuits.activations import network_of
from mechinterp.circuits.metrics import AnyMetric, Metric, MetricFunction, metric_of
from mechinterp.circuits.patching import Direction, clean_corrupt_gap
from mechinterp.errors import member
from mechinterp.models.classifier import require_labels
from mechinterp.models.forward import Activations, run_with_cache
from mechinterp.models.network import Network
from mechinterp.tasks.corruption import Pairs
from mechinterp.torch_state import torch_defaults


@dataclass(frozen=True)
class Receiver:
    """A reader of the residual stream: a head through its query, key or value, or the classifier."""

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

    def reads(self, network: Network, change: Float[Tensor, "batch pos d_model"]) -> Tensor:
        """The change of its activation with that of the residual stream, which it reads linearly."""
        if self.through == "classifier":
            return change[:, -1]
        W = network.matrix(self.layer, self.through.upper())
        result = change.new_zeros(*change.shape[:2], W.shape[0], W.shape[2])
        result[:, :, self.head] = change @ W[self.head]
        return result


def senders(run: Activations, before: int) -> dict[str, Float[Tensor, "batch pos d_model"]]:
    """What components before a layer write: ``embed`` and heads, as ``layer.head``. Their sum is the layer's input."""
    written = {"embed": run["hook_embed"]}
    for layer in range(before):
        z = run[f"blocks.{layer}.attn.hook_z"]  # W_O is the identity
        written |= {f"{layer}.{head}": z[:, :, head] for head in range(z.shape[2])}
    return written


def receivers(run: Activations) -> list[Receiver]:
    """Query, key and value of every head, and the classifier."""
    heads = [(layer, head) for layer in range(run.n_layers) for head in range(run.n_heads)]
    return [Receiver(layer, head, through) for layer, head in heads for through in "qkv"] + [Receiver(run.n_layers)]


@torch_defaults()
def patch_paths(
    model: Network | nn.Module,
    pairs: Pairs,
    *,
    metric: Metric | str | MetricFunction = Metric.logit_difference,
    direction: Direction | str = Direction.denoise,
) -> pd.DataFrame:
    """One row per edge: the metric's ``value``, the normalised ``effect`` (see `patching`), and its ``attribution``.

    The attribution is the effect with the first-order approximation in place of the patched run, on the same scale; a
    metric without a gradient, such as accuracy, has none. ``span`` and ``span_error`` as in
    `patch`. A hooked model that no `Network` represents is refused, since edges are read off the weights.
    """
    scored, direction = metric_of(metric), member(Direction, direction)
    network = network_of(model)
    with torch.no_grad():
        clean, corrupt = (run_with_cache(network, batch.inputs) for batch in (pairs.clean, pairs.corrupt))
    for batch in (pairs.clean, pairs.corrupt):
        require_labels(batch, clean.logits.shape[-1])
    base, source = (corrupt, clean) if direction is Direction.denoise else (clean, corrupt)
    low, span, error = clean_corrupt_gap(scored, clean.logits, corrupt.logits, pairs)
    unpatched, unit, rows = low if base is corrupt else low + span, span or float("nan"), []
    for receiver in receivers(base):
        slope = _slope(base, receiver, scored, pairs)
        written = senders(source, receiver.layer)
        for sender, base_written in senders(base, receiver.layer).items():
            with torch.no_grad():
                change = receiver.reads(network, written[sender] - base_written)
                logits = base.forward_from(receiver.hook, base[receiver.hook] + change)
                value = float(scored.of(logits, pairs.answers, pairs.wrong_labels))
            linear = unpatched + float((slope * change).sum()) if slope is not None else float("nan")
            rows.append(
                {
                    "sender": sender,
                    "receiver": str(receiver),
                    "value": value,
                    "effect": (value - low) / unit,
                    "attribution": (linear - low) / unit,
                    "span": span,
                    "span_error": error,
                }
            )
    return pd.DataFrame(rows)


def _slope(base: Activations, receiver: Receiver, metric: AnyMetric, pairs: Pairs) -> Tensor | None:
    """∂ metric / ∂ receiver's activation in the unpatched run."""
    if metric is Metric.accuracy:
        return None
    with torch.enable_grad():
        activation = base[receiver.hook].detach().requires_grad_()
        number = metric.of(base.forward_from(receiver.hook, activation), pairs.answers, pairs.wrong_labels)
        return torch.autograd.grad(number, activation)[0] if number.requires_grad else None
