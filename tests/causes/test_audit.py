"""Causal audits: known answers on made-up results with decoys, and manipulations that do what they say."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mechinterp as mi
from mechinterp.causes.audit import run_audit
from mechinterp.causes.design import CONTROL, Audit, Time, Way, audited_measures
from mechinterp.causes.verdicts import Role, Verdict, audit_roles, audit_table, judge, role_of
from mechinterp.cli import main
from mechinterp.config import Clamp, Freeze, Temperature
from mechinterp.errors import ConfigError, MechinterpError
from mechinterp.measures.manipulations import Manipulation, Manipulations, manipulation

pytestmark = pytest.mark.usefixtures("kept_workers")
STEPS = pd.Index(range(0, 3001, 50), name="step")
T0 = 1000
BOTH = Manipulations(
    hold=manipulation(Clamp(layer=0, pattern="previous_token")), remove=manipulation(Clamp(layer=0, pattern="uniform"))
)


def rise(step: float, low: float = 0.1, high: float = 0.9, steps: pd.Index = STEPS) -> pd.Series:
    return pd.Series(low + (high - low) / (1 + np.exp(-(steps.to_numpy() - step) / 30)), index=steps)


def run(released: pd.Series, measure: pd.Series, trained: pd.Series | None = None) -> pd.DataFrame:
    """A run's table; with `trained`, that of a run under an intervention on activations."""
    table = pd.DataFrame({"icl_accuracy": released, "ila1": measure})
    return table if trained is None else table.assign(clamped_icl_accuracy=trained, clamped_ila1=measure)


NEVER = rise(10_000)
CONTROLS = {(CONTROL, seed): run(rise(T0), rise(800, 0.2, 0.8)) for seed in (0, 1)}  # the measure leads by 200 steps
UP, DOWN = pd.Series(0.9, index=STEPS), pd.Series(0.2, index=STEPS)


@pytest.fixture
def audit(tiny_config) -> Audit:
    return Audit.of(tiny_config, {"ila1": BOTH}, seeds=(0, 1), strengths=(1 / 3, 1), times=["before"])


def judged(audit, changed: dict[str, pd.DataFrame], seeds=(0, 1)) -> pd.DataFrame:
    tables = {(variant, seed): table for variant, table in changed.items() for seed in seeds}
    return audit_table(audit, CONTROLS | tables).set_index(["way", "strength", "time"]).sort_index()


def role(audit, held: pd.DataFrame, removed: pd.DataFrame) -> str:
    changed = {"ila1 hold 0.33 whole": held, "ila1 remove 1 whole": removed}
    tables = {(variant, seed): table for variant, table in changed.items() for seed in (0, 1)}
    return audit_roles(audit_table(audit, CONTROLS | tables)).loc["ila1", "role"]


def test_a_measure_that_brings_the_transition_and_takes_it_away_is_a_cause(audit):
    held, removed = run(NEVER, UP, rise(400)), run(NEVER, DOWN, NEVER)
    assert role(audit, held, removed) == "cause"
    assert role(audit, held, run(NEVER, DOWN, rise(1300))) == "cause"  # late is enough


def test_a_measure_that_leads_in_time_alone_only_leads(audit):
    assert role(audit, run(NEVER, UP, rise(T0)), run(NEVER, DOWN, rise(1020))) == "only_leads"


def test_the_other_roles(audit):
    assert role(audit, run(NEVER, UP, rise(T0)), run(NEVER, DOWN, NEVER)) == "necessary"
    assert role(audit, run(NEVER, UP, rise(400)), run(NEVER, DOWN, rise(T0))) == "sufficient"
    assert role(audit, run(NEVER, UP, rise(1500)), run(NEVER, DOWN, rise(400))) == "obstacle"


