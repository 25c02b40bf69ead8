"""The four operations of an induction head, as measured in a trained network (Reddy 2023, figure 5).

    python -m analyses.induction_circuit RUN [RUN …] [--steps STEP …] [--out FOLDER]

Writes for every run the circuit at the last step (``{run}.svg``), a film strip from before the transition to the end
(``{run}_steps.svg``), the graphs of these steps (``{run}.json``, by step) and their edges (``{run}.csv``), and
``operations.csv``, the edge that does each operation at each of these steps of every run.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import mechinterp as mi
from analyses._common import RunAnalysis, run_analysis, steps_shown, write_drawing
from mechinterp.analysis.checkpoints import circuit_graphs
from mechinterp.circuits.graph import to_dict
from mechinterp.circuits.svg import film_strip, to_svg
from mechinterp.files import make_folder, replace_text
from mechinterp.run import open_runs


@dataclass
class InductionCircuit(RunAnalysis):
    """The four operations of an induction head, as measured in a trained network."""

    steps: tuple[int, ...] = ()
    """Saved steps to draw, beside the last; by default before, during and after the transition."""
    n_pairs: int = 256
    """Sequences to measure on."""
    out: Path = Path("results/induction_circuit")

    def execute(self) -> None:
        runs, found = open_runs(self.runs), {}
        make_folder(self.out)
        for name, run in runs.items():
            steps = sorted({*self.steps, run.steps[-1]}) if self.steps else steps_shown(run, during=True)
            graphs = circuit_graphs(run, steps=steps, progress=True, n_pairs=self.n_pairs)
            edges = mi.analyse(run, "circuit", steps=steps, n_pairs=self.n_pairs)  # kept by the call before
            edges.to_csv(self.out / f"{name}.csv", index=False, float_format="%.6g")
            by_step = {step: to_dict(graph) for step, graph in graphs.items()}
            replace_text(self.out / f"{name}.json", json.dumps(by_step, ensure_ascii=False, allow_nan=False))
            last = to_svg(graphs[steps[-1]], f"{name}, step {steps[-1]:,}")
            write_drawing(last, self.out / f"{name}.svg", self.static)
            write_drawing(film_strip(graphs, name), self.out / f"{name}_steps.svg", self.static)
            found[name] = edges[edges["operation"] != ""]
        table = pd.concat(found, names=["run"]).reset_index(level=0)
        table = table[["run", "step", "operation", "source", "target", "effect", "error"]]
        table.to_csv(self.out / "operations.csv", index=False, float_format="%.4g")
        print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    run_analysis(InductionCircuit)
