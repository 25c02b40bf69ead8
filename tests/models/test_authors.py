"""The networks of the authors' code (github.com/anhhuyalex/icl-kinetics), which settles what Nguyen & Reddy 2024 leave
open, are those of torch.nn: forward pass, loss, gradient and start."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, scaled_dot_product_attention, softmax

import mechinterp as mi
from mechinterp.errors import ConfigError
from mechinterp.models.forward import forward
from mechinterp.models.network import Network
from mechinterp.models.registry import initial_parameters, parameter_shapes
from mechinterp.run import replay
from mechinterp.training.engines import AnalyticEngine, AutogradEngine, FusedEngine, build_engine
from tests.helpers import hooked, random_network, random_parameters, token_labels
from tests.reference_engine import ReferenceEngine

SMALL = {
    "task.n_items": 40,
    "task.n_pairs": 9,
    "task.item_dim": 7,
    "model.classifier_width": 11,
    "training.batch_size": 16,
    "training.steps": 20,
    "checkpoints.every": 5,
}
D = 9
"""d_model: an item and two entries of its label."""
PRESETS = ("nguyen2024-authors", "nguyen2024-authors-minimal")


def config_of(preset: str = PRESETS[0], /, **changes) -> mi.RunConfig:
    return mi.RunConfig.preset(preset).updated(SMALL | changes)


class AuthorsNetwork(nn.Module):
    """z of tokens x ⊕ one-hot ℓ before any LayerNorm: LayerNorm, one attention layer, an MLP on the target."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.query, self.key, self.value = (nn.Linear(D, D, bias=False) for _ in range(3))
        self.mlp = mlp(D, width)
        self.double()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(tokens)
        attention = scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), scale=1, is_causal=True)
        return self.mlp(x[:, -1] + attention[:, -1])[:, 0]

    def named(self) -> dict[str, torch.Tensor]:
        """Every parameter under the name that it has in a run file."""
        layers = {
            f"blocks.0.attn.W_{name[0].upper()}": getattr(self, name).weight for name in ("query", "key", "value")
        }
        return {
            "blocks.0.ln.w": self.norm.weight,
            "blocks.0.ln.b": self.norm.bias,
            **layers,
            **mlp_parameters(self.mlp),
        }


class AuthorsMinimal(nn.Module):
    """z of the additive model, whose softmax weighs the target too."""

    def __init__(self, width: int):
        super().__init__()
        self.beta, self.w = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.mlp = mlp(D - 2, width)
        self.double()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, labels = tokens[:, :, :-2], tokens[:, :, -2]
        weights = softmax(self.beta * (x @ x[:, -1:].mT)[:, :, 0], dim=-1)
        return self.mlp(x[:, -1])[:, 0] + self.w * (weights * labels).sum(dim=-1)

    def named(self) -> dict[str, torch.Tensor]:
        return {"blocks.0.attn.beta": self.beta, "blocks.0.attn.w": self.w, **mlp_parameters(self.mlp)}


