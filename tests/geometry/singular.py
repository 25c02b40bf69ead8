"""Losses with known learning coefficients, and the exact expectation of a loss by numerical integration."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mechinterp.geometry.loss import Loss


class Formula(Loss):
    """ℓ_i(θ) = f(θ) of all n sequences; f takes points along the first axis."""

    def __init__(self, formula: Callable[[Tensor], Tensor], point: Tensor, n: int):
        self.formula, self.point, self.n = formula, point, n

    def losses(self, point: Tensor, indices: Tensor) -> Tensor:
        return self.formula(point[None]).expand(len(indices))

    def gradients(self, points: Tensor, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        leaf = points.detach().requires_grad_()
        values = self.formula(leaf)
        (gradients,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), gradients


def reduced_rank(outputs: int, hidden: int, inputs: int, truth: Tensor) -> Callable[[Tensor], Tensor]:
    """½‖BA − T‖² of θ = (B, A): regression of outputs on independent inputs of variance 1, without the noise's loss."""

    def formula(points: Tensor) -> Tensor:
        b, a = points.split([outputs * hidden, hidden * inputs], dim=1)
        product = b.view(-1, outputs, hidden) @ a.view(-1, hidden, inputs)
        return 0.5 * (product - truth).square().sum(dim=(1, 2))

    return formula


def aoyagi_watanabe(m: int, h: int, n: int, r: int) -> tuple[float, int]:
    """Learning coefficient and multiplicity of reduced-rank regression (Aoyagi & Watanabe 2005): m outputs, h hidden
    units, n inputs, a truth of rank r."""
    if m + h < n + r:
        return (h * m - h * r + n * r) / 2, 1
    if n + h < m + r:
        return (h * n - h * r + m * r) / 2, 1
    if m + n < h + r:
        return m * n / 2, 1
    odd = (m + h + n + r) % 2
    total = -((h + r) ** 2) - m**2 - n**2 + 2 * (h + r) * (m + n) + 2 * m * n
    return (total + odd) / 8, 1 + odd


def reduced_rank_at_zero(outputs: int, hidden: int, inputs: int, beta_n: float, gamma: float) -> float:
    """nβ E[½‖BA‖²] under exp(−nβ ½‖BA‖² − ½ γ‖θ‖²) with 1 or 2 hidden units: A is integrated out by hand,

    Z = ∫ dl Π_k l_k^((m−h−1)/2) e^(−γ l_k/2) (nβ l_k + γ)^(−n/2) · |l₁ − l₂|

    over the eigenvalues l of BᵀB (m ≥ h), and nβ E[L] = ½ n ⟨Σ_k nβ l_k/(nβ l_k + γ)⟩.
    """
    m, n = max(outputs, inputs), min(outputs, inputs)  # the same by transposition
    grid = np.exp(np.linspace(-30, 8, 1501)) / gamma  # l over its scale, with dl = l d ln l
    log_weight = (m - hidden + 1) / 2 * np.log(grid) - gamma * grid / 2 - n / 2 * np.log(beta_n * grid + gamma)
    weight, part = np.exp(log_weight - log_weight.max()), beta_n * grid / (beta_n * grid + gamma)
    if hidden == 1:
        return float(n / 2 * (weight @ part) / weight.sum())
    both = weight[:, None] * weight * np.abs(grid[:, None] - grid)
    return float(n / 2 * (both * (part[:, None] + part)).sum() / both.sum())


def expectation(
    formula: Callable[[Tensor], Tensor], point: Tensor, beta_n: float, gamma: float, reach: float = 7.0
) -> float:
    """nβ (E[f] − f(θ*)) in one or two dimensions, over a grid of ±`reach`/√γ around θ*."""
    axis = torch.linspace(-reach, reach, 1201, dtype=torch.float64) / gamma**0.5
    shift = torch.cartesian_prod(*[axis] * len(point)).view(-1, len(point))
    rise = formula(point + shift) - formula(point[None])
    log_weight = -beta_n * rise - gamma / 2 * shift.square().sum(dim=1)
    weight = torch.exp(log_weight - log_weight.max())
    return float(beta_n * (weight @ rise) / weight.sum())
