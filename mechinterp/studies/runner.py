"""Execution of studies on any `concurrent.futures.Executor`, every worker with a process that executes its runs.

A worker takes one core: its run computes, and draws its batches, on one thread. No run is done twice: a finished run is
recognised by its id, an interrupted one is resumed to the same bits, and a failed one is recorded and left until a
retry is asked for. So a study gives the same bits on one worker, on several, and on a cluster (but not with several
runs in one batch, where sums are rounded otherwise). This module does not import torch: only workers do.
"""

import os
import sys
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from mechinterp.errors import MechinterpError, require_integer
from mechinterp.files import make_folder, replace_text, require_place
from mechinterp.progress import Progress
from mechinterp.studies import processes
from mechinterp.studies.cost import estimate
from mechinterp.studies.jobs import Job, distinct_jobs, grouped, jobs_of
from mechinterp.studies.results import Results, file_of, forget_failure, write_failure
from mechinterp.studies.study import Study, StudyRun
from mechinterp.studies.tables import read_table

_LOCATED = ("transition", "step", "low", "high", "width", "before", "after")
_COLUMNS = ("variant", "seed", "run", "status", "error", *_LOCATED, "first_spike")


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
    """The table of a study, one row per run (`study_table`), after executing all runs that are not done yet.

    Run files are written to `folder`, by id; studies may share one. Runs are executed by `workers` processes on this
    machine (by default as many as there are cores), or by `executor`, for instance a cluster's, which the caller shuts
    down. A run that failed before is tried again with `retry` only. Everything is validated before anything starts.

    Every worker can train `runs_per_device` runs in one batch (`train_batched`): on a GPU (`device="cuda"`), and on the
    CPU those that are faster so (`jobs.faster_together`). Weights are then those of the run alone up to rounding, and
    the run file names the engine ``batched``; so it is not done by default.
    """
    if not isinstance(study, Study):
        raise MechinterpError(f"study is a {type(study).__name__}; expected a Study, as mi.Study.from_toml(path)")
    for name, number in (("workers", workers), ("runs_per_device", runs_per_device)):
        if number is not None:
            require_integer(name, number)
    jobs, outcomes = [job for _, job in distinct_jobs(study, Path(folder), device)], Results(Path(folder))
    todo = [job for job in jobs if outcomes.awaits(job, retry)]
    if todo:
        workers = workers or os.cpu_count() or 1
        try:
            processes.begin(0 if executor else min(workers, len(todo)))
            _check(study, device)
            make_folder(Path(folder))
            if progress:
                cost = estimate(study, outcomes, folder, clocked=device == "cpu", retry=retry)
                print(cost.on(None if executor else workers), file=sys.stderr)
            with Progress("run", len(jobs), done=len(jobs) - len(todo), shown=progress) as bar:
                _execute_all(study, grouped(todo, runs_per_device), workers, executor, bar)
        finally:
            processes.end()
    return study_table(study, folder)


def _execute_all(study: Study, groups: list[list[Job]], workers: int, executor: Executor | None, bar: Progress) -> None:
    pool = executor or ThreadPoolExecutor(workers, thread_name_prefix="study")
    lost: list[BaseException] = []
    futures: dict[Future[Any], int] = {
        pool.submit(execute_job, jobs[0]) if len(jobs) == 1 else pool.submit(execute_jobs, jobs): len(jobs)
        for jobs in groups
    }
    try:
        for future in as_completed(futures):
            if error := future.exception():
                lost.append(error)
            bar.advance(futures[future])
    except BaseException:
        processes.stop()  # no further run begins here, and those that run here end; what they have written is kept
        for future in futures:
            future.cancel()
        raise
    finally:
        if executor is None:
            pool.shutdown(cancel_futures=True)
    if lost:
        raise MechinterpError(
            f"study {study.name}: {len(lost)} runs were lost with their workers ({type(lost[0]).__name__}: {lost[0]});"
            " carry it out again: what is finished is kept, and the others are resumed"
        )


def execute_job(job: Job) -> str | None:
    """The error of one job, executed in a process of its own, or None; an error is also recorded.

    An executor's worker calls this function. If that worker is killed, the process ends too. If the process is stopped
    from outside, no failure is recorded, and the next process resumes the run.
    """
    forget_failure(job)
    reply = processes.ask({"what": "do", "job": job, "device": job["device"], "cwd": job["cwd"]})
    error = reply["error"]
    if error is not None and not reply.get("told_to_end"):
        write_failure(job, error, reply["output"])
    return error


