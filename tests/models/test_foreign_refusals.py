"""Networks that no Network computes are refused, by their settings, parameters or answers, in one line."""

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from mechinterp.errors import MechinterpError, RunFileError, UnrecognisedNetwork
from mechinterp.models.foreign import ForeignNetwork, recognise, require_same_answers, settings_of
from mechinterp.models.foreign.hooked_transformer import KNOWN
from mechinterp.models.hooked_lens import MAJOR
from tests.helpers import by_hooked_transformer
from tests.models.foreign_networks import (
    NanoGPT,
    T,
    V,
    converted,
    gpt2,
    gpt_neox,
    hooked_transformer,
    randomised,
    shapes_of,
)

if TYPE_CHECKING or MAJOR < 4:
    from transformer_lens import HookedTransformerConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eps", 1e-6),
        ("attention_dir", "bidirectional"),
        ("gated_mlp", True),
        ("use_local_attn", True),
        ("attn_scale", 8.0),
        ("scale_attn_by_inverse_layer_idx", True),
        ("n_key_value_heads", 1),
        ("attn_scores_soft_cap", 50.0),
        ("output_logits_soft_cap", 30.0),
        ("rotary_adjacent_pairs", True),
        ("act_fn", "solu_ln"),
        ("positional_embedding_type", "relative_positional_bias"),
        ("positional_embedding_type", "alibi"),
        ("final_rms", True),
        ("post_embedding_ln", True),
        ("original_architecture", "Olmo2ForCausalLM"),
        ("n_layers", 17),
        ("n_heads", "3"),
        ("a_setting_of_a_later_version", 2),
    ],
)
def test_a_setting_without_counterpart_is_named(name, value):
    module = hooked_transformer()
    with pytest.raises(UnrecognisedNetwork, match=name) as caught:
        recognise(shapes_of(module), module.cfg.to_dict() | {name: value})
    assert "\n" not in str(caught.value)


@by_hooked_transformer
def test_every_setting_of_transformer_lens_is_known():
    names = {field.name for field in dataclasses.fields(HookedTransformerConfig)}
    lists = set(KNOWN.used), set(KNOWN.fixed), set(KNOWN.irrelevant)
    assert names == set.union(*lists)
    assert sum(map(len, lists)) == len(names)
    config = hooked_transformer().cfg
    defaults = {field.name: field.default for field in dataclasses.fields(HookedTransformerConfig)}
    assert {name: defaults[name] for name in KNOWN.fixed} == KNOWN.fixed
    used = {name: defaults[name] for name, value in KNOWN.used.items() if name in defaults and name in vars(config)}
    optional = ("n_layers", "n_heads", "d_model", "d_head", "d_vocab", "n_ctx")
    assert {name: value for name, value in used.items() if name not in optional} == {
        name: value for name, value in KNOWN.used.items() if name not in optional
    }


@by_hooked_transformer
def test_a_setting_that_a_later_version_adds_is_passed_over_at_its_default_only():
    later = dataclasses.make_dataclass(
        "Later", [("window", int, dataclasses.field(default=7))], bases=(HookedTransformerConfig,)
    )
    settings = {"n_layers": 2, "n_heads": 3, "d_model": 12, "d_head": 4, "d_vocab": V, "n_ctx": T, "device": "cpu"}
    settings |= {"act_fn": "gelu", "d_mlp": 20}
    shapes = shapes_of(hooked_transformer())
    assert recognise(shapes, later(**settings)).format == "hooked_transformer"
    with pytest.raises(UnrecognisedNetwork, match="window = 8"):
        recognise(shapes, later(**settings, window=8))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_by_inverse_layer_idx", True),
        ("reorder_and_upcast_attn", True),
        ("activation_function", "tanh"),
        ("add_cross_attention", True),
        ("n_head", 5),
        ("n_inner", 5),
        ("model_type", "gptj"),
        ("sliding_window", 4),
    ],
)
def test_a_setting_of_gpt2_without_counterpart_is_named(name, value):
    module = gpt2()
    with pytest.raises(UnrecognisedNetwork, match="mlp" if name == "n_inner" else name):
        recognise(shapes_of(module), module.config.to_dict() | {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer_norm_eps", 1e-6),
        ("hidden_act", "tanh"),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}),
        ("rope_parameters", {"rope_theta": "x"}),
        ("attention_bias", False),
        ("num_attention_heads", 5),
        ("num_hidden_layers", 1),
    ],
)
def test_a_setting_of_gpt_neox_without_counterpart_is_named(name, value):
    module = gpt_neox()
    with pytest.raises(UnrecognisedNetwork, match="also has" if name == "num_hidden_layers" else name):
        recognise(shapes_of(module), module.config.to_dict() | {name: value})


