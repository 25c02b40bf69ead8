"""Attention before and after the transition, on one sequence and by role (Reddy 2023, figure 3b).

    python -m analyses.attention_maps RUN [RUN …] [--out FOLDER]

Writes ``attention.csv`` (run × step × layer × head × query × key: the mean attention over sequences, and what uniform
attention gives) for the steps before and after the transition and the last one of every run, and for every run two
figures of these steps: the patterns on one sequence, and the mean attention by role.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

import mechinterp as mi
from analyses._attention_by_role import attention_by_role
from analyses._common import RunAnalysis, run_analysis, steps_shown
from analyses._figures import attention_maps, attention_shares
from mechinterp.errors import MechinterpError
from mechinterp.figures import token_names
from mechinterp.files import make_folder
from mechinterp.models.forward import run_with_cache
from mechinterp.run import open_runs


@dataclass
class AttentionMaps(RunAnalysis):
    """Attention before and after the transition, on one sequence and by role."""

    n_sequences: int = 1000
    """Sequences to average over, of the first evaluation set."""
    sequence: int = 4
    """Seed of the sequence that is shown."""
    out: Path = Path("results/attention_maps")

    def execute(self) -> None:
        runs, tables = open_runs(self.runs), {}
        make_folder(self.out)
        for name, run in runs.items():
            steps = steps_shown(run)
            batch = run.task.sample(run.task.evaluations[0], self.n_sequences)
            by_step = {str(step): attention_by_role(run.network(step), batch) for step in steps}
            tables[name] = pd.concat(by_step, names=["step"]).reset_index(level=0)
            self.write(on_one_sequence(run, steps, self.sequence, name), name)
            self.write(by_role(by_step, name), f"{name}_by_role")
        table = pd.concat(tables, names=["run"]).reset_index(level=0)
        table.to_csv(self.out / "attention.csv", index=False, float_format="%.4g")
        places = ["layer", "head", "query", "key", "uniform"]
        print(table.pivot_table(index=places, columns=["run", "step"], values="attention").round(3).to_string())


def on_one_sequence(run: mi.Run, steps: list[int], seed: int, name: str) -> go.Figure:
    """Layer 1's pattern and the target's row of layer 2, of the first heads, as the paper shows them."""
    if run.config.model.n_layers < 2:
        raise MechinterpError(f"{run.path}: has one layer; the maps show layers 1 and 2")
    batch = run.task.sample(run.task.evaluations[0], 1, seed)
    hooks, patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in (0, 1)], {}
    for step in steps:
        cache = run_with_cache(run.network(step), batch.inputs, hooks)
        layer1, layer2 = (cache[hook][0, 0].numpy() for hook in hooks)
        patterns[step] = (layer1, layer2[-1])
    names = token_names(batch.inputs.shape[1], {role: mask[0].numpy() for role, mask in batch.roles.items()})
    return attention_maps(patterns, names, f"Attention on one sequence, {name} (★: the correct label)")


def by_role(tables: dict[str, pd.DataFrame], name: str) -> go.Figure:
    """Mean attention at each step beside uniform attention; of the last layer the target, as nothing else is read.

    Several heads are averaged.
    """
    panels = {}
    for step, table in tables.items():
        rows = table.loc[(table["layer"] < table["layer"].max()) | (table["query"] == "target")]
        rows = rows.pivot_table(
            index=["layer", "query", "key"], values=["attention", "uniform"], sort=False
        ).reset_index()
        rows["query"] = "layer " + (rows["layer"] + 1).astype(str) + ": " + rows["query"]
        panels.setdefault("uniform", rows.rename(columns={"uniform": "share"}))
        panels[f"step {int(step):,}"] = rows.rename(columns={"attention": "share"})
    return attention_shares(panels, f"Attention by role, {name}")


if __name__ == "__main__":
    run_analysis(AttentionMaps)
