"""Published studies in miniature (`published`), from what they save to measures, transition and report.

Every study's transition is looked for with the functions of its own paper, and lies where its loss falls.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import mechinterp as mi
from mechinterp.cli import main
from mechinterp.config import MarkovChainsConfig, ModularAdditionConfig
from mechinterp.errors import MechinterpError
from mechinterp.models.foreign import require_same_answers
from mechinterp.run import RecordedRun
from mechinterp.tasks.markov_chains import MarkovChainsTask
from mechinterp.tasks.modular_addition import ModularAdditionTask
from tests.exchange.published import Birth, Grokking, InductionHeads, Mixtures, Plateau, State


def same_as(run: RecordedRun, states: dict[int, State], left_out: set[str]) -> None:
    """The run has these states under these steps, but for what was left out, and its digests are right."""
    assert run.steps == [*states]
    assert {*run.origin.left_out} == left_out
    for step, state in states.items():
        stored = run.weights(step)
        assert stored.keys() == state.keys() - left_out
        assert all(torch.equal(stored[name], state[name]) for name in stored)
    assert mi.verify(run.path).sound


def answers_as(run: RecordedRun, states: dict[int, State], module: nn.Module, inputs: Tensor) -> None:
    """The modules of the run give what a module with the saved states gives."""
    for step in (min(states), max(states)):
        module.load_state_dict(states[step])
        with torch.no_grad():
            ours, theirs = run.model(step)(inputs), module.eval()(inputs)
        for one, other in zip(
            *((each if isinstance(each, tuple) else (each,)) for each in (ours, theirs)), strict=True
        ):
            assert one is other is None or torch.equal(one, other)


def reported(run: RecordedRun, table: pd.DataFrame, measure: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """The transition of a measure, after the page was written; the command line reads the file too."""
    page = run.path.with_suffix(".html")
    mi.write_report(run, table, page, measure=measure)
    assert measure in page.read_text(encoding="utf-8")
    capsys.readouterr()
    for command in ("verify", "info", "emergence"):
        assert main([command, str(run.path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)
    return mi.locate_emergence(table[measure])


def falls(losses: list[float], low: float, high: float) -> tuple[int, int]:
    """The updates at which losses, as means of ten, are first below the two values."""
    means = np.convolve(losses, np.ones(10) / 10, mode="valid")
    return int(np.argmax(means < high)), int(np.argmax(means < low))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of this module."""
    return tmp_path_factory.mktemp("published")


# Nanda et al. 2023


@pytest.fixture(scope="module")
def full_run(folder) -> Path:
    """The one file of the study."""
    Grokking.train(folder / "full_run_data.pth")
    return folder / "full_run_data.pth"


def grokking_accuracy(model: nn.Module) -> dict[str, Tensor]:
    """The share of right sums in training and test."""
    x, y, x_test, y_test = Grokking.data()
    with torch.no_grad():
        return {
            "train": (model(x)[:, -1].argmax(-1) == y).double().mean(),
            "test": (model(x_test)[:, -1].argmax(-1) == y_test).double().mean(),
        }


def fourier(model: Any) -> float:
    """The share of the embedding's variance over the numbers that its three strongest frequencies have."""
    power = torch.fft.rfft(model.embed.W_E[:, :-1].detach().double(), dim=1).abs().square().sum(0)[1:]
    return float(power.topk(3).values.sum() / power.sum())


def epochs(path: Path, content: Any) -> list[int]:
    """The steps of a list, which the file names."""
    return content["epochs"]


