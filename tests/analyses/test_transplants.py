"""The study of transplants: its rules on formations set by hand, on planted networks and on decoys."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import mechinterp as mi
from analyses import transplants
from analyses.claims.verdicts import verdict_table
from analyses.transplants import FIRST, SECOND, VALUES, Transplants, across_runs, by_run, is_judged, verdicts_of
from mechinterp.cli import run_command
from mechinterp.comparison.formation import Formation, formation_of
from mechinterp.comparison.states import States
from mechinterp.figures import formation_curves, transplant_maps
from mechinterp.models.network import Network
from mechinterp.tasks import build_task
from tests.analysis.planted_runs import PlantedRun
from tests.comparison.trajectories import switched_on

COMPONENTS = [*VALUES, "classifier", SECOND, FIRST]


def formation(
    ready: tuple[float, ...] = (0, 0, 700, 2600, 3200),
    *,
    apart: bool = True,
    advance: float = 60,
    waits: bool = True,
    needed: tuple[str, ...] = ("classifier", SECOND, FIRST),
) -> Formation:
    """One that is halfway at step 3,400, with what the rules read; `ready` is in the order of `COMPONENTS`."""
    table = pd.DataFrame({"component": COMPONENTS, "ready": ready, "advance": [0, 0, 0, advance, 10]})
    table = table.sort_values("ready", kind="stable", ignore_index=True)
    table["needed"] = table["component"].isin(needed)
    table["late"], table["awaited"] = False, False
    table["after_previous"] = apart
    pair = {
        "component": [FIRST, SECOND],
        "for": [SECOND, FIRST],
        "synergy": [500.0, 500.0],
        "waits": [waits, not waits],
    }
    return Formation(table, pd.DataFrame(pair), pd.DataFrame(), {}, pd.DataFrame(), rise=3_400.0, resolution=50.0)


def words(*runs: Formation) -> list[str]:
    return [verdict.verdict for verdict in verdicts_of(runs)]


def test_layer_1s_attention_is_ready_last_and_waits():
    verdicts = verdicts_of([formation()] * 3)
    assert [verdict.verdict for verdict in verdicts] == ["yes", "yes", "no", "no"]
    assert [verdict.runs for verdict in verdicts] == ["3 of 3", "3 of 3", "0 of 3", "0 of 3"]
    assert verdicts[0].numbers.endswith("layer 2 QK: 2600, layer 1 QK: 3200")
    assert verdicts[1].numbers == "synergy 500 steps, by itself 10"
    assert verdicts[2].numbers == "halfway at 0.98 of the run's step"
    assert verdicts[3].numbers == "ready at layer 1 values: 0, layer 2 values: 0"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ready": (0, 0, 700, 3200, 2600)}, ["no", "yes", "no", "no"]),  # layer 2 is the last
        ({"ready": (0, 0, 3300, 2600, 3200)}, ["no", "yes", "no", "no"]),  # the classifier is
        ({"apart": False}, ["no", "yes", "no", "no"]),  # last, but not by a resolved number of steps
        ({"waits": False}, ["yes", "no", "no", "no"]),  # layer 2 waits for layer 1 instead
        ({"advance": 1_701}, ["yes", "yes", "yes", "no"]),  # layer 2 alone makes it more than twice as early
        ({"advance": 1_699}, ["yes", "yes", "no", "no"]),
        ({"needed": (VALUES[0],)}, ["yes", "yes", "no", "yes"]),
        ({"needed": (VALUES[1],)}, ["yes", "yes", "no", "yes"]),
    ],
)
def test_decoys_are_told_from_it(changes, expected):
    assert words(*[formation(**changes)] * 3) == expected


def test_runs_that_differ_and_two_runs_decide_nothing():
    other = formation((0, 0, 700, 3200, 2600), advance=2_000, waits=False, needed=tuple(VALUES))
    assert words(formation(), formation(), other) == ["undecided"] * 4
    assert [verdict.runs for verdict in verdicts_of([formation(), formation(), other])] == [
        "2 of 3",
        "2 of 3",
        "1 of 3",
        "1 of 3",
    ]
    assert words(formation(), formation()) == ["undecided"] * 4


def test_planted_parts_that_are_switched_on_in_another_order_are_not_layer_1_last():
    """Layer 2 is switched on last, so that it is late, and layer 1 waits for it."""
    states, components = switched_on({"classifier": 2, FIRST: 3, SECOND: 5})
    planted = formation_of(states, components, build_task(states.config).sample("icl", 60), resamples=40)
    assert words(*[planted] * 3) == ["no", "yes", "no", "no"]
    states, components = switched_on({"classifier": 2, SECOND: 3, FIRST: 5})
    planted = formation_of(states, components, build_task(states.config).sample("icl", 60), resamples=40)
    assert words(*[planted] * 3) == ["yes", "no", "no", "no"]  # layer 1 is late by itself, and layer 2 waits for it


def test_across_runs_are_medians_and_counts():
    tables = {}
    for number in range(6):
        made = formation((0, 0, 700, 2600, 3200 + 10 * number)).components
        tables[f"run {number}"] = made.assign(late=made["component"].eq(SECOND) & (number < 2))
    rows = by_run(tables)
    assert rows.columns[0] == "run"
    assert len(rows) == 30
    summary = across_runs(rows)
    assert list(summary.index) == COMPONENTS
    first = summary.loc[FIRST]
    assert first[["runs", "ready_50", "ready_low", "ready_high", "needed"]].tolist() == [6, 3225, 3200, 3250, 6]
    assert summary["late"].tolist() == [0, 0, 0, 2, 0]
    assert summary["needed"].tolist() == [0, 0, 6, 6, 6]


class Trained(PlantedRun):
    """A run of planted states with a seed of its own."""

    def __init__(self, path: Path, states: States, seed: int):
        super().__init__(path, {step: Network(states.config, states.at(step)) for step in states.steps})
        self._seed = seed

    @property
    def origin(self) -> None:
        return None

    @property
    def network_config(self) -> mi.RunConfig:
        return self._networks[0].config

    @property
    def config(self) -> mi.RunConfig:
        return self.network_config.updated({"seed": self._seed})

    def weights(self, step: int | str) -> dict[str, torch.Tensor]:
        return self.network(step).parameters


def test_runs_count_but_for_seed_0_and_those_without_the_components(tmp_path):
    states, _ = switched_on({})
    made = formation()
    assert [is_judged(Trained(tmp_path / "a.h5", states, seed), made) for seed in (0, 1)] == [False, True]
    without = replace(made, components=made.components[made.components["component"] != FIRST])
    assert not is_judged(Trained(tmp_path / "a.h5", states, 1), without)


@pytest.mark.parametrize(("seeds", "judged"), [((0, 1, 1, 2), True), ((0,), False)])
def test_the_study_writes_tables_and_figures_of_planted_runs(seeds, judged, tmp_path, monkeypatch, capsys):
    states, _ = switched_on({"classifier": 2, FIRST: 3, SECOND: 5})
    runs = {f"run-{number}": Trained(tmp_path / f"{number}.h5", states, seed) for number, seed in enumerate(seeds)}
    monkeypatch.setattr(transplants, "open_runs", lambda paths: runs)
    options = ["--n-sequences", "60", "--n-sequences-maps", "20", "--out", str(tmp_path / "out")]
    assert run_command(Transplants, ["made-up.h5", *options]) == 0
    tables = {path.stem: pd.read_csv(path) for path in (tmp_path / "out").glob("*.csv")}
    names = {"formation", "waits", "chain", "across_runs", "maps"}
    assert {*tables} == (names | {"verdicts"} if judged else names)
    for name in ("formation", "waits", "chain"):
        assert tables[name]["run"].unique().tolist() == list(runs)
    late = tables["formation"].query("late")
    assert late["component"].unique().tolist() == [SECOND]
    assert sorted(tables["maps"]["source"].unique()) == [0, 2, 4, 6]
    text = capsys.readouterr().out
    assert ("no verdicts" in text) is not judged
    if judged:
        assert tables["verdicts"]["verdict"].tolist() == ["no", "yes", "no", "no"]
        assert tables["verdicts"]["runs"].tolist() == ["0 of 3", "3 of 3", "0 of 3", "0 of 3"]
    drawn = {path.stem for path in (tmp_path / "out").glob("*.html")}
    assert drawn == {"maps", *(f"chain_{name}" for name in runs)}


def test_a_map_has_the_accuracy_at_source_and_target_and_a_chain_its_curves():
    table = pd.DataFrame(
        [
            (name, source, target, 0.1 * source + 0.01 * target + shift)
            for name, shift in ((FIRST, 0.0), (SECOND, 0.3))
            for source in (0, 2, 5)
            for target in (0, 2, 5)
        ],
        columns=["component", "source", "target", "accuracy"],
    )
    figure = transplant_maps(table, "maps")
    first, second = (trace for trace in figure.data if trace.type == "heatmap")
    assert second.z[2][1] == pytest.approx(0.82)  # source 5 (vertical), target 2 (horizontal)
    assert (first.zmin, first.zmax, list(first.x), list(first.y)) == (0, 1, [0, 2, 5], [0, 2, 5])
    diagonals = [trace for trace in figure.data if trace.type == "scatter"]
    assert [(list(trace.x), list(trace.y)) for trace in diagonals] == [([0, 5], [0, 5])] * 2
    curves = pd.DataFrame(
        {"the run itself": [0.1, 0.2, 0.9], FIRST: [0.1, 0.8, 0.9], SECOND: [0.9] * 3}, index=[0, 2, 5]
    )
    figure = formation_curves(curves, "chain")
    assert [trace.name for trace in figure.data] == [
        "the run itself",
        f"with the last version of {FIRST}",
        f"and of {SECOND}",
    ]
    assert list(figure.data[1].y) == [0.1, 0.8, 0.9]
    assert figure.layout.shapes[0].y0 == pytest.approx(0.5)  # halfway


def test_the_committed_verdicts_follow_from_the_committed_tables():
    tables = Path(transplants.__file__).parent / "tables"
    components, waits, chain, verdicts = (
        pd.read_csv(tables / f"transplants_{name}.csv") for name in ("formation", "waits", "chain", "verdicts")
    )
    runs = []
    for name in dict.fromkeys(components["run"]):
        table, pairs, steps = (each[each["run"] == name] for each in (components, waits, chain))
        rise = steps[["rise", "held_up"]].iloc[0].sum()  # that of the run itself
        runs.append(Formation(table, pairs, steps, {}, pd.DataFrame(), rise, 50.0))
    assert len(runs) == 6
    judged = verdicts_of(runs[1:])
    columns = ["sentence", "rule", "verdict", "runs", "numbers"]
    assert verdict_table(judged)[columns].equals(verdicts[columns])
    summary = pd.read_csv(tables / "transplants_across_runs.csv", index_col="component")
    pd.testing.assert_frame_equal(across_runs(components), summary, check_dtype=False, check_names=False)
