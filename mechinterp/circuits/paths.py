"""Path patching: the effect of every edge between two components (Wang et al. 2023, Goldowsky-Dill et al. 2023).

A receiver (a head's query, key or value, an MLP, or the output) reads x, the sum of what senders (the embedding,
earlier heads and MLPs) write into the residual stream. An MLP reads the heads of its layer too, unless it is in
parallel with them. To patch the edge sender → receiver, the sender's term s is
taken from the other run, in the input of this receiver alone:

    x′ = x_base − s_base + s_source,   and the receiver's activation becomes N(x′) W

with N the receiver's normalisation, if the network has one. Its scale σ is a choice (`Scale`): that of x′, or that of
x_base, with which a receiver reads its senders linearly, so that effects of its edges add up.

Edges are direct, as in Wang et al. 2023: components between sender and receiver keep their outputs of the base run, and
components after the receiver are computed anew. Decomposing the receiver's input into what earlier components write is
the path expansion of Elhage et al. 2021. Positions and biases, which are the same in both runs, are no senders.

The attribution of an edge is the first-order approximation of its effect, ⟨∂m/∂x, s_source − s_base⟩ with the
derivative through this receiver alone, by one backward pass for all edges of a receiver: attribution patching (Nanda
2023), applied to edges.
"""

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.circuits.activations import network_of
from mechinterp.circuits.metrics import AnyMetric, Metric, MetricFunction, metric_of
from mechinterp.circuits.patching import Direction, clean_corrupt_gap
from mechinterp.config import TransformerConfig
from mechinterp.errors import NamedEnum, member
from mechinterp.models.classifier import require_labels
from mechinterp.models.forward import Activations, run_with_cache
from mechinterp.models.layer import mlp_input, normalized, scale_of
from mechinterp.models.network import Network
from mechinterp.tasks.corruption import Pairs
from mechinterp.torch_state import torch_defaults


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

    def reads(self, run: Activations, change: Float[Tensor, "batch pos d_model"], scale: Scale) -> Tensor:
        """The change of its activation in a run with that of the residual stream that it reads."""
        parameters = run.network.parameters
        if self.is_output:
            last = run[f"blocks.{run.n_layers - 1}.hook_resid_post"]
            if self.through == "classifier":
                return _normalized_change(run, "ln_final", last[:, -1], change[:, -1], scale)
            return _normalized_change(run, "ln_final", last, change, scale) @ parameters["unembed.W_U"]
        block = f"blocks.{self.layer}"
        if self.through == "mlp":
            x = run[f"{block}.{mlp_input(run.network.model)}"]
            read = _normalized_change(run, f"{block}.ln2", x, change, scale)
            return read @ parameters[f"{block}.mlp.W_in"]
        read = _normalized_change(run, f"{block}.ln1", run[f"{block}.hook_resid_pre"], change, scale)
        W = run.network.matrix(self.layer, self.through.upper())
        result = change.new_zeros(*change.shape[:2], W.shape[0], W.shape[2])
        result[:, :, self.head] = read @ W[self.head]
        return result


def _normalized_change(run: Activations, norm: str, x: Tensor, change: Tensor, scale: Scale) -> Tensor:
    """The change of the normalised residual stream x with that of x, by the normalisation of this name."""
    model = run.network.model
    if model.normalization_type is None or (norm == "ln_final" and not model.final_norm):
        return change
    if scale is Scale.frozen:
        read = normalized(model, change, run[f"{norm}.hook_scale"])
    else:
        patched = x + change
        read = normalized(model, patched, scale_of(model, patched)) - normalized(model, x, scale_of(model, x))
    w = run.network.parameters.get(f"{norm}.w")
    return read if w is None else read * w


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


@torch_defaults()
def patch_paths(
    model: Network | nn.Module,
    pairs: Pairs,
    *,
    metric: Metric | str | MetricFunction = Metric.logit_difference,
    direction: Direction | str = Direction.denoise,
    scale: Scale | str = Scale.recomputed,
) -> pd.DataFrame:
    """One row per edge: the metric's ``value``, the normalised ``effect`` (see `patching`), and its ``attribution``.

    `scale` is that of the receiver's normalisation, if the network has one. The attribution is the effect with the
    first-order approximation in place of the patched run; a metric without a gradient, such as accuracy, has none.
    ``span`` and ``span_error`` as in `patch`. A hooked model that no `Network` represents is refused, since edges are
    read off the weights.
    """
    scored, direction, scale = metric_of(metric), member(Direction, direction), member(Scale, scale)
    network = network_of(model)
    with torch.no_grad():
        clean, corrupt = (run_with_cache(network, batch.inputs) for batch in (pairs.clean, pairs.corrupt))
    for batch in (pairs.clean, pairs.corrupt):
        require_labels(batch, clean.logits.shape[-1])
    base, source = (corrupt, clean) if direction is Direction.denoise else (clean, corrupt)
    low, span, error = clean_corrupt_gap(scored, clean.logits, corrupt.logits, pairs)
    unpatched, unit, rows = low if base is corrupt else low + span, span or float("nan"), []
    for receiver in receivers(base):
        slope = _slope(base, receiver, scored, pairs, scale)
        written = senders(source, receiver)
        for sender, base_written in senders(base, receiver).items():
            with torch.no_grad():
                change = written[sender] - base_written
                logits = _with_change(base, receiver, change, scale)
                value = float(scored.of(logits, pairs.answers, pairs.wrong_labels))
            linear = unpatched + float((slope * change).sum()) if slope is not None else float("nan")
            rows.append(
                {
                    "sender": sender,
                    "receiver": str(receiver),
                    "value": value,
                    "effect": (value - low) / unit,
                    "attribution": (linear - low) / unit,
                    "span": span,
                    "span_error": error,
                }
            )
    return pd.DataFrame(rows)


def _with_change(base: Activations, receiver: Receiver, change: Tensor, scale: Scale) -> Tensor:
    """Logits of a run with a change of the residual stream that one receiver reads."""
    return base.forward_from(receiver.hook, base[receiver.hook] + receiver.reads(base, change, scale))


def _slope(base: Activations, receiver: Receiver, metric: AnyMetric, pairs: Pairs, scale: Scale) -> Tensor | None:
    """∂ metric / ∂ the residual stream that a receiver reads, in the unpatched run."""
    if metric is Metric.accuracy:
        return None
    with torch.enable_grad():
        change = torch.zeros_like(base["hook_embed"]).requires_grad_()
        number = metric.of(_with_change(base, receiver, change, scale), pairs.answers, pairs.wrong_labels)
        return torch.autograd.grad(number, change)[0] if number.requires_grad else None
