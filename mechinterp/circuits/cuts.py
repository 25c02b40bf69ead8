"""The lead of the answer in a network without one edge, or with another sequence's activation at one node.

Sequences are taken in parts, whose activations stay in the processor's cache.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.circuits.activations import parts_of
from mechinterp.circuits.certainty import resolved
from mechinterp.circuits.edges import Receiver, senders
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import Patches, Site
from mechinterp.circuits.standard_errors import SharedClasses
from mechinterp.models.forward import Activations, run_with_cache
from mechinterp.models.network import Network
from mechinterp.tasks.corruption import Pairs

Links = Mapping[int, Sequence[tuple[str, str]]]
"""The pairs of a key role and a query role that have tokens, by layer."""


@dataclass(frozen=True)
class Cuts:
    """A network's activations on a part of the clean sequences, and its forward pass without an edge.

    The other sequence of a sequence is the one before it in the batch. The last layer's queries, and what follows from
    them, are the target's alone.
    """

    base: Activations
    other: Activations
    """Every activation in the other sequence."""
    masks: Mapping[str, Bool[Tensor, "batch pos"]]
    """The positions of every role."""
    answers: Int[Tensor, "batch"]
    wrong_labels: Int[Tensor, "batch"]
    roles: Sequence[str]
    """The columns of the diagram, whose last is the target's."""
    linked: Links
    apart: bool
    """Whether heads of a layer are taken apart; else all together."""

    @classmethod
    def parts(cls, network: Network, pairs: Pairs, roles: Sequence[str], *, apart: bool) -> Iterator["Cuts"]:
        """The sequences of all pairs, part by part."""
        n, last = len(pairs.clean), network.n_layers - 1
        linked = {
            layer: [
                (key, query)
                for query, key in product(roles[-1:] if layer == last else roles, roles)
                if bool(_link(pairs.roles[key], pairs.roles[query]).any())
            ]
            for layer in range(network.n_layers)
        }
        for part in parts_of(n, network, pairs.clean.n_pos):
            with_other = torch.arange(part.start - 1, part.stop) % n
            values = run_with_cache(network, pairs.clean.inputs[with_other], target_only=True).values
            base, other = (
                Activations(network, {hook: x[rows] for hook, x in values.items()})
                for rows in (slice(1, None), slice(-1))
            )
            masks = {role: mask[part] for role, mask in pairs.roles.items()}
            yield cls(base, other, masks, pairs.answers[part], pairs.wrong_labels[part], roles, linked, apart)

    @property
    def layers(self) -> range:
        """Attention layers."""
        return range(self.base.n_layers)

    @property
    def heads(self) -> Sequence[int | None]:
        """The heads of a layer that are cut one at a time; None: all of them together."""
        return range(self.base.n_heads) if self.apart else [None]

    @property
    def mlps(self) -> bool:
        """Whether layers have MLPs."""
        return not self.base.network.model.attn_only

    def at(self, role: str, hook: str) -> Bool[Tensor, "batch pos"]:
        """The positions of a role, of those that the activation [batch, pos, …] at a hook has."""
        return self.masks[role][:, -self.base[hook].shape[1] :]

    def queries(self, layer: int) -> Sequence[str]:
        """Roles of the queries that are read: all, and in the last layer the target alone."""
        return self.roles[-1:] if layer == self.layers[-1] else self.roles

    def of_head(self, head: int | None) -> Bool[Tensor, "head"]:
        """The heads that are meant, as a mask."""
        heads = torch.arange(self.base.n_heads)
        return heads >= 0 if head is None else heads == head

    def link(self, key: str, query: str, layer: int) -> Bool[Tensor, "batch 1 query key"]:
        """The pairs of tokens of a key role and a query role, as a mask of a layer's scores."""
        n_queries = self.base[f"blocks.{layer}.attn.hook_attn_scores"].shape[2]
        return _link(self.masks[key], self.masks[query])[:, None, -n_queries:]

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

    def replaced(self, hook: str, value: Tensor) -> Float[Tensor, "batch"]:
        """The lead with an activation replaced."""
        return self.lead(self.base.forward_from(hook, value))

    def elsewhere(self, hook: str, role: str, head: int | None = None) -> Float[Tensor, "batch"]:
        """The lead with the other sequence's activation at the tokens of a role."""
        return self.lead(self._patches.logits(Site(hook, role, head)))

    @cached_property
    def _patches(self) -> Patches:
        return Patches(self.base, self.other, self.masks)

    def lead(self, logits: Float[Tensor, "batch n_labels"]) -> Float[Tensor, "batch"]:
        """The lead of every sequence in these logits."""
        return Metric.logit_difference.per_sequence(logits, self.answers, self.wrong_labels)


class Effects:
    """Leads of all sequences without an edge, as shares of the lead that there is with all edges."""

    def __init__(self, clean: Float[Tensor, "batch"], other: Float[Tensor, "batch"], pairs: Pairs):
        """From the leads in the clean sequences, and with the other sequence's logits."""
        self._clean, difference = clean, clean - other
        classes = None if pairs.target_classes is None else pairs.target_classes[:, 0]
        classes = None if classes is None else torch.stack([classes, classes.roll(1)], dim=1)
        self._shared = SharedClasses(len(clean), classes)
        self.span = float(difference.mean())
        """m(clean) − m(other sequence), in logits."""
        self.error = float(self._shared.standard_errors(difference))
        """Its standard error over pairs."""
        self.ahead = float(((clean > 0).double() + (clean == 0).double() / 2).mean())
        """The share of sequences in which the correct label leads; equal logits count half."""
        self.resolved = resolved(self.span, self.error, self.ahead)
        """Whether the correct label leads, so that effects are numbers."""

    def of(self, leads: Sequence[Float[Tensor, "batch"]]) -> list[dict[str, float]]:
        """Every lead's ``value``, its mean, and ``effect`` with its ``error``."""
        stacked, unit = torch.stack(list(leads)), self.span if self.resolved else float("nan")
        lost = self._clean - stacked
        columns = stacked.mean(dim=1), lost.mean(dim=1) / unit, self._shared.standard_errors(lost) / unit
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [dict(zip(("value", "effect", "error"), row, strict=True)) for row in rows]


def _link(keys: Bool[Tensor, "batch pos"], queries: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch query key"]:
    """The keys at or before every query."""
    causal = torch.ones(2 * (keys.shape[1],), dtype=torch.bool).tril()
    return queries[:, :, None] & keys[:, None, :] & causal


def _node_of(sender: str) -> str:
    """The beginning of a node's name of a sender of `paths.senders`: ``embed``, ``layer.head`` or ``layer.mlp``."""
    layer, _, head = sender.partition(".")
    return "token" if sender == "embed" else f"{layer}.mlp" if head == "mlp" else f"{layer}.h{head}"
