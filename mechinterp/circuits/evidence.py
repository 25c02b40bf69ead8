"""Evidence for an induction head (Elhage et al. 2021, Olsson et al. 2022): facts, with measured values.

Accuracy does not show an induction head, since a network may have memorised the classes, may name some label of the
context, or may exclude labels; nor does an attention pattern, which may have no effect. All facts but the first are
therefore effects of activation patching (Vig et al. 2020, Meng et al. 2022; `patching`) or path patching (Wang et al.
2023; `paths`): the share of the answer that is restored by one activation, or by the edges from earlier layers.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.circuits.activations import network_of, parts_of
from mechinterp.circuits.edges import Receiver, Scale
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import Patches, Site, clean_corrupt_gap
from mechinterp.errors import MechinterpError, NamedEnum, unknown_name
from mechinterp.models.classifier import require_labels
from mechinterp.models.forward import hooks_to_go_on, run_with_cache
from mechinterp.models.network import Network
from mechinterp.tasks.base import Task
from mechinterp.tasks.corruption import Corruption, Pairs, composition_corruption, corrupted_pairs, corruptions_of
from mechinterp.torch_state import torch_defaults

MOST_OFF = 0.5
"""The greatest distance from 1 of a value with which a fact holds. An effect far above 1 is no share: something else in
the network works against it, as values of other labels do where all labels of the context are raised alike."""


class Fact(NamedEnum):
    """A statement about a network that answers from the context."""

    answers_from_context = "answers from the context"
    k_composition = "earlier layers tell the keys which token stood before"
    q_composition = "earlier layers tell the query where the match stands"
    target_query_selects = "the target's query selects"
    correct_label_copied = "the value of the correct label is copied"
    induction_head = "all of an induction head, by K- or Q-composition"


@torch_defaults()
def induction_head_evidence(
    model: Network | nn.Module, task: Task, *, layer: int | None = None, n_pairs: int = 256, seed: int = 0
) -> pd.DataFrame:
    """One row per fact: ``fact`` (names of `Fact`), ``value``, and whether it ``holds`` (0.5 to 1.5, `MOST_OFF`).

    The heads of one layer are tested (`layer`, counted from 0; by default the last).

    * ``answers_from_context``: accuracy on in-context sequences, of novel classes where there are classes, on a scale
      where guessing among the context's labels is 0 and always right is 1;
    * ``k_composition``: with shuffled positions, the effect of what earlier layers write on the layer's keys; where
      tokens carry no position, the share of the answer that is lost when, in the clean run, earlier layers write into
      the keys what they write with swapped items. It is high if a previous-token head writes where the layer matches
      (Olsson et al. 2022);
    * ``q_composition``: with the target replaced, the effect of what earlier layers write on the layer's query. It is
      high if an earlier head finds the match and the layer looks beside it;
    * ``target_query_selects``: with the target replaced, the layer's query at the target;
    * ``correct_label_copied``: with two labels swapped, the layer's values at the correct label. It is about 0 or
      negative in a network that excludes the labels that it attends to, and far above 1 where all labels of the context
      are raised, and others take that back;
    * ``induction_head``: the weakest of the values above, 1 − |1 − value|, with the stronger of the two compositions.

    Where the span is not resolved (`patching.mask_unresolved`: the corruption changes nothing) the value is not a
    number and the fact does not hold. The heads of a layer are taken together, so that one that raises all
    labels and one that lowers all but the correct one as much count as one that copies; `heads` takes them apart.
    Scales of normalisations are those of the patched run. Raises where `corrupted_pairs` does, and for a hooked model
    that no `Network` represents.
    """
    require_separate_tokens(task)
    composition = composition_corruption(task)
    swaps = composition is Corruption.swap_item  # tokens have places, not positions: the values are those of the clean
    network = network_of(model)
    tested = network.n_layers - 1 if layer is None else layer
    if tested not in range(network.n_layers):
        raise unknown_name("layer", tested, range(network.n_layers))

    def pairs_of(corruption: Corruption) -> Pairs:
        return corrupted_pairs(task, corruption, n_pairs=n_pairs, seed=seed)

    with torch.no_grad():
        of_keys = _Runs(network, pairs_of(composition), tested, "k", None, noise=swaps)
        of_query = _Runs(network, pairs_of(Corruption.replace_target), tested, "q", "target")
        swapped = pairs_of(Corruption.swap_label)
        of_value = _Runs(network, swapped, tested, "v", "correct_label")
        accuracy = float(Metric.accuracy.of(of_value.clean, swapped.answers, swapped.wrong_labels))
        assert swapped.clean.token_labels is not None
        in_context = torch.nn.functional.one_hot(swapped.clean.token_labels + 1).amax(dim=1)[:, 1:].sum(dim=1)
        chance = float((1 / in_context).mean())
        values = {
            Fact.answers_from_context: (accuracy - chance) / (1 - chance),
            Fact.k_composition: of_keys.composed,
            Fact.q_composition: of_query.composed,
            Fact.target_query_selects: of_query.restored,
            Fact.correct_label_copied: of_value.restored,
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
    """Raise for a task whose contexts do not show items and labels as separate tokens, which a head could join."""
    if lacking := lacks_of_evidence(task):
        raise MechinterpError(f"{lacking}: use patch, paths or ablate")


def lacks_of_evidence(task: Task) -> str:
    """What a task lacks for the facts of an induction head, in words; empty if it has all."""
    batch = task.sample(task.evaluations[0], 1)
    if not batch.has_separate_label_tokens:
        return "an induction head joins items and labels that are separate tokens, and this task's are one token"
    if "correct_label" not in batch.roles:
        return (
            "an induction head finds the label that followed an item before, and this task's contexts show none (the"
            " role correct_label)"
        )
    if missing := [role for role in ("correct_item", "target") if role not in batch.roles]:
        return f"an induction head reads the roles correct_item and target, and this task's batches lack {missing[0]}"
    if batch.token_labels is None:
        return "an induction head copies the label that a token shows, and this task's batches have no token_labels"
    needed, known = (
        (composition_corruption(task), Corruption.replace_target, Corruption.swap_label),
        corruptions_of(task),
    )
    if known and (missing := [corruption.name for corruption in needed if corruption not in known]):
        return f"the facts of an induction head take the corruptions of a task, and this one lacks {', '.join(missing)}"
    return ""


class _Runs:
    """A network's runs on clean and corrupt sequences, patched where one layer reads queries, keys or values.

    Sequences are taken in parts, which bounds the memory. Effects are not numbers where the span is not resolved.
    """

    def __init__(
        self, network: Network, pairs: Pairs, layer: int, through: str, role: str | None, *, noise: bool = False
    ):
        """The layer reads by `through` (``q``, ``k`` or ``v``), and is patched at the positions of a role, or by all
        that earlier layers write (without a role, by this alone); with `noise` in the clean run."""
        hook = f"blocks.{layer}.attn.hook_{through}"
        hooks = dict.fromkeys([*hooks_to_go_on(network, hook), "hook_embed"])
        receivers = [Receiver(layer, head, through) for head in range(network.n_heads)]
        logits: dict[str, list[Tensor]] = {"clean": [], "corrupt": [], "restored": [], "composed": []}
        for part in parts_of(len(pairs.clean), network, pairs.clean.n_pos):
            clean, corrupt = (
                run_with_cache(network, batch.inputs[part], hooks, target_only=True)
                for batch in (pairs.clean, pairs.corrupt)
            )
            logits["clean"].append(clean.logits)
            logits["corrupt"].append(corrupt.logits)
            if role is not None:
                roles = {role: pairs.roles[role][part]}
                logits["restored"].append(Patches(corrupt, clean, roles).logits(Site(hook, role)))
            if layer and through != "v":
                base, source = (clean, corrupt) if noise else (corrupt, clean)
                written = [run[f"blocks.{layer}.hook_resid_pre"] - run["hook_embed"] for run in (source, base)]
                change = sum(receiver.reads(base, written[0] - written[1], Scale.recomputed) for receiver in receivers)
                logits["composed"].append(base.forward_from(hook, base[hook] + change))
        joined = {name: torch.cat(parts) for name, parts in logits.items() if parts}
        self.clean: Float[Tensor, "batch n_labels"] = joined["clean"]
        """Logits of the clean run."""
        for batch in (pairs.clean, pairs.corrupt):
            require_labels(batch, self.clean.shape[-1])
        low, span, error = clean_corrupt_gap(Metric.logit_difference, self.clean, joined["corrupt"], pairs)

        def effect(name: str) -> float:
            if name not in joined or not abs(span) > 2 * error:
                return float("nan")
            value = float(Metric.logit_difference.of(joined[name], pairs.answers, pairs.wrong_labels))
            return (value - low) / span

        self.restored = effect("restored")
        """The effect at the role (`patching.patch`)."""
        composed = effect("composed")
        self.composed = 1 - composed if noise else composed
        """The joint effect of all edges from earlier layers (`paths.patch_paths`); with noise, the share of the answer
        that is lost with them. Not a number in the first layer."""