def mlp(fan_in: int, width: int) -> nn.Sequential:
    hidden = (nn.Linear(fan_in, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(width, 1))


def mlp_parameters(layers: nn.Sequential) -> dict[str, torch.Tensor]:
    linear, names = [layer for layer in layers if isinstance(layer, nn.Linear)], ("layers.0", "layers.1", "readout")
    return {
        f"classifier.{name}.{end}": value
        for name, layer in zip(names, linear, strict=True)
        for end, value in (("W", layer.weight), ("b", layer.bias))
    }


def as_theirs(name: str, value: torch.Tensor) -> torch.Tensor:
    """A parameter, or its gradient, as torch.nn has it: without the axis of heads, matrices transposed."""
    value = value[0] if ".attn.W_" in name else value
    return value.mT if ".W" in name else value


def theirs_of(config: mi.RunConfig, parameters: dict[str, torch.Tensor]) -> AuthorsNetwork | AuthorsMinimal:
    """The authors' module with these parameters; it has no others."""
    module = (AuthorsNetwork if config.model.kind == "transformer" else AuthorsMinimal)(config.model.classifier_width)
    assert module.named().keys() == parameters.keys()
    with torch.no_grad():
        for name, value in module.named().items():
            value.copy_(as_theirs(name, parameters[name]))
    return module


def in_float64(config: mi.RunConfig, batch: mi.Batch) -> tuple[torch.Tensor, mi.Batch]:
    """The tokens x ⊕ one-hot ℓ that the authors' network reads, and the batch with their LayerNorm in float64.

    LayerNorm divides by √(v + ε), so the variance v before it follows from the variance after it. Of the additive
    model, whose tokens are not normalised, both are the batch's.
    """
    tokens = batch.inputs.double()
    if config.model.kind == "transformer":
        variance, labels = tokens.var(dim=-1, unbiased=False, keepdim=True), token_labels(batch)
        tokens = tokens * (1e-5 / (1 - variance)).sqrt()
        tokens -= tokens[..., -2:].amin(dim=-1, keepdim=True)
        expected = torch.nn.functional.one_hot(labels[:, :-1], 2).double()
        torch.testing.assert_close(tokens[:, :-1, -2:], expected, rtol=0, atol=0.01)
        torch.testing.assert_close(tokens[:, -1, -2:], torch.zeros(len(batch), 2).double(), rtol=0, atol=1e-6)
    normalised = torch.nn.functional.layer_norm(tokens, (D,)) if config.model.kind == "transformer" else tokens
    torch.testing.assert_close(normalised, batch.inputs.double(), rtol=0, atol=1e-6)
    return tokens, mi.Batch(normalised, batch.labels, batch.roles, batch.token_labels)


@pytest.mark.parametrize("evaluation", ["train", "icl", "iwl", "swap"])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_logits_are_those_of_torch_nn(preset, evaluation):
    config = config_of(preset)
    parameters, network = random_parameters(config), random_network(config)
    raw, batch = in_float64(config, mi.build_task(config).sample(evaluation, 20))
    tokens = batch.inputs
    logits = forward(network, tokens)
    z = theirs_of(config, parameters)(raw).detach()
    torch.testing.assert_close(logits[:, 0] - logits[:, 1], z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logits.sum(dim=1), torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-12)
    for ours in (hooked(network)(tokens), forward(network, tokens, target_only=True)):
        torch.testing.assert_close(ours, logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("preset", PRESETS)
def test_loss_and_gradient_are_those_of_torch_nn(preset):
    config = config_of(preset)
    parameters, (raw, batch) = random_parameters(config), in_float64(config, mi.build_task(config).train_batch(0, 16))
    theirs = theirs_of(config, parameters)
    z = theirs(raw)
    expected = binary_cross_entropy_with_logits(z, (batch.labels == 0).double())
    expected.backward()
    for engine in (
        AnalyticEngine([config], [parameters]),
        AutogradEngine([config], [parameters]),
        ReferenceEngine(config, parameters),
    ):
        loss, accuracy, gradients = engine.gradients(batch)
        assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
        assert accuracy == float(((z > 0) == (batch.labels == 0)).double().mean())
        assert gradients.keys() == theirs.named().keys()
        for name, value in theirs.named().items():
            assert value.grad is not None
            found = as_theirs(name, gradients[name]).detach()
            torch.testing.assert_close(found, value.grad, rtol=1e-11, atol=1e-13, msg=name)


OPTIONS = [
    {"model.trained_layer_norm": True},
    {"model.readout_bias": True},
    {"model.trained_layer_norm": True, "model.readout_bias": True, "model.readout": "difference"},
    {"model.readout_bias": True, "model.classifier_depth": 0},
    {"model.trained_layer_norm": True, "model.n_layers": 2},
    {"model.trained_layer_norm": True, "model.readout_bias": True, "model.n_heads": 2, "model.use_attn_scale": True},
]


@pytest.mark.parametrize("changes", OPTIONS)
def test_optional_parameters_have_their_gradient_and_their_hooked_view(changes):
    config = mi.RunConfig().updated({"task.kind": "paired_items", "model.n_layers": 1, **SMALL, **changes})
    parameters, batch = random_parameters(config), mi.build_task(config).train_batch(0, 16)
    engine, reference = build_engine(config, parameters), ReferenceEngine(config, parameters)
    assert engine.name == ("autograd" if "model.n_layers" in changes or "model.n_heads" in changes else "analytic")
    assert isinstance(engine, AnalyticEngine | AutogradEngine)
    (loss, _, gradients), (expected, _, wanted) = engine.gradients(batch), reference.gradients(batch)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert gradients.keys() == wanted.keys() == parameters.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-13, msg=name)
    network, tokens = Network(config, parameters), batch.inputs.double()
    torch.testing.assert_close(hooked(network)(tokens), forward(network, tokens), rtol=1e-12, atol=1e-12)


def test_the_fused_engine_leaves_optional_parameters_to_others(tiny_config):
    biased = tiny_config.updated({"model.readout_bias": True})
    assert FusedEngine.supports(tiny_config, "cpu")
    assert not FusedEngine.supports(biased, "cpu")
    parameters, batch = random_parameters(biased), mi.build_task(biased).train_batch(0, 16)
    logits = forward(Network(biased, parameters), batch.inputs.double())
    without = {name: value for name, value in parameters.items() if name != "classifier.readout.b"}
    shifted = forward(Network(tiny_config, without), batch.inputs.double()) + parameters["classifier.readout.b"]
    torch.testing.assert_close(logits, shifted, rtol=1e-12, atol=1e-12)


def test_the_minimal_induction_head_takes_a_readout_bias():
    changes = {"model.kind": "induction_head", "model.readout_bias": True, "model.classifier_width": 11}
    config = mi.RunConfig().updated(changes)
    parameters, batch = random_parameters(config), mi.build_task(config).train_batch(0, 16)
    (_, _, found), (_, _, wanted) = (
        engine.gradients(batch)
        for engine in (AnalyticEngine([config], [parameters]), AutogradEngine([config], [parameters]))
    )
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-13, msg=name)


