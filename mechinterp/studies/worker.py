"""A process that executes runs of a study, one after another: train or resume, measure, locate the transitions.

A request is a line of JSON on standard input; its answer is a line of JSON on standard output, ``{"error": null or a
message, …}``. The process that sends requests keeps standard input open. When the input is closed, that process has
ended, and the worker exits: its checkpoints are committed, and the next worker resumes the run. A finished run is not
trained again, and a measured one is not measured again.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import pandas as pd
import torch

from mechinterp.config import RunConfig
from mechinterp.emergence import locate_all
from mechinterp.errors import BusyError, DivergedError, MechinterpError
from mechinterp.files import FileLock, discard
from mechinterp.interventions.forward import forward_interventions
from mechinterp.interventions.parameters import pin_graft_digests
from mechinterp.measures import columns_for, measure
from mechinterp.models.registry import initial_parameters
from mechinterp.run import Run, open_run
from mechinterp.store import keep_last, lock_run_file
from mechinterp.studies import WORKER_GONE
from mechinterp.studies.jobs import Job
from mechinterp.studies.results import done, file_of, recorded, write_outcome
from mechinterp.studies.study import DEFAULT_MEASURES
from mechinterp.studies.tables import read_table, write_table
from mechinterp.tasks import build_task
from mechinterp.training.engines import Device, build_engine, require_device
from mechinterp.training.loop import TrainingRun, steps_of
from mechinterp.training.prefetch import limit_cores
from mechinterp.training.runs import resume, train, train_batched
from mechinterp.training.spikes import spikes_of

_TIMED_STEPS = 40
_IMPORTED = time.process_time()
"""Seconds of the processor that the start of this process has taken, with its imports."""


def do(job: Job, before: tuple[int, float] = (0, 0.0)) -> dict[str, Any]:
    """The outcome of a job, which is also recorded: its run is trained, measured, and its transitions are located.

    Another study may have executed the same run meanwhile. `before` is the number of steps for which the run was just
    trained in a batch with others, and the seconds that they took.
    """
    config, path, started = RunConfig.from_dict(job["config"]), file_of(job, ".h5"), time.monotonic()
    run, n_trained = _trained(config, path, job["device"])
    trained = time.monotonic()
    with _lock(path) as lock:  # other studies' workers, which may keep other checkpoints, wait
        if outcome := done(job):
            return outcome
        if path.exists():  # else another worker has just deleted it, as below
            run, earlier = open_run(path), recorded(job) or {}  # of a study that asked for other measures, or kept less
            kept_table = earlier.get("table")
            table, n_measured, table_digest = _table(run, file_of(job, ".csv"), kept_table, job["keep"] == "all")
            if run.steps[0] > 0 and (table is None or job["keep"] == "all"):
                path.unlink()  # the checkpoints that the job needs were deleted: train anew
                if run.side_file:
                    discard(run.dense_path)
            else:
                assert table is not None
                kept = "all" if run.steps[0] == 0 and earlier.get("kept") == "all" else job["keep"]
                cost = dict(earlier.get("cost", {}))
                if n_trained + before[0]:
                    cost |= {
                        "steps": n_trained + before[0],
                        "training_seconds": round(before[1] + trained - started, 3),
                    }
                if n_measured:
                    cost |= {"checkpoints": n_measured, "checkpoint_bytes": path.stat().st_size // n_measured}
                    if n_trained + before[0] or "measuring_seconds" not in cost:  # else the measures may have been kept
                        cost |= {"measuring_seconds": round(time.monotonic() - trained, 3)}
                outcome = {"version": version("mechinterp"), "kept": kept, "table": table_digest, "cost": cost}
                outcome = write_outcome(job, outcome | _results(run, table, job, earlier.get("transitions", {})))
                if kept == "last":  # after the table and the outcome are safe
                    keep_last(path, lock)
                return outcome
    return do(job)


def _results(run: Run, table: pd.DataFrame, job: Job, earlier: Iterable[str]) -> dict[str, Any]:
    """What a run's table of measures tells: transitions, those of `earlier` measures too, and final values."""
    finals = {name: float(table[name].iloc[-1]) for name in table if name.endswith(("_accuracy", "_loss"))}
    if not any(intervention.is_on(run.steps[-1]) for intervention in forward_interventions(run.config)):
        finals = {name: value for name, value in finals.items() if not name.startswith("clamped_")}
    names = [*job["measures"], *(name for name in DEFAULT_MEASURES if name in table), *earlier]
    columns = {name: _column(table, name, run.config) for name in dict.fromkeys(names)}
    transitions = {name: emergence.to_dict() for name, emergence in locate_all(columns).items()}
    last, spikes = run.steps[-1], spikes_of(table)
    results = {"steps": last, "digest": run.digest(last), "transitions": transitions, "final": finals}
    return results | ({"first_spike": spikes.first} if spikes else {})


def _lock(path: Path) -> FileLock:
    """The right to write a run file; waits for it."""
    while True:
        try:
            return lock_run_file(path)
        except BusyError:
            time.sleep(0.5)


def _table(run: Run, path: Path, digest: str | None, keep: bool) -> tuple[pd.DataFrame | None, int, str]:
    """The measures of a run, step × measure, of how many checkpoints they are, and the SHA-256 of the file.

    Of a run whose last checkpoint alone is kept, the table was written before, and had that digest; None if it is
    missing, changed or out of date. With `keep`, the measures are also kept beside the run, for other commands.
    """
    if run.steps[0] == 0:
        table = measure(run, keep=keep)
        return table, len(table), write_table(path, table)
    table = read_table(path, digest)
    current = table is not None and table.index[-1:].tolist() == run.steps[-1:]
    return (table if current else None), 0, digest or ""


