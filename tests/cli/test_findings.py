"""What `emergence` and `run` find is kept: told again without computing, and never of other weights or other code."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mechinterp as mi
from mechinterp.cli import findings
from mechinterp.measures import table as tables
from mechinterp.store import Trajectory
from mechinterp.studies.jobs import jobs_of
from mechinterp.studies.study import Study
from mechinterp.studies.worker import do
from tests.test_cli import TRAIN, call

FEW = ("--n-sequences", 20)


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_run) -> Path:
    """The working directory, with a run."""
    shutil.copy(tiny_run.path, tmp_path / "tiny.h5")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def located(monkeypatch) -> list[str]:
    """The measures whose transitions are located, one entry each time."""
    found, locate = list[str](), mi.locate_emergence

    def counted(curve: pd.Series, **options):
        found.append(str(curve.name))
        return locate(curve, **options)

    monkeypatch.setattr("mechinterp.emergence.locate_emergence", counted)
    return found


@pytest.fixture
def observed(monkeypatch) -> list[str]:
    """The evaluation sets that networks are seen on to be measured, one entry each time."""
    found, observe = list[str](), tables.observe

    def counted(network, batch, *arguments, **options):
        found.append(f"{len(batch)} sequences")
        return observe(network, batch, *arguments, **options)

    monkeypatch.setattr(tables, "observe", counted)
    return found


@pytest.fixture
def no_page(monkeypatch) -> None:
    """No page is drawn, which takes most of the time of `run` and `report`."""
    monkeypatch.setattr("mechinterp.report.write_report", lambda run, table, path, **options: path)


def test_a_second_look_says_the_same_without_computing(capsys, folder, located):
    first, first_json = call(capsys, "emergence", "tiny.h5", *FEW)[1], None
    for options in ((), ("--measure", "icl_accuracy"), ("--scale", "step")):
        assert call(capsys, "emergence", "tiny.h5", *FEW, *options)[:2] == (0, first)
        printed = call(capsys, "emergence", "tiny.h5", *FEW, *options, "--json")[1]
        first_json = first_json or printed
        assert printed == first_json
    assert located == ["icl_accuracy"]
    run = mi.open_run("tiny.h5")
    expected = mi.locate_emergence(mi.measure(run, ["icl_accuracy"], n_sequences=20, keep=False)["icl_accuracy"])
    assert (json.loads(printed)["run"], json.loads(printed)["reason"]) == ("tiny.h5", expected.reason)


def test_another_question_is_not_answered_by_it(capsys, folder, located):
    for options in ((*FEW,), (*FEW, "--scale", "log_step"), ("--n-sequences", 21), (*FEW, "--measure", "ila1")):
        for _ in range(2):
            assert call(capsys, "emergence", "tiny.h5", *options)[0] == 0
    assert located == ["icl_accuracy", "icl_accuracy", "icl_accuracy", "ila1"]
    assert [each.measure for each in findings.kept_transitions(Trajectory("tiny.h5"))] == ["icl_accuracy", "ila1"]


def test_other_weights_are_looked_at_anew_even_if_the_last_ones_are_the_same(capsys, folder, tiny_config, located):
    call(capsys, "emergence", "tiny.h5", *FEW)
    thinned = mi.train(tiny_config.updated({"checkpoints.every": 1}), "other.h5", progress=False)
    assert thinned.digest(20) == mi.open_run("tiny.h5").digest(20)
    shutil.copytree("tiny.h5.cache", "other.h5.cache")
    assert "not located yet" in call(capsys, "info", "other.h5")[1]
    call(capsys, "emergence", "other.h5", *FEW)
    assert len(located) == 2
    mi.open_run("tiny.h5").densify(start=0, stop=2, every=1)  # further steps, in the side file
    assert "not located yet" in call(capsys, "info", "tiny.h5")[1]
    call(capsys, "emergence", "tiny.h5", *FEW)
    assert len(located) == 3


def test_the_content_is_all_that_is_recorded(folder, tiny_config):
    """Weights at any step, metrics, and what was trained."""
    digest = Trajectory("tiny.h5").content_digest()
    mi.train(tiny_config, "again.h5", progress=False)
    assert Trajectory("again.h5").content_digest() == digest
    for name, changes in (
        ("seed", {"seed": 1}),
        ("until", {"training.steps": 18}),
        ("same", {"task.p_in_context": 0.5}),
    ):
        mi.train(tiny_config.updated(changes), f"{name}.h5", progress=False)
        assert (Trajectory(f"{name}.h5").content_digest() == digest) == (name == "same")
    run = Trajectory("tiny.h5")
    for field in ("digest", "metrics", "rest_digest", "step"):
        run.file.refresh()
        kept = run.file._records.copy()
        raw = run.file._records[field][4:5].view(np.uint8)
        raw[..., 0] ^= 1
        assert run.content_digest() != digest, field
        run.file._records = kept
    assert run.content_digest() == digest


def test_after_a_change_of_the_code_nothing_is_told(capsys, folder, located, monkeypatch):
    call(capsys, "emergence", "tiny.h5", *FEW)
    assert "not located" not in call(capsys, "info", "tiny.h5")[1]
    monkeypatch.setattr(findings, "_code_digest", lambda: "other")
    assert "not located yet" in call(capsys, "info", "tiny.h5")[1]
    call(capsys, "emergence", "tiny.h5", *FEW)
    assert len(located) == 2


def test_every_source_counts(tmp_path, monkeypatch):
    copy = tmp_path / "mechinterp"
    shutil.copytree(Path(mi.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(mi, "__file__", str(copy / "__init__.py"))
    code = findings._code_digest.__wrapped__
    first = code()
    assert code() == first
    for path in (copy / "emergence/noise.py", copy / "tasks/base.py", copy / "analysis/tables.py"):
        text = path.read_text()
        path.write_text(text + "# changed\n")
        assert code() != first
        path.write_text(text)
    assert code() == first


def test_what_the_file_does_not_have_is_no_answer(capsys, folder, located):
    """A measure of one's own is in no source of this package."""
    mi.register(own_measure)
    try:
        for _ in range(2):
            call(capsys, "emergence", "tiny.h5", *FEW, "--measure", "own_measure")
        assert located == ["own_measure"] * 2
    finally:
        mi.unregister("own_measure")
    assert call(capsys, "emergence", "tiny.h5", *FEW, "--measure", "own_measure")[0] == 2


