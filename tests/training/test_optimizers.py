"""The update of all engines is the formula's, for one run and for several stacked."""

import pytest
import torch

from mechinterp.config import TrainingConfig
from mechinterp.training.optimizers import Optimizer

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
    Optimizer([training], parameters).update(parameters, gradients)
    assert_equal(parameters, expected)
    assert {name: value.data_ptr() for name, value in parameters.items()} == where
    assert all(torch.equal(value, gradients_before[name]) for name, value in gradients.items())


@pytest.mark.parametrize("trainings", [TRAININGS, TRAININGS[2:3] * 3], ids=["different", "alike"])
def test_runs_with_their_own_rates_and_decays_are_updated_as_alone(trainings):
    starts, gradients = ([drawn(10 * number + k) for number in range(len(trainings))] for k in (0, 1))
    together = stacked(starts)
    Optimizer(trainings, together).update(together, stacked(gradients))
    for number, (training, start, gradient) in enumerate(zip(trainings, starts, gradients, strict=True)):
        ours = {name: value[number] for name, value in together.items()}
        assert_equal(ours, by_the_formula(training, start, gradient))
        Optimizer([training], start).update(start, gradient)
        assert_equal(ours, start)


@pytest.mark.parametrize("training", TRAININGS)
def test_parameters_that_decay_alike_may_be_given_as_one(training):
    parameters, gradients = drawn(0), drawn(1)
    expected = by_the_formula(training, parameters, gradients)

    def flat(values: dict[str, torch.Tensor], part: str) -> torch.Tensor:
        return torch.cat([value.flatten() for name, value in values.items() if name.startswith(part)])

    parts = {part: flat(parameters, part) for part in ("blocks.", "classifier.")}
    Optimizer([training], parts).update(parts, {part: flat(gradients, part) for part in parts})
    assert_equal(parts, {part: flat(expected, part) for part in parts})


def test_parameters_that_need_a_gradient_are_updated_without_one():
    parameters = {name: value.requires_grad_() for name, value in drawn(0).items()}
    Optimizer(TRAININGS[:1], parameters).update(parameters, drawn(1))
    assert all(value.is_leaf and value.grad_fn is None for value in parameters.values())


TORCH = [
    ({"optimizer": "sgd", "momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    (
        {"optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.1, "weight_decay_convention": "gradient"},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, weight_decay=0.1),
    ),
    (
        {"optimizer": "adam", "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-5, "weight_decay": 0.1},
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.1),
    ),
    ({"optimizer": "adamw", "weight_decay": 0.2}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2)),
]


@pytest.mark.parametrize("clip", [None, 5.0])
@pytest.mark.parametrize(("rule", "theirs"), TORCH, ids=[str(rule) for rule, _ in TORCH])
def test_ten_updates_are_those_of_torch(rule, theirs, clip):
    training = TrainingConfig(learning_rate=0.1, gradient_clip=clip, **rule)
    expected = {name: torch.nn.Parameter(value) for name, value in drawn(0).items()}
    torchs, ours = theirs(list(expected.values())), stacked([drawn(0)])
    optimizer = Optimizer([training], ours)
    for step in range(10):
        gradients = drawn(step + 1)
        for name, parameter in expected.items():
            parameter.grad = gradients[name].clone()
        norm = torch.nn.utils.clip_grad_norm_(expected.values(), clip or float("inf"))
        torchs.step()
        assert optimizer.update(ours, stacked([gradients]), [step]) == [pytest.approx(float(norm))]
    for name, parameter in expected.items():
        torch.testing.assert_close(ours[name][0], parameter.detach(), rtol=1e-12, atol=1e-13)


def test_a_run_without_a_clip_is_not_scaled_beside_one_with_it():
    trainings = [TrainingConfig(learning_rate=0.1, weight_decay=0.0, gradient_clip=clip) for clip in (None, 1.0)]
    small = {name: 1e-8 * value for name, value in drawn(2).items()}
    together, alone = stacked([drawn(0), drawn(1)]), stacked([drawn(0)])
    Optimizer(trainings, together).update(together, stacked([small, drawn(3)]), [0, 0])
    Optimizer(trainings[:1], alone).update(alone, stacked([small]), [0])
    for name, value in alone.items():
        assert torch.equal(together[name][0], value[0])


def test_runs_with_moments_are_updated_together_as_alone_from_the_moments_that_were_kept():
    trainings = [
        TrainingConfig(optimizer="adamw", learning_rate=rate, weight_decay=decay, warmup_steps=4, decayed=("*.W*",))
        for rate, decay in ((0.1, 0.0), (0.02, 0.5))
    ]
    together, alone = stacked([drawn(0), drawn(1)]), [stacked([drawn(number)]) for number in (0, 1)]
    both, single = Optimizer(trainings, together), [Optimizer([each], alone[0]) for each in trainings]
    for step in range(6):
        gradients = [drawn(10 * step + number) for number in (0, 1)]
        both.update(together, stacked(gradients), [step, step + 2])
        for number in (0, 1):
            single[number].update(alone[number], stacked([gradients[number]]), [step + 2 * number])
        if step == 2:  # as a resumed run goes on
            stored, both = both, Optimizer(trainings, together)
            for run in (0, 1):
                for name, value in stored.state(run).items():
                    both.state(run)[name].copy_(value)
    for number, run in enumerate(alone):
        assert_equal({name: value[number] for name, value in together.items()}, {n: v[0] for n, v in run.items()})


def test_only_named_parameters_decay():
    training = TrainingConfig(optimizer="adamw", learning_rate=0.1, weight_decay=0.5, decayed=("*.W*",))
    parameters, zero = stacked([drawn(0)]), stacked([{k: torch.zeros_like(v) for k, v in drawn(0).items()}])
    Optimizer([training], parameters).update(parameters, zero)
    factors = {name: float((value[0] / drawn(0)[name]).mean()) for name, value in parameters.items()}
    assert factors == {
        "blocks.0.attn.W_Q": pytest.approx(0.95),
        "classifier.layers.0.b": 1.0,
        "classifier.readout.W": pytest.approx(0.95),
    }


def test_the_learning_rate_rises_and_falls_as_its_schedule_says():
    rule = {"learning_rate": 0.4, "steps": 104, "warmup_steps": 4, "final_learning_rate": 0.1}
    linear, cosine = (TrainingConfig.model_validate({**rule, "schedule": kind}) for kind in ("linear", "cosine"))
    for each in (linear, cosine):
        assert [each.learning_rate_at(step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
        assert each.learning_rate_at(54) == pytest.approx(0.25)
        assert each.learning_rate_at(104) == pytest.approx(0.1)
    assert linear.learning_rate_at(29) == pytest.approx(0.325)
    assert cosine.learning_rate_at(29) == pytest.approx(0.1 + 0.3 * (1 + 0.5**0.5) / 2)
