"""Recorded and imported networks that are known: all analyses apply, and export gives them back."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

import mechinterp as mi
from mechinterp.config import InductionTokensConfig
from mechinterp.errors import MechinterpError, RunFileError, UnrecognisedNetwork
from mechinterp.run import RecordedRun
from mechinterp.tasks.induction_tokens import InductionTokensTask
from tests.helpers import by_hooked_transformer

SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 24, "n_positions": 24, "vocab_size": 12}


def gpt2() -> GPT2LMHeadModel:
    settings = GPT2Config(
        **SIZES, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None
    )
    return GPT2LMHeadModel(settings)


@pytest.fixture(scope="module")
def task() -> InductionTokensTask:
    return InductionTokensTask(InductionTokensConfig(n_tokens=12, n_pos=16, min_period=4, max_period=8), seed=0)


@pytest.fixture(scope="module")
def recorded(task, tmp_path_factory) -> RecordedRun:
    """A GPT-2 that was trained for some steps by AdamW. Tests only read it."""
    path = tmp_path_factory.mktemp("known") / "gpt2.h5"
    torch.manual_seed(0)
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    with mi.record(path, model, schedule=mi.Schedule(every=10)) as recorder:
        recorder(0)
        for step in range(1, 31):
            batch = task.train_batch(step, 16)
            loss = functional.cross_entropy(model(batch.inputs).logits.transpose(1, 2), batch.answers)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder(step, loss=loss)
    run = mi.open_run(path, task=task, build=gpt2)
    assert isinstance(run, RecordedRun)
    return run


def test_its_network_computes_what_the_module_does(recorded, task):
    batch = task.sample("icl", 5)
    for step in recorded.steps:
        with torch.no_grad():
            theirs = recorded.model(step)(batch.inputs).logits
        ours = mi.open_run(recorded.path, task=task).model(step)(batch.inputs)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_measures_of_the_task_are_those_of_the_module(recorded, task):
    evaluation = task.evaluations[0]
    batch = task.sample(evaluation, 200, seed=3)

    def accuracy(model):
        with torch.no_grad():
            return (model(batch.inputs).logits[:, -1].argmax(dim=-1) == batch.labels).double().mean()

    table = mi.measure(recorded, n_sequences=200, seed=3)
    by_hand = mi.measure(recorded, {"accuracy": accuracy})
    np.testing.assert_allclose(table[f"{evaluation}_accuracy"], by_hand["accuracy"], atol=1e-6)
    assert {"prefix_matching_1", "prefix_matching_2", "loss", "weight_norm"} <= {*table}
    assert table["loss"].iloc[-1] < table["loss"].iloc[1]


@pytest.mark.parametrize("analysis", ["patch", "ablate", "heads", "evidence", "circuit", "paths", "qkov", "logits"])
def test_all_analyses_apply(recorded, analysis):
    size = "n_sequences" if analysis in ("ablate", "qkov") else "n_pairs"
    arguments: dict[str, Any] = {size: 8}
    table = mi.analyse(recorded, analysis, steps=30, **arguments)
    assert len(table)
    assert not (recorded.path.parent / f"{recorded.path.name}.cache").exists()


def test_the_page_has_its_circuit_and_what_was_recorded(recorded, tmp_path):
    page = mi.write_report(recorded, mi.measure(recorded, n_sequences=20), tmp_path / "page.html")
    text = page.read_text(encoding="utf-8")
    for part in (
        "Circuit",
        "Attention",
        "Recorded",
        "Weights",
        "weights_from_first",
        "&quot;how&quot;: &quot;recorded&quot;",
    ):
        assert part in text
    assert "untrained networks" not in text


def test_a_task_that_does_not_fit_is_refused(recorded):
    other: Any = InductionTokensTask(InductionTokensConfig(n_tokens=13, n_pos=16, min_period=4, max_period=8), seed=0)
    with pytest.raises(RunFileError, match="its network has d_vocab = 12, the given task has 13"):
        mi.open_run(recorded.path, task=other)
    longer: Any = InductionTokensTask(InductionTokensConfig(n_tokens=12, n_pos=25, min_period=4, max_period=8), seed=0)
    with pytest.raises(RunFileError, match="its network has n_pos = 24, the given task has 25"):
        mi.open_run(recorded.path, task=longer)


class Louder(GPT2LMHeadModel):
    """A network with the parameters and settings of GPT-2, but another forward pass."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        output: Any = super().forward(*inputs, **options)
        output.logits = 2 * output.logits
        return output


