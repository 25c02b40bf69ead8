"""Studies are carried out once, to the same bits, wherever they run."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch

import mechinterp as mi
from mechinterp.cli import main
from mechinterp.errors import MechinterpError
from mechinterp.report.study import write_study_report
from mechinterp.studies import worker
from mechinterp.studies.cluster import cluster
from mechinterp.studies.cost import spent
from mechinterp.studies.jobs import jobs_of
from mechinterp.studies.processes import end as end_workers
from mechinterp.studies.results import Results
from mechinterp.studies.runner import (
    compare,
    describe_guessing,
    describe_spikes,
    measured,
    run_study,
    states,
    study_table,
)
from mechinterp.studies.study import Study
from mechinterp.training.spikes import spikes_of
from mechinterp.verification import verify
from tests.conftest import SPIKING, TINY
from tests.helpers import as_if_killed
from tests.store.survival_children import one_thread
from tests.studies.helpers import digests, straight, written

pytestmark = pytest.mark.usefixtures("kept_workers")
CLAMP = {"kind": "clamp", "layer": 0, "pattern": "uniform", "strength": 0.5}


@pytest.fixture(scope="module")
def study(tiny_config) -> Study:
    variants = {"free": {}, "clamped": {"interventions": [CLAMP]}}
    return Study.of("tiny", tiny_config, variants, [0, 1], ["icl_accuracy", "ila1"])


@pytest.fixture(scope="module")
def done(study, kept_workers, tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """The study, carried out by two workers."""
    folder = tmp_path_factory.mktemp("two")
    return folder, run_study(study, folder, workers=2, progress=False)


def test_the_table_has_a_row_for_every_run(study, done):
    folder, table = done
    assert list(table["variant"]) == ["free", "free", "clamped", "clamped"]
    assert set(table["status"]) == {"done"}
    run = mi.open_run(folder / f"{study.runs[0].id}.h5")
    expected = mi.measure(run)
    pd.testing.assert_frame_equal(measured(study, folder)["free", 0], expected, check_exact=False, check_dtype=False)
    assert table["final_icl_accuracy"][0] == pytest.approx(expected["icl_accuracy"].iloc[-1])
    assert table["final_clamped_icl_accuracy"].notna().tolist() == [False, False, True, True]
    assert compare(table).loc["clamped", ["runs", "done", "transitions"]].tolist() == [2, 2, 0]


def test_the_table_and_the_page_say_which_runs_have_loss_spikes(tmp_path):
    config = mi.RunConfig().updated({**SPIKING, "training.steps": 100})
    variants = {"calm": {"training.learning_rate": 0.01}, "spiking": {}}
    study = Study.of("spikes", config, variants, [0], ["icl_accuracy"])
    for _, job in jobs_of(study, tmp_path):
        worker.do(job)
    table = study_table(study, tmp_path)
    spikes = spikes_of(mi.open_run(tmp_path / f"{study.runs[1].id}.h5").file.metrics())
    assert spikes
    assert table["first_spike"].isna().tolist() == [True, False]
    assert table["first_spike"][1] == spikes.first
    said = describe_spikes(table)
    assert said
    assert said.startswith("loss spikes in 1 of 2 runs (spiking); what is measured after the first spike of a run")
    page = write_study_report(study, table, tmp_path, tmp_path / "page.html").read_text()
    assert f'<p class="note">{said}.</p>' in page
    assert '<th class="n">first spike</th>' in page
    assert describe_spikes(table.iloc[:1]) is None


def test_transitions_to_guessing_are_told_from_those_beyond(tiny_config, tmp_path):
    """Of the first study, every context has 3 labels: guessing among them is right in 1/3."""
    ends = {"guesses": [0.33, 0.36], "at_chance": [0.25], "Learns": [0.37, 0.99]}
    rows = [(name, True, after) for name, values in ends.items() for after in values] + [("none", False, None)]
    table = pd.DataFrame(rows, columns=["variant", "transition", "after"])
    study = Study.of("s", tiny_config, {name: {} for name in [*ends, "none"]}, [0], ["icl_accuracy"])
    way = "no more than guessing among the 3 labels of the context (0.333)"
    assert describe_guessing(study, table) == f"{way}: transitions of guesses, at_chance"
    assert describe_guessing(study, table[table["variant"] == "Learns"]) is None
    assert describe_guessing(study, table[table["variant"] == "none"]) is None
    assert describe_guessing(Study.of("s", tiny_config, {"guesses": {}}, [0], ["cla"]), table[:2]) is None


def test_one_worker_two_workers_and_a_plain_training_give_the_same_bits(study, done, tmp_path, monkeypatch):
    started, original = [], subprocess.Popen.__init__

    def start(self, *arguments, **options):
        started.append(arguments)
        original(self, *arguments, **options)

    end_workers()
    monkeypatch.setattr(subprocess.Popen, "__init__", start)
    run_study(study, tmp_path / "one", workers=1, progress=False)
    assert len(started) == 1  # one process does all four, one after another
    expected = straight(study, tmp_path)
    assert digests(study, done[0]) == digests(study, tmp_path / "one") == expected


def test_what_is_done_is_not_done_again(study, done):
    folder, table = done
    before = written(folder)
    pd.testing.assert_frame_equal(run_study(study, folder, progress=False), table)
    assert written(folder) == before
    more = Study(study.name, study.variants, study.seeds, ["icl_accuracy"])
    run_study(more, folder, workers=2, progress=False)  # located anew, not trained
    after = written(folder)
    assert {name for name in before if name.endswith(".h5") and before[name] != after[name]} == set()
    run_study(study, folder, workers=2, progress=False)


def test_transitions_are_compared_by_seed():
    rows = [("a", 0, 10.0), ("a", 1, 20.0), ("a", 2, None), ("b", 0, 5.0), ("b", 1, 30.0), ("b", 2, 7.0)]
    table = pd.DataFrame(rows, columns=["variant", "seed", "step"]).assign(
        status="done", after=1.0, final_icl_accuracy=1.0
    )
    found = compare(table)
    assert found.loc["b", ["transitions", "step", "ratio", "ratio_low", "ratio_high"]].tolist() == [3, 7, 1, 0.5, 1.5]
    assert found.loc["a", ["transitions", "ratio"]].tolist() == [2, 1]


def test_a_failure_is_recorded_and_left_until_a_retry(tiny_config, tmp_path):
    wild = {"wild": {"training.learning_rate": 1e9}}
    study = Study.of("fails", tiny_config, {"free": {}, **wild}, [0], ["icl_accuracy"])
    table = run_study(study, tmp_path, progress=False).set_index("variant")
    assert table["status"].to_dict() == {"free": "done", "wild": "failed"}
    assert "learning_rate" in table.loc["wild", "error"]
    before = written(tmp_path)
    run_study(study, tmp_path, progress=False)
    assert written(tmp_path) == before
    only = Study.of("only", tiny_config, wild, [0], ["icl_accuracy"])
    assert compare(run_study(only, tmp_path, progress=False)).loc["wild", ["done", "transitions"]].tolist() == [0, 0]
    run_study(study, tmp_path, retry=True, progress=False)
    assert {name for name, at in written(tmp_path).items() if before[name] != at} == {f"{study.runs[1].id}.failed.json"}


def test_a_variant_that_diverges_at_once_stops_neither_the_estimate_nor_the_others(tmp_path, capsys):
    """One of them fails in its first steps, in which it would be timed."""
    file, runs = tmp_path / "wild.toml", tmp_path / "runs"
    base = "\n".join(f"{key} = {value!r}" for key, value in TINY.items())
    file.write_text(
        f"seeds = [0]\nmeasures = ['icl_accuracy']\n[variants.wild]\ntraining.learning_rate = 1e9\n"
        f"[variants.free]\nmodel.classifier_width = 5\n[base]\n{base}\n"
    )
    assert main(["study", str(file), "--workers", "1", "--runs", str(runs), "--out", str(tmp_path)]) == 1
    assert "not timed yet: 1 of them" in capsys.readouterr().err
    assert pd.read_csv(tmp_path / "wild.csv")["status"].tolist() == ["failed", "done"]


def test_a_batch_in_which_one_has_failed_before_goes_on_without_it(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("mechinterp.studies.jobs.faster_together", lambda config: True)
    study = Study.of("fails", tiny_config, {"wild": {"training.learning_rate": 1e9}, "free": {}}, [0], ["ila1"])
    for retry in (False, True):
        table = run_study(study, tmp_path, workers=1, runs_per_device=2, retry=retry, progress=False)
        assert table["status"].tolist() == ["failed", "done"]
        (tmp_path / f"{study.runs[1].id}.h5").unlink()


def test_what_is_asked_later_is_located_in_what_was_measured_and_both_studies_are_done(study, tmp_path):
    """Runs that keep their last checkpoint only are not trained again for it, and their cost stays what it was."""
    one, two = (
        Study(study.name, {"free": study.variants["free"]}, [0], measures, keep="last")
        for measures in (["icl_accuracy", "swap_accuracy"], ["icl_accuracy", "iwl_accuracy"])
    )
    run_study(one, tmp_path, workers=1, progress=False)
    before, cost = written(tmp_path), spent(one, Results(tmp_path), tmp_path)
    table = run_study(two, tmp_path, workers=1, progress=False)
    assert {name.partition(".")[2] for name, at in written(tmp_path).items() if before[name] != at} == {"json"}
    whole = run_study(Study("s", two.variants, [0], two.measures), tmp_path / "whole", workers=1, progress=False)
    pd.testing.assert_frame_equal(table, whole)
    found = Results(tmp_path)
    assert states(one, found, tmp_path)["done"].tolist() == states(two, found, tmp_path)["done"].tolist() == [1]
    assert spent(two, found, tmp_path) == cost


def test_studies_that_keep_all_and_the_last_checkpoint_at_once_keep_all(study, tmp_path):
    """Whichever comes first: what the outcome says of the checkpoints is true."""
    thin = Study(study.name, study.variants, study.seeds, study.measures, keep="last")
    with ThreadPoolExecutor() as both:
        list(both.map(lambda each: run_study(each, tmp_path, workers=1, progress=False), (thin, study)))
    for _, job in jobs_of(study, tmp_path):
        outcome = Results(tmp_path).of(job)
        assert outcome is not None
        assert outcome["kept"] == "all"
        assert len(mi.open_run(tmp_path / f"{job['id']}.h5").steps) == 11


def test_a_run_that_another_study_begins_while_it_is_set_up_is_taken_over(study, tmp_path, monkeypatch):
    (_, job), *_ = jobs_of(study, tmp_path)

    def begun_by_another(config, path, **options):
        mi.train(config, path, **options)
        return mi.train(config, path, **options)  # "exists already"

    monkeypatch.setattr(worker, "train", begun_by_another)
    assert worker.do(job)["kept"] == "all"


def test_two_studies_at_once_share_their_runs(study, tmp_path):
    with ThreadPoolExecutor() as both:
        one, other = list(both.map(lambda _: run_study(study, tmp_path, workers=1, progress=False), range(2)))
    pd.testing.assert_frame_equal(one, other)
    assert set(one["status"]) == {"done"}
    assert not list(tmp_path.glob("*.failed.json"))


def test_a_run_whose_writer_was_killed_after_its_stop_rule_is_complete(tiny_config, tmp_path):
    """It had no time to say so."""
    config = tiny_config.updated({"training.stop_accuracy": 0.001})
    study = Study.of("stops", config, {"free": {}}, [0], ["icl_accuracy"])
    path = tmp_path / f"{study.runs[0].id}.h5"
    with one_thread():
        stopped = mi.train(config, path, progress=False)
    as_if_killed(path)
    assert set(run_study(study, tmp_path, progress=False)["status"]) == {"done"}
    run = mi.open_run(path)
    assert (run.status, run.steps, run.digest(run.steps[-1])) == (
        "complete",
        stopped.steps,
        stopped.digest(stopped.steps[-1]),
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_refused_before_anything_starts(study, tmp_path):
    with pytest.raises(MechinterpError, match="torch finds no CUDA device"):
        run_study(study, tmp_path / "runs", device="cuda", progress=False)
    assert not list(tmp_path.iterdir())


def test_an_unknown_measure_is_refused_when_the_study_is_stated(tiny_config):
    with pytest.raises(MechinterpError, match="unknown measure 'icl_acuracy'; did you mean 'icl_accuracy'"):
        Study.of("s", tiny_config, {"free": {}}, [0], ["icl_acuracy"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grafted": [{"kind": "graft", "run": "no.h5", "step": 1}]}, r"variant 'grafted': no\.h5"),
        ({"fixed": [{"kind": "fix", "parameters": ["blocks.0.attn.W"]}]}, "variant 'fixed'.*W_"),
    ],
)
def test_everything_is_checked_before_anything_starts(tiny_config, tmp_path, changes, message):
    variants = {name: {"interventions": each} for name, each in changes.items()}
    study = Study.of("s", tiny_config, variants, [0], ["icl_accuracy"])
    with pytest.raises(MechinterpError, match=message):
        run_study(study, tmp_path / "runs", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('provider = "slrm"', "did you mean 'slurm'"),
        ("workers = 0", "expected at least 1"),
        ("nodes = 3", "LocalProvider"),
    ],
)
def test_a_faulty_cluster_is_refused(tmp_path, text, message):
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(MechinterpError, match=message), cluster(path):
        pass


def test_runs_in_one_batch_are_measured_like_those_alone(study, done, tmp_path, monkeypatch):
    """The clamped ones, which cannot, are trained alone, to the same bits."""
    monkeypatch.setattr("mechinterp.studies.jobs.faster_together", lambda config: True)
    table = run_study(study, tmp_path, workers=1, runs_per_device=2, progress=False)
    assert set(table["status"]) == {"done"}
    engines = [mi.open_run(tmp_path / f"{run.id}.h5").environment["engine"] for run in study.runs]
    assert engines == ["batched", "batched", "fused", "fused"]
    expected, found = measured(study, done[0]), measured(study, tmp_path)
    for run in study.runs:
        same = run.variant == "clamped"
        ours, theirs = found[run.variant, run.seed], expected[run.variant, run.seed]
        pd.testing.assert_frame_equal(ours, theirs, check_exact=same, atol=0.005, rtol=0.005)


def test_runs_that_are_done_may_keep_their_last_checkpoint_only(study, done, tmp_path):
    folder, table = done
    thin = Study(study.name, study.variants, study.seeds, study.measures, keep="last")
    pd.testing.assert_frame_equal(run_study(thin, tmp_path, workers=1, progress=False), table)
    for run in study.runs:
        ours, theirs = (mi.open_run(where / f"{run.id}.h5") for where in (tmp_path, folder))
        last = theirs.steps[-1]
        assert (ours.status, ours.steps, ours.digest(last)) == ("complete", [last], theirs.digest(last))
        assert verify(ours.path).sound
    assert digests(study, tmp_path) == digests(study, folder)
    before = written(tmp_path)
    run_study(thin, tmp_path, progress=False)
    assert written(tmp_path) == before
    only = Study(study.name, {"free": study.variants["free"]}, [0], study.measures)  # all checkpoints: trained anew
    run_study(only, tmp_path, progress=False)
    assert len(mi.open_run(tmp_path / f"{only.runs[0].id}.h5").steps) == 11
