"""Transitions over several runs: medians over seeds, and which measure moves first."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.special import bdtr

from mechinterp.emergence.crossing import level_crossing
from mechinterp.emergence.locate import Emergence, locate_emergence, locate_or_say_why


def compare_emergence(tables: Sequence[pd.DataFrame], measures: Sequence[str], *, reference: str) -> pd.DataFrame:
    """Transitions over several runs: quantiles of every measure's step, and its lag to `reference`, over runs.

    One row per measure: ``n_runs``, ``n_transitions``, quantiles of the step (``step_05``, ``step_50``, ``step_95``),
    the median 10–90 % width (``width_50``), and of the lag step(measure) − step(reference) within a run, where both are
    located: ``lag_50`` and its interval ``lag_low``, ``lag_high`` (`median_interval`). A negative lag: the measure
    moves first. ``half_rise_50`` and ``half_rise_lag_50`` with ``half_rise_lag_low`` and ``…_high`` are the same for
    the steps at which the curves are halfway, which do not depend on the logistic's fit.
    """
    located = [{name: locate_emergence(pd.Series(table[name])) for name in {*measures, reference}} for table in tables]
    rows = {}
    for name in measures:
        steps = _present(run[name].step for run in located)
        row: dict[str, float] = {"n_runs": len(located), "n_transitions": len(steps)}
        row |= {f"step_{q:02d}": np.quantile(steps, q / 100) if len(steps) else np.nan for q in (5, 50, 95)}
        row["width_50"] = _median(_present(run[name].width for run in located))
        row |= _lags("lag", [(run[name].step, run[reference].step) for run in located])
        row["half_rise_50"] = _median(_present(run[name].half_rise for run in located))
        row |= _lags("half_rise_lag", [(run[name].half_rise, run[reference].half_rise) for run in located])
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("measure")


def median_interval(values: Iterable[int | float], coverage: float = 0.95) -> tuple[float, float, float]:
    """The median, and an interval between two values of the sample that contains the law's median, with `coverage`.

    Between the k-th smallest and the k-th largest of n independent values it lies with probability
    1 − 2 P(Binomial(n, ½) < k), for any continuous law; k is the largest that gives the coverage. Fewer than 6 values
    give no 95 %: the ends are then not numbers.
    """
    ordered = np.sort(np.array(list(values), float))
    n = len(ordered)
    if n == 0:
        return np.nan, np.nan, np.nan
    k = int(np.count_nonzero(2 * bdtr(np.arange(n), n, 0.5) <= 1 - coverage))  # bdtr(j, n, ½) = P(Binomial(n, ½) ≤ j)
    low, high = (ordered[k - 1], ordered[n - k]) if k > 0 else (np.nan, np.nan)
    return float(np.median(ordered)), float(low), float(high)


def acquisition_step(curve: pd.Series, least: float = 0.3) -> float | None:
    """The step at which an accuracy is acquired for good; None if it is below `least` at the end.

    It is the step of a located transition that leads to `least` or more (`locate_emergence`); without one, as learning
    may be gradual, it is the step at which the accuracy rises through half of its final value (`level_crossing`).
    """
    end = float(curve.dropna().iloc[-1]) if curve.notna().any() else 0.0
    if end < least:
        return None
    emergence: Emergence = locate_or_say_why(curve)
    if emergence.transition and (emergence.after or 0.0) >= least:
        return emergence.step
    return level_crossing(curve, end / 2)


def _lags(name: str, pairs: Sequence[tuple[float | None, float | None]]) -> dict[str, float]:
    lags = [step - origin for step, origin in pairs if step is not None and origin is not None]
    return dict(zip((f"{name}_50", f"{name}_low", f"{name}_high"), median_interval(lags), strict=True))


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else float("nan")
