"""A trajectory: a run file and its side file, read as one.

The side file (``fast.dense.h5`` beside ``fast.h5``) has steps that were rebuilt between the saved ones.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mechinterp.errors import MechinterpError, RunFileError, UnknownNameError, require_integer
from mechinterp.store.file import RunFile

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from mechinterp.config import RunConfig
    from mechinterp.store.layout import Origin

ENDS = {"first": 0, "last": -1}
"""Steps that have a name, by their place among the stored ones."""


def dense_path(path: Path) -> Path:
    """The path of a run's side file of rebuilt steps: fast.dense.h5 beside fast.h5."""
    return path.with_suffix(f".dense{path.suffix}")


class Trajectory:
    """The config of a run and its weights at every stored step, also while the run is being written."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.file = RunFile(self.path)
        self.side_file: RunFile | None = None
        self.environment, self.created = self.file.environment, self.file.created
        self.open_side_file()

    @property
    def config(self) -> "RunConfig":
        """The config that the run was trained by; RunFileError of one that this package has not trained."""
        return self.file.config

    @property
    def origin(self) -> "Origin | None":
        """Where the run comes from that this package has not trained; None for one that it has."""
        return self.file.origin

    @property
    def dense_path(self) -> Path:
        """The path of the side file of rebuilt steps, whether or not it exists."""
        return dense_path(self.path.resolve())

    @property
    def steps(self) -> list[int]:
        """The stored steps, ascending. Step s is the state after s updates."""
        return sorted({*self.file.steps, *(self.side_file.steps if self.side_file else ())})

    @property
    def status(self) -> str:
        """ "complete", "interrupted", "diverged", "failed" or "running" (also: its writer was killed)."""
        return self.file.status

    @property
    def metrics(self) -> "pd.DataFrame":
        """The metrics (`training.recording.METRICS`) by step, of the batches since the previous stored step."""
        import pandas as pd

        tables = [self.file.metrics()] + ([self.side_file.metrics()] if self.side_file else [])
        return pd.concat(tables).sort_index()

    @property
    def series(self) -> "pd.DataFrame":
        """Numbers of the batch of every update (`training.recording.SERIES`), by the step it led to."""
        return self.file.series()

    def numbered(self, step: int | str) -> int:
        """A step by its number, which is an integer from 0, or by ``first`` or ``last``, of those that are stored."""
        if isinstance(step, str):
            if step not in ENDS:
                raise MechinterpError(f"step is {step!r}; expected a number, or 'first' or 'last' of the stored steps")
            if not (steps := self.steps):
                raise RunFileError(f"{self.path}: holds no checkpoint, and so no {step} one; train it anew")
            return steps[ENDS[step]]
        if isinstance(step, int) and step < 0:
            raise MechinterpError(f"step is {step}; expected 0 or more, or 'last', the last stored step")
        return require_integer("step", step, 0)

    def chosen_steps(self, steps: int | str | Iterable[int | str] | None) -> list[int]:
        """One step or several as a list of numbers (`numbered`); without them, all stored steps."""
        if steps is None:
            return self.steps
        listed = steps if isinstance(steps, Iterable) and not isinstance(steps, str) else [steps]
        return [self.numbered(step) for step in listed]

    def weights(self, step: int | str) -> dict[str, "Tensor"]:
        """The trained parameters at a stored step (`numbered`), by name, in the types in which they are stored."""
        step = self.numbered(step)
        return self._file_with(step).weights(step)

    def digest(self, step: int | str) -> str:
        """SHA-256 of the weights at a stored step (hexadecimal), stored when they were written."""
        step = self.numbered(step)
        return self._file_with(step).digest(step)

    def digests(self) -> dict[int, str]:
        """SHA-256 of the weights at every stored step (hexadecimal)."""
        return dict(sorted((self.file.digests() | (self.side_file.digests() if self.side_file else {})).items()))

    def content_digest(self) -> str:
        """SHA-256 (hexadecimal) of all that its files say: `RunFile.content_digest`, and that of the side file."""
        digests = [file.content_digest() for file in (self.file, self.side_file) if file]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def open_side_file(self) -> None:
        """Open the side file if there is one of this run: a file of that name may also be another run's, or a run."""
        side = RunFile(self.dense_path) if os.path.exists(self.dense_path) else None
        self.side_file = side if side and side.header.side_of == self.file.header.id else None

    def _file_with(self, step: int) -> RunFile:
        """The file that stores a step."""
        for file in filter(None, (self.file, self.side_file)):
            if file.has(step):
                return file
        steps = self.steps
        near = min(steps, key=lambda saved: abs(saved - step))
        raise UnknownNameError(
            f"{self.path}: step {step} is not saved; the nearest is {near}"
            f" ({len(steps)} from {steps[0]} to {steps[-1]})"
        )
