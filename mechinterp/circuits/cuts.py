"""The lead of the answer in a network without one edge, or with another sequence's activation at one node."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.circuits.certainty import resolved
from mechinterp.circuits.edges import Receiver, senders
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import Site, patched
from mechinterp.circuits.standard_errors import standard_error
from mechinterp.models.forward import Activations
from mechinterp.tasks.corruption import Pairs


@dataclass
class Cuts:
    """A network's activations on clean sequences, and its forward pass without an edge.

    The other sequence of a sequence is the one before it in the batch.
    """

    base: Activations
    pairs: Pairs
    roles: Sequence[str]
    """The columns of the diagram, whose last is the target's."""
    apart: bool = False
    """Whether heads of a layer are taken apart; else all together."""
    other: Activations = field(init=False)
    """Every activation in the other sequence."""
    span: float = field(init=False)
    """m(clean) − m(other sequence), in logits."""
    error: float = field(init=False)
    """Its standard error over pairs."""
    ahead: float = field(init=False)
    """The share of sequences in which the correct label leads; equal logits count half."""

    def __post_init__(self):
        self.other = Activations(self.base.network, {hook: x.roll(1, 0) for hook, x in self.base.values.items()})
        self._lead = self.lead(self.base.logits)
        classes = None if self.pairs.target_classes is None else self.pairs.target_classes[:, 0]
        self._classes = None if classes is None else torch.stack([classes, classes.roll(1)], dim=1)
        difference = self._lead - self.lead(self.other.logits)
        self.span, self.error = float(difference.mean()), standard_error(difference, self._classes)
        self.ahead = float(((self._lead > 0).double() + (self._lead == 0).double() / 2).mean())

    @property
    def layers(self) -> range:
        """Attention layers."""
        return range(self.base.n_layers)

    @property
    def heads(self) -> Sequence[int | None]:
        """The heads of a layer that are cut one at a time; None: all of them together."""
        return range(self.base.n_heads) if self.apart else [None]

    @cached_property
    def resolved(self) -> bool:
        """Whether the correct label leads, so that effects are numbers."""
        return resolved(self.span, self.error, self.ahead)

    @property
    def mlps(self) -> bool:
        """Whether layers have MLPs."""
        return not self.base.network.model.attn_only

    def at(self, role: str) -> Bool[Tensor, "batch pos"]:
        """The positions of a role."""
        return self.pairs.roles[role]

    def queries(self, layer: int) -> Sequence[str]:
        """Roles of the queries that are read: all, and in the last layer the target alone."""
        return self.roles[-1:] if layer == self.layers[-1] else self.roles

    def of_head(self, head: int | None) -> Bool[Tensor, "head"]:
        """The heads that are meant, as a mask."""
        heads = torch.arange(self.base.n_heads)
        return heads >= 0 if head is None else heads == head

    def links(self, layer: int) -> dict[tuple[str, str], Bool[Tensor, "batch 1 query key"]]:
        """The pairs of tokens of a key role and a query role, as masks; without roles that have no such pair."""
        causal = torch.ones(2 * (self.at(self.roles[-1]).shape[1],), dtype=torch.bool).tril()
        masks = {
            (key, query): (self.at(query)[:, :, None] & self.at(key)[:, None, :] & causal)[:, None]
            for query, key in product(self.queries(layer), self.roles)
        }
        return {roles: mask for roles, mask in masks.items() if mask.any()}

    def changes(self, receiver: Receiver) -> dict[str, Float[Tensor, "batch pos d_model"]]:
        """What tokens, heads and MLPs before a receiver write in the other sequence, minus what they write here, by the
        beginning of a node's name."""
        if self.apart:
            here, there = (senders(run, receiver) for run in (self.base, self.other))
            return {_node_of(sender): there[sender] - here[sender] for sender in here}
        hooks = {"token": "hook_embed"}
        for n in range(receiver.n_layers_read(self.base.network.model)):
            hooks[str(n)] = f"blocks.{n}.hook_attn_out"
            hooks |= {f"{n}.mlp": f"blocks.{n}.hook_mlp_out"} if n < receiver.layer and self.mlps else {}
        return {name: self.other[hook] - self.base[hook] for name, hook in hooks.items()}

    def replaced(self, hook: str, value: Tensor) -> dict[str, float]:
        """The lead with an activation replaced, and the effect with its error."""
        return self.measured(self.base.forward_from(hook, value))

    def elsewhere(self, hook: str, role: str, head: int | None = None) -> dict[str, float]:
        """The lead with the other sequence's activation at the tokens of a role, and the effect with its error."""
        return self.measured(patched(self.base, self.other, Site(hook, role, head), self.pairs.roles))

    def measured(self, logits: Float[Tensor, "batch n_labels"]) -> dict[str, float]:
        """The lead in these logits, and the effect with its error."""
        lead, unit = self.lead(logits), self.span if self.resolved else float("nan")
        lost = self._lead - lead
        error = standard_error(lost, self._classes) / unit
        return {"value": float(lead.mean()), "effect": float(lost.mean()) / unit, "error": error}

    def lead(self, logits: Float[Tensor, "batch n_labels"]) -> Float[Tensor, "batch"]:
        """The lead of every sequence in these logits."""
        return Metric.logit_difference.per_sequence(logits, self.pairs.answers, self.pairs.wrong_labels)


def _node_of(sender: str) -> str:
    """The beginning of a node's name of a sender of `paths.senders`: ``embed``, ``layer.head`` or ``layer.mlp``."""
    layer, _, head = sender.partition(".")
    return "token" if sender == "embed" else f"{layer}.mlp" if head == "mlp" else f"{layer}.h{head}"
