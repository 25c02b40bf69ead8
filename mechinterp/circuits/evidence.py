"""Is it an induction head? Four facts that together only an induction head shows, each with its measured number.

Accuracy alone does not tell: a network may know classes by heart, or name some label of the context. Nor does an
attention pattern, which may have no effect. Each fact but the first is therefore an effect of patching (`patching`,
`paths`): the share of the answer that one replaced activation or edge restores.
"""

import pandas as pd
import torch
from torch import nn

from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import Site, measured_span, patch, resolved
from mechinterp.circuits.paths import senders
from mechinterp.circuits.rerun import Parameters, activations, parameters_of, rerun
from mechinterp.errors import MechinterpError
from mechinterp.tasks.base import Task
from mechinterp.tasks.corruption import Corruption, Pairs, corrupted_pairs
from mechinterp.tasks.paired_items import PairedItemsTask

LEAST = 0.5
"""What each fact's number must reach."""


def induction_head_evidence(
    parameters: Parameters | nn.Module, task: Task, *, n_pairs: int = 256, seed: int = 0
) -> pd.DataFrame:
    """The four facts: ``fact``, ``value``, and whether it ``holds`` (value ≥ `LEAST`). All hold in an induction head.

    * ``answers from the context``: accuracy on in-context sequences of novel classes, on a scale where guessing among
      the context's labels is 0 and always right is 1;
    * ``earlier heads → last layer's key``: with shuffled positions, what the earlier layers' heads give to the last
      layer's keys. This is previous-token attention that writes what it sees where the last layer matches it;
    * ``target's query selects``: with the target replaced, the last layer's query at the target;
    * ``labels' values are copied``: with two labels swapped, the last layer's values at labels.

    A value without a resolved span (`patching.resolved`: the corruption changes nothing) is not a number, and the fact
    does not hold. The heads of a layer are taken together, and the induction head is looked for in the last layer.
    Raises where `corrupted_pairs` does.
    """
    require_separate_tokens(task)
    pairs = {
        corruption: corrupted_pairs(task, corruption, n_pairs=n_pairs, seed=seed)
        for corruption in (Corruption.shuffle_positions, Corruption.replace_target, Corruption.swap_label)
    }
    parameters, swapped = parameters_of(parameters), pairs[Corruption.swap_label]
    run = activations(parameters, swapped.clean.inputs)
    last = run.n_layers - 1

    def effect(corruption: Corruption, hook: str, role: str) -> float:
        site = Site(f"blocks.{last}.attn.{hook}", role)
        return float(resolved(patch(parameters, pairs[corruption], [site]))["effect"].item())

    accuracy = float(Metric.accuracy.of(run.logits, swapped.answers, swapped.foils))
    assert swapped.clean.token_labels is not None
    shown = torch.nn.functional.one_hot(swapped.clean.token_labels + 1).amax(dim=1)[:, 1:].sum(dim=1)
    chance = float((1 / shown).mean())
    values = {
        "answers from the context": (accuracy - chance) / (1 - chance),
        "earlier heads → last layer's key": _through_keys(parameters, pairs[Corruption.shuffle_positions], last),
        "target's query selects": effect(Corruption.replace_target, "hook_q", "target"),
        "labels' values are copied": effect(Corruption.swap_label, "hook_v", "label"),
    }
    return pd.DataFrame({"fact": list(values), "value": list(values.values())}).assign(
        holds=[value >= LEAST for value in values.values()]
    )


def require_separate_tokens(task: Task) -> None:
    """Refuse a task that shows an item and its label in one token: an induction head is what joins the two."""
    if isinstance(task, PairedItemsTask):
        raise MechinterpError(
            "an induction head joins items and labels that are tokens of their own, and paired items are one token:"
            " use patch, paths or ablate"
        )


def _through_keys(parameters: Parameters, pairs: Pairs, last: int) -> float:
    """The effect of all edges from earlier heads to keys of the last layer, together; see `patch_paths`."""
    if last == 0:
        return float("nan")
    with torch.no_grad():
        clean, corrupt = (activations(parameters, batch.inputs) for batch in (pairs.clean, pairs.corrupt))
        low, span, error = measured_span(Metric.logit_difference, clean.logits, corrupt.logits, pairs)
        written = [sum(senders(run, last).values()) - run["hook_embed"] for run in (clean, corrupt)]
        hook, W_K = f"blocks.{last}.attn.hook_k", parameters[f"blocks.{last}.attn.W_K"]
        key = corrupt[hook] + torch.einsum("bpd,hdk->bphk", written[0] - written[1], W_K)
        value = float(Metric.logit_difference.of(rerun(corrupt, hook, key), pairs.answers, pairs.foils))
    return (value - low) / span if abs(span) > 2 * error else float("nan")
