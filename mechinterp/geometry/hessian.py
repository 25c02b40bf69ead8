"""The Hessian H = ∇²L(θ) of the loss: its trace, and the ends of its spectrum, from products H v.

**Trace** (Hutchinson 1990; Bekas, Kokiopoulou & Saad 2007): with z of independent signs ±1, the expectation of
z ⊙ H z is the diagonal of H. The n sequences are divided into disjoint minibatches, and every minibatch has probes z of
its own, so that the spread of minibatches has both sources of error, sequences and probes.

**Ends of the spectrum** (Lanczos 1950): the largest eigenvalues λ₁ ≥ λ₂ ≥ … and the smallest, of H on all n sequences,
with vectors v of unit length. A residual ‖H v − λ v‖ bounds the distance of λ to an eigenvalue of H. Another sample of
sequences would change λ, to first order, by the change of vᵀ H v at the same v; the standard error is the spread of
vᵀ H_b v over blocks b of sequences. It leaves out a bias: v is chosen on the same sequences, so that λ₁ of a sample is
on average above λ₁ of the whole distribution. Compare two numbers of sequences to see it.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from mechinterp.errors import MechinterpError, require_integer
from mechinterp.geometry.loss import Loss, sequence_blocks
from mechinterp.randomness import Stream, generator


class LanczosWarning(UserWarning):
    """Warning that eigenvalues have not converged within the number of steps."""


@dataclass(frozen=True)
class HessianTrace:
    """tr H of some parameters, with its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class HessianDiagonal:
    """Estimates of the diagonal of H, one of every minibatch of sequences."""

    samples: Float[Tensor, "minibatch P"]

    def trace(self, mask: Bool[Tensor, "P"] | None = None) -> HessianTrace:
        """tr H of all parameters, or that of the block of H that belongs to those in `mask`."""
        traces = (self.samples if mask is None else self.samples[:, mask]).sum(dim=1)
        return HessianTrace(float(traces.mean()), float(traces.std()) / len(traces) ** 0.5)


@dataclass(frozen=True)
class Spectrum:
    """Ends of the spectrum of H: its largest eigenvalues, descending, and then the smallest."""

    values: NDArray[np.float64]
    """λ₁, λ₂, …, λ_k and, last, the smallest eigenvalue, shape [k + 1]."""
    vectors: Float[Tensor, "K P"]
    """Their vectors, of unit length."""
    residuals: NDArray[np.float64]
    """‖H v − λ v‖."""
    errors: NDArray[np.float64]
    """Standard errors over sequences, to first order."""
    steps: int
    """Steps of Lanczos' method."""
    converged: bool
    """Whether all residuals are at most the tolerance times the largest |λ|."""

    @property
    def top(self) -> NDArray[np.float64]:
        """The largest eigenvalues λ₁, λ₂, …, λ_k."""
        return self.values[:-1]

    @property
    def low(self) -> float:
        """The smallest eigenvalue."""
        return float(self.values[-1])


def hessian_trace(
    loss: Loss, mask: Bool[Tensor, "P"] | None = None, *, minibatches: int = 32, probes: int = 4, seed: int = 0
) -> HessianTrace:
    """tr H at θ*, of all parameters or of the block of those in `mask`, with its standard error.

    Of several masks, take the `trace` of one `hessian_diagonal`.
    """
    return hessian_diagonal(loss, minibatches=minibatches, probes=probes, seed=seed).trace(mask)


def hessian_diagonal(loss: Loss, *, minibatches: int = 32, probes: int = 4, seed: int = 0) -> HessianDiagonal:
    """The diagonal of H at θ*: of every minibatch, the mean over so many probes; in all `probes` products on n."""
    require_integer("probes", probes)
    rng = generator(seed, Stream.BOOTSTRAP)
    samples = []
    for indices in sequence_blocks(loss.n, minibatches):
        total = loss.point.new_zeros(len(indices), len(loss.point))
        for _ in range(probes):
            z = torch.from_numpy(rng.integers(2, size=total.shape, dtype=np.int8)).to(total.dtype) * 2 - 1
            total += z * loss.hessian_vectors(loss.point, z, indices)
        samples.append(total / probes)
    return HessianDiagonal(torch.cat(samples).double())


