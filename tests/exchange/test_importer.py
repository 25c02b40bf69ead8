"""Files of checkpoints that another program wrote: what is read of them, and what is refused."""

import json
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import mechinterp as mi
from mechinterp.errors import MechinterpError
from mechinterp.exchange.importer import EqualWeightsWarning
from mechinterp.run import RecordedRun
from tests.exchange.loops import Gated, made, update

STEPS = (0, 5, 40, 100)


@pytest.fixture(scope="module")
def states() -> dict[int, dict[str, torch.Tensor]]:
    """State dicts by step, of the loop of one's own."""
    model, optimizer = made()
    kept = {}
    for step in range(101):
        if step in STEPS:
            kept[step] = {name: value.clone() for name, value in model.state_dict().items()}
        update(model, optimizer, step)
    return kept


def as_imported(run: RecordedRun, states, left_out=("forbidden",)) -> None:
    """The run has these states, but for constants, and its modules compute."""
    assert run.steps == list(states)
    for step in states:
        expected = {name: value for name, value in states[step].items() if name not in left_out}
        assert expected.keys() == run.weights(step).keys()
        assert all(torch.equal(run.weights(step)[name], value) for name, value in expected.items())
    assert run.origin.how == "imported"
    assert mi.verify(run.path).sound


def drop(state):
    """Without the mask of −∞, which an importer that does not have the module must be told of."""
    return {name: value for name, value in state.items() if name != "forbidden"}