def test_a_manipulation_that_does_not_move_its_measure_tells_nothing(audit):
    as_before = rise(800, 0.2, 0.8)
    assert role(audit, run(NEVER, as_before, rise(400)), run(NEVER, DOWN, NEVER)) == "not_resolved"
    assert role(audit, run(NEVER, UP, rise(400)), run(NEVER, as_before, NEVER)) == "not_resolved"


def test_a_held_measure_is_compared_before_the_transition_which_raises_it_by_itself(audit):
    partly = pd.Series(0.45, index=STEPS)  # above the control's before t₀, below its mean over the run
    assert partly.mean() < rise(800, 0.2, 0.8).mean()
    assert role(audit, run(NEVER, partly, rise(400)), run(NEVER, DOWN, NEVER)) == "cause"


def test_a_rise_to_guessing_is_no_transition(audit):
    row = judged(audit, {"ila1 hold 1 whole": run(NEVER, UP, rise(200, 0.02, 0.12))}).loc["hold", 1, "whole"]
    assert (row["verdict"], row["ratio"], row["n_transitions"]) == ("abolishes", np.inf, 0)


def test_accuracy_that_the_manipulation_itself_gives_does_not_count_after_its_window(audit):
    given = pd.Series(np.where(STEPS < T0 / 2, 1.0, rise(810)), index=STEPS)  # above for more steps than below
    row = judged(audit, {"ila1 hold 1 before": run(rise(810), UP, given)}).loc["hold", 1, "before"]
    assert (row["verdict"], round(row["ratio"], 2)) == ("accelerates", 0.81)
    assert (row["outcome"], round(row["control_outcome"], 3)) == (1.0, 0.1)  # at step 450


def test_a_manipulation_that_ends_delays_but_does_not_abolish(audit):
    table = judged(
        audit, {"ila1 remove 1 before": run(NEVER, DOWN, NEVER), "ila1 remove 1 whole": run(NEVER, DOWN, NEVER)}
    )
    assert table.loc["remove", 1, "before"]["verdict"] == "delays"
    assert table.loc["remove", 1, "whole"]["verdict"] == "abolishes"


def test_a_run_that_starts_above_has_the_transition_at_its_start(audit):
    row = judged(audit, {"ila1 hold 1 whole": run(NEVER, UP, UP)}).loc["hold", 1, "whole"]
    assert (row["ratio"], row["verdict"]) == (0, "accelerates")


def test_runs_that_are_missing_and_single_seeds_give_no_verdict(audit):
    table = judged(audit, {"ila1 hold 1 whole": run(NEVER, UP, rise(400))}, seeds=(0,))
    row, missing = table.loc["hold", 1, "whole"], table.loc["remove", 1, "whole"]
    assert (row["verdict"], row["n_seeds"], row["coverage"]) == ("not_resolved", 1, 0)
    assert (missing["verdict"], missing["n_seeds"]) == ("not_resolved", 0)


INF = np.inf


@pytest.mark.parametrize(
    ("ratios", "waited", "ends", "verdict"),
    [
        ([0.5, 0.94], [2, 2], False, Verdict.accelerates),
        ([0.5, 0.96], [2, 2], False, Verdict.not_resolved),
        ([0.96, 1.04], [2, 2], False, Verdict.no_effect),
        ([1.06, 1.5], [2, 2], False, Verdict.delays),
        ([1.06, INF], [2, 2], False, Verdict.delays),
        ([INF, INF], [2, 2], False, Verdict.abolishes),
        ([INF, INF], [2, 1.3], False, Verdict.delays),
        ([INF, INF], [0.9, 0.9], False, Verdict.not_resolved),
        ([INF, INF], [1.0, 1.0], False, Verdict.not_resolved),
        ([INF, INF], [2, 2], True, Verdict.delays),
        ([0.5, INF], [2, 2], False, Verdict.not_resolved),
        ([INF], [2], False, Verdict.not_resolved),
        ([], [], False, Verdict.not_resolved),
    ],
)
def test_the_rule_of_verdicts(ratios, waited, ends, verdict):
    assert judge(ratios, waited, ends=ends) is verdict


