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
}
"""Figures 3, 4 and 6a of Reddy 2023: K=256, p_C=0.8, B=1, ε=0.1. Nguyen & Reddy 2024: N=100, K beyond their K* of
about 10⁴; the initial attention weights are not given. With a standard deviation of 0.07 or more, most seeds stay for
long on a plateau where the network has learnt one of the two labels.
"""