def do_together(jobs: list[Job]) -> dict[str, str]:
    """The errors, by id, of several jobs whose runs are trained in one batch."""
    waiting = [job for job in jobs if not done(job)]
    paths = [file_of(job, ".h5") for job in waiting]
    steps = [_last_step(path) for path in paths]
    started = time.monotonic()
    with suppress(MechinterpError):  # what is left to do is done singly below, and its errors are raised there
        train_batched([RunConfig.from_dict(job["config"]) for job in waiting], paths, device=jobs[0]["device"])
    n_trained = [_last_step(path) - step for path, step in zip(paths, steps, strict=True)]
    seconds_per_step = (time.monotonic() - started) / max(sum(n_trained), 1)
    errors = {}
    for job, n in zip(waiting, n_trained, strict=True):
        try:
            do(job, (n, n * seconds_per_step))
        except MechinterpError as error:
            errors[job["id"]] = " ".join(str(error).split())
    return errors


def _last_step(path: Path) -> int:
    """The last step of a run file; 0 if there is no readable file."""
    try:
        return open_run(path).file.steps[-1] if path.exists() else 0
    except MechinterpError:
        return 0


def check(config: dict[str, Any], measures: list[str], device: Device) -> None:
    """Raise MechinterpError if a variant cannot be trained on a device, or measured by workers."""
    require_device(device)
    checked = pin_graft_digests(RunConfig.from_dict(config))
    names = [name.removeprefix("clamped_") for name in measures]
    columns_for(build_task(checked), checked.model, names)


def clock(config: dict[str, Any]) -> dict[str, Any]:
    """The cost of a run of this config on this machine: seconds a step, seconds and bytes a checkpoint.

    ``start`` is what comes before: the processor's time of this process so far and until its first step and measures.
    Interventions on activations are on in the trial, whenever they start in the run: a step under them costs more, and
    measures are taken twice. ``engine`` is the one that trains.
    """
    configured = RunConfig.from_dict(config)
    forward = [rule.model_copy(update={"start": 0, "stop": None}) for rule in forward_interventions(configured)]
    acting = {"interventions": [rule.model_dump() for rule in forward]}
    timed, before = configured.updated(acting), time.process_time()
    engine, task = build_engine(timed, initial_parameters(timed)), build_task(timed)
    last, times = min(_TIMED_STEPS, timed.training.steps), [time.monotonic()]
    for _ in steps_of(engine, TrainingRun(timed, task, engine.parameters, 0, last)):
        times.append(time.monotonic())
    half = last // 2  # the steps before it load what is compiled
    with TemporaryDirectory() as folder:
        started = time.monotonic()
        brief = timed.updated({"training.steps": 0, "training.warmup_steps": 0, "checkpoints.at": []})
        run = train(brief, Path(folder) / "run.h5", progress=False)
        written = time.monotonic() - started
        measure(run, keep=False)  # compilation and caches
        first, started = time.process_time(), time.monotonic()
        measure(run, keep=False)
        seconds = time.monotonic() - started
        return {
            "checkpoint": seconds,
            "written": written,
            "step": (times[-1] - times[half]) / max(last - half, 1),
            "checkpoint_bytes": float(run.path.stat().st_size),
            "start": _IMPORTED + max(0.0, first - before - seconds),
            "engine": engine.name,
        }


def _column(table: pd.DataFrame, name: str, config: RunConfig) -> pd.Series:
    """A column of a run's measures; without interventions, a clamped measure equals the unclamped one."""
    return pd.Series(table[name if forward_interventions(config) else name.removeprefix("clamped_")])


def _trained(config: RunConfig, path: Path, device: Device) -> tuple[Run, int]:
    """The complete run, trained or resumed where needed, and the number of steps that this took.

    Waits while another process writes the run. An error counts only if no other process has begun, replaced or deleted
    the file meanwhile; otherwise the file is looked at again.
    """
    while True:
        before = _stamp(path)
        try:
            if before is None:
                run = train(config, path, device=device, progress=False)
                return run, run.steps[-1]
            run = open_run(path)
            if run.config != pin_graft_digests(config):
                raise MechinterpError(f"{path}: holds another run than its name says; delete it")
            if run.status == "diverged":
                raise DivergedError(f"{path}: the run diverged; lower training.learning_rate")
            if run.status == "complete":
                return run, 0
            last = run.steps[-1]
            run = resume(path, progress=False)
            return run, run.steps[-1] - last
        except BusyError:
            time.sleep(0.5)
        except DivergedError:
            raise
        except MechinterpError:
            if _stamp(path) == before:
                raise


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that was written later; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _go_to(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise MechinterpError(
            f"{folder}: the folder that the study was started in is not here ({error.strerror}); start it in one that"
            " all machines share"
        ) from None


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    limit_cores((os.cpu_count() or 1) if request.get("device") == "cuda" else 1)  # on the CPU, a worker for each core
    try:
        _go_to(request["cwd"])
        match request["what"]:
            case "do":
                do(request["job"])
                return {"error": None}
            case "do together":
                return {"error": None, "errors": do_together(request["jobs"])}
            case "check":
                check(request["config"], request["measures"], request["device"])
                return {"error": None}
            case _:
                return {"error": None, **clock(request["config"])}
    except MechinterpError as error:
        return {"error": " ".join(str(error).split()), "output": ""}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0], "output": traceback.format_exc()}


def _listen(requests: SimpleQueue) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(WORKER_GONE)


def main() -> None:
    """Answer requests until standard input is closed."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # other text that is printed goes to standard error
        requests: SimpleQueue[dict[str, Any]] = SimpleQueue()
        Thread(target=_listen, args=(requests,), daemon=True).start()
        while True:
            print(json.dumps(_answer(requests.get())), file=answers, flush=True)


if __name__ == "__main__":
    main()
