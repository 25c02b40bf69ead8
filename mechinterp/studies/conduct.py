"""Carry a study out on any `concurrent.futures.Executor`, each worker with a process that does its runs.

A worker takes one core: its run computes, and draws its batches, on one thread. A run is done once, whatever happens:
what is finished is found by its id, what was interrupted is resumed to the same bits, and what failed is recorded and
left until a retry is asked for. So the same study gives the same bits on one worker, on several, and on a cluster (but
not in batches on a GPU: sums there depend on who shares the batch). Nothing here imports torch: only workers do.
"""

import os
import sys
from collections.abc import Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from tqdm import tqdm

from mechinterp.errors import MechinterpError
from mechinterp.files import make_folder, require_place
from mechinterp.studies import processes
from mechinterp.studies.cost import estimate
from mechinterp.studies.jobs import Job, distinct_jobs, grouped, jobs_of
from mechinterp.studies.outcomes import Outcomes, forget_failure, write_failure
from mechinterp.studies.study import Study, StudyRun

_LOCATED = ("transition", "step", "low", "high", "width", "before", "after")
_COLUMNS = ("variant", "seed", "run", "status", "error", *_LOCATED)


def run_study(
    study: Study,
    folder: str | Path = "checkpoints/studies",
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    retry: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
    runs_per_device: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """Do every run of a study that is not done yet; returns its table, one row per run (`study_table`).

    Runs go to `folder`, by id; studies may share one. By default `workers` processes work on this machine (as many as
    there are cores), else the given `executor` does, which may be a cluster's; whoever made it shuts it down. A run
    that failed before is tried again with `retry` only. Everything is validated before anything starts.

    On a GPU (`device="cuda"`), every worker can advance `runs_per_device` runs in one batch (`training.together`).
    """
    for name, number in (("workers", workers), ("runs_per_device", runs_per_device)):
        if number is not None and number < 1:
            raise MechinterpError(f"{name} is {number}; at least one is needed")
    jobs, outcomes = [job for _, job in distinct_jobs(study, Path(folder), device)], Outcomes(Path(folder))
    todo = [job for job in jobs if outcomes.awaits(job, retry)]
    if todo:
        workers = workers or os.cpu_count() or 1
        hidden = None if progress else True
        try:
            processes.begin(0 if executor else min(workers, len(todo)))
            _check(study, device)
            make_folder(Path(folder))
            if progress:
                left = estimate(study, outcomes, folder, clocked=device == "cpu", retry=retry)
                print(left.on(None if executor else workers), file=sys.stderr)
            with tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="run", disable=hidden) as bar:
                _carry_all_out(study, grouped(todo, runs_per_device), workers, executor, bar)
        finally:
            processes.end()
    return study_table(study, folder)


def _carry_all_out(study: Study, todo: list[list[Job]], workers: int, executor: Executor | None, bar: tqdm) -> None:
    pool = executor or ThreadPoolExecutor(workers, thread_name_prefix="study")
    lost: list[BaseException] = []
    futures = {
        pool.submit(carry_out, jobs[0]) if len(jobs) == 1 else pool.submit(carry_out_together, jobs): len(jobs)
        for jobs in todo
    }
    try:
        for future in as_completed(futures):
            if error := future.exception():
                lost.append(error)
            bar.update(futures[future])
    except BaseException:
        _cancel(futures)
        raise
    finally:
        if executor is None:
            pool.shutdown(cancel_futures=True)
    if lost:
        raise MechinterpError(
            f"study {study.name}: {len(lost)} runs were lost with their workers ({type(lost[0]).__name__}: {lost[0]});"
            " carry it out again: what is finished is kept, and the others are resumed"
        )


def carry_out(job: Job) -> str | None:
    """Do one job in a process of its own; what went wrong, which is also recorded, or None.

    This is what an executor's worker calls. Should that worker be killed, the process ends with it. A process that is
    told to end has not failed: nothing is recorded, and the next one resumes its run.
    """
    forget_failure(job)
    reply = processes.ask({"what": "do", "job": job, "device": job["device"], "cwd": job["cwd"]})
    error = reply["error"]
    if error is not None and not reply.get("told_to_end"):
        write_failure(job, error, reply["output"])
    return error


def carry_out_together(jobs: list[Job]) -> list[str | None]:
    """The same for several jobs, whose runs are trained in one batch."""
    for job in jobs:
        forget_failure(job)
    shared = {"device": jobs[0]["device"], "cwd": jobs[0]["cwd"]}
    reply = processes.ask({"what": "do together", "jobs": jobs, **shared})
    errors = [reply["error"] or reply["errors"].get(job["id"]) for job in jobs]
    for job, error in zip(jobs, errors, strict=True):
        if error is not None and not reply.get("told_to_end"):
            write_failure(job, error, reply.get("output", ""))
    return errors


def begun(study: Study, folder: str | Path) -> bool:
    """Whether anything of a study is in the folder."""
    outcomes = Outcomes(Path(folder))
    jobs = [job for _, job in jobs_of(study, Path(folder))]
    return any(outcomes.begun(job) or outcomes.of(job) or outcomes.error(job) for job in jobs)


def states(study: Study, outcomes: Outcomes, folder: str | Path) -> pd.DataFrame:
    """How many runs of each variant are ``done``, ``failed``, ``begun`` (there is a run file) and ``not begun``."""
    counts = {variant: dict.fromkeys(("done", "failed", "begun", "not begun"), 0) for variant in study.variants}
    for each, job in jobs_of(study, Path(folder)):
        if outcomes.of(job):
            state = "done"
        elif outcomes.error(job):
            state = "failed"
        else:
            state = "begun" if outcomes.begun(job) else "not begun"
        counts[each.variant][state] += 1
    return pd.DataFrame.from_dict(counts, orient="index").rename_axis("variant")


