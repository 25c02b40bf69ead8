"""The rule by which a quantity steps at a transition, on curves whose answer is known; and the committed tables."""

import numpy as np
import pandas as pd
import pytest

import mechinterp as mi
from analyses import training_geometry
from analyses.training_geometry import (
    QUANTITIES,
    SETTINGS,
    Subject,
    TrainingGeometry,
    change_at,
    interpolated,
    measured_steps,
    steps_table,
    verdicts_of,
)
from mechinterp.comparison.components import components_of
from mechinterp.emergence import Emergence
from mechinterp.errors import MechinterpError
from tests.conftest import TINY

STEPS = np.arange(0, 6001, 200)
AT, WIDTH = 3000.0, 400.0


def logistic(at: float, width: float = WIDTH) -> np.ndarray:
    return 1 / (1 + np.exp(-2 * np.log(9) * (STEPS - at) / width))


def noise(size: float, seed: int = 0) -> np.ndarray:
    return size * np.random.default_rng(seed).normal(size=len(STEPS))


def change_of(values: np.ndarray, error: float = 0.3):
    index = pd.Index(STEPS)
    return change_at(pd.Series(values, index), pd.Series(error, index), AT, WIDTH)


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        (20 * logistic(AT) + noise(0.3), True),
        (40 - 20 * logistic(AT) + noise(0.3), True),  # down
        (STEPS / 100 + noise(0.3), False),  # a drift
        (STEPS / 1000 + 20 * logistic(AT) + noise(0.3), True),  # a step on a drift
        (STEPS / 250 + 2 * logistic(AT) + noise(0.3), False),  # too small a step on a drift
        (20 * logistic(AT + 1600) + noise(0.3), False),  # a step elsewhere
        (20 * logistic(AT - 1600) + noise(0.3), False),
        (20 * logistic(AT) + 20 * logistic(AT + 1600) + noise(0.3), True),  # a second one elsewhere
        (noise(0.3), False),
        (20 * np.exp(-(((STEPS - AT) / 200) ** 2)) + noise(0.3), False),  # a bump: as before
    ],
)
def test_the_rule(values, steps):
    change = change_of(values)
    assert change.steps is steps
    assert change.windows > 10


def test_a_change_within_its_error_is_no_step():
    values = 2 * logistic(AT)
    assert change_of(values, 0.2).steps is True
    found = change_of(values, 1.0)
    assert found.ratio > 3
    assert found.steps is False
    assert found.error == pytest.approx(2**0.5)


def test_windows_elsewhere_keep_away_and_are_inside():
    """s ± 2w is 2,200 to 3,800: what happens in there does not count elsewhere."""
    inside, at_the_edge = np.where(np.abs(STEPS - AT) < 800, 50.0, 0.0), np.where(STEPS <= 2200, 0.0, 50.0)
    assert change_of(inside).elsewhere == 0
    assert change_of(at_the_edge).elsewhere == 0
    assert change_of(STEPS / 100).elsewhere == pytest.approx(8)
    starts = [start for start in STEPS if start + 800 <= 2200 or (start >= 3800 and start + 800 <= 6000)]
    assert change_of(STEPS / 100).windows == len(starts)


def test_windows_begin_or_end_at_measured_steps():
    values = pd.Series(1.0, [0, 1300, 3000, 6000])
    assert change_at(values, 0 * values, 3000.0, 400.0).windows == 4  # from 0, 500, 1,300 and 5,200


def test_a_transition_at_the_edge_says_nothing():
    index = pd.Index(STEPS)
    values, errors = pd.Series(20 * logistic(200), index), pd.Series(0.1, index)
    assert change_at(values, errors, 200.0, 400.0).steps is None
    wide = change_at(values, errors, 3000.0, 1400.0)
    assert (wide.windows, wide.steps) == (0, None)


def test_interpolation_has_the_error_of_its_neighbours():
    values, errors = pd.Series([0.0, 10.0], [0, 10]), pd.Series([3.0, 4.0], [0, 10])
    assert interpolated(values, errors, 0.0) == (0, 3)
    assert interpolated(values, errors, 10.0) == (10, 4)
    assert interpolated(values, errors, 5.0) == (5, pytest.approx(2.5))
    assert interpolated(values, errors, 2.0)[1] == pytest.approx(np.hypot(0.8 * 3, 0.2 * 4))


def test_measured_steps():
    steps = measured_steps(range(0, 6001, 100), 3000.0, 310.0, 4)
    assert steps == [0, 2000, 2400, 2700, 3000, 3300, 3600, 4000, 6000]


def test_runs_of_a_preset_are_judged_together(tiny_run):
    curve = pd.DataFrame({"step": STEPS})
    for number, quantity in enumerate(QUANTITIES):
        curve[quantity] = 20 * logistic(AT if number == 0 else AT + 1600)
        curve[f"{quantity}_error"] = 0.3
    transition = Emergence(transition=True, reason="", step=AT, width=WIDTH)
    subjects = {f"run{seed}": Subject(tiny_run, "preset", transition) for seed in range(3)}
    table = steps_table(subjects, dict.fromkeys(subjects, curve))
    verdicts = verdicts_of(table)
    assert [verdict.verdict for verdict in verdicts] == ["yes", "no", "no"]
    assert verdicts[0].runs == "3 of 3"
    table["steps"] = table["steps"].astype(object)
    table.loc[0, "steps"] = None  # this run does not tell
    assert verdicts_of(table)[0].runs == "2 of 2"


def test_the_study_on_a_run_and_a_decoy(tmp_path, monkeypatch):
    """End to end, on a network too small for a transition, which is put into the middle."""
    changes = TINY | {"training.steps": 60, "checkpoints.every": 4}
    config = mi.RunConfig().updated(changes)
    run = mi.train(config, tmp_path / "run.h5")
    decoy = mi.train(config.updated({"model.n_layers": 1}), tmp_path / "decoy.h5")
    study = TrainingGeometry(runs=(run.path,), decoys=(decoy.path,), out=tmp_path / "out")
    study.n_sequences, study.draws, study.burn_in, study.batch, study.checkpoints = 32, 4, 2, 16, 2
    with pytest.raises(MechinterpError, match="none of the runs has its task and seed"):
        study.execute()
    made = Emergence(transition=True, reason="", step=30.0, width=6.0)
    monkeypatch.setattr(training_geometry, "locate_or_say_why", lambda curve: made)
    monkeypatch.setattr(training_geometry, "N_CURVATURE", 32)
    study.execute()
    tables = {name: pd.read_csv(tmp_path / f"out/{name}.csv") for name in ("curves", "steps", "components")}
    sensitivity = pd.read_csv(tmp_path / "out/sensitivity.csv")
    assert [*tables["curves"].groupby("run", sort=False).groups] == ["run", "decoy"]
    assert [*tables["curves"]["step"]] == 2 * measured_steps(run.steps, 30.0, 6.0, 2)
    assert tables["steps"]["group"].nunique() == 2
    assert [*tables["components"].loc[tables["components"]["run"] == "run", "component"]] == [
        component.name for component in components_of(config, heads_apart=False)
    ]
    assert len(sensitivity) == len(SETTINGS)
    before = sensitivity.set_index("setting")["before"]
    curve = tables["curves"].set_index("step").loc[24, "llc"]
    assert before["as in the curves"] == pytest.approx(curve.iloc[0], rel=1e-3)
    assert before.nunique() == len(SETTINGS)
    assert (tmp_path / "out/training_geometry.html").exists()
    again = tables["curves"]
    study.execute()  # from the cache
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out/curves.csv"), again)
