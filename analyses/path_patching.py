"""Path patching of every edge over training: which path carries the answer?

    python -m analyses.path_patching RUN [RUN …] [--corruption shuffle_positions] [--out FOLDER]

Writes ``{run}.csv`` (step × sender × receiver: value, effect, attribution), ``summary.csv`` (the first and last step
of every run), and a figure of every edge's effect over training. The agreement of attribution with the exact effect
is printed.
"""

from dataclasses import dataclass
from pathlib import Path

from analyses._common import RunAnalysis, analyse_runs, ends, run_analysis
from mechinterp.circuits.patching import mask_unresolved
from mechinterp.figures import trajectories


@dataclass
class PathPatching(RunAnalysis):
    """Path patching of every edge over training: which path carries the answer?"""

    corruption: str = "shuffle_positions"
    """swap_label, replace_target, break_pairing or shuffle_positions."""
    n_pairs: int = 256
    """Clean–corrupt pairs of sequences."""
    out: Path = Path("results/path_patching")
    """Folder of the tables and figures."""

    def execute(self) -> None:
        tables = analyse_runs(self.runs, "paths", self.out, corruption=self.corruption, n_pairs=self.n_pairs)
        summary = ends(tables)
        summary.to_csv(self.out / "summary.csv", index=False)
        for name, table in tables.items():
            table["edge"] = table["sender"] + " → " + table["receiver"]
            last = table[table["step"] == table["step"].max()]
            print(name)
            print(last[["edge", "effect", "attribution"]].round(3).to_string(index=False))
            print(f"correlation of attribution and effect: {last['effect'].corr(last['attribution']):.3f}")
        shown = list(dict.fromkeys(edge for table in tables.values() for edge in table["edge"]))
        tables = {name: mask_unresolved(table) for name, table in tables.items()}
        figure = trajectories(
            tables, "edge", "effect", shown, f"Effect of every path over training ({self.corruption})"
        )
        self.write(figure, "path_patching")


if __name__ == "__main__":
    run_analysis(PathPatching)
