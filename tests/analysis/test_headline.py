"""The headline says what rose, to what level, and whether it is an induction head."""

import numpy as np
import pandas as pd
import pytest

import mechinterp as mi
from mechinterp.analysis import headline as home
from mechinterp.analysis.headline import at_most_guessing, guessing_level, headline
from mechinterp.circuits.evidence import induction_head_evidence
from mechinterp.models.network import Network
from mechinterp.models.planted import excluding_decoy, induction_head, q_composition_head

STEPS = np.arange(0, 21, 2)


def curve(values) -> pd.Series:
    return pd.Series(values, index=STEPS, name="icl_accuracy")


def rise(to: float) -> pd.Series:
    return curve(0.03 + (to - 0.03) / (1 + np.exp(-(STEPS - 10.0))))


def said(run, values: pd.Series) -> home.Headline:
    return headline(run, values, mi.locate_emergence(values))


def test_the_level_of_an_accuracy_is_named():
    task = mi.build_task(mi.RunConfig())
    assert guessing_level(task, 0.123) == "guessing among the 8 labels of the context (0.125)"
    assert guessing_level(task, 0.03) == "guessing any label (1/L = 0.031)"
    assert guessing_level(task, 0.9) is None
    paired = mi.build_task(mi.RunConfig.preset("nguyen2024-fast"))
    assert guessing_level(paired, 0.51) == "guessing any label (1/2)"
    doubled = mi.build_task(mi.RunConfig().updated({"task.burstiness": 2}))
    assert guessing_level(doubled, 0.26) == "guessing among the 4 labels of the context (0.250)"


def test_an_accuracy_just_above_the_best_guess_is_not_beyond_it():
    task = mi.build_task(mi.RunConfig())
    assert at_most_guessing(task, 0.15) == "guessing among the 8 labels of the context (0.125)"
    assert at_most_guessing(task, 0.02) == "guessing among the 8 labels of the context (0.125)"
    assert at_most_guessing(task, 0.16) is None


def test_a_rise_to_guessing_among_the_context_is_no_induction_head(tiny_run):
    found = said(tiny_run, rise(1 / 3))
    text = str(found)
    assert (found.level, found.induction_head) == ("guessing among the 3 labels of the context (0.333)", False)
    assert "what it reaches is guessing among the 3 labels of the context (0.333)" in text
    assert "no induction head at step 20: it lacks answers_from_context, target_query_selects" in text


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (induction_head, "an induction head by K-composition at step 20: its weakest fact has the value 1.00"),
        (q_composition_head, "an induction head by Q-composition at step 20: its weakest fact has the value 1.00"),
        (excluding_decoy, "no induction head at step 20: it lacks correct_label_copied"),
    ],
)
def test_the_evidence_decides(tiny_run, monkeypatch, network, expected):
    config = mi.RunConfig().updated({"model.classifier_depth": 0, "task.n_labels": 8})
    task = mi.build_task(config)

    def planted(run, analysis, steps):
        of_step = {step: network(config) if step == 20 else Network.initial(config) for step in steps}
        tables = {step: induction_head_evidence(one, task, n_pairs=50) for step, one in of_step.items()}
        return pd.concat(tables, names=["step"]).reset_index(level="step")

    monkeypatch.setattr(home, "analyse", planted)
    found = said(tiny_run, rise(0.99))
    assert expected in str(found)
    assert found.to_dict()["induction_head"] is expected.startswith("an induction head")


def test_a_task_without_separate_labels_is_not_tested(tmp_path):
    config = mi.RunConfig.preset("nguyen2024-fast").updated(
        {
            "training.steps": 4,
            "checkpoints.every": 2,
            "task.n_items": 20,
            "task.n_pairs": 4,
            "model.classifier_width": 8,
        }
    )
    run = mi.train(config, tmp_path / "a.h5", progress=False)
    assert "whether it is an induction head was not tested: " in str(said(run, rise(0.9)))


def test_a_curve_without_a_transition_has_its_reason_its_level_and_the_evidence_at_the_end(tiny_run):
    ramp = curve(np.linspace(0.1, 1 / 3, 11))
    found = said(tiny_run, ramp)
    assert str(found).startswith("icl_accuracy: no transition: ")
    assert (found.level, found.induction_head) == ("guessing among the 3 labels of the context (0.333)", False)
    assert str(found.evidence).startswith("no induction head at step 20: it lacks answers_from_context")
    assert said(tiny_run, curve(np.full(11, 0.5))).level is None
