"""CLA, context-label accuracy: how often the predicted label is one of the labels in the context.

Source: Reddy 2023, section 3, which does not define "predicted"; both variants are in [0, 1]:

* `cla`: the label with the largest logit is in the context;
* `cla_mass`: the probability that the softmax gives to the labels in the context.

A network that ignores the context scores n/L, where n is the number of distinct labels in it.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.config import CopyReadout, Freeze
from mechinterp.errors import MechinterpError
from mechinterp.measures.base import Observation, Requirement, register
from mechinterp.measures.manipulations import Manipulations, SideEffect, manipulation


def labels_in_context(seen: Observation) -> Bool[Tensor, "batch n_labels"]:
    """The labels in a sequence, as a mask."""
    token_labels, n_labels = seen.batch.token_labels, seen.logits.shape[-1]
    if token_labels is None:
        raise MechinterpError("cla: the task's batches carry no token_labels; add them to its Batch")
    present = torch.zeros(len(token_labels), n_labels + 1, dtype=torch.bool)
    present.scatter_(1, torch.where(token_labels < 0, n_labels, token_labels), True)
    return present[:, :-1]


@register(
    roles=["label"],
    requires=[Requirement.separate_label_tokens],
    manipulations=Manipulations(
        hold=manipulation(CopyReadout(), also=(SideEffect.gradient, SideEffect.readout)),
        remove=manipulation(Freeze(parameters=("classifier.*",)), also=(SideEffect.bypass,)),
    ),
)
def cla(seen: Observation) -> Float[Tensor, ""]:
    """Fraction of sequences whose most likely label is in the context."""
    predicted = seen.logits.argmax(dim=-1, keepdim=True)
    return labels_in_context(seen).gather(1, predicted).to(seen.logits.dtype).mean()


@register(roles=["label"], requires=[Requirement.separate_label_tokens])
def cla_mass(seen: Observation) -> Float[Tensor, ""]:
    """Mean probability of the labels in the context."""
    return (seen.logits.softmax(dim=-1) * labels_in_context(seen)).sum(dim=-1).mean()
