"""The loss landscape of an induction head: three nested logits, and gradient flow on them (Reddy 2023, eqs 7 to 10).

    y  = α e^{β₁} / (e^{β₁} + N₁)      layer 1 finds the previous token (β₁), layer 2 matches what it wrote (α)
    z  = ξ (e^y − 1) / (e^y + 2N)      logit of the correct label minus that of another label of the context
    z′ = ξ e^y / (e^y + 2N)            the same minus that of a label outside the context
    ℒ(ξ, α, β₁) = log(1 + (N − 1) e^{−z} + (L − N) e^{−z′})

ξ is the classifier's logit for a label that gets all of the target's attention. One copy of a class per context is
assumed (B = 1), so that L ≥ N. Consequences, which the tests confirm:

* From the origin with L > N, at first ξ ∝ t, α ∝ t², β₁ ∝ t⁴: the nested logits grow one after another. The loss
  stays near log L until the cliff; it has no plateau at log N, the loss of guessing among the labels of the context.
* With N₁ = N the flow conserves β₁ + e^{β₁}/N − α²/2: α and β₁ are tied, β₁ ∝ α² at first; any path lies on a surface.
* ℒ has no minimum. Its fixed points are a curve with ξ = 0 and ℒ = log L (`Landscape.fixed_point`), every one of them
  a strict saddle. The attractor is at infinity: the induction head, ξ, α → ∞, where ℒ → 0 like 1/t.
* ξ, α → −∞ with β₁ > 0: the target attends to all labels but the correct one, and the classifier's answer is the label
  with least attention. With L = N, where the origin is a saddle and this is the second direction out of it, ℒ → 0 too,
  but like (2N)²/t: slowly, not a sub-optimal minimum. With L > N, ℒ → log(1 + L − N).
* α < 0 < ξ with L > N: a plateau at log N, which ends when α, slowed down by β₁ → −∞, has crossed 0.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import expit

from mechinterp.errors import MechinterpError, NamedEnum, member

Values = int | float | Float[np.ndarray, "..."]
"""One coordinate of a point or of an array of points."""
Point = tuple[float, float, float]
"""(ξ, α, β₁)."""
Kind = Literal["minimum", "saddle", "maximum", "degenerate"]

ORIGIN: Point = (0.0, 0.0, 0.0)
AT_REST = 1e-9
"""Largest gradient at a fixed point."""
FLAT = 1e-9
"""Eigenvalues of the Hessian below this share of the largest count as zero."""


class Competitors(NamedEnum):
    """N₁, the tokens that compete with the previous one for a label's attention in layer 1."""

    n_pairs = "N₁ = N wherever the correct label stands: the paper's choice, an intermediate value"
    exact = "N₁ = 2τ − 1 for the label of pair τ; the loss, not its exponents, is averaged over τ = 1…N"


@dataclass(frozen=True)
class Stationary:
    """The type of a fixed point."""

    kind: Kind
    """"saddle" if there are eigenvalues of both signs, even if others are zero; otherwise "degenerate" if some are
    zero, so that the second order does not decide."""
    eigenvalues: Point
    """Of the Hessian, ascending."""


