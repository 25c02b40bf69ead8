"""The local learning coefficient: how fast the volume of parameters of low loss grows around a point θ* of a loss.

    λ̂(θ*) = nβ (E[L(θ)] − L(θ*)),    θ ~ exp(−nβ L(θ) − ½ γ ‖θ − θ*‖²) / Z,    β = 1/log n

(Lau et al. 2023, arXiv 2308.12108, eq. 11 to 13; Watanabe 2013 for β). For γ → 0 and n → ∞ at a minimum it is
Watanabe's learning coefficient: half the number of parameters where the Hessian is regular, and less where the loss is
degenerate.
At finite γ and n it is the number of directions along which the loss confines θ more than the localisation γ does; of a
quadratic loss with gradient g and eigenvalues h_j of the Hessian (`quadratic_llc`)

    λ̂ = Σ_j ½ κ_j − (1 − ½ κ_j) (nβ g_j)² / (nβ h_j + γ),    κ_j = nβ h_j / (nβ h_j + γ)

so that λ̂ is lowered, even below 0, where θ* is no minimum. Refined to a component, all other parameters stay at θ*
(Wang et al. 2024, arXiv 2410.02984).

The expectation is taken over chains of stochastic gradient Langevin dynamics (Welling & Teh 2011), from θ* on:

    θ ← θ − ½ ε (nβ ∇L_m(θ) + γ (θ − θ*)) + √ε η,    η ~ N(0, I)

with a minibatch of m of the n sequences, of each chain and step. The default step size is

    ε = STEP / (nβ |h|_max + γ)

with the eigenvalue of the Hessian of largest magnitude. What biases the estimate, in directions of curvature
a_j = nβ h_j + γ, to first order:

* the step size raises the variance 1/a_j by the factor 1/(1 − ε a_j / 4), and so λ̂ by about ε nβ tr ∇²L / 8;
* the noise of minibatches adds ε² (nβ)² Σ (1/m − 1/n) / 4 to the covariance ε of a step, with the covariance Σ of the
  gradients of single sequences, and so raises λ̂ by about ε (nβ)² (1/m − 1/n) tr(Σ ∇²L (∇²L + γ/nβ)⁻¹) / 8;
* chains that have not left θ* lower it: all directions are reached after the relaxation time of 2/(ε γ) steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.special import stdtrit
from torch import Tensor

from mechinterp.comparison.components import Component
from mechinterp.errors import MechinterpError, NamedEnum, require_integer, require_number
from mechinterp.geometry.loss import Loss, NetworkLoss
from mechinterp.geometry.updates import ALL
from mechinterp.randomness import Stream, generator

STEP = 0.5
"""Step size in units of the inverse of the largest curvature: the variance along it is raised by 1/(1 − STEP/4)."""
MIXED = 1.1
"""Split R̂ up to which chains count as mixed (Gelman et al. 2013)."""
NOISE = 0.1
"""The distance to which `localisation_of` keeps the chains, in norms of θ."""
CURVATURE_STEPS = 12
"""Power iterations for the largest curvature."""
CURVATURE_BATCH = 256
"""Sequences on which it is computed."""


class Flag(NamedEnum):
    """What speaks against an estimate."""

    negative = "the estimate is below 0: the chains found a lower loss, so the point is no minimum"
    not_mixed = "split R̂ is above 1.1: the chains differ, or still drift; take more draws, or a longer burn-in"
    short_burn_in = "the burn-in is shorter than the relaxation time 2/(ε γ); lengthen it, or raise the localisation"


@dataclass(frozen=True)
class LLC:
    """An estimate of the local learning coefficient."""

    linear: float
    """nβ ∇L(θ*)·E[θ − θ*]: the part of λ̂ that is due to the gradient at θ*, 0 at a minimum."""
    distance: float
    """√E‖θ − θ*‖²."""
    trace: Float[Tensor, "chain draw"]
    """nβ (L_m(θ) − L_m(θ*)) at all draws, those of the burn-in first."""
    burn_in: int
    """Draws of the burn-in."""
    inverse_temperature: float
    """nβ."""
    localisation: float
    """γ."""
    step_size: float
    """ε."""

    @property
    def by_chain(self) -> Float[Tensor, "chain"]:
        """λ̂ of every chain."""
        return self.trace[:, self.burn_in :].mean(dim=1)

    @property
    def value(self) -> float:
        """λ̂, the mean over chains."""
        return float(self.by_chain.mean())

    @property
    def error(self) -> float:
        """The standard error of λ̂ over chains."""
        return float(self.by_chain.std()) / len(self.trace) ** 0.5

    @property
    def r_hat(self) -> float:
        """Split R̂ of the trace after the burn-in (`split_r_hat`)."""
        return split_r_hat(self.trace[:, self.burn_in :])

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, by Student's t over chains."""
        half = float(stdtrit(len(self.trace) - 1, 0.975)) * self.error
        return self.value - half, self.value + half

    @property
    def flags(self) -> tuple[Flag, ...]:
        """What speaks against the estimate."""
        relaxation = 2 / (self.step_size * self.localisation) if self.localisation else np.inf
        signs = {
            Flag.negative: self.value < 0,
            Flag.not_mixed: not self.r_hat <= MIXED,
            Flag.short_burn_in: self.burn_in < relaxation,
        }
        return tuple(flag for flag, raised in signs.items() if raised)

    @property
    def converged(self) -> bool:
        """Whether the chains have mixed, after a burn-in of the relaxation time or more."""
        return not {Flag.not_mixed, Flag.short_burn_in} & {*self.flags}