def top_eigenvalues(
    loss: Loss,
    k: int = 1,
    *,
    mask: Bool[Tensor, "P"] | None = None,
    tolerance: float = 1e-3,
    max_steps: int = 100,
    blocks: int = 16,
    seed: int = 0,
) -> Spectrum:
    """The k largest eigenvalues of H at θ*, and the smallest; with a `mask`, of its block of those parameters.

    Lanczos' method with full reorthogonalisation, from a random vector of `seed`, until all residuals are at most
    `tolerance` × the largest |λ|; LanczosWarning if that takes more than `max_steps` products with H. Of an eigenvalue
    that occurs several times, one is returned, unless others are needed to have k.
    """
    require_integer("k", k)
    require_integer("max_steps", max_steps, k + 1)
    if not 0 < tolerance < 1:
        raise MechinterpError(f"tolerance is {tolerance}; expected a number between 0 and 1")
    inside = torch.ones_like(loss.point) if mask is None else mask.to(loss.point.dtype)
    if (size := int(inside.sum())) <= k:
        raise MechinterpError(f"k is {k}, of {size} parameters; expected less than there are parameters")
    batches = sequence_blocks(loss.n, blocks)

    def product(vector: Tensor) -> Tensor:
        return inside * loss.hessian_vectors(loss.point, vector[None])[0]

    vectors, steps = _lanczos(product, inside, k, tolerance, min(max_steps, size), generator(seed, Stream.BOOTSTRAP))
    values, residuals, errors = [], [], []
    for v in vectors:
        images = [inside * loss.hessian_vectors(loss.point, v.expand(len(rows), -1), rows) for rows in batches]
        shares = [rows.shape[1] / loss.n * part for rows, part in zip(batches, images, strict=True)]
        image = torch.cat(shares).sum(dim=0)
        values.append(float(image @ v))
        residuals.append(float((image - values[-1] * v).norm()))
        errors.append(float((torch.cat(images) @ v).std()) / blocks**0.5)
    converged = max(residuals) <= tolerance * max(map(abs, values))
    if not converged:
        warnings.warn(
            f"after {steps} steps of Lanczos' method the residuals of eigenvalues are up to {max(residuals):.2g}, above"
            f" {tolerance:g} of the largest, {max(map(abs, values)):.2g}; raise max_steps, or the tolerance",
            LanczosWarning,
            stacklevel=2,
        )
    return Spectrum(np.array(values), vectors, np.array(residuals), np.array(errors), steps, converged)


def _lanczos(
    product: Callable[[Tensor], Tensor],
    inside: Float[Tensor, "P"],
    k: int,
    tolerance: float,
    max_steps: int,
    rng: np.random.Generator,
) -> tuple[Float[Tensor, "K P"], int]:
    """The Ritz vectors of the k largest eigenvalues and of the smallest, and the number of steps."""
    basis = inside.new_empty(0, len(inside))
    diagonal, beside = list[float](), list[float]()

    def orthogonal(vector: Tensor) -> Tensor:
        for _ in range(2):  # once leaves rounding errors that grow from step to step
            vector = vector - (basis @ vector) @ basis
        return vector

    def drawn() -> Tensor:
        return orthogonal(inside * torch.from_numpy(rng.normal(size=len(inside))).to(inside))

    rest = drawn()
    while True:
        basis = torch.cat([basis, (rest / rest.norm())[None]])
        image = product(basis[-1])
        diagonal.append(float(image @ basis[-1]))
        rest = orthogonal(image)
        size = float(rest.norm())
        if len(basis) > k:
            ritz, parts = eigh_tridiagonal(np.array(diagonal), np.array(beside))
            ends = [*range(-1, -k - 1, -1), 0]
            small = size * np.abs(parts[-1, ends]) <= tolerance * np.abs(ritz).max()
            if small.all() or len(basis) == max_steps:
                return torch.from_numpy(parts[:, ends].T.copy()).to(inside) @ basis, len(basis)
        if size <= 100 * torch.finfo(inside.dtype).eps * float(image.norm()):
            rest, size = drawn(), 0.0  # the products span an invariant space
        beside.append(size)
