"""What is known of runs is in their own files; the index repeats it, never knows more, and is never needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mechinterp as mi
from mechinterp.files import read_sealed_json, write_sealed_json
from mechinterp.studies import cost
from mechinterp.studies import results as module
from mechinterp.studies.cost import estimate, span, spent
from mechinterp.studies.jobs import Job, jobs_of
from mechinterp.studies.results import INDEX, Results, file_of, write_failure, write_outcome
from mechinterp.studies.runner import states, study_table
from mechinterp.studies.study import Study


@pytest.fixture
def study(tiny_config) -> Study:
    variants = {"slow": {}, "fast": {"training.learning_rate": 0.2}}
    return Study.of("made_up", tiny_config, variants, [0, 1, 2], ["icl_accuracy", "ila1"])


def outcome(step: float | None, final: float = 0.9, kept: str = "all") -> dict:
    found = {"transition": step is not None, "step": step, "low": step, "high": step, "width": 4.0}
    lag = {**found, "step": None if step is None else step + 1.5}
    cost = {"steps": 20, "checkpoints": 11, "training_seconds": 2.0, "measuring_seconds": 1.1, "checkpoint_bytes": 100}
    return {
        "kept": kept,
        "steps": 20,
        "digest": "0" * 64,
        "transitions": {"icl_accuracy": found, "ila1": lag},
        "final": {"icl_accuracy": final, "icl_loss": 0.1},
        "cost": cost,
    }


def do(job: Job, *arguments, **options) -> None:
    """Make it look done."""
    write_outcome(job, outcome(*arguments, **options))
    for ending in (".h5", ".csv"):
        file_of(job, ending).touch()


def jobs(study: Study, folder: Path) -> list[Job]:
    return [job for _, job in jobs_of(study, folder)]


def test_the_table_is_the_same_from_the_record_and_from_the_index(study, tmp_path):
    for number, job in enumerate(jobs(study, tmp_path)[:4]):
        do(job, [10.0, None, 12.0, 1 / 3][number])
    write_failure(jobs(study, tmp_path)[4], "it broke", "a traceback")
    read = study_table(study, tmp_path).to_csv()
    assert (tmp_path / INDEX).exists()
    assert study_table(study, tmp_path).to_csv() == read
    table = study_table(study, tmp_path)
    assert table["status"].tolist() == ["done", "done", "done", "done", "failed", "not done"]
    assert table["step"].tolist()[:4] == [10.0, pytest.approx(float("nan"), nan_ok=True), 12.0, 1 / 3]
    assert table["ila1_lag"].tolist()[0] == 1.5
    assert table["error"].tolist()[4] == "it broke"
    assert table["final_icl_loss"].tolist()[0] == 0.1
    counted = states(study, Results(tmp_path), tmp_path)
    assert counted.to_numpy().tolist() == [[3, 0, 0, 0], [1, 1, 0, 1]]


def test_only_what_is_new_is_read(study, tmp_path, monkeypatch):
    first, *others = jobs(study, tmp_path)
    do(first, 10.0)
    Results(tmp_path)
    read, original = [], module._read
    monkeypatch.setattr(module, "_read", lambda path: read.append(path.name) or original(path))
    assert Results(tmp_path).of(first)
    assert read == []
    do(others[0], 11.0)
    do(first, 12.0)
    os.utime(file_of(first, ".json"), ns=(1, 1))  # however coarse the clock of the disk is
    redone = Results(tmp_path).of(first)
    assert redone is not None
    assert redone["icl_accuracy.step"] == 12.0
    assert set(read) == {file_of(first, ".json").name, file_of(others[0], ".json").name}


def test_a_lost_or_damaged_index_is_made_anew(study, tmp_path):
    do(jobs(study, tmp_path)[0], 10.0)
    expected = study_table(study, tmp_path)
    content = (tmp_path / INDEX).read_bytes()
    digit = content.replace(np.float64(10.0).tobytes(), np.float64(11.0).tobytes())
    name = content.replace(b"icl_accuracy.low", b"icl_accuracy.lox")
    assert content not in (digit, name)
    pd.DataFrame({"id": ["a"], "when": [pd.Timestamp(0)], "raw": [b"x"]}).to_parquet(tmp_path / "other")
    foreign = (tmp_path / "other").read_bytes()
    for damage in (b"", b"PAR1 no", content[:-7], digit, name, b"[" * 100_000, foreign):
        (tmp_path / INDEX).write_bytes(damage)
        pd.testing.assert_frame_equal(study_table(study, tmp_path), expected)
        assert (tmp_path / INDEX).read_bytes() == content
        assert pd.read_parquet(tmp_path / INDEX)["icl_accuracy.step"].tolist() == [10.0]
    (tmp_path / INDEX).unlink()
    (tmp_path / INDEX).mkdir()  # which cannot be replaced by a file
    pd.testing.assert_frame_equal(study_table(study, tmp_path), expected)


def test_a_record_of_odd_types_costs_the_index_and_nothing_else(study, tmp_path):
    first, second, *_ = jobs(study, tmp_path)
    do(first, 10.0)
    expected = study_table(study, tmp_path)
    for odd in ('{"kept": {"a": 1}, "steps": "many"}', '{"format": 1, "transitions": []}', '{"transitions": {"a": 1}}'):
        write_sealed_json(file_of(second, ".json"), json.loads(odd))
        pd.testing.assert_frame_equal(study_table(study, tmp_path), expected)
    file_of(second, ".json").unlink()
    file_of(second, ".failed.json").write_text("{}")
    assert study_table(study, tmp_path)["status"].tolist()[:2] == ["done", "not done"], (
        "a damaged record counts for nothing"
    )


def test_records_of_other_runs_and_of_odd_values_count_for_nothing(study, tmp_path):
    """Their seals fit: whoever can write a file can make one."""
    first, second, *_ = jobs(study, tmp_path)
    do(first, 10.0)
    expected = study_table(study, tmp_path)
    good = read_sealed_json(file_of(first, ".json")) | {"id": second["id"]}
    for ending in (".h5", ".csv"):
        file_of(second, ending).touch()
    icl = good["transitions"]["icl_accuracy"]
    for odd in (
        {"id": first["id"]},
        {"transitions": {"icl_accuracy": icl | {"step": "abc"}}},
        {"transitions": {"icl_accuracy": icl | {"step": 10**30}}},
        {"final": {"icl_accuracy": [1]}},
        {"cost": {"steps": "x"}},
        {"more": "\ud800"},
        {"steps": True},
    ):
        write_sealed_json(file_of(second, ".json"), good | odd)
        found = Results(tmp_path)
        assert found.of(second) is None, odd
        pd.testing.assert_frame_equal(study_table(study, tmp_path), expected)
        assert spent(study, found, tmp_path).runs == 1
    write_sealed_json(file_of(second, ".json"), good | {"cost": {"checkpoints": 0, "steps": 1}})
    assert estimate(study, Results(tmp_path), tmp_path, clocked=False).steps > 0


def test_what_is_gone_or_means_something_else_is_not_done(study, tmp_path):
    first, second, third, fourth, *_ = jobs(study, tmp_path)
    for job in (first, second, third, fourth):
        do(job, 10.0)
    file_of(first, ".h5").unlink()
    write_sealed_json(file_of(second, ".json"), read_sealed_json(file_of(second, ".json")) | {"format": 0})
    file_of(third, ".json").write_text("{")
    found = Results(tmp_path)
    assert [found.of(job) is not None for job in (first, second, third, fourth)] == [False, False, False, True]
    assert found.of({**fourth, "measures": ["tila2"]}) is None
    assert not found.begun(first)


def test_a_run_that_kept_its_last_checkpoint_only_is_not_what_all_are_asked_for(study, tmp_path):
    job, *_ = jobs(study, tmp_path)
    do(job, 10.0, kept="last")
    assert Results(tmp_path).of(job) is None
    assert Results(tmp_path).of({**job, "keep": "last"})


def test_the_cost_is_steps_and_checkpoints_at_their_measured_speeds(study, tmp_path):
    for job in jobs(study, tmp_path)[:2]:
        do(job, 10.0)
    untimed = jobs(study, tmp_path)[0]
    write_outcome(untimed, outcome(10.0) | {"cost": {"steps": 0, "training_seconds": 99.0}})
    assert spent(study, Results(tmp_path), tmp_path).core_seconds == pytest.approx(3.1)  # of the other
    do(untimed, 10.0)
    found = Results(tmp_path)
    taken = spent(study, found, tmp_path)
    assert (taken.runs, taken.steps, taken.disk_bytes) == (2, 40, 2200)
    assert (taken.core_seconds, taken.measuring) == (pytest.approx(6.2), pytest.approx(2.2 / 6.2))
    # One run of the variant that was timed is left: 20 steps of 0.1 s, 11 checkpoints of 0.1 s and 100 bytes.
    left = estimate(study, found, tmp_path, clocked=False)
    assert (left.runs, left.todo, left.untimed, left.steps, left.kept_bytes) == (6, 4, 3, 80, 1100)
    assert left.core_seconds == pytest.approx(3.1)
    assert left.on(2) == (
        "4 of 6 runs to do, at most 80 steps: at most 3 s of one core (3 s on 2), 1 kB kept;"
        " not timed yet: 3 of them (--estimate)"
    )
    thin = Study(study.name, study.variants, study.seeds, study.measures, keep="last")
    assert estimate(thin, Results(tmp_path), tmp_path, clocked=False).kept_bytes == 100
    timed = estimate(study, found, tmp_path, clocked=True)
    assert (timed.untimed, timed.steps) == (0, 80)
    assert timed.core_seconds > left.core_seconds
    assert [span(seconds) for seconds in (5.0, 119.0, 120.0, 7.2e3, 4e5)] == [
        "5 s",
        "119 s",
        "2.0 min",
        "2.0 h",
        "4.6 d",
    ]


def test_a_checkpoint_costs_its_measures_and_its_writing(study, tmp_path, monkeypatch):
    speed = cost.Speed(step=0.1, checkpoint=0.2, checkpoint_bytes=100.0, start=1.0, written=0.3)
    monkeypatch.setattr(cost, "_clocked_speeds", lambda variants: dict.fromkeys(variants, speed))
    left = estimate(study, Results(tmp_path), tmp_path, clocked=True)
    assert left.core_seconds == pytest.approx(6 * (20 * 0.1 + 11 * (0.2 + 0.3)))
    assert left.start_seconds == 1.0


def test_nothing_heavy_is_imported_to_look_at_a_study(study, tmp_path):
    file = tmp_path / "s.toml"
    file.write_text("[grids.rate]\ntraining.learning_rate = [0.1, 0.2]\n")
    code = "import sys; from mechinterp.cli import main; code = main(sys.argv[1:]);"
    code += "print(code, sorted({'torch', 'h5py', 'plotly', 'transformer_lens', 'numba'} & set(sys.modules)))"
    for command in (["status"], ["collect", "--out", str(tmp_path)]):
        arguments = ["study", command[0], str(file), "--runs", str(tmp_path), *command[1:]]
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == f"{2 * (command[0] == 'collect')} []", done.stderr


def test_names_of_runs_do_not_change():
    """Those of runs that are on people's disks."""
    fast = mi.RunConfig.preset("reddy2023-fast")
    names = [run.id for run in Study.of("s", fast, {"a": {}, "b": {"task.burstiness": 2}}, [0]).runs]
    assert names == ["309c543bd59393f4", "ac37bc47e29025ed"]
    alike = {"classifier_width": 64}
    minimal = fast.updated({"model.kind": "induction_head", **{f"model.{k}": v for k, v in alike.items()}})
    one = Study("s", {"transformer": fast.updated({"model.classifier_width": 64}), "minimal": minimal}, [0])
    assert len({run.id for run in one.runs}) == 2
