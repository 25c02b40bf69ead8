"""What tests of studies compare: the bits of runs, and which files were written."""

from pathlib import Path

import mechinterp as mi
from mechinterp.studies.study import Study
from tests.store.survival_children import one_thread


def straight(study: Study, folder: Path) -> dict[str, str]:
    """The digests of a study's runs, each trained here on one thread."""
    with one_thread():
        runs = {run.id: mi.train(run.config, folder / f"{run.id}.h5", progress=False) for run in study.runs}
    return {id: run.digest(run.steps[-1]) for id, run in runs.items()}


def digests(study: Study, folder: Path) -> dict[str, str]:
    runs = {run.id: mi.open_run(folder / f"{run.id}.h5") for run in study.runs}
    assert all(run.status == "complete" for run in runs.values())
    return {id: run.digest(run.steps[-1]) for id, run in runs.items()}


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix in (".h5", ".csv", ".json")}
