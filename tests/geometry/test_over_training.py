"""The geometry of the loss over a run: numbers are those of the checkpoints, updates those of the file."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import mechinterp as mi
from mechinterp.comparison.components import components_of
from mechinterp.errors import MechinterpError
from mechinterp.geometry import over_training
from mechinterp.geometry.gradients import gradient_noise
from mechinterp.geometry.hessian import hessian_trace, top_eigenvalues
from mechinterp.geometry.llc import llc_table
from mechinterp.geometry.loss import NetworkLoss
from mechinterp.geometry.updates import _square, update_norms
from tests.comparison.test_transplants import CONFIGS
from tests.helpers import random_parameters

STEPS = [0, 10, 20]


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A copy, beside which results are kept."""
    return mi.open_run(shutil.copy(tiny_run.path, tmp_path_factory.mktemp("geometry") / "run.h5"))


@pytest.fixture(scope="module")
def result(run):
    return mi.training_geometry(run, STEPS, n_sequences=64)


def test_numbers_are_those_of_the_checkpoint(run, result):
    assert list(result.table.index) == STEPS
    row = result.table.loc[10]
    loss = NetworkLoss.of_run(run, 10, n=64)
    noise, trace = gradient_noise(loss), hessian_trace(loss)
    spectrum = top_eigenvalues(loss, 2, tolerance=0.01)
    errors = np.hypot(spectrum.errors, spectrum.residuals)
    expected = {
        "gradient_norm": (noise.norm, noise.norm_error),
        "gradient_squared_norm": (noise.squared_norm, noise.squared_norm_error),
        "gradient_noise": (noise.noise, noise.noise_error),
        "gradient_noise_scale": (noise.scale, noise.scale_error),
        "hessian_trace": (trace.value, trace.error),
        "hessian_top_1": (spectrum.top[0], errors[0]),
        "hessian_top_2": (spectrum.top[1], errors[1]),
        "hessian_low": (spectrum.low, errors[2]),
    }
    for name, (value, error) in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-3, nan_ok=True), name  # in float32
        assert row[f"{name}_error"] == pytest.approx(error, rel=1e-2, nan_ok=True), name
    assert 0 < row["hessian_residual"] <= 0.01 * row["hessian_top_1"]


def test_the_error_of_an_eigenvalue_has_its_residual(run, monkeypatch):
    monkeypatch.setattr(over_training, "TOLERANCE", 0.3)
    loss = NetworkLoss.of_run(run, 10, n=64)
    row = over_training.checkpoint_geometry(loss).iloc[0]
    spectrum = top_eigenvalues(loss, 2, tolerance=0.3)
    low = np.sqrt(spectrum.errors[-1] ** 2 + spectrum.residuals[-1] ** 2)
    assert low > 1.05 * spectrum.errors[-1]
    assert row["hessian_low_error"] == pytest.approx(low)
    assert row["hessian_residual"] == pytest.approx(spectrum.residuals.max())


def test_components_add_up(run, result):
    parts = result.components[result.components["step"] == 10].set_index("component")
    loss = NetworkLoss.of_run(run, 10, n=64)
    assert list(parts.index) == [component.name for component in loss.components]
    for name in ("gradient_squared_norm", "gradient_noise", "hessian_trace"):
        assert parts[name].sum() == pytest.approx(result.table.loc[10, name], rel=1e-5)
    component = loss.components[2]
    assert parts.loc[component.name, "gradient_norm"] == pytest.approx(
        gradient_noise(loss, loss.mask(component)).norm, rel=1e-4
    )
    assert not any("top" in column for column in parts)


def test_update_norms_are_those_of_the_stored_weights(run, result):
    before, after = run.weights(0), run.weights(10)
    moved = {name: (after[name] - before[name]).double() for name in after}
    total = float(torch.cat([value.flatten() for value in moved.values()]).norm())
    size = float(torch.cat([value.double().flatten() for value in before.values()]).norm())
    assert result.table.loc[10, "update_norm"] == pytest.approx(total / 10)
    assert result.table.loc[10, "update_relative"] == pytest.approx(total / 10 / size)
    assert np.isnan(result.table.loc[0, "update_norm"])
    table = update_norms(run, [20, 0, 20]).set_index("component")
    assert set(table["step"]) == {20}
    moved = {name: (run.weights(20)[name] - before[name]).double() for name in after}
    scores = [moved["blocks.1.attn.W_Q"], moved["blocks.1.attn.W_K"]]
    expected = float(torch.cat([value.flatten() for value in scores]).norm()) / 20
    assert table.loc["layer 2 QK", "norm"] == pytest.approx(expected)
    squares = table["norm"] ** 2
    assert squares.drop("all").sum() == pytest.approx(squares["all"])


def test_parameters_that_begin_at_zero_have_no_relative_norm(run, monkeypatch):
    changed = {"blocks.0.attn.W_Q": 2.0}
    weights = {
        0: {name: torch.zeros_like(value) for name, value in run.weights(0).items()},
        20: {name: torch.full_like(value, changed.get(name, 0.0)) for name, value in run.weights(0).items()},
    }
    monkeypatch.setattr(run, "weights", weights.__getitem__)
    table = update_norms(run, [0, 20]).set_index("component")
    moved = table[table["norm"] > 0]
    assert sorted(moved.index) == ["all", "layer 1 QK"]
    assert np.isinf(moved["relative"]).all()
    assert table.loc[table["norm"] == 0, "relative"].isna().all()


