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
}
"""Figures 3, 4 and 6a of Reddy 2023: K=256, p_C=0.8, B=1, ε=0.1. Nguyen & Reddy 2024: N=100, K beyond their K* of
about 10⁴; the text does not give the initial attention weights. ``-authors`` has the conventions of the authors' code
(github.com/anhhuyalex/icl-kinetics), which the text leaves open: an MLP of two hidden layers and a readout with bias,
the start of torch.nn.Linear everywhere (so W_Q, W_K and W_V within ±1/√(D+2)), a trained LayerNorm, exactly K/2 pairs
of each label, and 100 tokens with the target; in its minimal model β starts at N(0, 1), and the softmax has the target.
"""
