"""The trajectory of a run: one file, whose format is in docs/run-file.md."""

from mechinterp.store.file import RunFile
from mechinterp.store.layout import Array, Contents, Header, Origin
from mechinterp.store.trajectory import Trajectory, dense_path
from mechinterp.store.writer import RunWriter, keep_last, lock_run_file

__all__ = [
    "Array",
    "Contents",
    "Header",
    "Origin",
    "RunFile",
    "RunWriter",
    "Trajectory",
    "dense_path",
    "keep_last",
    "lock_run_file",
]
