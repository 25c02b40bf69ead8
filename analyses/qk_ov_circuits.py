"""QK and OV circuits over training: what each head looks for, and whether it copies.

    python -m analyses.qk_ov_circuits RUN [RUN …] [--out FOLDER]

Writes ``{run}.csv`` (step × quantity × part: value), ``summary.csv`` (the first and last step of every run),
``null.csv`` (the strengths in untrained networks: mean and 95 % band), ``order_parameters-{run}.csv`` (β₁, α, β₂, ξ of
the minimal induction head), and figures of the strengths over training.
"""

from dataclasses import dataclass
from pathlib import Path

from analyses._common import RunAnalysis, analyse_runs, ends, run_analysis
from mechinterp.analysis.checkpoints import analyse
from mechinterp.analysis.tables import null_bands
from mechinterp.figures import trajectories
from mechinterp.run import open_runs


@dataclass
class QkOvCircuits(RunAnalysis):
    """QK and OV circuits over training: what each head looks for, and whether it copies."""

    n_sequences: int = 200
    """In-context sequences."""
    out: Path = Path("results/qk_ov_circuits")
    """Folder of the tables and figures."""

    def execute(self) -> None:
        tables = analyse_runs(self.runs, "qkov", self.out, n_sequences=self.n_sequences)
        summary = ends(tables)
        summary.to_csv(self.out / "summary.csv", index=False)
        runs = open_runs(self.runs)
        if len({run.config.updated({"seed": 0}).canonical_json() for run in runs.values()}) > 1:
            print("the configs differ in more than the seed; the band of untrained networks is that of the first run")
        untrained = null_bands(next(iter(runs.values())), n_sequences=self.n_sequences)
        untrained.to_csv(self.out / "null.csv", index=False)
        for name, run in runs.items():
            if run.config.model.n_layers != 2 or run.config.model.n_heads != 1:
                print(f"{name}: order parameters are those of two layers with one head each; left out")
                continue
            parameters = analyse(run, "order_parameters", progress=True)
            wide = parameters.pivot_table(index="step", columns="parameter", values="value", sort=False)
            wide.to_csv(self.out / f"order_parameters-{name}.csv")
            print(name)
            print(wide.iloc[[0, -1]].round(3).T.to_string())
        for table in tables.values():
            table["circuit"] = table["quantity"] + ": " + table["part"]
        last = summary[summary["step"] == summary.groupby("run")["step"].transform("max")]
        print(
            last.pivot_table(index=["quantity", "part"], columns="run", values="value", sort=False).round(3).to_string()
        )
        bands = {
            f"{each['quantity']}: {each['part']}": (each["low"], each["high"]) for each in untrained.to_dict("records")
        }
        circuits = list(next(iter(tables.values()))["circuit"].unique())
        for kind, title in (("qk", "Strength of query–key interactions"), ("ov", "Strength of what is written")):
            shown = [each for each in circuits if each.startswith(f"{kind} ")]
            title = f"{title} over training; shaded: untrained networks"
            figure = trajectories(tables, "circuit", "value", shown, title, bands)
            self.write(figure, f"{kind}_strengths")


if __name__ == "__main__":
    run_analysis(QkOvCircuits)
