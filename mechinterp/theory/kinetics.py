"""Kinetics of memorisation and in-context learning in a one-layer network (Nguyen & Reddy 2024).

The minimal model adds two logits: φ(x) of an MLP, which may memorise K items with labels ±1, and w times the labels of
the context, weighted by attention e^{β x·x_target}. With D → ∞ only the target's copy has x·x_target = 1, so that with
N pairs, of which n₊ carry the label +1, the loss of a target whose label is +1 is (eqs 4, 5 and 21)

    ℒ(w, β) = −⟨ (2 n₊/N) log σ(φ⁺ + w (e^β + 2n₊ − N − 1) / (e^β + N − 1)) ⟩     n₊ ~ Binomial(N, ½), φ⁺ ~ P⁺

where P⁺ is the distribution of the MLP's logits over the items, each times its label. Near the origin (eqs 6 to 8)

    ℒ ≈ ⟨log(1 + e^{−φ⁺})⟩ − (c₁/N) (e^β w − c₂ w²/2)
    dw/dt = (c₁/N) (e^β − c₂ w)      dβ/dt = (c₁/N) w e^β
    c₁ = ⟨σ(−φ⁺)⟩      c₂ = 1 − ⟨σ(−φ⁺)²⟩/c₁      c₃ = ⟨e^{−φ⁺}⟩

c₁ measures how much is left to learn: memorisation by the MLP slows the circuit down, through c₁ and c₂ only. Time
enters as I_K(t) = 2 ∫₀ᵗ c₁ dt′, which equals t as long as nothing is memorised (c₁ = ½); I_K(∞) is the time that
memorisation takes.

Consequences and their accuracy (the tests compare them with the integrated flow):

* With c₂ w left out, β − β₀ = (w² − w₀²)/2 and I_K(t_ICL) = N √(2π) e^{−β₀ + w₀²/2} erfc(w₀/√2), whatever the sign of
  w₀ (eq. 34 for w₀ ≥ 0; N √(2π) e^{−β₀} for w₀ = 0). With c₂ = ½ this is 8 to 10 % too short for |β₀| ≤ 0.1.
* For −β₀ ≫ 1, w follows e^β/c₂, and ∫ c₁/c₂ dt = N e^{−2β₀} / 2. **Eq. 37 has twice that**: its integral of e^{−2β}
  from β₀ on lacks the factor ½. The integrated flow has 0.5002 N e^{−2β₀} at β₀ = −6; the scaling is the paper's.
* In-context learning comes first if t_ICL < I_K(∞). With I_K(∞) = a K^ν, it does from K* = (t_ICL/a)^{1/ν} on.
* After it, with a decay λ_w of w alone, w follows W(c₃/λ_w), where W is Lambert's function: w falls with c₃.
* In 𝒟′, where exactly N/2 labels are +1, ℒ ≈ ⟨log(1 + e^{−φ⁺})⟩ − (c₁/N) w (e^β − 1): a saddle at the origin, from
  which w and β either both rise or both fall (eq. 9).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import erfc, expit, gammaln, lambertw, log_expit

from mechinterp.errors import MechinterpError

Values = int | float | Float[np.ndarray, "..."]
"""One value or an array."""
Number = int | float
Time = Callable[[float], Number]
"""A quantity as a function of time."""

UNLEARNED = 0.5
"""c₁ and c₂ while φ = 0."""
MOST_NEGATIVE = -12.0
"""β₀ below which the flow is not integrated: t_ICL grows as e^{−2β₀}."""
FAR = 12.0
"""Height of β above its start, or above 0, from which the time to infinity is negligible."""


@dataclass(frozen=True)
class OrderParameters:
    """The moments of an MLP's logits by which it acts on w and β (Nguyen & Reddy 2024, eqs 14, 29 and 30)."""

    c1: float
    """⟨σ(−φ⁺)⟩, one minus the probability of the right label; ½ at the start, 0 when all is memorised."""
    c2: float
    """1 − ⟨σ(−φ⁺)²⟩/c₁; ½ at the start, 1 when all is memorised."""
    c3: float
    """⟨e^{−φ⁺}⟩; about 1 at the start, 0 when all is memorised."""


def order_parameters(logits: Float[np.ndarray, "items"]) -> OrderParameters:
    """c₁, c₂ and c₃ of the MLP's logits, each times its item's label (±1)."""
    if not len(logits):
        raise MechinterpError("there are no logits; give one for each item")
    phi = np.asarray(logits, dtype=float)
    wrong = expit(-phi)
    c1 = float(wrong.mean())
    c2 = 1 - float((wrong**2).mean()) / c1 if c1 else 1.0
    return OrderParameters(c1, c2, float(np.exp(-phi).mean()))