def test_nothing_is_guessed_without_settings():
    for module in (hooked_transformer(), gpt2(), NanoGPT(), gpt_neox()):
        with pytest.raises(UnrecognisedNetwork, match="give network=… \\(its config\\)"):
            recognise(shapes_of(module), None)
    with pytest.raises(UnrecognisedNetwork, match=r"parameters named 0\.weight, 0\.bias are those of no network"):
        recognise(shapes_of(nn.Sequential(nn.Linear(2, 3))), None)
    assert settings_of(nn.Linear(2, 3)) is None
    with pytest.raises(UnrecognisedNetwork, match="network is a int"):
        recognise(shapes_of(gpt2()), 3)
    with pytest.raises(UnrecognisedNetwork, match="lack n_layer"):
        recognise(shapes_of(gpt2()), {})


def test_missing_and_unexpected_parameters_and_other_shapes_are_named():
    module = gpt2()
    shapes = shapes_of(module)
    with pytest.raises(UnrecognisedNetwork, match=r"lacks the parameters transformer\.ln_f\.bias"):
        recognise({name: shape for name, shape in shapes.items() if name != "transformer.ln_f.bias"}, module.config)
    with pytest.raises(UnrecognisedNetwork, match=r"also has the parameters lm_head\.bias"):
        recognise(shapes | {"lm_head.bias": (V,)}, module.config)
    with pytest.raises(UnrecognisedNetwork, match=r"transformer.wpe.weight has shape \(12, 13\); .* has \(12, 12\)"):
        recognise(shapes | {"transformer.wpe.weight": (12, 13)}, module.config)
    foreign = recognise(shapes, module.config)
    state = module.state_dict()
    del state["transformer.h.1.ln_1.weight"]
    with pytest.raises(UnrecognisedNetwork, match=r"lacks the parameters transformer\.h\.1\.ln_1\.weight"):
        foreign.parameters(state)


class Doubled(nn.Module):
    """The logits of a module, computed in another way."""

    def __init__(self, module: nn.Module, change):
        super().__init__()
        self.inner, self.change = module, change

    def forward(self, tokens: Tensor) -> Any:
        return self.change(self.inner(tokens))


def test_another_forward_pass_under_the_same_names_is_refused():
    module = randomised(NanoGPT(causal=False))
    _, network = converted(module)
    with pytest.raises(UnrecognisedNetwork, match="logits differ from those of its conversion by up to"):
        require_same_answers(network, module)
    module = randomised(NanoGPT())
    _, network = converted(module)
    require_same_answers(network, Doubled(module, lambda output: {"logits": output[0]}["logits"]))
    for change, message in (
        (lambda output: output[0] * 1.001, "logits differ"),
        (lambda output: output[0] * float("nan"), "logits differ"),
        (lambda output: output[0][..., 1:], "answers with"),
        (lambda output: {"loss": 0}, "answers with a dict"),
        (lambda output: output[5], "does not answer to random inputs"),
    ):
        with pytest.raises(UnrecognisedNetwork, match=message):
            require_same_answers(network, Doubled(module, change))


def test_eps_that_no_setting_names_shows_in_the_answers():
    module = gpt2()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 0.1
    _, network = converted(module)
    require_same_answers(network, module)
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 1e-6
    with pytest.raises(UnrecognisedNetwork, match="logits differ"):
        require_same_answers(network, module)


def test_a_comparison_changes_neither_mode_nor_random_numbers_nor_gradients():
    module = randomised(NanoGPT())
    _, network = converted(module)
    module.train()
    module.transformer["drop"].eval()
    modes, state = [part.training for part in module.modules()], torch.get_rng_state()
    with torch.inference_mode():
        require_same_answers(network, module)
    require_same_answers(network, Doubled(module, lambda output: (torch.rand(3), output)[1]))
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_module_of_lower_precision_is_compared_by_its_precision():
    module = gpt2()
    module = module.to(torch.bfloat16)
    _, network = converted(module)
    require_same_answers(network, module)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: [],
        lambda values: {},
        lambda values: values | {"format": "bert"},
        lambda values: values | {"format": ["gpt2"]},
        lambda values: values | {"task": 3},
        lambda values: values | {"model": values["model"] | {"n_layers": 10**9}},
        lambda values: values | {"model": {"kind": "additive"}},
        lambda values: values | {"model": {"kind": ["x"]}},
        lambda values: values | {"task": {"kind": "induction_tokens"}},
        lambda values: values | {"model": {"kind": "transformer"}},
    ],
)
def test_nonsense_in_a_header_is_refused_in_one_line(change):
    module = gpt2()
    values = recognise(shapes_of(module), module.config).to_json()
    with pytest.raises(MechinterpError) as caught:
        ForeignNetwork.from_json(change(values))
    assert isinstance(caught.value, RunFileError)
    assert "\n" not in str(caught.value)
