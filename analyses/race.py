"""Does a network memorise or learn in context, and why (Nguyen & Reddy 2024, figures 2 to 6, A.3 to A.8)?

    python -m analyses.race [--workers N] [--paper-scale] [--out FOLDER]

Does the studies ``race_*.toml`` and writes, for each, its tables and its page; and to ``race_diversity/`` the figures,
``times.csv`` (t_ICL of every run without a dataset to memorise), ``thresholds.csv`` (K* at every N, fitted and
predicted), ``memory.csv`` (I_K(∞) of every K), ``cost.csv`` and ``verdicts.csv``: every claim with what was found.

``bridge.csv`` is the same race in the network of Reddy 2023, from the studies ``data_dependence`` and its ``_race``.
Times are in units of steps × learning rate, in which gradient flow does not depend on the learning rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from analyses import data_dependence
from mechinterp.analysis import Conducted, StudyAnalysis, costs, run_analysis
from mechinterp.circuits.race import race
from mechinterp.emergence import faded, reached
from mechinterp.report.study import variant_curves
from mechinterp.report.sweeps import bands, clouds, laws, strips
from mechinterp.store import open_run
from mechinterp.studies.scaling import Line, PowerLaw, line, power_law, threshold, threshold_draws
from mechinterp.studies.verdicts import (
    Verdict,
    by_seed,
    every,
    groups,
    judge,
    spread,
    verdict_table,
    with_settings,
    within,
)
from mechinterp.theory.kinetics import Kinetics, other_loss

IC, IWL = "final_icl_accuracy", "final_iwl_accuracy"
SETTINGS = {
    "K": "task.n_items",
    "N": "task.n_pairs",
    "balanced": "task.balanced",
    "decay": "training.attention_weight_decay",
    "rate": "training.learning_rate",
    "model": "model.kind",
}
LEARNED = 0.75
"""The paper's least IC accuracy of a run that has acquired ICL (figure 6e)."""
LOST = 0.9
"""Its greatest IC accuracy of a run that has lost it (figure A.6)."""
REST = 0.02
"""What c₁ must have fallen to for I_K to have come to its end."""
CLOSE = 1.25
"""By how much a loss may differ from what its theory predicts, as a ratio."""


