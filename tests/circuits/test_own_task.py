"""A task of one's own gets a circuit with its own columns; what is missing is said."""

import re

import numpy as np
import pytest
import torch

import mechinterp as mi
from mechinterp.circuits.columns import with_columns
from mechinterp.circuits.diagram import circuit_edges
from mechinterp.circuits.graph import circuit_graph, graph_of
from mechinterp.circuits.svg import to_svg
from mechinterp.cli import main
from mechinterp.errors import MechinterpError
from mechinterp.models.network import Network
from mechinterp.models.registry import parameter_shapes
from mechinterp.tasks.base import Batch, Roles
from mechinterp.tasks.corruption import Pairs, corrupted_pairs
from mechinterp.tasks.registry import config_of_task

TASK = """
import numpy as np
import torch
import mechinterp as mi


class FirstTokenTask:
    d_model, n_pos, n_labels, evaluations = 8, 3, 4, ("fresh",)
    corruptions = ("own",)

    def train_batch(self, step, size):
        return self._batch(mi.generator(0, 1, step), size)

    def sample(self, evaluation, size, seed=0):
        return self._batch(mi.generator(0, 2, seed), size)

    def corrupted(self, corruption, n_pairs, seed=0):
        clean, rng = self.sample("fresh", n_pairs, seed), mi.generator(0, 3, seed)
        labels = (clean.labels + torch.from_numpy(rng.integers(1, 4, n_pairs))) % 4
        inputs = clean.inputs.clone()
        inputs[torch.arange(n_pairs), 0, clean.labels] -= 1
        inputs[torch.arange(n_pairs), 0, labels] += 1
        return clean, mi.Batch(inputs, labels, clean.roles)

    def _batch(self, rng, size):
        labels = rng.integers(4, size=size)
        inputs = 0.1 * rng.standard_normal((size, 3, 8), dtype=np.float32)
        inputs[np.arange(size), 0, labels] += 1
        first = torch.zeros(size, 3, dtype=torch.bool)
        first[:, 0] = True
        return mi.Batch(torch.from_numpy(inputs), torch.from_numpy(labels), {"first": first})
"""
space: dict = {"__name__": "task"}
exec(TASK, space)
FirstTokenTask = space["FirstTokenTask"]


@pytest.fixture(scope="module")
def network() -> Network:
    """Layer 1 writes nothing; layer 2 attends to all tokens alike and copies what they hold; the logits are that."""
    config = config_of_task(FirstTokenTask(), mi.RunConfig().updated({"model.classifier_depth": 0}))
    parameters = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in parameter_shapes(config).items()}
    parameters["blocks.1.attn.W_V"] += torch.eye(8)
    parameters["classifier.readout.W"][:4] = 30 * torch.eye(4, dtype=torch.float64)
    return Network(config, parameters)


def test_the_planted_edges_of_a_task_of_ones_own_are_drawn(network):
    table = circuit_edges(network, FirstTokenTask(), n_pairs=200)
    shown = set(zip(table["source"][table["drawn"]], table["target"][table["drawn"]], strict=True))
    by_edge = table.set_index(["source", "target"])["effect"]
    distract = {(f"1.v.{role}", "1.target") for role in ("other", "target")}  # without one of three, 1/3 becomes 1/2
    assert shown == {("token.first", "1.v.first"), ("1.v.first", "1.target"), ("1.target", "answer")} | distract
    assert [by_edge[edge] for edge in sorted(distract)] == pytest.approx([-0.5, -0.5], abs=0.1)
    assert by_edge["1.target", "answer"] == pytest.approx(1, abs=0.05)
    assert by_edge["token.first", "1.v.first"] == pytest.approx(1, abs=0.05)
    assert by_edge["token.other", "1.v.other"] == pytest.approx(0, abs=0.05)
    assert set(table["operation"]) == {""}
    graph = graph_of(table)
    assert graph.graph["roles"] == ["other", "first", "target"]
    picture = to_svg(graph)
    assert ">first<" in picture
    assert ">other tokens<" in picture


def test_pairs_of_ones_own_are_measured_on(network):
    """With the answer against the next label, of the first 60 sequences: the lead is that of these labels."""
    task = FirstTokenTask()
    clean = task.sample("fresh", 60, seed=5)
    corrupt = Batch(clean.inputs, (clean.labels + 1) % 4, clean.roles)
    graph = circuit_graph(network, task, pairs=Pairs(clean, corrupt, clean.roles))
    assert graph.graph["n_pairs"] == 60
    rows, here = (
        torch.arange(60),
        10 * clean.inputs.sum(dim=1) + 30 * clean.inputs[:, -1],
    )  # read, and the target itself
    lead, other = (each[rows, clean.labels] - each[rows, corrupt.labels] for each in (here, here.roll(1, 0)))
    assert graph.graph["span"] == pytest.approx(float((lead - other).mean()), rel=1e-4)
    assert graph.edges["1.target", "answer"]["drawn"]


