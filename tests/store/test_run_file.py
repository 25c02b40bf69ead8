"""Run files: what they hold, what is refused, and that a refused file is not changed."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.errors import MechinterpError, RunFileError, UnknownNameError
from mechinterp.models.registry import initial_parameters
from mechinterp.store import Array, Contents, Header, RunFile, RunWriter, dense_path, keep_last
from mechinterp.store.hdf5 import require_same_hdf5
from mechinterp.store.layout import END_TYPE, STATUSES, digest, sealed
from mechinterp.training.recording import new_run_file
from mechinterp.training.runs import resume
from mechinterp.verification import verify
from tests.helpers import as_if_killed, with_header


@pytest.fixture
def copy(tiny_run, tmp_path):
    """A copy of a good run file, to damage."""
    return shutil.copy(tiny_run.path, tmp_path / "copy.h5")


def refused(path, match: str):
    before = hashlib.sha256(path.read_bytes()).digest()
    with pytest.raises(RunFileError, match=match) as caught:
        mi.open_run(path).model(20)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hashlib.sha256(path.read_bytes()).digest() == before


def header_of(**contents) -> Header:
    """A header for other people's weights."""
    return Header(
        id="0" * 32, created="", config=None, environments={"0": {}}, capacity=2, series_rows=10,
        contents=Contents(weights={"w": Array(shape=(2, 3)), "scale": Array(shape=(), dtype="<f8")}, **contents),
    )  # fmt: skip


def test_stored_digests_are_those_of_the_weights(tiny_run):
    assert all(tiny_run.digest(step) == digest(tiny_run.weights(step)).hex() for step in tiny_run.steps)
    assert len({tiny_run.digest(step) for step in tiny_run.steps}) == len(tiny_run.steps)


def test_config_and_environment_are_stored(tiny_run, tiny_config):
    assert tiny_run.config == tiny_config
    assert tiny_run.environment["engine"] == "fused"
    assert {"torch", "cpu_capability", "threads"} <= tiny_run.environment.keys()


def test_the_series_has_every_update_and_its_means_are_the_metrics(tiny_run):
    series, metrics = tiny_run.series, tiny_run.metrics
    assert list(series.index) == list(range(1, 21))
    for column in ("train_loss", "train_accuracy"):
        means = series[column].to_numpy().reshape(10, 2).mean(axis=1)
        np.testing.assert_allclose(means, metrics[column].to_numpy()[1:], rtol=1e-6)


def test_a_finished_file_is_as_large_as_its_content_and_plain_hdf5(tiny_run):
    """Its arrays fill it, but for the header, HDF5's own metadata and the alignment of 13 + 4 arrays."""
    header = tiny_run.file.header
    content = sum(rows * array.row_bytes for rows, array in header.arrays().values())
    content += header.capacity * header.record_type.itemsize
    assert (header.capacity, header.series_rows) == (11, 20)
    assert content < tiny_run.path.stat().st_size < content + 20 * 4096 + 2 * len(header.to_bytes())
    with h5py.File(tiny_run.path) as file:
        assert file.attrs["created"].decode() == tiny_run.created
        records = np.asarray(file["checkpoints"])
        assert records["step"].tolist() == tiny_run.steps
        assert records["metrics"]["train_loss"][1:].tolist() == tiny_run.metrics["train_loss"].tolist()[1:]
        for name, value in tiny_run.weights(20).items():
            assert (np.asarray(file[f"weights/{name}"][-1]) == value.numpy()).all()
        assert not [name for name in file["weights"] if "embed" in name or "W_O" in name or ".b_" in name]


