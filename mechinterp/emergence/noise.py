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
    n = len(residuals)
    return min(_deviance(whitened(residuals, rho), rho, noise) for rho in _CORRELATIONS) + (n_parameters + 1) * np.log(
        n
    )


def bic_polynomial(x: Array, y: Array, degree: int, noise: float) -> float:
    """`bic` of the polynomial of a degree that has the largest likelihood."""
    design = np.vander((x - x.mean()) / (x[-1] - x[0]), degree + 1)
    deviances = []
    for rho in _CORRELATIONS:
        basis, values = np.linalg.qr(whitened(design, rho))[0], whitened(y, rho)
        deviances.append(_deviance(values - basis @ (basis.T @ values), rho, noise))
    return min(deviances) + (degree + 2) * np.log(len(y))


def correlation(jacobian: Array, residuals: Array) -> tuple[float, float]:
    """ρ and σ² of a fit's residuals by restricted maximum likelihood, for a model linearised at the fit.

    The restricted likelihood, n − p times the logarithm of the generalised residual sum of squares, plus ln |JᵀV⁻¹J| +
    ln |V|, allows for the p directions in which the fit has followed the noise.
    """
    n, p = jacobian.shape
    best = (np.inf, 0.0, 0.0)
    for rho in _CORRELATIONS:
        basis, triangle = np.linalg.qr(whitened(jacobian, rho))
        values = whitened(residuals, rho)
        rss = max(float(np.sum((values - basis @ (basis.T @ values)) ** 2)), 1e-300)
        size = np.maximum(np.abs(np.diag(triangle)), 1e-300)
        criterion = (n - p) * np.log(rss) - np.log(1 - rho**2) + 2 * float(np.log(size).sum())
        best = min(best, (criterion, float(rho), rss / (n - p)))
    return best[1], best[2]


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


def whitened(values: Array, rho: float) -> Array:
    """Values [n, …] as ε: e_t − ρ e_{t−1}, the first times √(1−ρ²)."""
    result = values.copy()
    result[1:] -= rho * values[:-1]
    result[0] *= np.sqrt(1 - rho**2)
    return result


def _deviance(innovations: Array, rho: float, noise: float) -> float:
    variance = max(float(np.mean(innovations**2)), (noise / 10) ** 2)
    return len(innovations) * float(np.log(variance)) - float(np.log(1 - rho**2))
