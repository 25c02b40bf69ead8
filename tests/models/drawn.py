"""Networks drawn from all combinations of parts that a transformer may have, with random parameters and inputs."""

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

import mechinterp as mi
from mechinterp.config import CustomTaskConfig, TransformerConfig
from mechinterp.models.network import Network
from mechinterp.models.registry import initial_parameters

N_POS, N_LABELS, BATCH = 7, 5, 3


@st.composite
def models(draw) -> dict[str, Any]:
    """A random point of the space, and whether the task has tokens."""
    choose = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    d_model, heads, d_head = choose(4, 6, 8), choose(1, 2, 3), choose(2, 4, 6)
    model: dict[str, Any] = {
        "n_layers": choose(1, 2, 3),
        "n_heads": heads,
        "input": choose("tokens", "projected", "as_is"),
        "d_model": d_model,
        "output": choose("unembedding", "classifier"),
        "output_matrix": "trained",
        "d_head": d_head,
        "normalization_type": choose(None, "LN", "LNPre", "RMS", "RMSPre"),
        "positional_embedding_type": choose(
            None, "standard", "sinusoidal", "rotary", "shortformer", "relative_positional_bias"
        ),
        "use_attn_scale": choose(True, False),
        "biases": choose(True, False),
        "init_mode": choose("reddy2023", "transformer_lens", "gpt2", "torch"),
    }
    if choose(True, False):
        model |= {"d_mlp": choose(3, 16), "act_fn": choose("relu", "gelu", "gelu_new", "silu")}
        model["parallel_attn_mlp"] = choose(True, False)
    if model["normalization_type"] and choose(True, False):
        model["final_norm"] = False
    if model["positional_embedding_type"] == "rotary" and choose(True, False):
        model |= {"rotary_dim": 2, "rotary_base": 100.0}
    if model["positional_embedding_type"] == "relative_positional_bias":
        model |= {"relative_attention_num_buckets": choose(4, 32), "relative_attention_max_distance": 128}
    if model["output"] == "classifier":
        model |= {"classifier_depth": choose(0, 2), "classifier_width": 6}
    if model["input"] == "tokens" and model["output"] == "unembedding" and choose(True, False):
        model["output"] = "tied"
    if choose(True, False):
        model |= {"output_matrix": "identity", "d_head": None}
        if model["positional_embedding_type"] == "rotary" and not model.get("rotary_dim"):
            model["rotary_dim"] = d_model // 4 * 2
    return model


def config_of(model: dict[str, Any]) -> mi.RunConfig:
    tokens = model["input"] == "tokens"
    n_labels = 11 if model["output"] == "tied" else N_LABELS
    d_token = model["d_model"] if model["input"] == "as_is" else 9
    shape: dict[str, Any] = {"n_tokens": 11} if tokens else {"d_model": d_token}
    task = CustomTaskConfig(name="test", n_pos=N_POS, n_labels=n_labels, **shape)
    return mi.RunConfig(task=task, model=TransformerConfig(**model))


def random_network(config: mi.RunConfig) -> Network:
    """All parameters random, in float64, also biases and scales, which training starts at 0 and 1."""
    rng, parameters = np.random.default_rng(1), {}
    for name, value in initial_parameters(config).items():
        noise = torch.from_numpy(rng.standard_normal(value.shape))
        parameters[name] = value.double() + 0.5 * noise
    return Network(config, parameters)


def inputs_of(config: mi.RunConfig) -> Tensor:
    rng = np.random.default_rng(2)
    if config.task.d_vocab:
        return torch.from_numpy(rng.integers(0, config.task.d_vocab, (BATCH, N_POS)))
    return torch.from_numpy(rng.standard_normal((BATCH, N_POS, config.task.d_model)))