@dataclass(frozen=True)
class Kinetics:
    """The loss as a function of w and β, and gradient flow on it."""

    n_pairs: int = 100
    """N, at least 2."""
    balanced: bool = False
    """Whether exactly N/2 of the labels are +1 (𝒟′)."""

    def __post_init__(self):
        if self.n_pairs < 2:
            raise MechinterpError(f"n_pairs (N={self.n_pairs}): a context needs at least 2 pairs")
        if self.balanced and self.n_pairs % 2:
            raise MechinterpError(f"n_pairs (N={self.n_pairs}) is odd: half of the labels cannot be +1")

    def loss(self, w: Values, beta: Values, logits: Float[np.ndarray, "items"] | None = None) -> Values:
        """ℒ in nats, exact for N pairs (eq. 21); `logits` are φ⁺, 0 by default."""
        N, (counts, odds) = self.n_pairs, self._counts()
        w, e = np.asarray(w, dtype=float)[..., None], np.exp(np.asarray(beta, dtype=float))[..., None]
        attention = w * (e + 2 * counts - N - 1) / (e + N - 1)
        phi = _logits(logits)
        losses = -log_expit(attention[..., None] + phi).mean(axis=-1)
        return (odds * losses).sum(axis=-1)[()]

    def expanded_loss(self, w: Values, beta: Values, logits: Float[np.ndarray, "items"] | None = None) -> Values:
        """ℒ to order 1/N, for |w| ≪ √N and e^β ≪ N (eqs 6 and 9)."""
        phi = _logits(logits)
        c = order_parameters(phi)
        w, e = np.asarray(w, dtype=float), np.exp(np.asarray(beta, dtype=float))
        gained = w * (e - 1) if self.balanced else e * w - c.c2 * w**2 / 2
        return (-log_expit(phi).mean() - c.c1 / self.n_pairs * gained)[()]

    def gradient(
        self, w: Values, beta: Values, logits: Float[np.ndarray, "items"] | None = None
    ) -> tuple[Values, Values]:
        """∂ℒ/∂w and ∂ℒ/∂β of the exact loss (eq. 21)."""
        counts, odds = self._counts()
        w, e = np.asarray(w, dtype=float)[..., None], np.exp(np.asarray(beta, dtype=float))[..., None]
        total = e + self.n_pairs - 1
        share = (e + 2 * counts - self.n_pairs - 1) / total
        wrong = odds * expit(-(w * share)[..., None] - _logits(logits)).mean(axis=-1)
        by_w, by_beta = -wrong * share, -wrong * w * e * 2 * (self.n_pairs - counts) / total**2
        return by_w.sum(axis=-1)[()], by_beta.sum(axis=-1)[()]

    def descent(self, w: Number, beta: Number, duration: Number, *, n_points: int = 500) -> pd.DataFrame:
        """Gradient flow on the exact loss where nothing is memorised: columns ``t``, ``w``, ``beta``; see `flow`."""
        times = np.linspace(0.0, float(duration), n_points)
        solution = _integrated(
            lambda t, state: [-float(slope) for slope in self.gradient(float(state[0]), float(state[1]))],
            (w, beta),
            duration,
            t_eval=times,
        )
        return pd.DataFrame({"t": times, "w": solution.y[0], "beta": solution.y[1]})

    def _counts(self) -> tuple[Float[np.ndarray, "counts"], Float[np.ndarray, "counts"]]:
        """The values of n₊ in a context with the target's copy, and their probabilities 2 n₊/N · P(n₊)."""
        N = self.n_pairs
        counts = np.array([N / 2]) if self.balanced else np.arange(N + 1.0)
        return counts, 2 * counts / N * (np.ones(1) if self.balanced else _binomial(counts, N))

    def velocity(
        self, w: Values, beta: Values, c1: Values = UNLEARNED, c2: Values = UNLEARNED
    ) -> tuple[Values, Values]:
        """dw/dt and dβ/dt near the origin (eqs 7 and 8; in 𝒟′ from eq. 9)."""
        e = np.exp(beta)
        return c1 / self.n_pairs * (e - 1 if self.balanced else e - c2 * w), c1 / self.n_pairs * w * e

    def flow(
        self,
        w: Number,
        beta: Number,
        duration: Number,
        *,
        c1: Number | Time = UNLEARNED,
        c2: Number | Time = UNLEARNED,
        n_points: int = 500,
    ) -> pd.DataFrame:
        """The flow of w and β near the origin, at `n_points` times up to `duration`: columns ``t``, ``w``, ``beta``.

        t is in steps × learning rate. c₁ and c₂ may be functions of time, as measured on an MLP. β diverges in a finite
        time: the path ends at β = max(β₀, 0) + `FAR`.
        """
        at1, at2 = (c if callable(c) else lambda t, c=c: c for c in (c1, c2))

        def escaped(t: float, state: Any) -> float:
            return float(state[1] - max(beta, 0.0) - FAR)

        escaped.terminal = True  # type: ignore[attr-defined]
        solution = _integrated(
            lambda t, state: self.velocity(float(state[0]), float(state[1]), at1(float(t)), at2(float(t))),
            (w, beta),
            duration,
            events=escaped,
            dense_output=True,
        )
        times = np.linspace(0.0, solution.t[-1], n_points)
        path = solution.sol(times)
        return pd.DataFrame({"t": times, "w": path[0], "beta": path[1]})

    def time_to_learn(
        self, w: Number = 0.0, beta: Number = 0.0, *, c1: Number | Time = UNLEARNED, c2: Number | Time = UNLEARNED
    ) -> float:
        """t_ICL, the time at which β diverges, by integrating the flow; infinite if it does not."""
        if beta < MOST_NEGATIVE:
            raise MechinterpError(f"β₀ = {beta:g} is too far below 0 to integrate; use late_learning_integral")
        longest = 1e4 * self.n_pairs * np.exp(2 * abs(min(beta, 0.0)))
        path = self.flow(w, beta, longest, c1=c1, c2=c2, n_points=2)
        return float(path["t"].iloc[-1]) if path["beta"].iloc[-1] >= max(beta, 0.0) + FAR - 1e-6 else np.inf

    def learning_integral(self, w: Values = 0.0, beta: Values = 0.0) -> Values:
        """I_K(t_ICL), which is t_ICL where nothing is memorised, for |w₀|, |β₀| ≪ 1 (eq. 34, extended to w₀ < 0).

        N √(2π) e^{−β₀ + w₀²/2} erfc(w₀/√2). Not for 𝒟′, where the origin is a saddle: MechinterpError.
        """
        self._require_unbalanced()
        w = np.asarray(w, dtype=float)
        return (self.n_pairs * np.sqrt(2 * np.pi) * np.exp(w**2 / 2 - np.asarray(beta)) * erfc(w / np.sqrt(2)))[()]

    def late_learning_integral(self, beta: Values) -> Values:
        """∫ c₁/c₂ dt up to t_ICL for −β₀ ≫ 1: N e^{−2β₀} / 2 (eq. 37 without its factor 2); not for 𝒟′ either."""
        self._require_unbalanced()
        return self.n_pairs * np.exp(-2 * np.asarray(beta, dtype=float))[()] / 2

    def _require_unbalanced(self) -> None:
        if self.balanced:
            raise MechinterpError(
                "with balanced contexts (𝒟′) the origin is a saddle and t_ICL has no formula; integrate: time_to_learn"
            )

    def threshold(self, prefactor: float, exponent: float, beta: Values = 0.0) -> Values:
        """K* = (t_ICL/a)^{1/ν}, from which on in-context learning comes first, where I_K(∞) = a K^ν (eq. 13)."""
        if prefactor <= 0 or exponent <= 0:
            raise MechinterpError(f"I_K(∞) = {prefactor:g} K^{exponent:g} does not grow with K: both must be positive")
        return (self.learning_integral(0.0, beta) / prefactor) ** (1 / exponent)


