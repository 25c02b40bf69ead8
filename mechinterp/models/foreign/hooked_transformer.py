"""TransformerLens' HookedTransformer, version 3: the names and shapes are those of `Network`.

It always has biases and an unembedding of its own, and a normalisation of the last residual stream if it has any. With
folded weights (`process_weights_`) it has the normalisations LNPre and RMSPre, which have no parameters.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.models.base import Shapes
from mechinterp.models.foreign.base import Format, activation
from mechinterp.models.foreign.settings import REQUIRED, Known, Settings
from mechinterp.models.layer import EPSILON
from mechinterp.models.registry import parameter_shapes

_USED: dict[str, Any] = {
    **dict.fromkeys(("n_layers", "n_heads", "d_model", "d_head", "d_vocab", "n_ctx"), REQUIRED),
    **{"d_mlp": None, "attn_only": False, "act_fn": "relu", "parallel_attn_mlp": False},
    **{"d_vocab_out": -1, "normalization_type": "LN", "use_attn_scale": True, "attn_scale": -1.0},
    **{"positional_embedding_type": "standard", "rotary_dim": None, "rotary_base": 10_000.0},
    "original_architecture": None,
}
_FIXED: dict[str, Any] = {
    **{"eps": EPSILON, "attention_dir": "causal", "gated_mlp": False, "num_experts": None, "experts_per_token": None},
    **{"use_local_attn": False, "scale_attn_by_inverse_layer_idx": False, "n_key_value_heads": None},
    **{"final_rms": False, "post_embedding_ln": False, "use_normalization_before_and_after": False},
    **{"attn_scores_soft_cap": -1.0, "output_logits_soft_cap": -1.0, "use_qk_norm": False, "clip_qkv": None},
    **{"use_logn_attn": False, "use_attention_sinks": False, "rotary_adjacent_pairs": False},
    **{"rotary_scaling_factor": 1.0, "use_NTK_by_parts_rope": False, "use_dynamic_ntk_rope": False},
    **{"use_yarn_rope": False, "load_in_4bit": False, "quantization_method": None},
}
_IRRELEVANT = (
    # additional hooks, and attention computed by head
    *("use_attn_result", "use_attn_in", "use_split_qkv_input", "use_hook_mlp_in", "use_hook_tokens"),
    # where it came from, and where it is
    *("model_name", "from_checkpoint", "checkpoint_index", "checkpoint_label_type", "checkpoint_value", "device"),
    *("n_devices", "dtype", "n_params", "trust_remote_code", "layer_norm_folding", "uses_rms_norm"),
    # its tokenizer and its start
    *("tokenizer_name", "default_prepend_bos", "tokenizer_prepends_bos", "decoder_start_token_id"),
    *("init_mode", "init_weights", "initializer_range", "seed"),
    # details of parts that must be off
    *("window_size", "attn_types", "ungroup_grouped_query_attention", "norm_topk_prob", "rotary_base_local"),
    *("NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor", "NTK_by_parts_factor", "NTK_original_ctx_len"),
    *("yarn_factor", "yarn_attention_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_truncate"),
    *("yarn_original_max_position_embeddings", "yarn_global_attn_only", "train_seq_length"),
    *("relative_attention_max_distance", "relative_attention_num_buckets"),
    # HookedTransformer ties nothing; encoder–decoders do
    "tie_word_embeddings",
)
KNOWN = Known(_USED, _FIXED, _IRRELEVANT, defaults_are_off=True)
_POSITIONS = ("standard", "rotary", "shortformer")
_NORMALISATIONS = ("LN", "LNPre", "RMS", "RMSPre", None)
_FAMILIES = (None, "custom", "neel", "neel-solu-old", "GPT2LMHeadModel", "GPTNeoXForCausalLM")
"""Values of `original_architecture` that do not change the forward pass."""


class HookedTransformerFormat(Format):
    """A state dict of a HookedTransformer, and its HookedTransformerConfig."""

    name = "hooked_transformer"
    title = "HookedTransformer"
    anchor = "embed.W_E"
    buffers = re.compile(r"\.attn\.(mask|IGNORE|rotary_sin|rotary_cos)$")
    undetermined = "its heads' scale, its activation function and its normalisation with folded weights"

    def config(self, shapes: Shapes, settings: object) -> RunConfig:
        """The config with the settings of the same names."""
        chosen = Settings(settings, KNOWN, self.title)
        positions, norm = chosen["positional_embedding_type"], chosen["normalization_type"]
        for name, values in (
            ("positional_embedding_type", _POSITIONS),
            ("normalization_type", _NORMALISATIONS),
            ("original_architecture", _FAMILIES),
        ):
            if chosen[name] not in values:
                raise chosen.refusal(name, f"known: {', '.join(str(value) for value in values)}")
        d_head, attn_scale = chosen.integer("d_head"), chosen.number("attn_scale")
        if chosen.switch("use_attn_scale") and attn_scale != -1 and not math.isclose(attn_scale**2, d_head):
            raise chosen.refusal(
                "attn_scale", f"scores are divided by √d_head = {math.sqrt(d_head):.6g}, or not at all"
            )
        model: dict[str, Any] = {name: chosen.integer(name) for name in ("n_layers", "n_heads", "d_model")}
        model |= {"d_head": d_head, "normalization_type": norm, "positional_embedding_type": positions}
        model["use_attn_scale"] = chosen["use_attn_scale"]
        if not chosen.switch("attn_only"):
            model |= {"d_mlp": chosen.integer("d_mlp"), "act_fn": activation(chosen, "act_fn")}
            model["parallel_attn_mlp"] = chosen.switch("parallel_attn_mlp")
        elif chosen["parallel_attn_mlp"]:
            raise chosen.refusal("parallel_attn_mlp", "there is no MLP (attn_only)")
        if positions == "rotary":
            rotary_dim = d_head if chosen["rotary_dim"] is None else chosen.integer("rotary_dim")
            model |= {"rotary_dim": rotary_dim, "rotary_base": chosen.number("rotary_base")}
        d_vocab = chosen.integer("d_vocab")
        n_labels = d_vocab if chosen["d_vocab_out"] == -1 else chosen.integer("d_vocab_out")
        return self.run_config({"n_tokens": d_vocab, "n_pos": chosen.integer("n_ctx"), "n_labels": n_labels}, model)

    def expected(self, config: RunConfig, shapes: Shapes) -> Shapes:
        """The shapes of the Network's parameters."""
        return parameter_shapes(config)

    def converted(self, config: RunConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same parameters."""
        return dict(state)
