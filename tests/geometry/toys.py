"""Losses whose derivatives are known by formulas."""

import numpy as np
import torch
from torch import Tensor

from mechinterp.geometry.loss import Loss


class Quadratic(Loss):
    """ℓ_i(θ) = ½ θᵀ H θ + x_i·θ: the gradient H θ + ⟨x⟩, the Hessian H."""

    def __init__(self, hessian: Tensor, noise: Tensor, point: Tensor):
        self.hessian, self.noise, self.point, self.n = hessian, noise, point, len(noise)

    def losses(self, point: Tensor, indices: Tensor) -> Tensor:
        return 0.5 * point @ self.hessian @ point + self.noise[indices] @ point


def rotated(spectrum: list[float], seed: int = 0) -> Tensor:
    """A symmetric matrix with this spectrum."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum), len(spectrum))))
    return torch.from_numpy(basis @ np.diag(spectrum) @ basis.T)


class Logistic(Loss):
    """ℓ_i = log(1 + exp(−y_i x_i·θ)), with the Hessian ⟨σ(1 − σ) x xᵀ⟩."""

    def __init__(self, n: int, size: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.x, self.n = torch.from_numpy(rng.normal(size=(n, size))), n
        self.y = torch.from_numpy(rng.choice([-1.0, 1.0], n))
        self.point = torch.from_numpy(rng.normal(size=size))

    def losses(self, point: Tensor, indices: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-self.y[indices] * (self.x[indices] @ point))

    def hessian_by_formula(self) -> Tensor:
        s = torch.sigmoid(self.x @ self.point)
        return (self.x.T * (s * (1 - s))) @ self.x / self.n