def test_a_run_on_a_task_of_ones_own_is_analysed_in_python_and_on_the_command_line(tmp_path, capsys):
    changes = {"training.steps": 60, "training.learning_rate": 0.01, "checkpoints.every": 30}
    path, code = tmp_path / "own.h5", tmp_path / "own_task.py"
    code.write_text(TASK)
    run = mi.train(mi.RunConfig().updated(changes), path, task=FirstTokenTask(), progress=False)
    table = mi.analyse(run, "circuit", n_pairs=40)
    assert set(table["step"]) == {0, 30, 60}
    assert set(mi.analyse(run, "paths", steps=60, n_pairs=20)["receiver"]) >= {"1.0.v", "classifier"}
    assert set(mi.analyse(run, "patch", steps=60, n_pairs=20)["role"]) >= {"first"}
    with pytest.raises(MechinterpError, match=r"this task's contexts show none \(the role correct_label\)"):
        mi.analyse(run, "evidence", steps=60)
    out, given = tmp_path / "c.svg", ["--task", f"{code}:FirstTokenTask"]
    assert main(["circuit", str(path), "--n-pairs", "40", "--title", "Mine", "--out", str(out), *given]) == 0
    assert ">Mine<" in out.read_text()
    assert ">first<" in out.read_text()
    assert main(["paths", str(path), "--n-pairs", "20", *given]) == 0
    capsys.readouterr()
    for wrong, message in {
        str(code): "expected FILE.py:NAME",
        f"{code}:FirstTokenTsk": "unknown task 'FirstTokenTsk'; did you mean 'FirstTokenTask'?",
        f"{code}:np": "task is a module, which has no d_model, n_pos, n_labels, evaluations, train_batch, sample",
        f"{tmp_path / 'none.py'}:A": "there is no file",
    }.items():
        assert main(["circuit", str(path), "--task", wrong]) == 2
        assert message in capsys.readouterr().err
    code.write_text("1/0")
    assert main(["circuit", str(path), *given]) == 2
    assert "raises ZeroDivisionError: division by zero" in capsys.readouterr().err


def changed(**attributes):
    return type("Changed", (FirstTokenTask,), attributes)()


def same_labels(self, corruption, n_pairs, seed=0):
    clean = self.sample("fresh", n_pairs, seed)
    return clean, clean


def too_few(self, corruption, n_pairs, seed=0):
    return tuple(each.take(slice(0, n_pairs - 1)) for each in FirstTokenTask.corrupted(self, corruption, n_pairs, seed))


def shorter(self, corruption, n_pairs, seed=0):
    clean, corrupt = FirstTokenTask.corrupted(self, corruption, n_pairs, seed)
    return clean, Batch(corrupt.inputs[:, 1:], corrupt.labels)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            changed(corruptions=()),
            "task Changed does not say how its sequences are corrupted; give it corruptions, a tuple",
        ),
        (changed(corruptions="own", corrupted=None), "give it a method corrupted(corruption, n_pairs, seed)"),
        (changed(corruptions=("swap_labl",)), "unknown corruption 'swap_labl'; did you mean 'swap_label'?"),
        (changed(corrupted=same_labels), "20 of 20 corrupt sequences have the label of their clean twin"),
        (changed(corrupted=too_few), "Changed.corrupted(own): 19 clean sequences; expected n_pairs = 20"),
        (
            changed(corrupted=shorter),
            "clean and corrupt inputs have shapes (20, 3, 8) and (20, 2, 8); expected the same",
        ),
        (changed(corrupted=lambda self, *_: 5), "Changed.corrupted(own): returns a int; expected clean and corrupt"),
        (changed(corrupted=lambda self: 5), "Changed.corrupted(own): raises TypeError: "),
        (changed(diagram_roles="first"), "Changed.diagram_roles is 'first'; expected several names"),
        (
            changed(diagram_roles=("first", "first")),
            "is ('first', 'first'); expected several names, none of them twice",
        ),
        (changed(corrupted=lambda self, *_: (1, 2)), "the clean sequences are a int; expected a Batch"),
        (
            changed(diagram_roles=("frist", "target")),
            "unknown role in Changed.diagram_roles 'frist'; did you mean 'first'?",
        ),
        (changed(diagram_roles=("first", "others")), "unknown role in Changed.diagram_roles 'others'"),
    ],
)
def test_an_error_says_what_is_missing(task, message):
    with pytest.raises(MechinterpError, match=re.escape(message)):
        with_columns(task, n_pairs=20)


def with_roles(**roles) -> Pairs:
    pairs = corrupted_pairs(FirstTokenTask(), "own", n_pairs=6)
    masks = {name: torch.tensor(mask).expand(6, 3) for name, mask in roles.items()}
    return Pairs(pairs.clean, pairs.corrupt, Roles(masks))


def test_columns_are_roles_that_share_no_token():
    task = FirstTokenTask()
    first, middle, _ = np.eye(3, dtype=bool)
    pairs, columns = with_columns(task, with_roles(b=middle, a=first))
    assert columns == ("b", "a", "target")
    assert pairs.roles["target"].sum() == pairs.roles["target"][:, -1].sum() == 6
    pairs, columns = with_columns(changed(diagram_roles=("a", "other")), with_roles(b=middle, a=first))
    assert columns == ("a", "other", "target")
    assert torch.equal(pairs.roles["other"], torch.from_numpy(middle).expand(6, 3))
    assert with_columns(changed(diagram_roles=["a"]), with_roles(a=first, b=first | middle))[1] == ("a", "target")
    with pytest.raises(MechinterpError, match=r"the roles a and b share tokens.*set FirstTokenTask\.diagram_roles to"):
        with_columns(task, with_roles(a=first, b=first | middle))
    with pytest.raises(MechinterpError, match="the role target is the last token of every sequence"):
        with_columns(task, with_roles(target=middle))
    with pytest.raises(MechinterpError, match=r"the role 'a\.b' has a point in its name"):
        with_columns(task, with_roles(**{"a.b": first}))
    one = with_roles(a=first)
    with pytest.raises(MechinterpError, match="pairs: 1 sequence"):
        with_columns(task, Pairs(one.clean.take(slice(0, 1)), one.corrupt.take(slice(0, 1)), Roles(one.roles)))
