"""Studies: one thing is varied, the rest kept, over several seeds, and the transitions are compared.

`study` says what a study is, `conduct` carries it out on an executor, `processes` are this machine's workers, `worker`
is what runs in them, `outcomes` is what is known of runs, `cost` what they take, and `cluster` gives executors of more
than one machine.
"""

WORKER_GONE = 70
"""Exit code of a worker whose giver is gone."""