def study_table(study: Study, folder: str | Path = "checkpoints/studies") -> pd.DataFrame:
    """What is known of a study's runs, one row per variant and seed; from the folder's index, no run file is opened.

    Columns: ``variant``, ``seed``, ``run`` (its id), ``status`` (done, failed, or not done), ``error``; of the main
    measure ``transition``, ``step``, ``low``, ``high``, ``width``, ``before``, ``after``; of every other measure m its
    ``{m}_step`` and ``{m}_lag`` (its step minus the main one's; negative: earlier); and accuracies and losses at the
    end, released (``final_icl_accuracy``, …) and, under interventions, clamped (``final_clamped_icl_accuracy``, …).
    """
    outcomes = Outcomes(Path(folder))
    rows = [_row(each, job, study, outcomes) for each, job in jobs_of(study, Path(folder))]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*_COLUMNS, *(name for row in rows for name in row)])))


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """The variants of a study's table: how many runs make the transition, its median step, and how that compares.

    ``after`` is the median plateau that it leads to: not every transition is to the same end.

    ``ratio`` is the median over seeds of step(variant) / step(first variant), of seeds in which both make the
    transition; below 1, the variant makes it sooner. ``ratio_low`` and ``ratio_high`` are its extremes.
    """
    first = str(table["variant"].iloc[0])
    steps = {
        str(variant): rows.set_index("seed")["step"].astype(float)
        for variant, rows in table.groupby("variant", sort=False)
    }
    rows = {}
    for variant, found in steps.items():
        ratio = (found / steps[first]).dropna()
        here = table[table["variant"] == variant]
        rows[variant] = {
            "runs": len(here),
            "done": int((here["status"] == "done").sum()),
            "transitions": int(found.notna().sum()),
            "step": found.median(),
            "step_low": found.min(),
            "step_high": found.max(),
            "after": pd.Series(here["after"], dtype=float).median(),
            "ratio": ratio.median(),
            "ratio_low": ratio.min(),
            "ratio_high": ratio.max(),
        }
        finals = [name for name in here if str(name).startswith("final_") and "icl_accuracy" in str(name)]
        rows[variant] |= {str(name): pd.Series(here[name], dtype=float).median() for name in finals}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")


def table_folder(study: Study, out: Path) -> Path:
    """The folder of a study's tables and page, made if need be; refused if they cannot be written there."""
    make_folder(out)
    for ending in (".csv", "-variants.csv", ".html"):
        require_place(out / f"{study.name}{ending}")
    return out


def write_tables(study: Study, table: pd.DataFrame, out: Path) -> tuple[pd.DataFrame, Path, Path]:
    """Write a study's table and the comparison of its variants (`compare`): that, and where they are."""
    runs, variants, compared = out / f"{study.name}.csv", out / f"{study.name}-variants.csv", compare(table)
    table.to_csv(runs, index=False, float_format="%.6g")
    compared.to_csv(variants, float_format="%.6g")
    return compared, runs, variants


def measured(study: Study, folder: str | Path = "checkpoints/studies") -> dict[tuple[str, int], pd.DataFrame]:
    """The progress measures of every run that is done, step × measure, by variant and seed."""
    outcomes = Outcomes(Path(folder))
    return {
        (each.variant, each.seed): pd.read_csv(Path(folder) / f"{job['id']}.csv", index_col="step")
        for each, job in jobs_of(study, Path(folder))
        if outcomes.of(job)
    }


def _check(study: Study, device: str) -> None:
    """Refuse a study of which some variant cannot be trained and measured, before anything starts."""
    for variant, config in study.variants.items():
        error = None
        if own := _own_measures(study):
            error = f"workers do not know your measure {own[0]!r}; take it afterwards, with mi.measure"
        elif config.task.kind == "custom":
            error = "its task is your own, which a worker cannot make from a config; train it in Python"
        else:
            asked = {"config": config.model_dump(mode="json"), "measures": list(study.measures)}
            error = processes.ask({"what": "check", **asked, "device": device, "cwd": os.getcwd()})["error"]
        if error:
            raise MechinterpError(f"study {study.name}: variant {variant!r}: {error}")


def _own_measures(study: Study) -> list[str]:
    """Those of the study's measures that the user has registered in this process."""
    base = sys.modules.get("mechinterp.measures.base")  # nothing is registered where it was not imported
    known = {} if base is None else base.MEASURES
    own = [name for name, each in known.items() if not each.compute.__module__.startswith("mechinterp.")]
    return [name for name in study.measures if any(name.removeprefix("clamped_").endswith(each) for each in own)]


def _row(run: StudyRun, job: Job, study: Study, outcomes: Outcomes) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": run.variant, "seed": run.seed, "run": job["id"]}
    outcome = outcomes.of(job)
    if outcome is None:
        error = outcomes.error(job)
        return row | {"status": "failed" if error else "not done", "error": error}
    main, *others = study.measures
    row |= {"status": "done", "error": None}
    row |= {name: outcome.get(f"{main}.{name}") for name in _LOCATED}
    for name in others:
        step = outcome.get(f"{name}.step")
        row[f"{name}_step"] = step
        row[f"{name}_lag"] = None if step is None or row["step"] is None else step - row["step"]
    finals = [name for name in outcome if name.startswith("final.")]
    finals.sort(key=lambda name: ("clamped_" in name, name.endswith("_loss"), name))
    return row | {name.replace(".", "_", 1): outcome[name] for name in finals}


def _cancel(futures: Iterable[Future]) -> None:
    """No further run is begun here, and those that run here end; what they have written is kept."""
    processes.stop()
    for future in futures:
        future.cancel()