@dataclass(frozen=True)
class Landscape:
    """ℒ(ξ, α, β₁) in nats, its derivatives, and gradient descent on it (Reddy 2023, eq. 10)."""

    n_labels: int = 32
    """L, at least 2."""
    n_pairs: int = 8
    """N, at least 1 and at most L."""
    competitors: Competitors | str = Competitors.n_pairs
    """How N₁ is chosen: a member of `Competitors` or its name."""

    def __post_init__(self):
        object.__setattr__(self, "competitors", member(Competitors, self.competitors))
        if self.n_labels < 2:
            raise MechinterpError(f"n_labels (L={self.n_labels}): a landscape needs at least 2 labels")
        if not 1 <= self.n_pairs <= self.n_labels:
            raise MechinterpError(
                f"n_pairs (N={self.n_pairs}) must be from 1 to n_labels (L={self.n_labels}): labels do not repeat"
            )

    def loss(self, xi: Values, alpha: Values, beta1: Values) -> Float[np.ndarray, "*shape"]:
        """ℒ in nats, ≥ 0; arguments broadcast. log L at the origin.

        With N₁ = N it depends on α and β₁ through y alone; β₁ = ∞ makes α = y, so that ``loss(xi, y, np.inf)`` is the
        whole landscape in two coordinates.
        """
        exponents, _, _ = self._exponents(xi, alpha, beta1)
        return np.asarray(_log_sum(exponents).mean(axis=0))

    def gradient(self, xi: Values, alpha: Values, beta1: Values) -> Float[np.ndarray, "3 *shape"]:
        """(∂ℒ/∂ξ, ∂ℒ/∂α, ∂ℒ/∂β₁), analytic. At the origin (−(L − N) / (L (2N + 1)), 0, 0)."""
        exponents, slopes, _ = self._exponents(xi, alpha, beta1)
        return (_shares(exponents) * slopes).sum(axis=1).mean(axis=1)

    def hessian(self, xi: Values, alpha: Values, beta1: Values) -> Float[np.ndarray, "3 3 *shape"]:
        """Second derivatives, analytic: ℒ is a log-sum-exp of exponents u, so H = ⟨∇u∇uᵀ⟩ + ⟨∇²u⟩ − ⟨∇u⟩⟨∇u⟩ᵀ."""
        exponents, slopes, curvatures = self._exponents(xi, alpha, beta1)
        shares = _shares(exponents)
        mean_slope = (shares * slopes).sum(axis=1)
        return ((shares * (_outer(slopes) + curvatures)).sum(axis=2) - _outer(mean_slope)).mean(axis=2)

    def match(self, alpha: Values, beta1: Values) -> Float[np.ndarray, "*shape"]:
        """y, layer 2's score of the correct label (eq. 9); with exact competitors its mean over τ."""
        alpha, beta1 = _broadcast(alpha, beta1)
        return np.asarray((alpha * expit(beta1 - self._log_competitors(beta1.ndim))).mean(axis=0))

    def flow(self, start: Point = ORIGIN, t_end: float = 200.0, *, n_points: int = 2001) -> pd.DataFrame:
        """Gradient flow d(ξ, α, β₁)/dt = −∇ℒ: columns xi, alpha, beta1, loss at `n_points` times t from 0 to `t_end`.

        t is learning rate × steps of descent on these three parameters; those of a network are products of weights
        and keep another time. Adaptive (LSODA, relative tolerance 1e-9).
        """
        if n_points < 2:
            raise MechinterpError(f"n_points is {n_points}; a flow needs 2 or more")
        times = np.linspace(0.0, _positive("t_end", t_end), n_points)
        return self._table(self._integrate(start, t_end, t_eval=times).y, pd.Index(times, name="t"))

    def descend(self, start: Point = ORIGIN, *, steps: int, learning_rate: float) -> pd.DataFrame:
        """Gradient descent: the columns of `flow` at steps 0…`steps`; step s is the flow at t = s · `learning_rate`,
        up to terms of first order in the learning rate."""
        _positive("learning_rate", learning_rate)
        if steps < 0:
            raise MechinterpError(f"steps is {steps}; expected 0 or more")
        points = [_finite(start)]
        for _ in range(steps):
            points.append(points[-1] - learning_rate * self.gradient(*points[-1]))
        return self._table(np.stack(points, axis=1), pd.RangeIndex(steps + 1, name="step"))

    def transition_time(self, start: Point = ORIGIN, t_end: float = 1e5) -> float:
        """The time at which the loss, along the flow from `start`, falls through ½ log L.

        That is half-way between log L, the loss of the slow phase (and of the origin and every fixed point), and its
        final value 0. Not a number if the loss does not cross it before `t_end`: for instance from a fixed point, in a
        valley whose floor is higher, or if the loss is lower at `start`.
        """
        middle = np.log(self.n_labels) / 2
        _positive("t_end", t_end)
        (times,) = self._integrate(start, t_end, events=lambda _, point: float(self.loss(*point)) - middle).t_events
        return float(times[0]) if len(times) else np.nan  # along the flow the loss only falls: one time at most

    def fixed_point(self, beta1: float = 0.0) -> Point:
        """The fixed point with this β₁; there is exactly one: ξ = 0, and α such that ∂ℒ/∂ξ = 0.

        ∂ℒ/∂α is ξ times a factor that is never zero, so ξ = 0; there, ∂ℒ/∂ξ = 0 iff e^y = (N − 1)/(L − 1). With L = N
        that is y = 0: all points (0, 0, β₁). N = 1 has none.
        """
        if self.n_pairs == 1:
            raise MechinterpError("n_pairs (N=1): this landscape has no fixed point; use N > 1")
        match = np.log((self.n_pairs - 1) / (self.n_labels - 1))
        lowest = 2 * match / expit(beta1 - self._log_competitors().max())
        alpha = brentq(lambda alpha: self.gradient(0.0, alpha, beta1)[0], lowest, 0.0, xtol=1e-13)
        return 0.0, float(alpha), beta1

    def classify(self, point: Point) -> Stationary:
        """The type of the fixed point `point`, by the eigenvalues of the Hessian; MechinterpError if it is not one."""
        steepness = np.linalg.norm(self.gradient(*_finite(point)))
        if steepness > AT_REST:
            raise MechinterpError(f"{point} is no fixed point: the gradient is {steepness:.2g}; see fixed_point()")
        eigenvalues = np.linalg.eigvalsh(self.hessian(*point))
        size = FLAT * np.abs(eigenvalues).max()
        falls, rises = (eigenvalues < -size).any(), (eigenvalues > size).any()
        flat = (np.abs(eigenvalues) <= size).any()
        kind = "saddle" if falls and rises else "degenerate" if flat else "minimum" if rises else "maximum"
        return Stationary(kind, tuple(eigenvalues.tolist()))

    def _log_competitors(self, n_axes: int = 0) -> Float[np.ndarray, "tau *ones"]:
        """log N₁ for every place τ of the correct label (one if N₁ does not depend on τ), with `n_axes` more axes."""
        exact = self.competitors is Competitors.exact
        counts = 2.0 * np.arange(1, self.n_pairs + 1) - 1 if exact else np.array([float(self.n_pairs)])
        return np.log(counts).reshape(-1, *[1] * n_axes)

    def _exponents(
        self, xi: Values, alpha: Values, beta1: Values
    ) -> tuple[
        Float[np.ndarray, "2 tau *shape"], Float[np.ndarray, "3 2 tau *shape"], Float[np.ndarray, "3 3 2 tau *shape"]
    ]:
        """u, ∇u and ∇²u for every place τ, with ℒ = log(1 + Σ_k e^{u_k}) and u_k = log(count of k) − ξ s_k(y).

        k are the two classes of wrong labels: those of the context, with s = b − (1 − b)/2N, and those outside it, with
        s = b, where b = e^y / (e^y + 2N) is the target's attention to the correct label.
        """
        N, (xi, alpha, beta1) = self.n_pairs, _broadcast(xi, alpha, beta1)
        rivals = self._log_competitors(xi.ndim)
        previous, elsewhere = expit(beta1 - rivals), expit(rivals - beta1)  # sum to 1, neither rounded
        y, bend = alpha * previous, previous * elsewhere
        zero, last = np.zeros_like(y), alpha * bend * (elsewhere - previous)
        dy = np.stack([zero, previous, alpha * bend])
        ddy = np.stack([zero, zero, zero, zero, zero, bend, zero, bend, last]).reshape(3, 3, *y.shape)

        kinds = (2, *[1] * y.ndim)
        correct, others, turn = expit(y - np.log(2 * N)), expit(np.log(2 * N) - y), np.tanh(y / 2)
        in_context = 2 * turn / (2 * N + 1 - (2 * N - 1) * turn)  # by e^y = (1 + turn)/(1 − turn): exactly 0 at y = 0
        s = np.stack([in_context, correct])
        ds = correct * others * np.reshape([1 + 1 / (2 * N), 1.0], kinds)
        dds = ds * (others - correct)

        with np.errstate(divide="ignore"):
            log_counts = np.log([N - 1.0, self.n_labels - N]).reshape(kinds)
        gradient_of_s = ds * dy[:, None]
        slopes = -xi * gradient_of_s
        slopes[0] -= s
        curvatures = -xi * (dds * _outer(dy)[:, :, None] + ds * ddy[:, :, None])
        curvatures[0] -= gradient_of_s
        curvatures[:, 0] -= gradient_of_s
        return log_counts - xi * s, slopes, curvatures

    def _integrate(self, start: Point, t_end: float, **options: Any) -> Any:
        solution = solve_ivp(
            lambda _, point: -self.gradient(*point),
            (0.0, t_end),
            _finite(start),
            method="LSODA",
            jac=lambda _, point: -self.hessian(*point),
            rtol=1e-9,
            atol=1e-12,
            **options,
        )
        if not solution.success:
            raise MechinterpError(f"gradient flow from {start} stopped at t = {solution.t[-1]:g}: {solution.message}")
        return solution

    def _table(self, points: Float[np.ndarray, "3 time"], index: pd.Index) -> pd.DataFrame:
        columns = dict(zip(("xi", "alpha", "beta1"), points, strict=True))
        return pd.DataFrame(columns | {"loss": self.loss(*points)}, index=index)