def execute_jobs(jobs: list[Job]) -> list[str | None]:
    """The errors of several jobs, whose runs are trained in one batch; otherwise as `execute_job`."""
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
    """Whether the folder has a run file, an outcome or a recorded failure of any run of a study."""
    outcomes = Results(Path(folder))
    jobs = [job for _, job in jobs_of(study, Path(folder))]
    return any(outcomes.begun(job) or outcomes.of(job) or outcomes.error(job) for job in jobs)


def states(study: Study, outcomes: Results, folder: str | Path) -> pd.DataFrame:
    """How many runs of each variant are ``done``, ``failed``, ``begun`` (there is a run file) and ``not begun``."""
    counts = {variant: dict.fromkeys(("done", "failed", "begun", "not begun"), 0) for variant in study.variants}
    for run, job in jobs_of(study, Path(folder)):
        if outcomes.of(job):
            state = "done"
        elif outcomes.error(job):
            state = "failed"
        else:
            state = "begun" if outcomes.begun(job) else "not begun"
        counts[run.variant][state] += 1
    return pd.DataFrame.from_dict(counts, orient="index").rename_axis("variant")


def study_table(study: Study, folder: str | Path = "checkpoints/studies") -> pd.DataFrame:
    """The runs of a study, one row per variant and seed, from the folder's index; no run file is opened.

    Columns: ``variant``, ``seed``, ``run`` (its id), ``status`` (done, failed, or not done), ``error``; of the main
    measure ``transition``, ``step``, ``low``, ``high``, ``width``, ``before``, ``after``; ``first_spike``, the step of
    the first loss spike (`training.spikes`); of every other measure m ``{m}_step`` and ``{m}_lag`` (its step minus that
    of the main measure; negative: earlier); and final accuracies and losses without interventions
    (``final_icl_accuracy``, …) and, if any are on at the last step, under them (``final_clamped_icl_accuracy``, …).
    """
    outcomes = Results(Path(folder))
    rows = [_row(run, job, study, outcomes) for run, job in jobs_of(study, Path(folder))]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*_COLUMNS, *(name for row in rows for name in row)])))


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """The variants of a study's table: number of transitions, median step, and ratio to the step of the first variant.

    ``after`` is the median plateau after the transition.

    ``ratio`` is the median over seeds of step(variant) / step(first variant), over the seeds in which both make the
    transition; below 1, the variant makes it sooner. ``ratio_low`` and ``ratio_high`` are the extremes over seeds.
    """
    first = table["variant"].iloc[0]
    reference = table[table["variant"] == first].set_index("seed")["step"].astype(float)
    rows = {}
    for variant, runs in table.groupby("variant", sort=False):
        steps = runs.set_index("seed")["step"].astype(float)
        ratio = (steps / reference).dropna()
        rows[str(variant)] = {
            "runs": len(runs),
            "done": int((runs["status"] == "done").sum()),
            "transitions": int(steps.notna().sum()),
            "step": steps.median(),
            "step_low": steps.min(),
            "step_high": steps.max(),
            "after": pd.Series(runs["after"], dtype=float).median(),
            "ratio": ratio.median(),
            "ratio_low": ratio.min(),
            "ratio_high": ratio.max(),
        }
        finals = [str(name) for name in runs if str(name).startswith("final_") and "icl_accuracy" in str(name)]
        rows[str(variant)] |= {name: pd.Series(runs[name], dtype=float).median() for name in finals}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")


def describe_spikes(table: pd.DataFrame) -> str | None:
    """How many runs of a study's table have loss spikes, and of which variants; None if no run has."""
    spiking = table[table["first_spike"].notna()]
    if spiking.empty:
        return None
    variants = list(dict.fromkeys(spiking["variant"]))
    return (
        f"loss spikes in {len(spiking)} of {len(table)} runs ({_listed(variants)}); what is measured after the first"
        " spike of a run may be their doing"
    )


