"""Timings, as ratios of interleaved runs. Not part of the tests: `make bench`."""
