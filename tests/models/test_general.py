"""Networks with all parts compute what TransformerLens' own HookedTransformer computes, at every hook."""

import warnings
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mechinterp as mi
from mechinterp.config import CustomTaskConfig, TransformerConfig
from mechinterp.models.forward import forward, run_with_cache
from mechinterp.models.hooked import HookedNetwork
from mechinterp.models.hooked_lens import MAJOR
from mechinterp.models.layer import distance_buckets
from mechinterp.models.network import Network
from mechinterp.models.registry import initial_parameters
from tests.helpers import by_hooked_transformer
from tests.models.drawn import N_POS, config_of, inputs_of, models, random_network

if TYPE_CHECKING or MAJOR < 4:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.components.t5_attention import T5Attention


def transformer_lens_model(network: Network) -> "HookedTransformer":
    """TransformerLens' own model with these parameters, without a classifier."""
    model, d_model = network.model, network.d_model
    positions = model.positional_embedding_type
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = HookedTransformer(
            HookedTransformerConfig(
                n_layers=model.n_layers,
                n_heads=model.n_heads,
                d_model=d_model,
                d_head=network.parameters["blocks.0.attn.W_Q"].shape[-1],
                d_mlp=model.d_mlp,
                act_fn=model.act_fn,
                attn_only=model.d_mlp is None,
                parallel_attn_mlp=model.parallel_attn_mlp,
                n_ctx=N_POS,
                d_vocab=network.config.task.d_vocab or 2,
                d_vocab_out=network.config.task.n_labels,
                normalization_type=model.normalization_type,
                positional_embedding_type=positions if positions in ("rotary", "shortformer") else "standard",
                rotary_dim=model.rotary_dim,
                rotary_base=model.rotary_base,
                use_attn_scale=model.use_attn_scale,
                init_weights=False,
                device="cpu",
                dtype=torch.float64,
            )
        )
    state = {name: torch.zeros_like(value) for name, value in theirs.named_parameters()}
    for layer in range(model.n_layers):
        W_O = state[f"blocks.{layer}.attn.W_O"]
        W_O[:] = torch.eye(*W_O.shape[-2:])
    if positions == "sinusoidal":
        angle = torch.arange(N_POS).double()[:, None] / 10_000 ** (torch.arange(0, d_model, 2).double() / d_model)
        state["pos_embed.W_pos"][:, 0::2], state["pos_embed.W_pos"][:, 1::2] = angle.sin(), angle.cos()
    for name, value in network.parameters.items():
        if name in state and (name != "embed.W_E" or network.model.input == "tokens"):
            state[name] = value
    theirs.load_state_dict(state, strict=False)
    if not model.final_norm:
        theirs.ln_final = nn.Identity()
    if positions == "relative_positional_bias":
        for layer, block in enumerate(theirs.blocks):
            attention = block.attn
            attention.cfg = copy(attention.cfg)
            attention.cfg.positional_embedding_type = positions
            bias = network.parameters[f"blocks.{layer}.attn.rel_pos_bias"][t5_buckets(model)].permute(2, 0, 1)[None]
            attention.forward = lambda *given, plain=attention.forward, bias=bias, **named: plain(
                *given, position_bias=bias, **named
            )
    return theirs


def t5_buckets(model: TransformerConfig) -> Tensor:
    distance = torch.arange(N_POS)[None, :] - torch.arange(N_POS)[:, None]
    return T5Attention._relative_position_bucket(
        distance, False, model.relative_attention_num_buckets, model.relative_attention_max_distance
    )


