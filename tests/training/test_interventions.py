"""Interventions during training: what they do to a forward pass and to parameters, and that runs replay them."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechinterp as mi
from mechinterp.config.interventions import ActivationIntervention, Graft
from mechinterp.errors import ConfigError, MechinterpError
from mechinterp.interventions.forward import ForwardInterventions, forward_interventions
from mechinterp.models.forward import forward, run_with_cache
from mechinterp.models.network import Network
from mechinterp.models.registry import initial_parameters
from mechinterp.training.engines import AutogradEngine, FusedEngine, build_engine
from tests.helpers import hooked, random_parameters

CLAMPS = ["previous_token", "uniform", "correct_label", "labels"]
FORWARD = [
    {"kind": "clamp", "layer": 0, "pattern": "previous_token", "strength": 0.25},
    {"kind": "clamp", "layer": 1, "pattern": "labels", "strength": 0.5},
    {"kind": "silence", "layer": 0, "strength": 0.75},
    {"kind": "copy", "strength": 0.5},
    {"kind": "temperature", "layer": 1, "tau": 2.0},
]


def under(config: mi.RunConfig, *interventions: dict) -> mi.RunConfig:
    return config.updated({"interventions": list(interventions)})


def seen(config: mi.RunConfig, step: int = 0, evaluation: str = "icl"):
    """A batch, and logits and activations of the initial network under a config's interventions."""
    batch = mi.build_task(config).sample(evaluation, 5)
    acting = ForwardInterventions.at(config, step, batch)
    activations = run_with_cache(Network.initial(config), batch.inputs, None, acting.hooks() if acting else None)
    return batch, activations.logits, activations


def released(config: mi.RunConfig) -> mi.RunConfig:
    return under(config)


@pytest.mark.parametrize("name", CLAMPS)
def test_a_clamp_puts_its_pattern_in_place(tiny_config, name):
    layer = 0 if name in ("previous_token", "uniform") else 1
    hook = f"blocks.{layer}.attn.hook_pattern"
    clamp = {"kind": "clamp", "layer": layer, "pattern": name}
    batch, _, clamped = seen(under(tiny_config, clamp))
    _, _, free = seen(released(tiny_config))
    pattern = clamped[hook]
    torch.testing.assert_close(pattern.sum(-1), torch.ones(5, 1, 7))
    if name == "previous_token":
        assert (pattern.diagonal(-1, dim1=2, dim2=3) == 1).all()
        assert (pattern[:, :, 0, 0] == 1).all()
    elif name == "uniform":
        expected = torch.ones(7, 7).tril() / torch.arange(1, 8)[:, None]
        torch.testing.assert_close(pattern, expected.expand_as(pattern))
    else:
        role = batch.roles["correct_label" if name == "correct_label" else "label"].float()
        torch.testing.assert_close(pattern[:, 0, -1], role / role.sum(1, keepdim=True))
        assert torch.equal(pattern[:, :, :-1], free[hook][:, :, :-1])
    _, _, half = seen(under(tiny_config, {**clamp, "strength": 0.5}))
    torch.testing.assert_close(half[hook], (pattern + free[hook]) / 2)


def test_a_target_without_a_correct_label_is_not_clamped(tiny_config):
    clamp = {"kind": "clamp", "layer": 1, "pattern": "correct_label"}
    batch, logits, clamped = seen(under(tiny_config, clamp), evaluation="iwl")
    _, _, free = seen(released(tiny_config), evaluation="iwl")
    lacking = ~batch.roles["correct_label"].any(dim=1)
    assert lacking.any()
    assert logits.isfinite().all()
    hook = "blocks.1.attn.hook_pattern"
    assert torch.equal(clamped[hook][lacking], free[hook][lacking])


def test_temperature_and_silence(tiny_config):
    batch, model = mi.build_task(tiny_config).sample("icl", 5), hooked(Network.initial(tiny_config))
    _, cache = model.run_with_cache(batch.inputs)
    _, _, patterns = seen(under(tiny_config, {"kind": "temperature", "layer": 0, "tau": 3.0}))
    expected = (cache["blocks.0.attn.hook_attn_scores"] / 3).softmax(-1)
    torch.testing.assert_close(patterns["blocks.0.attn.hook_pattern"], expected)
    _, logits, _ = seen(under(tiny_config, {"kind": "silence", "layer": 1}))
    resid = cache["blocks.1.hook_resid_pre"][:, -1]
    torch.testing.assert_close(logits, model.classifier(resid))


def test_copying_reads_the_clamped_attention_to_labels(tiny_config):
    interventions = [{"kind": "copy", "xi": 3.0}, {"kind": "clamp", "layer": 1, "pattern": "correct_label"}]
    batch, logits, _ = seen(under(tiny_config, *interventions))
    torch.testing.assert_close(logits, 3 * torch.nn.functional.one_hot(batch.labels, 4).float())


