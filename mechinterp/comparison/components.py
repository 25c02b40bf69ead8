"""The components of a network: groups of its trained parameters, each with a name that people read.

Every element of every trained parameter belongs to exactly one component. Names count layers and heads from 1, as the
papers do (``layer 2 head 3 QK``); the fields `Component.layer` and `Component.head` count from 0, as hooks do.

=====================  ==============================================================================================
``embedding``          the map of tokens to vectors, or the trained scale and shift of the tokens' LayerNorm
``positions``          the trained vectors of positions
``layer l QK``         W_Q, W_K, their biases and biases of distances: where a layer, or one head, looks;
                       of the minimal models β₁, α and β₂, or β
``layer l OV``         W_V, W_O and their biases: what it writes; of the additive model w
``layer l values``     the same of a network without W_O
``layer l MLP``        W_in, W_out and their biases
``layer l norms``      scales and shifts of the layer's normalisations
``layer l bias``       b_O, which heads that are apart share
``final norm``         scale and shift of the normalisation before the output
``classifier``         the ReLU layers and the readout; ``unembedding`` of networks without a classifier
=====================  ==============================================================================================
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError, NamedEnum, unknown_name
from mechinterp.models.registry import parameter_shapes


class Kind(NamedEnum):
    """What a component does."""

    embedding = "embedding"
    positions = "positions"
    queries_keys = "QK"
    values = "values"
    output_bias = "bias"
    mlp = "MLP"
    norms = "norms"
    final_norm = "final norm"
    classifier = "classifier"
    unembedding = "unembedding"


_QUERIES_KEYS = ("W_Q", "W_K", "b_Q", "b_K", "rel_pos_bias", "beta1", "beta", "alpha", "beta2")
_VALUES = ("W_V", "W_O", "b_V", "w")
_OF_NETWORK = {
    "embed.": Kind.embedding,
    "blocks.0.ln.": Kind.embedding,
    "pos_embed.": Kind.positions,
    "ln_final.": Kind.final_norm,
    "classifier.": Kind.classifier,
    "unembed.": Kind.unembedding,
}
"""Kinds of components that belong to no layer, by the beginning of a parameter's name."""


@dataclass(frozen=True)
class Component:
    """A group of trained parameters."""

    name: str
    kind: Kind
    layer: int | None
    """The layer, counted from 0; None of a component of the whole network."""
    head: int | None
    """The head, counted from 0, whose part of the parameters it is; None for all heads of the layer together."""
    parameters: tuple[str, ...]
    """Names of the parameters."""

    def __str__(self) -> str:
        return self.name

    def part(self, name: str, value: Tensor) -> Tensor:
        """Its part of a parameter's value."""
        return value if self.head is None else value.select(head_axis(name), self.head)


def head_axis(parameter: str) -> int:
    """The axis of a parameter of attention along which its heads are."""
    return 1 if parameter.endswith("rel_pos_bias") else 0


def components_of(config: RunConfig, *, heads_apart: bool = True) -> list[Component]:
    """The components of a config's trained parameters, in the order of the network.

    Without `heads_apart`, the heads of a layer are one component.
    """
    names, n_heads = list(parameter_shapes(config)), config.model.n_heads
    apart = heads_apart and n_heads > 1
    groups: dict[tuple[int | None, int | None, Kind], list[str]] = {}
    for name in names:
        layer, kind = _place(name, shared_bias=apart)
        heads = range(n_heads) if apart and kind in (Kind.queries_keys, Kind.values) else [None]
        for head in heads:
            groups.setdefault((layer, head, kind), []).append(name)
    with_output = any(name.endswith("W_O") for name in names)
    return [
        Component(_label(kind, layer, head, with_output), kind, layer, head, tuple(members))
        for (layer, head, kind), members in groups.items()
    ]


def chosen_components(known: Sequence[Component], names: Iterable[str] | str | None) -> list[Component]:
    """The components of these names, or all without names; UnknownNameError, with the nearest, for another name."""
    if names is None:
        return list(known)
    by_name, wanted = {component.name: component for component in known}, [names] if isinstance(names, str) else names
    chosen = list[Component]()
    for name in dict.fromkeys(wanted):
        if name not in by_name:
            raise unknown_name("component", name, by_name)
        chosen.append(by_name[name])
    if not chosen:
        raise MechinterpError(f"components is empty; name at least one of {', '.join(by_name)}, or leave it out")
    return chosen


def replaced(
    parameters: Mapping[str, Tensor], components: Iterable[Component], parts: Mapping[tuple[str, str], Tensor]
) -> dict[str, Tensor]:
    """The parameters with some components' parts replaced: `parts` by names of component and parameter."""
    values = dict(parameters)
    for component in components:
        for name in component.parameters:
            part = parts[component.name, name]
            if component.head is None:
                values[name] = part
            else:  # select_scatter makes a new tensor, also under torch.func.vmap
                values[name] = values[name].select_scatter(part, head_axis(name), component.head)
    return values


def _place(name: str, *, shared_bias: bool) -> tuple[int | None, Kind]:
    """The layer and the kind of the component to which a parameter belongs."""
    for beginning, kind in _OF_NETWORK.items():
        if name.startswith(beginning):
            return None, kind
    layer, part = int(name.split(".")[1]), name.split(".", 2)[2]
    last = part.rpartition(".")[2]
    if part.startswith(("ln1.", "ln2.")):
        return layer, Kind.norms
    if part.startswith("mlp."):
        return layer, Kind.mlp
    if last == "b_O":
        return layer, Kind.output_bias if shared_bias else Kind.values
    if last in _QUERIES_KEYS:
        return layer, Kind.queries_keys
    if last in _VALUES:
        return layer, Kind.values
    raise MechinterpError(f"the parameter {name} belongs to no component; add it to comparison/components.py")


def _label(kind: Kind, layer: int | None, head: int | None, with_output: bool) -> str:
    words = "OV" if kind is Kind.values and with_output else kind.value
    if layer is None:
        return words
    return f"layer {layer + 1} {'' if head is None else f'head {head + 1} '}{words}"
