"""Heads of several runs matched by role, and their curves over training (`circuits.head_matching`)."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from mechinterp.analysis.checkpoints import analyse
from mechinterp.circuits.head_matching import SCORES, matched_heads
from mechinterp.errors import MechinterpError
from mechinterp.run import Run, require_run

Runs = Mapping[str, Run] | Sequence[Run] | Run
"""Runs by name, or in a list, or one; they are then named by their files."""


def match_heads(runs: Runs, *, step: int | str = "last", n_pairs: int = 256, seed: int = 0) -> pd.DataFrame:
    """One row per run and head: ``run``, ``layer``, ``head``, ``role``, ``name`` ("induction 1"), the scores of
    `head_roles`, and whether it is ``redundant``, at one saved step of every run.

    The first run is the reference whose heads are numbered by their effect.
    """
    named = _named(runs)
    tables = {}
    for name, run in named.items():
        table = analyse(run, "heads", steps=[run.numbered(step)], n_pairs=n_pairs, seed=seed)
        tables[name] = table.drop(columns="step")
    return matched_heads(tables)


def head_curves(
    runs: Runs,
    *,
    step: int | str = "last",
    steps: Iterable[int] | None = None,
    n_pairs: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """The scores of every head over training, named by the role that it has at `step`: one row per run, checkpoint and
    head, with ``run``, ``step``, ``name``, ``role``, ``layer``, ``head`` and the scores of `head_roles`.

    ``previous_token`` of a previous-token head is ILA1 of that head, ``correct_label`` of an induction head its TILA2;
    ``alone`` and ``needed`` are its effects. Rows of all runs with one name are about the same thing:
    ``curves.pivot_table(index="step", columns=["name", "run"], values="correct_label")``.
    """
    named = _named(runs)
    wanted = None if steps is None else list(steps)
    names = match_heads(named, step=step, n_pairs=n_pairs, seed=seed)[["run", "layer", "head", "role", "name"]]
    parts = []
    for name, run in named.items():
        table = analyse(run, "heads", steps=wanted, n_pairs=n_pairs, seed=seed, progress=progress)
        parts.append(table.drop(columns=["role", "redundant"]).assign(run=name))
    curves = pd.concat(parts).merge(names, on=["run", "layer", "head"], how="left", sort=False)
    return curves[["run", "step", "name", "role", "layer", "head", *SCORES]]


def _named(runs: Runs) -> dict[str, Run]:
    """Runs by name; two files of one name by their folders too."""
    if isinstance(runs, Run | str):
        runs = [runs]
    for run in runs.values() if isinstance(runs, Mapping) else runs:
        require_run(run)
    if isinstance(runs, Mapping):
        return dict(runs)
    names = [run.path.stem for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path.with_suffix("")) for run in runs]
    if len(set(names)) < len(names):
        raise MechinterpError("a run is given twice; leave one of the two out")
    return dict(zip(names, runs, strict=True))
