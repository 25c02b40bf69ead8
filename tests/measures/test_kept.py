"""Measures are kept beside the run: computed once, exact, and not those of other weights, sequences, code or steps."""

import shutil

import pandas as pd
import pytest

import mechinterp as mi
from mechinterp.analysis import cache
from mechinterp.measures import table as tables
from mechinterp.models.registry import parameter_shapes


@pytest.fixture
def run(tiny_run, tmp_path):
    return mi.open_run(shutil.copy(tiny_run.path, tmp_path / "run.h5"))


@pytest.fixture
def seen(monkeypatch):
    """The evaluation sets that networks are seen on, one entry each time."""
    found, observe = list[int](), tables.observe

    def counted(network, batch, *arguments, **options):
        found.append(len(batch))
        return observe(network, batch, *arguments, **options)

    monkeypatch.setattr(tables, "observe", counted)
    return found


def test_what_was_measured_is_not_measured_again_and_is_exact(run, seen):
    fresh = mi.measure(run, n_sequences=20, keep=False)
    assert not run.path.with_name("run.h5.cache").exists()
    per_step = len(seen) // len(fresh)
    first = mi.measure(run, n_sequences=20, steps=[0, 4])
    assert len(seen) == per_step * (len(fresh) + 2)
    everything = mi.measure(run, n_sequences=20)
    assert len(seen) == 2 * per_step * len(fresh)
    again = mi.measure(run, n_sequences=20)
    some = mi.measure(run, ["ila1", "icl_accuracy"], n_sequences=20, steps=4)
    assert len(seen) == 2 * per_step * len(fresh)
    for table in (everything, again):
        pd.testing.assert_frame_equal(table, fresh, check_exact=True)
    pd.testing.assert_frame_equal(first, fresh.loc[[0, 4]], check_exact=True)
    pd.testing.assert_frame_equal(some, fresh.loc[[4], ["ila1", "icl_accuracy"]], check_exact=True)


def test_measures_that_are_missing_are_added(run, seen):
    mi.measure(run, "ila1", n_sequences=20, steps=4)
    assert len(seen) == 1
    mi.measure(run, ["ila1", "iwl_loss"], n_sequences=20, steps=4)  # of another evaluation set
    assert len(seen) == 2
    mi.measure(run, ["iwl_loss", "ila1"], n_sequences=20, steps=4)
    assert len(seen) == 2
    mi.measure(run, ["iwl_loss", "ila1", "icl_loss"], n_sequences=20, steps=[6, 4])
    assert len(seen) == 5  # two sets at step 6, and at step 4 the one that lacks a measure


def test_other_sequences_weights_and_code_are_measured(run, seen, monkeypatch, tiny_config):
    first = mi.measure(run, "icl_loss", n_sequences=20, steps=4)
    assert not first.equals(mi.measure(run, "icl_loss", n_sequences=21, steps=4))
    assert not first.equals(mi.measure(run, "icl_loss", n_sequences=20, steps=4, seed=1))
    assert len(seen) == 3
    config = tiny_config.updated({"seed": 5, "training.steps": 4})
    other = mi.train(config, run.path, overwrite=True, progress=False)
    assert not first.equals(mi.measure(other, "icl_loss", n_sequences=20, steps=4))
    monkeypatch.setattr(cache, "code_digest", lambda home: "other")
    mi.measure(other, "icl_loss", n_sequences=20, steps=4)
    assert len(seen) == 5


def test_code_of_every_measure_counts():
    reached = cache.imported_modules("mechinterp.measures")
    assert {"mechinterp.measures.ila1", "mechinterp.measures.table", "mechinterp.models.forward"} <= reached
    assert "mechinterp.report.page" not in reached


def test_measures_of_ones_own_are_not_kept(run, seen):
    value = [1.0]

    def changing(seen_by_it):
        return value[0]

    mi.register(changing)
    try:
        for expected in (1.0, 2.0):
            value[0] = expected
            table = mi.measure(run, ["changing", "ila1"], n_sequences=20, steps=4)
            assert table.loc[4, "changing"] == expected
        kept = "".join(path.read_text() for path in run.path.with_name("run.h5.cache").iterdir())
        assert "ila1" in kept
        assert "changing" not in kept
    finally:
        mi.unregister("changing")


def test_measures_under_clamps_are_those_of_the_step(tiny_config, tmp_path, seen):
    """All weights are frozen, so that all checkpoints are the same, and the clamp acts in some of them only."""
    clamp = {"kind": "clamp", "layer": 0, "pattern": "previous_token", "start": 4, "stop": 9}
    freeze = {"kind": "freeze", "parameters": [*parameter_shapes(tiny_config)]}
    run = mi.train(tiny_config.updated({"interventions": [clamp, freeze]}), tmp_path / "clamped.h5", progress=False)
    assert run.digest(0) == run.digest(6)
    fresh = mi.measure(run, ["ila1"], n_sequences=20, keep=False)
    for _ in range(2):
        pd.testing.assert_frame_equal(mi.measure(run, ["ila1"], n_sequences=20), fresh, check_exact=True)
    assert fresh.loc[6, "clamped_ila1"] == pytest.approx(1.0)
    assert fresh.loc[0, "clamped_ila1"] != pytest.approx(1.0)


def test_a_damaged_file_is_replaced(run, seen):
    first = mi.measure(run, "ila1", n_sequences=20)
    (kept,) = run.path.with_name("run.h5.cache").iterdir()
    kept.write_text(kept.read_text()[:-9])
    assert mi.measure(run, "ila1", n_sequences=20).equals(first)
    count = len(seen)
    mi.measure(run, "ila1", n_sequences=20)
    assert len(seen) == count
