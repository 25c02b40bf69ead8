"""Circuit analyses over the checkpoints of a run: their registry, their tables, and the cache of the tables."""
