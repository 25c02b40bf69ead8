"""Small networks of other libraries with random parameters, and their conversion."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from mechinterp.models.foreign import ForeignNetwork, recognise, settings_of
from mechinterp.models.forward import run_with_cache
from mechinterp.models.hooked_lens import MAJOR
from mechinterp.models.network import Network
from mechinterp.models.registry import parameter_shapes

V, T = 23, 12
"""Tokens, and positions."""


def randomised(module: nn.Module, seed: int = 0) -> Any:
    """The module with random parameters, also biases and scales, which start at 0 and 1."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    return module


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def converted(module: nn.Module, settings: object = None) -> tuple[ForeignNetwork, Network]:
    foreign = recognise(shapes_of(module), settings_of(module) if settings is None else settings)
    parameters = foreign.parameters(module.state_dict())
    assert {name: tuple(value.shape) for name, value in parameters.items()} == parameter_shapes(foreign.config)
    assert all(value.dtype == torch.float32 for value in parameters.values())
    assert ForeignNetwork.from_json(foreign.to_json()) == foreign
    return foreign, Network(foreign.config, parameters)


def largest_difference(module: nn.Module, network: Network) -> float:
    """Of the logits at all positions."""
    tokens = torch.randint(0, network.config.task.d_vocab, (3, T), generator=torch.Generator().manual_seed(1))
    module.eval()
    with torch.no_grad():
        output: Any = module(tokens)
        ours = run_with_cache(network, tokens).values["unembed.hook_out"]
    theirs = getattr(output, "logits", output[0] if isinstance(output, tuple) else output)
    assert float(theirs.std()) > 0.1
    return float((theirs - ours[:, -theirs.shape[1] :]).abs().max())


def hooked_transformer(**changes: Any) -> Any:
    """A HookedTransformer; with TransformerLens 4, which has none, the test is skipped."""
    if MAJOR > 3:
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    settings: dict[str, Any] = {
        "n_layers": 2,
        "n_heads": 3,
        "d_model": 12,
        "d_head": 4,
        "d_vocab": V,
        "n_ctx": T,
        "device": "cpu",
    }
    settings |= {"act_fn": "gelu", "d_mlp": 20, "seed": 3} | changes
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return randomised(HookedTransformer(HookedTransformerConfig(**settings)))


def gpt2(**changes: Any) -> Any:
    settings: dict[str, Any] = {"vocab_size": V, "n_positions": T, "n_embd": 12, "n_layer": 2, "n_head": 3}
    return randomised(GPT2LMHeadModel(GPT2Config(**settings | changes)))


class NanoNorm(nn.Module):
    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class NanoBlock(nn.Module):
    def __init__(self, config: SimpleNamespace, causal: bool):
        super().__init__()
        width, bias = config.n_embd, config.bias
        self.ln_1, self.ln_2, self.causal, self.n_head = NanoNorm(width, bias), NanoNorm(width, bias), causal, 3
        self.attn = nn.ModuleDict(
            {"c_attn": nn.Linear(width, 3 * width, bias=bias), "c_proj": nn.Linear(width, width, bias=bias)}
        )
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width, bias=bias), "gelu": nn.GELU()})
        self.mlp["c_proj"] = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.n_head, -1)).transpose(1, 2)
            for part in self.attn["c_attn"](self.ln_1(x)).chunk(3, dim=2)
        )
        z = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.attn["c_proj"](z.transpose(1, 2).flatten(2))
        return x + self.mlp["c_proj"](self.mlp["gelu"](self.mlp["c_fc"](self.ln_2(x))))


class NanoGPT(nn.Module):
    """The names of nanoGPT; as there, logits of the last position alone are given, in a tuple with a loss."""

    transformer: Any

    def __init__(self, bias: bool = True, causal: bool = True, tied: bool = True):
        super().__init__()
        self.config = SimpleNamespace(
            n_layer=2, n_head=3, n_embd=12, block_size=T, vocab_size=V, bias=bias, dropout=0.5
        )
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(V, 12), "wpe": nn.Embedding(T, 12)})
        self.transformer["drop"] = nn.Dropout(0.5)
        self.transformer["h"] = nn.ModuleList([NanoBlock(self.config, causal) for _ in range(2)])
        self.transformer["ln_f"] = NanoNorm(12, bias)
        self.lm_head = nn.Linear(12, V, bias=False)
        if tied:
            self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        x = self.transformer["wte"](tokens) + self.transformer["wpe"].weight[: tokens.shape[1]]
        x = self.transformer["drop"](x)
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x)[:, [-1]]), None


def gpt_neox(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": V,
        "max_position_embeddings": T,
        "hidden_size": 24,
        "num_hidden_layers": 2,
    }
    settings |= {"num_attention_heads": 3, "intermediate_size": 20}
    return randomised(GPTNeoXForCausalLM(GPTNeoXConfig(**settings | changes)))
