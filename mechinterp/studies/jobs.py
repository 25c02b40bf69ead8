"""What a worker is given to do: one run of a study."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from mechinterp.config import RunConfig
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
    device: Literal["cpu", "cuda"]
    """Where it is trained, "cpu" or "cuda"."""
    cwd: str
    """The folder that relative paths in the config start from."""


def jobs_of(study: Study, folder: Path, device: Literal["cpu", "cuda"] = "cpu") -> list[tuple[StudyRun, Job]]:
    """Every run of a study with its job."""
    where, cwd = str(folder.resolve()), os.getcwd()
    variants = {each.variant: each.config for each in study.runs}
    values = {variant: config.model_dump(mode="json") for variant, config in variants.items()}
    return [
        (
            each,
            Job(
                folder=where,
                id=each.id,
                config=values[each.variant] | {"seed": each.seed},
                measures=list(study.measures),
                keep=study.keep,
                device=device,
                cwd=cwd,
            ),
        )
        for each in study.runs
    ]


def distinct_jobs(study: Study, folder: Path, device: Literal["cpu", "cuda"] = "cpu") -> list[tuple[StudyRun, Job]]:
    """The same, each run once: variants of equal configs are one run."""
    return list({job["id"]: (each, job) for each, job in jobs_of(study, folder, device)}.values())


def grouped(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """The jobs in groups of up to `size` that can be trained in one batch; those with interventions stay alone."""
    alone = [[job] for job in jobs if size == 1 or job["config"]["interventions"]]
    kinds: dict[str, list[Job]] = {}
    for job in jobs:
        if size > 1 and not job["config"]["interventions"]:
            kinds.setdefault(kind_of(RunConfig.from_dict(job["config"])), []).append(job)
    return alone + [same[i : i + size] for same in kinds.values() for i in range(0, len(same), size)]


def kind_of(config: RunConfig) -> str:
    """What a step's time depends on: the network, the shape of sequences, how many there are, and interventions."""
    values = config.model_dump(mode="json")
    task = [values["task"].get(name) for name in ("n_pairs", "n_labels", "content_dim", "position_dim", "n_pos")]
    acting = [(each["kind"], each.get("layer")) for each in values["interventions"]]
    return json.dumps([task, values["model"], config.training.batch_size, acting])
