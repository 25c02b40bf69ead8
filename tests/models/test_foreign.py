"""Networks of other libraries compute the same as Networks of their converted parameters."""

import warnings

import pytest
import torch
from torch import nn

from mechinterp.errors import UnrecognisedNetwork
from mechinterp.models.foreign import recognise, require_same_answers, settings_of
from mechinterp.models.network import Network
from tests.models.foreign_networks import (
    NanoGPT,
    T,
    V,
    converted,
    gpt2,
    gpt_neox,
    hooked_transformer,
    largest_difference,
    randomised,
    shapes_of,
)

# HookedTransformer


HOOKED = [
    {},
    {"normalization_type": None, "act_fn": "relu"},
    {"normalization_type": "LNPre", "act_fn": "gelu_new", "use_attn_scale": False},
    {"normalization_type": "RMS", "act_fn": "silu", "positional_embedding_type": "rotary"},
    {"normalization_type": "RMSPre", "positional_embedding_type": "rotary", "rotary_dim": 2, "rotary_base": 100},
    {"attn_only": True, "positional_embedding_type": "shortformer", "d_vocab_out": 5},
    {"parallel_attn_mlp": True, "positional_embedding_type": "shortformer"},
    {"parallel_attn_mlp": True, "positional_embedding_type": "rotary", "act_fn": "gelu_pytorch_tanh"},
    {"dtype": torch.float64, "n_heads": 1, "n_layers": 1},
]


@pytest.mark.parametrize("changes", HOOKED, ids=str)
def test_a_hooked_transformer_is_its_network(changes):
    module = hooked_transformer(**changes)
    foreign, network = converted(module)
    assert foreign.format == "hooked_transformer"
    assert largest_difference(module, network) < 1e-4
    require_same_answers(network, module)
    as_dict = recognise(shapes_of(module), dict(module.cfg.to_dict()))
    assert as_dict == foreign


def test_folded_weights_are_those_of_the_network_without_scales():
    module = hooked_transformer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.process_weights_()
    _, network = converted(module)
    assert network.model.normalization_type == "LNPre"
    assert largest_difference(module, network) < 1e-4


# GPT-2 of transformers


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": False, "activation_function": "relu"}, {"n_inner": 7, "scale_attn_weights": False}],
    ids=str,
)
def test_a_gpt2_is_its_network(changes):
    module = gpt2(**changes)
    foreign, network = converted(module)
    assert foreign.format == "gpt2"
    assert largest_difference(module, network) < 1e-4
    require_same_answers(network, module)
    assert recognise(shapes_of(module), module.config.to_dict()) == foreign


@pytest.mark.parametrize("prefix", ["", "transformer.", "_orig_mod.transformer."])
def test_a_gpt2_has_any_prefix_and_a_tied_head_may_be_left_out(prefix):
    module = gpt2()
    _, network = converted(module)
    state = {f"{prefix}{name}": value for name, value in module.transformer.state_dict().items()}
    state[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, T, T)
    state[f"{prefix}h.0.attn.masked_bias"] = torch.tensor(-1e4)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    foreign = recognise(shapes, module.config)
    again = Network(foreign.config, foreign.parameters(state))
    assert torch.equal(again.parameters["unembed.W_U"], network.parameters["unembed.W_U"])
    assert largest_difference(module, again) < 1e-4
    with pytest.raises(UnrecognisedNetwork, match="tie_word_embeddings"):
        recognise(shapes, module.config.to_dict() | {"tie_word_embeddings": False})


# nanoGPT


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_nanogpt_is_its_network(bias, tied):
    module = randomised(NanoGPT(bias=bias, tied=tied))
    foreign, network = converted(module)
    assert (foreign.format, network.model.biases) == ("nanogpt", bias)
    assert largest_difference(module, network) < 1e-4
    require_same_answers(network, module)
    if tied:
        state = dict(module.named_parameters())  # which lists shared parameters once
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        assert "lm_head.weight" not in shapes
        again = recognise(shapes, settings_of(module))
        assert largest_difference(module, Network(again.config, again.parameters(state))) < 1e-4


def test_a_nanogpt_tells_its_activation_function_or_is_asked():
    module = NanoGPT()
    with pytest.raises(UnrecognisedNetwork, match="lack activation_function"):
        recognise(shapes_of(module), module.config)
    for block in module.transformer["h"]:
        block.mlp["gelu"] = nn.GELU(approximate="tanh")
    foreign = recognise(shapes_of(module), settings_of(module))
    assert foreign.config.model.act_fn == "gelu_new"  # type: ignore[attr-defined]
    with pytest.raises(UnrecognisedNetwork, match="bias"):
        recognise(shapes_of(module), vars(module.config) | {"bias": False, "activation_function": "gelu"})


# GPT-NeoX


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_parallel_residual": False, "hidden_act": "gelu_new"},
        {"rotary_pct": 1.0, "rotary_emb_base": 500, "tie_word_embeddings": True},
        {"attention_bias": False, "hidden_act": "gelu_fast"},
    ],
    ids=str,
)
def test_a_gpt_neox_is_its_network(changes):
    module = gpt_neox(**changes)
    foreign, network = converted(module)
    assert foreign.format == "gpt_neox"
    assert network.model.parallel_attn_mlp == changes.get("use_parallel_residual", True)
    assert largest_difference(module, network) < 1e-4
    require_same_answers(network, module)
    assert recognise(shapes_of(module), module.config.to_dict()) == foreign


def test_the_names_and_settings_of_transformers_4_are_known_too():
    module = gpt_neox(rotary_pct=0.5)
    foreign, _ = converted(module)
    shapes = shapes_of(module)
    shapes["embed_out.weight"] = shapes.pop("lm_head.weight")
    for layer in range(2):
        shapes[f"gpt_neox.layers.{layer}.attention.bias"] = (1, 1, T, T)
        shapes[f"gpt_neox.layers.{layer}.attention.masked_bias"] = ()
        shapes[f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq"] = (2,)
    old = {"vocab_size": V, "max_position_embeddings": T, "hidden_size": 24, "num_hidden_layers": 2}
    old |= {"num_attention_heads": 3, "intermediate_size": 20, "hidden_act": "gelu", "rotary_pct": 0.5}
    old |= {"rotary_emb_base": 10000, "use_parallel_residual": True, "torch_dtype": "float16", "use_cache": True}
    old |= {"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "layer_norm_eps": 1e-5}
    old |= {"initializer_range": 0.02, "model_type": "gpt_neox", "tie_word_embeddings": False}
    assert recognise(shapes, old | {"transformers_version": "4.24.0"}) == foreign
