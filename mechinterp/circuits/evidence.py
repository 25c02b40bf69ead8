"""Is it an induction head? Four facts that together only an induction head shows, each with its measured number.

Accuracy alone does not tell: a network may know classes by heart, or name some label of the context. Nor does an
attention pattern, which may have no effect. Each fact but the first is therefore an effect of patching (`patching`,
`paths`): the share of the answer that one replaced activation or edge restores.
"""

from collections.abc import Mapping

import pandas as pd
from torch import Tensor

from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import Site, patch, resolved
from mechinterp.circuits.paths import patch_paths
from mechinterp.circuits.rerun import activations
from mechinterp.tasks.base import Task
from mechinterp.tasks.corruption import Corruption, corrupted_pairs

LEAST = 0.5
"""What each fact's number must reach."""


def induction_head_evidence(
    parameters: Mapping[str, Tensor], task: Task, *, n_pairs: int = 256, seed: int = 0
) -> pd.DataFrame:
    """The four facts: ``fact``, ``value``, and whether it ``holds`` (value ≥ `LEAST`). All hold in an induction head.

    * ``answers from the context``: accuracy on in-context sequences of novel classes (chance among labels: 1/N);
    * ``earlier layer → last layer's key``: with shuffled positions, the strongest such edge. This is previous-token
      attention that writes what it sees where the last layer matches it;
    * ``target's query selects``: with the target replaced, the last layer's query at the target;
    * ``labels' values are copied``: with two labels swapped, the last layer's values at labels.

    A value without a resolved span (`patching.resolved`: the corruption changes nothing) is not a number, and the fact
    does not hold. Raises where `corrupted_pairs` does.
    """
    pairs = {
        corruption: corrupted_pairs(task, corruption, n_pairs=n_pairs, seed=seed)
        for corruption in (Corruption.shuffle_positions, Corruption.replace_target, Corruption.swap_label)
    }
    clean = pairs[Corruption.swap_label]
    run = activations(parameters, clean.clean.inputs)
    last = run.n_layers - 1
    edges = resolved(patch_paths(parameters, pairs[Corruption.shuffle_positions]))
    to_keys = edges["receiver"].str.fullmatch(rf"{last}\.\d+\.k") & (edges["sender"] != "embed")

    def effect(corruption: Corruption, hook: str, role: str) -> float:
        site = Site(f"blocks.{last}.attn.{hook}", role)
        return float(resolved(patch(parameters, pairs[corruption], [site]))["effect"].item())

    values = {
        "answers from the context": float(Metric.accuracy.of(run.logits, clean.answers, clean.foils)),
        f"earlier layer → layer {last}'s key": float(edges.loc[to_keys, "effect"].max()),
        "target's query selects": effect(Corruption.replace_target, "hook_q", "target"),
        "labels' values are copied": effect(Corruption.swap_label, "hook_v", "label"),
    }
    return pd.DataFrame({"fact": list(values), "value": list(values.values())}).assign(
        holds=[value >= LEAST for value in values.values()]
    )
