"""What does the result depend on that the paper leaves unsaid?

    python -m analyses.convention_audit [--workers N] [--paper-scale] [--out FOLDER]

Does the studies ``convention_audit.toml`` (every convention in three settings) and ``convention_audit_classes.toml``
(novel classes, and what B = 0 means) and writes, for each, its tables and its page; and to
``convention_audit/`` one table, ``conventions.csv``, a figure of it, and ``cost.csv``.

A row is a convention in a setting. ``flow_time`` is learning rate × the step at which IC accuracy is acquired
(`mechinterp.emergence.acquisition_step`), the median over the ``acquired`` seeds in which it is; ``ratio`` compares it
with the baseline's, seed by seed. ``IC`` and ``IWL`` are accuracies at the end, ``IC_shift`` and ``IWL_shift`` their
differences to the baseline's. All are medians, ``_low`` and ``_high`` the extremes over seeds. ``matters`` names what
the convention changes in every seed: the time by more than a tenth, an accuracy by more than 0.05.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses._common import StudyAnalysis, StudyResult, costs, run_analysis
from analyses._sweep_figures import differences
from mechinterp.emergence import acquisition_step

BASELINE = "baseline"


@dataclass
class ConventionAudit(StudyAnalysis):
    """What does the result depend on that the paper leaves unsaid?"""

    def execute(self) -> None:
        done, classes = self.conducted("convention_audit"), self.conducted("convention_audit_classes")
        runs = pd.concat([outcomes(done), outcomes(classes)], ignore_index=True)
        table = compared(runs)
        table.to_csv(done.out / "conventions.csv", index=False, float_format="%.4g")
        costs(done, classes).to_csv(done.out / "cost.csv", index=False)
        done.write(differences(table, "setting", "convention", "What a convention changes"), "conventions")
        print(table.round(3).to_string(index=False))


def outcomes(done: StudyResult) -> pd.DataFrame:
    """Every run: setting, convention, seed, flow time of the IC transition, and both accuracies at the end."""
    rows = []
    for row in done.table.to_dict("records"):
        setting, _, convention = str(row["variant"]).partition(" ")
        if not convention:  # of convention_audit_classes, where every variant belongs to one setting
            setting, convention = ("i.i.d." if setting.startswith("B0") else "circuit"), setting
        curve = done.measured[row["variant"], row["seed"]]["icl_accuracy"]
        step = acquisition_step(curve)
        rate = done.study.variants[str(row["variant"])].training.learning_rate
        rows.append(
            {
                "setting": setting,
                "convention": convention,
                "seed": row["seed"],
                "flow_time": np.nan if step is None else rate * step,
                "IC": row["final_icl_accuracy"],
                "IWL": row["final_iwl_accuracy"],
            }
        )
    return pd.DataFrame(rows)


def compared(runs: pd.DataFrame) -> pd.DataFrame:
    """Every convention against its setting's first one, seed by seed."""
    rows = []
    for setting, within in runs.groupby("setting", sort=False):
        own = {str(name): each.set_index("seed") for name, each in within.groupby("convention", sort=False)}
        base = own.get(BASELINE, next(iter(own.values())))
        for convention, table in own.items():
            found = pd.DataFrame(
                {
                    "flow_time": table["flow_time"],
                    "ratio": table["flow_time"] / base["flow_time"],
                    "IC": table["IC"],
                    "IC_shift": table["IC"] - base["IC"],
                    "IWL": table["IWL"],
                    "IWL_shift": table["IWL"] - base["IWL"],
                }
            )
            row = {"setting": setting, "convention": convention, "seeds": len(found)}
            row["acquired"] = int(found["flow_time"].notna().sum())
            for name, values in found.items():
                row |= {str(name): values.median(), f"{name}_low": values.min(), f"{name}_high": values.max()}
            rows.append(row | {"matters": matters(found, base)})
    return pd.DataFrame(rows)


def matters(found: pd.DataFrame, base: pd.DataFrame) -> str:
    """What a convention changes in the same direction in every seed."""
    changed = []
    ratio, there, before = found["ratio"], found["flow_time"].notna(), base["flow_time"].notna()
    if int(there.sum()) != int(before.sum()):
        changed.append(f"IC acquired in {there.sum()} of {len(found)} (baseline: {before.sum()} of {len(base)})")
    elif bool((ratio > 1.1).all()) or bool((ratio < 1 / 1.1).all()):
        changed.append("later" if ratio.iloc[0] > 1 else "sooner")
    for name in ("IC", "IWL"):
        shift = found[f"{name}_shift"]
        if bool((shift > 0.05).all()) or bool((shift < -0.05).all()):
            changed.append(f"{name} {'+' if shift.iloc[0] > 0 else '−'}")
    return ", ".join(changed)


if __name__ == "__main__":
    run_analysis(ConventionAudit)
