"""Mechanistic interpretability of training: when, how and why does a circuit form in a small attention network?

    import mechinterp as mi
    run = mi.train(mi.RunConfig.preset("reddy2023-fast"), "checkpoints/fast.h5")
    table = mi.measure(run)
    print(mi.locate_emergence(table["icl_accuracy"]))

The public names are listed once, below, and imported when they are first used: `import mechinterp` costs nothing.
"""

import ast
from importlib import import_module
from pathlib import Path
from sys import modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechinterp import figures as figures
    from mechinterp.analysis.checkpoints import analyse as analyse
    from mechinterp.analysis.head_matching import head_curves as head_curves
    from mechinterp.analysis.head_matching import match_heads as match_heads
    from mechinterp.analysis.sufficiency import circuit_sufficiency as circuit_sufficiency
    from mechinterp.causes.audit import causal_audit as causal_audit
    from mechinterp.causes.verdicts import audit_roles as audit_roles
    from mechinterp.circuits.ablation import ablate as ablate
    from mechinterp.circuits.circuit_pass import run_circuit as run_circuit
    from mechinterp.circuits.faithfulness import faithfulness_curve as faithfulness_curve
    from mechinterp.circuits.faithfulness import find_circuit as find_circuit
    from mechinterp.circuits.graph import circuit_graph as circuit_graph
    from mechinterp.circuits.head_matching import role_redundancy as role_redundancy
    from mechinterp.circuits.metrics import Metric as Metric
    from mechinterp.circuits.patching import Direction as Direction
    from mechinterp.circuits.patching import Site as Site
    from mechinterp.circuits.patching import patch as patch
    from mechinterp.circuits.paths import patch_paths as patch_paths
    from mechinterp.comparison.formation import locate_formation as locate_formation
    from mechinterp.comparison.interpolation import interpolate as interpolate
    from mechinterp.comparison.transplants import transplant as transplant
    from mechinterp.config import RunConfig as RunConfig
    from mechinterp.emergence import compare_emergence as compare_emergence
    from mechinterp.emergence import emergence_table as emergence_table
    from mechinterp.emergence import locate_emergence as locate_emergence
    from mechinterp.errors import MechinterpError as MechinterpError
    from mechinterp.exchange.importer import import_checkpoints as import_checkpoints
    from mechinterp.exchange.recorder import Recorder as Recorder
    from mechinterp.exchange.recorder import Schedule as Schedule
    from mechinterp.exchange.recorder import record as record
    from mechinterp.exchange.tables import write_table as write_table
    from mechinterp.geometry.llc import local_learning_coefficient as local_learning_coefficient
    from mechinterp.geometry.over_training import training_geometry as training_geometry
    from mechinterp.measures import Observation as Observation
    from mechinterp.measures import Requirement as Requirement
    from mechinterp.measures import measure as measure
    from mechinterp.measures import register as register
    from mechinterp.measures import unregister as unregister
    from mechinterp.measures.functions import linear_cka as linear_cka
    from mechinterp.measures.functions import loss_barrier as loss_barrier
    from mechinterp.measures.functions import weight_drift as weight_drift
    from mechinterp.measures.manipulations import Manipulations as Manipulations
    from mechinterp.measures.manipulations import manipulation as manipulation
    from mechinterp.models.network import Network as Network
    from mechinterp.randomness import generator as generator
    from mechinterp.report import write_report as write_report
    from mechinterp.run import Run as Run
    from mechinterp.run import open_run as open_run
    from mechinterp.run import replay as replay
    from mechinterp.studies.runner import run_study as run_study
    from mechinterp.studies.study import Study as Study
    from mechinterp.tasks import Batch as Batch
    from mechinterp.tasks import Task as Task
    from mechinterp.tasks import build_task as build_task
    from mechinterp.tasks.corruption import corrupted_pairs as corrupted_pairs
    from mechinterp.training.runs import resume as resume
    from mechinterp.training.runs import train as train
    from mechinterp.verification import verify as verify

    __version__: str

_MODULE_OF = {
    name.name: node.module
    for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mechinterp"
    for name in node.names
}
"""Where the names above are defined; the package itself for those that are modules of it."""
__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mechinterp")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'mechinterp' has no attribute {name!r}", name=name, obj=modules[__name__])
    home = _MODULE_OF[name]
    return import_module(f"{home}.{name}") if home == __name__ else getattr(import_module(home), name)
