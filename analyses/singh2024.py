"""Several induction heads (Singh et al. 2024): do they add up, and what does previous-token attention, given, change?

    python -m analyses.singh2024 [--workers N] [--paper-scale] [--out FOLDER]

Does the study ``singh2024.toml`` (free, and with the pattern of one head of layer 1 clamped to the token before, in
half or in whole, or of all heads) and writes its tables (of runs and of variants), its page, ``heads.csv`` (attention,
effect and role of every head at the end, and the in-context accuracy without it), ``solved.csv`` (the steps at which
runs solve the task), ``strengths.csv`` (the induction strength of every head of layer 2 at every step),
``verdicts.csv``, and figures of loss, accuracy and attention and of the heads.
"""

from dataclasses import dataclass
from math import log

import pandas as pd
import torch

from analyses._common import StudyAnalysis, StudyResult, run_analysis
from analyses._figures import by_variant
from analyses.claims.further import of_several_heads
from mechinterp.circuits.ablation import Ablation, ablate
from mechinterp.circuits.heads import head_roles
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import Site
from mechinterp.emergence import level_crossing
from mechinterp.models.forward import run_with_cache
from mechinterp.run import open_run

ROWS = {"loss (nats)": ["train_loss", "clamped_train_loss"], "fraction": ["icl_accuracy", "tila2", "tla2"]}
STRENGTHS = {"free": 0.0, "previous_token_half": 0.5, "previous_token": 1.0, "previous_token_all_heads": "all"}
SOLVED = 0.4 * log(2)
"""The training loss below which the task counts as solved; ln 2 is guessing between the two labels."""


@dataclass
class Singh2024(StudyAnalysis):
    """Several induction heads (Singh et al. 2024): do they add up, and what does previous-token attention change?"""

    n_sequences: int = 1000
    """Sequences that heads are looked at with."""

    def execute(self) -> None:
        done = self.conducted("singh2024")
        runs = {name: done.by_seed(name) for name in done.study.variants}
        done.write(by_variant(runs, ROWS, "Two layers of eight heads, two pairs in context"), "singh2024")
        heads = self._heads(done)
        heads.to_csv(done.out / "heads.csv", index=False, float_format="%.4g")
        later = heads[heads["layer"] == 1].groupby("seed")
        summary = pd.DataFrame(
            {
                "induction": later["role"].agg(lambda roles: int(roles.eq("induction").sum())),
                "without_one": later["share_without"].min(),
            }
        )
        print(summary.round(3).to_string())
        solved = pd.DataFrame(
            {
                strength: {seed: self._solved(table) for seed, table in runs[name].items()}
                for name, strength in STRENGTHS.items()
            }
        )
        solved.to_csv(done.out / "solved.csv", index_label="seed", float_format="%.0f")
        strengths = self._strengths(done)
        pd.concat(strengths, names=["seed"]).to_csv(done.out / "strengths.csv", float_format="%.4f")
        drawn = {
            f"seed {seed}": {head: table[[head]].set_axis(["strength"], axis=1) for head in table}
            for seed, table in strengths.items()
        }
        done.write(
            by_variant(drawn, {"induction strength": ["strength"]}, "Induction strength of the heads of layer 2"),
            "strengths",
        )
        done.judged(of_several_heads(runs["free"], strengths, summary.reset_index(), solved))

    def _heads(self, done: StudyResult) -> pd.DataFrame:
        """The heads of the unclamped runs at the end."""
        tables = []
        for row in done.table[done.table["variant"] == "free"].to_dict("records"):
            run = open_run(self.runs / f"{row['run']}.h5")
            network, batch = run.network("last"), run.task.sample("icl", self.n_sequences)
            table = head_roles(network, run.task, n_pairs=self.n_sequences)
            sites = [
                Site(f"blocks.{layer}.attn.hook_z", None, head)
                for layer, head in table[["layer", "head"]].itertuples(index=False)
            ]
            without = ablate(network, batch, sites, Ablation.zero, metric=Metric.accuracy)
            table["share_without"] = (without["value"] / without["intact"]).to_numpy()
            tables.append(table.assign(seed=row["seed"]))
        return pd.concat(tables, ignore_index=True)

    def _strengths(self, done: StudyResult) -> dict[int, pd.DataFrame]:
        """Step × head of layer 2, of the unclamped runs: attention to the correct label less that to the other."""
        tables, hook = {}, "blocks.1.attn.hook_pattern"
        for row in done.table[done.table["variant"] == "free"].to_dict("records"):
            run = open_run(self.runs / f"{row['run']}.h5")
            batch, by_step = run.task.sample("train", self.n_sequences), {}
            correct, labels = (batch.roles[role][:, None].double() for role in ("correct_label", "label"))
            for step in run.steps:
                with torch.no_grad():
                    attention = run_with_cache(run.network(step), batch.inputs, [hook])[hook][:, :, -1]
                by_step[step] = (attention * (2 * correct - labels)).sum(dim=-1).mean(dim=0).tolist()
            tables[row["seed"]] = pd.DataFrame.from_dict(by_step, orient="index").rename_axis("step")
        return tables

    def _solved(self, table: pd.DataFrame) -> float:
        """The step at which the training loss, under clamps, falls through `SOLVED`; the last if never."""
        loss = table["clamped_train_loss" if "clamped_train_loss" in table else "train_loss"]
        step = level_crossing(-loss, -SOLVED)
        return float(table.index[-1]) if step is None else step


if __name__ == "__main__":
    run_analysis(Singh2024)
