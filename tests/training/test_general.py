"""Networks with all parts are trained by every rule, resumed and replayed to the same bits."""

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import run_with_cache
from mechinterp.models.network import Network
from mechinterp.models.registry import initial_parameters
from mechinterp.randomness import Stream, generator
from mechinterp.store.layout import digest
from mechinterp.tasks import build_task
from mechinterp.tasks.base import Batch
from mechinterp.torch_state import torch_threads
from mechinterp.training.engines import AutogradEngine
from tests.helpers import as_if_killed

TRANSFORMER = {
    "kind": "transformer",
    "n_layers": 2,
    "n_heads": 2,
    "d_model": 16,
    "d_head": 8,
    "d_mlp": 24,
    "act_fn": "gelu",
    "normalization_type": "LN",
    "positional_embedding_type": "rotary",
    "use_attn_scale": True,
    "output_matrix": "trained",
    "biases": True,
    "input": "tokens",
    "output": "unembedding",
    "init_mode": "gpt2",
}
ADAMW = {
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "weight_decay": 0.1,
    "decayed": ("*.W*",),
    "warmup_steps": 5,
    "gradient_clip": 1.0,
    "loss_at": "all",
    "batch_size": 16,
    "steps": 40,
}


class RepeatedTokens:
    """Sequences in which every token is that three positions before."""

    d_model, d_vocab, n_pos, n_labels, evaluations = 0, 7, 8, 7, ("test",)

    def _batch(self, stream: int, step: int, size: int) -> Batch:
        period = generator(0, stream, step).integers(0, self.d_vocab, (size, 3))
        tokens = torch.from_numpy(np.tile(period, 3))
        repeat = torch.arange(8).expand(size, -1) >= 3
        return Batch(tokens[:, :8], tokens[:, 8], {"repeat": repeat}, answers=tokens[:, 1:])

    def train_batch(self, step: int, size: int) -> Batch:
        return self._batch(Stream.TRAIN, step, size)

    def sample(self, evaluation: str, size: int, seed: int = 0) -> Batch:
        return self._batch(Stream.EVALUATION, seed, size)


def config_of(changes: dict | None = None, model: dict | None = None) -> mi.RunConfig:
    model = dict(model or {})
    interventions = model.pop("interventions", [])
    task = {"kind": "custom", "name": "RepeatedTokens", "n_tokens": 7, "n_pos": 8, "n_labels": 7}
    training = {**ADAMW, **(changes or {})}
    values = {"task": task, "model": {**TRANSFORMER, **model}, "training": training, "interventions": interventions}
    return mi.RunConfig.from_dict({**values, "checkpoints": {"every": 10}})


RULES = [{}, {"schedule": "cosine"}, {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.1}]


def trained(path, config: mi.RunConfig) -> mi.Run:
    return mi.train(config, path, task=RepeatedTokens(), progress=False)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_killed_run_goes_on_and_any_step_is_rebuilt_to_the_same_bits(tmp_path, rule, every):
    config = config_of(rule).updated({"checkpoints.optimizer_every": every})
    whole = trained(tmp_path / "whole.h5", config)
    path = tmp_path / "killed.h5"
    if "schedule" in rule:  # which depends on the last step: stopped there instead
        with pytest.raises(KeyboardInterrupt):
            mi.train(config, path, task=Interrupting(), progress=False)
    else:
        trained(path, config.updated({"training.steps": 20}))
        as_if_killed(path, config)
    resumed = mi.resume(path, task=RepeatedTokens(), progress=False)
    assert resumed.digests() == whole.digests()
    for number, step in enumerate(whole.steps):
        ours, theirs = whole.file.optimizer_state(step), resumed.file.optimizer_state(step)
        assert bool(ours) == (number % every == 0)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    check = mi.replay(whole, [13, 20, 27], lambda step, weights, metrics: None)
    assert check.exact
    assert check.checked == (20, 30)
    assert whole.densify(start=11, stop=15, every=2).exact


