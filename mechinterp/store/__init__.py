"""Where the trajectory lives: one HDF5 file per run. The schema is in checkpoints/README.md."""

from mechinterp.store.file import RunFile
from mechinterp.store.run import ApproximateReplayWarning, Run, open_run, open_runs
from mechinterp.store.writer import RunWriter

__all__ = ["ApproximateReplayWarning", "Run", "RunFile", "RunWriter", "open_run", "open_runs"]