@pytest.mark.parametrize("wrap", ["bare", "nested", "compiled", "parallel"])
def test_files_of_torch_save(wrap, states, tmp_path):
    for step, state in states.items():
        prefix = {"compiled": "_orig_mod.", "parallel": "module."}.get(wrap, "")
        content = {f"{prefix}{name}": value for name, value in drop(state).items()}
        if wrap == "nested":
            content = {
                "model": content,
                "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.1}]},
                "args": Namespace(lr=np.float64(0.1)),
                "loss": np.float32(step),
                "iteration": step,
            }
        torch.save(content, tmp_path / f"ckpt_step={step}.pt")
    run = mi.import_checkpoints(
        str(tmp_path / "ckpt_*.pt"), tmp_path / "x.h5", progress=False, metrics=["loss"] if wrap == "nested" else None
    )
    as_imported(run, {step: drop(state) for step, state in states.items()})
    if wrap == "nested":
        assert run.metrics["loss"].tolist() == [float(step) for step in STEPS]
    opened = mi.open_run(tmp_path / "x.h5", build=Gated).model(40)
    assert torch.equal(opened.out.weight, states[40]["out.weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".tar"])
def test_other_files(suffix, states, tmp_path):
    for step, state in states.items():
        path = tmp_path / f"run7_{step:05}{suffix}"
        if suffix == ".safetensors":
            save_file(drop(state), path)
        elif suffix == ".npz":
            np.savez(path, **{name: value.numpy() for name, value in drop(state).items()})
        else:
            torch.save({"epoch": step // 5, "state_dict": drop(state)}, path)
    run = mi.import_checkpoints(tmp_path.glob(f"*{suffix}"), tmp_path / "x.h5", progress=False)
    as_imported(run, {step: drop(state) for step, state in states.items()})


def test_folders_of_hugging_face(states, tmp_path):
    for step, state in states.items():
        folder = tmp_path / "out" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        names = list(drop(state))
        index = {"weight_map": {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}}
        for part in range(2):
            save_file({name: state[name] for name in names[part::2]}, folder / f"part-{part}.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        history = [{"step": at, "loss": 100.0 - at, "text": "x"} for at in STEPS]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    run = mi.import_checkpoints(tmp_path / "out", tmp_path / "x.h5", progress=False)
    as_imported(run, {step: drop(state) for step, state in states.items()})
    assert run.metrics["loss"].tolist() == [100.0 - step for step in STEPS]


def test_a_list_of_states_in_one_file(states, tmp_path):
    content = {"state_dicts": [drop(state) for state in states.values()], "test_losses": [4.0, 3.0, 2.0, 1.0]}
    torch.save(content, tmp_path / "full_run.pth")
    options = {"metrics": ["test_losses"], "progress": False, "overwrite": True}
    expected = [drop(state) for state in states.values()]
    for step, steps in ((None, range(4)), (100, range(0, 400, 100)), (STEPS, STEPS)):
        run = mi.import_checkpoints(tmp_path / "full_run.pth", tmp_path / "x.h5", step=step, **options)
        as_imported(run, dict(zip(steps, expected, strict=True)))
        assert run.metrics["test_losses"].tolist() == [4.0, 3.0, 2.0, 1.0]
    with pytest.raises(MechinterpError, match="has 4 checkpoints, and step names 2"):
        mi.import_checkpoints(tmp_path / "full_run.pth", tmp_path / "x.h5", step=[0, 1], **options)


def test_a_list_whose_losses_lie_at_other_distances(states, tmp_path):
    """A loss of every step is not taken for one of every checkpoint; a function picks, and steps come from the file."""
    losses = torch.linspace(4, 1, 101)
    torch.save(
        {"nets": [drop(state) for state in states.values()], "epochs": [*STEPS], "losses": losses}, tmp_path / "x.pt"
    )
    options: Any = {"progress": False, "overwrite": True}
    with pytest.raises(MechinterpError, match="losses has 101 numbers for 4 checkpoints; give metrics, a function"):
        mi.import_checkpoints(tmp_path / "x.pt", tmp_path / "x.h5", metrics=["losses"], **options)
    given = []

    def weights(content):
        given.append(content)
        return content["nets"]

    run = mi.import_checkpoints(
        tmp_path / "x.pt",
        tmp_path / "x.h5",
        weights=weights,
        step=lambda path, content: content["epochs"],
        metrics=lambda content, step: {"loss": content["losses"][step]},
        **options,
    )
    as_imported(run, {step: drop(state) for step, state in states.items()})
    assert run.metrics["loss"].tolist() == [float(losses[step]) for step in STEPS]
    assert len(given) == 1  # one call for a file, however many checkpoints it has


def test_steps_weights_and_names_as_the_caller_says(states, tmp_path):
    for step, state in states.items():
        content = {"net": {"deep": drop(state)}, "ema": drop(state), "meta": {"it": step}}
        torch.save(content, tmp_path / f"{999 - step}_seed3.pt")
    options = {"weights": "net.deep", "progress": False, "overwrite": True}
    source = str(tmp_path / "*.pt")
    for step in (lambda path, content: content["meta"]["it"], lambda path: 999 - int(path.name.split("_")[0])):
        run = mi.import_checkpoints(source, tmp_path / "x.h5", step=step, **options)
        as_imported(run, {step: drop(state) for step, state in states.items()})
    run = mi.import_checkpoints(source, tmp_path / "x.h5", step=r"(\d+)_seed", **options)
    assert run.steps == sorted(999 - step for step in STEPS)
    run = mi.import_checkpoints(
        source,
        tmp_path / "x.h5",
        step=r"(\d+)_seed",
        weights=lambda content: content["ema"],
        rename=lambda name: None if name.startswith("norm") else name.replace("out", "readout"),
        progress=False,
        overwrite=True,
    )
    assert {*run.weights(999)} == {"embed.weight", "mask", "readout.weight", "readout.bias"}
    run = mi.import_checkpoints(source, tmp_path / "x.h5", step=r"(\d+)_seed", rename={"mask": "gate"}, **options)
    assert "gate" in run.weights(999)


def saved(path: Path, state) -> None:
    torch.save(state, path)


def refused(tmp_path: Path, match: str, **options) -> None:
    with pytest.raises(MechinterpError, match=match) as caught:
        mi.import_checkpoints(str(tmp_path / "*.pt"), tmp_path / "x.h5", progress=False, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.h5").exists()


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_of_a_file_is_run(tmp_path):
    torch.save({"model": {"w": torch.zeros(2)}, "hook": Evil(tmp_path / "ran")}, tmp_path / "step_1.pt")
    refused(tmp_path, r"step_1.pt: has an object of .*, which only unpickling would rebuild")
    (tmp_path / "step_1.pt").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    refused(tmp_path, r"step_1.pt: ")
    np.savez(tmp_path / "step_1.npz", w=np.array([Evil(tmp_path / "ran")], dtype=object))
    with pytest.raises(MechinterpError, match="npz"):
        mi.import_checkpoints(tmp_path / "step_1.npz", tmp_path / "x.h5", progress=False)
    assert not (tmp_path / "ran").exists()


def test_what_is_refused(states, tmp_path):
    refused(tmp_path, "no file is there; give a path, or a pattern")
    good = drop(states[0])
    saved(tmp_path / "step_1.pt", good)
    saved(tmp_path / "step_2.pt", {**good, "out.bias": torch.zeros(8)})
    refused(tmp_path, r"step_2.pt: out.bias is \(8,\) <f4, in .*step_1.pt \(7,\) <f4")
    saved(tmp_path / "step_2.pt", {name: value for name, value in good.items() if name != "mask"})
    refused(tmp_path, r"step_1.pt has mask, and .*step_2.pt has not")
    saved(tmp_path / "step_2.pt", {**good, "mask": torch.full((12,), torch.nan)})
    refused(tmp_path, r"step_2.pt: mask is not finite")
    saved(tmp_path / "step_2.pt", good)
    saved(tmp_path / "old_step_2.pt", good)
    refused(tmp_path, r"old_step_2.pt and .*step_2.pt are both of step 2")
    (tmp_path / "old_step_2.pt").unlink()
    refused(tmp_path, r"step = 'epoch_\(\\\\d\+\)' finds no number", step=r"epoch_(\d+)")
    refused(tmp_path, r"is no regular expression", step=r"(")
    refused(tmp_path, r"has no 'model'; it has mask", weights="model")
    refused(tmp_path, r"rename has 'q', which is no name", rename={"q": "r"})
    refused(tmp_path, r"rename makes 'a' of two parameters", rename=lambda name: "a")
    refused(tmp_path, r"has no 'loss'", metrics=["loss"])
    saved(tmp_path / "step_2.pt", {"model": good, "ema": good})
    refused(tmp_path, r"step_2.pt: has several state dicts, under model, ema; name one by weights")
    saved(tmp_path / "step_2.pt", {"lr": 0.1})
    refused(tmp_path, r"step_2.pt: has no state dict at its top, under lr")
    before = (tmp_path / "step_1.pt").read_bytes()
    with pytest.raises(MechinterpError, match=r"step_1.pt: is one of the files to import"):
        mi.import_checkpoints(tmp_path / "step_1.pt", tmp_path / "step_1.pt", overwrite=True, progress=False)
    assert (tmp_path / "step_1.pt").read_bytes() == before
    (tmp_path / "step_2.pt").write_bytes(b"x" * 100)
    refused(tmp_path, r"step_2.pt: is no file of torch.save, or is damaged")
    (tmp_path / "step_2.pt").unlink()
    saved(tmp_path / "best.pt", good)
    refused(tmp_path, r"best.pt: has no number in its name")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(MechinterpError, match=r"notes.txt: is no file of checkpoints by its name"):
        mi.import_checkpoints(tmp_path / "notes.txt", tmp_path / "x.h5", step=[0], progress=False)


def test_equal_weights_at_different_steps_are_told(states, tmp_path):
    for step in (1, 2, 3):
        saved(tmp_path / f"step_{step}.pt", drop(states[0 if step < 3 else 5]))
    with pytest.warns(EqualWeightsWarning, match=r"step_1.pt \(step 1\) and .*step_2.pt \(step 2\)") as told:
        run = mi.import_checkpoints(str(tmp_path / "*.pt"), tmp_path / "x.h5", progress=False)
    assert "step_3" not in str(told[0].message)
    assert run.steps == [1, 2, 3]


def test_a_trained_mask_of_zeros_and_ones_needs_the_module(states, tmp_path):
    """A vector named mask is a parameter; a matrix of 0 and 1 of that name is left out, and said to be."""
    saved(tmp_path / "step_1.pt", {"mask": torch.ones(3), "block.mask": torch.ones(3, 3).tril(), "w": torch.ones(2)})
    run = mi.import_checkpoints(tmp_path / "step_1.pt", tmp_path / "x.h5", progress=False)
    assert {*run.weights(1)} == {"mask", "w"}
    assert run.origin.left_out == ("block.mask",)


class Masked(nn.Module):
    """Trains a matrix that is called mask, and makes a mask that is called otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.mask, self.w = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(2))
        self.register_buffer("allowed", torch.ones(3, 3).tril())


def test_the_module_tells_a_trained_mask_from_a_constant(tmp_path):
    state = {"mask": torch.ones(3, 3), "w": torch.full((2,), 5.0), "allowed": torch.ones(3, 3).tril()}
    saved(tmp_path / "step_1.pt", state)
    options: Any = {"progress": False, "overwrite": True}
    run = mi.import_checkpoints(tmp_path / "step_1.pt", tmp_path / "x.h5", **options)
    assert run.origin.left_out == ("mask", "allowed")
    with pytest.raises(MechinterpError, match=r"mask was left out as a mask, and is a parameter of the module; import"):
        mi.open_run(run.path, build=Masked).model(1)
    run = mi.import_checkpoints(tmp_path / "step_1.pt", tmp_path / "x.h5", build=Masked, **options)
    assert run.origin.left_out == ("allowed",)
    assert run.model(1).w.tolist() == [5.0, 5.0]


@pytest.mark.parametrize(
    ("value", "left_out"),
    [
        (torch.ones(4, 4).tril()[None, None], True),
        (torch.ones(4, 4).triu(1), True),
        (torch.full((4, 4), -torch.inf).triu(1), True),
        (torch.ones(4, 4).triu(), False),
        (torch.eye(4), False),
        (torch.zeros(4, 4), False),
        (torch.ones(1, 1), False),
        (torch.ones(3, 4).tril(), False),
    ],
)
def test_masks_of_what_comes_later_are_known_by_their_values(value, left_out, tmp_path):
    saved(tmp_path / "step_1.pt", {"layers.0.bias": value, "w": torch.ones(2)})
    run = mi.import_checkpoints(tmp_path / "step_1.pt", tmp_path / "x.h5", progress=False)
    assert run.origin.left_out == (("layers.0.bias",) if left_out else ())


def test_a_parameter_that_is_missing_is_found_beside_a_stored_constant(tmp_path):
    """A file may have a constant that the module makes too; what it lacks is said all the same."""
    saved(tmp_path / "step_1.pt", {"position_ids": torch.arange(3), "a.inv_freq": torch.ones(2), "w": torch.ones(2)})
    run = mi.import_checkpoints(tmp_path / "step_1.pt", tmp_path / "x.h5", progress=False)
    with pytest.raises(MechinterpError, match=r"mask is not stored; build the network whose weights were stored"):
        mi.open_run(run.path, build=Masked).model(1)


def test_a_table_of_rotations_is_left_out(tmp_path):
    """Llama's is of complex numbers, which a run file does not store, and need not."""
    saved(tmp_path / "step_1.pt", {"freqs_cis": torch.ones(2, 2, dtype=torch.complex64), "w": torch.ones(2)})
    run = mi.import_checkpoints(tmp_path / "step_1.pt", tmp_path / "x.h5", progress=False)
    assert run.origin.left_out == ("freqs_cis",)


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["val-step=100-loss=0.53", "val-step=200-loss=0.41"], [100, 200]),
        (["run7_00005", "run7_00010"], [5, 10]),
        (["model_step100_seed1"], [100]),
        (["epoch=1-loss=0.5", "epoch=2-loss=0.4"], None),
        (["model_v2_100"], None),
    ],
)
def test_the_step_is_the_number_that_can_be_meant(names, steps, states, tmp_path):
    for index, name in enumerate(names):
        saved(tmp_path / f"{name}.pt", drop(states[STEPS[index]]))
    if steps is None:
        refused(tmp_path, "which number of the names is the step")
    else:
        run = mi.import_checkpoints(str(tmp_path / "*.pt"), tmp_path / "x.h5", progress=False)
        assert run.steps == steps


def test_a_false_index_of_a_folder_is_refused(states, tmp_path):
    folder = tmp_path / "out" / "checkpoint-1"
    folder.mkdir(parents=True)
    save_file(drop(states[0]), tmp_path / "out" / "model.safetensors")
    save_file(drop(states[0]), folder / "part.safetensors")
    for weight_map, match in (
        ({"mask": ".."}, "'..', which is no file beside it"),
        ({"mask": "../model.safetensors"}, "which is no file beside it"),
        ({"mask": "."}, "'.', which is no file beside it"),
        ({"other": "part.safetensors"}, "in the index or in the files alone"),
    ):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(MechinterpError, match=match):
            mi.import_checkpoints(tmp_path / "out", tmp_path / "x.h5", progress=False)


def test_a_tensor_that_declares_more_than_the_file_has_is_refused(tmp_path):
    saved(tmp_path / "step_1.pt", {"w": torch.ones(1).expand(10**13)})
    refused(tmp_path, "w declares more numbers than the file has")


def test_a_mask_that_changes_between_files_is_named(tmp_path):
    saved(tmp_path / "step_1.pt", {"a.mask": torch.ones(3, 3), "w": torch.ones(2)})
    saved(tmp_path / "step_2.pt", {"a.mask": torch.eye(3), "w": torch.zeros(2)})
    refused(tmp_path, r"step_2.pt: a.mask was left out as a constant of the module, and has changed")
