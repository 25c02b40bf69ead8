"""Configs: strict, complete error messages, canonical text, schedules."""

from typing import Annotated, Literal

import pytest
from pydantic import ValidationError

import mechinterp as mi
from mechinterp.config import (
    CheckpointConfig,
    Family,
    InterventionConfig,
    ItemLabelConfig,
    ModelConfig,
    ScaleHeadOutput,
    Section,
    TaskConfig,
    TrainingConfig,
    explain,
)
from mechinterp.config.section import OneOf
from mechinterp.errors import ConfigError, UnknownNameError


def test_presets_cover_the_same_flow_time():
    exact, fast = mi.RunConfig.preset("reddy2023"), mi.RunConfig.preset("reddy2023-fast", seed=7)
    assert (exact.training.learning_rate, exact.training.steps) == (0.01, 60_000)
    assert (fast.training.learning_rate, fast.training.steps, fast.seed) == (0.1, 6_000, 7)
    assert exact.task == fast.task
    decay = [each.training.steps * each.training.decay_factor("") for each in (exact, fast)]
    assert decay[0] == pytest.approx(decay[1])


def test_unknown_preset_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'reddy2023'"):
        mi.RunConfig.preset("redy2023")


def test_toml_round_trip(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("seed = 3\n[task]\nn_classes = 64\nepsilon = 0\n[checkpoints]\nevery = 10\nat = [3, 5]\n")
    config = mi.RunConfig.from_toml(path)
    assert isinstance(config.task, ItemLabelConfig)
    assert (config.seed, config.task.n_classes, config.task.epsilon, config.checkpoints.at) == (3, 64, 0.0, (3, 5))
    assert mi.RunConfig.model_validate_json(config.canonical_json()) == config


def test_every_fault_of_a_file_is_listed_with_path_and_nearest_name(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text('seeed = 1\n[task]\nn_clases = 4\nepsilon = "a"\n[training]\nsteps = 2.5\nlearning_rate = -1.0\n')
    with pytest.raises(ConfigError) as caught:
        mi.RunConfig.from_toml(path)
    message = str(caught.value)
    for part in (
        str(path),
        "seeed: unknown key; did you mean 'seed'",
        "task.n_clases: unknown key; did you mean 'n_classes'",
        "task.epsilon:",
        "training.steps:",
        "training.learning_rate:",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"n_classes": 16}, "raise n_classes to at least 32"),
        ({"n_classes": 48}, "use 32 or 64"),
        ({"burstiness": 3}, "{0, 1, 2, 4, 8}"),
        ({"n_labels": 4, "n_classes": 4}, "more than n_labels"),
        ({"n_pairs": 33, "burstiness": 3}, "raise position_dim to at least 67"),
        ({"zipf_exponent": 1.0}, "set distinct_labels = false"),
        ({"n_novel_classes": 40}, "use 64"),
    ],
)
def test_impossible_tasks_say_what_to_change(changes, hint):
    with pytest.raises(ConfigError) as caught:
        mi.RunConfig.from_dict({"task": changes})
    assert hint in str(caught.value)


def test_impossibilities_are_listed_together():
    with pytest.raises(ConfigError) as caught:
        mi.RunConfig.from_dict({"task": {"n_classes": 33, "burstiness": 3, "position_dim": 5}})
    assert all(part in str(caught.value) for part in ("n_classes", "burstiness", "position_dim"))


def test_configs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        mi.RunConfig().seed = 4


def test_updated_refuses_an_unknown_section():
    with pytest.raises(ConfigError, match="no section 'tsk'"):
        mi.RunConfig().updated({"tsk.n_classes": 4})


def test_schedule_is_the_union_of_its_rules():
    config = CheckpointConfig(every=40, per_decade=1, at=(7, 99, 1000))
    assert config.schedule(100) == [0, 1, 7, 10, 40, 80, 99, 100]
    assert CheckpointConfig(every=None).schedule(5) == [0, 5]
    assert CheckpointConfig(every=None, per_decade=3).schedule(0) == [0]


def test_weight_decay_conventions():
    assert TrainingConfig(weight_decay=1e-4, learning_rate=0.1).decay_factor("blocks.0.attn.W_Q") == 1e-4
    decayed = TrainingConfig(weight_decay=1e-4, learning_rate=0.1, weight_decay_convention="times_learning_rate")
    assert decayed.decay_factor("classifier.layers.0.W") == pytest.approx(1e-5)
    assert TrainingConfig(optimizer="adamw", weight_decay=1.0, learning_rate=1e-3).decay_factor("") == 1e-3
    with pytest.raises(ValidationError, match="weight_decay subtracts 1 times a parameter at every step: lower it"):
        TrainingConfig(weight_decay=1.0)


def test_the_classes_of_a_family_are_found_by_their_kind():
    tasks = ["item_label", "paired_items", "induction_tokens", "markov_chains", "modular_addition", "custom"]
    assert list(TaskConfig.kinds()) == tasks
    assert list(ModelConfig.kinds()) == ["transformer", "induction_head", "additive"]
    assert InterventionConfig.kinds()["silence"] is ScaleHeadOutput  # run files carry the names, not the classes


def test_a_fault_is_looked_up_in_the_section_that_it_lies_in():
    clamp = {"kind": "clamp", "layer": 0, "patern": "uniform"}
    with pytest.raises(ConfigError) as caught:
        mi.RunConfig.from_dict({"model": {"kind": "additive", "bta": 1.0}, "interventions": [clamp, {"start": 3}]})
    for part in ("model.bta: unknown key; did you mean 'beta'", "interventions.0.patern: unknown key; did you mean"):
        assert part in str(caught.value)
    assert "interventions.1: has no kind; name one of fix, freeze, graft, clamp" in str(caught.value)


def test_a_new_kind_is_one_class():
    class Shape(Family):
        pass

    class Circle(Shape):
        kind: Literal["circle"] = "circle"  # pyright: ignore[reportIncompatibleVariableOverride] (as in every family)
        radius: float = 1.0

    class Drawing(Section):
        shape: Annotated[Shape, OneOf(default="circle")] = Circle()

    drawing = Drawing.model_validate({"shape": {"radius": 2.0}})
    assert (drawing.shape, drawing.model_dump()) == (Circle(radius=2.0), {"shape": {"kind": "circle", "radius": 2.0}})
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate({"shape": {"radios": 2.0}})
    assert explain(caught.value, Drawing) == "shape.radios: unknown key; did you mean 'radius'?"
