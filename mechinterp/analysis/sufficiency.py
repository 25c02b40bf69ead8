"""When a circuit becomes sufficient: the circuit of one step, fixed, alone at every checkpoint of a run.

Before a network answers, its faithfulness is a ratio over a span that is noise, and is not given (`faithfulness`); what
the circuit alone answers is an accuracy, which has a value at every step. The step at which the circuit becomes
sufficient is therefore the transition of that accuracy (`locate_emergence`), beside that of the whole network on the
same sequences. A circuit that was found at the end is one of many sets of edges, and its accuracy may rise before,
with, or after that of the network.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from mechinterp.analysis.tables import path_corruption
from mechinterp.circuits.circuit_pass import Replacement
from mechinterp.circuits.edges import Edge
from mechinterp.circuits.faithfulness import Circuit, Faithfulness, Ranking, find_circuit
from mechinterp.circuits.metrics import Metric, MetricFunction
from mechinterp.emergence import Emergence, describe, locate_or_say_why
from mechinterp.errors import MechinterpError
from mechinterp.progress import tracked
from mechinterp.run import Run, require_run
from mechinterp.tasks.corruption import Corruption, corrupted_pairs
from mechinterp.torch_state import torch_defaults, torch_threads

_NORMAL = 1.96
"""Standard errors to either end of a 95 % interval."""


@dataclass(frozen=True)
class SufficiencyOverTraining:
    """A circuit, what it does alone at every checkpoint, and when."""

    circuit: tuple[Edge, ...]
    step: int
    """The step of whose network the circuit is."""
    level: float
    """The faithfulness that it was to reach there."""
    table: pd.DataFrame
    """By step: faithfulness and completeness with the ends of their 95 % intervals (``…_low``, ``…_high``), not numbers
    where the span is not resolved; ``accuracy`` of the circuit alone, with its interval, ``complement_accuracy`` and
    ``network_accuracy``; the metrics ``value``, ``complement`` and ``network_value``; ``span`` and ``span_error``."""
    circuit_emergence: Emergence
    """The transition of the circuit's accuracy."""
    network_emergence: Emergence
    """The transition of the network's accuracy, on the same sequences."""

    @property
    def sufficient_since(self) -> int | None:
        """The first step from which on the faithfulness is at the level or above; None if it is not at the end."""
        below = self.table.index[~(self.table["faithfulness"] >= self.level)]
        after = self.table.index if below.empty else self.table.index[self.table.index > below[-1]]
        return int(after[0]) if len(after) else None

    def to_dict(self) -> dict[str, object]:
        """All of it, for JSON."""
        return {
            "circuit": [list(edge) for edge in self.circuit],
            "step": self.step,
            "level": self.level,
            "sufficient_since": self.sufficient_since,
            "circuit_emergence": self.circuit_emergence.to_dict(),
            "network_emergence": self.network_emergence.to_dict(),
            "rows": self.table.reset_index().to_dict("records"),
        }

    def __str__(self) -> str:
        since = self.sufficient_since
        reached = (
            f"at no step {self.level:g} for good" if since is None else f"{self.level:g} for good at step {since:,}"
        )
        return "\n".join(
            [
                f"circuit of step {self.step:,}, {len(self.circuit)} edges: {', '.join(map(str, self.circuit))}",
                f"alone: {describe('accuracy', self.circuit_emergence)}; its faithfulness reaches {reached}",
                f"the network: {describe('accuracy', self.network_emergence)}",
            ]
        )


@torch_defaults()
def circuit_sufficiency(
    run: Run,
    circuit: Circuit | None = None,
    *,
    step: int | str = "last",
    level: float = 0.9,
    steps: int | Iterable[int] | None = None,
    ranking: Ranking | str = Ranking.effect,
    metric: Metric | str | MetricFunction = Metric.logit_difference,
    replacement: Replacement | str = Replacement.mean,
    corruption: Corruption | str | None = None,
    integration_steps: int = 8,
    n_pairs: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> SufficiencyOverTraining:
    """What a circuit does alone at every saved step of a run, or at the given ones, and when it becomes sufficient.

    Without a `circuit`, it is that of `step`: the one that `find_circuit` finds with faithfulness `level`, on other
    sequences (of the next seed) than those that it is then tested on. The other arguments are those of
    `faithfulness_curve`; pairs are corrupted as for ``paths``. Raises where `find_circuit` does.
    """
    require_run(run)
    if not 0 < level <= 1:
        raise MechinterpError(f"level is {level}; expected a faithfulness above 0 and up to 1")
    task, step, wanted = run.task, run.numbered(step), run.chosen_steps(steps)
    corruption = corruption or path_corruption(task)
    options = {"metric": metric, "replacement": replacement, "seed": seed}
    with torch_threads(1):
        if circuit is None:
            others = corrupted_pairs(task, corruption, n_pairs=n_pairs, seed=seed + 1)
            try:
                circuit = find_circuit(
                    run.network(step),
                    others,
                    level=level,
                    ranking=ranking,
                    integration_steps=integration_steps,
                    **options,
                )
            except MechinterpError as error:
                raise MechinterpError(f"{run.path}: step {step}: {error}") from None
        kept = tuple(Edge(*edge) for edge in circuit)
        pairs, rows = corrupted_pairs(task, corruption, n_pairs=n_pairs, seed=seed), {}
        for at in tracked(wanted, "checkpoint", shown=progress):
            rows[at] = _row(Faithfulness(run.network(at), pairs, **options), kept)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("step")
    located = [locate_or_say_why(table[name]) for name in ("accuracy", "network_accuracy")]
    return SufficiencyOverTraining(kept, step, level, table, *located)


def _row(measured: Faithfulness, circuit: tuple[Edge, ...]) -> dict[str, float]:
    """What a circuit does at one checkpoint."""
    scores = vars(measured.scores(circuit))
    row = {}
    for name in ("faithfulness", "completeness", "accuracy"):
        value, half = scores[name], _NORMAL * scores[f"{name}_error"]
        row |= {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
    value, accuracy = measured.intact
    rest = ("complement_accuracy", "value", "complement", "span", "span_error")
    return {**row, "network_accuracy": accuracy, "network_value": value, **{name: scores[name] for name in rest}}
