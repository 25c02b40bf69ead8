"""A network in the coordinates of the race between memory and circuit: β, w, c₁ to c₃ (Nguyen & Reddy 2024).

What the theory says of the additive model (`models.additive`, `theory.kinetics`) is read off any network of one layer
and one head on paired items. With A = W_Q W_Kᵀ, its block A_xx on items, and s the scale that LayerNorm gives a token:

    β = tr A_xx / D · ⟨s_c s_q⟩    over copies c and their targets q
    w = ⟨Δz r⟩ / ⟨r²⟩              r = Σ_j p_j ℓ_j,  Δz = (z − z with the context's labels flipped) / 2
    φ⁺ = ℓ z without attention     over targets of the training set

    explained: tr² A_xx / (D ‖A_xx‖²) of β, ⟨Δz r⟩² / (⟨Δz²⟩ ⟨r²⟩) of w

Of the additive model these are its own β, w and φ, and both shares are 1. The shares, in [0, 1], say how far the
theory's coordinates reach: what of the attention to items is "the same item", and what of the labels' effect on the
answer is linear in the attention to them. φ⁺ gives c₁, c₂ and c₃ (`theory.kinetics.order_parameters`).

In a network the classifier has seldom read a target without attention: once it leans on what attention adds, its answer
to the bare target is no longer what it knows by heart, and c₁ to c₃ may stay high, or c₃ rise, in a network that has
memorised all. They are memory where attention adds nothing (as in ``race_memory``) or adds apart (the additive model).
"""

from collections.abc import Iterable
from itertools import pairwise

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.errors import MechinterpError
from mechinterp.models.conventions import folded
from mechinterp.models.functional import Parameters, classify, forward
from mechinterp.store import Run
from mechinterp.tasks.base import Batch, Task
from mechinterp.tasks.paired_items import PairedItemsTask
from mechinterp.theory.kinetics import memorised, order_parameters


def race(run: Run, *, steps: Iterable[int] | None = None, n_sequences: int = 1000, seed: int = 0) -> pd.DataFrame:
    """β, w, c₁, c₂, c₃ and I_K of a run's checkpoints: one row a step (all that are saved, by default).

    Columns are those of `coordinates`, and ``memorised``: I_K(t) = 2∫c₁dt in units of steps × learning rate, by the
    trapezoidal rule over these steps, so from the first of them on. Raises where `coordinates` does.
    """
    wanted = run.steps if steps is None else list(steps)
    if not wanted or any(a >= b for a, b in pairwise(wanted)):
        raise MechinterpError(f"steps {wanted}: I_K is integrated over steps; give some that ascend")
    rows = [
        coordinates(folded(run.config, run.weights(step)), run.task, n_sequences=n_sequences, seed=seed)
        for step in wanted
    ]
    table = pd.DataFrame(rows, index=pd.Index(wanted, name="step"))
    times = table.index.to_numpy(float) * run.config.training.learning_rate
    return table.assign(memorised=memorised(times, table["c1"].to_numpy()))


def coordinates(parameters: Parameters, task: Task, *, n_sequences: int = 1000, seed: int = 0) -> dict[str, float]:
    """``beta``, ``beta_explained``, ``w``, ``w_explained``, ``c1``, ``c2``, ``c3`` of a plain network's parameters.

    β and w are taken on `n_sequences` sequences of the set icl, c₁ to c₃ on as many targets of training (of a fresh
    dataset: new ones). MechinterpError for another task, or more layers or heads than one.
    """
    if not isinstance(task, PairedItemsTask):
        raise MechinterpError("β, w and what is memorised are read off runs on paired items; this task is another one")
    if "blocks.1.attn.W_Q" in parameters or len(parameters["blocks.0.attn.W_Q"]) > 1:
        raise MechinterpError("β, w and what is memorised are read off one layer with one head; this network has more")
    novel, trained = task.sample("icl", n_sequences, seed), task.sample("train", n_sequences, seed)
    with torch.no_grad():
        return circuit_strengths(parameters, novel) | _memory(parameters, trained)


def circuit_strengths(parameters: Parameters, batch: Batch) -> dict[str, float]:
    """``beta``, ``beta_explained``, ``w`` and ``w_explained`` of a plain network of one layer and one head."""
    Q, K = (parameters[f"blocks.0.attn.W_{matrix}"][0].double() for matrix in "QK")
    tokens, D = batch.inputs, batch.inputs.shape[-1] - 2
    A = (Q @ K.T)[:D, :D]
    trace, size = A.diagonal().sum(), D * A.square().sum()

    (z, pattern), (flipped, _) = (_answers(parameters, each) for each in (tokens, _flipped(tokens)))
    assert batch.token_labels is not None
    shown = torch.where(batch.token_labels < 0, 0, 1 - 2 * batch.token_labels).double()
    effect, r = (z - flipped) / 2, (pattern * shown).sum(dim=1)
    moment, power, reach = (effect * r).mean(), effect.square().mean(), r.square().mean()
    return {
        "beta": float(trace / D * _scales(batch).mean()),
        "beta_explained": float(trace.square() / size) if size else 0.0,
        "w": float(moment / reach) if reach else 0.0,
        "w_explained": float(moment.square() / (power * reach)) if power * reach else 0.0,
    }


def _answers(
    parameters: Parameters, tokens: Float[Tensor, "batch pos d_model"]
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch pos"]]:
    """The logit for ℓ = +1 against ℓ = −1, and what the target attends to."""
    logits, patterns = forward(parameters, tokens, target_only=True)
    return (logits[:, 0] - logits[:, 1]).double(), patterns["blocks.0.attn.hook_pattern"][:, 0, -1].double()


def _flipped(tokens: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """The same tokens with the labels of the context flipped."""
    other, labels = tokens.clone(), tokens[:, :-1, -2:]
    other[:, :-1, -2:] = -labels if _are_plain(tokens) else labels.flip(-1)
    return other


def _are_plain(tokens: Float[Tensor, "batch pos d_model"]) -> bool:
    """Whether these are x ⊕ ℓ ⊕ 0, and not the normalised x ⊕ one-hot ℓ."""
    return bool((tokens[:, :-1, -1] == 0).all())


def _scales(batch: Batch) -> Float[Tensor, "batch"]:
    """s_c s_q of a copy and its target: by how much LayerNorm has enlarged the product of their items.

    The two entries of a label differ by 1, and by s_c afterwards; the lesser one says where 0 has gone, in the target
    both do. Both tokens carry the same item.
    """
    tokens, copy = batch.inputs.double(), batch.roles["correct_item"].int().argmax(dim=1)
    copies, targets = tokens[torch.arange(len(tokens)), copy], tokens[:, -1]
    of_copy = (copies[:, -2] - copies[:, -1]).abs()
    zero = copies[:, -1:] if _are_plain(tokens) else copies[:, -2:].amin(dim=1, keepdim=True)
    sizes = [(each[:, :-2] - at).norm(dim=1) for each, at in ((copies, zero), (targets, targets[:, -2:-1]))]
    return of_copy.square() * sizes[1] / sizes[0]


def _memory(parameters: Parameters, batch: Batch) -> dict[str, float]:
    """c₁, c₂ and c₃ of the targets of a batch."""
    logits = classify(parameters, batch.inputs[:, -1])
    plus = (logits[:, 0] - logits[:, 1]) * (1 - 2 * batch.labels)
    found = order_parameters(plus.double().numpy())
    return {"c1": found.c1, "c2": found.c2, "c3": found.c3}
