# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # An ablation study: what does training need?
#
# Two questions have two tools. *What does a trained network lose without a component?* Take it out of a checkpoint.
# *What does training do without it?* Train anew under an intervention, over several seeds, and compare: a study. This
# notebook does both at a small size, with the minimal model of an induction head.

# %%
import mechinterp as mi
from mechinterp.studies.runner import compare, measured

# %% [markdown]
# ## A study
#
# A study is a config × variants × seeds. Here β₁, the preference of layer 1 for the previous token, is left free, or
# fixed at 0, so that layer 1 never finds it; or the attention of layer 1 is clamped to the previous token from the
# start. One seed is enough to see how it works; take several to believe a difference.

# %%
config = mi.RunConfig.preset("reddy2023-minimal").updated(
    {
        "task.n_classes": 64,
        "task.n_labels": 8,
        "task.n_pairs": 4,
        "task.content_dim": 32,
        "training.steps": 1_200,
        "training.learning_rate": 0.1,
        "training.weight_decay": 1e-5,
        "training.batch_size": 64,
        "checkpoints.every": 50,
    }
)
study = mi.Study.of(
    "first-layer",
    config,
    variants={
        "free": {},
        "without": {"interventions": [{"kind": "fix", "parameters": ["blocks.0.attn.beta1"], "value": 0.0}]},
        "clamped": {"interventions": [{"kind": "clamp", "layer": 0, "pattern": "previous_token"}]},
    },
    seeds=[0],
    measures=["icl_accuracy"],
)
table = mi.run_study(study, "checkpoints/studies", workers=1)
table[["variant", "seed", "status", "transition", "step", "low", "high"]]

# %% [markdown]
# `compare` has one row per variant: how many runs make a transition, its median step, and the ratio to the first
# variant within a seed.

# %%
compare(table)[["transitions", "step", "ratio"]].round(2)

# %% [markdown]
# The network of the clamped variant is measured twice: released from the clamp, and under it, as it was trained.

# %%
for (variant, seed), curves in measured(study, "checkpoints/studies").items():
    final = curves.filter(like="icl_accuracy").iloc[-1]
    print(variant, "seed", seed, final.round(2).to_dict())

# %% [markdown]
# ## The trained network without a component
#
# The same question to the finished run of the free variant: its pattern in layer 1 is replaced by one that looks
# everywhere alike, and so on for every component and way of ablation.

# %%
run = mi.open_run(f"checkpoints/studies/{study.runs[0].id}.h5")
losses = mi.analyse(run, "ablate", steps="last", n_sequences=300)
losses.assign(cost=losses["intact"] - losses["value"]).nlargest(6, "cost")[["hook", "ablation", "cost"]].round(2)

# %% [markdown]
# The two answers may differ: training may find another way without a component that the trained network depends on.
