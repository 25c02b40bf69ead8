"""How much of a network's behaviour a circuit explains: faithfulness, completeness, minimality, and the size it takes.

A circuit C is a set of edges between components (`edges`), and m(C) the metric of the pass in which all other edges
carry ablated values (`circuit_pass`). With the network's own m(all) and the fully ablated m(∅),

    faithfulness(C) = (m(C) − m(∅)) / (m(all) − m(∅))
    completeness(C) = 1 − faithfulness(all edges but C)

A circuit that does all that the network does has 1 and 1; one that does none of it has 0 and 0; both may leave [0, 1].
A faithful circuit need not be complete: what is outside may do the same once more. It is minimal if the removal of any
edge costs faithfulness. All of it is relative to the metric, to the ablated values (`Replacement`), and to the
sequences: an edge that carries the same in all of them is not found.

The denominator is the span. Where it is within two standard errors of 0, as in a network that does not answer yet, a
ratio over it is noise, and the numbers are not given; m(C) itself always is.

Sources: Wang et al. 2023 (faithfulness, completeness, minimality), Conmy et al. 2023 (ablating all edges outside of a
circuit at once, ACDC), Hanna et al. 2024 (curves over circuits of the edges of largest attribution, EAP-IG).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.circuits.circuit_pass import CircuitPass, Replacement
from mechinterp.circuits.edges import Edge
from mechinterp.circuits.metrics import AnyMetric, Metric, MetricFunction, metric_of
from mechinterp.circuits.standard_errors import standard_error
from mechinterp.errors import MechinterpError, NamedEnum, member, require_integer
from mechinterp.models.network import Network
from mechinterp.tasks.corruption import Pairs

Circuit = Iterable[tuple[str, str]]
"""Edges, as pairs of a sender and a receiver."""
RESOLVED = 2.0
"""Standard errors that a span must be away from 0."""


class Ranking(NamedEnum):
    """The order in which edges are added to a circuit: by the size of their effect on the metric, the largest first."""

    effect = "exact: the metric that is lost when the edge alone is ablated"
    attribution = "its first-order approximation"
    integrated = "its approximation by integrated gradients"


@dataclass(frozen=True)
class Scores:
    """What a circuit does, with standard errors over pairs; pairs that share a class are taken as correlated."""

    n_edges: int
    """Edges of the circuit."""
    value: float
    """m(C), in the unit of the metric."""
    value_error: float
    faithfulness: float
    """Not a number where the span is not resolved, as the three below."""
    faithfulness_error: float
    completeness: float
    completeness_error: float
    complement: float
    """m(all edges but C), in the unit of the metric."""
    accuracy: float
    """Share of the sequences that the circuit alone answers, in [0, 1]."""
    accuracy_error: float
    complement_accuracy: float
    """The same of all edges but the circuit."""
    span: float
    """m(all) − m(∅), in the unit of the metric."""
    span_error: float


class Faithfulness:
    """Scores of circuits of one network on some pairs: m(all) and m(∅) are computed once."""

    def __init__(
        self,
        model: Network | nn.Module,
        pairs: Pairs,
        *,
        metric: Metric | str | MetricFunction = Metric.logit_difference,
        replacement: Replacement | str = Replacement.mean,
        seed: int = 0,
    ):
        self.metric: AnyMetric = metric_of(metric)
        self.passes = CircuitPass(model, pairs, replacement, seed=seed)
        self.pairs = pairs
        self._full = self._values(self.passes.intact.logits)
        self._empty = self._values(self.passes.logits(()))
        self._unit = self._full - self._empty

    @property
    def edges(self) -> tuple[Edge, ...]:
        """All edges of the network."""
        return self.passes.edges

    @property
    def span(self) -> tuple[float, float]:
        """m(all) − m(∅) and its standard error."""
        return float(self._unit.mean()), self._error(self._unit)

    @property
    def intact(self) -> tuple[float, float]:
        """m(all), and the accuracy of the network."""
        accuracy = self._values(self.passes.intact.logits, Metric.accuracy)
        return float(self._full.mean()), float(accuracy.mean())

    @property
    def is_resolved(self) -> bool:
        """Whether the span is beyond two standard errors of 0."""
        span, error = self.span
        return abs(span) > RESOLVED * error

    def scores(self, circuit: Circuit) -> Scores:
        """What a circuit and its complement do. An unknown edge raises."""
        kept = self.passes.checked(circuit)
        logits, rest = self.passes.logits(kept), self.passes.logits(self.passes.complement(kept))
        value, of_rest = self._values(logits), self._values(rest)
        faithful, error = self._ratio(value - self._empty)
        complete, complete_error = self._ratio(self._full - of_rest)
        right, right_of_rest = (self._values(of, Metric.accuracy) for of in (logits, rest))
        return Scores(
            len(kept),
            float(value.mean()),
            self._error(value),
            faithful,
            error,
            complete,
            complete_error,
            float(of_rest.mean()),
            float(right.mean()),
            self._error(right),
            float(right_of_rest.mean()),
            *self.span,
        )

    def faithfulness(self, circuit: Circuit) -> float:
        """(m(C) − m(∅)) / (m(all) − m(∅)), without its error and its complement: one pass."""
        return self._ratio(self._values(self.passes.logits(circuit)) - self._empty)[0]

    def effects(self, ranking: Ranking | str = Ranking.effect, *, integration_steps: int = 8) -> dict[Edge, float]:
        """What ablating each edge alone takes from the metric, as a share of the span, or its approximation."""
        ranking = member(Ranking, ranking)
        span = self.span[0] or float("nan")
        if ranking is Ranking.effect:
            full = float(self._full.mean())
            return {
                edge: (full - float(self._values(self.passes.logits(set(self.edges) - {edge})).mean())) / span
                for edge in self.edges
            }
        if self.metric is Metric.accuracy:
            raise MechinterpError(f"accuracy has no gradient, by which {ranking.name} ranks edges; rank them by effect")
        n_steps = integration_steps if ranking is Ranking.integrated else None
        return {edge: -change / span for edge, change in self.passes.attributions(self.metric, n_steps).items()}

    def ranked(self, ranking: Ranking | str = Ranking.effect, *, integration_steps: int = 8) -> dict[Edge, float]:
        """`effects`, the largest |effect| first; those that are alike in the order of computation."""
        effects = self.effects(ranking, integration_steps=integration_steps)
        return dict(sorted(effects.items(), key=lambda item: -abs(item[1]) if item[1] == item[1] else 0.0))

    def pruned(self, circuit: Sequence[tuple[str, str]], level: float = 0.9) -> tuple[Edge, ...]:
        """The circuit without edges that it does not need: from the last one on, each is left out if the faithfulness
        of the others stays at `level` or above (or as far as that of the circuit goes, if it is below)."""
        kept = list(dict.fromkeys(Edge(*edge) for edge in circuit))
        least = min(level, self.faithfulness(kept))
        if least != least:
            return tuple(kept)
        for edge in reversed(tuple(kept)):
            without = [other for other in kept if other != edge]
            if self.faithfulness(without) >= least - 1e-9:
                kept = without
        return tuple(kept)

    def _values(self, logits: Tensor, metric: AnyMetric | None = None) -> Float[Tensor, "batch"]:
        with torch.no_grad():
            return (metric or self.metric).per_sequence(logits, self.pairs.answers, self.pairs.wrong_labels)

    def _ratio(self, numerator: Float[Tensor, "batch"]) -> tuple[float, float]:
        """The ratio of means to the span, and its standard error to first order; not numbers without a span."""
        if not self.is_resolved:
            return float("nan"), float("nan")
        ratio = float(numerator.mean() / self._unit.mean())
        return ratio, self._error(numerator - ratio * self._unit) / abs(self.span[0])

    def _error(self, values: Float[Tensor, "batch"]) -> float:
        return standard_error(values, self.pairs.target_classes)


def faithfulness_curve(
    model: Network | nn.Module,
    pairs: Pairs,
    *,
    ranking: Ranking | str = Ranking.effect,
    metric: Metric | str | MetricFunction = Metric.logit_difference,
    replacement: Replacement | str = Replacement.mean,
    integration_steps: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per size of a circuit, from no edge to all: the edge that is added, and the scores of the circuit.

    Edges are added by `ranking`. Columns: ``sender`` and ``receiver`` of the edge, empty in the first row; its
    ``effect``, as a share of the span; and the fields of `Scores`. Two passes per edge, and one more to rank by effect.
    """
    measured = Faithfulness(model, pairs, metric=metric, replacement=replacement, seed=seed)
    ranked, kept = measured.ranked(ranking, integration_steps=integration_steps), list[Edge]()
    rows = [{"sender": "", "receiver": "", "effect": float("nan"), **vars(measured.scores(()))}]
    for edge, effect in ranked.items():
        kept.append(edge)
        rows.append({**edge._asdict(), "effect": effect, **vars(measured.scores(kept))})
    return pd.DataFrame(rows)


