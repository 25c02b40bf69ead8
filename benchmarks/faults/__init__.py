"""Faults: what a run file survives. Power losses, kills and failing writes at every system call, and fuzzed files.

python -m benchmarks.faults power --cuts 600
python -m benchmarks.faults kills
python -m benchmarks.faults errors
python -m benchmarks.faults fuzz --byte-mutants 10000 --structure-mutants 3000

The folder can be copied into a checkout of version 0.4.0, to put its files through `power`, `kills` and `errors`.
Every command is deterministic (`--seed`) and prints counts. `power`, `kills` and `errors` need a C compiler, for a
preloaded library through which a real training process makes its system calls.
"""
