"""Evidence for an induction head (Elhage et al. 2021, Olsson et al. 2022): facts, with measured values.

Accuracy does not show an induction head, since a network may have memorised the classes, may name some label of the
context, or may exclude labels; nor does an attention pattern, which may have no effect. All facts but the first are
therefore effects of activation patching (Vig et al. 2020, Meng et al. 2022; `patching`) or path patching (Wang et al.
2023; `paths`): the share of the answer that is restored by one activation, or by the edges from earlier heads.
"""

import numpy as np
import pandas as pd
import torch
from torch import nn

from mechinterp.circuits.activations import network_of
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import Site, clean_corrupt_gap, mask_unresolved, patch
from mechinterp.circuits.paths import Receiver, senders
from mechinterp.errors import MechinterpError, NamedEnum
from mechinterp.models.forward import run_with_cache
from mechinterp.models.network import Network
from mechinterp.tasks.base import Task
from mechinterp.tasks.corruption import Corruption, Pairs, corrupted_pairs
from mechinterp.torch_state import torch_defaults

MOST_OFF = 0.5
"""The greatest distance from 1 of a value with which a fact holds. An effect far above 1 is no share: something else in
the network works against it, as values of other labels do where all labels of the context are raised alike."""


class Fact(NamedEnum):
    """A statement about a network that answers from the context."""

    answers_from_context = "answers from the context"
    k_composition = "earlier heads tell the last layer's keys which token stood before"
    q_composition = "earlier heads tell the last layer's query where the match stands"
    target_query_selects = "the target's query selects"
    correct_label_copied = "the value of the correct label is copied"
    induction_head = "all of an induction head, by K- or Q-composition"


@torch_defaults()
def induction_head_evidence(
    model: Network | nn.Module, task: Task, *, n_pairs: int = 256, seed: int = 0
) -> pd.DataFrame:
    """One row per fact: ``fact`` (names of `Fact`), ``value``, and whether it ``holds`` (0.5 to 1.5, `MOST_OFF`).

    * ``answers_from_context``: accuracy on in-context sequences of novel classes, on a scale where guessing among the
      context's labels is 0 and always right is 1;
    * ``k_composition``: with shuffled positions, the effect of the earlier layers' heads on the last layer's keys. It
      is high if a previous-token head writes where the last layer matches (Olsson et al. 2022);
    * ``q_composition``: with the target replaced, the effect of the earlier layers' heads on the last layer's query. It
      is high if an earlier head finds the match and the last layer looks beside it;
    * ``target_query_selects``: with the target replaced, the last layer's query at the target;
    * ``correct_label_copied``: with two labels swapped, the last layer's values at the correct label. It is about 0 or
      negative in a network that excludes the labels that it attends to, and far above 1 where all labels of the context
      are raised, and others take that back;
    * ``induction_head``: the weakest of the values above, 1 − |1 − value|, with the stronger of the two compositions.

    Where the span is not resolved (`patching.mask_unresolved`: the corruption changes nothing) the value is not a
    number and the fact does not hold. The heads of a layer are taken together, so that one that raises all
    labels and one that lowers all but the correct one as much count as one that copies. The last layer is tested.
    Raises where `corrupted_pairs` does, and for a hooked model that no `Network` represents.
    """
    require_separate_tokens(task)
    pairs = {
        corruption: corrupted_pairs(task, corruption, n_pairs=n_pairs, seed=seed)
        for corruption in (Corruption.shuffle_positions, Corruption.replace_target, Corruption.swap_label)
    }
    swapped = pairs[Corruption.swap_label]
    network = network_of(model)
    with torch.no_grad():
        logits = run_with_cache(network, swapped.clean.inputs).logits
    last = network.n_layers - 1

    def effect(corruption: Corruption, hook: str, role: str) -> float:
        site = Site(f"blocks.{last}.attn.{hook}", role)
        return float(mask_unresolved(patch(network, pairs[corruption], [site]))["effect"].item())

    accuracy = float(Metric.accuracy.of(logits, swapped.answers, swapped.wrong_labels))
    assert swapped.clean.token_labels is not None
    in_context = torch.nn.functional.one_hot(swapped.clean.token_labels + 1).amax(dim=1)[:, 1:].sum(dim=1)
    chance = float((1 / in_context).mean())
    values = {
        Fact.answers_from_context: (accuracy - chance) / (1 - chance),
        Fact.k_composition: _from_earlier_heads(network, pairs[Corruption.shuffle_positions], "k"),
        Fact.q_composition: _from_earlier_heads(network, pairs[Corruption.replace_target], "q"),
        Fact.target_query_selects: effect(Corruption.replace_target, "hook_q", "target"),
        Fact.correct_label_copied: effect(Corruption.swap_label, "hook_v", "correct_label"),
    }
    strength = {fact: 1 - abs(1 - value) for fact, value in values.items()}
    composed = np.fmax(strength[Fact.k_composition], strength[Fact.q_composition])
    others = [strength[fact] for fact in values if fact not in (Fact.k_composition, Fact.q_composition)]
    values[Fact.induction_head] = float(np.min([composed, *others]))
    return pd.DataFrame(
        {
            "fact": [fact.name for fact in values],
            "value": list(values.values()),
            "holds": [abs(1 - value) <= MOST_OFF for value in values.values()],
        }
    )


def require_separate_tokens(task: Task) -> None:
    """Raise for a task whose tokens carry an item with its label: no induction head is needed to join the two."""
    if not task.sample(task.evaluations[0], 1).has_separate_label_tokens:
        raise MechinterpError(
            "an induction head joins items and labels that are separate tokens, and this task's are one token:"
            " use patch, paths or ablate"
        )


def _from_earlier_heads(network: Network, pairs: Pairs, through: str) -> float:
    """The joint effect of all edges from earlier heads to keys or queries of the last layer; see `patch_paths`."""
    last = network.n_layers - 1
    if last == 0:
        return float("nan")
    with torch.no_grad():
        clean, corrupt = (run_with_cache(network, batch.inputs) for batch in (pairs.clean, pairs.corrupt))
        low, span, error = clean_corrupt_gap(Metric.logit_difference, clean.logits, corrupt.logits, pairs)
        written = [sum(senders(run, last).values()) - run["hook_embed"] for run in (clean, corrupt)]
        receivers = [Receiver(last, head, through) for head in range(network.n_heads)]
        hook = receivers[0].hook
        change = sum(receiver.reads(network, written[0] - written[1]) for receiver in receivers)
        logits = corrupt.forward_from(hook, corrupt[hook] + change)
        value = float(Metric.logit_difference.of(logits, pairs.answers, pairs.wrong_labels))
    return (value - low) / span if abs(span) > 2 * error else float("nan")
