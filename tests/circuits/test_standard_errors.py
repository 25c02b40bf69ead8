"""Standard errors over sequences that share classes: hand-made clusters, and untrained networks."""

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import clean_corrupt_gap
from mechinterp.circuits.standard_errors import standard_error, standard_errors
from mechinterp.models.forward import forward
from mechinterp.models.network import Network
from mechinterp.tasks import ItemLabelTask
from mechinterp.tasks.corruption import Corruption, Pairs, corrupted_pairs


def test_independent_sequences_have_the_usual_error():
    values = torch.tensor([1.0, 4.0, 2.0, 9.0, -3.0])
    usual = float(values.std()) / 5**0.5
    assert standard_error(values) == pytest.approx(usual)
    assert standard_error(values, torch.arange(10).view(5, 2)) == pytest.approx(usual)
    assert standard_error(values + 1e6) == pytest.approx(usual)  # in double precision


def test_copies_of_sequences_do_not_make_the_error_smaller():
    """Each value three times, in a class of its own: the clusters' sums decide. f = 1/5."""
    values = torch.tensor([1.0, 4.0, 2.0, 9.0, -3.0])
    classes = torch.arange(5).repeat(3)[:, None].expand(15, 2)
    assert standard_error(values.repeat(3), classes) == pytest.approx(float(values.std()) / 5**0.5)


def test_many_sets_of_values_have_the_errors_that_they_have_alone():
    values = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    clusters = (torch.arange(12) // 3)[:, None].expand(12, 2)
    dyads = torch.stack([torch.arange(12) % 4, torch.arange(12) // 2], dim=1)
    for classes in (None, clusters, dyads, torch.zeros(12, 2, dtype=torch.int64)):
        errors = standard_errors(values, classes)
        alone = torch.tensor([[standard_error(one, classes) for one in line] for line in values], dtype=torch.float64)
        torch.testing.assert_close(errors, alone, equal_nan=True)
        assert errors.isnan().all() == (classes is not None and bool((classes == 0).all()))


def test_pairs_of_classes_by_hand():
    """Of the dyads ab, bc, cd, ba and dd, e = (2, 1, −1, 2, −4): ab and ba share both classes and count once."""
    values = torch.tensor([5.0, 4.0, 2.0, 5.0, -1.0])
    classes = torch.tensor([[0, 1], [1, 2], [2, 3], [1, 0], [3, 3]])
    squares = 4 + 1 + 1 + 4 + 16
    products = 2 * 1 + 2 * 2 + 1 * -1 + 1 * 2 + -1 * -4  # ab·bc, ab·ba, bc·cd, bc·ba, cd·dd
    share = (5 + 2 * 5) / 25
    assert standard_error(values, classes) ** 2 == pytest.approx((squares + 2 * products) / 25 / (1 - share))


def test_pairs_of_classes_equal_the_sum_over_all_sequences():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 40, (200, 2))
    effects = rng.standard_normal(40)
    values = effects[classes].sum(axis=1) + 0.5 * rng.standard_normal(200)
    shared = (classes[:, None, :, None] == classes[None, :, None, :]).any(axis=(2, 3))
    e = values - values.mean()
    expected = (e @ shared @ e) / 200**2 / (1 - shared.mean())
    assert standard_error(torch.from_numpy(values), torch.from_numpy(classes)) ** 2 == pytest.approx(expected)
    assert expected > 1.5 * values.var(ddof=1) / 200


def test_the_error_is_never_below_that_of_independent_sequences():
    values = torch.tensor([1.0, -1.0, 2.0, -2.0])  # opposite within a class: their sums are all 0
    classes = torch.tensor([[0, 0], [0, 0], [1, 1], [1, 1]])
    assert standard_error(values, classes) == pytest.approx(standard_error(values))


def test_a_single_class_has_no_error():
    assert np.isnan(standard_error(torch.tensor([3.0])))
    assert np.isnan(standard_error(torch.tensor([3.0, 4.0]), torch.zeros(2, 2, dtype=torch.int64)))
    assert standard_error(torch.ones(4)) == 0


def test_tasks_tell_the_classes_of_targets(full):
    task = ItemLabelTask(full.task, full.seed)
    for corruption in task.corruptions:
        pairs = corrupted_pairs(task, corruption, n_pairs=50)
        assert pairs.target_classes is not None
        clean, corrupt = pairs.target_classes.unbind(dim=1)
        assert (clean % task.n_labels).equal(pairs.answers)
        replaced = corruption is Corruption.replace_target
        assert (corrupt % task.n_labels).equal(pairs.wrong_labels if replaced else pairs.answers)
        assert corrupt.equal(clean) is not replaced
    paired = corrupted_pairs(mi.build_task(mi.RunConfig.preset("nguyen2024-fast")), n_pairs=5)
    assert paired.target_classes is None  # every sequence has items of its own


def test_spans_of_untrained_networks_are_as_large_as_their_errors(full):
    """A small part of `benchmarks.span_error`: 128 pairs of 64 classes, whose independent error is too small."""
    independent, clustered = [], []
    for seed in range(100):
        config = full.updated({"seed": seed, "task.n_novel_classes": 64})
        network, task = Network.initial(config), mi.build_task(config)
        pairs = corrupted_pairs(task, "replace_target", n_pairs=128, seed=seed)
        batches = [mi.Batch(x.inputs, x.labels, x.roles) for x in (pairs.clean, pairs.corrupt)]
        unknown = Pairs(batches[0], batches[1], pairs.roles)
        with torch.no_grad():
            clean, corrupt = forward(network, pairs.clean.inputs), forward(network, pairs.corrupt.inputs)
        for given, ratios in ((pairs, clustered), (unknown, independent)):
            _, span, error = clean_corrupt_gap(Metric.logit_difference, clean, corrupt, given)
            ratios.append(span / error)
    assert np.mean(np.square(clustered)) ** 0.5 == pytest.approx(1, abs=0.15)
    assert np.mean(np.square(independent)) ** 0.5 > 1.25
