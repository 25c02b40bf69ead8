"""Does the local learning coefficient step where the induction head forms? The loss around checkpoints.

    python -m analyses.training_geometry RUN [RUN …] [--decoys RUN …] [--out FOLDER]

Writes ``curves.csv`` (run × step: the local learning coefficient λ̂, trace and largest eigenvalue of the Hessian, with
standard errors), ``steps.csv`` (run × quantity: its change at the network's transition, and whether it steps there),
``components.csv`` (run × component: λ̂ before and after the transition), ``sensitivity.csv`` (of the first run: λ̂
before and after the transition with other settings), ``verdicts.csv``, and a figure of the curves.

A decoy is a network without an induction head: one of one layer, with the task and seed of one of the runs. It is
looked at where that run makes its transition.

Chains leave a checkpoint by about √(P/γ) with P parameters: γ = P/(noise · ‖θ(0)‖)², so that this is a tenth of the
initial weights' norm. The rule was set before any curve was looked at, the localisation γ was not: the first study had
γ = 300 (``--localisation 300 --draws 80 --burn-in 40``), which turned out to be noise of half the weights' norm and
more, in which two of three networks lose what they have learned. Both are on the page.

With s and w the step and the 10–90 % width of the transition of the network's accuracy (`locate_emergence`), a quantity
**steps** there if

* its change from s − w to s + w is resolved: |change| > 1.96 standard errors; and
* it is fast: |change| is at least 3 times the median of |change| over all other windows of the same width, that begin
  or end at a measured step, and lie wholly outside of s ± 2w. A steady drift is no step.

Between measured steps, values and their variances are interpolated linearly. Where no other window fits into the run,
the rule says nothing. Questions of our own; "yes" if the rule holds in every run of a preset, "no" if in none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from analyses._common import RunAnalysis, run_analysis
from analyses.claims.verdicts import Claim, Verdict, judge, verdict_table
from mechinterp.analysis.cache import TableCache
from mechinterp.comparison.components import components_of
from mechinterp.config.dotted import nearest_preset
from mechinterp.emergence import Emergence, locate_or_say_why
from mechinterp.errors import MechinterpError
from mechinterp.figures import PALETTE, styled
from mechinterp.files import make_folder
from mechinterp.geometry.hessian import hessian_trace, top_eigenvalues
from mechinterp.geometry.llc import NOISE, llc_table, localisation_of
from mechinterp.geometry.loss import NetworkLoss
from mechinterp.measures import measure
from mechinterp.measures.table import main_column
from mechinterp.run import Run, open_runs
from mechinterp.torch_state import torch_threads

RESOLVED = 1.96
"""Standard errors of a change that is resolved."""
FAST = 3.0
"""Times the median change elsewhere of a change that is a step."""
WIDTHS_APART = 2
"""Widths around the transition which windows elsewhere keep away from."""
QUANTITIES = {
    "llc": "local learning coefficient",
    "hessian_trace": "trace of the Hessian",
    "hessian_top": "largest eigenvalue of the Hessian",
}
N_CURVATURE = 256
"""Sequences for trace and largest eigenvalue; a quarter where a network is trained at all positions."""
OTHER_SEQUENCES = "other sequences"
SETTINGS: dict[str, dict[str, float]] = {
    "as in the curves": {},
    "γ / 3": {"localisation": 1 / 3},
    "3 γ": {"localisation": 3},
    "nβ / 3": {"inverse_temperature": 1 / 3},
    "3 nβ": {"inverse_temperature": 3},
    "ε / 2": {"step_size": 1 / 2},
    "2 m": {"batch": 2},
    OTHER_SEQUENCES: {},
}
"""Settings of the sensitivity table, as factors of those of the curves: of the localisation γ, the inverse temperature
nβ, the step size ε and the minibatch m."""


@dataclass(frozen=True)
class Change:
    """What a quantity does at a transition; see the module's docstring for the rule."""

    change: float
    """From s − w to s + w; NaN outside of the measured steps."""
    error: float
    """Its standard error."""
    elsewhere: float
    """Median of |change| over the windows elsewhere; NaN without one."""
    windows: int
    """How many there are."""

    @property
    def ratio(self) -> float:
        """|change| over its median elsewhere."""
        return abs(self.change) / self.elsewhere if self.elsewhere else np.inf

    @property
    def steps(self) -> bool | None:
        """Whether the quantity steps at the transition; None where there is nothing to compare it with."""
        if not (self.windows and np.isfinite(self.change)):
            return None
        return abs(self.change) > RESOLVED * self.error and self.ratio >= FAST


