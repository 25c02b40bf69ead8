"""A model is analysed as it is: an analysis says what the model itself answers, or in one line why it cannot."""

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import config

import mechinterp as mi
from mechinterp.circuits.ablation import ablate
from mechinterp.circuits.diagram import circuit_edges
from mechinterp.circuits.evidence import induction_head_evidence
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.order_parameters import order_parameters
from mechinterp.circuits.patching import Site, patch
from mechinterp.circuits.paths import patch_paths
from mechinterp.circuits.qk_ov import composition_scores, copying_score, ov, position_profile, qk, qk_strengths
from mechinterp.circuits.subspaces import subspaces
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import forward
from mechinterp.models.hooked import HookedNetwork
from mechinterp.models.network import Network
from mechinterp.tasks import build_task
from mechinterp.tasks.corruption import corrupted_pairs
from mechinterp.training.recording import new_run_file
from tests.helpers import by_hooked_transformer, hooked, random_network, random_parameters


def random_output(model: HookedNetwork) -> None:
    for block in model.blocks:
        torch.manual_seed(1)
        block.attn.W_O.data.normal_(std=0.3)


def attention_scale(model: HookedNetwork) -> None:
    model.cfg.use_attn_scale = True
    for block in model.blocks:
        block.attn.attn_scale = 3.0


def output_bias(model: HookedNetwork) -> None:
    torch.manual_seed(2)
    model.blocks[1].attn.b_O.data.normal_()


def permanent_hook(model: HookedNetwork) -> None:
    model.add_perma_hook("blocks.1.attn.hook_z", lambda tensor, hook: torch.zeros_like(tensor))


CHANGES = {
    random_output: "another W_O",
    attention_scale: "an attention scale",
    output_bias: "biases",
    permanent_hook: r"has a hook at blocks\.1\.attn\.hook_z",
}
"""What a user may do to a hooked model that its trained parameters do not show, and what an analysis says of it."""
NEED_WEIGHTS: dict[str, Callable] = {
    "patch_paths": lambda model, task: patch_paths(model, corrupted_pairs(task, n_pairs=4)),
    "induction_head_evidence": lambda model, task: induction_head_evidence(model, task, n_pairs=4),
    "circuit_edges": lambda model, task: circuit_edges(model, task, n_pairs=4),
    "qk_strengths": lambda model, task: qk_strengths(model, task.sample("icl", 4), task),
    "qk": lambda model, task: qk(model, 0),
    "ov": lambda model, task: ov(model, 0),
    "copying_score": lambda model, task: [copying_score(model, task, task.sample("icl", 4))],
    "composition_scores": lambda model, task: composition_scores(model),
    "position_profile": lambda model, task: position_profile(model, task, 0),
    "subspaces": subspaces,
    "order_parameters": lambda model, task: order_parameters(model, task, n_sequences=8),
}
RUN_MODELS: dict[str, Callable] = {
    "patch": lambda model, task: patch(model, corrupted_pairs(task, n_pairs=4)),
    "ablate": lambda model, task: ablate(model, task.sample("icl", 4)),
}
SITES = [
    Site("blocks.0.hook_resid_pre", "label"),
    Site("blocks.0.attn.hook_v", "correct_label"),
    Site("blocks.1.attn.hook_q", "target"),
    Site("blocks.1.attn.hook_z", "target"),
    Site("blocks.1.hook_attn_out", None),
    Site("classifier.hook_in", None),
]


@pytest.fixture
def task(tiny_config):
    return mi.build_task(tiny_config)


@pytest.fixture
def model(tiny_config) -> HookedNetwork:
    """A random network of two layers, as a hooked model that may be changed."""
    return hooked(random_network(tiny_config, seed=4))


def loop(model, pairs, sites=SITES) -> list[float]:
    """Denoising, spelt out: the corrupt run with the clean activation, by TransformerLens' own hooks."""
    values = []
    with torch.no_grad():
        _, clean = model.run_with_cache(pairs.clean.inputs)
        for site in sites:

            def replace(activation, hook, site=site):
                source = clean[site.hook]
                if site.role is None:
                    return source
                mask = pairs.roles[site.role]
                return torch.where(mask.view(*mask.shape, *(1,) * (activation.ndim - 2)), source, activation)

            logits = model.run_with_hooks(pairs.corrupt.inputs, fwd_hooks=[(site.hook, replace)])
            values.append(float(Metric.logit_difference.of(logits, pairs.answers, pairs.wrong_labels)))
    return values


