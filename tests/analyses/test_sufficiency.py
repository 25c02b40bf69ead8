"""The study of sufficiency: its rules on transitions set by hand and on decoys, and all of it on planted runs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mechinterp as mi
from analyses import sufficiency
from analyses.claims.verdicts import verdict_table
from analyses.sufficiency import Sufficiency, transitions, verdicts_of
from mechinterp.analysis.sufficiency import SufficiencyOverTraining
from mechinterp.circuits.edges import Edge
from mechinterp.cli import run_command
from mechinterp.emergence import locate_emergence
from tests.analysis.planted_runs import CONFIG, PlantedRun
from tests.analysis.test_sufficiency import run_of

WORDS = ["no", "no", "yes", "yes", "no", "yes"]
"""Verdicts on a circuit that is all of the network: neither after nor before it, in the same transition, the only one
of its size, nothing else answers, and integrated gradients are closer."""


def row(**changes: float) -> dict[str, float]:
    """What the rules read of a run whose circuit becomes sufficient with the network."""
    made = {"lag": 0.0, "lag_low": -50.0, "lag_high": 50.0, "network_width": 200.0, "network_accuracy": 1.0}
    return made | {"complement_accuracy": 0.05, "others": 100.0, "others_as_good": 0.0, "best_other": 0.2} | changes


def approximations(runs: list[str], attribution: float = 0.9, integrated: float = 1.1) -> pd.DataFrame:
    """Approximations of an effect of 1.2 at two steps."""
    rows = [
        {"run": run, "step": step, "effect": 1.2, "attribution": attribution, "integrated": integrated}
        for run in runs
        for step in (300, 600)
    ]
    return pd.DataFrame(rows)


def words(*rows: dict[str, float], **errors: float) -> list[str]:
    runs = [f"run {number}" for number in range(len(rows))]
    verdicts = verdicts_of(pd.DataFrame(rows).assign(run=runs), approximations(runs, **errors))
    return [verdict.verdict for verdict in verdicts]


def test_a_circuit_that_is_all_of_the_network():
    assert words(row(), row(), row()) == WORDS


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lag_low": 1.0, "lag_high": 101.0}, ["yes", "no", "no", *WORDS[3:]]),  # after the network
        ({"lag_low": -101.0, "lag_high": -1.0}, ["no", "yes", "no", *WORDS[3:]]),
        ({"lag_low": 1.0, "lag_high": 99.0}, ["yes", "no", "yes", *WORDS[3:]]),  # later, in the same transition
        ({"lag_low": -100.1}, ["no", "no", "no", *WORDS[3:]]),  # not known well enough to say
        ({"lag_high": 100.1}, ["no", "no", "no", *WORDS[3:]]),
        ({"lag_low": np.nan, "lag_high": np.nan}, ["no", "no", "no", *WORDS[3:]]),  # no transition
        ({"network_width": 99.0}, ["no", "no", "no", *WORDS[3:]]),
        ({"others_as_good": 1.0}, [*WORDS[:3], "no", *WORDS[4:]]),
        ({"others": 0.0}, [*WORDS[:3], "no", *WORDS[4:]]),  # compared with nothing
        ({"complement_accuracy": 0.5}, [*WORDS[:4], "yes", WORDS[5]]),
        ({"complement_accuracy": 0.49}, WORDS),
    ],
)
def test_decoys_are_told_from_it(changes, expected):
    assert words(*[row(**changes)] * 3) == expected


def test_errors_are_absolute_and_of_every_step():
    assert words(*[row()] * 3, attribution=1.3, integrated=0.9)[-1] == "no"  # closer, though above
    runs = ["run 0", "run 1", "run 2"]
    table = approximations(runs)
    table.loc[table["step"] == 600, "integrated"] = 0.8  # worse at the end, in all runs
    assert verdicts_of(pd.DataFrame([row()] * 3).assign(run=runs), table)[-1].verdict == "no"


def test_runs_that_differ_and_two_runs_decide_nothing():
    other = row(lag_low=1.0, lag_high=300.0, others_as_good=3.0, complement_accuracy=0.9)
    assert words(row(), row(), other) == ["undecided", "no", "undecided", "undecided", "undecided", "yes"]
    assert words(row(), row()) == ["undecided"] * 6


def test_the_lag_is_the_circuits_step_less_the_networks_and_its_errors_add_in_squares():
    steps = np.arange(0, 400, 10)
    curves = {
        name: pd.Series(1 / (1 + np.exp((middle - steps) / 8)), pd.Index(steps, name="step"))
        for name, middle in (("accuracy", 230), ("network_accuracy", 150))
    }
    table = pd.DataFrame(curves).assign(faithfulness=curves["accuracy"], complement_accuracy=0.3)
    found = SufficiencyOverTraining(
        (Edge("embed", "0.0.q"),),
        390,
        0.9,
        table,
        locate_emergence(table["accuracy"]),
        locate_emergence(table["network_accuracy"]),
    )
    made = transitions(found)
    assert made["lag"] == pytest.approx(80, abs=1)
    first, second = ((made[f"{name}_high"] - made[f"{name}_low"]) / 2 for name in ("circuit", "network"))
    assert made["lag_high"] - made["lag"] == pytest.approx(np.hypot(first, second))
    assert made["lag"] - made["lag_low"] == pytest.approx(np.hypot(first, second))
    assert (made["n_edges"], made["complement_accuracy"]) == (1, 0.3)
    assert made["sufficient_since"] == 250  # 1/(1 + e^(−2.5)) = 0.92, and 0.88 a step before


class Trained(PlantedRun):
    """A planted run with what the study reads of a trained one besides."""

    @property
    def config(self) -> mi.RunConfig:
        return CONFIG


@pytest.mark.slow
def test_the_study_tells_a_circuit_that_takes_over_from_one_that_is_all_of_the_network(tmp_path, monkeypatch):
    made = {
        "takes over": run_of(tmp_path / "two.h5", 60, 230, 200),
        "all": run_of(tmp_path / "one.h5", 4000, 8000, 150),
    }
    monkeypatch.setattr(sufficiency, "open_runs", lambda paths: made)
    monkeypatch.setattr(sufficiency, "MOST_OTHERS", 0)
    monkeypatch.setattr(sufficiency, "N_RANDOM", 5)
    options = ["--replacements", "mean", "corrupt", "--n-pairs", "40", "--out", str(tmp_path / "out")]
    assert run_command(Sufficiency, ["made-up.h5", *options]) == 0
    tables = {path.stem: pd.read_csv(path) for path in (tmp_path / "out").glob("*.csv")}
    assert {*tables} == {"transitions", "curves", "circuits", "attribution", "verdicts"}
    for name in ("transitions", "curves", "circuits"):
        assert tables[name]["run"].unique().tolist() == [*made]
        assert tables[name]["replacement"].unique().tolist() == ["mean", "corrupt"]
    lags = tables["transitions"].set_index(["replacement", "run"])["lag_low"]
    assert lags["mean", "takes over"] > 50
    assert lags["mean", "all"] < 0
    assert tables["verdicts"]["verdict"].eq("undecided").all()  # of two runs
    sizes = tables["circuits"].groupby(["replacement", "run"]).size()
    assert sizes["mean"].tolist() == [7, 7]
    assert sizes["corrupt"].tolist() == [4, 4]  # a corrupt twin differs in what four of the seven edges carry
    assert {path.stem for path in (tmp_path / "out").glob("*.html")} == {"sufficiency_mean", "sufficiency_corrupt"}


def test_the_committed_verdicts_follow_from_the_committed_tables():
    tables = Path(sufficiency.__file__).parent / "tables"
    rows, attribution, verdicts = (
        pd.read_csv(tables / f"sufficiency_{name}.csv") for name in ("transitions", "attribution", "verdicts")
    )
    assert rows["replacement"].unique().tolist() == ["mean", "resample", "corrupt"]
    for replacement, table in rows.groupby("replacement"):
        judged = verdict_table(verdicts_of(table, attribution))
        columns = ["sentence", "rule", "verdict", "runs"]
        committed = verdicts[verdicts["replacement"] == replacement].reset_index(drop=True)
        assert judged[columns].equals(committed[columns])
