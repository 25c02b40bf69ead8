"""Work on several cores gives the results of work on one, and loses none."""

import multiprocessing
import os
import signal
import time

import pytest
import torch

import mechinterp as mi
from mechinterp import parallel
from mechinterp.parallel import computed


@pytest.fixture(autouse=True)
def _always_worth_it(monkeypatch):
    monkeypatch.setattr(parallel, "LEAST_SECONDS", -1.0)


def squared(x: int) -> tuple[int, int]:
    """The square, and the process that computed it."""
    return x * x, os.getpid()


@pytest.mark.parametrize(("cores", "processes"), [(1, 1), (2, 3), (3, 4)])
def test_results_are_in_order_and_of_so_many_processes(cores, processes):
    """The first item is computed here: the others follow its time."""
    squares, where = zip(*computed(squared, range(20), cores=cores), strict=True)
    assert list(squares) == [x * x for x in range(20)]
    assert where[0] == os.getpid()
    assert len({*where}) == processes


def test_work_that_is_soon_done_stays_here(monkeypatch):
    monkeypatch.setattr(parallel, "LEAST_SECONDS", 60.0)
    assert {pid for _, pid in computed(squared, range(5), cores=2)} == {os.getpid()}


def test_an_error_is_raised_at_its_item_after_the_results_before():
    def refused(x: int) -> int:
        if x == 7:
            raise mi.MechinterpError(f"item {x} is odd")
        return x

    found = computed(refused, range(20), cores=2)
    assert [next(found) for _ in range(7)] == list(range(7))
    with pytest.raises(mi.MechinterpError, match="item 7 is odd"):
        next(found)


def test_what_a_killed_process_leaves_is_computed_here():
    here = os.getpid()

    def killed_elsewhere(x: int) -> tuple[int, int]:
        if x == 5 and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return squared(x)

    results = list(computed(killed_elsewhere, range(12), cores=2))
    assert [square for square, _ in results] == [x * x for x in range(12)]
    assert [results[x][1] for x in (5, 7, 9, 11)] == [here] * 4
    assert here not in [results[x][1] for x in (2, 4, 6, 8, 10)]


def test_processes_end_when_nobody_wants_the_rest():
    def slow(x: int) -> int:
        time.sleep(60.0 if x > 2 else 0.0)
        return os.getpid()

    found = computed(slow, range(8), cores=2)
    assert next(found) == os.getpid()
    pids = {next(found), next(found)}
    found.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_tables_are_the_same_bits_on_any_number_of_cores(tiny_run, monkeypatch):
    tables, measures = [], []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        tables.append(mi.analyse(tiny_run, "patch", n_pairs=8, keep=False))
        measures.append(mi.measure(tiny_run, n_sequences=20, keep=False))
    assert tables[0].equals(tables[1])
    assert measures[0].equals(measures[1])


def test_a_measure_of_ones_own_is_computed_here(tiny_run, monkeypatch):
    """It may keep what it has seen."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    seen = list[int]()

    @mi.register
    def where_it_is_computed(observation):
        seen.append(os.getpid())
        return float(os.getpid())

    try:
        table = mi.measure(tiny_run, ["where_it_is_computed"], n_sequences=5)
    finally:
        mi.unregister("where_it_is_computed")
    assert seen == table["where_it_is_computed"].tolist() == [os.getpid()] * len(tiny_run.steps)


def test_a_process_of_a_pool_computes_alone():
    """It may have no processes of its own."""

    def of_pool(answers):
        answers.send([where for _, where in computed(squared, range(4), cores=2)])

    answers, sending = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = parallel.Forked(of_pool, sending)
    sending.close()  # so that a process that fails ends the waiting
    where = answers.recv()
    process.end()
    assert {*where} == {where[0]}
    assert where[0] != os.getpid()


def test_a_copy_in_another_process_does_not_stop_a_process():
    waiting = parallel.Forked(time.sleep, 60)
    parallel.Forked(waiting.end)._process.join()
    waiting._process.join(timeout=1)
    assert waiting._process.is_alive()
    waiting.end()
    assert not waiting._process.is_alive()