def message(function: Callable, *arguments) -> str:
    """The message of a refusal, which is one line."""
    with pytest.raises(MechinterpError) as refused:
        function(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_changed_model_answers_is_what_is_said_of_it(model, task, change):
    batch, pairs = task.sample("icl", 30), corrupted_pairs(task, n_pairs=30)
    with torch.no_grad():
        unchanged = model(batch.inputs)
        change(model)
        logits = model(batch.inputs)
    assert (logits - unchanged).abs().max() > 0.01
    wrong = (batch.labels + 1) % task.n_labels
    expected = float(Metric.logit_difference.of(logits, batch.labels, wrong))
    table = ablate(model, batch, metric=Metric.logit_difference)
    assert table["intact"].to_numpy() == pytest.approx(expected, abs=1e-10)
    assert patch(model, pairs, SITES)["value"].tolist() == pytest.approx(loop(model, pairs), abs=1e-10)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("analysis", NEED_WEIGHTS)
def test_an_analysis_of_weights_refuses_a_changed_model(model, task, change, analysis):
    assert len(NEED_WEIGHTS[analysis](model, task))
    change(model)
    said = message(NEED_WEIGHTS[analysis], model, task)
    with pytest.raises(MechinterpError, match=CHANGES[change]):
        raise MechinterpError(said)


@pytest.fixture
def as_users_call_it():
    """Without the type checks of the tests, which would refuse a mapping first."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("as_users_call_it")
@pytest.mark.parametrize("name", [*RUN_MODELS, *NEED_WEIGHTS])
def test_weights_alone_are_refused(tiny_config, task, name):
    said = message((RUN_MODELS | NEED_WEIGHTS)[name], random_parameters(tiny_config), task)
    assert "weights alone do not say" in said


@by_hooked_transformer
@pytest.mark.parametrize("name", [*RUN_MODELS, *NEED_WEIGHTS])
def test_a_model_of_tokens_is_refused(task, name):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    with warnings.catch_warnings(action="ignore"):
        stock = HookedTransformer(
            HookedTransformerConfig(
                n_layers=2, n_heads=1, d_model=24, d_head=24, n_ctx=7, d_vocab=4, attn_only=True, device="cpu"
            )
        )
    assert "the HookedTransformer" in message((RUN_MODELS | NEED_WEIGHTS)[name], stock, task)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.use_attn_scale": True},
        {"model.output_matrix": "trained"},
        {"model.use_attn_scale": True, "model.output_matrix": "trained", "model.n_heads": 2},
    ],
)
def test_a_run_under_other_conventions_is_the_transformer_of_its_weights(tiny_config, tmp_path, changes):
    """`run.network` folds W_O and the scale in; here they are set as they are in TransformerLens' own network."""
    other = tiny_config.updated(changes | {"training.steps": 1})
    weights = random_parameters(other, seed=6, dtype=torch.float32)
    with new_run_file(tmp_path / "run.h5", other) as writer:
        writer.append(0, weights, {"train_loss": 0.0, "train_accuracy": 0.0})
    run = mi.open_run(tmp_path / "run.h5")
    theirs = hooked(random_network(tiny_config.updated({"model.n_heads": other.model.n_heads}), dtype=torch.float32))
    own = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    for block in theirs.blocks if other.model.use_attn_scale else ():
        block.attn.attn_scale = other.task.d_model**0.5

    batch, pairs = run.task.sample("icl", 30), corrupted_pairs(run.task, n_pairs=30)
    with torch.no_grad():
        logits = theirs(batch.inputs)
        np.testing.assert_allclose(forward(run.network(0), batch.inputs), logits, atol=1e-5)
        np.testing.assert_allclose(run.model(0)(batch.inputs), logits, atol=1e-5)
    assert ablate(run.network(0), batch)["intact"].tolist()[0] == pytest.approx(
        float((logits.argmax(dim=-1) == batch.labels).float().mean())
    )
    places = [site for site in SITES if not site.hook.endswith(("hook_v", "hook_q", "hook_z"))]
    expected = loop(theirs, pairs, places)
    assert patch(run.network(0), pairs, places)["value"].tolist() == pytest.approx(expected, abs=1e-5)
    assert patch(theirs, pairs, places)["value"].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_network_with_further_parts_is_patched_as_its_hooked_view():
    model = {"input": "tokens", "output": "unembedding", "d_model": 8, "n_heads": 2, "d_head": 4}
    model |= {"output_matrix": "trained", "normalization_type": "LN", "positional_embedding_type": "sinusoidal"}
    sequences = {"kind": "induction_tokens", "n_tokens": 12, "n_pos": 9, "min_period": 4, "max_period": 6}
    tokens = mi.RunConfig.from_dict({"task": sequences, "model": model | {"use_attn_scale": True}})
    network, task = Network.initial(tokens), build_task(tokens)
    pairs = corrupted_pairs(task, "swap_label", n_pairs=20)
    sites = [Site("blocks.1.attn.hook_z", "target"), Site("blocks.0.ln1.hook_normalized", "correct_label")]
    for each in (network, hooked(network)):
        table = patch(each, pairs, sites)
        assert np.isfinite(table["value"]).all()
    pd.testing.assert_frame_equal(patch(network, pairs, sites), table, rtol=1e-4)
