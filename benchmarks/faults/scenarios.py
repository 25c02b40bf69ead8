"""What the processes of the fault tests do with a run file; each function is one scenario.

They use names that version 0.4.0 has, too, so that its files can be put through the same faults.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

import mechinterp as mi
from mechinterp.store.writer import RunWriter

try:
    from mechinterp.training.runs import resume as go_on
except ImportError:  # version 0.4.0
    from mechinterp.training.trainer import resume as go_on  # pyright: ignore[reportAttributeAccessIssue]

Acknowledge = Callable[[int, str], None]

CONFIG = mi.RunConfig().updated(
    {
        "task.n_classes": 8,
        "task.n_labels": 4,
        "task.n_pairs": 3,
        "task.content_dim": 11,
        "task.position_dim": 13,
        "task.n_novel_classes": 8,
        "model.classifier_width": 19,
        "model.classifier_depth": 2,
        "training.batch_size": 16,
        "training.steps": 40,
        "checkpoints.every": 2,
    }
)
"""A network of 22 kB, saved 21 times."""
STOPPED = CONFIG.updated({"training.steps": 400, "training.stop_accuracy": 0.999})
"""Room for 64 checkpoints is made first, so the file grows on the way."""
TIMED_OUT = 80


def digest(weights: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a checkpoint of 32-bit floats (hexadecimal), as run files have it."""
    sha = hashlib.sha256()
    for name, value in weights.items():
        sha.update(f"{name}{tuple(value.shape)}".encode() + value.numpy().tobytes())
    return sha.hexdigest()


def warm_up() -> None:
    """Import and compile everything, so that children need not."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run = mi.train(CONFIG, Path(folder) / "run.h5", progress=False)
        run.densify(start=3, stop=9, every=1)
        mi.measure(run)


def train(path: Path, acknowledge: Acknowledge) -> None:
    """Train a run."""
    _acknowledging(acknowledge)
    mi.train(CONFIG, path, progress=False)


def grow(path: Path, acknowledge: Acknowledge) -> None:
    """Train a run whose file has to grow, and becomes shorter at its end."""
    _acknowledging(acknowledge)
    mi.train(STOPPED, path, progress=False)


def resume(path: Path, acknowledge: Acknowledge) -> None:
    """Go on with a run from where it is to step 40, or beyond it."""
    _acknowledging(acknowledge)
    last = mi.open_run(path).steps[-1]
    go_on(path, until=40 if last < 40 else max(TIMED_OUT, last + 2), progress=False)


def train_and_prolong(path: Path, acknowledge: Acknowledge) -> None:
    """Train a run to its end, and then beyond it."""
    train(path, acknowledge)
    go_on(path, until=TIMED_OUT, progress=False)


def overwrite(path: Path, acknowledge: Acknowledge) -> None:
    """Train another run in the place of one."""
    _acknowledging(acknowledge)
    mi.train(CONFIG.updated({"seed": 1}), path, overwrite=True, progress=False)


def densify(path: Path, acknowledge: Acknowledge) -> None:
    """Rebuild steps into the side file."""
    mi.open_run(path).densify(start=3, stop=9, every=1)


def keep_last(path: Path, acknowledge: Acknowledge) -> None:
    """Delete all checkpoints but the last."""
    from mechinterp.store.writer import keep_last

    keep_last(path)


def analyse(path: Path, acknowledge: Acknowledge) -> None:
    """Fill the cache of an analysis."""
    mi.analyse(mi.open_run(path), "ablate", steps=[0, 40], n_sequences=10)


def export(path: Path, acknowledge: Acknowledge) -> None:
    """Write a table."""
    from mechinterp.files import replace_text

    replace_text(path.with_suffix(".csv"), mi.open_run(path).metrics.to_csv())


def prepare(scenario: str, path: Path, trained: Path) -> None:
    """Put there what a scenario starts from: nothing, or a copy of a run trained to step 40."""
    if scenario not in ("train", "grow", "train_and_prolong"):
        shutil.copy(trained, path)


def _acknowledging(acknowledge: Acknowledge) -> None:
    """Acknowledge every checkpoint when `append` has returned."""
    original = RunWriter.append

    def append(self, step, parameters, *arguments, **named):
        original(self, step, parameters, *arguments, **named)
        acknowledge(step, "")

    RunWriter.append = append