def change_at(values: pd.Series, errors: pd.Series, step: float, width: float) -> Change:
    """The change of a quantity, measured at ascending steps with standard errors, at a transition."""
    x = values.index.to_numpy(float)

    def between(first: float, last: float) -> tuple[float, float]:
        (before, e), (after, f) = (interpolated(values, errors, at) for at in (first, last))
        return after - before, hypot(e, f)

    starts = np.unique([*x, *(x - 2 * width)])
    inside = starts[(starts >= x[0]) & (starts + 2 * width <= x[-1])]
    apart = WIDTHS_APART * width
    elsewhere = [start for start in inside if start + 2 * width <= step - apart or start >= step + apart]
    sizes = [abs(between(start, start + 2 * width)[0]) for start in elsewhere]
    change, error = np.nan, np.nan
    if x[0] <= step - width and step + width <= x[-1]:
        change, error = between(step - width, step + width)
    return Change(change, error, float(np.median(sizes)) if sizes else np.nan, len(sizes))


def interpolated(values: pd.Series, errors: pd.Series, at: float) -> tuple[float, float]:
    """The value of a curve between its points, and the standard error from those of its two neighbours."""
    x = values.index.to_numpy(float)
    right = int(np.clip(np.searchsorted(x, at), 1, len(x) - 1))
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    parts = np.array([1 - share, share])
    value = parts @ values.to_numpy()[right - 1 : right + 1]
    return float(value), float(np.linalg.norm(parts * errors.to_numpy()[right - 1 : right + 1]))


def measured_steps(saved: Sequence[int], step: float, width: float, n: int) -> list[int]:
    """The saved steps nearest to n equal parts of the run, and to s − 2w, s − w, s, s + w and s + 2w."""
    wanted = [*np.linspace(saved[0], saved[-1], n), *(step + k * width for k in range(-2, 3))]
    return sorted({min(saved, key=lambda each: abs(each - at)) for at in wanted})


@dataclass
class Subject:
    """A run that is looked at, and the transition at which."""

    run: Run
    group: str
    """Its preset, or that with ``decoy``."""
    transition: Emergence

    @property
    def place(self) -> tuple[float, float]:
        """Step and width of the transition."""
        assert self.transition.step is not None
        assert self.transition.width is not None
        return self.transition.step, self.transition.width

    def before_and_after(self) -> list[int]:
        """The saved steps nearest to s − w and s + w."""
        step, width = self.place
        return [min(self.run.steps, key=lambda each: abs(each - at)) for at in (step - width, step + width)]


