"""Transplants: accuracy and loss of a checkpoint that has one component of another checkpoint.

For a component c, the network (c of step i, all else of step j) has the parameters θ_j with θ_j[c] replaced by θ_i[c].
`transplant` gives its accuracy and loss for all i, j and c. On the diagonal i = j stands the checkpoint itself. Above
it, an early network has a late part; below, a late network has an early part. `comparison.formation` reads from them
which component is late and which waits for which.

Components of one run share a basis, so that no alignment is needed; but they adapt to each other. A part that is put
into a network of another step may fail because it has come to write, or to read, elsewhere in the residual stream, not
because it lacks a function: a transplant that helps says that the part was lacking, one that fails leaves it open.

The components that are transplanted: `comparison.components`. Compare module transplantation and model stitching:
Lenc & Vedaldi 2015; Bansal et al. 2021, which train a map between the parts.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mechinterp.analysis.cache import TableCache
from mechinterp.circuits.standard_errors import standard_errors
from mechinterp.comparison.components import Component, chosen_components, components_of
from mechinterp.comparison.states import States, Target
from mechinterp.errors import MechinterpError, require_integer, unknown_name
from mechinterp.progress import tracked
from mechinterp.randomness import Stream, generator
from mechinterp.run import Run, require_run
from mechinterp.tasks.base import Batch
from mechinterp.torch_state import torch_defaults, torch_threads


@torch_defaults()
def transplant(
    run: Run,
    components: Iterable[str] | str | None = None,
    *,
    steps: int | str | Iterable[int | str] | None = None,
    heads_apart: bool = True,
    n_sequences: int = 200,
    evaluation: str | None = None,
    seed: int = 0,
    progress: bool = False,
    keep: bool = True,
) -> pd.DataFrame:
    """Accuracy and loss with every component of every checkpoint put into every other one: a tidy table.

    Columns ``component``, ``source`` and ``target`` (steps), ``accuracy`` and ``loss`` (nats) of the network that has
    the component of `source` and all else of `target`, and their standard errors over sequences, ``accuracy_error`` and
    ``loss_error``. `components` are names of `components_of`, by default all; `steps` stored ones, by default all. The
    sequences are the same in all cells: `n_sequences` of an `evaluation` set, by default the task's first.

    C components of S steps take C S² forward passes, which share what they have in common and are computed in batches
    (`states.MEMORY`): for 61 checkpoints of the default network, 5 components and 200 sequences a minute and a half on
    one core, and about 220 MB with the stacked checkpoints. With `keep`, results are kept in ``RUN.cache``. Raises
    MechinterpError for an unknown component, step or evaluation set, and for a run without a task or `Network`.
    """
    wanted, evaluation, batch = prepared(run, steps, n_sequences, evaluation, seed)
    chosen = chosen_components(components_of(run.network_config, heads_apart=heads_apart), components)
    digests = [run.digest(step) for step in wanted]
    arguments = {
        "components": [component.name for component in chosen],
        "heads_apart": heads_apart,
        "n_sequences": n_sequences,
        "evaluation": evaluation,
        "seed": seed,
    }
    kept = TableCache(run.path, run.network_config, "transplant", __name__, arguments, keep=keep)
    together = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    keys = [f"{together[:16]} {digest}" for digest in digests]
    tables, states = [], None
    try:
        for index, key in enumerate(tracked(keys, "checkpoint", shown=progress)):
            if key not in kept.tables:
                states = states or States.of_run(run, wanted)
                with torch_threads(1):
                    kept.add(key, into_one(states, index, chosen, batch))
            tables.append(kept.tables[key])
    finally:
        kept.save()
    table = pd.concat(tables, ignore_index=True)
    order = {component.name: number for number, component in enumerate(chosen)}
    return table.sort_values(
        ["component", "source", "target"],
        key=lambda column: column.map(order) if column.name == "component" else column,
    ).reset_index(drop=True)


def prepared(
    run: Run, steps: int | str | Iterable[int | str] | None, n_sequences: int, evaluation: str | None, seed: int
) -> tuple[list[int], str, Batch]:
    """The stored steps, the name of the evaluation set, and its sequences; MechinterpError for what is not there."""
    require_run(run)
    require_integer("n_sequences", n_sequences, 2)
    if not run.can_be_analysed:
        raise MechinterpError(f"{run.path}: components cannot be transplanted: {run.why_not_analysed}")
    wanted = sorted(set(run.chosen_steps(steps)))
    if not wanted:
        raise MechinterpError("steps is empty; name stored steps, or leave it out")
    for step in wanted:
        run.digest(step)  # raises for a step that is not stored
    evaluation = run.task.evaluations[0] if evaluation is None else evaluation
    if evaluation not in run.task.evaluations:
        raise unknown_name("evaluation set", evaluation, run.task.evaluations)
    return wanted, evaluation, run.task.sample(evaluation, n_sequences, seed)


def into_one(states: States, target: int, components: Sequence[Component], batch: Batch) -> pd.DataFrame:
    """The rows of `transplant` of one target, by index among the steps."""
    step, classes = states.steps[target], target_classes(batch)
    with torch.no_grad():
        network, tables = Target(states, target, batch.inputs), list[pd.DataFrame]()
        for component in components:
            correct, losses = scores(network.with_components([component], range(len(states.steps))), batch)
            columns = {"accuracy": correct.mean(dim=1), "accuracy_error": standard_errors(correct, classes)}
            columns |= {"loss": losses.mean(dim=1), "loss_error": standard_errors(losses, classes)}
            values = {name: column.tolist() for name, column in columns.items()}
            tables.append(pd.DataFrame({"component": component.name, "source": states.steps, "target": step, **values}))
    return pd.concat(tables, ignore_index=True)


def scores(
    logits: Float[Tensor, "*any batch n_labels"], batch: Batch
) -> tuple[Float[Tensor, "*any batch"], Float[Tensor, "*any batch"]]:
    """Whether each sequence is answered correctly (1 or 0), and its cross-entropy (nats)."""
    labels = batch.labels.expand(logits.shape[:-1])
    losses = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
    return (logits.argmax(dim=-1) == labels).to(logits.dtype), losses


def target_classes(batch: Batch) -> Tensor | None:
    """The class of each sequence's target, named twice, as `standard_error` takes it; None where it is not known."""
    return None if batch.token_classes is None else batch.token_classes[:, -1:].expand(-1, 2)


def resampled(batch: Batch, seed: int, resamples: int) -> NDArray[np.float64]:
    """The share of each sequence in the sample itself, and in resamples of sequences, or of their targets' classes:
    [1 + resamples, batch]."""
    classes, n = target_classes(batch), len(batch)
    groups = np.arange(n) if classes is None else np.unique(classes[:, 0].numpy(), return_inverse=True)[1]
    n_groups = int(groups.max()) + 1
    drawn = generator(seed, Stream.BOOTSTRAP).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples)
    counts = np.concatenate([np.ones((1, n)), drawn[:, groups].astype(float)])
    return counts / counts.sum(axis=1, keepdims=True)