@dataclass
class Race(StudyAnalysis):
    """Does a network memorise or learn in context, and why (Nguyen & Reddy 2024)?"""

    def execute(self) -> None:
        timed, others = self.conducted("race_time"), self.conducted("race_time_others")
        done, memory = self.conducted("race_diversity"), self.conducted("race_memory")
        fading, balanced = self.conducted("race_transience"), self.conducted("race_balanced")
        times = pd.concat([times_of(timed), times_of(others)])
        diversity, memorised = settings_of(done), self._memorised(memory)
        losses = pd.concat([table.assign(variant=variant) for (variant, _), table in fading.measured.items()])
        held = settings_of(balanced)
        bridge = self._bridge()
        found = self._verdicts(times, diversity, memorised, settings_of(fading), fading.measured, losses, held, bridge)
        thresholds = thresholds_of(diversity, times, memorised)
        for name, table in (
            ("times", times),
            ("memory", memorised),
            ("thresholds", thresholds),
            ("verdicts", found),
            ("bridge", bridge),
        ):
            table.to_csv(done.out / f"{name}.csv", index=False, float_format="%.5g")
        costs(timed, others, done, memory, fading, balanced).to_csv(done.out / "cost.csv", index=False)
        done.write(bands(diversity, "K", [IC, IWL], "N", "More pairs, other solution", log_x=True), "diversity")
        scaling = {name: samples(own, "N", "time") for name, own in times.groupby("what", sort=False)}
        done.write(laws(scaling, "N", "t_ICL", "Time to learn in context"), "times")
        at = {
            "fitted": samples(thresholds, "N", "fitted"),
            "predicted by the race": samples(thresholds, "N", "predicted"),
        }
        done.write(laws(at, "N", "K*", "Where ICL takes over"), "thresholds")
        learnt = {name: samples(own, "K", "I_K") for name, own in memorised.groupby("what", sort=False)}
        done.write(laws(learnt, "K", "I_K(∞)", "Time to memorise"), "memory")
        done.write(variant_curves(fading.study, fading.measured, "icl_accuracy"), "transience")
        after = losses[losses["icl_loss"] < np.log(2)]
        curve = np.geomspace(max(float(after["icl_loss"].min()), 1e-4), 0.5, 60)
        done.write(
            clouds(after, "icl_loss", "iwl_loss", (curve, other_loss(curve)), "The losses of the two, after ICL"),
            "losses",
        )
        shown = held.assign(contexts=held["balanced"].map({True: "N/2 of each label", False: "labels at random"}))
        shown["setting"] = "K = " + shown["K"].astype(str) + ", " + shown["contexts"]
        done.write(strips(shown, "setting", [IC], "Balanced contexts: every seed"), "balanced")
        print(thresholds.round(2).to_string(index=False))
        print(bridge.round(2).to_string(index=False))
        print(found.drop(columns="numbers").to_string(index=False))

    def _memorised(self, done: Conducted) -> pd.DataFrame:
        """I_K(∞) and the last c₁ of every run in which only the MLP learns."""
        rows = []
        for row in settings_of(done).to_dict("records"):
            end = race(open_run(self.runs / f"{row['run']}.h5")).iloc[-1]
            what = "additive model" if row["model"] == "additive" else "network"
            about = {"what": what, "K": row["K"], "seed": row["seed"]}
            rows.append(about | {"I_K": float(end["memorised"]), "c1": float(end["c1"]), "c2": float(end["c2"])})
        return pd.DataFrame(rows)

    def _bridge(self) -> pd.DataFrame:
        """The race in the network of Reddy 2023: from what either takes alone, the K at which figure 2a turns over.

        Memorising alone is B = 0, and I_K(∞) = ∫ (1 − IWL accuracy) dt, as a share of its start; ICL alone is p_C = 1.
        """
        done, alone = self.conducted("data_dependence"), self.conducted("data_dependence_race")
        near = self.conducted("data_dependence_boundary")
        classes = data_dependence.part(with_settings(done.study, done.table, data_dependence.SETTINGS), "classes")
        memory: dict[float, list[float]] = {}
        for row in classes.loc[classes["B"] == 0].sort_values("K").to_dict("records"):
            wrong = 1 - done.measured[row["variant"], row["seed"]]["iwl_accuracy"]
            times = wrong.index.to_numpy(float) * done.study.variants[row["variant"]].training.learning_rate
            memory.setdefault(float(row["K"]), []).append(float(np.trapezoid(wrong, times) / wrong.iloc[0]))
        law = power_law(memory)
        contextual = with_settings(alone.study, alone.table, data_dependence.SETTINGS)
        boundary = with_settings(near.study, near.table, data_dependence.SETTINGS)
        ends = pd.concat([classes, boundary]).rename(columns={IC: "IC", IWL: "IWL"})
        rows = []
        for B, own in contextual.groupby("B"):
            steps = [
                reached(alone.measured[row["variant"], row["seed"]]["icl_accuracy"]) for row in own.to_dict("records")
            ]
            rate = next(iter(alone.study.variants.values())).training.learning_rate
            time = float(np.median([np.inf if step is None else step * rate for step in steps]))
            observed = data_dependence.turning_point(ends[ends["B"] == B])
            predicted = (time / law.prefactor) ** (1 / law.exponent)
            row = {"B": B, "t_ICL": time, "prefactor": law.prefactor, "nu": law.exponent, "nu_low": law.low}
            rows.append(row | {"nu_high": law.high, "predicted": predicted, "observed": observed})
        return pd.DataFrame(rows)

    def _verdicts(
        self,
        times: pd.DataFrame,
        diversity: pd.DataFrame,
        memorised: pd.DataFrame,
        fading: pd.DataFrame,
        curves: Mapping[tuple[str, int], pd.DataFrame],
        losses: pd.DataFrame,
        balanced: pd.DataFrame,
        bridge: pd.DataFrame,
    ) -> pd.DataFrame:
        return verdict_table(
            [
                *of_diversity(diversity),
                *of_times(times),
                *of_scaling(diversity, times, memorised),
                *of_transience(fading, curves, losses),
                of_balance(balanced),
                of_bridge(bridge),
            ]
        )


def settings_of(done: Conducted) -> pd.DataFrame:
    """The table of a study with what was varied."""
    return with_settings(done.study, done.table, {k: v for k, v in SETTINGS.items() if _has(done, v)})


def _has(done: Conducted, dotted: str) -> bool:
    """Whether all configs of a study have a setting."""
    section, name = dotted.split(".")
    return all(hasattr(getattr(config, section), name) for config in done.study.variants.values())


