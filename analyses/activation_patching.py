"""Activation patching at every hook × role over training: which activation carries the answer?

    python -m analyses.activation_patching RUN [RUN …] [--corruption replace_target] [--out FOLDER]

Writes ``{run}.csv`` (step × hook × role: value, effect), ``summary.csv`` (the first and last step of every run), a map
of the effects before and after for every run, and the effects of the strongest sites over training.
"""

from dataclasses import dataclass
from pathlib import Path

from analyses._common import RunAnalysis, analyse_runs, ends, run_analysis
from analyses._figures import site_maps
from mechinterp.circuits.patching import mask_unresolved
from mechinterp.figures import trajectories


@dataclass
class ActivationPatching(RunAnalysis):
    """Activation patching at every hook × role over training: which activation carries the answer?"""

    corruption: str = "replace_target"
    """swap_label, replace_target, break_pairing or shuffle_positions."""
    n_pairs: int = 256
    """Clean–corrupt pairs of sequences."""
    out: Path = Path("results/activation_patching")
    """Folder of the tables and figures."""

    def execute(self) -> None:
        tables = analyse_runs(self.runs, "patch", self.out, corruption=self.corruption, n_pairs=self.n_pairs)
        if any("head" in table for table in tables.values()):
            tables = {name: table[table["head"].isna()].copy() for name, table in tables.items()}  # all heads together
        summary = ends(tables)
        summary.to_csv(self.out / "summary.csv", index=False)
        for name, table in tables.items():
            table["site"] = table["hook"] + " at " + table["role"]
            steps = [int(table["step"].min()), int(table["step"].max())]
            maps = site_maps(
                mask_unresolved(table),
                "hook",
                "role",
                "effect",
                steps,
                f"{self.corruption}: effect of patching, {name}",
            )
            self.write(maps, name)
        last = summary[summary["step"] == summary.groupby("run")["step"].transform("max")]
        means = last.assign(site=last["hook"] + " at " + last["role"]).pivot_table(index="site", values="effect")
        strongest = means.nlargest(8, "effect")
        print(strongest.round(3).to_string())
        shown = list(strongest.index)
        tables = {name: mask_unresolved(table) for name, table in tables.items()}
        figure = trajectories(tables, "site", "effect", shown, f"Effect of patching over training ({self.corruption})")
        self.write(figure, "activation_patching")


if __name__ == "__main__":
    run_analysis(ActivationPatching)
