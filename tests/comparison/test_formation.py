"""The order in which components form, on planted trajectories of which it is known."""

import numpy as np
import pandas as pd
import pytest

from mechinterp.comparison.components import Kind
from mechinterp.comparison.formation import RUN, Formation, formation_of, locate_formation
from mechinterp.emergence import level_crossing
from mechinterp.emergence.crossing import crossings
from mechinterp.errors import MechinterpError
from mechinterp.tasks import build_task
from tests.comparison.trajectories import switched_on, with_idle_head

ORDERED = {"classifier": 2, "layer 1 QK": 3, "layer 2 QK": 5}


def read(states, components, n=100) -> Formation:
    return formation_of(states, components, build_task(states.config).sample("icl", n), resamples=100)


@pytest.fixture(scope="module")
def ordered() -> Formation:
    return read(*switched_on(ORDERED))


def test_parts_that_are_switched_on_one_by_one_are_read_in_that_order(ordered):
    """A crossing lies between the checkpoints without and with the part."""
    parts = ordered.components.set_index("component")
    assert [name for name in ordered.components["component"] if parts.loc[name, "needed"]] == list(ORDERED)
    for name, step in ORDERED.items():
        assert step - 1 < parts.loc[name, "ready"] < step
    assert 4 < ordered.rise < 5
    assert parts.loc["layer 1 QK", "after_previous"]
    assert parts.loc["layer 2 QK", "after_previous"]


def test_the_last_part_is_late_and_the_one_before_waits_for_it(ordered):
    """The final match gives the accuracy from step 3 on; the final previous-token part, only with the match, from 2."""
    parts, waits = ordered.components.set_index("component"), ordered.waits[ordered.waits["waits"]]
    assert parts.index[parts["late"]].tolist() == ["layer 2 QK"]
    assert 1.5 < parts.loc["layer 2 QK", "advance"] < 2.5
    assert (parts["advance"].drop("layer 2 QK").abs() < 0.2).all()
    assert waits[["component", "for"]].to_numpy().tolist() == [["layer 1 QK", "layer 2 QK"]]
    assert waits["synergy"].item() == pytest.approx(1, abs=0.3)
    assert parts.index[parts["awaited"]].tolist() == ["layer 2 QK"]
    chain = ordered.chain.set_index("with")["held_up"]
    assert chain.index[:3].tolist() == ["layer 2 QK", "layer 1 QK", "classifier"]
    np.testing.assert_allclose(chain[:3], [2, 1, 2], atol=0.7)
    assert (chain[3:] == 0).all()
    text = str(ordered)
    assert "late: layer 2 QK" in text
    assert "waiting: layer 1 QK for layer 2 QK" in text


def test_how_much_more_two_parts_help_together_is_the_same_from_either_side(ordered):
    synergy = ordered.waits.set_index(["component", "for"])["synergy"]
    for first, second in synergy.index:
        assert synergy[first, second] == pytest.approx(synergy[second, first])
    assert synergy["layer 2 QK", "layer 1 QK"] == pytest.approx(1, abs=0.3)  # of 3, of which 2 come without the other


def test_an_idle_head_that_changes_is_neither_late_nor_awaited_nor_needed():
    states, components = with_idle_head(switched_on(ORDERED)[0])
    formation = read(states, [component for component in components if component.kind is not Kind.values])
    parts = formation.components.set_index("component")
    idle = parts[parts.index.str.contains("head 2")]
    assert len(idle) == 2
    assert not idle[["needed", "late", "awaited"]].to_numpy().any()
    assert parts.index[parts["late"]].tolist() == ["layer 2 head 1 QK"]
    waits = formation.waits[formation.waits["waits"]]
    assert waits[["component", "for"]].to_numpy().tolist() == [["layer 1 head 1 QK", "layer 2 head 1 QK"]]


def test_parts_that_come_together_are_not_put_in_an_order():
    formation = read(*switched_on(dict.fromkeys(ORDERED, 4)))
    parts = formation.components.set_index("component")
    assert not parts["late"].any()
    assert not formation.waits["waits"].any()
    assert parts.loc[list(ORDERED), "needed"].all()
    formed = formation.components[formation.components["needed"]]
    assert not formed["after_previous"].iloc[1:].any()


def test_two_parts_that_come_together_wait_for_each_other():
    formation = read(*switched_on({"layer 1 QK": 5, "layer 2 QK": 5, "classifier": 2}))
    waits = formation.waits[formation.waits["waits"]]
    assert sorted(waits[["component", "for"]].to_numpy().tolist()) == [
        ["layer 1 QK", "layer 2 QK"],
        ["layer 2 QK", "layer 1 QK"],
    ]
    assert not formation.components["late"].any()


def test_curves_are_the_accuracies(ordered):
    accuracies = ordered.accuracies
    assert accuracies[RUN].iloc[-1] > 0.95
    assert (accuracies[frozenset(["layer 1 QK", "layer 2 QK"])].iloc[2:] == accuracies[RUN].iloc[-1]).all()
    assert (accuracies[frozenset(["layer 2 QK"])].iloc[:3] < 0.6).all()
    assert (ordered.early_accuracies["classifier"].iloc[2:] > 0.95).all()
    assert (ordered.early_accuracies["classifier"].iloc[:2] < 0.6).all()
    chain = ordered.chain_accuracies
    assert chain.columns.tolist() == ["the run itself", *ordered.chain["with"]]
    assert chain["layer 1 QK"].equals(accuracies[frozenset(["layer 1 QK", "layer 2 QK"])].rename("layer 1 QK"))
    assert (chain.iloc[:, -1] > 0.95).all()  # all of the last checkpoint


def test_what_cannot_be_read_is_refused(tiny_run):
    states, components = switched_on({})
    with pytest.raises(MechinterpError, match="components are read where it rises"):
        read(states, components)
    with pytest.raises(MechinterpError, match="3 steps are too few"):
        locate_formation(tiny_run, steps=[0, 2, 4])


def test_crossings_of_many_curves_are_those_of_each():
    rng, steps = np.random.default_rng(0), np.arange(0.0, 90.0, 10.0)
    curves = np.concatenate([rng.random((200, 9)), np.sort(rng.random((200, 9)), axis=1)])
    levels = rng.random(400)
    found = crossings(steps, curves, levels)
    assert np.isinf(found).any()
    assert np.isfinite(found).sum() > 200
    for curve, level, step in zip(curves, levels, found, strict=True):
        alone = level_crossing(pd.Series(curve, index=steps), level)
        assert alone == (pytest.approx(step) if np.isfinite(step) else None)
        if alone is None:
            assert step == (-np.inf if (curve >= level).mean() >= 0.5 else np.inf)
