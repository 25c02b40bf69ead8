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
# # A first look: how an induction head forms
#
# This notebook trains a small network, measures it at every checkpoint, locates the step of its transition, and takes
# the circuit apart that has formed. It runs in under a minute on one core; the first run also compiles the training
# step, for half a minute.
#
# On Colab, install first: `!pip install git+https://github.com/OWNER/mechinterp`, with the owner of your copy.

# %%
from pathlib import Path

import plotly.graph_objects as go

import mechinterp as mi

# %% [markdown]
# ## Train
#
# The task: name the label of the last item, from examples of items and labels in the same sequence. Its classes are new
# in the sequences that are measured, so that only the context has the answer. The preset is made smaller here.

# %%
config = mi.RunConfig.preset("reddy2023-fast", seed=0).updated(
    {
        "task.n_pairs": 4,
        "task.n_labels": 8,
        "task.position_dim": 17,
        "task.content_dim": 31,
        "model.classifier_width": 64,
        "training.steps": 4_000,
        "training.batch_size": 64,
        "checkpoints.every": 100,
    }
)
Path("checkpoints").mkdir(exist_ok=True)
run = mi.train(config, "checkpoints/first-look.h5", overwrite=True)
run

# %% [markdown]
# ## Measure, and locate the transition
#
# `mi.measure` gives a table with one row per checkpoint. `icl_accuracy` is the accuracy on new classes, `ila1` the
# attention of labels to the token before them in layer 1, `tila2` the attention of the target to its correct label in
# layer 2.

# %%
table = mi.measure(run, ["icl_accuracy", "ila1", "tila2"], n_sequences=300, progress=True)
table.iloc[::8].round(2)

# %%
figure = go.Figure([go.Scatter(x=table.index, y=table[name], name=name) for name in table])
figure.update_layout(xaxis_title="step", yaxis_title="fraction", template="plotly_white", height=320)

# %%
mi.locate_emergence(table["icl_accuracy"])

# %% [markdown]
# ## Look at attention
#
# Any step of the run is a network, and `run.model(step)` is its HookedTransformer. Tokens alternate between items and
# labels; the last one is the target, whose label is asked.

# %%
model = run.model("last")
batch = run.task.sample("icl", 200, seed=1)
logits, cache = model.run_with_cache(batch.inputs)
print(batch)
print("accuracy", (logits.argmax(-1) == batch.labels).float().mean().item())

# %%
pattern = cache["blocks.1.attn.hook_pattern"][:, 0, -1]  # where the target looks in layer 2: [sequence, position]
correct = batch.roles["correct_label"]
print("attention to the correct label", round(pattern[correct].mean().item(), 2))
go.Figure(go.Heatmap(z=pattern[:20].detach().numpy(), zmin=0, zmax=1)).update_layout(
    xaxis_title="position", yaxis_title="sequence", height=360
)

# %% [markdown]
# ## The circuit
#
# Every edge of the picture is measured: it is taken out, and what the answer loses is its width.

# %%
mi.circuit_graph(run.network("last"), run.task, n_pairs=128)

# %% [markdown]
# `"evidence"` asks the facts that only an induction head shows, each with its number.

# %%
mi.analyse(run, "evidence", steps="last").round(2)

# %% [markdown]
# ## Ablate and patch
#
# What is lost without a component? And which activation carries the answer from a clean sequence to one in which two
# labels were swapped?

# %%
losses = mi.analyse(run, "ablate", steps="last", n_sequences=200)
losses[["hook", "ablation", "intact", "value"]].round(2)

# %%
pairs = mi.corrupted_pairs(run.task, "swap_label", n_pairs=128)
values = mi.Site("blocks.1.attn.hook_v", "label")
mi.patch(run.network("last"), pairs, [values]).round(2)

# %% [markdown]
# ## A report
#
# `mi.write_report(run, mi.measure(run), "report.html")` writes one page with a slider over all checkpoints. As the last
# line of a cell it shows the page in a frame (5 MB).
