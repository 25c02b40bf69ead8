"""Autocorrelated noise: the likelihood, correlation and standard errors of fits whose residuals are AR(1).

Residuals of neighbouring checkpoints are alike, e_t = ρ e_{t−1} + ε_t with ε_t ~ N(0, σ²), so that Cov(e_s, e_t) =
σ²/(1−ρ²) ρ^|s−t|. Checkpoints are counted, whatever the steps between them.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_CORRELATIONS = np.concatenate([np.arange(0.0, 0.95, 0.05), [0.95, 0.97, 0.98, 0.99]])
"""The values of ρ over which likelihoods are maximised. Negative ones would only make intervals shorter."""


def noise_scale(y: Array) -> float:
    """Standard deviation of the point-to-point noise, from the median absolute difference.

    At least 1 % of the curve's range, for accuracies that stay at exactly 0 or 1.
    """
    spread = float(np.median(np.abs(np.diff(y)))) / (0.6745 * np.sqrt(2))
    return max(spread, 1e-2 * float(np.ptp(y)), 1e-12)


def bic(residuals: Array, n_parameters: int, noise: float) -> float:
    """−2 ln L + k ln n of residuals, with the likelihood of AR(1) noise at its largest over ρ and σ.

    ρ is a parameter besides the `n_parameters`. The variance has a floor, so that the fit of noiseless data is finite.
    """
    return _least_deviance(whitened(residuals), noise) + (n_parameters + 1) * float(np.log(len(residuals)))


def bic_polynomial(x: Array, y: Array, degree: int, noise: float) -> float:
    """`bic` of the polynomial of a degree that has the largest likelihood."""
    design = np.vander((x - x.mean()) / (x[-1] - x[0]), degree + 1)
    innovations = _unexplained(np.linalg.qr(whitened(design))[0], whitened(y))
    return _least_deviance(innovations, noise) + (degree + 2) * float(np.log(len(y)))


def correlation(jacobian: Array, residuals: Array) -> tuple[float, float]:
    """ρ and σ² of a fit's residuals by restricted maximum likelihood, for a model linearised at the fit.

    The restricted likelihood, n − p times the logarithm of the generalised residual sum of squares, plus ln |JᵀV⁻¹J| +
    ln |V|, allows for the p directions in which the fit has followed the noise.
    """
    n, p = jacobian.shape
    basis, triangle = np.linalg.qr(whitened(jacobian))
    rss = np.maximum((_unexplained(basis, whitened(residuals)) ** 2).sum(axis=1), 1e-300)
    size = np.maximum(np.abs(np.einsum("rpp->rp", triangle)), 1e-300)
    criterion = (n - p) * np.log(rss) - np.log(1 - _CORRELATIONS**2) + 2 * np.log(size).sum(axis=1)
    best = int(np.argmin(criterion))
    return float(_CORRELATIONS[best]), float(rss[best]) / (n - p)


def covariance(jacobian: Array, rho: float, variance: float) -> Array:
    """Covariance of a least-squares estimate under AR(1) noise: (JᵀJ)⁻¹ JᵀVJ (JᵀJ)⁻¹."""
    n = len(jacobian)
    V = variance / (1 - rho**2) * rho ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    estimate = np.linalg.pinv(jacobian)
    return estimate @ V @ estimate.T


def robust_factor(residuals: Array, noise: float) -> float:
    """Variance of the soft-L1 estimate over that of least squares, for residuals of this scale; at least 1.

    With ψ(r) = r/√(1 + r²) and r in units of `noise`, it is ⟨ψ²⟩ / ⟨ψ′⟩² / ⟨r²⟩ (Huber 1964): 1.08 for normal noise.
    """
    r = residuals / noise
    slope = float(np.mean((1 + r**2) ** -1.5))
    return max(1.0, float(np.mean(r**2 / (1 + r**2))) / slope**2 / max(float(np.mean(r**2)), 1e-300))


def degrees_of_freedom(n: int, n_parameters: int, rho: float) -> float:
    """n(1−ρ)/(1+ρ) − p, the number of independent residuals; at least 3, where it is itself not known."""
    return max(3.0, n * (1 - rho) / (1 + rho) - n_parameters)


def whitened(values: Array) -> Array:
    """Values [n, …] as ε for every ρ, [ρ, n, …]: e_t − ρ e_{t−1}, the first times √(1−ρ²)."""
    rho = _CORRELATIONS.reshape(-1, *[1] * values.ndim)
    first = np.sqrt(1 - rho**2) * values[:1]
    return np.concatenate([first, values[1:] - rho * values[:-1]], axis=1)


def _unexplained(basis: Array, values: Array) -> Array:
    """What is left of values [ρ, n] outside the span of orthonormal columns [ρ, n, p]."""
    return values - np.einsum("rnp,rp->rn", basis, np.einsum("rnp,rn->rp", basis, values))


def _least_deviance(innovations: Array, noise: float) -> float:
    """−2 ln L at the best ρ, of innovations [ρ, n]; a variance has a floor."""
    variance = np.maximum((innovations**2).mean(axis=1), (noise / 10) ** 2)
    return float((innovations.shape[1] * np.log(variance) - np.log(1 - _CORRELATIONS**2)).min())
