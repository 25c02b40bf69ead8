"""Order parameters of memorisation and in-context learning: β, w, c₁, c₂ and c₃ (Nguyen & Reddy 2024).

They are defined for the additive model (`models.additive`, `theory.kinetics`) and measured here in any network of one
layer and one head on paired items. With A = W_Q W_Kᵀ (between the scales of a trained LayerNorm), its block A_xx on
items, and s the scale that LayerNorm gives a token:

    β = tr A_xx / D · ⟨s_c s_q⟩    over copies c and their targets q
    w = ⟨Δz r⟩ / ⟨r²⟩              r = Σ_j p_j ℓ_j,  Δz = (z − z with the context's labels flipped) / 2

    explained: tr² A_xx / (D ‖A_xx‖²) of β, ⟨Δz r⟩² / (⟨Δz²⟩ ⟨r²⟩) of w

In the additive model β, w and φ are the model's parameters, and both explained shares are 1. In general the shares, in
[0, 1], are how much of the attention to items depends on whether two items are the same, and how much of the labels'
effect on the answer is linear in the attention to them. c₁, c₂ and c₃ are the measures of `measures.memory`.
"""

from collections.abc import Iterable
from dataclasses import asdict
from itertools import pairwise

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.circuits.activations import classic_network_of
from mechinterp.errors import MechinterpError
from mechinterp.measures.memory import memory
from mechinterp.models.forward import run_with_cache
from mechinterp.models.network import Network
from mechinterp.run import Run
from mechinterp.tasks.base import Batch, Task
from mechinterp.tasks.paired_items import PairedItemsTask
from mechinterp.theory.kinetics import memorised


def order_parameters_of_run(
    run: Run, *, steps: Iterable[int] | None = None, n_sequences: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """β, w, c₁, c₂, c₃ and I_K of a run's checkpoints: one row per step, by default every saved one.

    Columns are those of `additive_order_parameters`, and ``memorised``: I_K(t) = 2∫c₁dt in units of steps × learning
    rate, by the trapezoidal rule from the first of these steps on. Raises where
    `additive_order_parameters` does.
    """
    wanted = run.steps if steps is None else list(steps)
    if not wanted or any(a >= b for a, b in pairwise(wanted)):
        raise MechinterpError(f"steps {wanted}: I_K is integrated over steps; give some that ascend")
    saved = (Network(run.config, run.weights(step)) for step in wanted)
    rows = [additive_order_parameters(network, run.task, n_sequences=n_sequences, seed=seed) for network in saved]
    table = pd.DataFrame(rows, index=pd.Index(wanted, name="step"))
    times = table.index.to_numpy(float) * run.config.training.learning_rate
    return table.assign(memorised=memorised(times, table["c1"].to_numpy()))


def additive_order_parameters(
    model: Network | nn.Module, task: Task, *, n_sequences: int = 1000, seed: int = 0
) -> dict[str, float]:
    """``beta``, ``beta_explained``, ``w``, ``w_explained``, ``c1``, ``c2``, ``c3`` of a network.

    β and w are taken on `n_sequences` sequences of the set icl, c₁ to c₃ on as many targets of training (of a fresh
    dataset: new ones). MechinterpError for another task, or more layers or heads than one.
    """
    if not isinstance(task, PairedItemsTask):
        raise MechinterpError("β, w and what is memorised are read off runs on paired items; this task is another one")
    network = classic_network_of(model)
    if network.n_layers > 1 or network.n_heads > 1:
        raise MechinterpError("β, w and what is memorised are read off one layer with one head; this network has more")
    novel, trained = task.sample("icl", n_sequences, seed), task.sample("train", n_sequences, seed)
    with torch.no_grad():
        return circuit_strengths(network, novel) | asdict(memory(network, trained))


def circuit_strengths(network: Network, batch: Batch) -> dict[str, float]:
    """``beta``, ``beta_explained``, ``w`` and ``w_explained`` of a network of one layer and one head."""
    scale = network.parameters.get("blocks.0.ln.w", network.parameters["blocks.0.attn.W_Q"].new_ones(1))[:, None]
    Q, K = ((scale * network.matrix(0, name)[0]).double() for name in "QK")
    tokens, D = batch.inputs, batch.inputs.shape[-1] - 2
    A = (Q @ K.T)[:D, :D]
    trace, size = A.diagonal().sum(), D * A.square().sum()

    (z, pattern), (flipped, _) = (_answers(network, inputs) for inputs in (tokens, _flipped(tokens)))
    assert batch.token_labels is not None
    signs = torch.where(batch.token_labels < 0, 0, 1 - 2 * batch.token_labels).double()
    effect, r = (z - flipped) / 2, (pattern * signs).sum(dim=1)
    moment, power, reach = (effect * r).mean(), effect.square().mean(), r.square().mean()
    return {
        "beta": float(trace / D * _scales(batch).mean()),
        "beta_explained": float(trace.square() / size) if size else 0.0,
        "w": float(moment / reach) if reach else 0.0,
        "w_explained": float(moment.square() / (power * reach)) if power * reach else 0.0,
    }


def _answers(
    network: Network, tokens: Float[Tensor, "batch pos d_model"]
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch pos"]]:
    """The logit for ℓ = +1 against ℓ = −1, and the attention pattern of the target."""
    hook = "blocks.0.attn.hook_pattern"
    run = run_with_cache(network, tokens, [hook], target_only=True)
    return (run.logits[:, 0] - run.logits[:, 1]).double(), run[hook][:, 0, -1].double()


def _flipped(tokens: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """The same tokens with the labels of the context flipped."""
    other, labels = tokens.clone(), tokens[:, :-1, -2:]
    other[:, :-1, -2:] = -labels if _has_flag(tokens) else labels.flip(-1)
    return other


def _has_flag(tokens: Float[Tensor, "batch pos d_model"]) -> bool:
    """Whether tokens are x ⊕ ℓ ⊕ 0, with a flag for the target, and not the normalised x ⊕ one-hot ℓ."""
    return bool((tokens[:, :-1, -1] == 0).all())


def _scales(batch: Batch) -> Float[Tensor, "batch"]:
    """s_c s_q of a copy and its target: the factor by which LayerNorm has scaled the product of their items.

    The two entries of a label differ by 1 before LayerNorm and by s_c after it. The smaller one is the image of 0; in
    the target both are. Both tokens carry the same item.
    """
    tokens, copy = batch.inputs.double(), batch.roles["correct_item"].int().argmax(dim=1)
    copies, targets = tokens[torch.arange(len(tokens)), copy], tokens[:, -1]
    of_copy = (copies[:, -2] - copies[:, -1]).abs()
    zero = copies[:, -1:] if _has_flag(tokens) else copies[:, -2:].amin(dim=1, keepdim=True)
    copy_norm, target_norm = (copies[:, :-2] - zero).norm(dim=1), (targets[:, :-2] - targets[:, -2:-1]).norm(dim=1)
    return of_copy.square() * target_norm / copy_norm