def test_an_unresolved_verdict_resolves_no_role():
    assert {role_of(Verdict.not_resolved, each) for each in Verdict} == {Role.not_resolved}
    assert role_of(Verdict.delays, Verdict.no_effect) is Role.not_resolved


def test_a_control_without_transition_is_refused(audit):
    tables = {(CONTROL, 0): run(pd.Series(0.1, index=STEPS), UP)}
    with pytest.raises(MechinterpError, match="control of seed 0 makes no transition of icl_accuracy: train longer"):
        audit_table(audit, tables)


def test_the_design_has_strengths_for_the_whole_run_and_times_at_full_strength(tiny_config):
    audit = Audit.of(tiny_config, ["ila1", "cla"], seeds=(0,))
    variants = audit.study(0, 12.0).variants
    kinds = [(each.way, each.strength, each.time) for each in audit.conditions if each.measure == "ila1"]
    one_way = [(1 / 3, Time.whole), (2 / 3, Time.whole), (1, Time.whole), (1, Time.before), (1, Time.across)]
    assert kinds == [(Way.hold, *each) for each in one_way] + [
        (Way.remove, *each) for each in [*one_way, (1, Time.after)]
    ]
    assert [name for name in variants if "cla remove" in name] == [
        f"cla remove 1 {time}" for time in ("whole", "before", "across", "after")
    ]  # a frozen classifier has no strength
    (across,) = variants["ila1 hold 1 across"].interventions
    assert (across.start, across.stop, across.strength, across.pattern) == (9, 15, 1, "previous_token")  # type: ignore
    (weak,) = variants["ila1 remove 0.33 whole"].interventions
    assert (weak.start, weak.stop, weak.strength, weak.pattern) == (0, None, 1 / 3, "uniform")  # type: ignore


@pytest.mark.parametrize(
    ("measures", "options", "message"),
    [
        (["ila"], {}, "did you mean 'ila1'"),
        (["icl_accuracy"], {}, "icl_accuracy has no manipulations: give them as"),
        (["prefix_matching_1"], {}, "sequences are of tokens"),
        ("ila1", {"strengths": (2,)}, "strengths has 2; expected numbers from 0 to 1"),
        ("ila1", {"seeds": ()}, "seeds is empty"),
        ("ila1", {"times": ["befor"]}, "did you mean 'before'"),
        ("ila1", {"outcome": "icl_acuracy"}, "did you mean 'icl_accuracy'"),
        (
            {"x": Manipulations(hold=manipulation(Clamp(layer=7, pattern="uniform")))},
            {},
            "x hold 0.33 whole: .*layer is 7",
        ),
        (
            {"x": Manipulations(remove=manipulation(Freeze(parameters=("nothing",))))},
            {},
            "x remove 1 whole: .*'nothing'",
        ),
    ],
)
def test_mistakes_are_refused_before_anything_is_trained(tiny_config, measures, options, message):
    with pytest.raises(MechinterpError, match=message):
        Audit.of(tiny_config, measures, **options)


def test_interventions_of_the_config_are_refused(tiny_config):
    config = tiny_config.updated({"interventions": [{"kind": "copy"}]})
    with pytest.raises(ConfigError, match="an audit makes its own"):
        Audit.of(config)


TOKENS = {
    "task.n_tokens": 12,
    "task.n_pos": 14,
    "task.min_period": 4,
    "task.max_period": 6,
    "model.d_model": 16,
    "model.d_head": 4,
    "training.steps": 4,
    "training.batch_size": 8,
    "checkpoints.every": 1,
}


@pytest.fixture(scope="module", params=["item_label", "tokens"])
def config(request, tiny_config) -> mi.RunConfig:
    if request.param == "item_label":
        return tiny_config.updated({"training.steps": 4, "checkpoints.every": 1})
    return mi.RunConfig.preset("induction-tokens").updated(TOKENS)