def test_a_network_that_computes_something_else_is_not_taken_for_one_that_is_known(recorded, task, tmp_path):
    model = Louder(gpt2().config)
    with mi.record(tmp_path / "own.h5", model) as recorder:
        recorder(0)
    run = mi.open_run(tmp_path / "own.h5", task=task)
    assert not run.can_be_analysed
    with pytest.raises(UnrecognisedNetwork, match="logits differ from those of its conversion"):
        mi.analyse(run, "patch")
    with pytest.raises(UnrecognisedNetwork, match="logits differ"):
        mi.open_run(recorded.path, task=task, build=lambda: Louder(gpt2().config)).network(0)


def test_folders_of_a_language_model_are_known_by_their_config(recorded, task, tmp_path):
    for step in (0, 30):
        recorded.model(step).save_pretrained(tmp_path / "out" / f"checkpoint-{step}")
    run = mi.import_checkpoints(tmp_path / "out", tmp_path / "x.h5", progress=False)
    assert run.origin.network is not None
    opened = mi.open_run(run.path, task=task)
    for step in (0, 30):
        for name, value in opened.network(step).parameters.items():
            assert torch.equal(value, recorded.network(step).parameters[name]), name


def test_a_changed_description_of_the_network_is_refused(recorded):
    from mechinterp.models.foreign import ForeignNetwork

    description = json.loads(json.dumps(recorded.origin.network))
    description["model"]["n_heads"] = "many"
    with pytest.raises(RunFileError, match="n_heads"):
        ForeignNetwork.from_json(description)


def test_export_gives_the_weights_back(recorded, tiny_run, tmp_path):
    for run, step in ((recorded, 30), (tiny_run, 20)):
        weights, folder = run.weights(step), tmp_path / run.path.stem
        run.export(step, folder / "one.safetensors")
        run.export(None, folder / "step_{step}.pt")
        (hub,) = run.export(step, folder / "hub")
        states = [
            load_file(folder / "one.safetensors"),
            torch.load(folder / f"step_{step}.pt", weights_only=True),
            load_file(hub / "model.safetensors"),
        ]
        assert len(list(folder.glob("*.pt"))) == len(run.steps)
        for state in states:
            assert state.keys() == weights.keys()
            assert all(torch.equal(state[name], value) for name, value in weights.items())
        card = (hub / "README.md").read_text(encoding="utf-8")
        assert run.digest(step) in card
        assert json.loads((hub / "config.json").read_text())["trained_here"] == (run.origin is None)
    again = mi.import_checkpoints(tmp_path / "gpt2/step_30.pt", tmp_path / "again.h5", progress=False)
    assert again.digest(30) == recorded.digest(30)


