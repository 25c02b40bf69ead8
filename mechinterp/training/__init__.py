"""Training: SGD on fresh batches, with checkpoints in the run file."""
