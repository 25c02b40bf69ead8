"""Circuit analyses over a run: a tidy table, step × site × value, computed once and kept beside the run.

table = mi.analyse(run, "patch", corruption="replace_target")
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechinterp.analysis.cache import TableCache
from mechinterp.analysis.registry import analysis_of, checked_arguments
from mechinterp.parallel import computed
from mechinterp.progress import Progress
from mechinterp.run import Run, require_run
from mechinterp.torch_state import torch_defaults, torch_threads

if TYPE_CHECKING:
    from mechinterp.circuits.diagram import Weight
    from mechinterp.circuits.graph import CircuitGraph

__all__ = ["analyse", "circuit_graphs"]


@torch_defaults()
def analyse(
    run: Run,
    analysis: str,
    *,
    steps: int | str | Iterable[int | str] | None = None,
    progress: bool = False,
    keep: bool = True,
    **arguments: Any,
) -> pd.DataFrame:
    """The table of an analysis at every saved step of a run, or at the given ones; the first column is ``step``.

    `arguments` are those of the analysis; members of an enum may be given by name. An unknown analysis, argument,
    member or step raises before anything is computed. With `keep`, results are read from and kept in the folder
    ``RUN.cache`` beside the run file.
    """
    require_run(run)
    entry, chosen = analysis_of(analysis), checked_arguments(analysis, arguments)
    wanted = run.chosen_steps(steps)
    digests, function = {step: run.digest(step) for step in wanted}, entry.function(analysis)
    kept, task = TableCache(run.path, run.network_config, analysis, entry.home, chosen, keep=keep), run.task

    def table_at(step: int) -> pd.DataFrame:
        with torch_threads(1):
            return function(run.network(step), task, **chosen)

    fill(kept, digests, table_at, progress=progress)
    tables = [kept.tables[digests[step]].copy() for step in wanted]
    for step, table in zip(wanted, tables, strict=True):
        table.insert(0, "step", step)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def fill(
    kept: TableCache, digests: Mapping[int, str], table_at: Callable[[int], pd.DataFrame], *, progress: bool = False
) -> None:
    """Add the tables of the steps whose digests are not in a cache, on all cores, and save it, also after an error."""
    missing = {digest: step for step, digest in digests.items() if digest not in kept.tables}
    try:
        with Progress("checkpoint", len(digests), done=len(digests) - len(missing), shown=progress) as shown:
            for digest, table in zip(missing, computed(table_at, list(missing.values())), strict=True):
                kept.add(digest, table)
                shown.advance()
    finally:
        kept.save()


def circuit_graphs(
    run: Run,
    *,
    steps: int | str | Iterable[int | str] | None = None,
    weight: "Weight | str" = "effect",
    threshold: float | None = None,
    **arguments: Any,
) -> "dict[int, CircuitGraph]":
    """The circuit (`circuits.graph.graph_of`) by step, from the kept tables of ``analyse(run, "circuit", …)``."""
    from mechinterp.circuits.diagram import checked
    from mechinterp.circuits.graph import graph_of

    weight, threshold = checked(weight, threshold)
    steps = steps if steps is None or isinstance(steps, int | str) else dict.fromkeys(steps)
    table = analyse(run, "circuit", steps=steps, **arguments)
    by_step = table.groupby("step", sort=False) if len(table) else ()
    return {int(str(step)): graph_of(rows, weight=weight, threshold=threshold) for step, rows in by_step}
