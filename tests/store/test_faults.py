"""A sample of the faults of benchmarks.faults, which has all of them."""

import shutil

import pytest

from benchmarks.faults.__main__ import Errors, Fuzz, Kills, Power, Readers

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="the preloaded library is compiled")


@needs_compiler
def test_no_power_loss_takes_an_acknowledged_checkpoint(capsys):
    assert Power(cuts=30).execute() == 0, capsys.readouterr().out


@needs_compiler
def test_a_kill_or_a_torn_write_anywhere_loses_nothing(capsys):
    kills = Kills(every=97, scenarios=("train", "resume", "overwrite", "keep_last"))
    assert kills.execute() == 0, capsys.readouterr().out


@needs_compiler
def test_a_write_or_sync_that_fails_is_an_error_in_one_line(capsys):
    errors = Errors(every=113, scenarios=("train", "resume", "densify", "export"))
    assert errors.execute() == 0, capsys.readouterr().out


def test_live_readers_read_what_was_written_or_are_told(capsys):
    assert Readers(changes=12, seed=2).execute() == 0, capsys.readouterr().out


def test_changed_files_are_refused_in_one_line_or_read_right(capsys):
    assert Fuzz(byte_mutants=30, structure_mutants=30, thorough_every=0, seed=1).execute() == 0, capsys.readouterr().out