@pytest.mark.parametrize("n_heads", [1, 2])
@pytest.mark.parametrize("head", [None, 0])
def test_the_same_hooks_do_the_same_in_the_hooked_model(tiny_config, n_heads, head):
    at = {} if head is None else {"head": head}
    chosen = [each if each["kind"] == "copy" else {**each, **at} for each in FORWARD]
    config = under(tiny_config.updated({"model.n_heads": n_heads}), *chosen)
    batch, network = mi.build_task(config).sample("icl", 5), Network.initial(config)
    acting = ForwardInterventions.at(config, 0, batch)
    assert acting is not None
    hooks = acting.hooks()
    assert len(hooks) == 5
    logits = forward(network, batch.inputs, hooks)
    only = forward(network, batch.inputs, hooks, target_only=True)
    expected = hooked(network).run_with_hooks(batch.inputs, fwd_hooks=list(hooks.items()))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(only, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected, forward(network, batch.inputs))


def train(config: mi.RunConfig, path) -> mi.Run:
    return mi.train(config, path, progress=False, overwrite=True)


def digests(run: mi.Run) -> list[str]:
    return [run.digest(step) for step in run.steps]


def test_strength_zero_is_bit_for_bit_no_intervention(tiny_config, tiny_run, tmp_path):
    nothing = [{**each, **({"tau": 1.0} if "tau" in each else {"strength": 0.0})} for each in FORWARD]
    run = train(under(tiny_config, *nothing), tmp_path / "run.h5")
    assert digests(run) == digests(tiny_run)
    assert run.environment["engine"] == tiny_run.environment["engine"] == "fused"


@pytest.mark.parametrize(
    ("intervention", "engine"),
    [*((each, AutogradEngine) for each in FORWARD), *((each, FusedEngine) for each in FORWARD[:2])],
)
def test_the_arithmetic_at_strength_zero_changes_no_bit(tiny_config, intervention, engine):
    """Not only by leaving it out."""
    zero = {**intervention, **({"tau": 1.0} if "tau" in intervention else {"strength": 0.0})}
    config = under(tiny_config, zero)
    batch = mi.build_task(config).train_batch(0, 16)
    (acting_config,) = config.interventions
    assert isinstance(acting_config, ActivationIntervention)
    acting = ForwardInterventions([acting_config], batch, 1)
    plain, clamped = (engine([config], [initial_parameters(config)]) for _ in range(2))
    assert plain.step(batch) == clamped.step(batch, acting)
    for name, value in plain.parameters.items():
        assert torch.equal(value, clamped.parameters[name]), name


@st.composite
def clamps(draw):
    layer = draw(st.integers(0, 1))
    pattern = draw(st.sampled_from(CLAMPS if layer else CLAMPS[:2]))
    strength = draw(st.sampled_from([0.01, 0.3, 0.99, 1.0]))
    return {"kind": "clamp", "layer": layer, "pattern": pattern, "strength": strength}


@settings(max_examples=25, deadline=None)
@given(st.lists(clamps(), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 33), st.sampled_from([0.0, 0.5]))
def test_the_fused_engine_clamps_as_autograd_does(chosen, n_pairs, size, p_bursty):
    changes = {"task.n_pairs": n_pairs, "task.content_dim": 11, "task.position_dim": 13, "model.classifier_width": 19}
    changes |= {"task.n_classes": 8, "task.n_labels": 4, "task.n_novel_classes": 8, "task.distinct_labels": False}
    config = under(mi.RunConfig().updated(changes | {"task.p_bursty": p_bursty}), *chosen)
    assert build_engine(config, initial_parameters(config)).name == "fused"
    parameters = random_parameters(config, size)
    batch = mi.build_task(config).train_batch(0, size)
    assert batch.table is not None
    exact = dataclasses.replace(batch.table, shared=batch.table.shared.double(), own=batch.table.own.double())
    batch = mi.Batch(None, batch.labels, batch.roles, batch.token_labels, exact)
    (loss, accuracy, ours), (expected, right, theirs) = (
        engine([config], [parameters]).gradients(batch, ForwardInterventions.at(config, 0, batch))
        for engine in (FusedEngine, AutogradEngine)
    )
    assert (loss, accuracy) == (pytest.approx(expected, rel=1e-11), pytest.approx(right))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12)


def test_only_what_the_fused_engine_computes_is_given_to_it(tiny_config):
    target_in_layer_1 = {"kind": "clamp", "layer": 0, "pattern": "labels"}
    for each in [target_in_layer_1, *FORWARD[2:]]:
        config = under(tiny_config, FORWARD[0], each)
        assert build_engine(config, initial_parameters(config)).name == "autograd"


