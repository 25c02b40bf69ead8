"""GPT-2: that of transformers (GPT2LMHeadModel), and nanoGPT, which has the same names and transposed weights.

Queries, keys and values are one map, ``c_attn`` [d_model, 3 · head · d_head], transposed in nanoGPT. Positions are
trained vectors, normalisations LayerNorms, and the output ``lm_head.weight``, or without it the embedding. nanoGPT
without biases has LayerNorms without a shift too.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mechinterp.config import RunConfig, TransformerConfig
from mechinterp.models.base import Shapes
from mechinterp.models.foreign.base import Format, activation, joined_heads, split_heads
from mechinterp.models.foreign.settings import REQUIRED, Known, Settings
from mechinterp.models.foreign.transformers_settings import GENERAL
from mechinterp.models.layer import EPSILON

GPT2_KNOWN = Known(
    used={
        **dict.fromkeys(("n_layer", "n_head", "n_embd", "vocab_size", "n_positions"), REQUIRED),
        **{"n_inner": None, "activation_function": "gelu_new", "scale_attn_weights": True, "tie_word_embeddings": True},
    },
    fixed={
        **{"layer_norm_epsilon": EPSILON, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False},
        **{"add_cross_attention": False, "is_encoder_decoder": False, "model_type": "gpt2", "pruned_heads": {}},
        "quantization_config": None,
    },
    irrelevant=(
        *GENERAL,
        *("resid_pdrop", "embd_pdrop", "attn_pdrop", "n_ctx", "summary_type", "summary_use_proj"),
        *("summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    ),
)
NANOGPT_KNOWN = Known(
    used={
        **dict.fromkeys(("n_layer", "n_head", "n_embd", "vocab_size", "block_size", "activation_function"), REQUIRED),
        "bias": None,
    },
    fixed={},
    irrelevant=("dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop", "model_type"),
)


class GPT2Format(Format):
    """A state dict of transformers' GPT2LMHeadModel, and its GPT2Config or config.json."""

    name = "gpt2"
    title = "GPT-2 of transformers"
    anchor = "wte.weight"
    buffers = re.compile(r"\.attn\.(bias|masked_bias)$")
    undetermined = "its number of heads and its activation function"

    def accepts(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether weights are [in, out]."""
        return _is_wide(shapes.get("h.0.attn.c_attn.weight")) is not False

    def own_name(self, name: str, prefix: str) -> str:
        outside = prefix.removesuffix("transformer.")
        own = name.removeprefix(prefix)
        return own.removeprefix(outside) if own == f"{outside}lm_head.weight" else own

    def their_name(self, own: str, prefix: str) -> str:
        return (prefix.removesuffix("transformer.") if own == "lm_head.weight" else prefix) + own

    def config(self, shapes: Shapes, settings: object) -> RunConfig:
        chosen = Settings(settings, GPT2_KNOWN, self.title)
        d_mlp = 4 * chosen.integer("n_embd") if chosen["n_inner"] is None else chosen.integer("n_inner")
        model = {"d_mlp": d_mlp, "use_attn_scale": chosen.switch("scale_attn_weights")}
        if "lm_head.weight" not in shapes and not chosen.switch("tie_word_embeddings"):
            raise chosen.refusal("tie_word_embeddings", "lm_head.weight is missing")
        return self._config(shapes, chosen, chosen.integer("n_positions"), model)

    def _config(self, shapes: Shapes, chosen: Settings, n_pos: int, model: dict[str, Any]) -> RunConfig:
        d_model, n_heads, d_vocab = (chosen.integer(name) for name in ("n_embd", "n_head", "vocab_size"))
        if d_model % n_heads:
            raise chosen.refusal("n_head", f"it does not divide n_embd = {d_model}")
        model = model | {"n_layers": chosen.integer("n_layer"), "n_heads": n_heads, "d_model": d_model}
        model |= {"d_head": d_model // n_heads, "act_fn": activation(chosen, "activation_function")}
        model |= {"normalization_type": "LN", "positional_embedding_type": "standard"}
        model |= {} if "lm_head.weight" in shapes else {"output": "tied"}
        return self.run_config({"n_tokens": d_vocab, "n_pos": n_pos, "n_labels": d_vocab}, model)

    def expected(self, config: RunConfig, shapes: Shapes) -> Shapes:
        model = _model(config)
        d_model, d_mlp, with_biases = model.width(config.task), model.d_mlp or 0, model.biases
        expected: Shapes = {"wte.weight": (config.task.d_vocab, d_model), "wpe.weight": (config.task.n_pos, d_model)}
        for layer in range(model.n_layers):
            for name, size in (("ln_1", d_model), ("ln_2", d_model)):
                expected |= _with_bias(f"h.{layer}.{name}", (size,), size, with_biases)
            for name, into, out in (
                ("attn.c_attn", d_model, 3 * d_model),
                ("attn.c_proj", d_model, d_model),
                ("mlp.c_fc", d_model, d_mlp),
                ("mlp.c_proj", d_mlp, d_model),
            ):
                expected |= _with_bias(f"h.{layer}.{name}", self._of_map(into, out), out, with_biases)
        expected |= _with_bias("ln_f", (d_model,), d_model, with_biases)
        return expected | ({"lm_head.weight": (config.task.n_labels, d_model)} if model.output != "tied" else {})

    def _of_map(self, into: int, out: int) -> tuple[int, int]:
        """The shape of the weights of a linear map."""
        return into, out

    def _map(self, weight: Tensor) -> Tensor:
        """The weights of a linear map as [in, out]."""
        return weight

    def converted(self, config: RunConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        model = _model(config)
        parameters = {"embed.W_E": state["wte.weight"], "pos_embed.W_pos": state["wpe.weight"]}
        for layer in range(model.n_layers):
            block, theirs = f"blocks.{layer}", f"h.{layer}"
            of_qkv = self._map(state[f"{theirs}.attn.c_attn.weight"]).chunk(3, dim=1)
            parameters |= {
                f"{block}.attn.W_{name}": split_heads(W, model.n_heads) for name, W in zip("QKV", of_qkv, strict=True)
            }
            W_O = self._map(state[f"{theirs}.attn.c_proj.weight"])
            parameters[f"{block}.attn.W_O"] = joined_heads(W_O, model.n_heads)
            parameters[f"{block}.mlp.W_in"] = self._map(state[f"{theirs}.mlp.c_fc.weight"])
            parameters[f"{block}.mlp.W_out"] = self._map(state[f"{theirs}.mlp.c_proj.weight"])
            parameters |= {f"{block}.ln{i}.w": state[f"{theirs}.ln_{i}.weight"] for i in (1, 2)}
            if model.biases:
                of_qkv = state[f"{theirs}.attn.c_attn.bias"].chunk(3)
                parameters |= {
                    f"{block}.attn.b_{name}": b.unflatten(0, (model.n_heads, -1))
                    for name, b in zip("QKV", of_qkv, strict=True)
                }
                parameters[f"{block}.attn.b_O"] = state[f"{theirs}.attn.c_proj.bias"]
                parameters[f"{block}.mlp.b_in"] = state[f"{theirs}.mlp.c_fc.bias"]
                parameters[f"{block}.mlp.b_out"] = state[f"{theirs}.mlp.c_proj.bias"]
                parameters |= {f"{block}.ln{i}.b": state[f"{theirs}.ln_{i}.bias"] for i in (1, 2)}
        parameters["ln_final.w"] = state["ln_f.weight"]
        parameters |= {"ln_final.b": state["ln_f.bias"]} if model.biases else {}
        return parameters | ({} if model.output == "tied" else {"unembed.W_U": state["lm_head.weight"].T})


class NanoGPTFormat(GPT2Format):
    """A state dict of nanoGPT (github.com/karpathy/nanoGPT), and its GPTConfig.

    GPTConfig does not name the activation function: GELU today, its approximation (gelu_new) before June 2023, as in
    minGPT. It is given as ``activation_function``; `settings_of` finds it in the module.
    """

    name = "nanogpt"
    title = "nanoGPT"

    def accepts(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether weights are [out, in]."""
        return _is_wide(shapes.get("h.0.attn.c_attn.weight")) is False

    def config(self, shapes: Shapes, settings: object) -> RunConfig:
        chosen = Settings(settings, NANOGPT_KNOWN, self.title)
        biases, d_mlp = "h.0.attn.c_attn.bias" in shapes, shapes.get("h.0.mlp.c_fc.weight", (1,))[0]
        if chosen["bias"] is not None and chosen.switch("bias") != biases:
            raise chosen.refusal("bias", f"h.0.attn.c_attn.bias is {'there' if biases else 'missing'}")
        model = {"d_mlp": d_mlp, "use_attn_scale": True, "biases": biases}
        return self._config(shapes, chosen, chosen.integer("block_size"), model)

    def _of_map(self, into: int, out: int) -> tuple[int, int]:
        return out, into

    def _map(self, weight: Tensor) -> Tensor:
        return weight.T


def _is_wide(shape: tuple[int, ...] | None) -> bool | None:
    """Whether the map to queries, keys and values is [d_model, 3 d_model]; None of no matrix."""
    return None if shape is None or len(shape) != 2 else shape[0] < shape[1]


def _with_bias(name: str, shape: tuple[int, ...], size: int, bias: bool) -> Shapes:
    return {f"{name}.weight": shape} | ({f"{name}.bias": (size,)} if bias else {})


def _model(config: RunConfig) -> TransformerConfig:
    assert isinstance(config.model, TransformerConfig)
    return config.model