def _log_sum(exponents: Float[np.ndarray, "2 *shape"]) -> Float[np.ndarray, "*shape"]:
    """log(1 + Σ_k e^{u_k})."""
    return np.logaddexp.reduce(exponents, axis=0, initial=0.0)


def _shares(exponents: Float[np.ndarray, "2 *shape"]) -> Float[np.ndarray, "2 *shape"]:
    """The probability that the classifier gives to all labels of class k."""
    return np.exp(exponents - _log_sum(exponents))


def _outer(vectors: Float[np.ndarray, "3 *rest"]) -> Float[np.ndarray, "3 3 *rest"]:
    return vectors[:, None] * vectors[None, :]


def _broadcast(*values: Values) -> tuple[Float[np.ndarray, "*shape"], ...]:
    return np.broadcast_arrays(*(np.asarray(value, dtype=float) for value in values))


def _positive(name: str, value: float) -> float:
    if not (np.isfinite(value) and value > 0):
        raise MechinterpError(f"{name} is {value}; expected a positive number")
    return value


def _finite(point: Point) -> Float[np.ndarray, "3"]:
    values = np.asarray(point, dtype=float)
    if values.shape != (3,) or not np.isfinite(values).all():
        raise MechinterpError(f"point {point}: expected three finite numbers (ξ, α, β₁)")
    return values
