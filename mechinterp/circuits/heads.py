"""The heads that play the roles of an induction head, and those of them that are redundant.

Olsson et al. 2022 tell the roles by attention patterns: a previous-token head attends from a token to the one before,
an induction head from the target to the token that followed it before, the correct label. A pattern does not show that
the network uses it. The effect of a head is therefore measured by interventions on its output z: what it restores
**alone**, when it is patched into sequences of which a corruption has changed what followed the target's item (Meng et
al. 2022), and what is **needed** of it, which is lost when its output is that of another sequence. A head that restores
much more alone than is needed of it is redundant: others stand in for it (the backups of Wang et al. 2023). Heads that
add up are needed as much as they restore.
"""

from itertools import product

import pandas as pd
import torch
from torch import Tensor, nn

from mechinterp.circuits.ablation import Ablation, ablate
from mechinterp.circuits.activations import network_of
from mechinterp.circuits.evidence import require_separate_tokens
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import Site, mask_unresolved, patch
from mechinterp.errors import NamedEnum
from mechinterp.models.forward import run_with_cache
from mechinterp.models.network import Network
from mechinterp.tasks.base import Task
from mechinterp.tasks.corruption import composition_corruption, corrupted_pairs
from mechinterp.torch_state import torch_defaults

ATTENDS = 0.3
"""The least mean attention of a head that has a role."""
MATTERS = 0.1
"""The least effect, alone or needed, of a head that has a role or is redundant."""


class HeadRole(NamedEnum):
    """The role of a head in an induction head."""

    none = "neither, or without an effect"
    previous_token = "attends to the token before, and the answer depends on it"
    induction = "attends from the target to the correct label, and the answer depends on it"


@torch_defaults()
def head_roles(model: Network | nn.Module, task: Task, *, n_pairs: int = 256, seed: int = 0) -> pd.DataFrame:
    """One row per head:

    * ``layer``, ``head``, counted from 0;
    * ``previous_token``: ⟨p_{i,i−1}⟩ over sequences and tokens but the first, in [0, 1];
    * ``correct_label``: ⟨Σ_j p_Tj⟩ of the target over the positions of its correct label, in [0, 1];
    * ``alone``: the normalised effect of patching it (`patching`), and ``needed``: the share of the lead of the correct
      label that is lost without it; about 0 to 1, not numbers where no answer is resolved (`mask_unresolved`);
    * ``role`` (`HeadRole`): by the larger of the two attentions, which must reach `ATTENDS`, of a head of which
      `MATTERS` or more is restored alone or needed;
    * ``redundant``: alone ≥ `MATTERS`, and needed < alone / 2.

    Raises where `corrupted_pairs` does, for tasks without a correct label, and for a hooked model that no `Network`
    represents.
    """
    require_separate_tokens(task)
    network = network_of(model)
    pairs = corrupted_pairs(task, composition_corruption(task), n_pairs=n_pairs, seed=seed)
    heads = list(product(range(network.n_layers), range(network.n_heads)))
    hooks = [f"blocks.{layer}.attn.hook_pattern" for layer in range(network.n_layers)]
    with torch.no_grad():
        patterns = run_with_cache(network, pairs.clean.inputs, hooks)
    labels = pairs.roles["correct_label"][:, None]
    before = [patterns[hook].diagonal(-1, dim1=-2, dim2=-1).mean(dim=(0, 2)) for hook in hooks]
    to_label = [(patterns[hook][:, :, -1] * labels).sum(dim=-1).mean(dim=0) for hook in hooks]
    sites = [Site(f"blocks.{layer}.attn.hook_z", None, head) for layer, head in heads]
    patched = mask_unresolved(patch(network, pairs, sites))

    def lead(logits: Tensor, answers: Tensor, _: Tensor) -> Tensor:
        return Metric.logit_difference.per_sequence(logits, answers, pairs.wrong_labels)

    ablated = ablate(network, pairs.clean, sites, Ablation.resample, metric=lead, seed=seed)
    lost = (1 - ablated["value"] / ablated["intact"]).where(patched["effect"].notna())
    rows = []
    for (layer, head), restored, needed in zip(heads, patched["effect"], lost, strict=True):
        previous, label = float(before[layer][head]), float(to_label[layer][head])
        role = HeadRole.previous_token if previous > label else HeadRole.induction
        if max(previous, label) < ATTENDS or not (restored >= MATTERS or needed >= MATTERS):
            role = HeadRole.none
        attention = {"previous_token": previous, "correct_label": label}
        effects = {"alone": restored, "needed": needed, "role": role.name}
        redundant = restored >= MATTERS and needed < restored / 2
        rows.append({"layer": layer, "head": head, **attention, **effects, "redundant": redundant})
    return pd.DataFrame(rows)