@by_hooked_transformer
@pytest.mark.parametrize(("buckets", "largest"), [(4, 128), (32, 128), (8, 20)])
def test_buckets_of_distances_are_those_of_t5_far_away_too(buckets, largest):
    names = {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": largest}
    model = TransformerConfig.model_validate({"positional_embedding_type": "relative_positional_bias", **names})
    distance = torch.arange(200)[None, :] - torch.arange(200)[:, None]
    expected = T5Attention._relative_position_bucket(distance, False, buckets, largest)
    assert torch.equal(distance_buckets(model, 200), expected)


def their_cache(theirs: "HookedTransformer", network: Network, inputs: Tensor) -> dict[str, Tensor]:
    """TransformerLens' activations: from tokens by its own forward pass, from vectors by its blocks."""
    if network.model.input == "tokens":
        _, cache = theirs.run_with_cache(inputs)
        return dict(cache.items())
    W_E, b_E = network.parameters.get("embed.W_E"), network.parameters.get("embed.b_E", torch.zeros(()))
    del theirs.embed
    theirs.embed = lambda _: inputs if W_E is None else inputs @ W_E + b_E  # type: ignore[assignment]
    _, cache = theirs.run_with_cache(torch.zeros(inputs.shape[:2], dtype=torch.long))
    return dict(cache.items())


@by_hooked_transformer
@settings(max_examples=150, deadline=None, derandomize=True)
@given(models())
def test_every_activation_is_that_of_transformer_lens(model):
    config = config_of(model)
    network, inputs = random_network(config), inputs_of(config)
    ours, theirs = run_with_cache(network, inputs), their_cache(transformer_lens_model(network), network, inputs)
    compared = 0
    for name in network.hook_names:
        if name.startswith("classifier."):
            continue
        other = (
            theirs[name] if not name.startswith("ln_final.") or model["output"] != "classifier" else theirs[name][:, -1]
        )
        assert ours[name].shape == other.shape, name
        torch.testing.assert_close(
            ours[name], other, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )
        compared += 1
    assert compared >= 10
    left_out = {name for name in theirs if name not in network.hook_names} - {"unembed.hook_in"}
    absent = ("unembed.", "ln_final.") if model["output"] == "classifier" else ()
    assert {name for name in left_out if not name.startswith(absent)} <= {"hook_pos_embed"}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(models())
def test_the_hooked_view_computes_the_network_and_gives_it_back(model):
    config = config_of(model)
    network, inputs = random_network(config), inputs_of(config)
    view = HookedNetwork(network)
    logits, cache = view.run_with_cache(inputs)
    ours = run_with_cache(network, inputs)
    assert {*network.hook_names} <= {*cache.keys()}
    for name in network.hook_names:
        torch.testing.assert_close(cache[name], ours[name], rtol=1e-10, atol=1e-10)
    assert torch.equal(logits, cache[network.hook_names[-1]])
    again = view.network()
    assert all(torch.equal(value, network.parameters[name]) for name, value in again.parameters.items())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(models(), st.randoms(use_true_random=False))
def test_from_any_activation_onwards_as_with_a_hook_there(model, random):
    """Also without the activations that nobody asks for, and for the target alone, as in training."""
    config = config_of(model)
    network, inputs = random_network(config), inputs_of(config)
    base = run_with_cache(network, inputs)
    torch.testing.assert_close(forward(network, inputs), base.logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(forward(network, inputs, target_only=True), base.logits, rtol=1e-10, atol=1e-10)
    noise = np.random.default_rng(3)
    for name in random.sample(network.hook_names, 6):
        value = base[name] + torch.from_numpy(noise.standard_normal(base[name].shape)).masked_fill(
            base[name].isinf(), 0
        )
        hooked = forward(network, inputs, {name: lambda _, value=value: value})
        torch.testing.assert_close(base.forward_from(name, value), hooked, rtol=1e-10, atol=1e-10)
        if name != "hook_pos_embed" and not name.endswith(("_q", "_k", "scores")):
            assert not torch.allclose(hooked, base.logits)


WIDE = {"d_model": 64, "n_heads": 2, "d_head": 32, "d_mlp": 128, "output_matrix": "trained", "biases": True}
WIDE |= {"input": "tokens", "output": "unembedding", "positional_embedding_type": "standard", "n_layers": 2}


@pytest.mark.parametrize(
    ("init_mode", "expected"),
    [
        ("transformer_lens", dict.fromkeys(("W_E", "W_pos", "W_Q", "W_O", "W_in", "W_out", "W_U"), 0.1) | {"b_in": 0}),
        ("gpt2", {"W_E": 0.02, "W_Q": 0.02, "W_in": 0.02, "W_O": 0.01, "W_out": 0.01, "b_O": 0}),
        (
            "torch",
            {"W_E": 1, "W_pos": 1, "W_Q": (64 * 3) ** -0.5, "W_out": (128 * 3) ** -0.5, "b_out": (128 * 3) ** -0.5},
        ),
        ("reddy2023", {"W_E": 1 / 8, "W_K": 1 / 8, "W_O": 1 / 8, "W_in": 1 / 8, "W_out": 128**-0.5, "b_Q": 0}),
    ],
)
def test_every_start_has_its_standard_deviations(init_mode, expected):
    task = CustomTaskConfig(name="test", n_tokens=200, n_pos=100, n_labels=200)
    config = mi.RunConfig(task=task, model=TransformerConfig.model_validate(WIDE | {"init_mode": init_mode}))
    parameters = initial_parameters(config)
    for ending, std in expected.items():
        values = torch.cat([value.flatten() for name, value in parameters.items() if name.endswith(f".{ending}")])
        assert float(values.std()) == pytest.approx(std, rel=0.1), ending