def times_of(done: Conducted) -> pd.DataFrame:
    """t_ICL of every run: N, seed, time; infinite where ICL was not acquired. And which network, by the grid's name."""
    names = {"additive": "additive model", "layers": "two layers", "narrow": "narrow network", "context": "network"}
    rows = []
    for row in settings_of(done).to_dict("records"):
        step = reached(done.measured[row["variant"], row["seed"]]["icl_accuracy"])
        time = np.inf if step is None else step * row["rate"]
        rows.append({"what": names[row["variant"].split()[0]], "N": row["N"], "seed": row["seed"], "time": time})
    return pd.DataFrame(rows)


def samples(table: pd.DataFrame, by: str, column: str) -> dict[float, list[float]]:
    """By a setting, ascending, a column's values."""
    return {float(str(value)): own[column].tolist() for value, own in table.groupby(by)}


def thresholds_of(diversity: pd.DataFrame, times: pd.DataFrame, memorised: pd.DataFrame) -> pd.DataFrame:
    """K* at every N: fitted to IC accuracy, and predicted from t_ICL = I_K(∞), both of the same network."""
    narrow = times[times["what"] == "narrow network"]
    law = power_law(samples(memorised[memorised["what"] == "network"], "K", "I_K"))
    rows = []
    for N, own in diversity.groupby("N"):
        found = threshold(samples(own, "K", IC))
        time = float(narrow.loc[narrow["N"] == N, "time"].median())
        predicted = (time / law.prefactor) ** (1 / law.exponent)
        row = {"N": N, "fitted": found.at, "low": found.low, "high": found.high, "sharpness": found.sharpness}
        rows.append(row | {"t_ICL": time, "predicted": predicted})
    return pd.DataFrame(rows)


def of_diversity(diversity: pd.DataFrame) -> list[Verdict]:
    """Figures 2b, 2c, A.7 and 6c."""
    few, many, numbers, kinds = [], [], [], []
    for N, own in diversity.groupby("N"):
        ic, iwl = by_seed(own, IC, "K"), by_seed(own, IWL, "K")
        first, last = ic.columns[0], ic.columns[-1]
        few += [within(ic[first], high=0.6), within(iwl[first], low=0.95)]
        many += [within(ic[last], low=0.95), within(iwl[last], high=0.75)]
        numbers.append(
            f"N = {N}: K = {first}: IC {spread(ic[first])}, IWL {spread(iwl[first])};"
            f" K = {last}: IC {spread(ic[last])}, IWL {spread(iwl[last])}"
        )
        spreads = {K: groups(ic[K].tolist()) for K in ic}
        widest = max(spreads, key=lambda K: spreads[K].range)
        kinds.append((N, widest, spreads[widest]))
    text = "; ".join(numbers)
    modes = "; ".join(
        f"N = {N}, K = {K}: {each.lower} + {each.upper} runs, gap {each.gap:.2f} of {each.range:.2f} (p {each.p:.2f})"
        for N, K, each in kinds
    )
    bimodal = [each.bimodal for _, _, each in kinds]
    verdict = "reproduced" if all(bimodal) else "undecided" if any(bimodal) else "not reproduced"
    return [
        judge("2b, 2c", "few pairs are memorised, at every N: IC ≤ 0.6, IWL ≥ 0.95", every(*few), text),
        judge("2b, 2c", "many pairs turn it to ICL, at every N: IC ≥ 0.95, IWL ≤ 0.75", every(*many), text),
        Verdict("6c", "near K* seeds fall into two groups", verdict, f"{sum(bimodal)} of {len(bimodal)} N", modes),
    ]


def of_times(times: pd.DataFrame) -> list[Verdict]:
    """Figures 6b, 3b, A.4 and A.5."""
    verdicts = []
    for what, figure in (("network", "6b"), ("two layers", "A.5"), ("additive model", "3b, eq. 11")):
        own = times[times["what"] == what]
        straight, law = line(samples(own, "N", "time")), power_law(samples(own, "N", "time"))
        linear = straight.r2 >= 0.95 and abs(law.exponent - 1) <= 0.2
        medians = own.groupby("N")["time"].median()
        numbers = (
            f"{_line(straight)}; {_law(law, 'N')}; medians {', '.join(f'{N}: {t:.0f}' for N, t in medians.items())}"
        )
        claim = f"t_ICL is linear in N ({what}): R² ≥ 0.95, and an exponent of 0.8 to 1.2"
        verdicts.append(Verdict(figure, claim, _word(linear), _runs(own), numbers))
    additive = times[times["what"] == "additive model"].assign(
        ratio=lambda t: t["time"] / [float(Kinetics(int(N)).learning_integral()) for N in t["N"]]
    )
    ratios = additive["ratio"]
    near = bool(ratios.between(0.8, CLOSE).all())
    claim = "t_ICL of the additive model is N √(2π) (β₀ = w₀ = 0), within a quarter"
    verdicts.append(Verdict("eq. 11", claim, _word(near), _runs(additive), f"time / formula {spread(ratios)}"))
    network = times[times["what"] == "network"]
    spans = network.groupby("N")["time"].agg(["min", "median", "max"])
    tails = (spans["max"] - spans["median"]) / (spans["median"] - spans["min"])
    text = ", ".join(f"N = {N}: {value:.1f}" for N, value in tails.items())
    claim = "t_ICL has a long tail: the greatest is farther above the median than the least below it, at every N"
    verdicts.append(
        Verdict("A.4", claim, _word(bool((tails > 1).all())), _runs(network), f"(max − median)/(median − min) {text}")
    )
    return verdicts


