"""Run files: what is refused, and that a refused file is not changed."""

import hashlib
import shutil

import h5py
import numpy as np
import pytest

import mechinterp as mi
from mechinterp.errors import RunFileError, UnknownNameError
from mechinterp.store.schema import digest
from tests.helpers import dataset


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


def test_stored_digests_are_those_of_the_weights(tiny_run):
    assert all(tiny_run.digest(step) == digest(tiny_run.weights(step)).hex() for step in tiny_run.steps)
    assert len({tiny_run.digest(step) for step in tiny_run.steps}) == len(tiny_run.steps)


def test_config_and_environment_are_stored(tiny_run, tiny_config):
    assert tiny_run.config == tiny_config
    assert tiny_run.environment["engine"] == "fused"
    assert {"torch", "cpu_capability", "threads"} <= tiny_run.environment.keys()


def test_only_trained_parameters_are_stored(tiny_run):
    with h5py.File(tiny_run.path) as file:
        weights = file["weights"]
        assert isinstance(weights, h5py.Group)
        assert not [name for name in map(str, weights) if "embed" in name or "W_O" in name or ".b_" in name]


def test_missing_file_folder_and_foreign_files(tmp_path):
    with pytest.raises(RunFileError, match=r"nope\.h5: does not exist"):
        mi.open_run(tmp_path / "nope.h5")
    with pytest.raises(RunFileError, match="is a folder"):
        mi.open_run(tmp_path)
    (tmp_path / "text.h5").write_text("hello")
    refused(tmp_path / "text.h5", "is no HDF5 file")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    refused(tmp_path / "other.h5", "is an HDF5 file, but no run file")


def test_an_unknown_step_names_the_nearest(tiny_run):
    with pytest.raises(UnknownNameError, match="step 7 is not saved; the nearest is"):
        tiny_run.weights(7)


def test_a_missing_dataset(copy):
    with h5py.File(copy, "r+") as file:
        del file["weights/classifier.readout.W"]
    refused(copy, r"/weights/classifier\.readout\.W is missing")


def test_an_extra_dataset(copy):
    with h5py.File(copy, "r+") as file:
        file["weights/evil"] = np.zeros(3)
    refused(copy, "/weights/evil does not belong")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (np.zeros((11, 19, 5), "f4"), r"has shape \(11, 19, 5\), expected \(checkpoint, 19, 4\)"),
        (np.zeros((11, 19, 4), "f8"), "has type float64, expected float32"),
        (np.zeros((3, 19, 4), "f4"), "has 3 rows, expected at least 11"),
        (np.full((11, 19, 4), np.nan, "f4"), "is not finite"),
        (np.full((11, 19, 4), b"x", h5py.string_dtype()), "has type object, expected float32"),
    ],
)
def test_a_misshapen_dataset(copy, data, match):
    with h5py.File(copy, "r+") as file:
        del file["weights/classifier.readout.W"]
        file["weights/classifier.readout.W"] = data
    refused(copy, match)


def test_links_to_elsewhere_are_not_followed(copy, tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.zeros((11, 19, 4), "f4")
    for link in (h5py.ExternalLink(str(secret), "/x"), h5py.SoftLink("/weights/classifier.layers.0.W")):
        with h5py.File(copy, "r+") as file:
            del file["weights/classifier.readout.W"]
            file["weights/classifier.readout.W"] = link
        refused(copy, "is a link to another place")


def test_virtual_and_external_storage_are_not_read(copy, tmp_path):
    name = "weights/classifier.readout.W"
    (tmp_path / "raw").write_bytes(bytes(11 * 19 * 4 * 4))
    with h5py.File(copy, "r+") as file:
        del file[name]
        file.create_dataset(name, (11, 19, 4), "f4", external=[(str(tmp_path / "raw"), 0, 11 * 19 * 4 * 4)])
    refused(copy, "outside the file")
    layout = h5py.VirtualLayout((11, 19, 4), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "nope.h5"), "x", (11, 19, 4))
    with h5py.File(copy, "r+") as file:
        del file[name]
        file.create_virtual_dataset(name, layout)
    refused(copy, "outside the file")


def test_a_huge_declared_size_is_refused(copy):
    with h5py.File(copy, "r+") as file:
        dataset(file, "weights/classifier.readout.W").resize(10**9, axis=0)
    refused(copy, "more than the file holds")


def test_a_flipped_bit_is_noticed(copy, tiny_run):
    with h5py.File(copy) as file:
        offset = file["weights/classifier.readout.W"].id.get_chunk_info(10).byte_offset
    content = bytearray(copy.read_bytes())
    content[offset + 5] ^= 1
    copy.write_bytes(content)
    refused(copy, "cannot be read, it is damaged")


def test_another_schema_version(copy):
    with h5py.File(copy, "r+") as file:
        file.attrs["schema_version"] = np.bytes_(b"9")
    refused(copy, "has schema version 9, this package reads 1")


def test_a_config_with_unknown_keys(copy):
    with h5py.File(copy, "r+") as file:
        file.attrs["config"] = np.bytes_(b'{"task": {"n_clases": 3}}')
    refused(copy, "did you mean 'n_classes'")


def test_uncommitted_rows_are_not_trusted(copy):
    with h5py.File(copy, "r+") as file:
        dataset(file, "step").resize(5, axis=0)
    run = mi.open_run(copy)
    assert run.steps == [0, 2, 4, 6, 8]
    assert len(run.metrics) == 5
    with pytest.raises(UnknownNameError):
        run.weights(10)


def test_a_run_is_readable_while_it_is_written(tiny_config, tmp_path):
    from mechinterp.models.registry import initial_parameters
    from mechinterp.store import RunWriter

    path, parameters = tmp_path / "live.h5", initial_parameters(tiny_config)
    with RunWriter(path, tiny_config) as writer:
        assert not path.exists()
        writer.append(0, parameters, {"train_loss": 1.0, "train_accuracy": 0.5})
        run = mi.open_run(path)
        assert (run.steps, run.status) == ([0], "running")
        writer.append(2, parameters, {"train_loss": 1.0, "train_accuracy": 0.5})
        assert run.steps == [0, 2]
        assert run.digest(2) == digest(run.weights(2)).hex()
    assert run.status == "complete"


def test_no_room_is_an_error_before_anything_is_written(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda where: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(RunFileError, match="no room for another checkpoint"):
        mi.train(tiny_config, tmp_path / "full.h5", progress=False)
    assert list(tmp_path.iterdir()) == []
