"""Jobs: the runs of a study as JSON values, which workers read."""

import json
import os
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, Literal, TypedDict

from mechinterp.config import RunConfig, TransformerConfig
from mechinterp.studies.study import Keep, Study, StudyRun

MOST_WORK = 10_000_000
"""The multiplications of a step up to which runs are trained in one batch on the CPU (`benchmarks.batch`)."""


class Job(TypedDict):
    """One run of a study, as JSON values."""

    folder: str
    """Where ``{id}.h5``, ``{id}.csv`` (step × measure) and ``{id}.json`` (the outcome) go."""
    id: str
    config: dict[str, Any]
    measures: list[str]
    """Measures whose transitions are located."""
    keep: Keep
    """The checkpoints that are kept of the completed run."""
    device: Literal["cpu", "cuda"]
    """Where the run is trained."""
    cwd: str
    """The folder that relative paths in the config start from."""


def jobs_of(study: Study, folder: Path, device: Literal["cpu", "cuda"] = "cpu") -> list[tuple[StudyRun, Job]]:
    """Every run of a study with its job."""
    shared: Any = {"folder": str(folder.resolve()), "keep": study.keep, "device": device, "cwd": os.getcwd()}
    configs = {run.variant: run.config for run in study.runs}
    values = {variant: config.model_dump(mode="json") for variant, config in configs.items()}
    return [
        (run, Job(id=run.id, config=values[run.variant] | {"seed": run.seed}, measures=list(study.measures), **shared))
        for run in study.runs
    ]


def distinct_jobs(study: Study, folder: Path, device: Literal["cpu", "cuda"] = "cpu") -> list[tuple[StudyRun, Job]]:
    """Every run of a study with its job, once: variants of equal configs are one run."""
    return list({job["id"]: (run, job) for run, job in jobs_of(study, folder, device)}.values())


def grouped(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Groups of up to `size` jobs that are trained in one batch.

    A run that changes the forward pass is alone, and on the CPU one that is no faster in a batch (`faster_together`).
    """
    single: list[list[Job]] = []
    by_signature: dict[str, list[Job]] = {}
    for job in jobs:
        if size == 1 or any(each["kind"] not in ("fix", "freeze") for each in job["config"]["interventions"]):
            single.append([job])
            continue
        config = RunConfig.from_dict(job["config"])
        if job["device"] == "cpu" and not faster_together(config):
            single.append([job])
        else:
            by_signature.setdefault(step_signature(config), []).append(job)
    return single + [group[i : i + size] for group in by_signature.values() for i in range(0, len(group), size)]


def step_signature(config: RunConfig) -> str:
    """Text that is equal for runs with the same network, batch shape and interventions: their steps take equal time.

    Runs of equal signatures have parameters and batches of the same shapes.
    """
    from mechinterp.models.registry import parameter_shapes  # imports torch

    task = config.task
    return json.dumps(
        [
            parameter_shapes(config),
            config.model.model_dump(mode="json"),
            [task.kind, task.n_pos, task.d_model, task.content_width, task.n_labels],
            config.training.batch_size,
            [(intervention.kind, getattr(intervention, "layer", None)) for intervention in config.interventions],
        ]
    )


def faster_together(config: RunConfig) -> bool:
    """Whether eight runs of a config take less time in one batch than one after the other, on one core of the CPU.

    They do where no faster engine than autograd trains the run alone, and a step is so small (`work_of_a_step`) that
    most of it is not arithmetic: `python -m benchmarks.batch`.
    """
    from mechinterp.training.engines import ENGINES, AutogradEngine  # imports torch

    fastest = next(engine for engine in ENGINES if engine.supports(config, "cpu"))
    return fastest is AutogradEngine and work_of_a_step(config) <= MOST_WORK


def work_of_a_step(config: RunConfig) -> int:
    """Multiplications of a forward pass on a training batch: of all weights but tables, and of attention.

    batch · T · (Σ weights + 2 layers · T · D)
    """
    from mechinterp.models.registry import parameter_shapes  # imports torch

    task, model = config.task, config.model
    shapes = parameter_shapes(config).items()
    weights = sum(prod(shape) for name, shape in shapes if not name.endswith(("W_E", "W_pos")))
    width = model.width(task) if isinstance(model, TransformerConfig) else task.d_model
    attention = 2 * model.n_layers * task.n_pos * width
    return config.training.batch_size * task.n_pos * (weights + attention)
