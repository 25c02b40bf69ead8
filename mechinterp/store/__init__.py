"""The trajectory of a run: one HDF5 file, whose schema is in checkpoints/README.md."""

from mechinterp.store.file import RunFile
from mechinterp.store.trajectory import Trajectory
from mechinterp.store.writer import RunWriter

__all__ = ["RunFile", "RunWriter", "Trajectory"]
