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
# # A network and a training loop of your own
#
# `mi.record` keeps the trajectory of any torch module that you train yourself. This notebook records a small network
# that learns to add modulo 7, measures it at every checkpoint, and locates its transition.

# %%
from pathlib import Path

import torch
from torch import nn

import mechinterp as mi

# %% [markdown]
# ## The network and its data

# %%
modulus, steps = 7, 600
generator = torch.Generator().manual_seed(0)
operands = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
answers = operands.sum(dim=1) % modulus


def make_model() -> nn.Module:
    """A network of the right shape, into which the weights of a checkpoint are loaded."""
    return nn.Sequential(nn.Embedding(modulus, 16), nn.Flatten(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, modulus))


torch.manual_seed(0)
model = make_model()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

# %% [markdown]
# ## Record the training: five lines

# %%
Path("checkpoints").mkdir(exist_ok=True)
schedule = mi.Schedule(every=100, per_decade=20)
with mi.record("checkpoints/own.h5", model, schedule=schedule, optimizer=optimizer, overwrite=True) as recorder:
    for step in range(steps):
        rows = torch.randint(len(operands), (32,), generator=generator)
        loss = nn.functional.cross_entropy(model(operands[rows]), answers[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder(step, loss=loss.item())

# %% [markdown]
# ## Measure it
#
# A measure is a function of the network.

# %%
run = mi.open_run("checkpoints/own.h5", build=make_model)


def accuracy(network: nn.Module) -> float:
    """The share of right answers."""
    with torch.no_grad():
        return (network(operands).argmax(dim=-1) == answers).float().mean().item()


table = mi.measure(run, {"accuracy": accuracy}).join(mi.measure(run))
table.iloc[::6].round(2)

# %%
emergence = mi.locate_emergence(table["accuracy"], scale="log_step")
emergence

# %% [markdown]
# ## What the run is, and its page

# %%
run

# %%
mi.write_report(run, table, "checkpoints/own.html", measure="accuracy")
