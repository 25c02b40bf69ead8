"""The local learning coefficient: exact values of quadratic and singular losses, and what speaks against one."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mechinterp.errors import MechinterpError
from mechinterp.geometry.llc import (
    STEP,
    Flag,
    largest_curvature,
    local_learning_coefficient,
    localisation_of,
    quadratic_llc,
    split_r_hat,
)
from mechinterp.geometry.loss import Loss, NetworkLoss
from tests.geometry.singular import Formula, aoyagi_watanabe, expectation, reduced_rank, reduced_rank_at_zero
from tests.geometry.toys import Logistic, Quadratic, rotated

SPECTRUM = [8.0, 4.0, 1.0, 0.3, 0.0, 0.0]
NORMAL = {  # exponents of w₁ and w₂, and the learning coefficient with its multiplicity
    "w₁² w₂²": ((2, 2), (1 / 2, 2)),
    "w₁² w₂⁴": ((2, 4), (1 / 4, 1)),
    "w⁴": ((4,), (1 / 4, 1)),
}


def bowl(spectrum: list[float], n: int = 50, gradient: float = 0.0) -> Quadratic:
    """A quadratic loss of n sequences without noise, at the point where its gradient has these components."""
    hessian = rotated(spectrum)
    noise = (torch.linalg.eigh(hessian)[1].sum(dim=1) * gradient).expand(n, -1)
    return Quadratic(hessian, noise, torch.zeros(len(spectrum), dtype=torch.float64))


def singular(exponents: tuple[int, ...]) -> Formula:
    powers = torch.tensor(exponents, dtype=torch.float64)
    return Formula(
        lambda points: (points**powers).prod(dim=1), torch.zeros(len(exponents), dtype=torch.float64), n=1000
    )


def at_zero(outputs: int, hidden: int, inputs: int) -> Formula:
    """Reduced-rank regression of rank 0 where all weights are 0, its most singular point."""
    formula = reduced_rank(outputs, hidden, inputs, torch.zeros(outputs, inputs, dtype=torch.float64))
    return Formula(formula, torch.zeros(hidden * (outputs + inputs), dtype=torch.float64), n=1000)


def deviation(loss: Loss, exact: float, **options) -> float:
    """|λ̂ − exact| in standard errors."""
    result = local_learning_coefficient(loss, **options)
    return abs(result.value - exact) / result.error


def test_the_formula_of_a_quadratic_loss_is_the_integral():
    for spectrum, gradient in (([3.0, 0.5], 0.0), ([3.0, -0.02], 0.1)):
        h, g = torch.tensor(spectrum, dtype=torch.float64), torch.full((2,), gradient, dtype=torch.float64)
        exact = expectation(lambda points, h=h, g=g: points**2 @ h / 2 + points @ g, torch.zeros(2).double(), 10.0, 1.0)
        assert quadratic_llc(h, g, 10.0, 1.0) == pytest.approx(exact, rel=1e-5)
    flat = torch.zeros(2, dtype=torch.float64)
    assert quadratic_llc(flat, flat, 10.0, 1.0) == 0
    assert quadratic_llc(flat + 2, flat, 1e9, 1.0) == pytest.approx(1.0, abs=1e-8)  # half the number of parameters
    assert math.isinf(quadratic_llc(flat - 1, flat, 10.0, 1.0))


@pytest.mark.parametrize("gradient", [0.0, 0.1])
def test_a_quadratic_loss_has_its_exact_value_at_every_step_size(gradient):
    loss = bowl(SPECTRUM, gradient=gradient)
    h, g = torch.linalg.eigvalsh(loss.hessian), torch.full((6,), gradient, dtype=torch.float64)
    options: dict[str, Any] = {"localisation": 1.0, "inverse_temperature": 10.0}
    without, coarse = (quadratic_llc(h, g, 10.0, 1.0, step_size) for step_size in (0.0, 0.02))
    first_order = 0.02 * 10 * float(h.sum()) / 8
    assert 0.9 < (coarse - without) / first_order < 1.7
    result = local_learning_coefficient(loss, step_size=0.02, chains=1000, burn_in=500, **options)
    assert result.value == pytest.approx(coarse, abs=3 * result.error)
    assert result.value > without + 10 * result.error  # the bias is seen
    total = 10 * h + 1
    assert result.linear == pytest.approx(-float((100 * g * g / total).sum()), abs=0.07)
    spread = (10 * g / total) ** 2 + 1 / (total * (1 - 0.02 * total / 4))
    assert result.distance == pytest.approx(float(spread.sum()) ** 0.5, rel=0.03)


def test_defaults_are_the_stated_rules():
    loss = bowl(SPECTRUM, n=200)
    result = local_learning_coefficient(loss, localisation=5.0, draws=4, burn_in=0)
    assert result.inverse_temperature == pytest.approx(200 / math.log(200))
    assert result.step_size == pytest.approx(STEP / (200 / math.log(200) * 8 + 5), rel=1e-3)
    assert result.trace.shape == (4, 4)
    assert not result.trace[:, 0].any()  # chains start at θ*
    mask = torch.zeros(6, dtype=torch.bool)
    mask[:2] = True
    block = torch.linalg.eigvalsh(loss.hessian[:2, :2])
    assert largest_curvature(loss, mask) == pytest.approx(float(block.max()), rel=0.05)
    assert largest_curvature(bowl([0.0, 0.0])) == 0


def test_a_component_has_the_value_of_its_block():
    loss, mask = bowl(SPECTRUM), torch.tensor([True, False, True, True, False, False])
    block = torch.linalg.eigvalsh(loss.hessian[mask][:, mask])
    options: dict[str, Any] = {
        "localisation": 1.0,
        "inverse_temperature": 10.0,
        "step_size": 0.02,
        "burn_in": 400,
        "draws": 50,
    }
    exact = quadratic_llc(block, torch.zeros(3).double(), 10.0, 1.0, 0.02)
    assert deviation(loss, exact, mask=mask, chains=1000, **options) < 3


@pytest.mark.parametrize("name", NORMAL)
def test_normal_crossings(name):
    """The sampler against the integral, and the integral against the learning coefficient."""
    exponents, (coefficient, multiplicity) = NORMAL[name]
    loss = singular(exponents)
    exact = expectation(loss.formula, loss.point, 30.0, 1.0)
    options: dict[str, Any] = {"localisation": 1.0, "inverse_temperature": 30.0, "burn_in": 1000, "batch": None}
    result = local_learning_coefficient(loss, step_size=0.002, chains=2000, draws=200, **options)
    assert result.value == pytest.approx(exact, abs=3 * result.error + 0.03 * exact)  # the step size raises it by 2 %
    assert result.error < 0.025 * exact
    assert abs(result.value - len(exponents) / 2) > 20 * result.error  # that of a regular loss
    near = [expectation(loss.formula, loss.point, beta_n, 1.0) for beta_n in (100.0, 1000.0)]
    assert near[0] < near[1] < coefficient
    if multiplicity == 1:
        assert near[1] == pytest.approx(coefficient, rel=0.12)
    else:  # λ − (m − 1)/log n + …
        assert coefficient - 2 / math.log(1000) < near[1] < coefficient - 0.5 / math.log(1000)


@pytest.mark.parametrize("sizes", [(3, 1, 2), (4, 2, 3), (3, 2, 3)])
def test_reduced_rank_regression(sizes: tuple[int, int, int]):
    loss = at_zero(*sizes)
    coefficient, multiplicity = aoyagi_watanabe(*sizes, 0)
    limit, before = (reduced_rank_at_zero(*sizes, beta_n, 1.0) for beta_n in (1e9, 1e7))
    assert limit == pytest.approx(coefficient, abs=0.06 if multiplicity > 1 else 0.005)
    if multiplicity > 1:  # λ − (m − 1)/(log n + constant)
        assert coefficient - limit == pytest.approx((coefficient - before) * math.log(1e7) / math.log(1e9), rel=0.05)
    exact = reduced_rank_at_zero(*sizes, 30.0, 1.0)
    options: dict[str, Any] = {
        "localisation": 1.0,
        "inverse_temperature": 30.0,
        "burn_in": 1000,
        "draws": 100,
        "batch": None,
    }
    result = local_learning_coefficient(loss, step_size=0.002, chains=1000, **options)
    assert result.value == pytest.approx(exact, abs=3 * result.error + 0.035 * exact)  # of the step size
    assert result.error < 0.02 * exact
    regular = quadratic_llc(torch.ones(len(loss.point)).double(), torch.zeros(len(loss.point)).double(), 30.0, 1.0)
    assert regular - result.value > 0.2 * regular  # as many parameters, but a regular minimum


def test_reduced_rank_regression_at_a_truth_of_full_rank():
    """Rank 1 with one hidden unit: regular across the set of true parameters, so (m + n − 1)/2 directions count."""
    truth = torch.outer(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 1.0])).double()
    point = torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    loss = Formula(reduced_rank(3, 1, 2, truth), point, n=1000)
    options: dict[str, Any] = {
        "localisation": 100.0,
        "inverse_temperature": 1e5,
        "step_size": 3e-7,
        "chains": 300,
        "batch": None,
    }
    options |= {"burn_in": 300, "draws": 100}
    result = local_learning_coefficient(loss, **options)
    coefficient, _ = aoyagi_watanabe(3, 1, 2, 1)
    assert coefficient == 2
    assert result.value == pytest.approx(coefficient, abs=0.1)
    a_fixed = torch.tensor([True, True, True, False, False])
    refined = local_learning_coefficient(loss, mask=a_fixed, **options)
    assert refined.value == pytest.approx(1.5, abs=0.1)  # linear regression of 3 outputs on one unit


def test_a_regression_has_the_value_of_the_integral():
    """Logistic regression, not at its minimum, with all sequences and by minibatches."""
    loss = Logistic(60, 2)

    def mean_loss(points: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.softplus(-loss.y * (points @ loss.x.T)).mean(dim=1)

    exact = expectation(mean_loss, loss.point, 15.0, 1.0)
    options: dict[str, Any] = {
        "localisation": 1.0,
        "inverse_temperature": 15.0,
        "chains": 1000,
        "burn_in": 150,
        "draws": 60,
    }
    for batch in (None, 30):
        result = local_learning_coefficient(loss, step_size=0.03, batch=batch, **options)
        assert result.value == pytest.approx(exact, abs=3 * result.error)
        assert result.trace[:, 0].abs().max() < 1e-12  # the minibatch's loss at θ* is subtracted


def test_the_noise_of_minibatches_raises_the_variance_as_stated():
    """Of a quadratic loss with linear noise, whose covariance Σ is the same everywhere: exactly."""
    noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = Quadratic(rotated([4.0, 1.0, 0.2]), noise - noise.mean(dim=0), torch.zeros(3, dtype=torch.float64))
    h, basis = torch.linalg.eigh(loss.hessian)
    sigma, step_size, beta_n = (basis.T @ noise.T.cov() @ basis).diagonal(), 0.02, 10.0
    total, raised = beta_n * h + 2, step_size * beta_n**2 * sigma * (1 / 8 - 1 / 40) / 4
    exact = float((beta_n * h / (total * (1 - step_size * total / 4)) * (1 + raised)).sum()) / 2
    without = quadratic_llc(h, torch.zeros(3).double(), beta_n, 2.0, step_size)
    first_order = step_size * beta_n**2 * (1 / 8 - 1 / 40) / 8
    first_order *= float((noise.T.cov() @ loss.hessian @ torch.linalg.inv(loss.hessian + torch.eye(3) * 0.2)).trace())
    assert 0.9 < (exact - without) / first_order < 1.3
    options: dict[str, Any] = {
        "localisation": 2.0,
        "inverse_temperature": beta_n,
        "step_size": step_size,
        "chains": 1000,
    }
    result = local_learning_coefficient(loss, batch=8, burn_in=200, draws=200, **options)
    assert result.value == pytest.approx(exact, abs=3 * result.error)
    assert result.value - without > 10 * result.error


def test_errors_cover():
    """Groups of 4 of 400 chains: 95 % intervals by Student's t."""
    loss, zero = bowl([8.0, 1.0]), torch.zeros(2, dtype=torch.float64)
    exact = quadratic_llc(torch.tensor([8.0, 1.0], dtype=torch.float64), zero, 10.0, 2.0, 0.02)
    options: dict[str, Any] = {
        "localisation": 2.0,
        "inverse_temperature": 10.0,
        "step_size": 0.02,
        "burn_in": 60,
        "draws": 40,
    }
    together = local_learning_coefficient(loss, chains=400, **options)
    results = [replace(together, trace=trace) for trace in together.trace.split(4)]
    covered = np.mean([result.interval[0] <= exact <= result.interval[1] for result in results])
    assert 0.9 <= covered <= 0.99
    spread = np.std([result.value for result in results])
    assert np.mean([result.error for result in results]) == pytest.approx(spread, rel=0.25)