def test_strength_0_is_the_run_without_the_manipulation_to_the_bit(config, tmp_path):
    name = "ila1" if config.task.kind == "item_label" else "prefix_matching_2"
    hold = audited_measures(config)[name].hold
    assert hold is not None
    changes = [[], hold.during(0, None, 0.0), hold.during(0, None, 1.0)]
    control, strength_0, strength_1 = (
        mi.train(config.updated({"interventions": change}), tmp_path / f"{i}.h5", progress=False).digest(4)
        for i, change in enumerate(changes)
    )
    assert strength_0 == control != strength_1


def test_held_at_strength_1_a_measure_is_1_and_removed_it_is_that_of_uniform_attention(config, tmp_path):
    for name, manipulations in audited_measures(config).items():
        hold, remove = manipulations.hold, manipulations.remove
        assert hold is not None
        assert under(config, hold, name, tmp_path / f"{name}-held.h5") == pytest.approx(1.0, abs=1e-6)
        if remove is not None and remove.graded:
            value = under(config, remove, name, tmp_path / f"{name}-removed.h5")
            assert value == pytest.approx(under(config, uniform_everywhere(config), name, tmp_path / f"{name}-flat.h5"))
            assert value < 0.5


def under(config: mi.RunConfig, way: Manipulation, name: str, path: Path) -> float:
    """A measure of the network before training, under a manipulation."""
    run = mi.train(config.updated({"interventions": way.during(0, None), "training.steps": 1}), path, progress=False)
    return mi.measure(run, [name], steps=0, n_sequences=50)[f"clamped_{name}"].iloc[0]


def uniform_everywhere(config: mi.RunConfig) -> Manipulation:
    return manipulation(*(Temperature(layer=layer, tau=1e30) for layer in range(config.model.n_layers)))


def test_a_whole_audit_and_its_command(tmp_path, tiny_config, capsys):
    """Strength 0, a decoy, gives the ratio 1 exactly; a classifier that is frozen from the start abolishes."""
    config = tiny_config.updated({"training.steps": 120, "checkpoints.every": 10})
    frozen = Manipulations(
        hold=manipulation(Clamp(layer=0, pattern="previous_token")), remove=manipulation(Freeze(parameters=("*",)))
    )
    audit = Audit.of(config, {"ila1": frozen}, seeds=(0, 1), strengths=(0,), times=(), outcome="train_loss")
    table = run_audit(audit, tmp_path / "runs", workers=1, progress=False).set_index("way")
    assert table.loc["hold", ["ratio_low", "ratio_high", "verdict"]].tolist() == [1, 1, "no_effect"]
    assert table.loc["remove", "verdict"] == "abolishes"
    assert audit_roles(table.reset_index()).loc["ila1", "role"] == "not_resolved"  # strength 0 holds nothing

    file = tmp_path / "tiny.toml"
    file.write_text(TOML)
    options = ["--config", str(file), "--measures", "ila1", "--seeds", "0", "1", "--strengths", "0", "--times"]
    options += ["--outcome", "train_loss", "--workers", "1", "--runs", str(tmp_path / "runs")]
    assert main(["audit", *options, "--out", str(tmp_path / "out")]) == 0
    assert "no_effect" in capsys.readouterr().out
    written = pd.read_csv(tmp_path / "out" / "audit.csv")
    assert written["ratio"].tolist() == [1, 1]
    assert pd.read_csv(tmp_path / "out" / "roles.csv")["role"].tolist() == ["not_resolved"]
    assert main(["audit", *options, "--dry-run"]) == 0
    assert "none of 6 runs to do" in capsys.readouterr().out


TOML = """
[task]
n_classes = 8
n_labels = 4
n_pairs = 3
content_dim = 11
position_dim = 13
n_novel_classes = 8
p_in_context = 0.5
[model]
classifier_width = 19
classifier_depth = 2
[training]
batch_size = 16
steps = 120
learning_rate = 0.1
weight_decay = 0.0
[checkpoints]
every = 10
"""
