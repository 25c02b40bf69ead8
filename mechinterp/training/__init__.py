"""How a network is trained: SGD on fresh batches, every scheduled step into the run file."""

from mechinterp.training.trainer import resume, train

__all__ = ["resume", "train"]
