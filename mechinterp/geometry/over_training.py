"""The geometry of the loss at every checkpoint of a run, and whether it changes where the network begins to answer.

    gradient_norm, gradient_squared_norm, gradient_noise, gradient_noise_scale     `geometry.gradients`
    hessian_trace, hessian_top_1, …, hessian_low, hessian_residual                  `geometry.hessian`
    update_norm, update_relative                                                    `geometry.updates`
    llc, llc_r_hat                                                                  `geometry.llc`

All are of the training loss on one fixed set of sequences of the training distribution, which training has not drawn
(`geometry.loss`), in float32, as training is. The error of an eigenvalue is √(standard error² + residual²), as Lanczos'
method ends where residuals are `TOLERANCE` of the largest; ``hessian_residual`` is the largest residual.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechinterp.analysis.cache import TableCache
from mechinterp.analysis.checkpoints import fill
from mechinterp.emergence import Emergence, describe, locate_or_say_why
from mechinterp.errors import MechinterpError
from mechinterp.geometry.gradients import gradient_moments
from mechinterp.geometry.hessian import hessian_diagonal, top_eigenvalues
from mechinterp.geometry.llc import llc_table, localisation_of
from mechinterp.geometry.loss import NetworkLoss
from mechinterp.geometry.updates import ALL, update_norms
from mechinterp.measures.table import main_column, measure
from mechinterp.run import Run
from mechinterp.torch_state import torch_defaults, torch_threads

TOLERANCE = 0.01
"""Residual of eigenvalues, as a share of the largest, up to which Lanczos' method goes on."""


@dataclass(frozen=True)
class TrainingGeometry:
    """The geometry of the loss over training; see the module's docstring for the quantities."""

    table: pd.DataFrame
    """By step: every quantity, with its standard error in ``…_error``; update norms are exact and have none. The first
    step has no update norm. The last column is the network's accuracy, under the name of its measure."""
    components: pd.DataFrame
    """A row per step and component: ``step``, ``component``, and all quantities but eigenvalues."""
    emergence: pd.DataFrame
    """A row per quantity, and first for the accuracy: its transition, or why there is none, as in `emergence_table`."""
    accuracy: str
    """The measure that is the network's accuracy."""

    def to_dict(self) -> dict[str, object]:
        """All of it, for JSON."""
        return {
            "accuracy": self.accuracy,
            "emergence": {str(name): row for name, row in self.emergence.to_dict("index").items()},
            "rows": self.table.reset_index().to_dict("records"),
            "components": self.components.to_dict("records"),
        }

    def __str__(self) -> str:
        return "\n".join(describe(str(name), row) for name, row in self.emergence.iterrows())


@torch_defaults()
def training_geometry(
    run: Run,
    steps: int | str | Iterable[int | str] | None = None,
    *,
    n_sequences: int = 512,
    eigenvalues: int = 2,
    probes: int = 4,
    llc: bool = False,
    seed: int = 0,
    keep: bool = True,
    progress: bool = False,
) -> TrainingGeometry:
    """The geometry of the training loss at every saved step of a run, or at the given ones.

    Of `n_sequences` sequences (32 or more), with so many of the largest `eigenvalues`, and `probes` of the Hessian's
    trace for each of 32 minibatches; with `llc` also the local learning coefficient, of the network and of every
    component, localised to a tenth of the norm of the weights at the run's first step (`localisation_of`), which takes
    as long again for each of them. Another `seed` draws other sequences, probes and chains. With `keep`, results of
    checkpoints are read from and kept in the folder ``RUN.cache`` beside the run file. MechinterpError for a run
    without a task or `Network`, and for less than 2 steps.
    """
    wanted = sorted(set(run.chosen_steps(steps)))
    if not run.can_be_analysed:
        raise MechinterpError(f"{run.path}: its loss is not known as a function: {run.why_not_analysed}")
    with torch_threads(1):
        updates = update_norms(run, wanted).rename(columns={"norm": "update_norm", "relative": "update_relative"})
    arguments = {"eigenvalues": eigenvalues, "probes": probes}
    rows = _by_step(run, wanted, "geometry", checkpoint_geometry, arguments, n_sequences, seed, keep, progress)
    rows = rows.merge(updates, how="left", on=["step", "component"])
    if llc:
        localisation = localisation_of(NetworkLoss.of_run(run, "first", n=1, dtype=torch.float32).point)
        arguments = {"localisation": localisation}
        found = _by_step(run, wanted, "llc", _all_llc, arguments, n_sequences, seed, keep, progress)
        rows = rows.merge(found, how="left", on=["step", "component"])
    accuracy = main_column(run)
    measured = measure(run, [accuracy], steps=wanted)[accuracy]
    whole = rows[rows["component"] == ALL].drop(columns="component").set_index("step").assign(**{accuracy: measured})
    parts = rows[rows["component"] != ALL].dropna(axis="columns", how="all").reset_index(drop=True)
    parts = parts[["step", "component", *parts.columns.difference(["step", "component"], sort=False)]]
    names = [
        accuracy,
        *(name for name in whole if name != accuracy and not str(name).endswith(("_error", "_residual", "_r_hat"))),
    ]
    located = {name: _located(pd.Series(whole[name])).to_dict() for name in names}
    emergence = pd.DataFrame.from_dict(located, orient="index").rename_axis("measure")
    return TrainingGeometry(whole, parts, emergence, accuracy)


