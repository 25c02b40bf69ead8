"""The claims of further studies: rules say yes where a claim is true and no on decoys; modules run end to end."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses.claims import further
from analyses.claims.verdicts import Verdict
from mechinterp.cli import run_command
from mechinterp.studies.study import Study

pytestmark = pytest.mark.usefixtures("kept_workers")
STEPS = np.arange(0, 1_001, 10)
SEEDS = (1, 2, 3)


def rise(step: float, before: float, after: float) -> np.ndarray:
    """A logistic step."""
    return before + (after - before) / (1 + np.exp((step - STEPS) / 15))


def runs(**curves) -> dict[int, pd.DataFrame]:
    """The same curves for every seed."""
    return {seed: pd.DataFrame(curves, index=pd.Index(STEPS, name="step")) for seed in SEEDS}


def verdicts(found: list[Verdict]) -> list[str]:
    return [each.verdict for each in found]


def tokens(step: float, matching: float) -> dict[int, pd.DataFrame]:
    return runs(icl_accuracy=rise(300, 0.05, 1), prefix_matching_2=rise(step, 0.05, matching))


def test_prefix_matching_heads_form_with_accuracy_or_do_not():
    one = runs(icl_accuracy=rise(300, 0.05, 0.2), prefix_matching_1=rise(300, 0.05, 0.1))
    assert verdicts(further.of_induction_tokens(tokens(320, 0.9), one)) == ["reproduced", "reproduced", "yes"]
    assert verdicts(further.of_induction_tokens(tokens(700, 0.9), one))[0] == "another convention"
    assert verdicts(further.of_induction_tokens(tokens(300, 0.9), tokens_of_one()))[1] == "another convention"
    some = tokens(320, 0.9) | {3: tokens(320, 0.06)[3]}  # one seed learns without such a head
    found = further.of_induction_tokens(some, one)
    assert verdicts(found) == ["undecided", "reproduced", "no"]  # two seeds that have one decide nothing
    assert found[2].runs == "2 of 3"


def tokens_of_one() -> dict[int, pd.DataFrame]:
    """One layer that learns the task, so that two are not needed."""
    return runs(icl_accuracy=rise(300, 0.05, 1), prefix_matching_1=rise(300, 0.05, 0.1))


def chains(head: float, uniform: float, unigram: float) -> dict[int, pd.DataFrame]:
    """Uniform until one step, unigram until another, then bigram; the head forms at a third."""
    phase = np.select([uniform > STEPS, unigram > STEPS], [0, 1], 2)
    distances = {name: np.where(phase == which, 0.0, 0.1) for which, name in enumerate(further.STRATEGIES)}
    return runs(prefix_matching_2=rise(head, 0.4, 0.8), **distances)


def test_strategies_follow_one_another():
    one = chains(300, 100, 2_000)  # never bigram
    true = further.of_chains(chains(500, 100, 400), chains(300, 100, 400), one)
    assert verdicts(true) == ["reproduced", "reproduced", "no"]
    dissolves = chains(500, 100, 400), chains(300, 100, 400)
    for each in (*dissolves[0].values(), *dissolves[1].values()):
        each["prefix_matching_2"] = 1 - each["prefix_matching_2"]  # it falls
    assert verdicts(further.of_chains(*dissolves, one))[1] == "another convention"
    skips = further.of_chains(chains(300, 100, 110), chains(500, 100, 400), chains(300, 100, 400))
    assert verdicts(skips) == ["another convention", "another convention", "yes"]


def test_several_heads_add_up():
    true = runs(train_loss=rise(300, np.log(2) + 0.01, 0), tila2=rise(310, 0.2, 0.8), tla2=rise(310, 0.4, 0.8))
    heads = pd.DataFrame({"seed": SEEDS, "induction": [2, 3, 4], "without_one": [0.95, 1.0, 0.99]})
    clamped = pd.DataFrame(
        {0.0: [300.0, 310, 320], 0.5: [200.0, 210, 200], 1.0: [100.0, 120, 90], "all": [900, 900, 900]},
        index=list(SEEDS),
    )
    strong = strengths(310)
    assert verdicts(further.of_several_heads(true, strong, heads, clamped)) == ["reproduced"] * 4 + ["no"]
    late = runs(train_loss=rise(300, np.log(2) + 0.01, 0), tila2=rise(700, 0.2, 0.8), tla2=rise(700, 0.4, 0.8))
    single, unmoved = heads.assign(induction=1, without_one=0.4), clamped.mul(0).add(300.0)
    found = further.of_several_heads(late, strengths(700), single, unmoved)
    assert verdicts(found) == ["another convention"] * 4 + ["no"]


def strengths(step: float) -> dict[int, pd.DataFrame]:
    """Two heads of layer 2: one becomes an induction head, the other attends to the wrong label."""
    heads = {0: rise(100, 0, -0.3), 1: rise(step, 0, 0.8)}
    return {seed: pd.DataFrame(heads, index=pd.Index(STEPS, name="step")) for seed in SEEDS}


def test_grokking_is_told_from_learning_at_once():
    def grokking(test: float, restricted: float) -> dict[int, pd.DataFrame]:
        falls = {"restricted_loss": rise(restricted, 4, 0), "test_loss": rise(test, 4, 0)}
        return runs(train_accuracy=rise(100, 0, 1), test_accuracy=rise(test, 0, 1), **falls)

    true = {0.3: grokking(5_000, 200), 1.0: grokking(700, 200), 3.0: grokking(400, 100)}
    found = further.of_grokking(true)
    assert verdicts(found) == ["reproduced", "reproduced", "yes"]
    assert found[2].numbers.startswith("share of the run: 0.3: 1.00, 1.0: 0.7")  # one that never passes counts as late
    never = {decay: grokking(5_000, 200) for decay in true}
    assert verdicts(further.of_grokking(never)) == ["another convention", "another convention", "no"]
    at_once = {decay: grokking(120, 110) for decay in true}
    assert verdicts(further.of_grokking(at_once)) == ["another convention", "another convention", "no"]


@pytest.mark.parametrize(
    ("module", "command"),
    [
        pytest.param("induction_tokens", "InductionTokens", marks=pytest.mark.slow),
        pytest.param("edelman2024", "Edelman2024", marks=pytest.mark.slow),
        ("singh2024", "Singh2024"),
        ("grokking", "Grokking"),
    ],
)
def test_a_further_study_runs_end_to_end(module, command, tmp_path, monkeypatch):
    """Its own variants at three seeds, with narrow networks that learn nothing in a few steps."""
    small = {"model.d_model": 16, "model.d_head": 2, "training.batch_size": 4, "training.steps": 8}
    real_from_toml = Study.from_toml

    def small_from_toml(path: Path, paper_scale: bool) -> Study:
        real = real_from_toml(path, paper_scale=paper_scale)
        variants = {name: config.updated({**small, "checkpoints.every": 1}) for name, config in real.variants.items()}
        return Study(real.name, variants, real.seeds[:1], real.measures)

    monkeypatch.setattr(Study, "from_toml", small_from_toml)
    analysis = getattr(importlib.import_module(f"analyses.{module}"), command)
    more = ["--n-sequences", "20"] if module == "singh2024" else []
    assert run_command(analysis, ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path), *more]) == 0
    found = pd.read_csv(tmp_path / module / "verdicts.csv")
    assert set(found["verdict"]) <= {"undecided", "no"}  # one seed decides nothing, but may be a counterexample
    assert (tmp_path / module / f"{module}.html").read_text().count("plotly") > 0