def test_the_page_on_the_format_suffices_to_read_a_file(tiny_run):
    """A reader of numpy and the standard library, by docs/run-file.md alone."""
    content = tiny_run.path.read_bytes()
    name, version, length, seal = content[: content.index(b"\n")].split()
    body = content[content.index(b"\n") + 1 :][: int(length)]
    assert (name, version, hashlib.sha256(body).hexdigest()) == (b"mechinterp-run", b"2", seal.decode())
    header = json.loads(body)
    weights, metrics = header["contents"]["weights"], header["contents"]["metrics"]
    size, steps, loss = -(-(112 + 8 * len(metrics)) // 512) * 512, [], []
    for row in range(header["capacity"]):
        record = content[header["checkpoints"] + row * size :][:size]
        prefix = bytes.fromhex(header["id"]) + row.to_bytes(8, "little")
        if hashlib.sha256(prefix + record[:-32]).digest() != record[-32:]:
            break
        steps.append(int(np.frombuffer(record, "<i8", 1)[0]))
        loss.append(dict(zip(metrics, np.frombuffer(record, "<f8", len(metrics), 80), strict=True))["train_loss"])
        sha = hashlib.sha256()
        for name, array in weights.items():
            count = int(np.prod(array["shape"]))
            value = np.frombuffer(content, array["dtype"], count, array["offset"] + row * count * 4)
            sha.update(f"{name}{tuple(array['shape'])}".encode() + value.tobytes())
        assert sha.digest() == record[16:48]
    assert (steps, loss[1:]) == (tiny_run.steps, tiny_run.metrics["train_loss"].tolist()[1:])


def test_missing_file_folder_and_foreign_files(tmp_path):
    with pytest.raises(RunFileError, match=r"nope\.h5: does not exist"):
        mi.open_run(tmp_path / "nope.h5")
    with pytest.raises(RunFileError, match="is a folder"):
        mi.open_run(tmp_path)
    (tmp_path / "text.h5").write_text("hello")
    refused(tmp_path / "text.h5", "is no run file")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    refused(tmp_path / "other.h5", "no run file of schema version 2; a run file of version 1 must be trained anew")


def test_an_unknown_step_names_the_nearest(tiny_run):
    with pytest.raises(UnknownNameError, match="step 7 is not saved; the nearest is"):
        tiny_run.weights(7)


def test_parameters_other_than_those_of_the_config_are_refused(copy, tiny_run):
    contents = tiny_run.file.header.contents
    readout = contents.weights["classifier.readout.W"]
    for weights, match in (
        ({"classifier.readout.W": None}, r"the parameter classifier\.readout\.W is missing"),
        ({"evil": readout}, "the parameter evil does not belong to the network of its config"),
        ({"classifier.readout.W": readout.model_copy(update={"shape": (19, 5)})}, r"is \(19, 5\) <f4, expected"),
        ({"classifier.readout.W": readout.model_copy(update={"dtype": "<f2"})}, r"is \(19, 4\) <f2, expected"),
        ({"classifier.readout.W": readout.model_copy(update={"offset": 1 << 40})}, "it is cut off or damaged"),
        ({"classifier.readout.W": readout.model_copy(update={"dtype": "O"})}, r"contents\.weights.*dtype"),
        ({"../x": readout}, "its header is malformed"),
    ):
        shutil.copy(tiny_run.path, copy)
        merged = {name: array for name, array in {**contents.weights, **weights}.items() if array is not None}
        with_header(copy, {"contents": contents.model_copy(update={"weights": merged})})
        refused(copy, match)


def test_a_huge_declared_size_is_refused(copy):
    with_header(copy, {"capacity": 10**9})
    refused(copy, "it is cut off or damaged")


def test_another_schema_version(copy):
    content = copy.read_bytes()
    copy.write_bytes(content.replace(b"mechinterp-run 2 ", b"mechinterp-run 9 ", 1))
    refused(copy, "has schema version 9, expected 2")


def test_a_config_with_unknown_keys(copy):
    with_header(copy, {"config": {"task": {"n_clases": 3}}})
    refused(copy, "did you mean 'n_classes'")


def test_text_that_a_terminal_would_obey_is_refused(copy, tiny_run):
    with_header(copy, {"environments": {"0": {"torch": "\x1b[31m"}}})
    refused(copy, "its header is malformed")


@pytest.mark.parametrize("what", ["weights", "record", "header", "series", "end"])
def test_a_flipped_bit_is_noticed(copy, tiny_run, what):
    header = tiny_run.file.header
    at = {
        "weights": header.contents.weights["classifier.readout.W"].offset + 10 * 19 * 4 * 4 + 5,
        "record": header.checkpoints + 3 * 512 + 5,
        "header": 300,
        "series": header.contents.series["train_loss"].offset + 9,
        "end": header.end + 3,
    }[what]
    content = bytearray(copy.read_bytes())
    content[at] ^= 1
    copy.write_bytes(content)
    if what == "series":
        with pytest.raises(RunFileError, match="do not match their digest"):
            _ = mi.open_run(copy).series
    elif what == "end":
        assert mi.open_run(copy).status == "complete", "there are two copies"
    else:
        refused(copy, {"weights": "match their digest", "record": "record of checkpoint 3", "header": "checksum"}[what])
    assert verify(copy).sound == (what == "end")


def test_lost_records_are_noticed(copy, tiny_run):
    """A block of zeros in place of the last records, or of some."""
    at, content = tiny_run.file.header.checkpoints, copy.read_bytes()
    last = ((8, 11, "has 8 of 11 checkpoints"), (10, 11, "has 10 of 11 checkpoints"))
    for start, stop, match in (*last, (2, 9, "the record of checkpoint 2 is damaged")):
        copy.write_bytes(content[: at + start * 512] + bytes((stop - start) * 512) + content[at + stop * 512 :])
        refused(copy, match)


def test_a_step_that_is_there_twice_is_noticed(copy, tiny_run):
    """Whole records, of which two say the same step."""
    at, kind, content = tiny_run.file.header.checkpoints, tiny_run.file._type, bytearray(copy.read_bytes())
    records = np.frombuffer(content[at : at + 11 * kind.itemsize], kind).copy()
    records[4]["step"] = records[5]["previous"] = records[3]["step"]
    for row in (4, 5):
        start = at + row * kind.itemsize
        content[start : start + kind.itemsize] = sealed(tiny_run.file.header.id, row, records[row : row + 1])
    copy.write_bytes(content)
    refused(copy, "its steps do not ascend")


def test_a_record_after_the_end_does_not_count(copy, tiny_run):
    """Its writer was stopped before it acknowledged the checkpoint, or lost it and went on to end the run."""
    header, content = tiny_run.file.header, bytearray(copy.read_bytes())
    record = np.zeros((), END_TYPE)
    record["status"], record["checkpoints"] = STATUSES.index("interrupted"), 10
    content[header.end : header.end + 2 * END_TYPE.itemsize] = 2 * sealed(header.id, -1, record)
    copy.write_bytes(content)
    run = mi.open_run(copy)
    assert (run.steps, run.status) == (tiny_run.steps[:10], "interrupted")
    resumed = resume(copy, progress=False)
    assert [resumed.digest(step) for step in resumed.steps] == [tiny_run.digest(step) for step in tiny_run.steps]


def test_a_checkpoint_whose_weights_did_not_reach_the_disk_does_not_count(copy, tiny_run):
    as_if_killed(copy)
    content, array = bytearray(copy.read_bytes()), tiny_run.file.header.contents.weights["blocks.0.attn.W_Q"]
    content[array.offset + 10 * array.row_bytes] ^= 1
    copy.write_bytes(content)
    run = mi.open_run(copy)
    assert (run.steps, run.status) == (tiny_run.steps[:-1], "running")
    resumed = resume(copy, progress=False)
    assert [resumed.digest(step) for step in resumed.steps] == [tiny_run.digest(step) for step in tiny_run.steps]
    assert verify(copy).sound


def test_a_run_is_readable_while_it_is_written(tiny_config, tmp_path):
    path, parameters = tmp_path / "live.h5", initial_parameters(tiny_config)
    with new_run_file(path, tiny_config) as writer:
        assert not path.exists()
        writer.append(0, parameters, {"train_loss": 1.0, "train_accuracy": 0.5})
        run = mi.open_run(path)
        assert (run.steps, run.status) == ([0], "running")
        writer.append(2, parameters, {"train_loss": 1.0, "train_accuracy": 0.5})
        assert run.steps == [0, 2]
        assert run.digest(2) == digest(run.weights(2)).hex()
        with h5py.File(path) as file:
            assert file["checkpoints"]["step"].tolist()[:3] == [0, 2, 0]
    assert run.status == "complete"
    assert run.steps == [0, 2]


def test_no_room_is_an_error_before_anything_is_written(tiny_config, tmp_path, monkeypatch):
    def fallocate(descriptor, offset, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", fallocate)
    with pytest.raises(RunFileError, match=r"no room for 11 checkpoints \(0\.3 MB\)"):
        mi.train(tiny_config, tmp_path / "full.h5", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_any_weights_metrics_series_and_optimizer_state(tmp_path):
    """A file without a config that grows beyond its room, with the optimizer's state at every second checkpoint."""
    state = {"exp_avg.w": Array(shape=(2, 3)), "count": Array(shape=(), dtype="<i8")}
    header = header_of(
        metrics=("loss", "a b"), series={"loss": Array(shape=())}, optimizer=state, optimizer_every=2, series_every=5
    )
    path, rng = tmp_path / "own.h5", np.random.default_rng(0)
    weights = {
        step: {
            "w": torch.from_numpy(rng.normal(size=(2, 3)).astype("f4")),
            "scale": torch.tensor(rng.normal()).double(),
        }
        for step in (0, 10, 25, 45, 300)
    }
    weights = {
        step: {name: v.double() if name == "scale" else v for name, v in row.items()} for step, row in weights.items()
    }
    moments = {step: {"exp_avg.w": row["w"] * 2, "count": torch.tensor(step)} for step, row in weights.items()}
    with RunWriter(path, header) as writer:
        for step, row in weights.items():
            losses = np.arange(step // 5, dtype="f4")[-3:]
            writer.append(step, row, {"loss": step / 7}, series={"loss": losses}, optimizer=moments[step])
    file = RunFile(path)
    assert file.steps == [0, 10, 25, 45, 300]
    assert file.header.capacity == 5
    for step, row in weights.items():
        assert all((file.weights(step)[name] == value).all() for name, value in row.items())
        stored = file.optimizer_state(step)
        assert bool(stored) == (step in (0, 25, 300))
        assert all((stored[name] == moments[step][name]).all() for name in stored)
    assert file.metrics()["loss"].tolist() == [0, 10 / 7, 25 / 7, 45 / 7, 300 / 7]
    assert file.metrics()["a b"].isna().all()
    series = file.series()["loss"]
    assert series.index.tolist() == list(range(5, 305, 5))
    assert series.loc[[5, 10, 15, 20, 25, 300]].tolist() == [0, 1, 2, 3, 4, 59]
    assert series.loc[50:285].isna().all()
    with pytest.raises(RunFileError, match="has no config"):
        _ = mi.open_run(path).config
    require_same_hdf5(path, file.header)


def test_a_series_without_room_is_kept_whole(tmp_path):
    header = header_of(series={"loss": Array(shape=())}).model_copy(update={"series_rows": 0})
    good = {"w": torch.zeros(2, 3), "scale": torch.tensor(1.0, dtype=torch.float64)}
    with RunWriter(tmp_path / "own.h5", header) as writer:
        for step in (0, 3, 6, 60, 61):
            writer.append(step, good, {}, series={"loss": np.arange(step, dtype="f4")})
    series = RunFile(tmp_path / "own.h5").series()["loss"]
    assert series.index.tolist() == list(range(1, 62))
    assert series.tolist() == [0, 1, 2, 3, 4, 5, *range(6, 60), 60]


@pytest.mark.parametrize(
    ("step", "weights", "metrics", "match"),
    [
        (0, {}, {}, "step 0 does not follow step 0"),
        (1, {"w": torch.zeros(3, 2)}, {}, r"parameter w is \(3, 2\) float32, expected \(2, 3\) float32"),
        (1, {"scale": torch.tensor(1.0)}, {}, "parameter scale is .* float32, expected .* float64"),
        (1, {"more": torch.zeros(1)}, {}, "parameter more is not in the file"),
        (1, {}, {"los": 1.0}, "has no metric 'los'; it has loss"),
    ],
)
def test_what_does_not_fit_the_layout_is_refused(tmp_path, step, weights, metrics, match):
    good = {"w": torch.zeros(2, 3), "scale": torch.tensor(1.0, dtype=torch.float64)}
    with RunWriter(tmp_path / "own.h5", header_of(metrics=("loss",))) as writer:
        writer.append(0, good, {})
        with pytest.raises(MechinterpError, match=match):
            writer.append(step, good | weights, metrics)
    assert RunFile(tmp_path / "own.h5").steps == [0]


def test_a_run_of_the_name_of_a_side_file_is_kept(tiny_config, tmp_path):
    """`fast.dense.h5` may be a run of its own, whatever happens to `fast.h5`."""
    path, other = tmp_path / "fast.h5", tmp_path / "fast.dense.h5"
    mi.train(tiny_config, other, progress=False)
    before = other.read_bytes()
    mi.train(tiny_config, path, progress=False)
    run = mi.train(tiny_config, path, overwrite=True, progress=False)
    assert run.steps == list(range(0, 21, 2))
    with pytest.raises(MechinterpError, match="is a run of its own"):
        run.densify(start=2, stop=6, every=1)
    assert other.read_bytes() == before


def test_a_side_file_of_another_run_is_not_read_and_kept(tiny_config, tmp_path):
    path = tmp_path / "fast.h5"
    mi.train(tiny_config, path, progress=False).densify(start=2, stop=6, every=1)
    before = dense_path(path).read_bytes()
    path.unlink()
    run = mi.train(tiny_config.updated({"seed": 1}), path, progress=False)
    assert run.steps == list(range(0, 21, 2))
    with pytest.raises(MechinterpError, match="has steps of another run"):
        run.densify(start=2, stop=6, every=1)
    assert dense_path(path).read_bytes() == before


def test_the_side_file_of_an_overwritten_run_goes_with_it_even_if_it_came_meanwhile(tiny_config, tmp_path, monkeypatch):
    path = tmp_path / "fast.h5"
    run = mi.train(tiny_config, path, progress=False)
    original = RunWriter._publish

    def publish(self):
        if self.path == path and self._temporary is not None:
            monkeypatch.undo()
            run.densify(start=2, stop=6, every=1)
            assert dense_path(path).exists()
        original(self)

    monkeypatch.setattr(RunWriter, "_publish", publish)
    assert mi.train(tiny_config.updated({"seed": 1}), path, overwrite=True, progress=False).side_file is None
    assert not dense_path(path).exists()


def test_a_reader_follows_a_side_file_and_keep_last(tiny_config, tmp_path):
    """Other rows have the same steps then."""
    path = tmp_path / "fast.h5"
    run = mi.train(tiny_config, path, progress=False)
    early = mi.open_run(path)
    run.densify(start=13, stop=13, every=1)
    one, other = mi.open_run(path), mi.open_run(path)
    expected = {step: one.digest(step) for step in (13, 20)}
    assert digest(one.weights(13)).hex() == expected[13]
    assert other.densify(start=3, stop=3, every=1).exact
    for step in (13, 20):
        assert digest(one.weights(step)).hex() == one.digest(step) == expected[step]
    assert early.densify(start=5, stop=5, every=1).exact, "it has seen what was rebuilt meanwhile"
    assert mi.open_run(path).steps == [0, 2, 3, 4, 5, *range(6, 14, 2), 13, 14, 16, 18, 20]
    keep_last(path)
    assert digest(one.weights(20)).hex() == one.digest(20) == expected[20]
    assert len(one.series) == 0


def test_a_step_is_there_as_soon_as_it_is_committed(tiny_config, tmp_path):
    path, parameters = tmp_path / "live.h5", initial_parameters(tiny_config)
    with new_run_file(path, tiny_config) as writer:
        writer.append(0, parameters, {})
        for step, read in ((2, RunFile.digest), (4, RunFile.metrics_at), (6, RunFile.weights), (8, RunFile.series)):
            file = RunFile(path)
            writer.append(step, parameters, {})
            read(file, step)
            with pytest.raises(RunFileError, match="step 7 is not there"):
                read(file, 7)


def test_keep_last_that_is_stopped_leaves_all(copy, tiny_run, monkeypatch):
    def stop(self, status):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunWriter, "_write_end", stop)
    with pytest.raises(KeyboardInterrupt):
        keep_last(copy)
    run = mi.open_run(copy)
    assert (run.steps, run.status) == (tiny_run.steps, "complete")


def test_rebuilt_steps_lie_beside_the_file_and_not_beside_its_link(tiny_config, tmp_path):
    (tmp_path / "links").mkdir()
    link, path = tmp_path / "links" / "link.h5", tmp_path / "fast.h5"
    mi.train(tiny_config, path, progress=False)
    link.symlink_to(path)
    mi.open_run(link).densify(start=3, stop=3, every=1)
    assert 3 in mi.open_run(path).steps
    assert mi.train(tiny_config, link, overwrite=True, progress=False).side_file is None
    assert not dense_path(path).exists()


def test_headers_that_would_take_all_memory_or_time_are_refused(copy, tiny_run):
    contents = tiny_run.file.header.contents
    for changes, match in (
        ({"contents": contents.model_copy(update={"metrics": ("a", "a")})}, "has a name twice"),
        ({"contents": contents.model_copy(update={"metrics": tuple(map(str, range(9_000)))})}, "at most 500 items"),
        ({"contents": contents.model_copy(update={"weights": {"..": Array(shape=(1,))}})}, "no name of an HDF5"),
        ({"series_rows": 1 << 30}, "series of 12,884,901,888 bytes"),
    ):
        before = with_header(copy, changes)
        refused(copy, match)
        with copy.open("r+b") as file:
            file.write(before.to_bytes())
    assert mi.open_run(copy).steps == tiny_run.steps


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(RunFileError, match="is no file"):
        mi.open_run(tmp_path / "pipe.h5")


def test_links_stay_and_planted_ones_are_not_followed(tiny_config, tmp_path):
    target, link, victim = tmp_path / "target.h5", tmp_path / "link.h5", tmp_path / "victim"
    mi.train(tiny_config.updated({"training.steps": 10}), target, progress=False)
    link.symlink_to(target)
    victim.write_text("mine")
    (tmp_path / ".target.h5.part").symlink_to(victim)
    assert resume(link, until=20, progress=False).steps[-1] == 20
    assert link.is_symlink()
    assert mi.open_run(target).steps[-1] == 20
    assert victim.read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link.h5", "target.h5", "victim"]


def test_what_a_killed_writer_has_left_is_removed(tiny_config, tmp_path):
    (tmp_path / ".run.h5.part").write_bytes(b"half a file")
    mi.train(tiny_config, tmp_path / "run.h5", progress=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.h5"]


@pytest.mark.parametrize("name", ["x" * 247 + ".h5", "ä" * 120 + ".h5", "a\nb.h5", "[*]?.h5"])
def test_odd_names(tiny_config, tmp_path, name):
    path = tmp_path / name
    mi.train(tiny_config, path, progress=False)
    assert resume(path, until=30, progress=False).steps[-1] == 30
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_names_that_cannot_be_are_refused_in_a_line(tiny_config, tmp_path):
    (tmp_path / ".run.h5.part").mkdir()
    for path in (tmp_path / ("x" * 300 + ".h5"), tmp_path / "run.h5", Path("/proc/nope/run.h5"), tmp_path / "a\0.h5"):
        with pytest.raises(MechinterpError) as caught:
            mi.train(tiny_config, path, progress=False)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_exchanged_under_its_reader(tiny_config, tiny_run, tmp_path):
    """The old content or an error, also if the new file has the old one's place on the disk."""
    other = mi.train(tiny_config.updated({"seed": 1}), tmp_path / "other.h5", progress=False)
    for exchange in (shutil.copy, lambda source, path: Path(shutil.copy(source, tmp_path / "new")).replace(path)):
        path = shutil.copy(tiny_run.path, tmp_path / "run.h5")
        run = mi.open_run(path)
        exchange(other.path, path)
        for read in (lambda run: run.steps, lambda run: run.weights(20), lambda run: run.metrics):
            with pytest.raises(RunFileError, match="another run is there now; open it again"):
                read(run)
        run = mi.open_run(path)
        path.write_bytes(path.read_bytes()[:30_000])
        with pytest.raises(RunFileError, match="cut off"):
            run.weights(20)
        path.unlink()
        with pytest.raises(RunFileError, match="does not exist"):
            run.weights(20)


def test_a_reader_follows_a_run_into_a_larger_file(tiny_config, tmp_path):
    path = tmp_path / "run.h5"
    run = mi.train(tiny_config, path, progress=False)
    resume(path, until=30, progress=False)
    assert (run.steps[-1], len(run.series)) == (30, 30)
    keep_last(path)
    assert (run.steps, run.status) == ([30], "complete")
    with pytest.raises(UnknownNameError, match="step 20 is not saved"):
        run.weights(20)


def test_a_writer_whose_file_is_deleted_or_replaced_says_so(tiny_config, tiny_run, tmp_path):
    path, parameters = tmp_path / "run.h5", initial_parameters(tiny_config)
    for replace in (Path.unlink, lambda there: Path(shutil.copy(tiny_run.path, tmp_path / "new")).replace(there)):
        writer = new_run_file(path, tiny_config, overwrite=True)
        writer.append(0, parameters, {})
        replace(path)
        with pytest.raises(RunFileError, match="was deleted or replaced while it was being written"):
            writer.append(2, parameters, {})
        writer.close(RuntimeError())
    assert mi.open_run(path).steps == tiny_run.steps


def test_where_the_system_has_no_locks_files_can_be_read_and_not_written(tiny_run, tiny_config, tmp_path, monkeypatch):
    """As on Windows."""
    monkeypatch.setattr("mechinterp.files.fcntl", None)
    assert mi.open_run(tiny_run.path).steps == tiny_run.steps
    with pytest.raises(MechinterpError, match="written on Linux and macOS only; here, run files can be read"):
        mi.train(tiny_config, tmp_path / "run.h5", progress=False)
    assert not list(tmp_path.iterdir())
