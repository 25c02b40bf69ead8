"""The page's words: a summary of known numbers, transitions in text, differences from presets, and what next."""

import re
import shlex

import numpy as np
import pandas as pd
import pytest
import torch

import mechinterp as mi
from mechinterp.analysis.headline import Evidence
from mechinterp.circuits.evidence import Fact
from mechinterp.emergence import Shape, emergence_table
from mechinterp.report import transitions
from mechinterp.report.facts import called, differences, nearest_preset, next_commands
from mechinterp.report.html import place_on_track
from mechinterp.report.study import transition_steps, variant_curves
from mechinterp.report.summary import costliest, costliest_head, lead, percent_or_number, strongest_edge, summarise


def row(**changes) -> pd.Series:
    """A located rise of a share from 8 % to 99.6 % at step 3,438, as a row of the emergence table."""
    located = {"transition": True, "shape": Shape.one_step.name, "reason": "because", "step": 3437.5, "low": 3391.1}
    located |= {
        "high": 3483.9,
        "width": 450.6,
        "before": 0.0836,
        "after": 0.9958,
        "change_points": (),
        "delta_bic": 165.0,
    }
    return pd.Series(located | changes)


def evidence(*, holds: bool, before: bool = False, lacking: tuple[Fact, ...] = ()) -> Evidence:
    values = dict(zip((Fact.answers_from_context, Fact.k_composition), (1.0, 0.91), strict=True))
    values |= {Fact.target_query_selects: 1.08, Fact.correct_label_copied: 1.02}
    return Evidence(2900, 6000, before, holds, 0.02, 0.91, "K", lacking, values)


NONE = {"transition": False, "shape": Shape.none.name, "step": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("measure", "changes", "found", "expected"),
    [
        ("icl_accuracy", {}, evidence(holds=True), "An induction head formed; IC accuracy rose around step 3,438."),
        (
            *("icl_accuracy", {}, evidence(holds=True, before=True)),
            "IC accuracy rose around step 3,438; there was an induction head already at step 2,900.",
        ),
        (
            *("icl_accuracy", {}, evidence(holds=False)),
            "IC accuracy rose around step 3,438, but no induction head formed by step 6,000.",
        ),
        ("test_accuracy", {}, None, "Test accuracy rose around step 3,438."),
        ("train_loss", {"before": 3.2, "after": 0.02}, None, "Training loss fell around step 3,438."),
        ("loss", NONE, None, "Loss made no located transition."),
        (
            *("icl_accuracy", NONE, evidence(holds=False)),
            "No induction head formed by step 6,000: IC accuracy made no located transition.",
        ),
        (
            *("icl_accuracy", NONE, evidence(holds=True)),
            "There is an induction head at the end, but IC accuracy made no located transition.",
        ),
        (
            *("test_accuracy", NONE | {"shape": Shape.several_steps.name, "change_points": (1098.3, 3048.7)}, None),
            "Test accuracy changed twice, around steps 1,098 and 3,049.",
        ),
    ],
)
def test_the_lead_says_what_formed_and_when(measure, changes, found, expected):
    assert lead(measure, row(**changes), found) == expected


def test_values_are_in_percent_or_nats():
    assert percent_or_number("icl_accuracy", 0.0836) == "8.4 %"
    assert percent_or_number("icl_accuracy", 0.5) == "50 %"
    assert percent_or_number("icl_accuracy", 0.9958) == "99.6 %"
    assert percent_or_number("icl_accuracy", 1.0) == "100 %"
    assert percent_or_number("icl_loss", 3.2878) == "3.29 nats"
    assert percent_or_number("grad_norm", 12.345) == "12.3"