def area_under_curve(curve: pd.DataFrame, column: str = "faithfulness") -> float:
    """The area under a `faithfulness_curve` over the share of edges, by trapezoids: 1 if no edge is needed, ½ if all
    are alike, and towards 0 if it takes all of them."""
    share, values = curve["n_edges"].to_numpy(float), curve[column].to_numpy(float)
    return float(np.trapezoid(values, share / share[-1]))


def smallest_circuit(curve: pd.DataFrame, level: float = 0.9) -> tuple[Edge, ...]:
    """The edges of the first row of a `faithfulness_curve` that reaches a level and from which on the curve stays
    there; empty where none does, or where the span is not resolved."""
    reached = (curve["faithfulness"] >= level).to_numpy()
    if not reached[-1]:
        return ()
    first = len(reached) - int(reached[::-1].cumprod().sum())
    return tuple(Edge(*edge) for edge in curve[["sender", "receiver"]].to_numpy()[1 : first + 1])


def find_circuit(
    model: Network | nn.Module,
    pairs: Pairs,
    *,
    level: float = 0.9,
    ranking: Ranking | str = Ranking.effect,
    metric: Metric | str | MetricFunction = Metric.logit_difference,
    replacement: Replacement | str = Replacement.mean,
    integration_steps: int = 8,
    seed: int = 0,
) -> tuple[Edge, ...]:
    """A minimal circuit of a faithfulness of `level` or more: the first edges by `ranking` that reach it, without those
    that the rest does not need (`Faithfulness.pruned`); the first come first.

    Raises where the span is not resolved: there is no behaviour to explain.
    """
    measured = Faithfulness(model, pairs, metric=metric, replacement=replacement, seed=seed)
    if not measured.is_resolved:
        span, error = measured.span
        raise MechinterpError(
            f"the network's answer is not resolved on {len(pairs.clean)} pairs (span {span:.3g} ± {error:.2g}), so that"
            " there is no circuit to find: take a later step, or more pairs"
        )
    ranked = list(measured.ranked(ranking, integration_steps=integration_steps))
    return measured.pruned(ranked[: _first_that_reaches(measured.faithfulness, ranked, level)], level)


