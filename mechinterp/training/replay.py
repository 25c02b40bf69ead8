"""Rebuild any step of a run from the checkpoint before it, and prove it at the checkpoint after it.

Data and initial weights are pure functions of (seed, stream, step), so on the same build of torch, the same CPU
capability and the same number of threads the rebuilt weights are the trained ones, bit for bit. That is not assumed: a
replay runs on to the next saved checkpoint and compares digests.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from mechinterp.errors import MechinterpError
from mechinterp.store import Run, RunWriter
from mechinterp.store.schema import digest, environment
from mechinterp.training.engine import TOGETHER, build_engine
from mechinterp.training.loop import RecentMean, advance, recorded_threads

Keep = Callable[[int, dict[str, Tensor], Mapping[str, float]], None]


@dataclass(frozen=True)
class Proof:
    """What a replay showed at the saved checkpoints that it ran on to."""

    exact: bool
    """Every digest agreed."""
    deviation: float
    """The largest difference of any weight to its stored value; 0 if exact."""
    checked: tuple[int, ...]
    """The saved steps at which it was compared."""
    environment_changes: tuple[str, ...]
    """How this environment differs from that of the training, if it does."""

    def __str__(self) -> str:
        where = ", ".join(f"{step:,}" for step in self.checked[:3]) + (", …" if len(self.checked) > 3 else "")
        if self.exact:
            return f"exact: digests agree at step {where}" if self.checked else "exact: every step was stored"
        why = "; ".join(self.environment_changes) or "in the same environment"
        return f"approximate: weights deviate by up to {self.deviation:.2g} at step {where} ({why})"


def replay(run: Run, steps: Iterable[int], keep: Keep, *, progress: bool = False) -> Proof:
    """Rebuild `steps` in ascending order and hand each to `keep` (step, weights, metrics since the one before).

    Steps that are saved are handed over as saved. A step beyond the last saved one, which nothing could prove, is an
    error: resume the run instead.
    """
    saved, wanted = run.file.steps, sorted(set(steps))
    if not saved:
        raise MechinterpError(f"{run.path}: holds no checkpoint; train it anew")
    if wanted and wanted[0] < saved[0]:
        raise MechinterpError(f"{run.path}: step {wanted[0]} is before the first saved one ({saved[0]})")
    if wanted and wanted[-1] > saved[-1]:
        raise MechinterpError(
            f"{run.path}: step {wanted[-1]} is beyond the saved ones (last: {saved[-1]}); resume the run"
        )
    checked, deviation, exact, changes = [], 0.0, True, dict[str, None]()
    with tqdm(disable=None if progress else True, unit="step") as bar:
        for start, stop in _intervals(saved, wanted):
            there = run.file.environment_at(start)
            changes |= dict.fromkeys(environment_changes(there))
            engine = build_engine(run.config, run.file.weights(start), there.get("engine"), usable_device(there))
            recent, here = RecentMean(), [step for step in wanted if start <= step < stop]
            with recorded_threads(there):
                for step in advance(engine, run.task, run.config, start, stop, recent):
                    if step in here:
                        keep(
                            step,
                            {name: value.detach().to("cpu", copy=True) for name, value in engine.parameters.items()},
                            recent.take(),
                        )
                    bar.update()
            checked.append(stop)
            if digest(engine.parameters).hex() != run.file.digest(stop):
                exact = False
                stored = run.file.weights(stop)
                reached = {name: value.detach().cpu() for name, value in engine.parameters.items()}
                differences = ((reached[name] - stored[name]).abs().max() for name in stored)
                deviation = max(deviation, *(float(each) for each in differences))
        if wanted and wanted[-1] == saved[-1]:
            keep(saved[-1], run.file.weights(saved[-1]), run.file.metrics().iloc[-1].to_dict())
    return Proof(exact, deviation, tuple(checked), tuple(changes))


def densify(run: Run, steps: range, *, progress: bool = False) -> Proof:
    """Rebuild the steps of a range that the run does not store yet, and write the run's side file anew with them.

    Only exact steps are stored: if any digest disagrees, MechinterpError tells the deviation and nothing is written.
    """
    stored = {step: run._dense for step in run._dense.steps} if run._dense else {}
    missing = [step for step in steps if step not in stored and step not in set(run.file.steps)]
    if not missing:
        return Proof(True, 0.0, (), ())
    older = iter(sorted(stored))
    held = next(older, None)
    metrics_of = run._dense.metrics() if run._dense else None
    with RunWriter(
        run.dense_path,
        run.config,
        overwrite=True,
        engine=run.environment.get("engine", ""),
        device=usable_device(run.environment),
        created=run.created,
        live=False,
    ) as writer:

        def copy_up_to(limit: int | float) -> None:
            nonlocal held
            while held is not None and held < limit:
                assert metrics_of is not None
                writer.append(held, run.weights(held), metrics_of.loc[held].to_dict())
                held = next(older, None)

        def keep(step: int, weights: dict[str, Tensor], metrics: Mapping[str, float]) -> None:
            copy_up_to(step)
            writer.append(step, weights, metrics)

        proof = replay(run, missing, keep, progress=progress)
        if not proof.exact:
            raise MechinterpError(
                f"{run.path}: the replay is {proof}; steps that are not the trained ones are not stored"
            )
        copy_up_to(float("inf"))
    return proof


def usable_device(recorded: Mapping[str, str]) -> str:
    """The device of a recorded environment, where this machine has such a one; else the CPU."""
    return "cuda" if recorded.get("device", "cpu") != "cpu" and torch.cuda.is_available() else "cpu"


def environment_changes(recorded: Mapping[str, str]) -> tuple[str, ...]:
    """How the present environment differs from a recorded one in what bits depend on, threads aside."""
    now = environment(usable_device(recorded))
    together = ("it was trained in one batch with others",) if recorded.get("engine") == TOGETHER else ()
    return together + tuple(
        f"{name} was {recorded.get(name)}, is {now[name]}"
        for name in (
            "mechinterp",
            "torch",
            "numpy",
            "numba",
            "scipy",
            "libc",
            "machine",
            "cpu",
            "cpu_capability",
            "device",
        )
        if recorded.get(name) != now[name]
    )


def _intervals(saved: list[int], wanted: list[int]) -> list[tuple[int, int]]:
    """The stretches between neighbouring saved steps in which a wanted one lies."""
    return [(start, stop) for start, stop in pairwise(saved) if any(start <= step < stop for step in wanted)]