def describe_guessing(study: Study, table: pd.DataFrame) -> str | None:
    """Which variants have transitions to an accuracy that guessing has too; None if none has."""
    located = table[table["transition"].eq(True)]
    if located.empty:
        return None
    from mechinterp.analysis.headline import at_most_guessing  # imports torch
    from mechinterp.measures import main_measure
    from mechinterp.tasks import build_task

    found: dict[str, list[str]] = {}
    for variant, rows in located.groupby("variant", sort=False):
        task = build_task(study.variants[str(variant)])
        if study.measures[0] == main_measure(task):
            for way in dict.fromkeys(at_most_guessing(task, float(after)) for after in rows["after"]):
                if way:
                    found.setdefault(way, []).append(str(variant))
    texts = [f"no more than {way}: transitions of {_listed(variants)}" for way, variants in found.items()]
    return "; ".join(texts) or None


def _listed(variants: list[str]) -> str:
    """The first names, and how many there are more."""
    return ", ".join(variants[:5]) + (f" and {len(variants) - 5} more" if len(variants) > 5 else "")


def table_folder(study: Study, out: Path) -> Path:
    """The folder of a study's tables and page, made if need be; MechinterpError if they cannot be written there."""
    make_folder(out)
    for ending in (".csv", "-variants.csv", ".html"):
        require_place(out / f"{study.name}{ending}")
    return out


def write_tables(study: Study, table: pd.DataFrame, out: Path) -> tuple[pd.DataFrame, Path, Path]:
    """The comparison of a study's variants (`compare`), and the paths to which the table and it were written."""
    runs, variants, compared = out / f"{study.name}.csv", out / f"{study.name}-variants.csv", compare(table)
    replace_text(runs, table.map(_text_cell).to_csv(index=False, float_format="%.6g"))
    replace_text(variants, compared.to_csv(float_format="%.6g"))
    return compared, runs, variants


def _text_cell(value: Any) -> Any:
    """The value of a cell; text that a spreadsheet would take for a formula is quoted."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def measured(study: Study, folder: str | Path = "checkpoints/studies") -> dict[tuple[str, int], pd.DataFrame]:
    """The progress measures of every run that is done, step × measure, by variant and seed."""
    outcomes = Results(Path(folder))
    return {
        (run.variant, run.seed): _table_of(job, outcome["table"])
        for run, job in jobs_of(study, Path(folder))
        if (outcome := outcomes.of(job))
    }


def _table_of(job: Job, digest: str) -> pd.DataFrame:
    """The measures of a run that is done; MechinterpError if their file is not the one that was written."""
    path = file_of(job, ".csv")
    if (table := read_table(path, digest)) is None:
        raise MechinterpError(f"{path}: is missing or was changed; delete {path.stem}.json and go on with the study")
    return table


def _check(study: Study, device: str) -> None:
    """Raise MechinterpError if a variant cannot be trained or measured by workers."""
    for variant, config in study.variants.items():
        if unknown := _custom_measures(study):
            error = f"workers do not know your measure {unknown[0]!r}; take it afterwards, with mi.measure"
        elif config.task.kind == "custom":
            error = "its task is your own, which a worker cannot make from a config; train it in Python"
        else:
            request = {"config": config.model_dump(mode="json"), "measures": list(study.measures), "device": device}
            error = processes.ask({"what": "check", **request, "cwd": os.getcwd()})["error"]
        if error:
            raise MechinterpError(f"study {study.name}: variant {variant!r}: {error}")


def _custom_measures(study: Study) -> list[str]:
    """The study's measures that the user has registered in this process."""
    base = sys.modules.get("mechinterp.measures.base")  # without it, nothing is registered; importing it takes torch
    measures = {} if base is None else base.MEASURES
    custom = tuple(name for name, entry in measures.items() if not entry.compute.__module__.startswith("mechinterp."))
    return [name for name in study.measures if name.removeprefix("clamped_").endswith(custom)]


def _row(run: StudyRun, job: Job, study: Study, outcomes: Results) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": run.variant, "seed": run.seed, "run": job["id"]}
    outcome = outcomes.of(job)
    if outcome is None:
        error = outcomes.error(job)
        return row | {"status": "failed" if error else "not done", "error": error}
    main, *others = study.measures
    row |= {"status": "done", "error": None}
    row |= {name: outcome.get(f"{main}.{name}") for name in _LOCATED} | {"first_spike": outcome.get("first_spike")}
    for name in others:
        step = outcome.get(f"{name}.step")
        row[f"{name}_step"] = step
        row[f"{name}_lag"] = None if step is None or row["step"] is None else step - row["step"]
    finals = [name for name in outcome if name.startswith("final.")]
    finals.sort(key=lambda name: ("clamped_" in name, name.endswith("_loss"), name))
    return row | {name.replace(".", "_", 1): outcome[name] for name in finals}