def ablations(n_heads: int = 1) -> pd.DataFrame:
    """At the end: 94 points without previous-token attention in layer 1, 40 and 90 of layer 2, and decoys."""
    pattern, z = "blocks.0.attn.hook_pattern", "blocks.1.attn.hook_z"
    rows = [
        (6000, pattern, "not_previous_token", None, 0.06),
        (6000, pattern, "zero", None, 0.0),  # zeros are not what is taken out: they are off the data
        (6000, "blocks.1.attn.hook_v", "mean", None, 0.6),
        (6000, z, "mean", None, 0.1),
        (6000, "blocks.0.hook_mlp_out", "mean", None, 0.97),  # too little
        (2900, pattern, "not_previous_token", None, 0.98),
        (2900, z, "mean", None, 0.92),
    ]
    if n_heads > 1:
        rows += [(6000, z, "mean", 2, 0.7), (6000, z, "mean", 0, 0.8)]
    table = pd.DataFrame(rows, columns=["step", "hook", "ablation", "head", "value"]).assign(intact=1.0)
    return table if n_heads > 1 else table.drop(columns="head")


def test_the_costliest_ablation_of_every_layer_is_named_with_its_cost():
    assert costliest(ablations(), 1) == pytest.approx({"layer 1 previous-token attention": 0.94, "layer 2 output": 0.9})
    assert costliest_head(ablations(4), 4) == ("layer 2, head 3: output", pytest.approx(0.3))
    assert costliest(ablations(4), 4).keys() == {"layer 1 previous-token attention", "layer 2 output"}
    assert costliest_head(ablations(), 1) is None


def test_the_strongest_edge_lies_between_layers_and_is_of_the_end():
    table = pd.DataFrame(
        [
            (0, "0.0", "1.0.q", 5.0),
            (9, "embed", "1.0.k", 1.2),
            (9, "1.0", "classifier", 0.99),
            (9, "0.0", "1.0.k", 0.93),
            (9, "0.0", "1.0.v", float("nan")),
        ],
        columns=["step", "sender", "receiver", "effect"],
    )
    assert strongest_edge(table, 1) == ("layer 1 output → layer 2 keys", 0.93)
    assert strongest_edge(table.assign(effect=table["effect"] / 10), 1) is None


def risen(name: str = "icl_accuracy", steps: int = 31, at: float = 15.0) -> pd.DataFrame:
    x = np.arange(steps)
    noise = 0.004 * np.sin(7.0 * x)
    return pd.DataFrame({name: 0.125 + 0.87 / (1 + np.exp(-(x - at))) + noise}, index=pd.Index(10 * x, name="step"))


def test_a_summary_gives_step_interval_level_and_what_carries_the_answer(tiny_run):
    table = risen(at=10.0)
    table.index //= 10
    emergence = emergence_table(table).loc["icl_accuracy"]
    paths = pd.DataFrame({"step": [20], "sender": ["0.0"], "receiver": ["1.0.k"], "effect": [0.93]})
    found = summarise(
        tiny_run,
        table["icl_accuracy"],
        emergence,
        ablations=ablations().replace({"step": {6000: 20, 2900: 4}}),
        paths=paths,
    )
    assert re.match(
        r"IC accuracy rose from 1\d % to 99\.\d % \(levels of the fit\); it was halfway at step (9|10)",
        found.parts["What happened"],
    )
    assert "ΔBIC" in found.parts["How sure"]
    assert "finds no induction head" in found.parts["How sure"]
    assert "layer 1 output → layer 2 keys, alone restores 93 %" in found.parts["What carries it"]
    assert "layer 1 previous-token attention (94 points)" in found.parts["What carries it"]
    assert "at step 4 (100 %), none cost more than 8 points" in found.parts["What carries it"]
    assert found.text == " ".join(found.parts.values())
    assert found.terms["Network"].startswith("2 layers of attention, 1 head each; ")
    assert set(found.terms) == {*("Task", "Network", "IC accuracy", "Induction head", "K-composition", "Transition")}
    assert "_" not in found.text + found.lead


def test_a_run_that_guesses_is_said_to_guess(tiny_run):
    level = tiny_run.task.guessing_levels
    flat = pd.Series(max(level.values()), index=pd.Index(range(0, 200, 10)), name="icl_accuracy")
    emergence = emergence_table(flat.to_frame()).loc["icl_accuracy"]
    found = summarise(tiny_run, flat, emergence)
    assert "at the end, about what guessing" in found.text
    assert found.lead.startswith("No induction head formed by step 20")


