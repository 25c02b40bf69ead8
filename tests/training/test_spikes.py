"""Loss spikes: which losses are some, and that a run which stopped has the same as one that never did."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest
import torch

import mechinterp as mi
from mechinterp.models.forward import forward
from mechinterp.training.engines import AutogradEngine
from mechinterp.training.runs import resume, train_batched
from mechinterp.training.spikes import DEVIATIONS, LEAST, MEMORY, RECENT, SPIKES, LossSpikes, Spikes, spikes_of


def metrics_of(losses: Iterable[float]) -> dict[str, float]:
    """The metrics of one checkpoint after batches with these losses, from step 1 on."""
    spikes = LossSpikes()
    for step, loss in enumerate(losses, 1):
        spikes.add(step, float(loss))
    return spikes.pop()


def noisy(level: np.ndarray | float, size: int, seed: int = 0, spread: float = 0.1) -> np.ndarray:
    return level * np.exp(spread * np.random.default_rng(seed).standard_normal(size))


def test_a_clean_spike_is_counted_once_with_its_step_and_its_height():
    losses = noisy(0.1, 2_000)
    assert metrics_of(losses)["spikes"] == 0
    losses[[699, 1_399]] = 1.5, 6.2
    found = metrics_of(losses)
    assert (found["spikes"], found["spike_step"], found["spike_height"]) == (2, 1_400, 6.2)
    assert found["loss_level"] == pytest.approx(0.1, rel=0.1)  # 6.2 entered as the threshold


def test_the_count_is_that_since_the_last_checkpoint():
    spikes = LossSpikes()
    for step, loss in enumerate([0.1] * 50 + [3.0] + [0.1] * 49, 1):
        spikes.add(step, loss)
    first, second = spikes.pop(), spikes.pop()
    assert [first[name] for name in SPIKES] == [1, 51, 3.0]
    assert [second[name] for name in SPIKES] == [0, 0, 0]
    assert first["loss_level"] == second["loss_level"]


@pytest.mark.parametrize(
    ("level", "spread", "least"),
    [(0.01, 0.0, LEAST), (1.0, 0.0, 1.0), (1.0, 0.3, DEVIATIONS * 0.3)],
    ids=["0.3 nats", "twice the level", "six deviations"],
)
def test_each_of_the_three_thresholds_decides_where_it_is_the_largest(level, spread, least):
    before = [level + spread, level - spread] * (5 * MEMORY)
    state = metrics_of(before)
    lowest = min(state["loss_level"], state["loss_recent"])
    found = lowest + max(LEAST, lowest, DEVIATIONS * state["loss_variance"] ** 0.5)
    assert found == pytest.approx(level + least, rel=0.06)
    assert metrics_of([*before, found * 0.98])["spikes"] == 0
    assert metrics_of([*before, found * 1.02])["spikes"] == 1


def weighted_mean(values: np.ndarray, memory: int) -> float:
    """The mean of values with weights (1 − 1/memory)ⁿ of the n-th before the last; the first has all the rest."""
    weights = (1 - 1 / memory) ** np.arange(len(values))[::-1] / memory
    weights[0] *= memory
    assert weights.sum() == pytest.approx(1)
    return float(weights @ values)


def test_means_and_variance_are_weighted_ones():
    losses = noisy(0.1, 3_000)
    recent = [weighted_mean(losses[:n], RECENT) for n in range(1, 3_000)]
    assert (np.abs(losses[1:] - recent) < 0.05).all()
    found = metrics_of(losses)
    assert found["loss_level"] == pytest.approx(weighted_mean(losses, MEMORY), rel=1e-9)
    assert found["loss_recent"] == pytest.approx(weighted_mean(losses, RECENT), rel=1e-9)
    squares = np.concatenate([[0.0], (losses[1:] - recent) ** 2])
    assert found["loss_variance"] == pytest.approx(weighted_mean(squares, MEMORY), rel=0.05)  # but for rare low ones


@pytest.mark.parametrize(("later", "height"), [(50, 4.0), (150, 1.5), (300, 0.8), (450, 0.5)])
def test_a_spike_soon_after_an_abrupt_fall_is_seen(later, height):
    """From 3.47 to 0.02 within one step; one step by a factor of 170 is no spike, but the next rise is."""
    losses = np.concatenate([noisy(3.47, 1_000, spread=0.05), noisy(0.02, 500, seed=1)])
    assert metrics_of(losses)["spikes"] == 0
    losses[1_000 + later] = height
    found = metrics_of(losses)
    assert (found["spikes"], found["spike_step"]) == (1, 1_001 + later)


def test_of_many_spikes_each_is_counted():
    losses = noisy(0.01, 4_000)
    losses[1_000:3_000:20] = 1.0
    assert metrics_of(losses)["spikes"] == 100


@pytest.mark.parametrize("seed", range(3))
def test_one_sequence_of_128_that_is_badly_wrong_is_no_spike(seed):
    """Level 0.005; in 2 % of the batches one sequence has a loss of 8, which adds 0.06."""
    wrong = np.random.default_rng(seed).random(20_000) < 0.02
    assert metrics_of(0.005 + 8 / 128 * wrong)["spikes"] == 0


@pytest.mark.parametrize("width", [20, 300])
def test_a_learning_curve_has_none(width):
    curve = 3.47 / (1 + np.exp((np.arange(10_000) - 3_000) / width))
    assert metrics_of(noisy(curve, 10_000, spread=0.15))["spikes"] == 0


def test_a_slow_rise_is_none():
    rise = 0.1 + 2 * np.clip((np.arange(6_000) - 1_000) / 4_000, 0, 1)
    assert metrics_of(noisy(rise, 6_000))["spikes"] == 0


def test_a_loss_that_stays_high_becomes_the_level():
    spikes, spiking = LossSpikes(), []
    for step, loss in enumerate(np.where(np.arange(3_000) < 1_000, 0.1, 3.0), 1):
        spikes.add(step, float(loss))
        if spikes.pop()["spikes"]:
            spiking.append(step)
    assert spiking == list(range(1_001, spiking[-1] + 1))
    assert 1_000 + MEMORY < spiking[-1] < 1_000 + 3 * MEMORY
    assert spikes.pop()["loss_level"] == pytest.approx(3, rel=0.01)


def test_a_loss_that_is_not_finite_is_no_level():
    spikes = LossSpikes()
    assert math.isnan(spikes.pop()["loss_level"])
    spikes.add(1, 0.5)
    assert (spikes.pop()["loss_level"], spikes.pop()["loss_variance"]) == (0.5, 0.0)


@pytest.mark.parametrize("stop", [1, 57, 1_400])
def test_a_detector_that_goes_on_from_a_checkpoint_is_the_one_that_never_stopped(stop):
    losses = noisy(0.1, 2_000)
    losses[[60, 1_450]] = 3.0
    whole, first = LossSpikes(), LossSpikes()
    for step, loss in enumerate(losses[:stop], 1):
        whole.add(step, loss)
        first.add(step, loss)
    recorded = first.pop()
    assert whole.pop() == recorded
    second = LossSpikes(recorded)
    for step, loss in enumerate(losses[stop:], stop + 1):
        whole.add(step, loss)
        second.add(step, loss)
    assert whole.pop() == second.pop()


def test_the_summary_of_a_runs_metrics():
    rows = {0: (0, 0, 0.0), 100: (2, 37, 1.5), 200: (0, 0, 0.0), 300: (3, 250, 6.25), 400: (1, 312, 2.0)}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=SPIKES)
    found = spikes_of(table)
    assert found == Spikes(6, 37, 250, 6.25, (37, 250, 312))
    assert str(found).startswith(
        "loss spikes: 6 batches, the first at step 37, the highest, 6.2 nats, at step 250; what is measured after step"
    )
    assert str(spikes_of(table.loc[[0, 400]])).startswith("loss spikes: 1 batch, the first at step 312")
    assert spikes_of(table.loc[[0, 200]]) is None
    assert spikes_of(table.iloc[:0]) is None
    assert spikes_of(table * math.nan) is None
    assert spikes_of(table[["spikes"]]) is None


def test_sgd_at_too_large_a_learning_rate_spikes(spiking_run, tmp_path):
    found = spikes_of(spiking_run.file.metrics())
    assert found
    assert found.height > 1
    assert spiking_run.metrics["train_loss"].min() < 0.3  # it learns nevertheless
    before, batch = spiking_run.network(found.step - 1), spiking_run.task.train_batch(found.step - 1, 16)
    loss = torch.nn.functional.cross_entropy(forward(before, batch.inputs), batch.labels)
    assert found.height == pytest.approx(float(loss), rel=1e-4)
    slow = spiking_run.config.updated({"training.learning_rate": 0.03})
    assert spikes_of(mi.train(slow, tmp_path / "slow.h5", progress=False).file.metrics()) is None


def test_a_resumed_run_has_the_metrics_of_one_that_never_stopped(spiking_run, tmp_path):
    config = spiking_run.config
    path = tmp_path / "run.h5"
    stopped = mi.train(config.updated({"training.steps": 250}), path, progress=False)
    assert stopped.steps[-1] == 250
    for until in (450, 600):
        resumed = resume(path, until=until, progress=False)
    pd.testing.assert_frame_equal(resumed.metrics, spiking_run.metrics, check_exact=True)
    assert resumed.metrics["spikes"].loc[300:].sum() > 0


def test_runs_resumed_in_a_batch_have_the_metrics_of_runs_that_never_stopped(spiking_run, tmp_path, monkeypatch):
    configs = [spiking_run.config.updated({"seed": seed, "training.steps": 120}) for seed in (0, 1)]
    whole = train_batched(configs, [tmp_path / f"whole{seed}.h5" for seed in (0, 1)])
    original, calls = AutogradEngine.step_runs, []

    def step_runs(self, batches, interventions, steps=None):
        calls.append(1)
        if len(calls) == 77:
            raise KeyboardInterrupt
        return original(self, batches, interventions, steps)

    paths = [tmp_path / f"stopped{seed}.h5" for seed in (0, 1)]
    monkeypatch.setattr(AutogradEngine, "step_runs", step_runs)
    with pytest.raises(KeyboardInterrupt):
        train_batched(configs, paths)
    for one, other in zip(train_batched(configs, paths), whole, strict=True):
        pd.testing.assert_frame_equal(one.metrics, other.metrics, check_exact=True)


def test_rebuilt_steps_have_the_metrics_of_a_run_that_saved_them(spiking_run, tmp_path):
    often = spiking_run.config.updated({"checkpoints.every": 25})
    saved = mi.train(often, tmp_path / "often.h5", progress=False)
    run = mi.train(spiking_run.config, tmp_path / "run.h5", progress=False)
    assert run.densify(every=25).exact
    rebuilt = [step for step in run.steps if step % 50]
    assert saved.metrics.loc[rebuilt, "spikes"].sum() > 0
    pd.testing.assert_frame_equal(run.metrics.loc[rebuilt], saved.metrics.loc[rebuilt], check_exact=True)


def test_a_table_of_all_measures_has_the_spikes_and_one_of_named_measures_has_not(spiking_run):
    table = mi.measure(spiking_run, n_sequences=20)
    assert list(table)[-3:] == list(SPIKES)
    pd.testing.assert_frame_equal(table[list(SPIKES)], spiking_run.metrics[list(SPIKES)])
    assert spikes_of(table) == spikes_of(spiking_run.file.metrics())
    assert list(mi.measure(spiking_run, "icl_accuracy", n_sequences=20)) == ["icl_accuracy"]
    assert not {*SPIKES} & {*mi.emergence_table(table).index}
