"""GPT-NeoX of transformers (GPTNeoXForCausalLM), to which the Pythia models belong.

Queries, keys and values are one map, ``query_key_value`` [head · (q, k, v) · d_head, d_model]. The first dimensions of
a head are rotated; attention and the MLP are in parallel, or one after the other (`use_parallel_residual`).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mechinterp.config import RunConfig, TransformerConfig
from mechinterp.errors import UnrecognisedNetwork
from mechinterp.models.base import Shapes
from mechinterp.models.foreign.base import Format, activation, joined_heads
from mechinterp.models.foreign.settings import REQUIRED, Known, Settings
from mechinterp.models.foreign.transformers_settings import GENERAL
from mechinterp.models.layer import EPSILON

KNOWN = Known(
    used={
        **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size"), REQUIRED),
        **dict.fromkeys(("vocab_size", "max_position_embeddings"), REQUIRED),
        **{"hidden_act": "gelu", "use_parallel_residual": True, "tie_word_embeddings": False, "attention_bias": True},
        **{"rope_parameters": None, "rotary_pct": 0.25, "rotary_emb_base": 10_000, "rope_theta": None},
        "partial_rotary_factor": None,
    },
    fixed={
        **{"layer_norm_eps": EPSILON, "is_encoder_decoder": False, "model_type": "gpt_neox", "pruned_heads": {}},
        **{"quantization_config": None, "rope_scaling": None, "add_cross_attention": False},
    },
    irrelevant=(*GENERAL, "attention_dropout", "hidden_dropout", "classifier_dropout"),
)
_HEADS = ("lm_head.weight", "embed_out.weight")
"""The unembedding, as transformers 5 and 4 name it."""


class GPTNeoXFormat(Format):
    """A state dict of transformers' GPTNeoXForCausalLM, and its GPTNeoXConfig or config.json."""

    name = "gpt_neox"
    title = "GPT-NeoX of transformers"
    anchor = "embed_in.weight"
    buffers = re.compile(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$|(^|\.)rotary_emb\.inv_freq$")
    undetermined = "its number of heads, its rotation and whether attention and MLP are in parallel"

    def own_name(self, name: str, prefix: str) -> str:
        own, outside = name.removeprefix(prefix), prefix.removesuffix("gpt_neox.")
        return _HEADS[0] if own in {f"{outside}{head}" for head in _HEADS} else own

    def their_name(self, own: str, prefix: str) -> str:
        return (prefix.removesuffix("gpt_neox.") if own == _HEADS[0] else prefix) + own

    def config(self, shapes: Shapes, settings: object) -> RunConfig:
        chosen = Settings(settings, KNOWN, self.title)
        d_model, n_heads = chosen.integer("hidden_size"), chosen.integer("num_attention_heads")
        d_vocab, n_pos = chosen.integer("vocab_size"), chosen.integer("max_position_embeddings")
        if d_model % n_heads:
            raise chosen.refusal("num_attention_heads", f"it does not divide hidden_size = {d_model}")
        if chosen.switch("attention_bias") != ("layers.0.attention.dense.bias" in shapes):
            raise chosen.refusal("attention_bias", "layers.0.attention.dense.bias says the contrary")
        if _HEADS[0] not in shapes and not chosen.switch("tie_word_embeddings"):
            raise chosen.refusal("tie_word_embeddings", f"{_HEADS[0]} is missing")
        model: dict[str, Any] = {"n_layers": chosen.integer("num_hidden_layers"), "n_heads": n_heads}
        model |= {"d_model": d_model, "d_head": d_model // n_heads, "d_mlp": chosen.integer("intermediate_size")}
        model |= {"act_fn": activation(chosen, "hidden_act"), "normalization_type": "LN", "use_attn_scale": True}
        model |= {"parallel_attn_mlp": chosen.switch("use_parallel_residual"), "positional_embedding_type": "rotary"}
        model |= _rotation(chosen, d_model // n_heads) | ({} if _HEADS[0] in shapes else {"output": "tied"})
        return self.run_config({"n_tokens": d_vocab, "n_pos": n_pos, "n_labels": d_vocab}, model)

    def expected(self, config: RunConfig, shapes: Shapes) -> Shapes:
        model = _model(config)
        d_model, d_mlp = model.width(config.task), model.d_mlp or 0
        attention_bias = "layers.0.attention.dense.bias" in shapes
        expected: Shapes = {"embed_in.weight": (config.task.d_vocab, d_model)}
        for layer in range(model.n_layers):
            block = f"layers.{layer}"
            for name in ("input_layernorm", "post_attention_layernorm"):
                expected |= {f"{block}.{name}.{part}": (d_model,) for part in ("weight", "bias")}
            for name, into, out in (
                ("attention.query_key_value", d_model, 3 * d_model),
                ("attention.dense", d_model, d_model),
                ("mlp.dense_h_to_4h", d_model, d_mlp),
                ("mlp.dense_4h_to_h", d_mlp, d_model),
            ):
                expected[f"{block}.{name}.weight"] = (out, into)
                if attention_bias or not name.startswith("attention."):
                    expected[f"{block}.{name}.bias"] = (out,)
        expected |= {f"final_layer_norm.{part}": (d_model,) for part in ("weight", "bias")}
        return expected | ({_HEADS[0]: (config.task.n_labels, d_model)} if model.output != "tied" else {})

    def converted(self, config: RunConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        model = _model(config)
        parameters = {"embed.W_E": state["embed_in.weight"]}
        for layer in range(model.n_layers):
            block, theirs = f"blocks.{layer}", f"layers.{layer}"
            weight = state[f"{theirs}.attention.query_key_value.weight"].unflatten(0, (model.n_heads, 3, -1))
            parameters |= {f"{block}.attn.W_{name}": weight[:, i].transpose(1, 2) for i, name in enumerate("QKV")}
            W_O = state[f"{theirs}.attention.dense.weight"].T
            parameters[f"{block}.attn.W_O"] = joined_heads(W_O, model.n_heads)
            if f"{theirs}.attention.dense.bias" in state:
                biases = state[f"{theirs}.attention.query_key_value.bias"].unflatten(0, (model.n_heads, 3, -1))
                parameters |= {f"{block}.attn.b_{name}": biases[:, i] for i, name in enumerate("QKV")}
                parameters[f"{block}.attn.b_O"] = state[f"{theirs}.attention.dense.bias"]
            for name, of in (("in", "dense_h_to_4h"), ("out", "dense_4h_to_h")):
                parameters[f"{block}.mlp.W_{name}"] = state[f"{theirs}.mlp.{of}.weight"].T
                parameters[f"{block}.mlp.b_{name}"] = state[f"{theirs}.mlp.{of}.bias"]
            for name, of in (("ln1", "input_layernorm"), ("ln2", "post_attention_layernorm")):
                parameters |= {f"{block}.{name}.{part[0]}": state[f"{theirs}.{of}.{part}"] for part in _PARTS}
        parameters |= {f"ln_final.{part[0]}": state[f"final_layer_norm.{part}"] for part in _PARTS}
        return parameters | ({} if model.output == "tied" else {"unembed.W_U": state[_HEADS[0]].T})


_PARTS = ("weight", "bias")


def _rotation(chosen: Settings, d_head: int) -> dict[str, Any]:
    """The rotary positions: of transformers 5 a table, before that numbers."""
    table = chosen["rope_parameters"]
    if table is None:
        base = "rotary_emb_base" if chosen["rope_theta"] is None else "rope_theta"
        share = "rotary_pct" if chosen["partial_rotary_factor"] is None else "partial_rotary_factor"
        return {"rotary_dim": int(d_head * chosen.number(share)), "rotary_base": chosen.number(base)}
    known = {"rope_theta", "partial_rotary_factor", "rope_type"}
    if not isinstance(table, Mapping) or table.keys() - known or table.get("rope_type", "default") != "default":
        raise chosen.refusal("rope_parameters", "the frequencies of the rotation must be the default ones")
    try:
        base, share = float(table["rope_theta"]), float(table.get("partial_rotary_factor", 1.0))
        return {"rotary_dim": int(d_head * share), "rotary_base": base}
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UnrecognisedNetwork(
            "rope_parameters of a GPT-NeoX must have the numbers rope_theta and partial_rotary_factor"
        ) from None


def _model(config: RunConfig) -> TransformerConfig:
    assert isinstance(config.model, TransformerConfig)
    return config.model
