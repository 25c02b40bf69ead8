"""The landscape against its closed forms, its derivatives against differences, its flow against what must follow."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.landscape import LossLandscape, network, surface
from mechinterp.cli import run_command
from mechinterp.errors import MechinterpError
from mechinterp.theory.landscape import ORIGIN, Competitors, Landscape

PAPER, EQUAL = Landscape(32, 8), Landscape(8, 8)
sizes = st.tuples(st.integers(2, 40), st.integers(1, 40)).map(lambda pair: (max(pair), min(pair)))
landscapes = st.builds(lambda size, rivals: Landscape(size[0], size[1], rivals), sizes, st.sampled_from(Competitors))
few = settings(deadline=None, max_examples=60, derandomize=True)
points = st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.floats(-6, 6))


def eq10(L, N, N1, xi, alpha, beta1):
    """Equation 10, written down as it stands; for real and complex arguments."""
    y = alpha * np.exp(beta1) / (np.exp(beta1) + N1)
    z = xi * (np.exp(y) - 1) / (np.exp(y) + 2 * N)
    z_out = xi * np.exp(y) / (np.exp(y) + 2 * N)
    return np.log(1 + (N - 1) * np.exp(-z) + (L - N) * np.exp(-z_out))


def reference(landscape, *point):
    """Equation 10, averaged over the places of the correct label that the landscape tells apart."""
    L, N = landscape.n_labels, landscape.n_pairs
    rivals = [N] if landscape.competitors is Competitors.n_pairs else [2 * tau - 1 for tau in range(1, N + 1)]
    return np.mean([eq10(L, N, N1, *point) for N1 in rivals], axis=0)


@few
@given(landscapes, points)
def test_the_loss_is_equation_10(landscape, point):
    assert landscape.loss(*point) == pytest.approx(reference(landscape, *point), rel=1e-9, abs=1e-12)


@few
@given(landscapes)
def test_loss_and_gradient_at_the_origin(landscape):
    L, N = landscape.n_labels, landscape.n_pairs
    assert landscape.loss(*ORIGIN) == pytest.approx(np.log(L), rel=1e-14)
    np.testing.assert_allclose(landscape.gradient(*ORIGIN), [-(L - N) / (L * (2 * N + 1)), 0, 0], atol=1e-15)


def test_the_papers_number():
    assert PAPER.gradient(*ORIGIN)[0] == pytest.approx(-0.0441, abs=5e-5)


@few
@given(landscapes, points)
def test_the_gradient_is_the_complex_step_derivative(landscape, point):
    """Im f(x + ih)/h has no cancellation, so it is good to rounding; a wrong term of 1e-8 would show."""
    steps = np.array(point)[:, None] + 1e-30j * np.eye(3)
    np.testing.assert_allclose(
        landscape.gradient(*point), reference(landscape, *steps).imag / 1e-30, rtol=1e-8, atol=1e-10
    )


@few
@given(landscapes, points)
def test_the_hessian_is_the_difference_of_gradients(landscape, point):
    """Central differences of fourth order, h = 1e-3: good to about 1e-10."""
    h, x = 1e-3, np.array(point)[:, None]
    near, far = (
        landscape.gradient(*(x + each * np.eye(3))) - landscape.gradient(*(x - each * np.eye(3))) for each in (h, 2 * h)
    )
    expected = (8 * near - far) / (12 * h)
    scale = 1 + np.abs(expected).max()
    np.testing.assert_allclose(landscape.hessian(*point) / scale, expected / scale, atol=1e-8)


def test_derivatives_broadcast():
    xi, alpha = np.linspace(-3, 3, 5), np.linspace(-2, 4, 7)[:, None]
    for landscape in (PAPER, Landscape(11, 5, "exact")):
        assert landscape.loss(xi, alpha, 0.5).shape == (7, 5)
        assert landscape.gradient(xi, alpha, 0.5).shape == (3, 7, 5)
        assert landscape.hessian(xi, alpha, 0.5).shape == (3, 3, 7, 5)
        point = (xi[1], alpha[4, 0], 0.5)
        np.testing.assert_allclose(landscape.gradient(xi, alpha, 0.5)[:, 4, 1], landscape.gradient(*point), rtol=1e-14)
        np.testing.assert_allclose(landscape.hessian(xi, alpha, 0.5)[..., 4, 1], landscape.hessian(*point), rtol=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("landscape", [PAPER, EQUAL, Landscape(5, 1), Landscape(32, 8, "exact")])
def test_nothing_overflows(landscape):
    far = np.array([-500.0, -3.0, 0.0, 3.0, 500.0])
    grid = np.meshgrid(far, far, far)
    for values in (landscape.loss(*grid), landscape.gradient(*grid), landscape.hessian(*grid)):
        assert np.isfinite(values).all()
    assert landscape.loss(500, 500, 500) == pytest.approx(0, abs=1e-200)
    assert landscape.loss(-500, 500, 500) == pytest.approx(500 + np.log(landscape.n_labels - 1), rel=1e-12)


def test_alpha_and_beta1_enter_through_the_match_alone():
    xi, alpha, beta1 = 3.0, -2.5, 0.7
    assert PAPER.loss(xi, PAPER.match(alpha, beta1), np.inf) == pytest.approx(PAPER.loss(xi, alpha, beta1), rel=1e-14)
    expected = np.mean([alpha * np.exp(beta1) / (np.exp(beta1) + 2 * tau - 1) for tau in range(1, 9)])
    assert Landscape(32, 8, "exact").match(alpha, beta1) == pytest.approx(expected, rel=1e-14)


def test_with_one_pair_both_choices_of_competitors_are_the_same():
    exact, mean = Landscape(7, 1, "exact"), Landscape(7, 1)
    for point in [(1.0, 2.0, 3.0), (-4.0, 0.3, -1.0)]:
        assert exact.loss(*point) == mean.loss(*point)
        assert (exact.hessian(*point) == mean.hessian(*point)).all()


def test_the_flow_begins_with_the_powers_1_2_and_4_of_time():
    """Known answer: ξ = a t, dα/dt = c ξ, dβ₁/dt = c N/(N+1) ξ α, where c = −∂²ℒ/∂ξ∂α at the origin."""
    L, N, t = 32, 8, 2.0
    a = (L - N) / (L * (2 * N + 1))
    # b = 1/(2N+1): b(1 − b) = 2N/(2N+1)²; times 1 + 1/2N for the N − 1 labels of the context, and 1/(N+1) for layer 1
    slope = 2 * N / (2 * N + 1) ** 2
    # second term: −⟨s⟩⟨∂s/∂α⟩·ξ and so on vanish at ξ = 0
    c = slope * ((N - 1) / L * (2 * N + 1) / (2 * N) + (L - N) / L) / (N + 1)
    assert -PAPER.hessian(*ORIGIN)[0, 1] == pytest.approx(c, rel=1e-12)
    end = PAPER.flow(t_end=t, n_points=2).iloc[-1]
    assert end["xi"] == pytest.approx(a * t, rel=0.01)
    assert end["alpha"] == pytest.approx(c * a * t**2 / 2, rel=0.01)
    assert end["beta1"] == pytest.approx(c**2 * a**2 * N / (N + 1) * t**4 / 8, rel=0.01)


def test_descent_is_the_flow_to_first_order_in_the_learning_rate():
    flow = PAPER.flow(t_end=100.0, n_points=101)
    errors = []
    for learning_rate in (0.1, 0.05):
        every = round(1 / learning_rate)
        descent = PAPER.descend(steps=100 * every, learning_rate=learning_rate)
        assert descent.index.name == "step"
        errors.append(np.abs(descent.iloc[::every].to_numpy() - flow.to_numpy()).max())
    assert errors[1] < 0.15
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("start", [ORIGIN, (-1.0, 2.0, 0.5), (2.0, -3.0, 1.0), (-1.0, -5.0, 0.0)])
@pytest.mark.parametrize("landscape", [PAPER, EQUAL, Landscape(32, 8, "exact")])
def test_the_loss_never_rises_and_falls_by_the_squared_gradient(landscape, start):
    flow = landscape.flow(start, 50.0)
    assert np.diff(flow["loss"]).max() <= 1e-9
    squared = np.square(landscape.gradient(*flow[["xi", "alpha", "beta1"]].to_numpy().T)).sum(axis=0)
    spent = np.sum((squared[1:] + squared[:-1]) / 2 * np.diff(flow.index))
    assert flow["loss"].iloc[0] - flow["loss"].iloc[-1] == pytest.approx(spent, rel=1e-3, abs=1e-9)


def half_way(flow, name, then):
    """When a parameter has come half as far as it is at time `then`."""
    goal = np.interp(then, flow.index, flow[name]) / 2
    return (flow[name] >= goal).idxmax()


def test_more_labels_than_pairs_slow_phase_then_cliff():
    """Figure 7a. The slow phase takes 94 % of the time and a tenth of the loss. At log 8 is no plateau: the cliff
    passes it."""
    when = PAPER.transition_time()
    assert when == pytest.approx(97.494, abs=0.001)
    flow = PAPER.flow(t_end=200.0, n_points=20001)
    assert np.interp(when, flow.index, flow["loss"]) == pytest.approx(np.log(32) / 2, abs=1e-3)
    assert flow["loss"].loc[92.0:].iloc[0] > 0.9 * np.log(32)
    assert flow["loss"].loc[103.0:].iloc[0] < 0.05 * np.log(32)
    near_guessing = flow[np.abs(flow["loss"] - np.log(8)) < 0.2]
    assert np.ptp(near_guessing.index) < 1


def test_more_labels_than_pairs_xi_goes_first():
    """Figure 7b. ξ is half-way long before the cliff, α and then β₁ shortly before it; on it all are at their fastest
    within 0.6, and there β₁ leads by a little: what is learned one after another is the way to the cliff."""
    when, flow = PAPER.transition_time(), PAPER.flow(t_end=200.0, n_points=20001)
    half = {name: half_way(flow, name, when) for name in ("xi", "alpha", "beta1")}
    assert half == pytest.approx({"xi": 57.3, "alpha": 90.7, "beta1": 93.6}, abs=0.2)
    speed = -PAPER.gradient(*flow[["xi", "alpha", "beta1"]].to_numpy().T)
    fastest = dict(zip(half, flow.index[speed.argmax(axis=1)], strict=True))
    assert fastest == pytest.approx({"xi": 98.06, "alpha": 97.76, "beta1": 97.51}, abs=0.03)


def test_exact_competitors_bring_the_cliff_forward():
    """Early labels have fewer tokens to compete with; they pull the others along."""
    assert Landscape(32, 8, Competitors.exact).transition_time() == pytest.approx(80.354, abs=0.001)
    exact, mean = Landscape(8, 8, "exact"), EQUAL
    start = (1e-3, 1e-3, 0.0)
    assert exact.transition_time(start) / mean.transition_time(start) == pytest.approx(0.656, abs=0.001)


@few
@given(landscapes.filter(lambda each: each.n_pairs > 1), st.floats(-3, 4))
def test_every_fixed_point_is_a_strict_saddle_at_log_L(landscape, beta1):
    point = landscape.fixed_point(beta1)
    assert (point[0], point[2]) == (0, beta1)
    assert landscape.loss(*point) == pytest.approx(np.log(landscape.n_labels), rel=1e-12)
    found = landscape.classify(point)
    assert found.kind == "saddle"
    assert found.eigenvalues[0] < 0 < found.eigenvalues[2]
    assert abs(found.eigenvalues[1]) < 1e-9 * found.eigenvalues[2]
    if landscape.competitors is Competitors.n_pairs:
        match = np.log((landscape.n_pairs - 1) / (landscape.n_labels - 1))
        assert landscape.match(*point[1:]) == pytest.approx(match, rel=1e-9, abs=1e-12)


@few
@given(st.integers(2, 100))
def test_the_saddle_at_the_origin(N):
    """Known answer: with L = N, eigenvalues ∓λ and 0, λ = (N−1)/(N(N+1)(2N+1)), along ξ = ±α and β₁."""
    rate = (N - 1) / (N * (N + 1) * (2 * N + 1))
    found = Landscape(N, N).classify(ORIGIN)
    assert (found.kind, found.eigenvalues) == ("saddle", pytest.approx((-rate, 0, rate), rel=1e-9, abs=1e-15))
    assert Landscape(N, N).hessian(*ORIGIN) @ [1, 1, 0] == pytest.approx(-rate * np.array([1, 1, 0]), abs=1e-15)
    assert Landscape(N, N, "exact").classify(ORIGIN).kind == "saddle"


def test_with_more_labels_than_pairs_the_origin_is_no_fixed_point():
    with pytest.raises(MechinterpError, match=r"no fixed point: the gradient is 0\.044; see fixed_point\(\)"):
        PAPER.classify(ORIGIN)
    with pytest.raises(MechinterpError, match="N=1"):
        Landscape(5, 1).fixed_point()


def test_a_flat_point_is_degenerate():
    assert EQUAL.classify((500.0, 500.0, 500.0)).kind == "degenerate"


@pytest.mark.parametrize(("sign", "when", "slowness"), [(1, 1219.65, 1), (-1, 1700.80, 16**2)])
def test_as_many_labels_as_pairs_two_fates_from_two_sides_of_the_saddle(sign, when, slowness):
    """Figure A.4. One start ends in the induction head. The other ends with ξ, α < 0: the classifier names the label
    that is attended least. That is no sub-optimal minimum; the loss falls to 0 too, like (2N)²/t instead of 1/t."""
    start = (sign * 1e-3, sign * 1e-3, 0.0)
    assert EQUAL.transition_time(start) == pytest.approx(when, abs=0.01)
    assert EQUAL.transition_time(start) > 12 * PAPER.transition_time(), "without the slope at the origin it is slow"
    flow = EQUAL.flow(start, 1e6, n_points=1001)
    end = flow.iloc[-1]
    assert sign * end["xi"] > 0
    assert sign * end["alpha"] > 0
    assert end["beta1"] > 0
    assert end["loss"] == pytest.approx(slowness / 1e6, rel=0.05)


def test_the_loss_3000_after_the_start():
    """What figure A.4a shows of the two fates."""
    losses = [EQUAL.flow((sign * 1e-3, sign * 1e-3, 0.0), 3000.0).iloc[-1]["loss"] for sign in (1, -1)]
    assert losses == pytest.approx([0.00056, 0.2388], rel=0.01)


def test_the_origin_is_left_in_no_time_only_if_it_is_no_fixed_point():
    assert np.isnan(EQUAL.transition_time(ORIGIN))
    assert np.isnan(PAPER.transition_time(t_end=97.0))
    assert PAPER.transition_time(t_end=98.0) == pytest.approx(97.494, abs=0.001)


def test_naming_the_label_attended_least_is_not_enough_with_more_labels_than_pairs():
    """It cannot tell the labels outside the context apart, which leaves 1 + L − N."""
    start = (-1.0, -20.0, 0.0)
    end, floor = PAPER.flow(start, 1e6, n_points=2).iloc[-1], np.log(1 + 32 - 8)
    assert floor < end["loss"] < floor + 0.005
    assert np.isnan(PAPER.transition_time(start))


def test_a_mismatch_leads_to_the_plateau_of_guessing():
    """α < 0 < ξ: the loss is log N, and most of the way is waited there."""
    start = (0.0, -4.0, 0.0)
    assert PAPER.transition_time(start) == pytest.approx(15518, rel=1e-3)
    waiting = PAPER.flow(start, 15400.0).loc[7000.0:, "loss"]
    assert np.abs(waiting - np.log(8)).max() < 0.05


@pytest.mark.parametrize("start", [ORIGIN, (0.0, -3.0, 0.0), (-1.0, -2.0, 1.0)])
def test_what_the_flow_conserves(start):
    """Known answer: dβ₁/dα = α (1 − g) with g = e^β₁/(e^β₁ + N), whose integral is β₁ + e^β₁/N − α²/2."""
    flow = PAPER.flow(start, 300.0)
    conserved = flow["beta1"] + np.exp(flow["beta1"]) / 8 - flow["alpha"] ** 2 / 2
    assert np.ptp(conserved) < 1e-5
    assert np.ptp(flow["alpha"]) > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 8), r"n_pairs \(N=8\) must be from 1 to n_labels \(L=4\)"),
        ((4, 0), r"n_pairs \(N=0\)"),
        ((1, 1), r"n_labels \(L=1\)"),
        ((4, 2, "exakt"), "did you mean 'exact'"),
    ],
)
def test_impossible_landscapes(arguments, message):
    with pytest.raises(MechinterpError, match=message):
        Landscape(*arguments)


@pytest.mark.parametrize(
    "call",
    [
        lambda: PAPER.flow((0.0, np.nan, 0.0)),
        lambda: PAPER.flow(t_end=0.0),
        lambda: PAPER.flow(n_points=1),
        lambda: PAPER.descend(steps=-1, learning_rate=0.1),
        lambda: PAPER.descend(steps=1, learning_rate=0.0),
        lambda: PAPER.transition_time(t_end=np.inf),
        lambda: PAPER.classify((0.0, np.inf, 0.0)),
    ],
)
def test_arguments_that_make_no_sense(call):
    with pytest.raises(MechinterpError, match=r"expected|needs 2"):
        call()


def test_the_analysis_needs_no_run(tmp_path, capsys):
    assert run_command(LossLandscape, ["--out", str(tmp_path)]) == 0
    assert list(pd.read_csv(tmp_path / "flow.csv")) == ["t", "xi", "alpha", "beta1", "loss", "match"]
    assert len(set(pd.read_csv(tmp_path / "flow_l_equals_n.csv")["start"])) == 2
    summary = pd.read_csv(tmp_path / "summary.csv")
    assert summary["transition"].tolist() == pytest.approx([97.494, 1219.7, 1700.8, 80.354, 799.91, 1304.8], rel=1e-4)
    assert capsys.readouterr().out.count("figure: ") == len(list(tmp_path.glob("*.html"))) == 5


def test_a_run_in_the_coordinates_of_the_landscape(tiny_run):
    table, landscape = network(tiny_run)
    assert (landscape.n_labels, landscape.n_pairs) == (4, 3)
    assert list(table) == ["xi", "alpha", "beta1", "loss", "match", "icl_loss"]
    assert table.index.tolist() == tiny_run.steps
    last = table.iloc[-1]
    assert last["loss"] == pytest.approx(landscape.loss(last["xi"], last["alpha"], last["beta1"]), rel=1e-12)
    paths = surface(landscape, {"tiny": table}, "a run").data
    assert [type(each).__name__ for each in paths] == ["Contour", "Scatter", "Scatter"]
    assert list(paths[1].y) == table["match"].tolist()
