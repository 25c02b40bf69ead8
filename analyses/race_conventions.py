"""Which conventions that the text of Nguyen & Reddy 2024 leaves open matter, and by how much?

    python -m analyses.race_conventions [--workers N] [--paper-scale] [--out FOLDER]

Each convention of the authors' code is replaced by that of the preset ``nguyen2024-fast``, one at a time. Does the
studies ``race_conventions`` (t_ICL where nothing can be memorised), ``race_conventions_memory`` (I_K(∞) of two K, and
the local exponent between them) and ``race_conventions_minimal`` (the additive model), and writes to
``race_conventions/`` the table ``conventions.csv`` and a figure. Ratios are to the authors' conventions, each with an
interval of 95 %.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import ttest_ind

from analyses._common import StudyAnalysis, StudyResult, costs, run_analysis
from analyses._sweep_figures import SERIES
from analyses.claims.scaling import ratio_interval
from analyses.claims.verdicts import by_seed
from analyses.race import learning_of, memorised_of, times_of
from mechinterp.emergence import median_interval

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
    """By variant: seeds, those that acquire ICL, the median of t_ICL with its interval, and the ratio.

    The ratio is that of two runs of a variant and of the reference, the median over all pairs (Hodges and Lehmann),
    with its interval (`ratio_interval`).
    """
    rows, found = {}, dict(iter(times_of(done, str).groupby("what", sort=False)["time"]))
    reference = found[REFERENCE]
    for name, own in found.items():
        median, low, high = median_interval(own)
        rows[name] = {"seeds": len(own), "learned": int(np.isfinite(own).sum()), "t_ICL": median}
        rows[name] |= {"t_ICL_low": low, "t_ICL_high": high}
        ratio = (1.0, np.nan, np.nan) if name == REFERENCE else ratio_interval(own, reference)
        rows[name] |= dict(zip(("t_ICL_ratio", "t_ICL_ratio_low", "t_ICL_ratio_high"), ratio, strict=True))
    return pd.DataFrame.from_dict(rows, orient="index")


def exponents(done: StudyResult) -> pd.DataFrame:
    """By setting: I_K(∞) of the two K, mean over seeds, their ratios, and the local exponent ν with its range.

    The ratios are of geometric means, with Welch's t interval of their logarithms.
    """
    table = memorised_of(learning_of(done, setting_of))
    few, many = sorted(table["K"].unique())
    result: dict[str, dict[str, float]] = {}
    whole = {str(setting): by_seed(own, "I_K", "K") for setting, own in table.groupby("what", sort=False)}
    for setting, values in whole.items():
        nu = np.log(values[many] / values[few]) / np.log(many / few)
        row = {f"I_{K}": float(values[K].mean()) for K in (few, many)}
        row |= {"nu": float(nu.mean()), "nu_least": float(nu.min()), "nu_greatest": float(nu.max())}
        row["c1_greatest"] = float(table.loc[table["what"] == setting, "c1"].max())
        for K in (few, many):
            test = ttest_ind(np.log(values[K]), np.log(whole[REFERENCE][K]), equal_var=False)
            interval = test.confidence_interval() if setting != REFERENCE else (np.nan, np.nan)
            ratio = np.exp(np.log(values[K]).mean() - np.log(whole[REFERENCE][K]).mean())
            row |= {f"I_{K}_ratio": float(ratio)}
            row |= {f"I_{K}_ratio_low": float(np.exp(interval[0])), f"I_{K}_ratio_high": float(np.exp(interval[1]))}
        result[setting] = row
    return pd.DataFrame.from_dict(result, orient="index")


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
            error_x={
                "type": "data",
                "symmetric": False,
                "array": (table[f"{column}_high"] - table[column]).to_numpy(float),
                "arrayminus": (table[column] - table[f"{column}_low"]).to_numpy(float),
                "thickness": 1.2,
                "width": 3,
            },
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