@dataclass
class TrainingGeometry(RunAnalysis):
    """Does the local learning coefficient step where the induction head forms?"""

    decoys: tuple[Path, ...] = ()
    """Runs without an induction head, each with the task and seed of one of the runs."""
    n_sequences: int = 512
    """Sequences of the training distribution, on which the loss is that of n."""
    noise: float = NOISE
    """Distance to which the localisation keeps the chains, in norms of the initial weights."""
    localisation: float | None = None
    """γ; by default that of `noise`."""
    chains: int = 4
    """Chains of Langevin dynamics."""
    draws: int = 60
    """Steps of a chain after the burn-in."""
    burn_in: int = 20
    """Steps of a chain that do not count."""
    batch: int = 64
    """Sequences of a minibatch; a quarter of it where a network is trained at all positions."""
    checkpoints: int = 14
    """Equal parts of the run, between which the saved steps nearest are measured, besides five at the transition."""
    out: Path = Path("results/training_geometry")
    """Folder of the tables and the figure."""

    def execute(self) -> None:
        make_folder(self.out)
        subjects = subjects_of(open_runs(self.runs), open_runs(self.decoys) if self.decoys else {})
        curves, components = dict[str, pd.DataFrame](), dict[str, pd.DataFrame]()
        for name, subject in subjects.items():
            with torch_threads(1):
                curves[name] = self._curves(name, subject)
                components[name] = self._components(subject)
        write(curves, self.out / "curves.csv")
        write(components, self.out / "components.csv")
        table = steps_table(subjects, curves)
        table.to_csv(self.out / "steps.csv", index=False, float_format="%.4g")
        print(table.to_string())
        name = next(iter(subjects))
        sensitivity = self._sensitivity(subjects[name]).assign(run=name)
        sensitivity.to_csv(self.out / "sensitivity.csv", index=False, float_format="%.4g")
        verdicts = verdict_table(verdicts_of(table))
        verdicts.to_csv(self.out / "verdicts.csv", index=False)
        print(verdicts[["figure", "sentence", "verdict", "runs", "numbers"]].to_string(index=False))
        self.write(draw(subjects, curves), "training_geometry")

    def _options(self, run: Run) -> dict[str, Any]:
        batch = self.batch // positions_share(run)
        gamma = (
            localisation_of(NetworkLoss.of_run(run, run.steps[0], n=1).point, self.noise)
            if self.localisation is None
            else self.localisation
        )
        options = {"localisation": gamma, "chains": self.chains, "draws": self.draws}
        return options | {"burn_in": self.burn_in, "batch": batch}

    def _llc(self, run: Run, step: int, *, components: bool = False, **options: Any) -> pd.DataFrame:
        """λ̂ of a checkpoint, or of its components (heads together); the step is the seed of the chains.

        The option `sequences` is the seed of the sequences, 0 by default.
        """
        arguments = {"n": self.n_sequences, "seed": step, "components": components, **options}
        sequences = options.pop("sequences", 0)

        def measured() -> pd.DataFrame:
            loss = NetworkLoss.of_run(run, step, self.n_sequences, sequences, torch.float32)
            parts = components_of(loss.config, heads_apart=False) if components else [None]
            return llc_table(loss, parts, seed=step, **options)

        cache = TableCache(run.path, run.network_config, "llc", "mechinterp.geometry.llc", arguments)
        return kept(cache, run.digest(step), measured)

    def _curves(self, name: str, subject: Subject) -> pd.DataFrame:
        run, options = subject.run, self._options(subject.run)
        accuracy = main_column(run)
        steps = measured_steps(run.steps, *subject.place, self.checkpoints)
        learned = measure(run, [accuracy], steps=steps)[accuracy]
        rows = []
        for step in steps:
            llc, curvature = self._llc(run, step, **options), curvature_at(run, step)
            row = llc.iloc[0].drop("component").to_dict() | curvature.iloc[0].to_dict()
            rows.append({"step": step, "accuracy": float(learned[step]), **row})
            print(f"{name}, step {step}: λ̂ = {row['llc']:.1f} ± {row['llc_error']:.1f}", flush=True)
        return pd.DataFrame(rows)

    def _components(self, subject: Subject) -> pd.DataFrame:
        run, options = subject.run, self._options(subject.run)
        sides = []
        for step in subject.before_and_after():
            table = self._llc(run, step, components=True, **options)
            sides.append(table.set_index("component")[["llc", "llc_error"]].assign(step=step))
        before, after = (side.add_suffix(f"_{when}") for side, when in zip(sides, ("before", "after"), strict=True))
        joined = before.join(after).reset_index()
        joined["change"] = joined["llc_after"] - joined["llc_before"]
        joined["change_error"] = np.hypot(joined["llc_error_after"], joined["llc_error_before"])
        return joined

    def _sensitivity(self, subject: Subject) -> pd.DataFrame:
        run, rows = subject.run, []
        for setting, factors in SETTINGS.items():
            sides = []
            for step in subject.before_and_after():
                usual = self._options(run)
                options: dict[str, Any] = usual | {"sequences": 1} if setting == OTHER_SEQUENCES else dict(usual)
                if "inverse_temperature" in factors:
                    options["inverse_temperature"] = self.n_sequences / np.log(self.n_sequences)
                if "step_size" in factors:
                    options["step_size"] = float(self._llc(run, step, **usual)["step_size"].iloc[0])
                options |= {name: type(options[name])(options[name] * by) for name, by in factors.items()}
                sides.append(self._llc(run, step, **options))
            before, after = (side.iloc[0] for side in sides)
            change, error = after["llc"] - before["llc"], hypot(after["llc_error"], before["llc_error"])
            row = {"setting": setting, "before": before["llc"], "after": after["llc"], "change": change, "error": error}
            rows.append(
                row | {"resolved": abs(change) > RESOLVED * error, "r_hat": max(before["r_hat"], after["r_hat"])}
            )
        return pd.DataFrame(rows)


