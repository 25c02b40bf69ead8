"""The loss as a function of θ: that of training, and its derivatives those of autograd and of formulas."""

import pytest
import torch

import mechinterp as mi
from mechinterp.comparison.components import components_of
from mechinterp.errors import MechinterpError
from mechinterp.geometry.loss import BEYOND, NetworkLoss, training_sequences
from mechinterp.tasks import build_task
from mechinterp.training.engines.autograd import AutogradEngine
from tests.comparison.test_transplants import CONFIGS, TOKENS
from tests.conftest import TINY
from tests.geometry.toys import Logistic, Quadratic, rotated
from tests.helpers import random_parameters

SIZE = 6
ALL = {
    **CONFIGS,
    "every position": {**TOKENS, "model.positional_embedding_type": "rotary", "training.loss_at": "all"},
    "squared error": {**TINY, "training.loss": "mse", "training.optimizer": "adam"},
}


def network_loss(changes: dict, n: int = SIZE, dtype: torch.dtype = torch.float64) -> NetworkLoss:
    config = mi.RunConfig().updated(changes)
    return NetworkLoss(config, random_parameters(config), training_sequences(build_task(config), n), dtype)


@pytest.mark.parametrize("changes", ALL.values(), ids=ALL)
def test_value_and_gradient_are_those_of_training(changes):
    loss = network_loss(changes)
    points = loss.point + 0.1 * torch.randn(2, len(loss.point), generator=torch.Generator().manual_seed(0)).double()
    points[0] = loss.point
    values, gradients = loss.gradients(points)
    batch = training_sequences(build_task(loss.config), SIZE)
    for point, value, gradient in zip(points, values, gradients, strict=True):
        engine = AutogradEngine([loss.config], [loss.parameters(point)])
        expected, _, by_name = engine.gradients(batch)
        assert float(value) == pytest.approx(expected, rel=1e-9)
        torch.testing.assert_close(gradient, torch.cat([by_name[name].flatten() for name in by_name]))
    torch.testing.assert_close(loss.values(points), values)


@pytest.mark.parametrize("changes", ALL.values(), ids=ALL)
def test_minibatches_and_hessian_products(changes):
    loss = network_loss(changes)
    points, indices = loss.point.expand(3, -1), torch.tensor([[0, 1], [2, 3], [4, 5]])
    values, gradients = loss.gradients(points, indices)
    torch.testing.assert_close(values.mean(), loss.values(points[:1])[0])
    torch.testing.assert_close(gradients.mean(dim=0), loss.gradients(points[:1])[1][0])
    v = torch.randn(2, len(loss.point), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v = v / v.norm(dim=1, keepdim=True)  # a long one would cross kinks of ReLU
    products, h = loss.hessian_vectors(loss.point, v), 1e-6
    near = [loss.gradients(loss.point + sign * h * v)[1] for sign in (1, -1)]
    torch.testing.assert_close(products, (near[0] - near[1]) / (2 * h), rtol=1e-4, atol=1e-5)
    parts = loss.hessian_vectors(loss.point, v[:1].expand(3, -1), indices)
    torch.testing.assert_close(parts.mean(dim=0), products[0])


def test_parts_that_are_computed_apart_add_up(monkeypatch):
    loss = network_loss(TINY)
    points, indices = loss.point.expand(3, -1), torch.tensor([[0, 1, 5], [2, 3, 5], [4, 5, 0]])
    for chosen in (None, indices):
        whole = loss.gradients(points, chosen), loss.values(points, chosen), loss.hessian_vectors(loss.point, points)
        for size in (2, 7):
            monkeypatch.setattr(NetworkLoss, "together", size)
            apart = (
                loss.gradients(points, chosen),
                loss.values(points, chosen),
                loss.hessian_vectors(loss.point, points),
            )
            torch.testing.assert_close(apart, whole)


def test_formulas_of_toys():
    logistic, v = Logistic(40, 5), torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(logistic.hessian_vectors(logistic.point, v), logistic.hessian_by_formula())
    hessian, noise = rotated([3.0, 1.0, -2.0]), torch.randn(10, 3, dtype=torch.float64)
    bowl = Quadratic(hessian, noise, torch.ones(3, dtype=torch.float64))
    value, gradient = bowl.gradients(bowl.point[None])
    torch.testing.assert_close(gradient[0], hessian.sum(dim=1) + noise.mean(dim=0))
    torch.testing.assert_close(value[0], 0.5 * hessian.sum() + noise.mean(dim=0).sum())
    flat = Quadratic(torch.zeros(3, 3).double(), noise, bowl.point)
    assert not flat.hessian_vectors(flat.point, torch.eye(3).double()).any()


@pytest.mark.parametrize("name", ["classic", "heads", "general", "tokens"])
def test_masks_divide_the_parameters(name):
    loss = network_loss(CONFIGS[name])
    masks = torch.stack([loss.mask(component) for component in components_of(loss.config)])
    assert (masks.sum(dim=0) == 1).all()
    component = next(component for component in loss.components if "QK" in component.name)
    marked = loss.parameters(loss.mask(component))
    for parameter, inside in marked.items():
        part = component.part(parameter, inside) if parameter in component.parameters else inside[:0]
        assert part.all()
        assert int(inside.sum()) == part.numel()


def test_a_run_gives_its_loss_on_sequences_of_training(tiny_run):
    loss = NetworkLoss.of_run(tiny_run, 20, n=50)
    expected = torch.cat([value.flatten() for value in tiny_run.weights(20).values()])
    torch.testing.assert_close(loss.point.float(), expected)
    again, other = NetworkLoss.of_run(tiny_run, "last", n=50), NetworkLoss.of_run(tiny_run, 20, n=50, seed=1)
    assert torch.equal(loss.values(loss.point[None]), again.values(loss.point[None]))
    assert not torch.equal(loss.values(loss.point[None]), other.values(loss.point[None]))
    config = mi.RunConfig().updated(TOKENS)
    task = build_task(config)
    assert torch.equal(training_sequences(task, 4, 3).inputs, task.train_batch(BEYOND + 3, 4).inputs)


def test_mistakes_are_named(tiny_run):
    with pytest.raises(MechinterpError, match="n is 0"):
        NetworkLoss.of_run(tiny_run, 20, n=0)
    with pytest.raises(MechinterpError, match="step 3 is not saved"):
        NetworkLoss.of_run(tiny_run, 3)
    with pytest.raises(MechinterpError, match="no answers but the target's"):
        network_loss({**CONFIGS["tokens"], "training.loss_at": "all", "task.kind": "modular_addition"})
