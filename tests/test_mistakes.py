"""A user's mistake gets one line that says what to do; nothing is answered in silence and nothing is changed."""

# pyright: basic, reportArgumentType=false, reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import Literal

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch

import mechinterp as mi
from mechinterp.analysis.registry import ANALYSES, Analysis
from mechinterp.circuits.qk_ov import copying_score, qk
from mechinterp.circuits.subspaces import subspaces
from mechinterp.config import ItemLabelConfig, TaskConfig
from mechinterp.errors import MechinterpError
from mechinterp.measures import MEASURES
from mechinterp.models.forward import forward, run_with_cache
from mechinterp.models.hooked import HookedNetwork
from mechinterp.models.planted import memorising_decoy
from mechinterp.tasks import ItemLabelTask
from mechinterp.tasks.base import Batch
from mechinterp.tasks.registry import register_task
from mechinterp.training.runs import train_batched
from tests.helpers import hooked, random_network, random_parameters


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """Users have no run-time checks of types."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def task(tiny_config):
    return mi.build_task(tiny_config)


@pytest.fixture
def registered():
    """Measures that a test registers are removed again."""
    before = dict(MEASURES)
    yield
    MEASURES.clear()
    MEASURES.update(before)


MISTAKES: dict[str, tuple[Callable, str]] = {
    "a step that is text": (lambda run: run.network("6"), "step is '6'; expected a number, or 'first' or 'last'"),
    "a step between two": (lambda run: run.network(3.5), "step is 3.5; expected an integer"),
    "a step below 0": (lambda run: run.weights(-1), "step is -1; expected 0 or more, or 'last'"),
    "steps to measure that are text": (lambda run: mi.measure(run, steps="6"), "step is '6'; expected a number, or"),
    "measures that are a number": (lambda run: mi.measure(run, 3), "names is 3; expected a measure, several"),
    "half a sequence": (lambda run: mi.measure(run, n_sequences=10.5), "n_sequences is 10.5; expected an integer"),
    "a seed below 0": (lambda run: mi.corrupted_pairs(run.task, seed=-1), "seed is -1; expected 0 or more"),
    "another seed below 0": (lambda run: mi.measure(run, seed=-1), "seed is -1; expected 0 or more"),
    "a layer that is not there": (lambda run: qk(run.network(0), 5), "unknown layer '5'"),
    "a head that is not there": (lambda run: qk(run.network(0), 0, 4), "unknown head '4'"),
    "a hook in place of a site": (
        lambda run: mi.patch(run.network(0), mi.corrupted_pairs(run.task), ["hook_embed"]),
        "where: 'hook_embed' is no Site",
    ),
    "a metric that is none": (
        lambda run: mi.ablate(run.network(0), run.task.sample("icl", 4), metric=5),
        "metric is 5; expected one of logit_difference",
    ),
    "tokens in place of vectors": (
        lambda run: mi.ablate(run.network(0), Batch(torch.zeros(2, 7, dtype=torch.int64), torch.zeros(2).long(), {})),
        r"inputs are \(2, 7\) torch.int64; expected vectors \[batch, pos, 24\]",
    ),
    "wider inputs": (
        lambda run: run.model(0)(torch.zeros(2, 7, 30)),
        r"inputs are \(2, 7, 30\) torch.float32; expected vectors \[batch, pos, 24\]",
    ),
    "narrower inputs": (lambda run: run.model(0)(torch.zeros(2, 7, 20)), r"inputs are \(2, 7, 20\)"),
    "inputs of NumPy": (
        lambda run: run.model(0)(np.zeros((2, 7, 24))),
        r"inputs are a ndarray; expected a torch.Tensor",
    ),
    "one input vector": (lambda run: run.model(0)(torch.zeros(24)), r"inputs are \(24,\)"),
    "labels of another task": (
        lambda run: mi.ablate(run.network(0), Batch(torch.zeros(2, 7, 24), torch.tensor([1, 4]), {})),
        "labels must be numbers from 0 to 3",
    ),
    "a path in place of a run": (lambda run: mi.measure("a.h5"), r"expected a run \(mi.open_run\), got a str"),
    "a path to analyse": (lambda run: mi.analyse("a.h5", "patch"), r"expected a run \(mi.open_run\), got a str"),
    "a path to transplant in": (lambda run: mi.transplant("a.h5"), r"expected a run \(mi.open_run\), got a str"),
    "a path to interpolate to": (
        lambda run: mi.interpolate(run, 0, 20, other="a.h5"),
        r"expected a run \(mi.open_run\), got a str",
    ),
    "a path to replay": (lambda run: mi.replay("a.h5", 1, print), r"expected a run \(mi.open_run\), got a str"),
    "a path among runs": (lambda run: mi.match_heads([run, "a.h5"]), r"expected a run \(mi.open_run\), got a str"),
    "a path to be sufficient": (lambda run: mi.circuit_sufficiency("a.h5"), r"expected a run \(mi.open_run\)"),
    "a path to report on": (
        lambda run: mi.write_report("a.h5", pd.DataFrame(), "a.html"),
        r"expected a run \(mi.open_run\), got a str",
    ),
    "a page of another ending": (
        lambda run: mi.write_report(run, mi.measure(run, "ila1"), run.path.with_name("a.pdf")),
        "a.pdf: ends with .pdf, and what is written there is .html or .htm",
    ),
    "a run in place of its path": (lambda run: mi.verify(run), "the path of a file, got a Run: give its path"),
    "a run to open": (lambda run: mi.open_run(run), "the path of a file, got a Run: give its path"),
    "a run to resume": (lambda run: mi.resume(run), "the path of a file, got a Run: give its path"),
    "a run to train in": (lambda run: mi.train(run.config, run), "the path of a file, got a Run: give its path"),
    "a step to resume to that is text": (lambda run: mi.resume(run.path, until="last"), "until is 'last'; expected an"),
    "a preset in place of its config": (
        lambda run: mi.train("reddy2023-fast", "a.h5"),
        r"config is a str; expected a RunConfig, as mi.RunConfig.preset\('reddy2023-fast'\)",
    ),
    "a preset to audit": (lambda run: mi.causal_audit("reddy2023-fast"), "config is a str; expected a RunConfig"),
    "a preset to vary": (lambda run: mi.Study.of("s", "reddy2023-fast", {"a": {}}), "config is a str; expected a Run"),
    "a file in place of a study": (lambda run: mi.run_study("s.toml"), "study is a str; expected a Study"),
    "a task that is a number": (lambda run: mi.open_run(run.path, task=5), "task is a int, which has no d_model"),
    "a task that is a class": (lambda run: mi.corrupted_pairs(ItemLabelTask), "task is the class ItemLabelTask; give"),
    "a run in place of its task": (lambda run: mi.circuit_graph(run.network(0), run), "task is a Run, which has no"),
    "a task in place of pairs": (lambda run: mi.patch(run.network(0), run.task), "pairs is a ItemLabelTask; expected"),
    "paths of a task": (lambda run: mi.patch_paths(run.network(0), run.task), "pairs is a ItemLabelTask; expected"),
    "a circuit of a task": (lambda run: mi.find_circuit(run.network(0), run.task), "pairs is a ItemLabelTask; expecte"),
    "a batch in place of pairs": (
        lambda run: mi.circuit_graph(run.network(0), run.task, pairs=run.task.sample("icl", 4)),
        "pairs is a Batch; expected Pairs, as mi.corrupted_pairs",
    ),
    "a name in place of a batch": (lambda run: mi.ablate(run.network(0), "icl"), "batch is a str; expected a Batch"),
    "a threshold that is text": (
        lambda run: mi.circuit_graph(run.network(0), run.task, threshold="a"),
        "threshold is 'a'; expected one number",
    ),
    "analyses in a list": (lambda run: mi.analyse(run, ["patch"]), "unknown analysis"),
    "a step in place of a transition": (lambda run: run.densify(around=3), "around is a int; expected what"),
    "a line of no length": (lambda run: mi.interpolate(run, 2, 2), "step 2 is both ends of the line; name another"),
    "a run in place of a table": (lambda run: mi.emergence_table(run), "table is a Run; expected a DataFrame"),
    "a run to write as a table": (lambda run: mi.write_table(run, "a.csv"), "table is a Run; expected a DataFrame"),
    "a measure that is a number": (
        lambda run: mi.measure(run, {"a": 3}),
        r"the measure a is a int; expected a function of the model: f\(model\)",
    ),
    "a measure without a name": (
        lambda run: mi.register(lambda observation: 1.0),
        r"a measure is a function with a name \(def\), which its column gets, not <function",
    ),
    "a name among many": (lambda run: mi.unregister("nothing"), r"known: (\w+, ){19}\w+ and \d+ more$"),
    "weights of two types": (
        lambda run: mi.Network(run.config, {**run.weights(0), "classifier.readout.W": torch.zeros(19, 4).double()}),
        "parameter classifier.readout.W is torch.float64; all take one type",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_in_one_line(tiny_run, case):
    function, expected = MISTAKES[case]
    with pytest.raises(MechinterpError, match=expected) as refused:
        function(tiny_run)
    assert "\n" not in str(refused.value)


def test_the_first_and_the_last_step_have_names(tiny_run, tmp_path):
    steps = tiny_run.steps
    assert (
        tiny_run.digest("last") == tiny_run.digest(steps[-1]) != tiny_run.digest("first") == tiny_run.digest(steps[0])
    )
    for read in (tiny_run.weights, lambda step: tiny_run.network(step).parameters):
        assert all(torch.equal(value, read(steps[-1])[name]) for name, value in read("last").items())
    table = mi.measure(tiny_run, "ila1", steps="last", n_sequences=20)
    assert table.equals(mi.measure(tiny_run, "ila1", steps=steps[-1], n_sequences=20))
    few = {"n_sequences": 8}
    assert list(mi.analyse(tiny_run, "ablate", steps=["first", "last"], **few)["step"].unique()) == [
        steps[0],
        steps[-1],
    ]
    assert set(mi.analyse(tiny_run, "ablate", steps="first", **few)["step"]) == {steps[0]}
    assert tiny_run.export("last", tmp_path / "end.safetensors") == [tmp_path / "end.safetensors"]


def test_a_cache_names_the_nearest_activation_and_leaves_out_the_batch_of_one_sequence(tiny_run):
    model, inputs = tiny_run.model("last"), tiny_run.task.sample("icl", 2).inputs
    _, cache = model.run_with_cache(inputs)
    with pytest.raises(MechinterpError, match=r"unknown activation 'blocks.0.attn.hook_patern'; did you mean"):
        cache["blocks.0.attn.hook_patern"]
    assert "blocks.0.attn.hook_patern" not in cache
    _, one = model.run_with_cache(inputs[:1], remove_batch_dim=True)
    assert set(one) == set(cache)
    for hook, value in one.items():
        torch.testing.assert_close(value, cache[hook][0])
    with pytest.raises(MechinterpError, match="remove_batch_dim takes one sequence, and inputs has 2"):
        model.run_with_cache(inputs, remove_batch_dim=True)


def test_one_step_one_measure_and_one_site_need_no_list(tiny_run):
    one = mi.measure(tiny_run, "ila1", steps=6, n_sequences=20)
    assert one.equals(mi.measure(tiny_run, ["ila1"], steps=[6], n_sequences=20))
    network, batch, site = tiny_run.network(6), tiny_run.task.sample("icl", 4), mi.Site("blocks.0.attn.hook_z")
    assert mi.ablate(network, batch, site).equals(mi.ablate(network, batch, [site]))


def test_a_mistake_in_a_measure_is_named(tiny_run, registered):
    @mi.register(hooks=["blocks.1.attn.hook_pattern"])
    def vector(seen):
        return seen.pattern(1)[:, 0, -1, -1]

    @mi.register
    def without_hooks(seen):
        return seen.pattern(1).mean()

    for name, expected in (("vector", r"vector gave \(20,\); expected one number"), ("without_hooks", "was not asked")):
        with pytest.raises(MechinterpError, match=expected):
            mi.measure(tiny_run, name, n_sequences=20)
    mi.unregister("vector")
    mi.unregister("without_hooks")
    assert not {"vector", "without_hooks"} & {*MEASURES, *mi.measure(tiny_run, n_sequences=20)}
    for name, expected in (("vector", "unknown measure 'vector'"), ("ila1", "ila1 is a built-in measure; to leave")):
        with pytest.raises(MechinterpError, match=expected):
            mi.unregister(name)
    for arguments, expected in (
        ({"roles": "label"}, r"give a list, \['label'\]"),
        ({"hooks": ["blocks.one.hook_z"]}, "unknown hook 'blocks.one.hook_z'"),
    ):
        with pytest.raises(MechinterpError, match=expected):
            mi.register(**arguments)
    with pytest.raises(MechinterpError, match="clamped_ is the prefix"):

        @mi.register
        def clamped_mine(seen):
            return 0.0

    @mi.register
    def icl_accuracy(seen):
        return 0.0

    with pytest.raises(MechinterpError, match=r"two measures have the column icl_accuracy; rename the one of tests"):
        mi.measure(tiny_run, n_sequences=20)


def test_a_measure_is_left_out_where_the_classifier_is_too_shallow(tiny_run, registered):
    @mi.register(hooks=["classifier.layers.2.hook_post"])
    def third_layer(seen):
        return seen.cache["classifier.layers.2.hook_post"].mean()

    assert "third_layer" not in mi.measure(tiny_run, n_sequences=20, steps=0)


class Silent(HookedNetwork):
    """A model whose forward method its weights do not show."""

    def forward(self, input, *arguments, **options):
        return super().forward(torch.where(input == 1, 0, input), *arguments, **options)


@pytest.mark.parametrize("how", ["a hook", "a hook for a while", "a class"])
def test_a_model_with_a_hook_or_a_forward_method_of_its_own_answers_for_itself(tiny_config, task, how):
    network = random_network(tiny_config, dtype=torch.float32)
    batch, unchanged = task.sample("icl", 40), hooked(network)
    model = Silent(network) if how == "a class" else unchanged

    def without_position(x, hook):
        return torch.where(x == 1, 0, x)

    if how == "a hook":
        model.add_hook("hook_embed", without_position)
    hooks = [("hook_embed", without_position)] if how == "a hook for a while" else []
    site = mi.Site("blocks.0.attn.hook_pattern")
    with torch.no_grad(), model.hooks(hooks):
        answered = float((model(batch.inputs).argmax(-1) == batch.labels).float().mean())
        table = mi.ablate(model, batch, site, "mean")
        with pytest.raises(MechinterpError, match=r"hook at hook_embed|class of its own"):
            mi.patch_paths(model, mi.corrupted_pairs(task, n_pairs=4))
    before = float((hooked(network)(batch.inputs).argmax(-1) == batch.labels).float().mean())
    assert table["intact"].item() == pytest.approx(answered)
    assert answered != pytest.approx(before)


def test_a_torch_hook_on_a_whole_model_is_refused(tiny_config, task):
    model = hooked(random_network(tiny_config))
    model.register_forward_hook(lambda module, inputs, output: output * 0)
    with pytest.raises(MechinterpError, match=r"torch hook on the whole model; use model.add_hook"):
        mi.ablate(model, task.sample("icl", 4))


def test_a_model_in_double_precision_is_the_same_model(tiny_config, task):
    network, batch = random_network(tiny_config, dtype=torch.float32), task.sample("icl", 8)
    double = hooked(network).double()
    with torch.no_grad():
        torch.testing.assert_close(double(batch.inputs).float(), hooked(network)(batch.inputs), atol=1e-5, rtol=1e-5)
        assert double(batch.inputs).dtype == torch.float64
    assert mi.ablate(double, batch)["value"].notna().all()


def test_a_subspace_is_not_projected_out_of_the_values_of_a_model_with_another_output_matrix(tiny_config, task):
    network = random_network(tiny_config, dtype=torch.float32)
    model, part = hooked(network), subspaces(network, task)["content"]
    with torch.no_grad():
        model.blocks[0].attn.W_O.mul_(2)
    batch = task.sample("icl", 8)
    with pytest.raises(MechinterpError, match="W_O is its own; project at hook_attn_out"):
        mi.ablate(model, batch, mi.Site("blocks.0.attn.hook_z"), [part])
    assert len(mi.ablate(model, batch, mi.Site("blocks.0.hook_attn_out"), [part])) == 1


def test_a_metric_that_changes_its_logits_changes_no_other_number(tiny_config, task):
    network, batch = random_network(tiny_config), task.sample("icl", 8)

    def by_place(logits, answers, wrong):
        return logits.mul_(2).gather(1, answers[:, None])[:, 0]

    def kept(logits, answers, wrong):
        return 2 * logits.gather(1, answers[:, None])[:, 0]

    sites = [mi.Site("classifier.hook_logits"), mi.Site("blocks.0.attn.hook_z")]
    first, second = (mi.ablate(network, batch, sites, "mean", metric=metric) for metric in (by_place, kept))
    assert first.equals(second)


def test_a_run_is_not_opened_with_another_task(tiny_run):
    other = mi.build_task(tiny_run.config.updated({"seed": 5}))
    for task in (other, ItemLabelTask(ItemLabelConfig(), seed=0)):
        with pytest.raises(MechinterpError, match=r"trained on a task with|seed is 5, the config's 0"):
            mi.open_run(tiny_run.path, task=task)
    assert mi.open_run(tiny_run.path, task=mi.build_task(tiny_run.config)).steps == tiny_run.steps


class Halved(ItemLabelTask):
    """A task of a user, derived from a built-in one."""

    def train_batch(self, step, size):
        batch = super().train_batch(step, size)
        return Batch(batch.inputs * 0.5, batch.labels, batch.roles, batch.token_labels)

    def train_batches(self, steps, size):
        return [self.train_batch(step, size) for step in steps]


def test_a_task_derived_from_a_built_in_one_is_recorded_as_the_users(tiny_config, tmp_path):
    assert isinstance(tiny_config.task, ItemLabelConfig)
    task = Halved(tiny_config.task, seed=0)
    run = mi.train(tiny_config.updated({"training.steps": 4}), tmp_path / "a.h5", task=task, progress=False)
    assert (run.config.task.kind, run.config.task.name) == ("custom", "Halved")
    with pytest.raises(MechinterpError, match="custom task 'Halved'"):
        mi.resume(run.path, until=6, progress=False)


def test_a_task_that_the_model_cannot_learn_leaves_no_file(tiny_config, tmp_path):
    config = mi.RunConfig.preset("nguyen2024-fast")
    with pytest.raises(MechinterpError, match="readout = 'difference' tells two labels apart"):
        mi.train(config, tmp_path / "a.h5", task=mi.build_task(tiny_config), progress=False)
    assert not list(tmp_path.iterdir())


def test_names_of_tasks_are_not_taken_twice(tiny_config):
    with pytest.raises(MechinterpError, match=r"ItemLabelConfig is the section of .*ItemLabelTask already"):

        @register_task(ItemLabelConfig)
        class Fake:
            pass

    with pytest.raises(MechinterpError, match=r"kind 'item_label' is that of .*ItemLabelConfig; choose another"):

        class Clash(TaskConfig):
            kind: Literal["item_label"] = "item_label"

    assert type(mi.build_task(tiny_config)) is ItemLabelTask


def test_batched_training_takes_a_path_for_every_config(tiny_config, tmp_path):
    configs = [tiny_config, tiny_config.updated({"seed": 1})]
    for given, paths in ((configs, [tmp_path / "a.h5"]), ([], []), (configs[:1], str(tmp_path / "a.h5"))):
        with pytest.raises(MechinterpError, match="configs take as many paths"):
            train_batched(given, paths)
    assert not list(tmp_path.iterdir())


def test_resuming_a_complete_run_changes_nothing(tiny_config, tmp_path):
    run = mi.train(tiny_config, tmp_path / "a.h5", progress=False)
    before = run.path.read_bytes()
    assert mi.resume(run.path, progress=False).steps == run.steps
    assert run.path.read_bytes() == before


def test_a_link_stays_a_link_when_its_run_goes_on(tiny_config, tmp_path):
    run, link = mi.train(tiny_config, tmp_path / "a.h5", progress=False), tmp_path / "link.h5"
    link.symlink_to(run.path)
    assert mi.resume(link, until=22, progress=False).steps[-1] == 22
    assert link.is_symlink()
    assert mi.open_run(run.path).steps[-1] == 22


def test_an_analysis_that_has_no_file_is_not_kept(tiny_config, tmp_path, monkeypatch):
    run = mi.train(tiny_config.updated({"training.steps": 2}), tmp_path / "a.h5", progress=False)
    notebook = ModuleType("notebook")  # as __main__ of a notebook, it has no file
    setattr(notebook, "evidence", lambda network, task: pd.DataFrame({"value": [1.0]}))  # noqa: B010
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    monkeypatch.setitem(ANALYSES, "evidence", Analysis("notebook", "Of a notebook."))
    assert len(mi.analyse(run, "evidence", steps=0)) == 1
    assert not run.path.with_name("a.h5.cache").exists()


def test_tables_of_a_custom_task_are_not_kept_as_its_file_does_not_contain_it(tiny_config, tmp_path):
    assert isinstance(tiny_config.task, ItemLabelConfig)
    for task, kept in ((Halved(tiny_config.task, seed=0), False), (mi.build_task(tiny_config), True)):
        path = tmp_path / f"{kept}.h5"
        run = mi.train(tiny_config.updated({"training.steps": 4}), path, task=task, progress=False)
        mi.analyse(run, "ablate", steps="last", n_sequences=8)
        mi.transplant(run, "classifier", steps=["first", "last"], n_sequences=8)
        assert path.with_name(f"{path.name}.cache").exists() is kept


def test_a_damaged_table_is_computed_again(tiny_config, tmp_path):
    run = mi.train(tiny_config.updated({"training.steps": 2}), tmp_path / "a.h5", progress=False)
    table = mi.analyse(run, "ablate", steps=0, n_sequences=8)
    (path,) = run.path.with_name("a.h5.cache").iterdir()
    content = json.loads(path.read_text())
    for columns in content["content"]["tables"].values():
        columns["value"][0] += 0.5
    path.write_text(json.dumps(content))
    assert mi.analyse(run, "ablate", steps=0, n_sequences=8).equals(table)
    path.write_text("[" * 100_000)
    assert mi.analyse(run, "ablate", steps=0, n_sequences=8).equals(table)


def test_public_names_stay_what_they_are():
    code = "import mechinterp as mi; a = [getattr(mi, n) for n in mi.__all__]; b = [getattr(mi, n) for n in mi.__all__]"
    modules = "; assert all(x is y and (type(x) is not type(mi) or x is mi.figures) for x, y in zip(a, b))"
    subprocess.run([sys.executable, "-c", code + modules], check=True)


def test_a_network_of_random_parameters_is_not_padded(tiny_config):
    with pytest.raises(MechinterpError, match="has shape"):
        mi.Network(tiny_config.updated({"task.content_dim": 20}), random_parameters(tiny_config))


def test_a_model_that_differs_on_no_random_input_is_compared_by_its_parts(tiny_config, task):
    deep = tiny_config.updated({"model.classifier_width": 64})
    decoy = memorising_decoy(deep, dtype=torch.float32)
    model, batch = hooked(decoy), mi.build_task(deep).sample("iwl", 60)
    means = torch.from_numpy(mi.build_task(deep).class_means)
    with torch.no_grad():
        model.blocks[0].attn.b_O[13 : 13 + means.shape[1]] = -0.7 * means.sum(dim=0)
        answered = float((model(batch.inputs).argmax(-1) == batch.labels).float().mean())
    assert mi.ablate(model, batch)["intact"].iloc[0] == pytest.approx(answered)
    faint = hooked(random_network(tiny_config, dtype=torch.float32))
    faint.blocks[0].attn.b_O.data.fill_(1e-9)  # no logit shows it
    with pytest.raises(MechinterpError, match="an attention scale"):
        qk(faint, 0)
    scaled = hooked(random_network(tiny_config, dtype=torch.float32))
    for block in scaled.blocks:
        block.attn.attn_scale = 2.0
    scaled.blocks[0].attn.W_Q.data.zero_()
    scaled.blocks[1].attn.W_Q.data.zero_()  # no score is scaled
    with pytest.raises(MechinterpError, match="an attention scale"):
        qk(scaled, 0)


def test_a_network_whose_weights_are_changed_in_place_is_the_changed_network(tiny_config, task):
    batch = task.sample("icl", 20)
    for config in (tiny_config, tiny_config.updated({"model.kind": "induction_head"})):
        network = mi.Network(config, random_parameters(config))
        forward(network, batch.inputs)
        for name in ("blocks.0.attn.W_Q", "blocks.1.attn.W_V"):
            network.parameters[name].normal_(generator=torch.Generator().manual_seed(0))
        changed = mi.Network(network.config, network.parameters)
        torch.testing.assert_close(forward(network, batch.inputs), forward(changed, batch.inputs))


def test_weights_of_inference_mode_are_taken_as_they_are(tiny_config, task):
    batch, initial = task.sample("icl", 20), mi.Network.initial(tiny_config)
    score = copying_score(initial, task, batch)
    with torch.inference_mode():
        network = mi.Network(tiny_config, {name: weights.clone() for name, weights in initial.parameters.items()})
        assert copying_score(network, task, batch) == pytest.approx(score)
        forward(network, batch.inputs)
        network.parameters["blocks.0.attn.W_Q"].mul_(50)
        changed = mi.Network(network.config, dict(network.parameters))
        torch.testing.assert_close(forward(network, batch.inputs), forward(changed, batch.inputs))


@pytest.mark.parametrize("names", ["blocks.0.attn.hook_patern", lambda name: name.endswith("typo"), ["hook_embd"]])
def test_a_name_or_filter_of_no_hook_is_refused(tiny_run, names):
    model, inputs = tiny_run.model(0), tiny_run.task.sample("icl", 2).inputs
    with pytest.raises(MechinterpError, match=r"unknown hook|the hook filter matches no hook"):
        model.run_with_cache(inputs, names_filter=names)
    for add in (model.add_hook, model.add_perma_hook):
        with pytest.raises(MechinterpError, match=r"unknown hook|the hook filter matches no hook"):
            add(names[0] if isinstance(names, list) else names, lambda tensor, hook: None)


def test_a_hook_that_works_in_place_changes_nothing_that_was_kept_before(tiny_run):
    model, network, batch = tiny_run.model(6), tiny_run.network(6), tiny_run.task.sample("icl", 4)

    def silence(tensor, hook=None):
        tensor[:, :2] = 0

    with torch.no_grad():
        _, before = model.run_with_cache(batch.inputs)
        with model.hooks([("blocks.0.hook_resid_pre", silence)]):
            logits, cache = model.run_with_cache(batch.inputs)
        ours = run_with_cache(network, batch.inputs, hooks={"blocks.0.hook_resid_pre": silence})
    for kept in (cache["hook_embed"], ours["hook_embed"]):
        torch.testing.assert_close(kept, before["hook_embed"])
    assert not ours["blocks.0.hook_resid_pre"][:, :2].any()
    torch.testing.assert_close(ours.logits, logits)


@pytest.mark.parametrize("state", ["float64", "bfloat16", "no_grad", "inference_mode"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"model.n_heads": 2}, {"model.kind": "induction_head"}, {"model.output_matrix": "trained"}],
    ids=["fused", "autograd", "analytic", "converted"],
)
def test_the_state_of_torch_changes_no_bit(tiny_config, tmp_path, changes, state):
    config = tiny_config.updated({"training.steps": 4, **changes})
    expected = mi.train(config, tmp_path / "expected.h5", progress=False)
    table = mi.measure(expected, n_sequences=20)
    before = torch.get_default_dtype()
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(state, nullcontext)
    try:
        with context():
            if state in ("float64", "bfloat16"):
                torch.set_default_dtype(getattr(torch, state))
            run = mi.train(config, tmp_path / "other.h5", progress=False)
            measured, network = mi.measure(run, n_sequences=20), run.network(3)
            mi.patch_paths(network, mi.corrupted_pairs(run.task, n_pairs=4))
            assert torch.get_default_dtype() == (getattr(torch, state) if "float" in state else before)
    finally:
        torch.set_default_dtype(before)
    assert run.digest(4) == expected.digest(4)
    assert measured.equals(table)
    assert torch.is_grad_enabled()
