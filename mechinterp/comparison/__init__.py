"""What compares the checkpoints of a run: transplants of components, and the order in which they form."""