def test_the_same_seed_gives_the_same_chains():
    first, again, other = (
        local_learning_coefficient(bowl(SPECTRUM), draws=4, burn_in=2, batch=10, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first.trace, again.trace)
    assert not torch.equal(first.trace, other.trace)
    assert first.value == pytest.approx(float(first.trace[:, 2:].mean()))


def test_what_speaks_against_an_estimate():
    options: dict[str, Any] = {"localisation": 5.0, "inverse_temperature": 10.0, "step_size": 0.02, "chains": 100}
    good = local_learning_coefficient(bowl(SPECTRUM), burn_in=50, draws=100, **options)
    assert good.flags == ()
    assert good.converged
    slope = local_learning_coefficient(bowl(SPECTRUM, gradient=1.0), burn_in=50, draws=100, **options)
    assert Flag.negative in slope.flags
    assert slope.linear < slope.value < 0
    saddle = local_learning_coefficient(bowl([1.0, -0.4]), burn_in=120, draws=100, **options)
    exact = quadratic_llc(torch.tensor([1.0, -0.4]).double(), torch.zeros(2).double(), 10.0, 5.0, 0.02)
    assert saddle.value == pytest.approx(exact, abs=4 * saddle.error)
    assert exact < 0
    assert Flag.negative in saddle.flags
    early = local_learning_coefficient(bowl(SPECTRUM), burn_in=0, draws=100, **options)
    assert early.flags == (Flag.short_burn_in,)
    assert not early.converged
    for burn_in, flags in ((19, (Flag.short_burn_in,)), (21, ())):  # 2/(ε γ) = 20
        assert replace(good, burn_in=burn_in).flags == flags
    apart = replace(good, trace=good.trace + torch.arange(100)[:, None])
    assert apart.flags == (Flag.not_mixed,)
    assert not apart.converged


def test_r_hat():
    rng = np.random.default_rng(0)
    alike = torch.from_numpy(rng.normal(size=(6, 500)))
    assert split_r_hat(alike) == pytest.approx(1, abs=0.01)
    apart, drift = alike + torch.arange(6)[:, None], alike + torch.linspace(0, 3, 500)
    assert split_r_hat(apart) > 1.5
    assert split_r_hat(drift) > 1.1
    assert split_r_hat(torch.zeros(2, 4)) == 1


def test_a_network_and_its_component(tiny_run):
    loss = NetworkLoss.of_run(tiny_run, "last", n=64, dtype=torch.float32)
    options: dict[str, Any] = {"draws": 10, "burn_in": 5, "batch": 32, "localisation": 100.0}
    whole = local_learning_coefficient(loss, **options)
    classifier = next(component for component in loss.components if component.name == "classifier")
    part = local_learning_coefficient(loss, mask=loss.mask(classifier), **options)
    assert np.isfinite([whole.value, whole.error, part.value, part.error]).all()
    assert 0 < part.distance < whole.distance


def test_mistakes_are_named():
    loss = singular((4,))
    with pytest.raises(
        MechinterpError, match=r"chain \d+ diverged: its loss is not finite at draw \d+; take a smaller"
    ):
        local_learning_coefficient(loss, step_size=50.0, localisation=0.01, batch=None, inverse_temperature=100.0)
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"chains": 1}, "chains is 1; expected 2 or more"),
        ({"localisation": -1.0}, "localisation is -1; expected a number of 0 or more"),
        ({"step_size": 0.0}, "step_size is 0; expected a positive number"),
        ({"mask": torch.tensor([False])}, "mask has no element"),
        ({"localisation": 0.0}, r"nβ \|h\|_max \+ γ is 0; expected a positive number"),
    ]
    for options, message in mistakes:
        with pytest.raises(MechinterpError, match=message):
            local_learning_coefficient(loss, **options)


def test_the_localisation_keeps_chains_at_a_part_of_the_weights():
    """On a flat loss ‖θ − θ*‖² is P/γ on average: 0.05 of the norm of the reference."""
    reference = torch.arange(1, 41).double()
    gamma = localisation_of(reference, 0.05)
    assert gamma == pytest.approx(40 / (0.05 * float(reference.norm())) ** 2, rel=5e-3)
    flat = Quadratic(torch.zeros(40, 40).double(), torch.zeros(5, 40).double(), reference)
    found = local_learning_coefficient(flat, localisation=gamma, draws=400, burn_in=40, chains=8)
    assert found.distance == pytest.approx(0.05 * float(reference.norm()), rel=0.1)
    with pytest.raises(MechinterpError, match="noise is 0"):
        localisation_of(reference, 0.0)
