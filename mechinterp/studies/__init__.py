"""Studies: one thing is varied, the rest kept, over several seeds, and the transitions are compared.

`study` says what a study is, `conduct` carries it out on an executor, `worker` is the process of one run, `cluster`
gives executors of more than one machine.
"""