def test_a_window_acts_within_its_steps_only(tiny_config, tmp_path):
    clamp = {"kind": "clamp", "layer": 0, "pattern": "uniform", "start": 8, "stop": 12}
    ours, theirs = (train(under(tiny_config, *each), tmp_path / f"{len(each)}.h5") for each in ([clamp], []))
    same = [ours.digest(step) == theirs.digest(step) for step in (0, 4, 8, 10, 12, 20)]
    assert same == [True, True, True, False, False, False]
    config = under(tiny_config, clamp)
    assert len(forward_interventions(config)) == 1
    batch = mi.build_task(config).sample("icl", 2)
    assert [bool(ForwardInterventions.at(config, step, batch)) for step in (7, 8, 11, 12)] == [False, True, True, False]


def test_fixed_frozen_and_grafted_parameters(tiny_config, tiny_run, tmp_path):
    readout, key = "classifier.readout.W", "blocks.1.attn.W_K"
    config = under(
        tiny_config,
        {"kind": "fix", "parameters": ["classifier.layers.*.b"], "value": 0.5, "stop": 10},
        {"kind": "freeze", "parameters": [readout], "start": 4, "stop": 8},
        {"kind": "graft", "parameters": [key], "run": str(tiny_run.path), "step": 20, "start": 6},
        {"kind": "freeze", "parameters": [key], "start": 6},
    )
    run = train(config, tmp_path / "run.h5")
    weights = {step: run.weights(step) for step in run.steps}
    bias = "classifier.layers.1.b"
    assert all((weights[step][bias] == 0.5).all() for step in (0, 2, 10))
    assert (weights[12][bias] != 0.5).any()
    assert torch.equal(weights[4][readout], weights[8][readout])
    assert not torch.equal(weights[2][readout], weights[4][readout])
    assert not torch.equal(weights[8][readout], weights[10][readout])
    donor = tiny_run.weights(20)[key]
    assert not torch.equal(weights[4][key], donor)
    assert all(torch.equal(weights[step][key], donor) for step in (6, 8, 20))
    graft = run.config.interventions[2]
    assert isinstance(graft, Graft)
    assert graft.digest == tiny_run.digest(20)
    assert run.environment["engine"] == "fused"


@pytest.mark.parametrize("others", [[], FORWARD], ids=["parameters", "all"])
def test_runs_under_interventions_replay_and_resume_exactly(tiny_config, tiny_run, tmp_path, others):
    from mechinterp.training.runs import resume

    config = under(
        tiny_config,
        {"kind": "fix", "parameters": ["classifier.layers.0.b"], "value": 0.1, "start": 3, "stop": 9},
        {"kind": "graft", "parameters": ["blocks.0.*"], "run": str(tiny_run.path), "step": 10, "start": 5},
        *[{**each, "start": 2, "stop": 17} for each in others],
    )
    run = train(config, tmp_path / "run.h5")
    expected = digests(run)
    assert run.densify(every=1).exact
    assert torch.equal(run.weights(5)["blocks.0.attn.W_Q"], tiny_run.weights(10)["blocks.0.attn.W_Q"])
    shorter = train(config.updated({"training.steps": 10}), tmp_path / "short.h5")
    assert digests(resume(shorter.path, until=20, progress=False)) == expected


def test_a_graft_from_weights_that_have_changed_is_refused(tiny_config, tiny_run, tmp_path):
    source = train(tiny_config, tmp_path / "source.h5")
    graft = {"kind": "graft", "run": str(source.path), "step": 10, "start": 5}
    run = train(under(tiny_config, graft), tmp_path / "run.h5")
    train(tiny_config.updated({"seed": 1}), source.path)
    with pytest.raises(ConfigError, match=r"source.h5: its weights at step 10 are not those that were grafted"):
        run.densify(every=1)