@pytest.mark.parametrize("preset", PRESETS)
def test_all_layers_start_as_those_of_torch_nn(preset):
    """Uniform within ±1/√fan_in, biases too: by the bounds, the deviation and the share below a quarter of them."""
    config = mi.RunConfig.preset(preset)
    parameters, fan_in = initial_parameters(config), config.task.d_model - 2 * (preset == PRESETS[1])
    fans = {"classifier.layers.0": fan_in, "classifier.layers.1": 512, "classifier.readout": 512}
    if preset == PRESETS[0]:
        fans |= {f"blocks.0.attn.W_{matrix}": 65 for matrix in "QKV"}
        assert torch.equal(parameters["blocks.0.ln.w"], torch.ones(65))
        assert torch.equal(parameters["blocks.0.ln.b"], torch.zeros(65))
    uniform = [name for name in parameters if name.rpartition(".")[0] in fans or name in fans]
    assert len(uniform) == 6 + 3 * (preset == PRESETS[0])
    for name in uniform:
        bound = (fans[name] if name in fans else fans[name.rpartition(".")[0]]) ** -0.5
        values = parameters[name].double().numpy().ravel() / bound
        assert np.abs(values).max() <= 1 + 1e-6
        if len(values) < 500:
            continue
        error = len(values) ** -0.5
        assert np.abs(values).max() > 0.98
        assert values.mean() == pytest.approx(0, abs=4 * error)
        assert values.std() == pytest.approx(3**-0.5, abs=4 * error)
        assert (np.abs(values) < 0.25).mean() == pytest.approx(0.25, abs=4 * error)


