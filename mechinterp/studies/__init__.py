"""Studies: variants of one config, trained over several seeds, and their transitions compared.

`study` defines studies and `jobs` their runs; `runner` executes them on an executor, through the worker `processes` of
this machine, each of which runs `worker`; `results` records outcomes, `cost` estimates and counts time and disk space,
and `cluster` makes executors of several machines.
"""

WORKER_GONE = 70
"""Exit code of a worker whose standard input was closed: the process that started it has ended."""
