"""The edges of a network's computation, from what a component writes to what another one reads.

A receiver (a head's query, key or value, an MLP, or the output) reads x, the sum of what senders (the embedding,
earlier heads and MLPs) write into the residual stream. An MLP reads the heads of its layer too, unless it is in
parallel with them. Positions and biases, which are the same in all runs, are no senders. Decomposing the receiver's
input into what earlier components write is the path expansion of Elhage et al. 2021.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.config import TransformerConfig
from mechinterp.errors import NamedEnum
from mechinterp.models.forward import Activations
from mechinterp.models.layer import mlp_input, normalized, scale_of


class Edge(NamedTuple):
    """An edge by the names of its ends, as `patch_paths` lists them."""

    sender: str
    """``embed``, a head as ``layer.head``, or ``layer.mlp``."""
    receiver: str
    """``layer.head.q`` (k, v), ``layer.mlp``, ``classifier`` or ``unembed``."""

    def __str__(self) -> str:
        return f"{self.sender} → {self.receiver}"


class Scale(NamedEnum):
    """The scale σ of a receiver's normalisation while an edge into it is patched."""

    recomputed = "that of the patched input"
    frozen = "that of the unpatched run"


@dataclass(frozen=True)
class Receiver:
    """A reader of the residual stream: a head through its query, key or value, an MLP, or the output."""

    layer: int
    """For the output, the number of layers."""
    head: int = 0
    through: str = "classifier"
    """``q``, ``k``, ``v``, ``mlp``, and of the output ``classifier`` or ``unembed``."""

    def __str__(self) -> str:
        if self.is_output:
            return self.through
        return f"{self.layer}.mlp" if self.through == "mlp" else f"{self.layer}.{self.head}.{self.through}"

    @property
    def is_output(self) -> bool:
        """Whether it is the classifier or the unembedding."""
        return self.through in ("classifier", "unembed")

    @property
    def hook(self) -> str:
        """The hook of its activation."""
        if self.is_output:
            return "classifier.hook_in" if self.through == "classifier" else "unembed.hook_out"
        return f"blocks.{self.layer}." + ("mlp.hook_pre" if self.through == "mlp" else f"attn.hook_{self.through}")

    def n_layers_read(self, model: TransformerConfig) -> int:
        """The number of layers whose heads it reads: of an MLP its own layer too, unless it is in parallel with it."""
        return self.layer + (self.through == "mlp" and not model.parallel_attn_mlp)

    def rows(self, run: Activations) -> slice:
        """The positions of the residual stream that it reads in a run: all, or the target's."""
        return slice(-1 if self.through == "classifier" else -run[self.hook].shape[1], None)

    def reads(self, run: Activations, change: Float[Tensor, "batch pos d_model"], scale: Scale) -> Tensor:
        """The change of the activation at its hook in a run, with that of the residual stream that it reads."""
        alone = self.reads_alone(run, change, scale)
        if self.through not in "qkv":
            return alone
        result = change.new_zeros(*alone.shape[:2], run.n_heads, alone.shape[-1])
        result[:, :, self.head] = alone
        return result

    def reads_alone(self, run: Activations, change: Float[Tensor, "batch pos d_model"], scale: Scale) -> Tensor:
        """The same, of a head without the others: [batch, pos, d_head].

        Of the change, only the positions are read that `rows` tells.
        """
        parameters, rows = run.network.parameters, self.rows(run)
        if self.is_output:
            last = run[f"blocks.{run.n_layers - 1}.hook_resid_post"]
            if self.through == "classifier":
                return _normalized_change(run, "ln_final", last[:, -1], change[:, -1], scale)
            return (
                _normalized_change(run, "ln_final", last[:, rows], change[:, rows], scale) @ parameters["unembed.W_U"]
            )
        block = f"blocks.{self.layer}"
        if self.through == "mlp":
            x = run[f"{block}.{mlp_input(run.network.model)}"]
            read = _normalized_change(run, f"{block}.ln2", x[:, rows], change[:, rows], scale)
            return read @ parameters[f"{block}.mlp.W_in"]
        x = run[f"{block}.hook_resid_pre"]
        read = _normalized_change(run, f"{block}.ln1", x[:, rows], change[:, rows], scale)
        return read @ run.network.matrix_of_head(self.layer, self.through.upper(), self.head)


def _normalized_change(run: Activations, norm: str, x: Tensor, change: Tensor, scale: Scale) -> Tensor:
    """The change of the normalised residual stream x with that of x, by the normalisation of this name."""
    model = run.network.model
    if model.normalization_type is None or (norm == "ln_final" and not model.final_norm):
        return change
    if scale is Scale.frozen:
        scales = run[f"{norm}.hook_scale"]
        read = normalized(model, change, scales[:, -change.shape[1] :] if change.ndim == 3 else scales)
    else:
        patched = x + change
        read = normalized(model, patched, scale_of(model, patched)) - normalized(model, x, scale_of(model, x))
    w = run.network.parameters.get(f"{norm}.w")
    return read if w is None else read * w


def sender_names(model: TransformerConfig, receiver: Receiver) -> list[str]:
    """The names of the components that a receiver reads, in the order of `senders`."""
    names = ["embed"]
    for layer in range(receiver.n_layers_read(model)):
        names += [f"{layer}.{head}" for head in range(model.n_heads)]
        names += [f"{layer}.mlp"] if layer < receiver.layer and not model.attn_only else []
    return names


def senders(run: Activations, receiver: Receiver) -> dict[str, Float[Tensor, "batch pos d_model"]]:
    """What components before a receiver write: ``embed``, heads, as ``layer.head``, and ``layer.mlp``.

    With the vectors of positions and attention's biases, their sum is the residual stream that the receiver reads.
    """
    written = {"embed": run["hook_embed"]}
    for layer in range(receiver.n_layers_read(run.network.model)):
        z, W_O = run[f"blocks.{layer}.attn.hook_z"], run.network.parameters.get(f"blocks.{layer}.attn.W_O")
        heads = z if W_O is None else torch.einsum("bphk,hkd->bphd", z, W_O)
        written |= {f"{layer}.{head}": heads[:, :, head] for head in range(z.shape[2])}
        if layer < receiver.layer and not run.network.model.attn_only:
            written[f"{layer}.mlp"] = run[f"blocks.{layer}.hook_mlp_out"]
    return written


def receivers(run: Activations) -> list[Receiver]:
    """Query, key and value of every head, every MLP, and the output."""
    found, model = list[Receiver](), run.network.model
    for layer in range(run.n_layers):
        found += [Receiver(layer, head, through) for head in range(run.n_heads) for through in "qkv"]
        found += [] if model.attn_only else [Receiver(layer, through="mlp")]
    return [*found, Receiver(run.n_layers, through="unembed" if model.answers_everywhere else "classifier")]
