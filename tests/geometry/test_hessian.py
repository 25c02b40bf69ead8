"""Trace and ends of the spectrum of the Hessian, against dense matrices; their errors, against repeated samples."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from mechinterp.errors import MechinterpError
from mechinterp.geometry.hessian import LanczosWarning, hessian_diagonal, hessian_trace, top_eigenvalues
from mechinterp.geometry.loss import Loss
from tests.conftest import TINY
from tests.geometry.test_loss import network_loss
from tests.geometry.toys import Logistic, Quadratic, rotated

SMALL = {
    **TINY,
    "task.content_dim": 4,
    "task.position_dim": 6,
    "task.n_pairs": 2,
    "model.classifier_width": 5,
    "model.classifier_depth": 1,
}


class Bowls(Loss):
    """ℓ_i(θ) = ½ (1 + s_i) θᵀ H θ with ⟨s⟩ = 0 in the mean: Hessians that differ by sequence."""

    def __init__(self, hessian: Tensor, spread: Tensor):
        self.hessian, self.spread, self.n = hessian, spread, len(spread)
        self.point = torch.zeros(len(hessian), dtype=torch.float64)

    def losses(self, point: Tensor, indices: Tensor) -> Tensor:
        return 0.5 * (1 + self.spread[indices]) * (point @ self.hessian @ point)


def bowl(spectrum: list[float], n: int = 16, dtype: torch.dtype = torch.float64) -> Quadratic:
    size = len(spectrum)
    return Quadratic(rotated(spectrum).to(dtype), torch.zeros(n, size, dtype=dtype), torch.ones(size, dtype=dtype))


def bowls(spectrum: list[float], n: int, seed: int) -> Bowls:
    return Bowls(rotated(spectrum), torch.from_numpy(0.5 * np.random.default_rng(seed).normal(size=n)))


def dense(loss: Loss) -> Tensor:
    """The Hessian, row by row, from the loss itself."""
    sequences = torch.arange(loss.n)
    return torch.autograd.functional.hessian(lambda point: loss.losses(point, sequences).mean(), loss.point)  # pyright: ignore


def test_the_trace_of_a_diagonal_is_exact():
    """With signs ±1 there is no noise where H is diagonal."""
    spectrum = torch.tensor([3.0, 1.0, -2.0, 0.25], dtype=torch.float64)
    loss = Quadratic(torch.diag(spectrum), torch.zeros(16, 4).double(), torch.ones(4).double())
    found = hessian_trace(loss, minibatches=4, probes=1)
    assert (found.value, found.error) == pytest.approx((2.25, 0), abs=1e-12)
    mask = torch.tensor([True, False, True, False])
    assert hessian_trace(loss, mask, minibatches=4, probes=1).value == pytest.approx(1.0)


@pytest.mark.parametrize("probes", [1, 3])
def test_intervals_of_the_trace_cover_it(probes):
    """The Hessian of a sequence is (1 + s_i) H: 95 % intervals over 200 samples and probes, of it and of a block."""
    spectrum = [4.0, 2.0, 1.0, 0.5, -1.0, 0.0]
    hessian, mask = rotated(spectrum), torch.tensor([True, True, False, False, False, True])
    known = float(hessian.trace()), float(hessian.diagonal()[mask].sum())
    found = []
    for seed in range(200):
        diagonal = hessian_diagonal(bowls(spectrum, 64, seed), minibatches=32, probes=probes, seed=seed)
        found.append([diagonal.trace(), diagonal.trace(mask)])
    for number, value in enumerate(known):
        values = np.array([each[number].value for each in found])
        errors = np.array([each[number].error for each in found])
        assert 0.90 <= np.mean(np.abs(values - value) <= 1.96 * errors) <= 0.98
        assert errors.mean() == pytest.approx(values.std(), rel=0.15)
        assert abs(values.mean() - value) < 3 * values.std() / math.sqrt(200)


def test_both_sources_of_error_are_in_the_error():
    """Without spread of sequences the error is that of probes, √(2 (‖H‖² − Σ H_jj²) / probes); a decoy has none."""
    hessian = rotated([4.0, 2.0, 1.0, 0.5, -1.0, 0.0])
    of_probes = float(2 * (hessian.square().sum() - hessian.diagonal().square().sum())) / (512 * 2)
    still = hessian_trace(Bowls(hessian, torch.zeros(512)), minibatches=512, probes=2)
    assert still.error == pytest.approx(math.sqrt(of_probes), rel=0.1)
    both = hessian_trace(bowls([4.0, 2.0, 1.0, 0.5, -1.0, 0.0], 512, 0), minibatches=512, probes=2)
    of_sequences = 0.25 * float(hessian.trace()) ** 2 / 512
    assert both.error == pytest.approx(math.sqrt(of_sequences + 1.25 * of_probes), rel=0.1)
    flat = hessian_trace(Quadratic(torch.zeros(6, 6).double(), torch.ones(64, 6).double(), torch.ones(6).double()))
    assert (flat.value, flat.error) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_eigenvalues_of_a_rotated_spectrum(dtype):
    spectrum = [5.0, 3.0, 2.5, *np.linspace(1, 0, 40).tolist(), -0.5, -4.0]
    loss = bowl(spectrum, dtype=dtype)
    found = top_eigenvalues(loss, 3, tolerance=1e-4)
    assert found.top == pytest.approx([5, 3, 2.5], rel=1e-5)
    assert found.low == pytest.approx(-4, rel=1e-5)
    assert found.converged
    assert found.steps < 45
    images = found.vectors @ loss.hessian
    assert found.residuals == pytest.approx(
        (images - torch.from_numpy(found.values).to(dtype)[:, None] * found.vectors).norm(dim=1).numpy(), abs=1e-5
    )
    assert (found.residuals <= 1e-4 * 5).all()
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(4, dtype=dtype), rtol=0, atol=1e-5)
    again = top_eigenvalues(loss, 3, tolerance=1e-4, seed=1)
    assert again.values == pytest.approx(found.values, rel=1e-5)


def test_logistic_regression_by_its_formula():
    loss = Logistic(48, 6)
    hessian = loss.hessian_by_formula()
    expected = torch.linalg.eigvalsh(hessian).flip(0).numpy()
    found = top_eigenvalues(loss, 2, tolerance=1e-6)
    assert found.values == pytest.approx([*expected[:2], expected[-1]])
    mask = torch.tensor([True, False, True, True, False, True])
    block = torch.linalg.eigvalsh(hessian[mask][:, mask]).flip(0).numpy()
    inside = top_eigenvalues(loss, 2, mask=mask, tolerance=1e-6)
    assert inside.values == pytest.approx([*block[:2], block[-1]])
    assert not inside.vectors[:, ~mask].any()
    assert inside.residuals.max() < 1e-6
    assert inside.converged
    s = torch.sigmoid(loss.x @ loss.point)
    forms = (s * (1 - s))[:, None] * (loss.x @ found.vectors.T) ** 2  # vᵀ H_i v of sequence i
    by_block = forms.view(16, 3, 3).mean(dim=1)
    assert found.errors == pytest.approx((by_block.std(dim=0) / 4).numpy())
    trace = hessian_trace(loss, minibatches=48, probes=200)
    assert trace.value == pytest.approx(float(hessian.trace()), abs=4 * trace.error)


def test_a_network_against_its_dense_hessian():
    loss = network_loss(SMALL, n=24)
    hessian = dense(loss)
    spectrum = torch.linalg.eigvalsh(hessian).flip(0).numpy()
    found = top_eigenvalues(loss, 3, blocks=6, tolerance=1e-5)
    assert found.values == pytest.approx([*spectrum[:3], spectrum[-1]], rel=1e-6)
    diagonal = hessian_diagonal(loss, minibatches=24, probes=50)
    whole = diagonal.trace()
    assert whole.value == pytest.approx(float(hessian.trace()), abs=4 * whole.error)
    assert whole.error < 0.3 * abs(float(hessian.trace()))
    total = 0.0
    for component in loss.components:
        mask = loss.mask(component)
        part = diagonal.trace(mask)
        assert part.value == pytest.approx(float(hessian.diagonal()[mask].sum()), abs=4 * part.error + 1e-12)
        total += part.value
    assert total == pytest.approx(whole.value)
    mask = loss.mask(loss.components[-1])
    block = torch.linalg.eigvalsh(hessian[mask][:, mask])
    top = top_eigenvalues(loss, mask=mask, blocks=6, tolerance=1e-4)
    assert (np.abs(top.values - block[[-1, 0]].numpy()) <= top.residuals + 1e-12).all()


def test_intervals_of_an_eigenvalue_cover_it():
    """H of a sample is (1 + ⟨s⟩) H: the vectors are exact, and 95 % intervals cover λ₁ and the smallest."""
    found = [top_eigenvalues(bowls([3.0, -2.0], 128, seed), tolerance=1e-9) for seed in range(150)]
    for number, value in enumerate([3.0, -2.0]):
        values = np.array([each.values[number] for each in found])
        errors = np.array([each.errors[number] for each in found])
        assert 0.89 <= np.mean(np.abs(values - value) <= 1.96 * errors) <= 0.98
        assert errors.mean() == pytest.approx(values.std(), rel=0.15)


def test_spectra_whose_products_span_little():
    """A flat loss, a multiple of the identity, and one direction of many: the products end before the steps do."""
    flat = top_eigenvalues(bowl([0.0] * 5), 2)
    assert flat.values.tolist() == [0, 0, 0]
    assert flat.converged
    assert top_eigenvalues(bowl([2.0] * 5), 2).values == pytest.approx([2, 2, 2])
    assert top_eigenvalues(bowl([7.0, 0, 0, 0, 0]), 2).values == pytest.approx([7, 0, 0], abs=1e-9)
    assert top_eigenvalues(bowl([-7.0, 0, 0, 0, 0]), 1).values == pytest.approx([0, -7], abs=1e-9)
    assert top_eigenvalues(bowl([3.0, 2.0, 1.0]), 2).values == pytest.approx([3, 2, 1])
    assert len(top_eigenvalues(bowl([2.0] * 5), 2).vectors.unique(dim=0)) == 3


def test_eigenvalues_that_have_not_converged_are_said():
    loss = bowl(np.linspace(1, 0, 200).tolist())
    with pytest.warns(LanczosWarning, match="after 5 steps of Lanczos' method .* raise max_steps"):
        found = top_eigenvalues(loss, 1, max_steps=5, tolerance=1e-3)
    assert not found.converged
    assert found.steps == 5
    assert found.top[0] < 1  # a Ritz value is never above the largest eigenvalue
    assert 1 - found.top[0] <= found.residuals[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert top_eigenvalues(loss, 1, max_steps=100, tolerance=1e-3).converged


def test_mistakes_are_named():
    loss = bowl([3.0, 2.0, 1.0])
    with pytest.raises(MechinterpError, match="k is 3, of 3 parameters"):
        top_eigenvalues(loss, 3)
    with pytest.raises(MechinterpError, match="tolerance is 2"):
        top_eigenvalues(loss, 1, tolerance=2.0)
    with pytest.raises(MechinterpError, match="max_steps is 1; expected 2 or more"):
        top_eigenvalues(loss, 1, max_steps=1)
    with pytest.raises(MechinterpError, match="probes is 0"):
        hessian_trace(loss, probes=0)
    with pytest.raises(MechinterpError, match="16 sequences make no 32 blocks"):
        hessian_trace(loss)
