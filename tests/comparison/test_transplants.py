"""Transplants: the batched call is the loop, and the ends of a transplant are the checkpoints themselves."""

import pytest
import torch

import mechinterp as mi
from mechinterp.comparison import states as module
from mechinterp.comparison.components import components_of
from mechinterp.comparison.states import States, Target
from mechinterp.errors import MechinterpError, UnknownNameError
from mechinterp.models.forward import forward
from mechinterp.models.network import Network
from mechinterp.tasks import build_task
from tests.comparison.trajectories import switched_on
from tests.conftest import TINY
from tests.helpers import random_parameters

GENERAL = {
    "model.normalization_type": "LN",
    "model.biases": True,
    "model.d_mlp": 12,
    "model.n_heads": 2,
    "model.d_head": 6,
    "model.output_matrix": "trained",
}
TOKENS = {
    "task.kind": "induction_tokens",
    "model.input": "tokens",
    "model.output": "unembedding",
    "model.d_model": 16,
    **GENERAL,
}
CONFIGS = {
    "classic": TINY,
    "heads": {**TINY, "model.n_heads": 2, "model.output_matrix": "trained", "model.use_attn_scale": True},
    "minimal": {**TINY, "model.kind": "induction_head"},
    "general": {**TINY, **GENERAL, "model.positional_embedding_type": "relative_positional_bias"},
    "tokens": {**TOKENS, "model.positional_embedding_type": "rotary"},
    "shortformer": {**TOKENS, "model.positional_embedding_type": "shortformer", "model.parallel_attn_mlp": True},
    "layer norm": {"task.kind": "paired_items", "model.n_layers": 1, "model.trained_layer_norm": True},
    "additive": {"task.kind": "paired_items", "model.kind": "additive", "task.tokens": "plain"},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_batched_transplants_are_those_of_a_loop(changes):
    config = mi.RunConfig().updated(changes)
    parameters = {step: random_parameters(config, seed=step) for step in range(3)}
    states, batch = States.of(config, parameters), build_task(config).sample(build_task(config).evaluations[0], 6)
    components = components_of(config)
    groups = [[component] for component in components] + [components[:2], components[-2:], components[::-1]]
    target = Target(states, 1, batch.inputs)
    torch.testing.assert_close(target.logits, forward(Network(config, parameters[1]), batch.inputs))
    for group in groups:
        found = target.with_components(group, [0, 1, 2])
        for source in range(3):
            mixed = {name: value.clone() for name, value in parameters[1].items()}
            for component in group:
                for name in component.parameters:
                    component.part(name, mixed[name]).copy_(component.part(name, parameters[source][name]))
            torch.testing.assert_close(found[source], forward(Network(config, mixed), batch.inputs))
    whole = target.with_components(components, [2])[0]  # all components: the source itself
    torch.testing.assert_close(whole, forward(Network(config, parameters[2]), batch.inputs))
    assert not torch.allclose(whole, target.logits)


def test_a_part_at_a_time_is_the_same(monkeypatch):
    states, components = switched_on({})
    batch = build_task(states.config).sample("icl", 5)
    together = Target(states, 0, batch.inputs).with_components(components[:1], range(4))
    monkeypatch.setattr(module, "MEMORY", 1)
    torch.testing.assert_close(Target(states, 0, batch.inputs).with_components(components[:1], range(4)), together)


def test_long_sequences_are_computed_without_fused_attention():
    """Of which torch has no rule for vmap."""
    config = mi.RunConfig().updated({**TOKENS, "task.n_pos": 200, "model.positional_embedding_type": "rotary"})
    states = States.of(config, {step: random_parameters(config, step) for step in range(2)})
    batch = build_task(config).sample("icl", 2)
    found = Target(states, 0, batch.inputs).with_components(components_of(config), [1])[0]
    torch.testing.assert_close(found, forward(Network(config, states.at(1)), batch.inputs))


def test_the_diagonal_is_the_checkpoint(tiny_run):
    table = mi.transplant(tiny_run, steps=[0, 10, 20], n_sequences=300, keep=False)
    assert list(table.columns) == [
        "component",
        "source",
        "target",
        "accuracy",
        "accuracy_error",
        "loss",
        "loss_error",
    ]
    assert len(table) == 5 * 9
    measured = mi.measure(tiny_run, ["icl_accuracy", "icl_loss"], n_sequences=300)
    for row in table[table["source"] == table["target"]].to_dict("records"):
        assert row["accuracy"] == pytest.approx(measured.loc[row["source"], "icl_accuracy"], abs=1e-6)
        assert row["loss"] == pytest.approx(measured.loc[row["source"], "icl_loss"], rel=1e-4)
    cell = table[(table["source"] == 20) & (table["target"] == 0)]
    assert cell["loss"].nunique() > 1
    expected = (cell["accuracy"] * (1 - cell["accuracy"]) / 299) ** 0.5
    assert (cell["accuracy_error"] >= expected * 0.999).all()  # more, where targets share classes


def test_results_are_kept_by_steps_and_arguments(tiny_run, tmp_path, monkeypatch):
    path = tmp_path / "copy.h5"
    path.write_bytes(tiny_run.path.read_bytes())
    run = mi.open_run(path)
    first = mi.transplant(run, "classifier", steps=[0, 20], n_sequences=20)
    monkeypatch.setattr("mechinterp.comparison.transplants.into_one", None)  # nothing is computed again
    assert mi.transplant(run, ["classifier"], steps=[20, 0], n_sequences=20).equals(first)
    with pytest.raises(TypeError):
        mi.transplant(run, "classifier", steps=[0, 10], n_sequences=20)
    with pytest.raises(TypeError):
        mi.transplant(run, "classifier", steps=[0, 20], n_sequences=21)


def test_mistakes_are_named(tiny_run):
    with pytest.raises(UnknownNameError, match="did you mean 'classifier'"):
        mi.transplant(tiny_run, "clasifier", steps=[0])
    with pytest.raises(MechinterpError, match="step"):
        mi.transplant(tiny_run, steps=[3])
    with pytest.raises(UnknownNameError, match="evaluation set"):
        mi.transplant(tiny_run, steps=[0], evaluation="icll")
    with pytest.raises(MechinterpError, match="n_sequences is 1"):
        mi.transplant(tiny_run, steps=[0], n_sequences=1)
    with pytest.raises(MechinterpError, match="steps is empty"):
        mi.transplant(tiny_run, steps=[])