def test_heads_have_their_parts_of_a_parameter():
    config = mi.RunConfig().updated(CONFIGS["heads"])
    values = random_parameters(config)
    squares = [_square(component, values) for component in components_of(config)]
    assert sum(squares) == pytest.approx(sum(float(value.square().sum()) for value in values.values()))


def test_transitions_are_located_and_said(run, monkeypatch):
    """Of curves that are set by hand at the run's 11 checkpoints; a curve with gaps has none."""
    values = dict(zip(run.steps, (np.arange(11) >= 6).astype(float), strict=True))
    monkeypatch.setattr(over_training.NetworkLoss, "of_run", lambda run, step, *rest: step)

    def by_hand(step, **options):
        scale = values[step] if step not in (0, 4, 18) else np.nan
        return pd.DataFrame(
            {
                "component": ["all", "classifier"],
                "hessian_trace": 10 + 300 * values[step] + np.sin(step),
                "gradient_norm": np.sin(5 * step),
                "gradient_noise_scale": scale,
            }
        )

    monkeypatch.setattr(over_training, "checkpoint_geometry", by_hand)
    found = mi.training_geometry(run, keep=False)
    assert 10 < found.emergence.loc["hessian_trace", "step"] < 12
    assert "hessian_trace: transition at step 11" in str(found)
    assert "gradient_norm: no transition: a logistic explains" in str(found)
    assert "gradient_noise_scale: no transition: it is not resolved at 2 of 11 steps" in str(found)
    assert "update_norm: no transition: a" in str(found)  # which the first step lacks


def test_a_checkpoint_is_computed_once(run, result, monkeypatch):
    calls = []
    original = over_training.checkpoint_geometry

    def counted(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(over_training, "checkpoint_geometry", counted)
    again = mi.training_geometry(run, STEPS, n_sequences=64)
    assert not calls
    pd.testing.assert_frame_equal(again.table, result.table)
    pd.testing.assert_frame_equal(again.components, result.components)
    mi.training_geometry(run, [0, 2], n_sequences=64)
    assert len(calls) == 1
    other = mi.training_geometry(run, [0, 10], n_sequences=64, seed=1)
    assert len(calls) == 3
    assert (other.table["gradient_norm"] != result.table.loc[[0, 10], "gradient_norm"]).all()


def test_the_accuracy_is_that_of_the_network(run, result):
    assert result.accuracy == "icl_accuracy"
    expected = mi.measure(run, ["icl_accuracy"], steps=STEPS)["icl_accuracy"]
    assert result.table["icl_accuracy"].tolist() == expected.tolist()
    assert result.emergence.index[0] == "icl_accuracy"
    assert "no transition: locating a transition needs 8 checkpoints" in str(result)


def test_mistakes_are_named(run, tmp_path):
    with pytest.raises(MechinterpError, match="update norms are of two checkpoints or more; 1 is given"):
        mi.training_geometry(run, 20)
    with pytest.raises(MechinterpError, match="16 sequences make no 32 blocks"):
        mi.training_geometry(run, STEPS, n_sequences=16)
    module = torch.nn.Linear(2, 2)
    with mi.record(tmp_path / "x.h5", module) as recorder:
        recorder(0)
    with pytest.raises(MechinterpError, match="its loss is not known as a function"):
        mi.training_geometry(mi.open_run(tmp_path / "x.h5"))


def test_the_local_learning_coefficient_is_that_of_the_checkpoint(run, monkeypatch):
    calls = []

    few_draws = {"chains": 2, "draws": 6, "burn_in": 1, "batch": None}

    def few(loss, components, **options):
        calls.append(len(components))
        return llc_table(loss, components[:2], **options, **few_draws)

    monkeypatch.setattr(over_training, "llc_table", few)
    found = mi.training_geometry(run, [10, 20], n_sequences=32, llc=True)
    loss = NetworkLoss.of_run(run, 10, n=32, dtype=torch.float32)
    assert calls == [1 + len(loss.components)] * 2
    gamma = len(loss.point) / (0.1 * float(NetworkLoss.of_run(run, 0, n=1).point.norm())) ** 2
    options = {"localisation": float(f"{gamma:.3g}"), **few_draws}
    whole, first = llc_table(loss, (None, loss.components[0]), **options).to_dict("records")
    for name, expected in (("llc", "llc"), ("llc_error", "llc_error"), ("llc_r_hat", "r_hat")):
        assert found.table.loc[10, name] == pytest.approx(whole[expected])
        row = found.components.query("step == 10").iloc[0]
        assert row[name] == pytest.approx(first[expected])
    assert "llc" in found.emergence.index
    assert not {"llc_error", "llc_r_hat"} & {*found.emergence.index}
    mi.training_geometry(run, [10, 20], n_sequences=32, llc=True)
    assert len(calls) == 2  # kept
    assert "llc" not in mi.training_geometry(run, [10, 20], n_sequences=32).table
    titles = [each.text for each in mi.figures.geometry_curves(found).layout.annotations]
    assert "local learning coefficient" in titles