def of_scaling(diversity: pd.DataFrame, times: pd.DataFrame, memorised: pd.DataFrame) -> list[Verdict]:
    """Figures 5 and 6a, and the race itself."""
    verdicts, laws_of = [], {}
    for what in ("network", "additive model"):
        own = memorised[memorised["what"] == what]
        law = laws_of[what] = power_law(samples(own, "K", "I_K"))
        done = bool((own["c1"] <= REST).all())
        numbers = f"{_law(law, 'K')}; c₁ at the end {spread(own['c1'], 3)}"
        claim = f"I_K(∞) ~ K^ν with ν ≈ 0.7 ({what}'s MLP): the interval meets 0.6 to 0.8"
        word = _word(law.low <= 0.8 and law.high >= 0.6) if done else "undecided"
        verdicts.append(Verdict("5, A.3", claim, word, _runs(own), numbers))
    found = thresholds_of(diversity, times, memorised)
    law, nu = power_law(samples(found, "N", "fitted")), laws_of["network"]
    timing = power_law(samples(times[times["what"] == "narrow network"], "N", "time"))
    low, high = _exponents(diversity)
    predicted = timing.exponent / nu.exponent
    at = ", ".join(f"{N}: {K:.0f}" for N, K in zip(found["N"], found["fitted"], strict=True))
    numbers = (
        f"K* at N = {at};"
        f" exponent {law.exponent:.2f} ({low:.2f} to {high:.2f}), R² {law.r2:.3f}; 1/ν = {1 / nu.exponent:.2f}, with"
        f" the exponent of t_ICL ({timing.exponent:.2f}) {predicted:.2f}"
    )
    meets = low <= 1 / nu.low and high >= 1 / nu.high
    claim = "K* ~ N^{1/ν}: the interval of the exponent meets that of 1/ν"
    verdicts.append(Verdict("6a", claim, _word(meets), _runs(diversity), numbers))
    claim = "the exponent of K* is that of t_ICL, as measured in the same network, over ν (its interval meets theirs)"
    apart = low > timing.high / nu.low or high < timing.low / nu.high
    verdicts.append(Verdict("6a, eq. 12", claim, _word(not apart), _runs(diversity), numbers))
    ratios = found["predicted"] / found["fitted"]
    claim = "ICL takes over where t_ICL = I_K(∞): K* predicted from both within a factor of 2"
    each = ", ".join(f"N = {N:.0f}: {ratio:.2f}" for N, ratio in zip(found["N"], ratios, strict=True))
    verdicts.append(
        Verdict(
            "eq. 12", claim, _word(bool(ratios.between(0.5, 2).all())), _runs(diversity), f"predicted / fitted {each}"
        )
    )
    return verdicts