def local_learning_coefficient(
    loss: Loss,
    *,
    mask: Bool[Tensor, "P"] | None = None,
    localisation: float = 300.0,
    inverse_temperature: float | None = None,
    step_size: float | None = None,
    chains: int = 4,
    draws: int = 100,
    burn_in: int = 50,
    batch: int | None = 128,
    seed: int = 0,
) -> LLC:
    """λ̂ of a loss at its point θ*.

    Args:
        mask: The elements of θ that vary, of a component (`NetworkLoss.mask`), all others fixed; all by default.
        localisation: γ, in units of 1/θ².
        inverse_temperature: nβ; by default n / log n.
        step_size: ε; by default STEP / (nβ |h|_max + γ).
        chains: Independent chains, 2 or more; all are computed in one call.
        draws: Steps of each chain after the burn-in, 4 or more, all of which count.
        burn_in: Steps that do not count.
        batch: m, sequences of a minibatch; None, or n and more, for all sequences in every step.
        seed: Of the noise and the minibatches.

    Raises MechinterpError where a chain diverges.
    """
    for name, number, least in (("chains", chains, 2), ("draws", draws, 4), ("burn_in", burn_in, 0)):
        require_integer(name, number, least)
    mask = torch.ones_like(loss.point, dtype=torch.bool) if mask is None else mask
    if not mask.any():
        raise MechinterpError("mask has no element that varies; give that of a component, or none for all parameters")
    if inverse_temperature is None:
        inverse_temperature = loss.n / np.log(require_integer("the loss's number of sequences", loss.n, 2))
    beta_n = _positive("inverse_temperature", inverse_temperature)
    gamma = _positive("localisation", localisation, zero=True)
    if step_size is None:
        step_size = STEP / _positive("nβ |h|_max + γ", beta_n * largest_curvature(loss, mask, seed) + gamma)
    epsilon = _positive("step_size", step_size)
    size = loss.n if batch is None else min(require_integer("batch", batch), loss.n)

    centre, width = loss.point, mask.to(loss.point.dtype)
    base = _losses(loss) if size < loss.n else None
    (level,), (slope,) = loss.gradients(centre[None])
    points = centre.repeat(chains, 1)
    trace, linear, distance = [], [], []
    for draw in range(burn_in + draws):
        rng = generator(seed, Stream.LANGEVIN, draw)
        if base is None:
            values, gradients = loss.gradients(points)
            rise = values - level
        else:
            indices = torch.from_numpy(np.argsort(rng.random((chains, loss.n)), axis=1)[:, :size])
            values, gradients = loss.gradients(points, indices)
            rise = values - base[indices].mean(dim=1)
        shift = points - centre
        _require_finite(rise, draw)
        trace.append(beta_n * rise)
        linear.append(beta_n * (shift @ slope))
        distance.append(shift.square().sum(dim=1))
        noise = torch.from_numpy(rng.standard_normal(tuple(points.shape), dtype=np.float32)).to(points.dtype)
        step = -epsilon / 2 * (beta_n * gradients + gamma * shift) + epsilon**0.5 * noise
        points = points + width * step

    return LLC(
        linear=float(torch.stack(linear)[burn_in:].mean()),
        distance=float(torch.stack(distance)[burn_in:].mean()) ** 0.5,
        trace=torch.stack(trace, dim=1),
        burn_in=burn_in,
        inverse_temperature=beta_n,
        localisation=gamma,
        step_size=epsilon,
    )