def _first_that_reaches(faithfulness: Callable[[Circuit], float], ranked: Sequence[Edge], level: float) -> int:
    """The number of edges of the smallest circuit of the first ones that reaches a level; all if none does."""
    return next((n for n in range(len(ranked) + 1) if faithfulness(ranked[:n]) >= level), len(ranked))


def minimality(
    model: Network | nn.Module,
    pairs: Pairs,
    circuit: Circuit,
    *,
    metric: Metric | str | MetricFunction = Metric.logit_difference,
    replacement: Replacement | str = Replacement.mean,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per edge of a circuit: ``sender``, ``receiver``, and ``loss``, the faithfulness that the circuit loses
    without it. An edge with a loss of about 0 is not needed beside the others (Wang et al. 2023)."""
    measured = Faithfulness(model, pairs, metric=metric, replacement=replacement, seed=seed)
    kept = [edge for edge in measured.edges if edge in measured.passes.checked(circuit)]
    whole = measured.faithfulness(kept)
    losses = [whole - measured.faithfulness(set(kept) - {edge}) for edge in kept]
    return pd.DataFrame([{**edge._asdict(), "loss": loss} for edge, loss in zip(kept, losses, strict=True)])


def random_circuit(edges: Sequence[Edge], n_edges: int, rng: np.random.Generator) -> tuple[Edge, ...]:
    """As many of the edges, at random: the decoy that a circuit of this size is compared with."""
    require_integer("n_edges", n_edges, 0)
    chosen = rng.choice(len(edges), size=min(n_edges, len(edges)), replace=False)
    return tuple(edges[index] for index in sorted(chosen))