class Interrupting(RepeatedTokens):
    """Ends with Ctrl-C in step 24."""

    def train_batch(self, step: int, size: int) -> Batch:
        if step == 24:
            raise KeyboardInterrupt
        return super().train_batch(step, size)


def test_a_schedule_cannot_be_prolonged_and_a_constant_rate_can(tmp_path):
    scheduled = trained(tmp_path / "a.h5", config_of({"schedule": "linear"}))
    with pytest.raises(MechinterpError, match="schedule that ends at step 40"):
        mi.resume(scheduled.path, until=50, task=RepeatedTokens())
    whole = trained(tmp_path / "b.h5", config_of({"steps": 50}))
    mi.train(config_of(), tmp_path / "c.h5", task=RepeatedTokens(), progress=False)
    prolonged = mi.resume(tmp_path / "c.h5", until=50, task=RepeatedTokens(), progress=False)
    assert prolonged.digests() == whole.digests()


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("where", ["target", "all", "repeat"])
def test_the_loss_is_the_mean_over_the_answers_that_are_trained(where, loss):
    config, batch = config_of({"loss_at": where, "loss": loss}), RepeatedTokens().train_batch(0, 16)
    parameters = {name: value.requires_grad_() for name, value in initial_parameters(config).items()}
    logits = run_with_cache(Network(config, parameters), batch.inputs)["unembed.hook_out"]
    counted = {"target": slice(7, None), "all": slice(None), "repeat": slice(3, None)}[where]
    ours, answers = logits[:, counted], batch.inputs.roll(-1, 1)[:, counted].clone()
    answers[:, -1] = batch.labels
    if loss == "mse":
        expected = (ours - torch.eye(7)[answers]).square().mean()
    else:
        expected = -ours.log_softmax(-1).gather(-1, answers[..., None]).mean()
    expected.backward()
    engine = AutogradEngine([config], [{name: value.detach() for name, value in parameters.items()}])
    found, accuracy, gradients = engine.gradients(batch)
    assert found == pytest.approx(expected.item(), rel=1e-6)
    assert accuracy == pytest.approx(float((ours.argmax(-1) == answers).double().mean()))
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, parameters[name].grad, rtol=1e-4, atol=1e-6)