def test_what_an_export_is_refused_for(recorded, tiny_run, tmp_path):
    for act, match in (
        (lambda: recorded.export(7, tmp_path / "a.pt"), "step 7 is not saved"),
        (lambda: recorded.export(None, tmp_path / "a.pt"), "several steps need a place for the step"),
        (lambda: recorded.export(30, tmp_path / "a.onnx"), "its ending is none of"),
        (lambda: recorded.export(30, tmp_path / "a.pt", format="onnx"), "unknown format 'onnx'"),
        (lambda: tiny_run.export(20, tmp_path / "a.pt", format="transformer_lens"), "no model.input = 'as_is'"),
    ):
        with pytest.raises(MechinterpError, match=match):
            act()
    assert not [*tmp_path.iterdir()]
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(MechinterpError, match=r"README.md: exists already"):
        recorded.export(30, tmp_path)
    with pytest.raises(MechinterpError, match="is the run itself"):
        recorded.export(30, recorded.path, format="safetensors", overwrite=True)
    assert (tmp_path / "README.md").read_text() == "mine"
    recorded.export(30, tmp_path / "a.pt")
    with pytest.raises(MechinterpError, match="exists already"):
        recorded.export(30, tmp_path / "a.pt")
    recorded.export(0, tmp_path / "a.pt", overwrite=True)
    with pytest.raises(MechinterpError, match=r"a table is .csv or .parquet"):
        mi.write_table(pd.DataFrame(), tmp_path / "a.xlsx")


def test_tables(recorded, tmp_path):
    table = mi.measure(recorded, ["loss", "weight_norm"])
    mi.write_table(table, tmp_path / "a.csv")
    mi.write_table(table, tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv", index_col="step"), table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet").set_index("step"), table)


@by_hooked_transformer
def test_a_transformer_lens_model_computes_the_same(recorded, task, tmp_path):
    import transformer_lens

    recorded.export(30, tmp_path / "hooked.pt", format="transformer_lens")
    saved = torch.load(tmp_path / "hooked.pt", weights_only=True)
    settings = transformer_lens.HookedTransformerConfig.from_dict(saved["cfg"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = transformer_lens.HookedTransformer(settings)
    model.load_state_dict(saved["state_dict"])
    tokens = task.sample(task.evaluations[0], 6).inputs
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), recorded.model(30)(tokens).logits, atol=1e-5, rtol=1e-4)


def test_a_callback_of_hugging_faces_trainer_records(tmp_path, monkeypatch):
    """The one of the guide."""
    from transformers import Trainer, TrainingArguments

    guide = (Path(__file__).parents[2] / "docs/guides/own-network.md").read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"mi": mi}
    (code,) = [block.split("```")[0] for block in guide.split("```python\n") if "TrainerCallback" in block]
    exec(code, namespace)
    monkeypatch.chdir(tmp_path)
    data = [{"input_ids": torch.randint(12, (8,)), "labels": torch.randint(12, (8,))} for _ in range(16)]
    arguments = TrainingArguments(
        "out", max_steps=6, logging_steps=2, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    callback = namespace["RecorderCallback"]("x.h5", schedule=mi.Schedule(every=2))
    Trainer(gpt2(), arguments, train_dataset=data, callbacks=[callback]).train()
    run = mi.open_run("x.h5")
    assert (run.steps, run.status) == ([0, 2, 4, 6], "complete")
    assert run.metrics["loss"].iloc[-1] > 0
    assert isinstance(run, RecordedRun)
    assert run.origin.network is not None


def test_a_callback_of_lightning_records(tmp_path):
    """The one of the guide, where Lightning is installed."""
    lightning: Any = pytest.importorskip("lightning.pytorch")
    guide = (Path(__file__).parents[2] / "docs/guides/own-network.md").read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"mi": mi}
    (code,) = [block.split("```")[0] for block in guide.split("```py\n") if "LightningRecorder" in block]
    exec(code, namespace)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(3, 1)

        def training_step(self, batch, index):
            loss = self.map(batch[0]).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    rows: Any = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 3)), batch_size=2)
    callback = namespace["LightningRecorder"](tmp_path / "x.h5", schedule=mi.Schedule(every=2))
    trainer = lightning.Trainer(
        max_steps=6, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), rows)
    run = mi.open_run(tmp_path / "x.h5", build=Module)
    assert (run.steps, run.status) == ([0, 2, 4, 6], "complete")
    assert run.metrics["loss"].iloc[-1] > 0