def test_the_other_parameters_start_alike_with_and_without_an_optional_one():
    plain = {"model.trained_layer_norm": False, "model.readout_bias": False}
    both, neither = initial_parameters(config_of()), initial_parameters(config_of(**plain))
    assert both.keys() - neither.keys() == {"blocks.0.ln.w", "blocks.0.ln.b", "classifier.readout.b"}
    assert list(both) == list(parameter_shapes(config_of()))
    for name, value in neither.items():
        assert torch.equal(both[name], value)
    one = initial_parameters(config_of(**{"model.trained_layer_norm": False}))
    assert torch.equal(both["blocks.0.attn.W_Q"], one["blocks.0.attn.W_Q"])
    assert float(one["classifier.readout.b"]) != 0


def test_strengths_start_at_random_about_their_means():
    drawn = [
        float(initial_parameters(config_of(PRESETS[1], seed=seed, **{"model.beta": 2.0}))["blocks.0.attn.beta"])
        for seed in range(200)
    ]
    assert np.mean(drawn) == pytest.approx(2, abs=0.2)
    assert np.std(drawn) == pytest.approx(1, abs=0.15)
    assert float(initial_parameters(config_of(PRESETS[1]))["blocks.0.attn.w"]) == 0
    head = mi.RunConfig().updated(
        {
            "model.kind": "induction_head",
            "model.alpha": 3.0,
            "model.attention_init_std": 0.5,
            "model.classifier_width": 2,
        }
    )
    strengths = np.array(
        [
            [float(value) for name, value in initial_parameters(head.updated({"seed": seed})).items() if "attn" in name]
            for seed in range(200)
        ]
    )
    order = [name.rpartition(".")[2] for name in initial_parameters(head) if "attn" in name]
    np.testing.assert_allclose(strengths.mean(axis=0), [3 * (name == "alpha") for name in order], atol=0.15)
    np.testing.assert_allclose(strengths.std(axis=0), 0.5, atol=0.1)
    assert (np.abs(np.corrcoef(strengths.T) - np.eye(3)) < 0.3).all()


def test_without_a_deviation_strengths_start_at_their_means():
    config = config_of(PRESETS[1], **{"model.beta_init_std": 0.0, "model.beta": 0.75})
    assert float(initial_parameters(config)["blocks.0.attn.beta"]) == 0.75


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_is_trained_measured_resumed_and_replayed(preset, tmp_path):
    config = config_of(preset)
    run = mi.train(config, tmp_path / "run.h5", progress=False)
    assert run.environment["engine"] == "analytic"
    assert {"icl_accuracy", "iwl_accuracy", "c1", "c2", "c3"} <= set(mi.measure(run, n_sequences=50))
    moved = {name: not torch.equal(value, run.weights(0)[name]) for name, value in run.weights(20).items()}
    assert all(moved.values()), moved
    assert replay(run, [7, 12], lambda step, weights, metrics: None).exact
    brief = mi.train(config.updated({"training.steps": 10}), tmp_path / "brief.h5", progress=False)
    assert mi.resume(brief.path, until=20, progress=False).digest(20) == run.digest(20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.tokens": "plain"}, r"trained_layer_norm takes task\.kind = 'paired_items' with task\.tokens"),
        ({"model.attention_init_std": 0.1}, "attention_init_std has no effect on attention_init = 'torch_linear'"),
        ({"model.classifier_init_variance": 0.5}, "classifier_init_variance has no effect on classifier_init"),
        ({"task.n_items": 41}, r"K=41\) is odd, and half of the labels are to be \+1: use 42"),
        ({"model.beta_init_std": 1.0}, "beta_init_std"),
        ({"model.attention_init": "torch"}, "attention_init"),
    ],
)
def test_combinations_without_a_meaning_are_one_clear_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config_of(**changes)
    assert "\n" not in str(caught.value)


def test_a_layer_norm_needs_tokens_that_are_normalised(tiny_config):
    with pytest.raises(ConfigError, match="trained_layer_norm takes"):
        tiny_config.updated({"model.trained_layer_norm": True})
    for changes in ({"model.beta_init_std": -1.0}, {"model.trained_layer_norm": True}):
        with pytest.raises(ConfigError):
            config_of(PRESETS[1], **changes)
