"""The kinetics of memorising and in-context learning: each formula against the numbers it stands for."""

import numpy as np
import pytest

from mechinterp.errors import MechinterpError
from mechinterp.theory.kinetics import Kinetics, memorised, order_parameters, other_loss, transient_w

RNG = np.random.default_rng(0)


def test_order_parameters_of_known_logits():
    start = order_parameters(np.zeros(5))
    assert (start.c1, start.c2, start.c3) == (0.5, 0.5, 1.0)
    known = order_parameters(np.log([3.0, 1.0]))  # σ(−φ) = 1/4 and 1/2
    assert (known.c1, known.c2) == (pytest.approx(3 / 8), pytest.approx(1 - (5 / 32) / (3 / 8)))
    assert known.c3 == pytest.approx(2 / 3)
    done = order_parameters(np.full(3, 800.0))
    assert (done.c1, done.c2, done.c3) == (0.0, 1.0, 0.0)
    with pytest.raises(MechinterpError, match="no logits"):
        order_parameters(np.zeros(0))


def sampled_loss(w: float, beta: float, N: int, balanced: bool, phi: np.ndarray, n: int = 400_000) -> float:
    """Contexts drawn one by one: labels, a target among them, attention, cross-entropy."""
    if balanced:
        labels = np.sort(RNG.permuted(np.tile([1, -1], (n, N // 2)), axis=1), axis=1)
        target = RNG.integers(N, size=n)
    else:
        labels, target = RNG.choice([-1, 1], size=(n, N)), np.zeros(n, int)
    weights = np.ones((n, N))
    weights[np.arange(n), target] = np.exp(beta)
    seen = (weights * labels).sum(axis=1) / weights.sum(axis=1)
    label = labels[np.arange(n), target]
    logit = label * w * seen + RNG.choice(phi, size=n)
    return float(np.logaddexp(0, -logit).mean())


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("w", "beta"), [(0.0, 0.0), (1.5, 0.7), (-2.0, 1.0), (4.0, 5.0), (1.0, -2.0)])
def test_the_loss_is_that_of_contexts_drawn_one_by_one(w, beta, balanced):
    phi = np.array([0.3, -0.5, 2.0])
    expected = sampled_loss(w, beta, 10, balanced, phi)
    assert Kinetics(10, balanced).loss(w, beta, phi) == pytest.approx(expected, abs=0.006)


def test_the_loss_takes_many_points():
    found = Kinetics(10).loss(np.array([[0.0, 1.0]]), np.array([[0.5], [2.0]]))
    assert isinstance(found, np.ndarray)
    assert found.shape == (2, 2)
    assert found[1, 1] == Kinetics(10).loss(1.0, 2.0)
    assert Kinetics(10).loss(0.0, 3.0) == pytest.approx(np.log(2))


@pytest.mark.parametrize("balanced", [False, True])
def test_near_the_origin_the_expansion_holds_to_order_one_over_n(balanced):
    """What is left is of order N⁻²: with ten times the pairs, a hundredth."""
    phi, left = RNG.normal(1, 1, size=50), []
    for N in (200, 2_000):
        kinetics = Kinetics(N, balanced)
        left.append(abs(kinetics.loss(0.3, 0.2, phi) - kinetics.expanded_loss(0.3, 0.2, phi)))
    assert left[0] < 2e-5
    assert left[1] == pytest.approx(left[0] / 100, rel=0.15)


@pytest.mark.parametrize("balanced", [False, True])
def test_the_flow_goes_down_the_expanded_loss(balanced):
    kinetics, w, beta, phi, h = Kinetics(100, balanced), 0.4, -0.3, RNG.normal(size=20), 1e-5
    c = order_parameters(phi)
    slope_w = (kinetics.expanded_loss(w + h, beta, phi) - kinetics.expanded_loss(w - h, beta, phi)) / (2 * h)
    slope_b = (kinetics.expanded_loss(w, beta + h, phi) - kinetics.expanded_loss(w, beta - h, phi)) / (2 * h)
    assert kinetics.velocity(w, beta, c.c1, c.c2) == (
        pytest.approx(-slope_w, rel=1e-5),
        pytest.approx(-slope_b, rel=1e-5),
    )


@pytest.mark.parametrize("beta", [-0.1, 0.0, 0.1])
def test_the_time_to_learn_close_to_the_origin(beta):
    """The formula leaves out c₂ w: it is the shorter one, by less than 10 % of the integrated time; exact without."""
    kinetics = Kinetics(100)
    integrated = kinetics.time_to_learn(0.0, beta)
    assert 0.9 < kinetics.learning_integral(0.0, beta) / integrated < 0.93
    assert kinetics.learning_integral(0.0, beta) == pytest.approx(kinetics.time_to_learn(0.0, beta, c2=0.0), rel=1e-4)


@pytest.mark.parametrize("w", [-0.8, -0.2, 0.2, 0.8])
def test_the_time_to_learn_from_other_w(w):
    """Eq. 34 has the upper incomplete gamma function, of w₀²/2; for w₀ < 0, w first has to come to 0."""
    from scipy.special import gamma, gammaincc

    kinetics = Kinetics(100)
    assert kinetics.learning_integral(w, 0.1) == pytest.approx(kinetics.time_to_learn(w, 0.1, c2=0.0), rel=1e-4)
    upper = gamma(0.5) * gammaincc(0.5, w**2 / 2)
    published = 100 * np.sqrt(2) * upper * np.exp(-0.1 + w**2 / 2)
    if w > 0:
        assert kinetics.learning_integral(w, 0.1) == pytest.approx(published, rel=1e-12)
    else:
        assert kinetics.learning_integral(w, 0.1) > 1.3 * published


@pytest.mark.parametrize(("beta", "within"), [(-4.0, 0.02), (-6.0, 0.001)])
def test_the_time_to_learn_from_far_below(beta, within):
    """With c₁ = c₂ = ½ the integral of c₁/c₂ is the time itself."""
    kinetics = Kinetics(100)
    assert kinetics.late_learning_integral(beta) == pytest.approx(kinetics.time_to_learn(0.0, beta), rel=within)


def test_the_time_to_learn_scales_with_the_context_and_with_what_is_left_to_learn():
    assert Kinetics(400).time_to_learn(0.1, 0.1) == pytest.approx(4 * Kinetics(100).time_to_learn(0.1, 0.1), rel=1e-6)
    slow = Kinetics(100).time_to_learn(0.1, 0.1, c1=0.25)
    assert slow == pytest.approx(2 * Kinetics(100).time_to_learn(0.1, 0.1), rel=1e-6)


def test_measured_memorisation_decides_whether_it_is_learned_at_all():
    """c₁ = ½ e^{−t/τ}: I_K(∞) = τ. The flow escapes if that is more than it takes, and never does if it is less."""
    kinetics = Kinetics(100)
    needed = kinetics.time_to_learn()
    for share, learned in ((1.05, True), (0.95, False)):
        tau = share * needed
        time = kinetics.time_to_learn(c1=lambda t, tau=tau: 0.5 * np.exp(-t / tau))
        assert np.isfinite(time) == learned
        if learned:
            assert tau * (1 - np.exp(-time / tau)) == pytest.approx(needed, rel=1e-3)  # I_K(t_ICL)
    t = np.linspace(0, 5_000, 20_001)
    assert memorised(t, 0.5 * np.exp(-t / 300))[-1] == pytest.approx(300, rel=1e-5)


def test_balanced_contexts_have_a_saddle_at_the_origin():
    kinetics = Kinetics(100, balanced=True)
    up, down = kinetics.flow(0.05, 0.05, 3_000), kinetics.flow(-0.05, -0.05, 3_000)
    assert up["beta"].iloc[-1] > 5
    assert down["w"].iloc[-1] < -1
    assert down["beta"].iloc[-1] < -1
    assert kinetics.time_to_learn(-0.05, -0.05) == np.inf
    assert Kinetics(100).time_to_learn(-0.05, -0.05) < np.inf
    assert kinetics.velocity(0.0, 0.0) == (0.0, 0.0)


def test_the_threshold_is_where_memorising_takes_as_long():
    kinetics = Kinetics(100)
    K = kinetics.threshold(2.5, 0.7, beta=0.1)
    np.testing.assert_allclose(2.5 * K**0.7, kinetics.learning_integral(0.0, 0.1))
    assert Kinetics(200).threshold(2.5, 0.7) / kinetics.threshold(2.5, 0.7) == pytest.approx(2 ** (1 / 0.7))
    with pytest.raises(MechinterpError, match="does not grow"):
        kinetics.threshold(2.5, -0.1)


def test_under_decay_w_follows_lamberts_function():
    c3, decay = np.geomspace(1e-8, 1, 30), 1e-4
    w = transient_w(c3, decay)
    np.testing.assert_allclose(c3 * np.exp(-w), decay * w, rtol=1e-8)  # the forces of eq. 44 are equal
    assert transient_w(np.e * decay, decay) == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(MechinterpError, match="without decay"):
        transient_w(1.0, 0.0)


def test_one_loss_from_the_other():
    """A logit w for the answer that is right for all ICL sequences, and for every second IWL sequence."""
    for w in (6.0, 10.0):
        icl, iwl = np.logaddexp(0, -w), (np.logaddexp(0, -w) + np.logaddexp(0, w)) / 2
        assert other_loss(icl) == pytest.approx(iwl, rel=2 * np.exp(-w))


def test_odd_contexts_are_refused():
    with pytest.raises(MechinterpError, match="N=7"):
        Kinetics(7, balanced=True)
    with pytest.raises(MechinterpError, match="at least 2"):
        Kinetics(1)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("logits", [None, np.array([-0.5, 0.3, 2.0])])
def test_the_gradient_is_that_of_the_loss(balanced, logits):
    kinetics, h = Kinetics(12, balanced), 1e-5
    w, beta = np.array([0.0, 1.5, -2.0, 4.0]), np.array([0.0, -1.0, 2.0, 5.0])
    by_w, by_beta = kinetics.gradient(w, beta, logits)
    numeric = kinetics.loss(w + h, beta, logits) - kinetics.loss(w - h, beta, logits)
    np.testing.assert_allclose(by_w, numeric / (2 * h), atol=1e-9)
    numeric = kinetics.loss(w, beta + h, logits) - kinetics.loss(w, beta - h, logits)
    np.testing.assert_allclose(by_beta, numeric / (2 * h), atol=1e-9)


def test_descent_is_the_expanded_flow_near_the_origin_and_only_goes_down():
    kinetics = Kinetics(2_000)
    exact, expanded = kinetics.descent(0.2, 0.1, 800.0), kinetics.flow(0.2, 0.1, 800.0)
    np.testing.assert_allclose(exact[["w", "beta"]], expanded[["w", "beta"]], rtol=0.02)
    path = Kinetics(20).descent(0.0, 0.0, 500.0)
    losses = Kinetics(20).loss(path["w"].to_numpy(), path["beta"].to_numpy())
    assert isinstance(losses, np.ndarray)
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < 0.05


def test_what_has_no_formula_is_refused():
    for formula in ("learning_integral", "late_learning_integral"):
        with pytest.raises(MechinterpError, match="saddle and t_ICL has no formula"):
            getattr(Kinetics(8, balanced=True), formula)(0.0)
    with pytest.raises(MechinterpError, match="saddle"):
        Kinetics(8, balanced=True).threshold(1.0, 1.0)
    with pytest.raises(MechinterpError, match="β₀ = -20 is too far below 0"):
        Kinetics(8).time_to_learn(beta=-20)