def test_seeds_in_one_batch_are_trained_as_alone(tmp_path):
    configs = [config_of({"steps": 20}).updated({"seed": seed}) for seed in (0, 1)]
    batches = [RepeatedTokens().train_batch(step, 16) for step in range(5)]
    starts = [initial_parameters(config) for config in configs]
    together = AutogradEngine(configs, starts)
    alone = [AutogradEngine([config], [start]) for config, start in zip(configs, starts, strict=True)]
    for step, batch in enumerate(batches):
        together.step_runs([batch, batch], [None, None], [step, step])
        for engine in alone:
            engine.step(batch, step=step)
    for run, engine in zip(together.runs, alone, strict=True):
        for name, value in engine.parameters.items():
            torch.testing.assert_close(run[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("positions", ["rotary", "relative_positional_bias"])
def test_two_threads_give_the_same_bits_every_time(positions):
    """Indexing sums the gradients of an embedding in any order, if they are many."""
    task = {"kind": "induction_tokens", "n_tokens": 8, "n_pos": 48, "min_period": 4, "max_period": 8}
    model = {**TRANSFORMER, "d_model": 64, "positional_embedding_type": positions}
    config = mi.RunConfig.from_dict({"task": task, "model": model, "training": {**ADAMW, "batch_size": 64}})
    drawn, digests = build_task(config), set()
    with torch_threads(2):
        for _ in range(3):
            engine = AutogradEngine([config], [initial_parameters(config)])
            for step in range(3):
                engine.step(drawn.train_batch(step, 64), step=step)
            digests.add(digest(engine.parameters))
    assert len(digests) == 1


def test_a_network_with_all_parts_learns_the_task(tmp_path):
    run = trained(tmp_path / "r.h5", config_of({"steps": 300, "loss_at": "repeat"}))
    assert run.metrics["train_accuracy"].iloc[-1] > 0.95


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        ({"loss_at": "repaet"}, {}, "did you mean 'repeat'"),
        ({"loss_at": "none"}, {}, "no position of the first batch has an answer"),
        ({"loss_at": "all"}, {"output": "classifier"}, "a classifier answers at the target only"),
        ({"decayed": ("*.w_*",)}, {}, "decayed"),
        ({}, {"interventions": [{"kind": "copy"}]}, "copy takes the place of a classifier"),
        ({"momentum": 0.9}, {}, "momentum has no effect without optimizer = 'sgd'"),
        ({}, {"positional_embedding_type": "rotary", "d_head": 7}, "make model.d_head even"),
        ({}, {"input": "as_is", "d_model": None}, "the task's sequences are tokens: set model.input = 'tokens'"),
        ({}, {"output_matrix": "identity"}, "need a W_O"),
        ({}, {"init_mode": "gpt2", "attention_init_std": 0.3}, "has no effect without init_mode = 'reddy2023'"),
        ({}, {"relative_attention_num_buckets": 7}, "without positional_embedding_type = 'relative_positional_bias'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_before_anything_is_written(tmp_path, changes, model, message):
    class Task(RepeatedTokens):
        def _batch(self, stream: int, step: int, size: int) -> Batch:
            batch = super()._batch(stream, step, size)
            batch.roles["none"] = torch.zeros(size, 8, dtype=torch.bool)
            return batch

    with pytest.raises(MechinterpError, match=message) as refused:
        mi.train(config_of(changes, model), tmp_path / "r.h5", task=Task(), progress=False)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda answers: answers.float(), r"answers are \(2, 8\) torch.float32, expected \(2, 8\) torch.int64"),
        (lambda answers: answers[:, :3], r"answers are \(2, 3\) torch.int64"),
        (lambda answers: answers - 7, r"answers must be -1 \(none\) to 6, the last ones the labels"),
        (lambda answers: (answers + 1) % 7, "the last ones the labels"),
    ],
)
def test_wrong_answers_of_a_task_are_refused_before_anything_is_written(tmp_path, wrong, message):
    class Wrong(RepeatedTokens):
        def _batch(self, stream: int, step: int, size: int) -> Batch:
            batch = super()._batch(stream, step, size)
            batch.answers = wrong(batch.answers)
            return batch

    with pytest.raises(MechinterpError, match=message):
        mi.train(config_of(), tmp_path / "r.h5", task=Wrong(), progress=False)
    assert not list(tmp_path.iterdir())


def test_a_batch_without_the_role_of_the_loss_is_a_step_of_loss_0(tmp_path):
    class Sometimes(RepeatedTokens):
        def _batch(self, stream: int, step: int, size: int) -> Batch:
            batch = super()._batch(stream, step, size)
            batch.roles["repeat"] = batch.roles["repeat"] & torch.tensor(step != 5)
            return batch

    run = mi.train(config_of({"loss_at": "repeat"}), tmp_path / "r.h5", task=Sometimes(), progress=False)
    losses = run.series["train_loss"]
    assert losses.eq(0).sum() == 1
    assert losses.min() == 0
    assert np.isfinite(run.metrics["train_loss"].iloc[1:]).all()


def test_tokens_and_labels_out_of_range_are_refused_with_the_step(tmp_path):
    class Late(RepeatedTokens):
        def train_batch(self, step: int, size: int) -> Batch:
            batch = super().train_batch(step, size)
            if step == 12:
                batch.labels[0] = 7
            return batch

    with pytest.raises(MechinterpError, match="labels of step 12 must be numbers from 0 to 6"):
        mi.train(config_of(), tmp_path / "r.h5", task=Late(), progress=False)
    assert mi.open_run(tmp_path / "r.h5", task=RepeatedTokens()).steps == [0, 10]
