"""The update of all engines is the formula's, for one run and for several stacked."""

import pytest
import torch

from mechinterp.config import TrainingConfig
from mechinterp.training.sgd import SGD

TRAININGS = [
    TrainingConfig(learning_rate=0.1),
    TrainingConfig(learning_rate=0.03, weight_decay=0.01),
    TrainingConfig(learning_rate=0.1, weight_decay=0.01, attention_weight_decay=0.25),
    TrainingConfig(learning_rate=0.5, weight_decay=0.125, weight_decay_convention="times_learning_rate"),
]
SHAPES = {"blocks.0.attn.W_Q": (1, 5, 5), "classifier.layers.0.b": (7,), "classifier.readout.W": (7, 3)}


def decay_of(training: TrainingConfig, name: str) -> float:
    decay = training.weight_decay
    if name.startswith("blocks.") and training.attention_weight_decay is not None:
        decay = training.attention_weight_decay
    return decay * (training.learning_rate if training.weight_decay_convention == "times_learning_rate" else 1)


def drawn(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def stacked(runs: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([run[name] for run in runs]) for name in SHAPES}


def by_the_formula(training: TrainingConfig, parameters: dict, gradients: dict) -> dict[str, torch.Tensor]:
    return {
        name: (1 - decay_of(training, name)) * value - training.learning_rate * gradients[name]
        for name, value in parameters.items()
    }


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-14, atol=1e-15, msg=name)


@pytest.mark.parametrize("training", TRAININGS)
def test_the_update_is_the_formula_in_place(training):
    parameters, gradients = drawn(0), drawn(1)
    expected, gradients_before = by_the_formula(training, parameters, gradients), drawn(1)
    where = {name: value.data_ptr() for name, value in parameters.items()}
    SGD([training], parameters).update(parameters, gradients)
    assert_equal(parameters, expected)
    assert {name: value.data_ptr() for name, value in parameters.items()} == where
    assert all(torch.equal(value, gradients_before[name]) for name, value in gradients.items())


@pytest.mark.parametrize("trainings", [TRAININGS, TRAININGS[2:3] * 3], ids=["different", "alike"])
def test_runs_with_their_own_rates_and_decays_are_updated_as_alone(trainings):
    starts, gradients = ([drawn(10 * number + k) for number in range(len(trainings))] for k in (0, 1))
    together = stacked(starts)
    SGD(trainings, SHAPES).update(together, stacked(gradients))
    for number, (training, start, gradient) in enumerate(zip(trainings, starts, gradients, strict=True)):
        ours = {name: value[number] for name, value in together.items()}
        assert_equal(ours, by_the_formula(training, start, gradient))
        SGD([training], SHAPES).update(start, gradient)
        assert_equal(ours, start)


@pytest.mark.parametrize("training", TRAININGS)
def test_parameters_that_decay_alike_may_be_given_as_one(training):
    parameters, gradients = drawn(0), drawn(1)
    expected = by_the_formula(training, parameters, gradients)

    def flat(values: dict[str, torch.Tensor], part: str) -> torch.Tensor:
        return torch.cat([value.flatten() for name, value in values.items() if name.startswith(part)])

    parts = {part: flat(parameters, part) for part in ("blocks.", "classifier.")}
    SGD([training], parts).update(parts, {part: flat(gradients, part) for part in parts})
    assert_equal(parts, {part: flat(expected, part) for part in parts})


def test_parameters_that_need_a_gradient_are_updated_without_one():
    parameters = {name: value.requires_grad_() for name, value in drawn(0).items()}
    SGD(TRAININGS[:1], parameters).update(parameters, drawn(1))
    assert all(value.is_leaf and value.grad_fn is None for value in parameters.values())
