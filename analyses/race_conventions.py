"""Which conventions that the text of Nguyen & Reddy 2024 leaves open matter, and by how much?

    python -m analyses.race_conventions [--workers N] [--paper-scale] [--out FOLDER]

Each convention of the authors' code is replaced by that of the preset ``nguyen2024-fast``, one at a time. Does the
studies ``race_conventions`` (t_ICL where nothing can be memorised), ``race_conventions_memory`` (I_K(∞) of two K, and
the local exponent between them) and ``race_conventions_minimal`` (the additive model), and writes to
``race_conventions/`` the table ``conventions.csv`` and a figure. Ratios are to the authors' conventions: of medians
over seeds for t_ICL, and of means over seeds for I_K(∞), whose seeds differ little.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses._common import StudyAnalysis, StudyResult, costs, run_analysis
from analyses._sweep_figures import SERIES
from analyses.race import SETTINGS, over_time
from mechinterp.emergence import first_above, median_interval
from mechinterp.theory.kinetics import memorised

REFERENCE = "the authors'"
"""The variant to which the others are compared."""


@dataclass
class RaceConventions(StudyAnalysis):
    """Which conventions that the text of Nguyen & Reddy 2024 leaves open matter, and by how much?"""

    def execute(self) -> None:
        done, memory = self.conducted("race_conventions"), self.conducted("race_conventions_memory")
        minimal = self.conducted("race_conventions_minimal")
        network = times(done).join(exponents(memory), how="outer")
        order = [*dict.fromkeys([*done.study.variants, *(setting_of(name) for name in memory.study.variants)])]
        table = pd.concat(
            {"network": network.loc[order], "additive model": times(minimal)}, names=["model", "convention"]
        )
        table.to_csv(done.out / "conventions.csv", float_format="%.4g")
        costs(done, memory, minimal).to_csv(done.out / "cost.csv", index=False)
        done.write(ratios(network.loc[order]), "conventions")
        print(table.round(2).to_string())


def setting_of(variant: str) -> str:
    """The setting of a variant of a study of settings × a grid of one key."""
    return variant.rsplit(" ", 2)[0]


def times(done: StudyResult) -> pd.DataFrame:
    """By variant: seeds, those that acquire ICL, the median of t_ICL with its interval, its range, and the ratio."""
    rows = {}
    for name in done.study.variants:
        found = []
        for row in done.settings(SETTINGS).to_dict("records"):
            if row["variant"] == name:
                step = first_above(done.measured[name, row["seed"]]["icl_accuracy"])
                found.append(np.inf if step is None else step * row["rate"])
        median, low, high = median_interval(found)
        rows[name] = {"seeds": len(found), "learned": int(np.isfinite(found).sum()), "t_ICL": median}
        rows[name] |= {"t_ICL_low": low, "t_ICL_high": high, "t_ICL_least": min(found), "t_ICL_greatest": max(found)}
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.assign(t_ICL_ratio=table["t_ICL"] / table["t_ICL"].iloc[0])


def exponents(done: StudyResult) -> pd.DataFrame:
    """By setting: I_K(∞) of the two K, mean over seeds, their ratios, and the local exponent ν with its range."""
    rows: list[dict[str, float | str | int]] = []
    for row in done.settings(SETTINGS).to_dict("records"):
        table = over_time(done.measured[row["variant"], row["seed"]], row["rate"])
        whole = memorised(table.index.to_numpy(float), table["c1"].to_numpy(float))[-1]
        about = {"setting": setting_of(row["variant"]), "K": row["K"], "seed": row["seed"]}
        rows.append(about | {"I_K": float(whole), "c1": float(table["c1"].iloc[-1])})
    table = pd.DataFrame(rows)
    few, many = sorted(table["K"].unique())
    result = {}
    for setting, own in table.groupby("setting", sort=False):
        values = own.pivot(index="seed", columns="K", values="I_K")
        nu = np.log(values[many] / values[few]) / np.log(many / few)
        result[setting] = {f"I_{few}": values[few].mean(), f"I_{many}": values[many].mean(), "nu": nu.mean()}
        result[setting] |= {"nu_least": nu.min(), "nu_greatest": nu.max(), "c1_greatest": own["c1"].max()}
    found = pd.DataFrame.from_dict(result, orient="index")
    for K in (few, many):
        found[f"I_{K}_ratio"] = found[f"I_{K}"] / found.loc[REFERENCE, f"I_{K}"]
    return found


def ratios(table: pd.DataFrame) -> go.Figure:
    """Ratios of t_ICL and I_K(∞) to those under the authors' conventions, a row for each change."""
    figure = go.Figure()
    columns = [name for name in table if str(name).endswith("_ratio")]
    for column, colour in zip(columns, SERIES[1:], strict=False):
        name = str(column).removesuffix("_ratio")
        figure.add_scatter(
            x=table[column].to_numpy(float),
            y=table.index.to_numpy(),
            mode="markers",
            marker={"color": colour, "size": 10},
            name=name.replace("I_", "I_K(∞), K = "),
        )
    figure.add_vline(x=1, line={"color": "#999999", "width": 1})
    ticks = [0.1, 0.2, 0.5, 1, 2, 5]
    figure.update_xaxes(
        title="ratio to the authors' conventions", type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks]
    )
    figure.update_yaxes(autorange="reversed")
    title = "One convention changed at a time"
    return figure.update_layout(template="plotly_white", title=title, height=160 + 34 * len(table), width=900)


if __name__ == "__main__":
    run_analysis(RaceConventions)
