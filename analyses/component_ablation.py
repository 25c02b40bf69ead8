"""Ablation of every component over training, and the step at which the circuit becomes necessary.

    python -m analyses.component_ablation RUN [RUN …] [--out FOLDER]

Writes ``{run}.csv`` (step × hook × ablation: intact, value), ``summary.csv`` (the first and last step of every run),
``causal_emergence.csv`` (the transition of what ablating the previous-token pattern costs, beside that of IC accuracy
and of ILA1), and a figure of what each ablation costs over training.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import mechinterp as mi
from analyses._common import RunAnalysis, analyse_runs, ends, run_analysis
from mechinterp.emergence import emergence_table
from mechinterp.figures import trajectories
from mechinterp.run import open_runs

PREVIOUS_TOKEN = "blocks.0.attn.hook_pattern: not_previous_token"


@dataclass
class ComponentAblation(RunAnalysis):
    """Ablation of every component over training, and the step at which the circuit becomes necessary."""

    n_sequences: int = 1000
    """In-context sequences."""
    out: Path = Path("results/component_ablation")
    """Folder of the tables and figures."""

    def execute(self) -> None:
        tables = analyse_runs(self.runs, "ablate", self.out, n_sequences=self.n_sequences)
        ends(tables).to_csv(self.out / "summary.csv", index=False)
        located = []
        for (name, table), run in zip(tables.items(), open_runs(self.runs).values(), strict=True):
            if "head" in table:
                table = tables[name] = table[table["head"].isna()].copy()  # all heads of a layer together
            table["component"] = table["hook"] + ": " + table["ablation"]
            table["cost"] = table["intact"] - table["value"]
            measured = mi.measure(run, ["icl_accuracy", "ila1"], progress=True)
            measured["causal"] = table[table["component"] == PREVIOUS_TOKEN].set_index("step")["cost"]
            located.append(emergence_table(measured, list(measured)).assign(run=name).reset_index())
            last = table[table["step"] == table["step"].max()]
            print(name)
            print(last[["component", "intact", "value"]].round(3).to_string(index=False))
        transitions = pd.concat(located, ignore_index=True)
        transitions.to_csv(self.out / "causal_emergence.csv", index=False)
        print(transitions.to_string(index=False))
        shown = [
            PREVIOUS_TOKEN,
            *(f"blocks.{layer}.attn.{hook}" for layer in (0, 1) for hook in ("hook_pattern: uniform", "hook_z: zero")),
        ]
        figure = trajectories(tables, "component", "cost", shown, "IC accuracy that an ablation costs, over training")
        self.write(figure, "component_ablation")


if __name__ == "__main__":
    run_analysis(ComponentAblation)
