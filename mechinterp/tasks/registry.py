"""The task of a config, and the config of a task."""

from collections.abc import Callable
from typing import Any, TypeVar

from mechinterp.config import CustomTaskConfig, RunConfig, TaskConfig
from mechinterp.errors import ConfigError
from mechinterp.tasks.base import Task
from mechinterp.torch_state import torch_defaults

TaskClass = TypeVar("TaskClass", bound=type)

_TASKS: dict[type[TaskConfig], type] = {}


def register_task(section: type[TaskConfig]) -> Callable[[TaskClass], TaskClass]:
    """A decorator that makes a class, which is called with a section and a seed, the task of configs with `section`."""

    def register(task_class: TaskClass) -> TaskClass:
        known = _TASKS.get(section)
        if known is not None and _name(known) != _name(task_class):
            raise ConfigError(f"{section.__name__} is the section of {_name(known)} already; derive one of its own")
        _TASKS[section] = task_class
        if task_class.__repr__ is object.__repr__:
            task_class.__repr__ = _described  # pyright: ignore[reportAttributeAccessIssue]
        return task_class

    return register


@torch_defaults()
def build_task(config: RunConfig) -> Task:
    """The task of a run, seeded with the run's seed; ConfigError if it is a user's custom task."""
    if isinstance(config.task, CustomTaskConfig):
        raise ConfigError(
            f"this run was trained on the custom task {config.task.name!r}, which its file does not contain:"
            " give it by open_run(path, task=your_task), or on the command line by --task FILE.py:NAME"
        )
    return _TASKS[type(config.task)](config.task, seed=config.seed)


def config_of_task(task: Any, config: RunConfig) -> RunConfig:
    """The config with the section of `task` if its class is registered, otherwise with a custom one of its shape."""
    section = getattr(task, "config", None)
    task_class = _TASKS.get(type(section)) if isinstance(section, TaskConfig) else None
    if task_class is type(task):
        if task.seed != config.seed:
            raise ConfigError(f"the task's seed is {task.seed}, the config's {config.seed}; make them equal")
    else:
        section = CustomTaskConfig(
            name=type(task).__qualname__,
            d_model=task.d_model,
            n_tokens=getattr(task, "d_vocab", 0),
            n_pos=task.n_pos,
            n_labels=task.n_labels,
        )
    return RunConfig.from_dict({**dict(config), "task": section})


def _described(task: Any) -> str:
    """A task in a line: its shape, and the settings that are not the defaults of its section."""
    tokens = f"{task.n_pos} vectors of {task.d_model} dimensions" if task.d_model else f"{task.n_pos} tokens"
    config, seed = getattr(task, "config", None), getattr(task, "seed", None)
    settings = config.model_dump(exclude_defaults=True, exclude={"kind"}) if isinstance(config, TaskConfig) else {}
    parts = [
        f"{tokens}, {task.n_labels} labels",
        f"evaluation sets: {', '.join(task.evaluations)}",
        ", ".join(f"{name} = {value}" for name, value in settings.items()),
        "" if seed is None else f"seed {seed}",
    ]
    return f"<{type(task).__name__}: {'; '.join(filter(None, parts))}>"


def _name(task_class: type) -> str:
    return f"{task_class.__module__}.{task_class.__qualname__}"
