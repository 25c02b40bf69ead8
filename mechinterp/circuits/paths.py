"""Path patching: the effect of every edge between two components (Wang et al. 2023, Goldowsky-Dill et al. 2023).

To patch the edge sender → receiver (`edges`), the sender's term s is taken from the other run, in the input of this
receiver alone:

    x′ = x_base − s_base + s_source,   and the receiver's activation becomes N(x′) W

with N the receiver's normalisation, if the network has one. Its scale σ is a choice (`Scale`): that of x′, or that of
x_base, with which a receiver reads its senders linearly, so that effects of its edges add up.

Edges are direct, as in Wang et al. 2023: components between sender and receiver keep their outputs of the base run, and
components after the receiver are computed anew. What many edges do together is measured in `faithfulness`.

The attribution of an edge approximates its effect by one backward pass for all edges of a receiver, or by several along
the line between the two runs (`attribution`).
"""

import pandas as pd
import torch
from torch import Tensor, nn

from mechinterp.circuits.activations import network_of, parts_of
from mechinterp.circuits.attribution import read_slope, with_change
from mechinterp.circuits.edges import Edge, Scale, receivers, senders
from mechinterp.circuits.metrics import Metric, MetricFunction, metric_of
from mechinterp.circuits.patching import Direction, clean_corrupt_gap
from mechinterp.errors import member
from mechinterp.models.classifier import require_labels
from mechinterp.models.forward import run_with_cache
from mechinterp.models.network import Network
from mechinterp.tasks.corruption import Pairs, require_pairs
from mechinterp.torch_state import torch_defaults


@torch_defaults()
def patch_paths(
    model: Network | nn.Module,
    pairs: Pairs,
    *,
    metric: Metric | str | MetricFunction = Metric.logit_difference,
    direction: Direction | str = Direction.denoise,
    scale: Scale | str = Scale.recomputed,
    integration_steps: int | None = None,
) -> pd.DataFrame:
    """One row per edge: the metric's ``value``, the normalised ``effect`` (see `patching`), and its ``attribution``.

    `scale` is that of the receiver's normalisation, if the network has one. The attribution is the effect with the
    first-order approximation in place of the patched run; with `integration_steps`, ``integrated`` is that by
    integrated gradients, of which the sum over the edges of a receiver is the effect of all of them together
    (`attribution`). A metric without a gradient, such as accuracy, has neither. ``span`` and ``span_error`` as in
    `patch`. A hooked model that no `Network` represents is refused, since edges are read off the weights.
    """
    require_pairs(pairs)
    scored, direction, scale = metric_of(metric), member(Direction, direction), member(Scale, scale)
    network = network_of(model)
    kinds = {"attribution": None} | ({} if integration_steps is None else {"integrated": integration_steps})
    values = dict[Edge, list[Tensor]]()
    clean_logits, corrupt_logits = list[Tensor](), list[Tensor]()
    linear: dict[str, dict[Edge, float]] = {kind: {} for kind in kinds}
    for part in parts_of(len(pairs.clean), network, pairs.clean.n_pos):
        with torch.no_grad():
            clean, corrupt = (
                run_with_cache(network, batch.inputs[part], target_only=True) for batch in (pairs.clean, pairs.corrupt)
            )
        for batch in (pairs.clean, pairs.corrupt):
            require_labels(batch, clean.logits.shape[-1])
        clean_logits.append(clean.logits)
        corrupt_logits.append(corrupt.logits)
        base, source = (corrupt, clean) if direction is Direction.denoise else (clean, corrupt)
        answers = pairs.answers[part], pairs.wrong_labels[part]
        for receiver in receivers(base):
            with torch.no_grad():
                written, rows = senders(source, receiver), receiver.rows(base)
                changes = {
                    name: written[name][:, rows] - of_base[:, rows] for name, of_base in senders(base, receiver).items()
                }
                toward = torch.stack(list(changes.values())).sum(dim=0)
                for sender, change in changes.items():
                    patched = with_change(base, receiver, change, scale)
                    edge = Edge(sender, str(receiver))
                    values.setdefault(edge, []).append(scored.per_sequence(patched, *answers))
            for kind, n in kinds.items():
                slope = read_slope(base, receiver, toward, scored, answers, scale=scale, n_steps=n)
                for sender, change in changes.items():
                    edge = Edge(sender, str(receiver))
                    along = _along(slope, change) / len(pairs.clean)
                    linear[kind][edge] = linear[kind].get(edge, 0.0) + along
    low, span, error = clean_corrupt_gap(scored, torch.cat(clean_logits), torch.cat(corrupt_logits), pairs)
    unpatched, unit = low if direction is Direction.denoise else low + span, span or float("nan")
    table = []
    for edge, of_parts in values.items():
        value = float(torch.cat(of_parts).mean())
        numbers = {**edge._asdict(), "value": value, "effect": (value - low) / unit}
        numbers |= {kind: (unpatched + of_kind[edge] - low) / unit for kind, of_kind in linear.items()}
        table.append({**numbers, "span": span, "span_error": error})
    return pd.DataFrame(table)


def _along(slope: Tensor | None, change: Tensor) -> float:
    """The first-order change of the metric's sum over sequences; not a number without a slope."""
    return float("nan") if slope is None else float((slope * change).sum())