def own_measure(seen: mi.Observation) -> float:
    return float(seen.logits.mean())


def test_a_run_is_measured_and_located_once_by_run_emergence_and_report(capsys, folder, located, observed, no_page):
    assert call(capsys, "run", "--out", "new.h5", *TRAIN)[0] == 0
    seen = len(observed)
    assert seen
    assert len(call(capsys, "emergence", "new.h5")[1].splitlines()) == 1
    assert located == []
    assert call(capsys, "emergence", "new.h5", "--measure", "ila1")[0] == 0
    assert call(capsys, "report", "new.h5")[0] == 0
    assert call(capsys, "measure", "new.h5")[0] == 0
    assert call(capsys, "export", "new.h5", "--out", "new.csv", "--overwrite")[0] == 0
    assert len(observed) == seen


def test_too_few_checkpoints_are_still_refused(capsys, folder, no_page):
    few = ["--checkpoints.every", "10"]
    assert "8 checkpoints" in call(capsys, "run", "--out", "few.h5", *TRAIN, *few)[1]
    code, _, err = call(capsys, "emergence", "few.h5")
    assert (code, "needs 8 checkpoints" in err) == (2, True)


def test_runs_of_a_study_are_measured_once(tiny_config, tmp_path, observed, capsys):
    study = Study.of("one", tiny_config, {"free": {}}, [0], ["icl_accuracy"])
    (job,) = (job for _, job in jobs_of(study, tmp_path))
    cost = do(job)["cost"]
    seen = len(observed)
    more = Study.of("one", tiny_config, {"free": {}}, [0], ["icl_accuracy", "swap_accuracy"])
    ((_, other),) = jobs_of(more, tmp_path)
    again = do(other)
    assert "swap_accuracy" in again["transitions"]
    assert again["cost"] == cost  # of the measuring that was done
    assert call(capsys, "emergence", tmp_path / f"{study.runs[0].id}.h5")[0] == 0
    assert len(observed) == seen
