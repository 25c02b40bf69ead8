"""A task of one's own for a command, from a file of Python that the user names."""

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import tyro

from mechinterp.errors import MechinterpError, unknown_name

OwnTask = Annotated[
    str | None,
    tyro.conf.arg(metavar="FILE.py:NAME", help="Of a run on a task of your own: the file and the task or its class."),
]


def own_task(given: str | None) -> Any:
    """The object of ``FILE.py:NAME``, or an instance of it, if it is a class; None for None. The file is executed."""
    if given is None:
        return None
    file, _, name = given.rpartition(":")
    from mechinterp.tasks.base import require_task  # imports torch

    path = Path(file)
    if not file or not name.isidentifier() or path.suffix != ".py":
        raise MechinterpError(f"--task {given}: expected FILE.py:NAME, such as my_task.py:FirstTokenTask")
    if not path.is_file():
        raise MechinterpError(f"--task {given}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, name):
            tasks = [each for each, value in vars(module).items() if hasattr(value, "train_batch")]
            raise MechinterpError(f"--task {given}: {path}: {unknown_name('task', name, tasks)}")
        found = getattr(module, name)
        task = found() if isinstance(found, type) else found
        require_task(task)
        return task
    except MechinterpError:
        raise
    except Exception as error:  # the user's code raises errors of its own
        raise MechinterpError(f"--task {given}: {path} raises {type(error).__name__}: {str(error)[:200]}") from None
