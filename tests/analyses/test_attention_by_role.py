"""Attention by role: on weights set by hand, and against the measures that are parts of it."""

import pandas as pd
import pytest
from torch.nn.functional import pad

import mechinterp as mi
from analyses._attention_by_role import attention_by_role
from mechinterp.errors import UnknownNameError
from mechinterp.models.network import Network
from mechinterp.models.planted import Operation, induction_head
from mechinterp.tasks.base import Batch

N, T = 8, 17


def shares(table, layer, query, column="attention"):
    rows = table[(table["layer"] == layer) & (table["query"] == query)]
    return dict(zip(rows["key"], rows[column], strict=True))


def planted(without=None):
    """The table of a planted head, and of how many sequences the first item is a correct one."""
    config = mi.RunConfig.preset("reddy2023").updated({"task.burstiness": 2, "task.epsilon": 0.0})
    network, batch = induction_head(config, without=without), mi.build_task(config).sample("icl", 100)
    inputs = pad(batch.inputs.double(), (0, network.d_model - batch.inputs.shape[-1]))
    table = attention_by_role(network, Batch(inputs, batch.labels, batch.roles))
    return table, batch.roles["correct_item"][:, 0].double().mean().item()


def test_a_planted_induction_head():
    """The first item has no token before: it sees itself, and so matches the target like the two correct labels."""
    table, first_is_correct = planted()
    assert shares(table, 0, "label") == pytest.approx(
        {"itself": 0, "token before": 1, "other items": 0, "other labels": 0}, abs=1e-3
    )
    assert shares(table, 0, "item") == pytest.approx(
        {"itself": 1 / N, "token before": 1 - 1 / N, "other items": 0, "other labels": 0}, abs=1e-3
    )
    expected = {"correct item": first_is_correct / 3, "correct label": 1 - first_is_correct / 3}
    expected |= {"itself": 0, "other items": 0, "other labels": 0}
    assert shares(table, 1, "target") == pytest.approx(expected, abs=1e-3)


def test_without_the_previous_token_attention_is_uniform():
    table, _ = planted(without=Operation.previous_token)
    first = table[table["layer"] == 0]
    assert first["attention"].tolist() == pytest.approx(first["uniform"].tolist(), abs=1e-6)
    label = shares(table, 0, "label", "uniform")
    assert label["token before"] == label["itself"] == pytest.approx(sum(1 / (2 * i) for i in range(1, N + 1)) / N)
    assert shares(table, 1, "target", "uniform") == pytest.approx(
        {"itself": 1 / T, "correct item": 2 / T, "correct label": 2 / T, "other items": 6 / T, "other labels": 6 / T}
    )


def test_it_agrees_with_the_progress_measures_and_adds_up(tiny_run):
    measured = mi.measure(tiny_run, ["ila1", "tila2", "tla2"], steps=[20], n_sequences=300).loc[20]
    table = attention_by_role(tiny_run.network(20), tiny_run.task.sample("icl", 300))
    for column in ("attention", "uniform"):
        sums = pd.Series(table.groupby(["layer", "head", "query"])[column].sum())
        assert sums.to_numpy() == pytest.approx(1, abs=1e-6)
    assert shares(table, 0, "label")["token before"] == pytest.approx(measured["ila1"], abs=1e-6)
    target = shares(table, 1, "target")
    assert target["correct label"] == pytest.approx(measured["tila2"], abs=1e-6)
    assert target["correct label"] + target["other labels"] == pytest.approx(measured["tla2"], abs=1e-6)


def test_every_head_has_its_rows(tiny_config):
    config = tiny_config.updated({"model.n_heads": 2, "model.n_layers": 3})
    table = attention_by_role(Network.initial(config), mi.build_task(config).sample("icl", 5))
    assert len(table) == 3 * 2 * (4 + 4 + 5)
    assert not table.duplicated(["layer", "head", "query", "key"]).any()


def test_a_task_without_the_roles_is_refused(tiny_run):
    batch = tiny_run.task.sample("icl", 5)
    with pytest.raises(UnknownNameError, match="unknown role 'item'"):
        attention_by_role(tiny_run.network(20), Batch(batch.inputs, batch.labels))
