"""Where the trajectory lives: one HDF5 file per run. The schema is in checkpoints/README.md."""

from mechinterp.store.run import Run, open_run
from mechinterp.store.writer import RunWriter

__all__ = ["Run", "RunWriter", "open_run"]