def of_transience(
    fading: pd.DataFrame, curves: Mapping[tuple[str, int], pd.DataFrame], losses: pd.DataFrame
) -> list[Verdict]:
    """Figures 2e, 6d and A.6. What dips below 0.9 and comes back is not lost."""
    steps = {
        key: faded(table["icl_accuracy"]) if table["icl_accuracy"].iloc[-1] <= LOST else None
        for key, table in curves.items()
    }
    tops = {key: float(table["icl_accuracy"].max()) for key, table in curves.items()}
    rows = fading.assign(
        faded=[steps[row["variant"], row["seed"]] for row in fading.to_dict("records")],
        top=[tops[row["variant"], row["seed"]] for row in fading.to_dict("records")],
    )
    of_decay = {float(str(decay)): own for decay, own in rows.groupby("decay")}
    text = "; ".join(
        f"λ = {decay:g}: at most {spread(own['top'])}, at the end {spread(own[IC])}, lost at step"
        f" {', '.join('–' if pd.isna(step) else f'{step:.0f}' for step in own['faded'])}"
        for decay, own in of_decay.items()
    )
    kept = {int(s): bool(pd.isna(v)) for s, v in zip(of_decay[0.0]["seed"], of_decay[0.0]["faded"], strict=True)}
    lost = {
        seed: any(bool(own.loc[own["seed"] == seed, "faded"].notna().any()) for decay, own in of_decay.items() if decay)
        for seed in kept
    }
    medians = [float(own["faded"].astype(float).median()) for decay, own in of_decay.items() if decay]
    seen = [each for each in medians if np.isfinite(each)]
    sooner = _word(all(a > b for a, b in pairwise(seen))) if len(seen) > 1 else "undecided"
    after = losses.loc[(losses["icl_loss"] < 0.1) & (losses["icl_accuracy"] > 0.99)]
    ratios = pd.Series(after["iwl_loss"] / other_loss(after["icl_loss"].to_numpy(dtype=float)))
    close = float(ratios.between(1 / CLOSE, CLOSE).mean()) if len(ratios) else 0.0
    return [
        judge("2e", "without decay of attention ICL stays", kept, text),
        judge("2e", "with some decay of attention alone ICL is acquired (≥ 0.99) and lost again (≤ 0.9)", lost, text),
        Verdict("A.6", "the more decay, the sooner it is lost", sooner, _runs(rows), text),
        Verdict(
            "6d, eq. 16",
            f"after ICL, L_IWL = −½ log L_ICL within a factor of {CLOSE:g} in 90 % of checkpoints",
            _word(close >= 0.9),
            _runs(rows),
            f"in {100 * close:.0f} % of {len(ratios)}; ratio {spread(ratios)}, median {ratios.median():.2f}",
        ),
    ]


def of_balance(balanced: pd.DataFrame) -> Verdict:
    """Figure 6e."""
    learned, text, lower = balanced.assign(learned=balanced[IC] > LEARNED), [], []
    for K, own in learned.groupby("K"):
        half, free = (own.loc[own["balanced"].eq(flag), "learned"] for flag in (True, False))
        text.append(f"K = {K}: {half.sum()} of {len(half)}, at random {free.sum()} of {len(free)}")
        lower.append(float(free.mean() - half.mean()))
    claim = "with N/2 labels of each kind fewer seeds learn in context at some K, and at none more"
    return Verdict("6e, A.8", claim, _word(max(lower) > 0 and min(lower) >= 0), _runs(balanced), "; ".join(text))


def of_bridge(bridge: pd.DataFrame) -> Verdict:
    """Does the race explain the network of 2023?"""
    ratios = bridge["predicted"] / bridge["observed"]
    rows = bridge.to_dict("records")
    each = ", ".join(f"B = {row['B']}: K = {row['predicted']:.0f}, observed {row['observed']:.0f}" for row in rows)
    law = "{prefactor:.3g} K^{nu:.2f} ({nu_low:.2f} to {nu_high:.2f})".format(**rows[0])
    numbers = f"I_K(∞) = {law}; {each}"
    claim = "in the network of 2023 ICL takes over where t_ICL = I_K(∞), within a factor of 2, at every B"
    return Verdict("2023, 2a", claim, _word(bool(ratios.between(0.5, 2).all())), f"{len(bridge)} B", numbers)


def _exponents(diversity: pd.DataFrame) -> tuple[float, float]:
    """95 % of the exponents of K*(N) when the seeds of every N and K are drawn anew."""
    lengths = np.log(np.array(sorted(diversity["N"].unique()), dtype=float))
    draws = [np.log(threshold_draws(samples(own, "K", IC), seed=int(str(N)))) for N, own in diversity.groupby("N")]
    low, high = np.quantile(np.polyfit(lengths, np.array(draws), 1)[0], [0.025, 0.975])
    return float(low), float(high)


def _word(holds: bool) -> str:
    return "reproduced" if holds else "not reproduced"


def _runs(table: pd.DataFrame) -> str:
    return f"{len(table)} runs"


def _law(law: PowerLaw, x: str) -> str:
    return f"{law.prefactor:.3g} {x}^{law.exponent:.2f} (exponent {law.low:.2f} to {law.high:.2f}), R² {law.r2:.3f}"


def _line(found: Line) -> str:
    return f"slope {found.slope:.2f} ({found.low:.2f} to {found.high:.2f}), R² {found.r2:.3f}"


if __name__ == "__main__":
    run_analysis(Race)
