"""Linear interpolation between two checkpoints, of one run or of two, and the barrier on the way.

On the straight line between the weights of two networks, θ(t) = (1 − t) θ₀ + t θ₁ with t from 0 to 1,

    barrier = max_t [L(θ(t)) − (1 − t) L(θ₀) − t L(θ₁)],  at least 0,

the most by which the loss rises above the line between its ends. Zero, as far as the points tell: the two networks are
linearly connected. Networks of two seeds may compute the same with units, heads and dimensions in another order
(`comparison.matching`); `Alignment.matched` interpolates to the copy of the second network whose weights are nearest to
the first's.

Loss and accuracy are those on the sequences of the first run's task. Where a seed draws the task too (the class means
and labels of item–label sequences), a network of another seed has not learned these labels, and the barrier is above a
line that ends at its high loss: `end_losses` says so.

Sources: Garipov et al. 2018 (mode connectivity), Frankle et al. 2020 (linear), Ainsworth et al. 2023 (after matching).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.circuits.standard_errors import standard_error
from mechinterp.comparison.matching import matched
from mechinterp.comparison.states import States
from mechinterp.comparison.transplants import prepared, resampled, scores, target_classes
from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError, NamedEnum, require_integer
from mechinterp.measures.functions import barrier_of
from mechinterp.models.forward import forward
from mechinterp.models.network import Network
from mechinterp.models.registry import parameter_shapes
from mechinterp.run import Run, require_run
from mechinterp.tasks.base import Batch
from mechinterp.torch_state import torch_defaults, torch_threads

Parameters = Mapping[str, Tensor]


class Alignment(NamedEnum):
    """What is done to the second network before interpolation."""

    as_trained = "nothing"
    matched = "its units, heads and the dimensions inside heads are matched to those of the first"


@dataclass(frozen=True)
class Interpolation:
    """Loss and accuracy on the straight line between two networks."""

    table: pd.DataFrame
    """A row per alignment and point: ``alignment``, ``t``, ``loss`` (nats), ``accuracy``, and their standard errors
    over sequences, ``loss_error`` and ``accuracy_error``."""
    barriers: pd.DataFrame
    """A row per ``alignment``: ``barrier`` (nats), the ``low`` and ``high`` ends of its 95 % interval over sequences,
    ``at``, the t of its top, and ``distance``, ‖θ₁ − θ₀‖₂. A barrier is never negative, so that the interval of one
    that is 0 may begin above it."""

    @property
    def end_losses(self) -> tuple[float, float]:
        """The losses of the two networks."""
        losses = self.table[self.table["alignment"] == self.table["alignment"].iloc[0]]["loss"]
        return float(losses.iloc[0]), float(losses.iloc[-1])

    def __str__(self) -> str:
        first, last = self.end_losses
        lines = [f"loss {first:.3f} and {last:.3f} at the ends"]
        for row in self.barriers.to_dict("records"):
            interval = f"95 % interval {row['low']:.3f} to {row['high']:.3f}"
            name = str(row["alignment"]).replace("_", " ")
            lines.append(f"{name}: barrier {row['barrier']:.3f} nats ({interval}) at t = {row['at']:.2f}")
        return "\n".join(lines)


@torch_defaults()
def interpolate(
    run: Run,
    start: int | str,
    stop: int | str,
    *,
    other: Run | None = None,
    n: int = 21,
    n_sequences: int = 500,
    evaluation: str | None = None,
    seed: int = 0,
    resamples: int = 500,
) -> Interpolation:
    """Loss and accuracy at `n` points between the networks of a run at the stored steps `start` and `stop` (a number,
    ``first`` or ``last``), and the barrier; with an `other` run, `stop` is a step of that one.

    Between two runs also after matching. The sequences, `n_sequences` of an `evaluation` set of the first run's task
    (by default its first), are the same at all points. MechinterpError for a step that is not stored, runs of networks
    of different shapes, and fewer than 3 points.
    """
    require_integer("n", n, 3)
    require_integer("resamples", resamples, 20)
    second = run if other is None else other
    require_run(run)
    require_run(second)
    start, stop = run.numbered(start), second.numbered(stop)
    if other is None and start == stop:
        raise MechinterpError(f"{run.path}: step {start} is both ends of the line; name another start or stop")
    _, _, batch = prepared(run, [start], n_sequences, evaluation, seed)
    first, last = States.of_run(run, [start]), States.of_run(second, [stop])
    if parameter_shapes(first.config) != parameter_shapes(last.config):
        raise MechinterpError(
            f"{second.path}: its network has other parameters than that of {run.path}; interpolate between networks of"
            " one shape"
        )
    if first.config.model != last.config.model:
        raise MechinterpError(f"{second.path}: its section [model] differs from that of {run.path}; give runs of one")
    alignments = [Alignment.as_trained] if other is None else list(Alignment)
    with torch_threads(1):
        return between(first.config, first.at(0), last.at(0), batch, alignments, n=n, seed=seed, resamples=resamples)


def between(
    config: RunConfig,
    first: Parameters,
    last: Parameters,
    batch: Batch,
    alignments: list[Alignment],
    *,
    n: int = 21,
    seed: int = 0,
    resamples: int = 500,
) -> Interpolation:
    """The interpolation between two networks' trained parameters, on a batch."""
    t, weights, classes = np.linspace(0, 1, n), resampled(batch, seed, resamples), target_classes(batch)
    points, barriers = list[dict[str, object]](), list[dict[str, object]]()
    for alignment in alignments:
        end = last if alignment is Alignment.as_trained else matched(config, last, first)
        right, losses = _on_the_line(config, first, end, batch, t)
        for point, accurate, loss in zip(t, right, losses, strict=True):
            row: dict[str, object] = {"alignment": alignment.name, "t": float(point), "loss": float(loss.mean())}
            row |= {"accuracy": float(accurate.mean()), "loss_error": standard_error(loss, classes)}
            points.append(row | {"accuracy_error": standard_error(accurate, classes)})
        means = weights @ losses.double().numpy().T  # the sample itself first
        tops = [barrier_of(t.tolist(), losses_on_line.tolist()) for losses_on_line in means]
        low, high = np.quantile([height for height, _ in tops[1:]], [0.025, 0.975])
        distance = sum(float((end[name] - first[name]).double().square().sum()) for name in first) ** 0.5
        summary: dict[str, object] = {
            "alignment": alignment.name,
            "barrier": tops[0][0],
            "low": float(low),
            "high": float(high),
        }
        barriers.append(summary | {"at": tops[0][1], "distance": distance})
    return Interpolation(pd.DataFrame(points), pd.DataFrame(barriers))


def _on_the_line(
    config: RunConfig, first: Parameters, last: Parameters, batch: Batch, t: np.ndarray
) -> tuple[Float[Tensor, "point batch"], Float[Tensor, "point batch"]]:
    """Whether sequences are answered correctly, and their losses, at points of the line."""
    with torch.no_grad():
        answers = [
            forward(
                Network(config, {name: torch.lerp(first[name], last[name], float(point)) for name in first}),
                batch.inputs,
                target_only=True,
            )
            for point in t
        ]
        return scores(torch.stack(answers), batch)
