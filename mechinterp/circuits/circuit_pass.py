"""A circuit alone: the forward pass in which every edge outside of a set of edges carries an ablated value.

All edges act at once (Conmy et al. 2023, ACDC), so that the network is computed layer by layer. Every receiver R reads

    x_R = constant + Σ_s ( what s writes in this pass  if s → R is in the circuit,  else the ablated value of s ),

with the senders s and receivers of `edges`, the heads of a layer apart. A component that reads nothing but ablated
values writes what it makes of them. With all edges the pass is the intact run; with none every receiver reads ablated
values alone, and with `Replacement.corrupt` that is the corrupt run. The constant, positions and biases, stays.
"""

from collections.abc import Collection, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.circuits.ablation import another_sequence
from mechinterp.circuits.activations import network_of
from mechinterp.circuits.attribution import read_slope
from mechinterp.circuits.edges import Edge, Receiver, Scale, receivers, sender_names, senders
from mechinterp.circuits.metrics import AnyMetric
from mechinterp.errors import MechinterpError, NamedEnum, member, unknown_name
from mechinterp.models.classifier import require_labels
from mechinterp.models.forward import Activations, run_with_cache
from mechinterp.models.layer import Layer
from mechinterp.models.network import Network
from mechinterp.tasks.corruption import Pairs, require_pairs
from mechinterp.torch_state import torch_defaults


class Replacement(NamedEnum):
    """The ablated value of a sender, which edges outside of a circuit carry."""

    mean = "what it writes in the intact run, its mean over the clean sequences at the same position"
    resample = "what it writes in the intact run on another clean sequence, at the same position"
    corrupt = "what it writes in the intact run on the corrupt twin of the sequence"