def kept(cache: TableCache, digest: str, table: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table of a checkpoint, from the cache where it is in there."""
    if digest not in cache.tables:
        cache.add(digest, table())
        cache.save()
    return cache.tables[digest]


def positions_share(run: Run) -> int:
    """By how much fewer sequences a network is measured that is trained at all positions, of which all count."""
    return 4 if run.config.training.loss_at == "all" else 1


def curvature_at(run: Run, step: int) -> pd.DataFrame:
    """Trace and largest eigenvalue of a network's Hessian, with standard errors: one row."""

    n = N_CURVATURE // positions_share(run)

    def measured() -> pd.DataFrame:
        loss = NetworkLoss.of_run(run, step, n, dtype=torch.float32)
        trace, spectrum = hessian_trace(loss, probes=2), top_eigenvalues(loss, tolerance=0.02, max_steps=40)
        top, error = float(spectrum.top[0]), float(spectrum.errors[0])
        row = {"hessian_trace": trace.value, "hessian_trace_error": trace.error}
        return pd.DataFrame([row | {"hessian_top": top, "hessian_top_error": error}])

    cache = TableCache(run.path, run.network_config, "curvature", "mechinterp.geometry.hessian", {"n": n})
    return kept(cache, run.digest(step), measured)


def subjects_of(runs: Mapping[str, Run], decoys: Mapping[str, Run]) -> dict[str, Subject]:
    """The runs that make a transition, and decoys at the transitions of their runs."""
    subjects = {}
    for name, run in runs.items():
        accuracy = main_column(run)
        transition = locate_or_say_why(measure(run, [accuracy])[accuracy])
        preset, _ = nearest_preset(run.config)
        if transition.transition:
            subjects[name] = Subject(run, preset or run.config.task.kind, transition)
        else:
            print(f"{name}: {accuracy} makes no transition ({transition.reason}); the run is left out")
    for name, decoy in decoys.items():
        twins = [each for each in subjects.values() if same_task(each.run, decoy)]
        if not twins:
            raise MechinterpError(f"{decoy.path}: none of the runs has its task and seed; name one that has")
        subjects[name] = Subject(decoy, f"{twins[0].group}, decoy", twins[0].transition)
    if not subjects:
        raise MechinterpError("none of the runs makes a transition; train longer, or name others")
    return subjects


def same_task(run: Run, other: Run) -> bool:
    """Whether two runs have the same task and seed."""
    return run.config.task == other.config.task and run.config.seed == other.config.seed


def steps_table(subjects: Mapping[str, Subject], curves: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rule, for every run and quantity."""
    rows = []
    for name, subject in subjects.items():
        curve, (step, width) = curves[name].set_index("step"), subject.place
        for quantity in QUANTITIES:
            change = change_at(curve[quantity], curve[f"{quantity}_error"], step, width)
            row = {"run": name, "group": subject.group, "quantity": quantity, "step": step, "width": width}
            row |= {"change": change.change, "error": change.error, "elsewhere": change.elsewhere}
            rows.append(row | {"windows": change.windows, "ratio": change.ratio, "steps": change.steps})
    return pd.DataFrame(rows)


def verdicts_of(table: pd.DataFrame) -> list[Verdict]:
    """For every group and quantity, whether it steps at the transition in all runs that tell."""
    verdicts = []
    for (group, quantity), rows in table.groupby(["group", "quantity"], sort=False):
        told = rows[rows["steps"].notna()]
        if told.empty:
            continue
        met = dict(enumerate(told["steps"].astype(bool)))
        changes = "; ".join(
            f"{row.change:+.1f} ± {row.error:.1f}, {row.ratio:.1f} times the median elsewhere"
            for row in told.itertuples()
        )
        sentence = f"does the {QUANTITIES[str(quantity)]} step where the induction head forms?"
        rule = "its change across the transition is resolved, and 3 times or more the median elsewhere"
        verdicts.append(judge(Claim(str(group), sentence, "our question"), rule, met, changes))
    return verdicts


def write(tables: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Write the rows of all runs, with the run's name first."""
    pd.concat(tables, names=["run"]).reset_index(level=0).to_csv(path, index=False, float_format="%.4g")


def draw(subjects: Mapping[str, Subject], curves: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Accuracy and the quantities over steps, a column for every group, with the transition of its first run shaded."""
    groups = list(dict.fromkeys(subject.group for subject in subjects.values()))
    names = {"accuracy": "accuracy", "llc": "λ̂", "hessian_trace": "Hessian: trace", "hessian_top": "largest eigenvalue"}
    figure = make_subplots(
        rows=len(names), cols=len(groups), shared_xaxes="columns", subplot_titles=groups, vertical_spacing=0.04
    )
    seen = dict.fromkeys(groups, 0)
    for name, subject in subjects.items():
        column, (step, width) = groups.index(subject.group) + 1, subject.place
        colour = PALETTE[seen[subject.group] % len(PALETTE)]
        for row, quantity in enumerate(names, start=1):
            curve = curves[name]
            errors = curve.get(f"{quantity}_error")
            figure.add_scatter(
                x=curve["step"],
                y=curve[quantity],
                error_y=None if errors is None else {"array": RESOLVED * errors, "width": 2, "thickness": 1},
                mode="lines+markers",
                marker={"size": 4},
                line={"color": colour, "width": 1.2},
                name=name,
                showlegend=False,
                row=row,
                col=column,
            )
            if not seen[subject.group]:
                sides = {"x0": step - width, "x1": step + width, "line_width": 0}
                figure.add_vrect(**sides, fillcolor="#999999", opacity=0.25, row=row, col=column)
        seen[subject.group] += 1
    title = "The loss around checkpoints, with 95 % intervals; shaded: s ± w of the transition (first seed)"
    figure = styled(figure, title, None, None).update_layout(height=900)
    for row, words in enumerate(names.values(), start=1):
        figure.update_yaxes(title_text=words, row=row, col=1)
    return figure.update_xaxes(title_text="step", row=len(names))


if __name__ == "__main__":
    run_analysis(TrainingGeometry)
