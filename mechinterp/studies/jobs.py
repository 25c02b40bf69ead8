"""What a worker is given to do: one run of a study."""

import os
from pathlib import Path
from typing import Any, TypedDict

from mechinterp.studies.study import Keep, Study, StudyRun


class Job(TypedDict):
    """What a worker is given."""

    folder: str
    """Where ``{id}.h5``, ``{id}.csv`` (step × measure) and ``{id}.json`` (the outcome) go."""
    id: str
    config: dict[str, Any]
    measures: list[str]
    """Whose transitions are located."""
    keep: Keep
    """Which checkpoints are kept when it is done."""
    cwd: str
    """The folder that relative paths in the config start from."""


def jobs_of(study: Study, folder: Path) -> list[tuple[StudyRun, Job]]:
    """Every run of a study with its job."""
    where, cwd = str(folder.resolve()), os.getcwd()
    return [
        (
            each,
            Job(
                folder=where,
                id=each.id,
                config=each.config.model_dump(mode="json"),
                measures=list(study.measures),
                keep=study.keep,
                cwd=cwd,
            ),
        )
        for each in study.runs
    ]
