"""Causal audit of measures: each measure is held up, and removed, during training. Does the transition follow?

A **control** is trained for every seed, without interventions. Its transition step t₀ is where the outcome, by default
the accuracy on the task's first evaluation set, crosses the middle between its first and its last level (`half_rise`).
Then the same training is done under each manipulation of each measure (`measures.manipulations`), at several strengths
from the first step to the last, and at full strength in windows that are fractions of the seed's t₀
(`causes.design`). `causes.verdicts` has the rules by which the steps are compared.

All runs are those of studies: by id, on several processes, resumed and never done twice.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechinterp.causes.design import CONTROL, STRENGTHS, Audit, Time
from mechinterp.causes.verdicts import WAIT, audit_table, middle_of
from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError
from mechinterp.measures.manipulations import Manipulations
from mechinterp.studies import processes
from mechinterp.studies.cost import Estimate, estimate
from mechinterp.studies.results import Results
from mechinterp.studies.runner import measured, run_study, study_table


def causal_audit(
    config: RunConfig,
    measures: str | Sequence[str] | Mapping[str, Manipulations] | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    strengths: Sequence[int | float] = STRENGTHS,
    times: Sequence[Time | str] = (Time.before, Time.across, Time.after),
    outcome: str | None = None,
    stop_accuracy: float | None = None,
    folder: str | Path = "checkpoints/studies",
    workers: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The table of a causal audit (`audit_table`), after training what is not trained yet; arguments as `Audit.of`.

    The runs are those of studies (`run_study`): they go to `folder`, by id, and none is done twice. What they take is
    estimated first. `audit_roles` reads a role for each measure off the table.
    """
    audit = Audit.of(
        config,
        measures,
        seeds=seeds,
        strengths=strengths,
        times=times,
        outcome=outcome,
        stop_accuracy=stop_accuracy,
    )
    return run_audit(audit, folder, workers=workers, progress=progress)


def run_audit(
    audit: Audit,
    folder: str | Path = "checkpoints/studies",
    *,
    workers: int | None = None,
    retry: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """The table of an audit, after executing the runs of its studies that are not done yet."""
    options: dict[str, Any] = {"workers": workers, "retry": retry, "progress": progress}
    run_study(audit.controls(), folder, **options)
    for seed, step in transition_steps(audit, folder).items():
        run_study(audit.study(seed, step), folder, **options)
    return collect_audit(audit, folder)


def collect_audit(audit: Audit, folder: str | Path = "checkpoints/studies") -> pd.DataFrame:
    """The table of an audit, of the runs in the folder that are done; none is trained."""
    tables = dict[tuple[str, int], pd.DataFrame]()
    for seed, step in transition_steps(audit, folder).items():
        tables |= measured(audit.study(seed, step), folder)
    return audit_table(audit, tables)


def transition_steps(audit: Audit, folder: str | Path = "checkpoints/studies") -> dict[int, float]:
    """t₀ of every seed's control; MechinterpError for a control that is not done, or makes no transition."""
    study = audit.controls()
    tables, states = measured(study, folder), study_table(study, folder).set_index("seed")
    steps = {}
    for seed in audit.seeds:
        if (CONTROL, seed) not in tables:
            raise MechinterpError(f"the control of seed {seed} is {states['status'][seed]}: {states['error'][seed]}")
        steps[seed] = middle_of(tables[CONTROL, seed][audit.outcome], seed).step
    return steps


def audit_cost(audit: Audit, folder: str | Path = "checkpoints/studies") -> Estimate:
    """The cost of the runs of an audit that are still to do, each way of training timed by a short trial.

    Until the controls are done, windows are those of a transition at 1/WAIT of the run.
    """
    try:
        steps = transition_steps(audit, folder)
    except MechinterpError:
        steps = dict.fromkeys(audit.seeds, audit.config.training.steps / WAIT)
    outcomes = Results(Path(folder))
    try:
        of_seeds = [estimate(audit.study(seed, step), outcomes, folder, clocked=True) for seed, step in steps.items()]
    finally:
        processes.end()
    return Estimate(
        runs=sum(each.runs for each in of_seeds),
        todo=sum(each.todo for each in of_seeds),
        untimed=sum(each.untimed for each in of_seeds),
        steps=sum(each.steps for each in of_seeds),
        core_seconds=sum(each.core_seconds for each in of_seeds),
        kept_bytes=sum(each.kept_bytes for each in of_seeds),
        start_seconds=max((each.start_seconds for each in of_seeds), default=0.0),
    )
