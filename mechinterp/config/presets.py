"""Named configs, as their differences from the defaults."""

from typing import Any

_REDDY_2023 = {
    "task": {"n_classes": 256, "p_in_context": 0.8, "burstiness": 1, "epsilon": 0.1},
    "training": {"steps": 60_000, "learning_rate": 0.01, "weight_decay": 1e-6},
    "checkpoints": {"every": 1_000},
}
_BY_LEARNING_RATE = {"weight_decay_convention": "times_learning_rate"}
_NGUYEN_2024: dict[str, dict[str, Any]] = {
    "task": {"kind": "paired_items", "n_items": 20_000, "n_pairs": 100},
    "model": {
        "kind": "transformer",
        "n_layers": 1,
        "classifier_width": 512,
        "readout": "difference",
        "attention_init_std": 0.05,
    },
    "training": {"steps": 200_000, "learning_rate": 0.01, "weight_decay": 1e-10, **_BY_LEARNING_RATE},
    "checkpoints": {"every": 2_000},
}
_AUTHORS = {"classifier_depth": 2, "classifier_width": 512, "classifier_init": "torch_linear", "readout_bias": True}
_TRANSFORMER: dict[str, Any] = {
    "kind": "transformer",
    "normalization_type": "LN",
    "use_attn_scale": True,
    "output_matrix": "trained",
    "output": "unembedding",
}
PRESETS: dict[str, dict[str, Any]] = {
    "reddy2023": _REDDY_2023,
    "reddy2023-fast": {
        **_REDDY_2023,
        "training": {"steps": 6_000, "learning_rate": 0.1, "weight_decay": 1e-5},
        "checkpoints": {"every": 100},
    },
    "reddy2023-minimal": {
        **_REDDY_2023,
        "task": {**_REDDY_2023["task"], "content_dim": 64},
        "model": {"kind": "induction_head"},
        "training": {"steps": 40_000, "learning_rate": 0.01, "weight_decay": 1e-6},
        "checkpoints": {"every": 500},
    },
    "nguyen2024": _NGUYEN_2024,
    "nguyen2024-fast": {
        **_NGUYEN_2024,
        "task": {"kind": "paired_items", "n_items": 16_000, "n_pairs": 32},
        "model": {**_NGUYEN_2024["model"], "classifier_width": 128},
        "training": {"steps": 4_000, "learning_rate": 0.1, "weight_decay": 1e-10, **_BY_LEARNING_RATE},
        "checkpoints": {"every": 100},
    },
    "nguyen2024-minimal": {
        **_NGUYEN_2024,
        "task": {**_NGUYEN_2024["task"], "tokens": "plain"},
        "model": {"kind": "additive"},
        "training": {**_NGUYEN_2024["training"], "steps": 60_000},
    },
    "nguyen2024-authors": {
        **_NGUYEN_2024,
        "task": {"kind": "paired_items", "n_items": 20_000, "n_pairs": 99, "equal_labels": True},
        "model": {
            "kind": "transformer",
            "n_layers": 1,
            "readout": "difference",
            "attention_init": "torch_linear",
            "trained_layer_norm": True,
            **_AUTHORS,
        },
        "training": {**_NGUYEN_2024["training"], "steps": 300_000},
    },
    "nguyen2024-authors-minimal": {
        **_NGUYEN_2024,
        "task": {"kind": "paired_items", "n_items": 20_000, "n_pairs": 99, "equal_labels": True, "tokens": "plain"},
        "model": {"kind": "additive", "target_in_softmax": True, "beta_init_std": 1.0, **_AUTHORS},
        "training": {**_NGUYEN_2024["training"], "steps": 300_000},
    },
    "singh2024": {
        "task": {
            "kind": "item_label",
            "n_classes": 50,
            "n_labels": 5,
            "n_pairs": 2,
            "epsilon": 0.0,
            "position_dim": 0,
            "content_dim": 32,
            "p_in_context": 1.0,
            "n_novel_classes": 50,
            "novel_classes": "fixed",
            "label_assignment": "by_sequence",
        },
        "model": {
            **_TRANSFORMER,
            "n_heads": 8,
            "d_model": 64,
            "d_head": 8,
            "positional_embedding_type": "rotary",
            "input": "projected",
        },
        "training": {"steps": 6_000, "batch_size": 32, "optimizer": "adam", "learning_rate": 1e-4},
        "checkpoints": {"every": 50},
    },
    "edelman2024": {
        "task": {"kind": "markov_chains", "n_tokens": 3, "n_pos": 100},
        "model": {
            **_TRANSFORMER,
            "d_model": 16,
            "positional_embedding_type": "relative_positional_bias",
            "relative_attention_num_buckets": 200,
            "input": "tokens",
            "init_mode": "gpt2",
        },
        "training": {
            "steps": 2_000,
            "batch_size": 64,
            "optimizer": "adamw",
            "beta2": 0.95,
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "decayed": ["blocks.*.W_*", "unembed.W_U"],
            "loss_at": "all",
        },
        "checkpoints": {"every": 25},
    },
    "induction-tokens": {
        "task": {"kind": "induction_tokens"},
        "model": {
            **_TRANSFORMER,
            "n_heads": 4,
            "d_model": 64,
            "d_head": 16,
            "positional_embedding_type": "standard",
            "input": "tokens",
            "init_mode": "gpt2",
        },
        "training": {
            "steps": 1_000,
            "batch_size": 64,
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "decayed": ["*W_*"],
            "loss_at": "all",
        },
        "checkpoints": {"every": 20},
    },
    "grokking": {
        "task": {"kind": "modular_addition", "modulus": 59, "train_fraction": 0.5},
        "model": {
            **_TRANSFORMER,
            "normalization_type": None,
            "n_layers": 1,
            "n_heads": 4,
            "d_model": 128,
            "d_head": 32,
            "d_mlp": 512,
            "positional_embedding_type": "standard",
            "input": "tokens",
        },
        "training": {
            "steps": 2_500,
            "batch_size": 1_740,
            "optimizer": "adamw",
            "beta2": 0.98,
            "learning_rate": 1e-3,
            "warmup_steps": 10,
            "weight_decay": 1.0,
        },
        "checkpoints": {"every": 25},
    },
}
"""Figures 3, 4 and 6a of Reddy 2023: K=256, p_C=0.8, B=1, ε=0.1. Nguyen & Reddy 2024: N=100, K beyond their K* of
about 10⁴; the text does not give the initial attention weights. ``-authors`` has the conventions of the authors' code
(github.com/anhhuyalex/icl-kinetics), which the text leaves open: an MLP of two hidden layers and a readout with bias,
the start of torch.nn.Linear everywhere (so W_Q, W_K and W_V within ±1/√(D+2)), a trained LayerNorm, exactly K/2 pairs
of each label, and 100 tokens with the target; in its minimal model β starts at N(0, 1), and the softmax has the target.

What the presets of further studies change, so that minutes show the phenomenon, stands in docs/studies.md: Singh et al.
2024 (Gaussian items of 32 dimensions, learning rate 10⁻⁴), Edelman et al. 2024 (a number for each distance instead of a
vector, learning rate 10⁻³), Power et al. 2022 with the network of Nanda et al. 2023 (p = 59, half of the pairs).
"""
