"""Progress: a bar in a terminal and a notebook, a line now and then elsewhere, nothing unless it is asked for."""

import subprocess
import sys
import types

import pytest

import mechinterp as mi
from mechinterp import progress
from mechinterp.progress import Lines, Progress, say, tracked


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time in seconds, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(clock, capsys):
    with Progress("step", 3_000, done=100) as bar:
        for _ in range(200):
            clock[0] += 0.5
            bar.note(loss=0.25)
            bar.advance()
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines() == [
        "step 160 of 3,000, 2.0 steps/s, 24 min left, loss 0.250",
        "step 220 of 3,000, 2.0 steps/s, 23 min left, loss 0.250",
        "step 280 of 3,000, 2.0 steps/s, 23 min left, loss 0.250",
    ]


def test_slow_parts_are_told_in_seconds_and_without_a_total_nothing_is_left(clock):
    lines = Lines("run", None, 0)
    lines.update(3)
    assert lines.line(60.0) == "run 3, 20.0 s per run"
    assert Lines("run", 10, 4).line(30.0) == "run 4 of 10"
    assert lines.line(None) == "run 3"
    hours = Lines("run", 10, 0)
    hours.update(2)
    assert hours.line(3600.0) == "run 2 of 10, 1800.0 s per run, 4 h left"
    assert hours.line(10.0) == "run 2 of 10, 5.0 s per run, 40 s left"


@pytest.mark.parametrize("place", ["terminal", "notebook"])
def test_a_terminal_and_a_notebook_show_a_bar(place, monkeypatch, capsys):
    if place == "terminal":
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    else:
        shell = types.SimpleNamespace(kernel=None)
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert list(tracked([1, 2, 3], "checkpoint")) == [1, 2, 3]
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("shown", [True, False])
def test_nothing_is_printed_of_short_work_or_unless_it_is_asked_for(shown, capsys):
    assert list(tracked([1, 2], "checkpoint", shown=shown)) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_ipython_in_a_terminal_is_no_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace()))
    assert not progress.in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert not progress.in_notebook()


def test_a_process_without_standard_error_goes_on(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    say("unheard")
    assert list(tracked([1], "checkpoint")) == [1]


def test_training_and_measuring_show_a_bar_on_a_terminal(tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run = mi.train(tiny_config, tmp_path / "run.h5")
    assert "20/20" in capsys.readouterr().err
    mi.measure(run, "ila1", progress=True)
    assert "11/11" in capsys.readouterr().err
    run.densify(start=0, stop=4, every=1, progress=True)
    assert "4/4" in capsys.readouterr().err
    mi.analyse(run, "ablate", steps=[0, 20], progress=True)
    assert "2/2" in capsys.readouterr().err


def test_help_imports_no_progress_bar():
    code = "import sys, mechinterp.cli; sys.exit(len({'tqdm', 'asyncio'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_first_part_of_the_work_gives_no_estimate(monkeypatch, capsys):
    """It may take long for another reason, as the compilation of kernels."""
    times = iter([0.0, 40.0, 80.0])
    monkeypatch.setattr("mechinterp.progress.time.monotonic", lambda: next(times))
    lines = Lines("step", 6000, 0)
    lines.update()
    lines.update()
    assert capsys.readouterr().err.splitlines() == ["step 1 of 6,000", "step 2 of 6,000, 40.0 s per step, 67 h left"]