def test_accuracy_is_measured_clamped_and_released(tiny_config, tmp_path):
    copying = [{"kind": "copy", "stop": 10}, {"kind": "clamp", "layer": 1, "pattern": "correct_label", "stop": 10}]
    run = train(under(tiny_config, *copying), tmp_path / "run.h5")
    table = mi.measure(run, ["icl_accuracy", "tila2"], n_sequences=50)
    clamped, released = table["clamped_icl_accuracy"].to_numpy(), table["icl_accuracy"].to_numpy()
    assert (clamped[:5] == 1).all()
    assert (released[:5] < 0.9).all()
    assert (table["clamped_tila2"].to_numpy()[:5] == 1).all()
    assert (clamped[5:] == released[5:]).all()
    free = mi.measure(train(under(tiny_config), tmp_path / "free.h5"), n_sequences=50)
    assert not [name for name in free if name.startswith("clamped")]


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        ({"kind": "clmp"}, r"interventions\.0.*'clmp'"),
        ({"kind": "clamp", "layer": 0, "pattern": "previous"}, r"interventions\.0\.pattern.*'previous_token'"),
        ({"kind": "clamp", "layer": 2, "pattern": "uniform"}, "layer is 2, expected 0 to 1"),
        ({"kind": "clamp", "layer": 0, "pattern": "uniform", "strenght": 1.0}, "did you mean 'strength'"),
        ({"kind": "clamp", "layer": 0, "pattern": "uniform", "strength": 1.5}, r"less than or equal to 1"),
        ({"kind": "silence", "layer": 0, "start": 5, "stop": 5}, "would never be on"),
        ({"kind": "silence", "layer": 0, "start": 99}, "starts at 99, after the last step"),
        ({"kind": "fix", "parameters": []}, "at least 1"),
        ({"kind": "fix", "parameters": ["*"], "value": 1e300}, "less than or equal to 1000"),
        ({"kind": "copy", "layer": 1}, "known: start, stop, strength, kind, xi"),
        ({"layer": 1}, "has no kind"),
    ],
)
def test_impossible_interventions_are_refused(tiny_config, intervention, message):
    with pytest.raises(ConfigError, match=message) as refused:
        under(tiny_config, intervention)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        ({"kind": "fix", "parameters": ["blocks.0.attn.W_X"]}, "did you mean 'blocks.0.attn.W_"),
        ({"kind": "graft", "run": "nowhere.h5", "step": 3}, r"nowhere\.h5"),
        ({"kind": "graft", "run": "TINY", "step": 3}, "step 3 is not saved; the nearest is"),
        (
            {"kind": "graft", "run": "WIDE", "step": 0, "parameters": ["*W_Q"]},
            r"is \[2, 24, 24\].* takes \[1,",
        ),
    ],
)
def test_what_an_intervention_names_must_exist_before_anything_is_written(
    tiny_config, tiny_run, tmp_path, tmp_path_factory, intervention, message
):
    if intervention.get("run") == "TINY":
        intervention = {**intervention, "run": str(tiny_run.path)}
    if intervention.get("run") == "WIDE":
        wide = tiny_config.updated({"model.n_heads": 2, "training.steps": 0})
        intervention = {**intervention, "run": str(train(wide, tmp_path_factory.mktemp("wide") / "wide.h5").path)}
    with pytest.raises(MechinterpError, match=message):
        train(under(tiny_config, intervention), tmp_path / "run.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"kind": "fix"},
            {"kind": "graft", "start": 6},
            "graft sets classifier.readout.W at step 6, while fix holds",
        ),
        (
            {"kind": "freeze"},
            {"kind": "fix", "start": 6},
            "at step 6, while freeze holds",
        ),
        ({"kind": "fix"}, {"kind": "fix", "value": 2.0, "start": 6, "stop": 9}, "while fix holds it from 0"),
        ({"kind": "fix", "start": 6}, {"kind": "graft", "start": 6}, "is set twice at step 6"),
    ],
)
def test_a_parameter_is_set_only_while_nothing_holds_it(tiny_config, tiny_run, tmp_path, first, second, message):
    def whole(each: dict) -> dict:
        source = {"run": str(tiny_run.path), "step": 20} if each["kind"] == "graft" else {}
        return {**each, **source, "parameters": ["classifier.readout.*"]}

    for pair in ((first, second), (second, first)):
        with pytest.raises(ConfigError, match=message):
            train(under(tiny_config, *map(whole, pair)), tmp_path / "run.h5")


def test_the_run_that_is_grafted_from_is_not_overwritten(tiny_config, tmp_path):
    source = train(tiny_config, tmp_path / "source.h5")
    graft = {"kind": "graft", "run": str(source.path), "step": 10, "start": 5}
    with pytest.raises(ConfigError, match="is the run that is grafted from"):
        train(under(tiny_config, graft), source.path)
    assert mi.open_run(source.path).status == "complete"


def test_a_clamped_measure_can_be_asked_for(tiny_config, tiny_run, tmp_path):
    run = train(under(tiny_config, FORWARD[0]), tmp_path / "run.h5")
    table = mi.measure(run, ["tila2", "clamped_icl_accuracy"], steps=[0, 20], n_sequences=20)
    assert list(table) == ["tila2", "icl_accuracy", "clamped_tila2", "clamped_icl_accuracy"]
    with pytest.raises(MechinterpError, match="nothing is clamped"):
        mi.measure(tiny_run, ["clamped_icl_accuracy"])