def _by_step(
    run: Run,
    steps: list[int],
    name: str,
    function: Callable[..., pd.DataFrame],
    arguments: Mapping[str, Any],
    n_sequences: int,
    seed: int,
    keep: bool,
    progress: bool,
) -> pd.DataFrame:
    """The tables that a function makes of the losses at some steps, below each other; kept under a name."""
    about = {"n_sequences": n_sequences, "seed": seed, **arguments}
    kept = TableCache(run.path, run.network_config, name, __name__, about, keep=keep)
    digests = {step: run.digest(step) for step in steps}

    def table_at(step: int) -> pd.DataFrame:
        with torch_threads(1):
            return function(NetworkLoss.of_run(run, step, n_sequences, seed, torch.float32), seed=seed, **arguments)

    fill(kept, digests, table_at, progress=progress)
    return pd.concat([kept.tables[digests[step]].assign(step=step) for step in steps], ignore_index=True)


def _all_llc(loss: NetworkLoss, *, localisation: float, seed: int) -> pd.DataFrame:
    """The local learning coefficient of the network and of every component."""
    table = llc_table(loss, (None, *loss.components), localisation=localisation, seed=seed)
    return table[["component", "llc", "llc_error", "r_hat"]].rename(columns={"r_hat": "llc_r_hat"})


def _located(curve: pd.Series) -> Emergence:
    """The transition of a quantity; one that some steps lack, after the first, has none that is known."""
    missing = int(curve.iloc[1:].isna().sum())
    if missing:
        return Emergence(transition=False, reason=f"it is not resolved at {missing} of {len(curve)} steps")
    return locate_or_say_why(curve)


def checkpoint_geometry(loss: NetworkLoss, *, eigenvalues: int = 2, probes: int = 4, seed: int = 0) -> pd.DataFrame:
    """The geometry of a network's loss: a row for all parameters (``all``) and one per component, with the quantities
    of the module's docstring but update norms, and their standard errors. Components have no eigenvalues."""
    moments, diagonal = gradient_moments(loss), hessian_diagonal(loss, probes=probes, seed=seed)
    masks = {ALL: None, **{component.name: loss.mask(component) for component in loss.components}}
    rows = []
    for name, mask in masks.items():
        noise, trace = moments.noise(mask), diagonal.trace(mask)
        row: dict[str, object] = {"component": name}
        for quantity in ("norm", "squared_norm", "noise", "scale"):
            column = f"gradient_{'noise_scale' if quantity == 'scale' else quantity}"
            row |= {column: getattr(noise, quantity), f"{column}_error": getattr(noise, f"{quantity}_error")}
        rows.append({**row, "hessian_trace": trace.value, "hessian_trace_error": trace.error})
    spectrum = top_eigenvalues(loss, eigenvalues, tolerance=TOLERANCE, seed=seed)
    names = [*(f"hessian_top_{number}" for number in range(1, eigenvalues + 1)), "hessian_low"]
    errors = np.hypot(spectrum.errors, spectrum.residuals).tolist()
    for name, value, error in zip(names, spectrum.values.tolist(), errors, strict=True):
        rows[0] |= {name: value, f"{name}_error": error}
    rows[0]["hessian_residual"] = float(spectrum.residuals.max())
    return pd.DataFrame(rows)