def test_a_rise_to_the_level_of_guessing_is_no_induction_head(tiny_run):
    """As a network that has only learnt to choose among the labels of its context: a clear transition, and no head."""
    name, level = max(tiny_run.task.guessing_levels.items(), key=lambda each: each[1])
    curve = (risen()["icl_accuracy"] - 0.125) / 0.87 * (level - 0.01) + 0.01
    curve.index = curve.index / 15  # from 0 to 20, as the steps of the run
    emergence = emergence_table(curve.to_frame()).loc["icl_accuracy"]
    assert emergence["transition"]
    found = summarise(tiny_run, curve, emergence)
    assert re.fullmatch(r"IC accuracy rose around step \d+, but no induction head formed by step 20\.", found.lead)
    assert f"What it reaches is about what {name} gives." in found.text
    assert "finds no induction head" in found.text


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            evidence(holds=True),
            "finds an induction head by K-composition at step 6,000: all 4 tests hold, the weakest with 0.91 (1: an"
            " ideal head): earlier layers tell the keys which token stood before. At step 2,900 they did not yet.",
        ),
        (evidence(holds=True, before=True), "At step 2,900 they did already."),
        (
            evidence(holds=False, lacking=(Fact.answers_from_context, Fact.k_composition)),
            "Tests that do not hold: answers from the context; earlier layers tell the keys which token"
            " stood before, or the query where the match stands.",
        ),
    ],
)
def test_the_evidence_is_told(tiny_run, monkeypatch, found, expected):
    monkeypatch.setattr("mechinterp.report.summary.induction_evidence", lambda run, steps: found)
    assert expected in summarise(tiny_run, risen()["icl_accuracy"], row()).text


def test_a_rise_whose_interval_reaches_the_first_checkpoint_may_have_begun_before(tiny_run):
    found = summarise(tiny_run, risen()["icl_accuracy"], row(low=0.0, step=100.0, high=200.0))
    assert "may have begun before" in found.text
    assert transitions.interval_text(row(low=0.0, step=573.2, high=773.1), 0) == "573 [had begun, 773]"
    assert transitions.interval_text(row(), 0) == "3,438 [3,391, 3,484]"


def test_a_recorded_run_is_summarised_by_what_was_recorded(tmp_path):
    model = torch.nn.Linear(2, 2)
    with mi.record(tmp_path / "own.h5", model) as recorder:
        for step in range(0, 160, 10):
            recorder(step, val_loss=3.0 if step < 80 else 1.0)
    run = mi.open_run(tmp_path / "own.h5")
    table = mi.measure(run)
    page = mi.write_report(run, table, tmp_path / "own.html").read_text()
    assert re.search(r'<p class="verdict">Val loss (fell around step|made no)', page)
    assert "induction head" not in page.split("</nav>")[0]
    commands = next_commands(run, "val_loss", row())
    assert all("own.h5" in command for command in commands)


def test_transitions_are_sorted_and_lie_where_the_slider_has_their_steps():
    table = risen(at=20.0).join(risen("ila1", at=10.0)).assign(cla=0.3)
    emergence = emergence_table(table)
    steps = list(table.index)
    chart = transitions.strip_chart(emergence, steps, "icl_accuracy")
    assert re.findall(r'class="row (?:main)?" title="[^"]*"><span class="left">([^<]*)', chart) == [
        "ILA1",
        "IC accuracy",
    ]
    middle = re.findall(r'class="mid" style="left:([\d.]+)%', chart)
    assert [float(each) for each in middle] == pytest.approx([100 / 3, 200 / 3], abs=1.5)
    rows = re.findall(r"<tr><td title=\"[^\"]*\">([^<]*)", transitions.table(emergence, steps))
    assert rows == ["ILA1", "IC accuracy", "CLA"]
    assert transitions.strip_chart(emergence.loc[["cla"]], steps, "cla") == ""
    small = emergence.assign(before=0.5, after=0.46)
    assert transitions.strip_chart(small, steps, "icl_accuracy").count('class="mid') == 0
    slow = emergence.assign(shape=Shape.ramp_then_jump.name)
    assert transitions.strip_chart(slow, steps, "icl_accuracy").count('class="mid slow"') == 2
    assert place_on_track([0, 10, 100], 55) == pytest.approx(0.75)  # checkpoints stand at equal distances


