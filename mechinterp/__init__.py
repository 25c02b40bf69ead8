"""Mechanistic interpretability of training: when, how and why does a circuit form in a small attention network?

    import mechinterp as mi
    run = mi.train(mi.RunConfig.preset("reddy2023-fast"), "checkpoints/fast.h5")
    table = mi.measure(run)
    print(mi.locate_emergence(table["icl_accuracy"]))

Names are imported when first used, so that `import mechinterp` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechinterp.circuits.trajectory import analyse as analyse
    from mechinterp.config import RunConfig as RunConfig
    from mechinterp.emergence import compare_emergence as compare_emergence
    from mechinterp.emergence import locate_emergence as locate_emergence
    from mechinterp.errors import MechinterpError as MechinterpError
    from mechinterp.measures import Observation as Observation
    from mechinterp.measures import measure as measure
    from mechinterp.measures import register as register
    from mechinterp.randomness import generator as generator
    from mechinterp.report import write_report as write_report
    from mechinterp.store import Run as Run
    from mechinterp.store import open_run as open_run
    from mechinterp.studies.conduct import run_study as run_study
    from mechinterp.studies.study import Study as Study
    from mechinterp.tasks import Batch as Batch
    from mechinterp.tasks import Task as Task
    from mechinterp.training import train as train

_HOME = {
    "analyse": "circuits.trajectory",
    "RunConfig": "config",
    "compare_emergence": "emergence",
    "locate_emergence": "emergence",
    "MechinterpError": "errors",
    "Observation": "measures",
    "measure": "measures",
    "register": "measures",
    "generator": "randomness",
    "write_report": "report",
    "Run": "store",
    "open_run": "store",
    "Study": "studies.study",
    "run_study": "studies.conduct",
    "Batch": "tasks",
    "Task": "tasks",
    "train": "training",
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mechinterp' has no attribute {name!r}")
    return getattr(import_module(f"mechinterp.{_HOME[name]}"), name)
