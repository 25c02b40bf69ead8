"""Measures of one's own, and of the weights alone: known answers, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

import mechinterp as mi
from mechinterp.errors import MechinterpError
from mechinterp.measures.functions import linear_cka, loss_barrier, weight_drift


class Line(nn.Module):
    """A network with one number, and a count, which is none of its weights."""

    calls: torch.Tensor

    def __init__(self, value: float = 0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([value]))
        self.register_buffer("calls", torch.tensor(int(value)))


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> mi.Run:
    """w = 1, 2, 4 at steps 0, 1, 2. Tests only read it."""
    path, model = tmp_path_factory.mktemp("line") / "line.h5", Line()
    with mi.record(path, model, schedule=mi.Schedule(every=1)) as recorder:
        for step, value in enumerate((1.0, 2.0, 4.0)):
            model.w.data.fill_(value)
            model.calls.fill_(10 * step)
            recorder(step, loss=8 - value)
    return mi.open_run(path, build=Line)


def test_functions_of_one_model_and_of_two(line):
    table = mi.measure(
        line,
        {
            "w": lambda model: model.w.sum(),
            "ratio": lambda model, other: {"to": model.w / other.w, "from": other.w},
            "drift": weight_drift,
        },
    )
    assert table.to_dict("list") == {
        "w": [1, 2, 4],
        "ratio_to": [1, 2, 4],
        "ratio_from": [1, 1, 1],
        "drift": [0, 1, 3],
    }
    assert list(table.index) == [0, 1, 2]
    before = mi.measure(line, {"drift": weight_drift}, reference="previous")["drift"]
    assert before.tolist() == [0, 1, 1]
    at_end = mi.measure(line, {"drift": weight_drift}, reference="last", steps=[0, 2])["drift"]
    assert at_end.tolist() == [0.75, 0]
    assert mi.measure(line, {"drift": weight_drift}, reference=1)["drift"].tolist() == [0.5, 0, 1]


def test_measures_of_weights_and_recorded_numbers_are_columns(line):
    table = mi.measure(line)
    assert table.columns.tolist() == ["loss", "weight_norm", "weights_from_first", "weights_from_previous"]
    assert table["loss"].tolist() == [7, 6, 4]
    assert table["weight_norm"].tolist() == [1, 2, 4]
    assert table["weights_from_first"].tolist() == [0, 1, 3]
    assert table["weights_from_previous"].tolist() == [0, 1, 1]
    assert mi.measure(line, "loss", steps=[1]).to_dict("list") == {"loss": [6]}


def test_measures_of_weights_are_there_for_our_runs_by_name(tiny_run):
    first, last = tiny_run.weights(0), tiny_run.weights(20)
    flat = [torch.cat([value.double().flatten() for value in weights.values()]) for weights in (first, last)]
    table = mi.measure(tiny_run, ["weight_norm", "weights_from_first"], steps=20)
    assert table["weight_norm"].item() == pytest.approx(float(flat[1].norm()), rel=1e-12)
    expected = float((flat[1] - flat[0]).norm() / flat[0].norm())
    assert table["weights_from_first"].item() == pytest.approx(expected, rel=1e-12)
    assert "weight_norm" not in mi.measure(tiny_run, steps=20, n_sequences=4)


def test_functions_apply_to_our_runs(tiny_run):
    batch = tiny_run.task.sample("icl", 50, seed=1)

    def accuracy(model):
        return (model(batch.inputs).argmax(dim=-1) == batch.labels).double().mean()

    table = mi.measure(tiny_run, {"accuracy": accuracy}, steps=[0, 20])
    expected = mi.measure(tiny_run, "icl_accuracy", steps=[0, 20], n_sequences=50, seed=1)
    np.testing.assert_allclose(table["accuracy"], expected["icl_accuracy"], atol=1e-7)


def test_what_is_refused(line):
    with pytest.raises(MechinterpError, match="unknown reference 'frist'; did you mean 'first'"):
        mi.measure(line, {"drift": weight_drift}, reference="frist")
    with pytest.raises(MechinterpError, match="the measure 'a' takes 3 arguments"):
        mi.measure(line, {"a": lambda x, y, z: 0})
    with pytest.raises(MechinterpError, match=r"the measure a is .*; expected one number"):
        mi.measure(line, {"a": lambda model: torch.zeros(2)})
    with pytest.raises(MechinterpError, match="the measure a_b is not there at every step"):
        mi.measure(line, {"a": lambda model: {"b": 1} if model.w > 1 else {}})
    with pytest.raises(MechinterpError, match="step 7 is not saved"):
        mi.measure(line, {"drift": weight_drift}, steps=[7])


def test_linear_cka_is_1_of_rotated_and_scaled_copies_and_0_of_orthogonal_ones():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((40, 5)))
    rotation = torch.from_numpy(np.linalg.qr(rng.standard_normal((5, 5)))[0])
    cka = linear_cka(lambda values: values)
    assert cka(x, 3 * x @ rotation + 7) == pytest.approx(1, abs=1e-12)
    sheared = x @ torch.diag(torch.tensor([100.0, 1, 1, 1, 1]).double())
    assert cka(x, sheared) < 0.7
    waves = torch.linspace(0, 2 * torch.pi, 41)[:-1].double()
    assert cka(waves.sin()[:, None], waves.cos()[:, None]) == pytest.approx(0, abs=1e-12)
    with pytest.raises(MechinterpError, match="40 and 39 rows"):
        cka(x, x[:-1])


def test_a_barrier_is_that_of_the_loss_between_the_weights():
    """Between the minima ±1 of (w² − 1)² it is 1, at the middle; of a bowl there is none."""
    double_well = loss_barrier(lambda model: (model.w**2 - 1) ** 2)
    assert double_well(Line(-1.0), Line(1.0)) == {"barrier": 1.0, "at": 0.5}
    assert loss_barrier(lambda model: model.w**2)(Line(-1.0), Line(3.0))["barrier"] == 0
    model, other = Line(1.0), Line(-1.0)
    double_well(model, other)
    assert (model.w.item(), other.w.item()) == (1.0, -1.0)


def test_a_function_that_changes_its_model_changes_no_other(line):
    def spoil(model):
        model.w.data.zero_()
        return 0

    table = mi.measure(line, {"spoil": spoil, "w": lambda model: model.w})
    assert table["w"].tolist() == [1, 2, 4]
    with pytest.raises(MechinterpError, match="two measures have the column a_b"):
        mi.measure(line, {"a": lambda model: {"b": 1}, "a_b": lambda model: 2})
    with pytest.raises(ValueError, match="no") as error:
        mi.measure(line, {"bad": lambda model: [].index("no") if model.w else 0})
    assert error.value.__notes__ == ["in the measure 'bad' at step 0"]


def test_a_barrier_is_between_all_that_a_network_has():
    """The loss at either end is that of the model there, also of one with BatchNorm."""

    def normalised(mean: float) -> nn.Module:
        norm = nn.BatchNorm1d(1).eval()
        norm.running_mean.fill_(mean)  # pyright: ignore[reportOptionalMemberAccess]
        return norm

    losses = list[float]()

    def loss(model):
        losses.append(model(torch.zeros(1, 1)).square().item())
        return losses[-1]

    assert loss_barrier(loss, points=3)(normalised(0.0), normalised(2.0))["barrier"] == 0
    np.testing.assert_allclose(losses, [0, 1, 4], atol=1e-4)


def test_a_recorded_number_has_its_name_though_a_measure_has_it_too(tmp_path):
    with mi.record(tmp_path / "x.h5", Line(3.0)) as recorder:
        recorder(0, weight_norm=42.0)
    table = mi.measure(mi.open_run(tmp_path / "x.h5"))
    assert table["weight_norm"].tolist() == [42]
    zero = mi.record(tmp_path / "zero.h5", Line(0.0), schedule=mi.Schedule(every=1))
    zero(0)
    zero.close()
    assert mi.measure(mi.open_run(tmp_path / "zero.h5"))["weights_from_first"].tolist() == [0]
