"""One run of a study, in a process of its own: train or resume it, measure it, locate its transitions.

The job comes as one line of JSON on standard input, which whoever gives it keeps open: when it ends, its giver is gone,
and so goes the worker. What it has written is committed, and the next worker resumes it. A finished run is never
trained again, and a measured one not measured again.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any, TypedDict

import pandas as pd
import torch

from mechinterp.config import RunConfig
from mechinterp.emergence import locate_or_say_why
from mechinterp.errors import BusyError, MechinterpError, RunFileError
from mechinterp.files import plain_json, replace_text
from mechinterp.measures import measure
from mechinterp.store import Run, open_run
from mechinterp.studies.study import DEFAULT_MEASURES
from mechinterp.training import resume, train
from mechinterp.training.interventions import acts_on_activations, noted

GONE = 70
"""Exit code of a worker whose giver is gone."""


class Job(TypedDict):
    """What a worker is given."""

    folder: str
    """Where ``{id}.h5``, ``{id}.csv`` (step × measure) and ``{id}.json`` (the outcome) go."""
    id: str
    config: dict[str, Any]
    measures: list[str]
    """Whose transitions are located."""
    cwd: str
    """The folder that relative paths in the config start from."""


def is_done(job: Job) -> dict[str, Any] | None:
    """The outcome of a job that was done by this version; None if there is none, or its run is not there."""
    folder, id = Path(job["folder"]), job["id"]
    try:
        outcome = json.loads((folder / f"{id}.json").read_text(encoding="utf-8"))
        same = outcome["version"] == version("mechinterp") and {*outcome["transitions"]} >= {*job["measures"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    there = (folder / f"{id}.csv").exists() and (folder / f"{id}.h5").exists()
    return outcome if same and there else None


def do(job: Job) -> dict[str, Any]:
    """Train, measure and locate; the outcome, which is also written. Another study may have done it meanwhile."""
    folder, config = Path(job["folder"]), RunConfig.from_dict(job["config"])
    run = _trained(config, folder / f"{job['id']}.h5")
    if outcome := is_done(job):
        return outcome
    table = measure(run)
    replace_text(folder / f"{job['id']}.csv", table.to_csv())
    finals = {name: float(table[name].iloc[-1]) for name in table if name.endswith(("_accuracy", "_loss"))}
    outcome = {
        "version": version("mechinterp"),
        "steps": run.steps[-1],
        "digest": run.digest(run.steps[-1]),
        "transitions": {
            name: locate_or_say_why(_column(table, name, config)).to_dict()
            for name in dict.fromkeys([*job["measures"], *(each for each in DEFAULT_MEASURES if each in table)])
        },
        "final": finals,
    }
    outcome = plain_json(outcome)
    replace_text(folder / f"{job['id']}.json", json.dumps(outcome))
    return outcome


def _column(table: pd.DataFrame, name: str, config: RunConfig) -> pd.Series:
    """A measure; where nothing is clamped, a clamped one is the released one."""
    return pd.Series(table[name if acts_on_activations(config) else name.removeprefix("clamped_")])


def _trained(config: RunConfig, path: Path) -> Run:
    """The complete run: as it is, resumed, or trained anew. While another process writes it, this one waits."""
    while True:
        try:
            if not path.exists():
                try:
                    return train(config, path, progress=False)
                except RunFileError:
                    if not path.exists():
                        raise
                    continue  # another study has begun it meanwhile
            run = open_run(path)
            if run.config != noted(config):
                raise MechinterpError(f"{path}: holds another run than its name says; delete it")
            if run.status == "diverged":
                raise MechinterpError(f"{path}: the run diverged; lower training.learning_rate")
            return run if run.status == "complete" else resume(path, progress=False)
        except BusyError:
            time.sleep(0.5)


def _leave_with_giver() -> None:
    sys.stdin.read()
    os._exit(GONE)


def main() -> int:
    """Do the job on standard input; exit code 2 and one line on standard error if it cannot be done."""
    job = json.loads(sys.stdin.readline())
    Thread(target=_leave_with_giver, daemon=True).start()
    torch.set_num_threads(1)
    try:
        do(job)
    except MechinterpError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the thread that waits for the giver's end would keep the interpreter from ending