def llc_table(loss: NetworkLoss, components: Sequence[Component | None] = (None,), **options: Any) -> pd.DataFrame:
    """λ̂ of a network, for None, and of components: a row each, with ``component`` (``all`` for None), ``llc``,
    ``llc_error``, ``llc_linear``, ``llc_distance``, ``step_size``, ``r_hat`` and ``converged``.

    Options are those of `local_learning_coefficient`.
    """
    rows = []
    for component in components:
        mask = None if component is None else loss.mask(component)
        result = local_learning_coefficient(loss, mask=mask, **options)
        rows.append(
            {
                "component": ALL if component is None else component.name,
                "llc": result.value,
                "llc_error": result.error,
                "llc_linear": result.linear,
                "llc_distance": result.distance,
                "step_size": result.step_size,
                "r_hat": result.r_hat,
                "converged": result.converged,
            }
        )
    return pd.DataFrame(rows)


def localisation_of(point: Float[Tensor, "P"], noise: float = NOISE) -> float:
    """γ = P/(noise · ‖θ‖)², at which chains leave θ* by about `noise` of the norm of θ = `point`; to three digits.

    Of a run, take θ at its first step, so that γ is the same at all steps.
    """
    return float(f"{len(point) / (_positive('noise', noise) * float(point.norm())) ** 2:.3g}")


def quadratic_llc(
    eigenvalues: Float[Tensor, "P"],
    gradient: Float[Tensor, "P"],
    inverse_temperature: float,
    localisation: float,
    step_size: float = 0.0,
) -> float:
    """λ̂ of a quadratic loss with these eigenvalues of its Hessian, and this gradient at θ* along its eigenvectors.

    Exact, also for steps of size ε > 0 with all sequences (Euler's scheme): then the variance along an eigenvector is
    1/(a_j (1 − ε a_j / 4)), a_j = nβ h_j + γ. Infinite where an a_j is 0 or less, or ε a_j is 4 or more.
    """
    curvature = inverse_temperature * eigenvalues
    total = curvature + localisation
    if bool((total <= 0).any() or (step_size * total >= 4).any()):
        return np.inf
    mean, variance = -inverse_temperature * gradient / total, 1 / (total * (1 - step_size * total / 4))
    return float((inverse_temperature * gradient * mean + curvature * (mean.square() + variance) / 2).sum())


def largest_curvature(loss: Loss, mask: Bool[Tensor, "P"] | None = None, seed: int = 0) -> float:
    """|h|_max, the eigenvalue of ∇²L(θ*) of largest magnitude, among the elements of the mask; from below.

    By power iteration on at most `CURVATURE_BATCH` sequences: accurate enough for a step size.
    """
    rng = generator(seed, Stream.LANGEVIN, 2**63)
    width = torch.ones_like(loss.point) if mask is None else mask.to(loss.point.dtype)
    vector = torch.from_numpy(rng.standard_normal(len(loss.point))).to(loss.point.dtype) * width
    indices = torch.arange(min(loss.n, CURVATURE_BATCH))[None]
    size = torch.tensor(0.0)
    for _ in range(CURVATURE_STEPS):
        norm = vector.norm()
        if not norm:
            return 0.0
        (product,) = loss.hessian_vectors(loss.point, (vector / norm)[None], indices)
        vector = product * width
        size = vector.norm()
    return float(size)


def split_r_hat(trace: Float[Tensor, "chain draw"]) -> float:
    """R̂ of half chains: the square root of their pooled variance over the mean variance within them; 1 if they agree.

    Gelman et al. 2013, section 11.4. Traces without any variance have 1.
    """
    half = trace.shape[1] // 2
    halves = torch.cat([trace[:, :half], trace[:, -half:]])
    within, between = halves.var(dim=1).mean(), halves.mean(dim=1).var()
    if not within:
        return 1.0 if not between else np.inf
    return float(((half - 1) / half + between / within) ** 0.5)


def _losses(loss: Loss) -> Float[Tensor, "n"]:
    """ℓ_i(θ*) of all sequences."""
    with torch.no_grad():
        return torch.cat([loss.losses(loss.point, part) for part in torch.arange(loss.n).split(max(1, loss.together))])


def _positive(name: str, value: object, *, zero: bool = False) -> float:
    number = require_number(name, value)
    if not (np.isfinite(number) and (number > 0 or (zero and number == 0))):
        raise MechinterpError(
            f"{name} is {number:g}; expected a {'number of 0 or more' if zero else 'positive number'}"
        )
    return number


def _require_finite(rise: Float[Tensor, "chain"], draw: int) -> None:
    diverged = (~torch.isfinite(rise)).nonzero().flatten().tolist()
    if diverged:
        raise MechinterpError(
            f"chain {diverged[0]} diverged: its loss is not finite at draw {draw};"
            " take a smaller step_size, or a larger localisation"
        )