def memorised(t: Float[np.ndarray, "times"], c1: Float[np.ndarray, "times"]) -> Float[np.ndarray, "times"]:
    """I_K(t) = 2 ∫₀ᵗ c₁ dt′ by the trapezoidal rule (eq. 10); t in steps × learning rate, ascending from 0."""
    from scipy.integrate import cumulative_trapezoid  # its package takes a while to import

    return 2 * cumulative_trapezoid(c1, t, initial=0.0)


def transient_w(c3: Values, decay: Values) -> Values:
    """W(c₃/λ_w): the fixed point of w under decay when β is large, w e^w = c₃/λ_w (eqs 15 and 45)."""
    if np.any(np.asarray(decay) <= 0):
        raise MechinterpError("without decay w does not come to rest: λ_w must be positive")
    return np.real(lambertw(np.asarray(c3) / np.asarray(decay)))[()]


def other_loss(loss: Values) -> Values:
    """−½ log of a small loss (eqs 46 and 47): that of IWL once ICL is acquired, and that of ICL once ICL has faded.

    A network that is confident of an answer which is right for half of the sequences has, on average, a loss of half
    its logit; and that logit is −log of its loss on sequences for which the answer is right.
    """
    return -np.log(loss) / 2


def _binomial(k: Float[np.ndarray, "counts"], n: int) -> Float[np.ndarray, "counts"]:
    """P(Binomial(n, ½) = k)."""
    return np.exp(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1) - n * np.log(2))


def _logits(logits: Float[np.ndarray, "items"] | None) -> Float[np.ndarray, "items"]:
    """φ⁺ of the items; 0 of one item by default."""
    return np.zeros(1) if logits is None else np.asarray(logits, dtype=float)


def _integrated(
    slopes: Callable[[Any, Any], Any], start: tuple[Number, Number], duration: Number, **options: Any
) -> Any:
    """SciPy's solution of d(w, β)/dt = slopes(t, (w, β)) from `start`; MechinterpError if it cannot be integrated."""
    from scipy.integrate import solve_ivp

    state = np.array(start, dtype=float)
    solution = solve_ivp(slopes, (0.0, float(duration)), state, method="LSODA", rtol=1e-8, atol=1e-10, **options)
    if not solution.success:
        w, beta = start
        raise MechinterpError(f"the flow from w = {w}, β = {beta} cannot be integrated: {solution.message}")
    return solution
