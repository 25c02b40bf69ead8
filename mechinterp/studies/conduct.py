"""Carry a study out on any `concurrent.futures.Executor`: one process per run.

A run computes on one thread, and another draws its batches ahead. It is done once, whatever happens: what is finished
is found by its id, what was interrupted is resumed to the same bits, and what failed is recorded and left until a retry
is asked for. So the same study gives the same bits on one worker, on several, and on a cluster.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from mechinterp.errors import MechinterpError
from mechinterp.files import make_folder, replace_text
from mechinterp.measures import columns_for
from mechinterp.studies.study import Study, StudyRun
from mechinterp.studies.worker import GONE, Job, is_done
from mechinterp.training.interventions import noted

_CHILDREN: set[subprocess.Popen] = set()
_STOPPING = threading.Event()
_LOCATED = ("transition", "step", "low", "high", "width", "before", "after")
_COLUMNS = ("variant", "seed", "run", "status", "error", *_LOCATED)
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def run_study(
    study: Study,
    folder: str | Path = "checkpoints/studies",
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    retry: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Do every run of a study that is not done yet; returns its table, one row per run (`study_table`).

    Runs go to `folder`, by id; studies may share one. By default `workers` processes work on this machine (as many as
    there are cores), else the given `executor` does, which may be a cluster's; whoever made it shuts it down. A run
    that failed before is tried again with `retry` only. Everything is validated before anything starts.
    """
    if workers is not None and workers < 1:
        raise MechinterpError(f"workers is {workers}; at least one is needed")
    jobs = _jobs(study, Path(folder))
    make_folder(Path(folder))
    todo = {id: job for id, job in jobs.items() if not is_done(job) and (retry or not _failure_path(job).exists())}
    pool = executor or ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="study")
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="run", disable=None if progress else True)
    lost: list[BaseException] = []
    _STOPPING.clear()
    futures = [pool.submit(carry_out, job) for job in todo.values()]
    try:
        for future in as_completed(futures):
            if error := future.exception():
                lost.append(error)
            bar.update()
    except BaseException:
        _stop(futures)
        raise
    finally:
        bar.close()
        if executor is None:
            pool.shutdown(cancel_futures=True)
    if lost:
        raise MechinterpError(
            f"study {study.name}: {len(lost)} runs were lost with their workers ({type(lost[0]).__name__}: {lost[0]});"
            " carry it out again: what is finished is kept, and the others are resumed"
        )
    return study_table(study, folder)


def carry_out(job: Job) -> str | None:
    """Do one job in a process of its own; what went wrong, which is also recorded, or None.

    This is what an executor's worker calls. Should that worker be killed, the process ends with it. A process that is
    told to end has not failed: nothing is recorded, and the next one resumes its run.
    """
    if _STOPPING.is_set():
        return "the study was stopped"
    failure = _failure_path(job)
    failure.unlink(missing_ok=True)
    with subprocess.Popen(
        [sys.executable, "-m", "mechinterp.studies.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | _ONE_THREAD,
        cwd=job["cwd"],
    ) as process:
        _CHILDREN.add(process)
        try:
            assert process.stdin is not None
            assert process.stderr is not None
            with suppress(BrokenPipeError):  # it has ended already, and says why
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
            said, code = process.stderr.read(), process.wait()
        finally:
            process.kill()
            _CHILDREN.discard(process)
    if code == 0:
        failure.unlink(missing_ok=True)
        return None
    if code in (GONE, 130, -signal.SIGTERM, -signal.SIGINT):
        return "its process was told to end"
    if code < 0:
        why = f"its process was ended by signal {-code}"
    else:
        why = said.strip().splitlines()[-1] if said.strip() else f"its process ended with exit code {code}"
    replace_text(failure, json.dumps({"error": why, "output": said[-10_000:]}))
    return why


def study_table(study: Study, folder: str | Path = "checkpoints/studies") -> pd.DataFrame:
    """What is known of a study's runs, one row per variant and seed.

    Columns: ``variant``, ``seed``, ``run`` (its id), ``status`` (done, failed, or not done), ``error``; of the main
    measure ``transition``, ``step``, ``low``, ``high``, ``width``, ``before``, ``after``; of every other measure m its
    ``{m}_step`` and ``{m}_lag`` (its step minus the main one's; negative: earlier); and accuracies and losses at the
    end, released (``final_icl_accuracy``, …) and, under interventions, clamped (``final_clamped_icl_accuracy``, …).
    """
    rows = [_row(each, job, study) for each, job in _runs_and_jobs(study, Path(folder))]
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


def measured(study: Study, folder: str | Path = "checkpoints/studies") -> dict[tuple[str, int], pd.DataFrame]:
    """The progress measures of every run that is done, step × measure, by variant and seed."""
    return {
        (each.variant, each.seed): pd.read_csv(Path(folder) / f"{job['id']}.csv", index_col="step")
        for each, job in _runs_and_jobs(study, Path(folder))
        if is_done(job)
    }


def _runs_and_jobs(study: Study, folder: Path) -> list[tuple[StudyRun, Job]]:
    """Every run with its job. What is grafted is part of a run, so its weights' digest is part of the id."""
    runs = [replace(each, config=noted(each.config)) for each in study.runs]
    return [
        (
            each,
            Job(
                folder=str(folder.resolve()),
                id=each.id,
                config=each.config.model_dump(mode="json"),
                measures=list(study.measures),
                cwd=os.getcwd(),
            ),
        )
        for each in runs
    ]


def _jobs(study: Study, folder: Path) -> dict[str, Job]:
    """The jobs by id, validated: equal configs are one run."""
    for each in study.runs:
        try:
            if each.config.task.kind == "custom":
                raise MechinterpError(
                    "its task is your own, which a worker cannot make from a config; train it in Python"
                )
            noted(each.config)
            names = [name.removeprefix("clamped_") for name in study.measures]
            for column in columns_for(each.config.build_task(), each.config.model.n_layers, names):
                if not column.measure.compute.__module__.startswith("mechinterp."):
                    raise MechinterpError(
                        f"workers do not know your measure {column.name!r}; take it afterwards, with mi.measure"
                    )
        except MechinterpError as error:
            raise MechinterpError(f"study {study.name}: variant {each.variant!r}: {error}") from None
    return {job["id"]: job for _, job in _runs_and_jobs(study, folder)}


def _row(run: StudyRun, job: Job, study: Study) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": run.variant, "seed": run.seed, "run": job["id"]}
    outcome = is_done(job)
    if outcome is None:
        failed = _failure_path(job)
        error = json.loads(failed.read_text(encoding="utf-8"))["error"] if failed.exists() else None
        return row | {"status": "failed" if error else "not done", "error": error}
    main, *others = study.measures
    transitions: Mapping[str, Mapping[str, Any]] = outcome["transitions"]
    row |= {"status": "done", "error": None}
    row |= {name: transitions[main][name] for name in _LOCATED}
    for name in others:
        step = transitions[name]["step"]
        row[f"{name}_step"] = step
        row[f"{name}_lag"] = None if step is None or row["step"] is None else step - row["step"]
    return row | {f"final_{name}": value for name, value in outcome["final"].items()}


def _failure_path(job: Job) -> Path:
    return Path(job["folder"]) / f"{job['id']}.failed.json"


def _stop(futures: Iterable[Future]) -> None:
    """No further run is begun here, and those that run here end; what they have written is kept."""
    _STOPPING.set()
    for future in futures:
        future.cancel()
    for process in list(_CHILDREN):
        process.terminate()