def losses_of(content: Any, step: int) -> dict[str, float]:
    """The losses of an epoch, which the file has at two other distances."""
    return {
        "train_loss": content["train_losses"][step],
        "test_loss": content["test_losses"][step // Grokking.TEST_EVERY],
    }


def test_grokking(full_run, folder, capsys):
    run = mi.import_checkpoints(
        full_run,
        folder / "grokking.h5",
        weights="state_dicts",
        step=epochs,
        metrics=losses_of,
        build=Grokking.Transformer,
        progress=False,
    )
    saved = torch.load(full_run)
    states = dict(zip(saved["epochs"], saved["state_dicts"], strict=True))
    same_as(run, states, {"blocks.0.attn.mask"})
    answers_as(run, states, Grokking.Transformer(), Grokking.data()[2])
    assert run.metrics["train_loss"].tolist() == saved["train_losses"][:: Grokking.EVERY]
    assert run.metrics["test_loss"].tolist() == saved["test_losses"][:: Grokking.EVERY // Grokking.TEST_EVERY]

    table = mi.measure(run, {"accuracy": grokking_accuracy, "fourier": fourier}).join(mi.measure(run))
    training, test = (mi.locate_emergence(table[f"accuracy_{part}"]) for part in ("train", "test"))
    assert table["accuracy_test"].iloc[-1] > 0.9
    assert test.transition
    assert training.half_rise
    assert test.half_rise
    assert training.half_rise < test.half_rise  # the one is learnt by heart before the other is understood
    assert table["fourier"].iloc[-1] > 1.5 * table["fourier"].iloc[0]
    assert reported(run, table, "accuracy_test", capsys) == test


def test_what_the_file_of_grokking_needs_is_asked_for(full_run, folder):
    """Losses at other distances than the state dicts are not taken for theirs; the commands say what they lack."""
    options: Any = {"progress": False, "overwrite": True}
    with pytest.raises(MechinterpError, match="several state dicts, under state_dicts, model; name one by weights"):
        mi.import_checkpoints(full_run, folder / "x.h5", **options)
    with pytest.raises(
        MechinterpError, match="train_losses has 300 numbers for 30 checkpoints; give metrics, a function"
    ):
        mi.import_checkpoints(full_run, folder / "x.h5", weights="state_dicts", metrics=["train_losses"], **options)
    command = ["import", str(full_run), "--out", str(folder / "y.h5"), "--weights", "state_dicts"]
    assert main([*command, "--metrics", "test_losses"]) == 2
    assert main([*command, "--every", "10"]) == 0
    assert mi.open_run(folder / "y.h5").steps == [*range(0, 300, 10)]


def as_hooked(content: Any) -> list[State]:
    """The state dicts as those of a HookedTransformer: maps transposed, heads apart, and biases of zero."""
    heads, d_head, d = Grokking.HEADS, Grokking.D // Grokking.HEADS, Grokking.D
    found = []
    for state in content["state_dicts"]:
        state = {name: value for name, value in state.items() if not name.endswith("mask")}
        for name in ("embed.W_E", "blocks.0.mlp.W_in", "blocks.0.mlp.W_out"):
            state[name] = state[name].T
        for name in "KQV":
            state[f"blocks.0.attn.W_{name}"] = state[f"blocks.0.attn.W_{name}"].mT
            state[f"blocks.0.attn.b_{name}"] = torch.zeros(heads, d_head)
        state["unembed.W_U"] = state["unembed.W_U"][:, :-1]
        state["blocks.0.attn.W_O"] = state["blocks.0.attn.W_O"].T.reshape(heads, d_head, d)
        found.append(state | {"blocks.0.attn.b_O": torch.zeros(d), "unembed.b_U": torch.zeros(Grokking.P)})
    return found


class WithoutEquals(nn.Module):
    """The network without the logit of the sign "=", which is no sum."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = Grokking.Transformer()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.transformer(tokens)[..., :-1]


def test_grokking_becomes_a_hooked_transformer(full_run, folder):
    """With its maps transposed, as later code does it, the network is known, answers the same, and is analysed."""
    settings = {
        **{"n_layers": 1, "n_heads": Grokking.HEADS, "d_model": Grokking.D, "d_head": Grokking.D // Grokking.HEADS},
        **{
            "d_mlp": Grokking.MLP,
            "d_vocab": Grokking.P + 1,
            "d_vocab_out": Grokking.P,
            "n_ctx": 3,
            "act_fn": "relu",
            "normalization_type": None,
        },
    }
    run = mi.import_checkpoints(
        full_run, folder / "hooked.h5", weights=as_hooked, step=epochs, network=settings, progress=False
    )
    saved = torch.load(full_run)["state_dicts"]
    for step in (run.steps[0], run.steps[-1]):
        module = WithoutEquals()
        module.transformer.load_state_dict(saved[step // Grokking.EVERY])
        require_same_answers(run.network(step), module)
    task = ModularAdditionTask(ModularAdditionConfig(modulus=Grokking.P, train_fraction=0.75), seed=0)
    run = mi.open_run(run.path, task=task)
    table = mi.measure(run, steps=[run.steps[0], run.steps[-1]])
    assert table["embedding_gini"].is_monotonic_increasing
    assert table["restricted_loss"].is_monotonic_decreasing
    assert not mi.analyse(run, "patch", steps=run.steps[-1:], n_pairs=20).empty


# Park et al. 2024


@pytest.fixture(scope="module")
def mixtures(folder) -> tuple[Path, dict[int, State]]:
    """The experiment's folder, and the states by step."""
    return folder / "n=4", Mixtures.train(folder / "n=4")


def in_context(tokens: Tensor, symbols: int, order: int) -> Tensor:
    """The next token's distribution [batch, position, symbol] by counts of the context, of single tokens or pairs."""
    hot = functional.one_hot(tokens, symbols).double()
    if order == 0:
        counts = hot.cumsum(1)
    else:
        pairs = torch.zeros(*tokens.shape, symbols, symbols, dtype=torch.double)
        pairs[:, 1:] = hot[:, :-1, :, None] * hot[:, 1:, None, :]
        counts = (pairs.cumsum(1) * hot[..., None]).sum(2)
    return (counts + 1) / (counts + 1).sum(-1, keepdim=True)


def retrieved(tokens: Tensor) -> Tensor:
    """The next token's distribution by the chains of the training data, each as probable as the context makes it."""
    chains = Mixtures.chains().double()
    so_far = torch.zeros(*tokens.shape, len(chains), dtype=torch.double)
    so_far[:, 1:] = chains[:, tokens[:, :-1], tokens[:, 1:]].log().movedim(0, -1)
    return torch.einsum("btc,cbts->bts", so_far.cumsum(1).softmax(-1), chains[:, tokens])


def distances(logits: Callable[[nn.Module], Tensor], strategies: dict[str, Tensor]) -> Callable[[nn.Module], Any]:
    """A measure: the KL divergence of a model's answers from those of strategies."""

    def measure(model: nn.Module) -> dict[str, Tensor]:
        with torch.no_grad():
            answers = logits(model).double().log_softmax(-1)
        return {name: (strategy * (strategy.log() - answers)).sum(-1).mean() for name, strategy in strategies.items()}

    return measure


def test_markov_mixtures(mixtures, folder, capsys):
    place, states = mixtures
    logs = torch.load(place / "logs.pth")
    validation = dict(zip(logs["save_steps"], logs["val_losses"], strict=True))
    settings = {
        **{"n_layer": 2, "n_head": 2, "n_embd": Mixtures.D, "vocab_size": Mixtures.STATES},
        **{"block_size": Mixtures.LENGTH, "activation_function": "gelu"},
    }
    run = mi.import_checkpoints(
        str(place / "checkpoints" / "ckpt_step=*.pth"),
        folder / "mixtures.h5",
        step=r"ckpt_step=(\d+)",
        metrics=lambda content, step: {"val_loss": validation[step]},
        network=settings,
        build=Mixtures.Transformer,
        progress=False,
    )
    masks = {f"transformer.transformer.h.{layer}.attn.bias" for layer in range(2)}
    same_as(run, states, masks)
    assert run.steps == [*Mixtures.SAVED]
    assert run.metrics["val_loss"].tolist() == logs["val_losses"]
    tokens = Mixtures.sample(100, seed=-2)
    answers_as(run, states, Mixtures.Transformer(), tokens)

    counted = {name: in_context(tokens, Mixtures.STATES, order) for name, order in (("unigram", 0), ("bigram", 1))}
    away = distances(lambda model: model(tokens), counted | {"retrieval": retrieved(tokens)})
    table = mi.measure(run, {"from": away}).join(mi.measure(run))
    assert table.iloc[0].filter(regex="^from_").idxmin() == "from_unigram"
    assert table.iloc[-1].filter(regex="^from_").idxmin() == "from_retrieval"
    assert table["from_retrieval"].iloc[-1] < 0.05 * table["from_retrieval"].iloc[0]
    emergence = reported(run, table, "from_retrieval", capsys)
    assert not emergence.transition  # the loss falls all the way
    assert "no better than a constant or a line" in emergence.reason

    assert run.origin.network is not None
    assert run.origin.network["format"] == "nanogpt"
    task = MarkovChainsTask(MarkovChainsConfig(n_tokens=Mixtures.STATES, n_pos=Mixtures.LENGTH), seed=0)
    heads = mi.analyse(mi.open_run(run.path, task=task), "heads", steps=[run.steps[-1]], n_pairs=20)
    assert not heads.empty


def test_files_of_the_optimizer_beside_are_told(mixtures, folder):
    """A pattern that takes the optimizer's files too is refused, and the file named."""
    place, _ = mixtures
    with pytest.raises(MechinterpError, match=r"ckpt_step=3.pth and .*opt_ckpt_step=3.pth are both of step 3"):
        mi.import_checkpoints(str(place / "checkpoints" / "*.pth"), folder / "x.h5", progress=False)


# Edelman et al. 2024


def test_statistical_induction_heads(folder, capsys):
    path, network = folder / "induction.h5", InductionHeads.Attention_Only_Transformer
    every = InductionHeads.STEPS // InductionHeads.KEPT
    recorders = []

    def after(iter_num: int, model: nn.Module, loss: float) -> None:
        if not recorders:
            recorders.append(mi.record(path, model, schedule=mi.Schedule(every=every)))
        recorders[0](iter_num, loss=loss)

    history, losses = InductionHeads.train(after)
    recorders[0].close()
    run = mi.open_run(path, build=network)
    states = {
        step: {**kept.state_dict()}
        for step, kept in zip(range(0, InductionHeads.STEPS + 1, every), history, strict=True)
        if step
    }
    same_as(run, states, {f"layers.{layer}.bias" for layer in range(2)})
    tokens = InductionHeads.sample(100, seed=-1)[:, :-1]
    answers_as(run, states, network(), tokens)
    assert run.metrics["loss"].tolist() == [losses[step - 1] for step in states]

    symbols = InductionHeads.SYMBOLS
    strategies = {name: in_context(tokens, symbols, order) for name, order in (("unigram", 0), ("bigram", 1))}
    away = distances(lambda model: model(tokens)[0], strategies)
    table = mi.measure(run, {"from": away}).join(mi.measure(run))
    by_hand = [away(kept.eval())["bigram"].item() for kept in history[1:]]
    assert table["from_bigram"].tolist() == by_hand
    emergence = reported(run, table, "from_bigram", capsys)
    high, low = falls(losses, low=0.79, high=0.85)
    assert emergence.transition
    assert emergence.before > emergence.after
    assert high - 30 <= emergence.half_rise <= low + 30
    assert table["from_unigram"].idxmin() < emergence.half_rise  # single tokens are counted first

    torch.save([kept.state_dict() for kept in history], folder / "model_history.pt")
    kept = mi.import_checkpoints(folder / "model_history.pt", folder / "history.h5", step=every, progress=False)
    assert kept.steps == [0, *run.steps]
    assert all(kept.digest(step) == run.digest(step) for step in run.steps)


# Gopalani & Hu 2025


def attention_progress(model: Any) -> Tensor:
    """The share of attention, by absolute value, from a sum to the numbers of which it is made."""
    data = Plateau.sample(64, seed=-1)
    with torch.no_grad():
        weights = model(data[:, :-1])[0][:, Plateau.NUMBERS :].abs()
    wanted = torch.eye(Plateau.NUMBERS)
    wanted += torch.cat([torch.zeros(1, Plateau.NUMBERS), wanted[:-1]])
    return (weights[..., : Plateau.NUMBERS] * wanted).sum((-2, -1)).div(weights.sum((-2, -1))).mean()


def collapse(model: Any) -> float:
    """The mean cosine similarity of the hidden states at the sums."""
    with torch.no_grad():
        hidden = functional.normalize(model(Plateau.sample(64, seed=-1)[:, :-1])[1][:, Plateau.NUMBERS :], dim=-1)
    similarity = (hidden @ hidden.mT).mean(0)
    return float(similarity[~torch.eye(len(similarity), dtype=torch.bool)].mean())


def test_loss_plateau(folder, capsys):
    states, losses = Plateau.train(folder / "artifacts")
    run = mi.import_checkpoints(
        str(folder / "artifacts" / "*" / "mws.tar"),
        folder / "plateau.h5",
        step=r"_step(\d+)",
        weights="model",
        metrics=["train_loss", "test_acc"],
        build=Plateau.GPTLinear,
        progress=False,
    )
    same_as(run, states, {"transformer.h.0.attn.bias"})
    assert run.steps == [0, *range(Plateau.EVERY - 1, Plateau.STEPS, Plateau.EVERY)]
    answers_as(run, states, Plateau.GPTLinear(), Plateau.sample(10, seed=-3)[:, :-1])
    assert run.metrics["train_loss"].tolist() == [losses[step] for step in run.steps]

    functions = {"accuracy": Plateau.test_accuracy, "attention": attention_progress, "collapse": collapse}
    table = mi.measure(run, functions).join(mi.measure(run))
    assert table["accuracy"].tolist() == run.metrics["test_acc"].tolist()
    emergence = reported(run, table, "accuracy", capsys)
    high, low = falls(losses, low=1.1, high=1.9)
    assert emergence.transition
    assert high - Plateau.EVERY <= emergence.half_rise <= low + Plateau.EVERY
    assert table["attention"].iloc[-1] > 3 * table["attention"].iloc[0]
    assert table["collapse"].loc[: int(emergence.low)].max() > table["collapse"].iloc[-1]  # alike on the plateau

    with pytest.raises(MechinterpError, match=r"mws.tar: has no number in its name; give step"):
        mi.import_checkpoints(str(folder / "artifacts" / "*" / "mws.tar"), folder / "x.h5", progress=False)
    by_epoch = mi.import_checkpoints(
        str(folder / "artifacts" / "*" / "mws.tar"),
        folder / "x.h5",
        step=lambda path, content: content["epoch"],
        weights="model",
        progress=False,
    )
    assert by_epoch.steps == run.steps
    assert all(by_epoch.digest(step) == run.digest(step) for step in run.steps)


# Bietti et al. 2023


def memories(model: Any) -> dict[str, float]:
    """How many positions the first layer's keys recall of their successors, and tokens the last layer's output."""
    with torch.no_grad():
        key = model.layers[0].attention.wk(model.pe[:-1])
        recalled = (model.pe[1:] @ key.T).argmax(-1) == torch.arange(len(key))
        layer = model.layers[1].attention
        tokens = model.output(layer.wo(layer.wv(model.tok_embeddings.weight))).argmax(-1)
    return {
        "positions": float(recalled.double().mean()),
        "tokens": float((tokens == torch.arange(Birth.TOKENS)).double().mean()),
    }


def in_context_accuracy(model: nn.Module) -> Tensor:
    """How often the follower of a trigger is named where the trigger occurs again."""
    tokens, again = Birth.sample(300, seed=-1)
    with torch.no_grad():
        return (model(tokens[:, :-1]).argmax(-1) == tokens[:, 1:])[again].double().mean()


def test_birth_of_a_transformer(folder, capsys):
    path, schedule = folder / "birth.h5", mi.Schedule(every=5)
    model: Any
    model, losses = Birth.train(lambda model, optimizer: mi.record(path, model, optimizer=optimizer, schedule=schedule))
    run = mi.open_run(path, build=Birth.Transformer)
    assert run.steps == [*range(0, Birth.STEPS, 5), Birth.STEPS - 1]
    assert run.origin.left_out == ("freqs_cis",)
    assert torch.equal(run.weights(run.steps[-1])["pe"], model.pe)  # random, and made anew by another module
    tokens = Birth.sample(10, seed=-2)[0][:, :-1]
    answers_as(run, {step: model.state_dict() for step in run.steps[-1:]}, Birth.Transformer(), tokens)
    assert run.metrics["loss"].tolist() == pytest.approx([losses[step] for step in run.steps], abs=1e-12)

    table = mi.measure(run, {"accuracy": in_context_accuracy, "memory": memories}).join(mi.measure(run))
    emergence = reported(run, table, "accuracy", capsys)
    high, low = falls(losses, low=1.5, high=2.5)
    assert emergence.transition
    assert high - 10 <= emergence.half_rise <= low + 10
    assert table["memory_tokens"].iloc[0] < 0.3 < 0.8 < table["memory_tokens"].iloc[-1]
    assert table["memory_positions"].iloc[-1] > table["memory_positions"].iloc[0]
    assert mi.verify(path).sound
    assert main(["report", str(path), "--out", str(folder / "again.html")]) == 0
    assert (folder / "again.html").exists()