class CircuitPass:
    """Passes through circuits of one network on the clean sequences of some pairs."""

    @torch_defaults()
    def __init__(
        self,
        model: Network | nn.Module,
        pairs: Pairs,
        replacement: Replacement | str = Replacement.mean,
        *,
        seed: int = 0,
    ):
        """`seed` chooses the other sequences of `Replacement.resample`. A hooked model that no `Network` represents is
        refused, since edges are read off the weights."""
        require_pairs(pairs)
        self.network, replacement = network_of(model), member(Replacement, replacement)
        self.pairs = pairs
        with torch.no_grad():
            self.intact: Activations = run_with_cache(self.network, pairs.clean.inputs)
            for batch in (pairs.clean, pairs.corrupt):
                require_labels(batch, self.intact.logits.shape[-1])
            self._receivers = receivers(self.intact)
            self._written = senders(self.intact, self._receivers[-1])
            if replacement is Replacement.corrupt:
                ablated = senders(run_with_cache(self.network, pairs.corrupt.inputs), self._receivers[-1])
            elif replacement is Replacement.resample:
                other = another_sequence(len(pairs.clean), seed)
                ablated = {name: value[other] for name, value in self._written.items()}
            else:
                ablated = {name: value.mean(dim=0, keepdim=True) for name, value in self._written.items()}
            self._ablation = {name: ablated[name] - value for name, value in self._written.items()}
        self.edges: tuple[Edge, ...] = tuple(
            Edge(sender, str(receiver))
            for receiver in self._receivers
            for sender in sender_names(self.network.model, receiver)
        )
        """All edges of the network, in the order of computation."""

    @torch_defaults()
    @torch.no_grad()
    def logits(self, circuit: Iterable[tuple[str, str]]) -> Float[Tensor, "batch n_labels"]:
        """Logits at the target with the circuit alone. An unknown edge raises."""
        kept = self.checked(circuit)
        changes: dict[str, Tensor | None] = {"embed": None}  # of what senders write; None where that is the same
        by_layer: dict[int, list[Receiver]] = {}
        for receiver in self._receivers:
            by_layer.setdefault(receiver.layer, []).append(receiver)
        for layer in range(self.network.n_layers):
            heads = [receiver for receiver in by_layer[layer] if receiver.through != "mlp"]
            changes |= self._attention(layer, heads, changes, kept)
            for receiver in (receiver for receiver in by_layer[layer] if receiver.through == "mlp"):
                changes[f"{layer}.mlp"] = self._mlp(receiver, changes, kept)
        (output,) = by_layer[self.network.n_layers]
        change = self._read(output, changes, kept)
        if change is None:
            return self.intact.logits
        read = output.reads(self.intact, change, Scale.recomputed)
        return self.intact.forward_from(output.hook, self.intact[output.hook] + read)

    def complement(self, circuit: Iterable[tuple[str, str]]) -> tuple[Edge, ...]:
        """The edges that are not in a circuit."""
        kept = self.checked(circuit)
        return tuple(edge for edge in self.edges if edge not in kept)

    def checked(self, circuit: Iterable[tuple[str, str]]) -> frozenset[Edge]:
        """The circuit as a set of edges; one that the network has not raises."""
        try:
            kept = frozenset(Edge(*edge) for edge in circuit)
        except TypeError:
            raise MechinterpError(
                f"{circuit!r} is no circuit; give pairs of a sender and a receiver, as in patch_paths' table"
            ) from None
        for edge in sorted(kept.difference(self.edges)):
            raise unknown_name("edge", str(edge), map(str, self.edges))
        return kept

    @torch_defaults()
    def attributions(self, metric: AnyMetric, n_steps: int | None = None) -> dict[Edge, float]:
        """The approximate change of the metric when an edge alone is ablated (`attribution`), by edge: to first order,
        or by integrated gradients of `n_steps`; not numbers of a metric without a gradient."""
        found, answers = dict[Edge, float](), (self.pairs.answers, self.pairs.wrong_labels)
        for receiver in self._receivers:
            names = sender_names(self.network.model, receiver)
            toward = torch.stack([self._ablation[name] for name in names]).sum(dim=0)
            slope = read_slope(self.intact, receiver, toward, metric, answers, n_steps=n_steps)
            for name in names:
                change = float("nan") if slope is None else float((slope * self._ablation[name]).sum()) / len(toward)
                found[Edge(name, str(receiver))] = change
        return found

    def _attention(
        self, layer: int, heads: list[Receiver], changes: dict[str, Tensor | None], kept: Collection[Edge]
    ) -> dict[str, Tensor | None]:
        """The changes of what the heads of a layer write."""
        attn, n_heads = f"blocks.{layer}.attn", self.network.n_heads
        names = [f"{layer}.{head}" for head in range(n_heads)]
        read = {receiver: self._read(receiver, changes, kept) for receiver in heads}
        if all(change is None for change in read.values()):
            return dict.fromkeys(names)
        known = {}
        for through in "qkv":
            known[f"attn.hook_{through}"] = self.intact[f"{attn}.hook_{through}"].clone()
        for receiver, change in read.items():
            if change is not None:
                alone = receiver.reads_alone(self.intact, change, Scale.recomputed)
                known[f"attn.hook_{receiver.through}"][:, :, receiver.head] += alone
        z = self._layer(layer, known)["attn.hook_z"]
        W_O = self.network.parameters.get(f"{attn}.W_O")
        written = z if W_O is None else torch.einsum("bphk,hkd->bphd", z, W_O)
        return {name: written[:, :, head] - self._written[name] for head, name in enumerate(names)}

    def _mlp(
        self, receiver: Receiver, changes: dict[str, Tensor | None], kept: Collection[Edge]
    ) -> Float[Tensor, "batch pos d_model"] | None:
        """The change of what an MLP writes."""
        change = self._read(receiver, changes, kept)
        if change is None:
            return None
        pre = self.intact[receiver.hook] + receiver.reads(self.intact, change, Scale.recomputed)
        written = self._layer(receiver.layer, {"mlp.hook_pre": pre})["hook_mlp_out"]
        return written - self._written[f"{receiver.layer}.mlp"]

    def _read(
        self, receiver: Receiver, changes: dict[str, Tensor | None], kept: Collection[Edge]
    ) -> Float[Tensor, "batch pos d_model"] | None:
        """The change of the residual stream that a receiver reads; None without one."""
        terms = [
            changes[name] if Edge(name, str(receiver)) in kept else self._ablation[name]
            for name in sender_names(self.network.model, receiver)
        ]
        present = [term for term in terms if term is not None]
        return torch.stack(present).sum(dim=0) if present else None

    def _layer(self, layer: int, known: dict[str, Tensor]) -> Layer:
        """A layer of the network, from some of its activations."""
        stream = {"hook_resid_pre": self.intact[f"blocks.{layer}.hook_resid_pre"]}
        parameters = self.network.of_layer(layer)
        return Layer(self.network.model, parameters, stream | known, lambda _, value: value, wants=lambda *_: False)


@torch_defaults()
def run_circuit(
    model: Network | nn.Module,
    pairs: Pairs,
    circuit: Iterable[tuple[str, str]],
    *,
    replacement: Replacement | str = Replacement.mean,
    seed: int = 0,
) -> Float[Tensor, "batch n_labels"]:
    """Logits at the target of the clean sequences with a circuit alone (`CircuitPass`).

    `circuit` has pairs of a sender and a receiver, as in the table of `patch_paths`.
    """
    return CircuitPass(model, pairs, replacement, seed=seed).logits(circuit)