def test_a_config_is_told_by_its_differences_from_the_nearest_preset(tiny_run):
    config = mi.RunConfig.preset("reddy2023-fast")
    assert nearest_preset(config) == ("reddy2023-fast", {})
    changed = config.updated({"seed": 3, "training.steps": 2000, "task.burstiness": 2})
    found = differences(changed, config)
    assert found == {"seed": (0, 3), "training.steps": (6000, 2000), "task.burstiness": (1, 2)}
    assert nearest_preset(changed) == ("reddy2023-fast", found)
    assert "20 updates, 11 checkpoints" in called(tiny_run)


@pytest.mark.parametrize("located", [True, False])
def test_what_next_is_three_commands_that_the_command_line_knows(tiny_run, located, capsys):
    from mechinterp.cli import main

    found = next_commands(tiny_run, "icl_accuracy", row(step=10.0, width=4.0) if located else row(**NONE))
    preset = nearest_preset(tiny_run.config)
    assert len(found) == (3 if preset else 2 if located else 1)
    for line in "\n".join(found).split("\n"):
        words = shlex.split(line)
        assert words[0] == "mechinterp"
        for option in (word for word in words if word.startswith("--")):
            with pytest.raises(SystemExit):
                main([words[1], "--help"])
            assert option.split("=")[0] in capsys.readouterr().out


def test_variants_without_interventions_have_no_clamped_curve(tiny_config):
    study = mi.Study.of("s", tiny_config, {"free": {}, "clamped": {}}, seeds=[0])
    free = pd.DataFrame({"icl_accuracy": [0.1, 0.2]}, index=[0, 2])
    tables = {("free", 0): free, ("clamped", 0): free.assign(clamped_icl_accuracy=[0.5, 0.6])}
    drawn = variant_curves(study, tables, "clamped_icl_accuracy")
    assert {trace.name: list(trace.y) for trace in drawn.data} == {"clamped": [0.5, 0.6]}


def test_seeds_of_a_variant_stand_below_each_other_in_the_colour_of_its_curves(tiny_config):
    study = mi.Study.of("s", tiny_config, {"a": {}, "b": {}}, seeds=[0, 1])
    runs = [(v, seed, True, 100.0 + seed, 90.0, 120.0) for v in "ab" for seed in (0, 1)]
    table = pd.DataFrame(runs, columns=["variant", "seed", "transition", "step", "low", "high"])
    first, second = transition_steps(table).data
    assert len({*first.y, *second.y}) == 4
    assert first.marker.color != second.marker.color
    tables = {("a", 0): pd.DataFrame({"m": [0.1]}, index=[0]), ("b", 0): pd.DataFrame({"m": [0.1]}, index=[0])}
    colours = {trace.name: trace.line.color for trace in variant_curves(study, tables, "m").data}
    assert (colours["a"], colours["b"]) == (first.marker.color, second.marker.color)


def test_checkpoints_too_far_apart_are_said_to_resolve_no_finer_times(tiny_run):
    curve = risen()["icl_accuracy"]  # checkpoints every 10 steps
    assert "Checkpoints are 10 steps apart" in summarise(tiny_run, curve, row(step=150.0, width=19.9)).text
    assert "steps apart" not in summarise(tiny_run, curve, row(step=150.0, width=20.0)).text


def test_a_rise_from_no_known_level_is_compared_with_guessing(tiny_run):
    text = summarise(tiny_run, risen()["icl_accuracy"], row(before=0.42)).text
    (any_label, level), (in_context, _) = tiny_run.task.guessing_levels.items()
    assert f"For comparison: {in_context}." in text
    known = summarise(tiny_run, risen()["icl_accuracy"], row(before=level)).text
    assert f"Before, it was at the level of {any_label}." in known
    assert "For comparison" not in known
