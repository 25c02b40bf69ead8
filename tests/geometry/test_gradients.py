"""Gradient norms and noise scales, against formulas; their errors, against what repeated samples do."""

import math

import numpy as np
import pytest
import torch

from mechinterp.errors import MechinterpError
from mechinterp.geometry import gradients
from mechinterp.geometry.gradients import gradient_moments, gradient_noise
from mechinterp.geometry.loss import sequence_blocks
from tests.conftest import TINY
from tests.geometry.test_loss import network_loss
from tests.geometry.toys import Logistic, Quadratic, rotated

HESSIAN = rotated([3.0, 1.0, 0.5, -2.0])
POINT = torch.tensor([0.4, -0.3, 0.2, 0.5], dtype=torch.float64)
SCALES = np.array([0.5, 1.0, 2.0, 0.1])


def bowl(seed: int, n: int, point: torch.Tensor = POINT) -> Quadratic:
    """A quadratic whose gradients have the covariance diag(SCALES²)."""
    noise = np.random.default_rng(seed).normal(size=(n, 4)) * SCALES
    return Quadratic(HESSIAN, torch.from_numpy(noise), point)


def by_formula(each: np.ndarray) -> dict[str, float]:
    """The quantities, from the gradients of all sequences."""
    noise = float(np.cov(each.T).trace())
    squared = float((each.mean(axis=0) ** 2).sum()) - noise / len(each)
    norm = float(np.linalg.norm(each.mean(axis=0)))
    return {"norm": norm, "squared_norm": squared, "noise": noise, "scale": noise / squared}


def test_values_and_errors_are_those_of_all_gradients():
    loss = bowl(0, 37)
    each = (HESSIAN @ POINT + loss.noise).numpy()
    found = vars(gradient_noise(loss, blocks=5))
    rows = [row.numpy() for batch in sequence_blocks(37, 5) for row in batch]
    assert sorted(map(len, rows)) == [7, 7, 7, 8, 8]
    without = [by_formula(np.delete(each, row, axis=0)) for row in rows]
    for name, value in by_formula(each).items():
        assert found[name] == pytest.approx(value, rel=1e-10)
        rest = [estimate[name] for estimate in without]
        assert found[f"{name}_error"] == pytest.approx(math.sqrt(4 / 5 * np.var(rest) * 5), rel=1e-8)
    assert found["n"] == 37


def test_parts_do_not_matter(monkeypatch):
    loss = Logistic(60, 5)
    whole = gradient_noise(loss)
    monkeypatch.setattr(gradients, "MEMORY", 2 * 5 * 8)
    assert vars(gradient_noise(loss)) == pytest.approx(vars(whole), nan_ok=True)
    x, y = loss.x.numpy(), loss.y.numpy()
    slopes = -y / (1 + np.exp(y * (x @ loss.point.numpy())))
    assert whole.noise == pytest.approx(by_formula(slopes[:, None] * x)["noise"])


def test_intervals_cover_what_is_known():
    """95 % intervals of |G|², tr Σ and their ratio, over 200 samples of 128 sequences; the first two are unbiased."""
    known = {"squared_norm": float((HESSIAN @ POINT).square().sum()), "noise": float((SCALES**2).sum())}
    known["scale"] = known["noise"] / known["squared_norm"]
    samples = [vars(gradient_noise(bowl(seed, 128))) for seed in range(200)]
    for name, value in known.items():
        values = np.array([sample[name] for sample in samples])
        errors = np.array([sample[f"{name}_error"] for sample in samples])
        assert 0.90 <= np.mean(np.abs(values - value) <= 1.96 * errors) <= 0.98, name
        if name != "scale":
            assert abs(values.mean() - value) < 3 * values.std() / math.sqrt(len(values))


def test_a_gradient_of_zero_has_no_noise_scale():
    """At the minimum the mean gradient of the sample is not 0, and its square without correction would be tr Σ / n."""
    samples = [gradient_noise(bowl(seed, 128, point=torch.zeros(4).double())) for seed in range(150)]
    squared = np.array([sample.squared_norm for sample in samples])
    assert abs(squared.mean()) < 3 * squared.std() / math.sqrt(150)
    assert np.mean([sample.norm**2 for sample in samples]) == pytest.approx((SCALES**2).sum() / 128, rel=0.2)
    assert all(sample.squared_norm_error > 0 for sample in samples)
    assert np.mean([math.isnan(sample.scale) for sample in samples]) > 0.9
    assert all(math.isnan(sample.scale) == math.isnan(sample.scale_error) for sample in samples)
    flat = gradient_noise(Quadratic(torch.zeros(4, 4).double(), torch.zeros(32, 4).double(), POINT))
    assert (flat.norm, flat.squared_norm, flat.noise) == (0, 0, 0)
    assert math.isnan(flat.scale)


def test_a_gradient_without_noise():
    still = gradient_noise(Quadratic(HESSIAN, torch.zeros(32, 4).double(), POINT))
    assert still.squared_norm == pytest.approx(float((HESSIAN @ POINT).square().sum()))
    assert (still.noise, still.scale) == pytest.approx((0, 0), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_components_of_a_network(dtype):
    loss = network_loss(TINY, n=40, dtype=dtype)
    moments = gradient_moments(loss, blocks=8)
    whole = moments.noise()
    _, gradient = loss.gradients(loss.point[None])
    assert whole.norm == pytest.approx(float(gradient.norm()), rel=1e-5)
    parts = [moments.noise(loss.mask(component)) for component in loss.components]
    assert sum(part.squared_norm for part in parts) == pytest.approx(whole.squared_norm)
    assert sum(part.noise for part in parts) == pytest.approx(whole.noise)
    for component, part in zip(loss.components, parts, strict=True):
        assert part.norm == pytest.approx(float(gradient[0][loss.mask(component)].norm()), rel=1e-5)
    _, each = loss.gradients(loss.point.expand(40, -1), torch.arange(40)[:, None])
    assert whole.noise == pytest.approx(float(each.var(dim=0).sum()), rel=1e-5)


@pytest.mark.parametrize(("n", "count"), [(12, 4), (13, 4), (15, 4), (4, 4)])
def test_blocks_have_every_sequence_once(n, count):
    batches = sequence_blocks(n, count)
    assert sum(len(batch) for batch in batches) == count
    assert torch.equal(torch.cat([batch.flatten() for batch in batches]), torch.arange(n))


def test_too_few_sequences_are_refused():
    with pytest.raises(MechinterpError, match="12 sequences make no 16 blocks"):
        gradient_noise(Logistic(12, 2))
    with pytest.raises(MechinterpError, match="the number of blocks is 1; expected 2 or more"):
        gradient_noise(Logistic(12, 2), blocks=1)
