"""What a format of another library's parameters is: names, shapes, settings, and the conversion.

A format declares by which parameter it is known, reads the network's dimensions and parts from its settings, says which
parameters such a network has, and converts them. `foreign.network` has the formats and what they have in common.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mechinterp.config import CustomTaskConfig, RunConfig, TransformerConfig
from mechinterp.errors import ConfigError, UnrecognisedNetwork
from mechinterp.models.base import Shapes
from mechinterp.models.foreign.settings import Settings

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",  # the same function in another order of operations, as is the next
    "gelu_pytorch_tanh": "gelu_new",
    "silu": "silu",
    "swish": "silu",
}
"""`TransformerConfig.act_fn` by the names that other libraries give to activation functions."""


class Format(ABC):
    """A form in which another library names and shapes the parameters of a network. Subclasses are stateless."""

    name: ClassVar[str]
    """Its name in run files."""
    title: ClassVar[str]
    """Its name in messages."""
    anchor: ClassVar[str]
    """The parameter by which it is known; what precedes this name precedes all names of the network's body."""
    buffers: ClassVar[re.Pattern[str]]
    """Names in a state dict that are no parameters."""
    undetermined: ClassVar[str]
    """What the shapes do not tell, in words."""

    def prefix(self, names: Mapping[str, Any]) -> str | None:
        """What precedes the names of the network's body; None of parameters in another format."""
        ends = [name for name in names if name == self.anchor or name.endswith(f".{self.anchor}")]
        return ends[0].removesuffix(self.anchor) if len(ends) == 1 else None

    def accepts(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether parameters whose `anchor` is there, by their names in this format, have this format."""
        return True

    def own_names(self, names: Mapping[str, Any]) -> dict[str, str]:
        """The names of a state dict by those in this format: without what precedes them, and without buffers."""
        prefix = self.prefix(names) or ""
        return {own: name for name in names if not self.buffers.search(own := self.own_name(name, prefix))}

    def own_name(self, name: str, prefix: str) -> str:
        """A name without what precedes the names of the network's body."""
        return name.removeprefix(prefix)

    def their_name(self, own: str, prefix: str) -> str:
        """The name in a state dict of a name without what precedes it."""
        return prefix + own

    @abstractmethod
    def config(self, shapes: Shapes, settings: object) -> RunConfig:
        """The config of a network with these settings; the shapes say only whether optional parameters are there."""

    @abstractmethod
    def expected(self, config: RunConfig, shapes: Shapes) -> Shapes:
        """The shapes of the parameters of such a network; `shapes` say which optional ones it has."""

    @abstractmethod
    def converted(self, config: RunConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters by the names and in the shapes of `Network`; biases that are missing are zero."""

    def run_config(self, task: dict[str, Any], model: dict[str, Any]) -> RunConfig:
        """The config of a task of tokens with these dimensions, and of a network with trained matrices everywhere."""
        if model.get("d_mlp") is None:
            model = {name: value for name, value in model.items() if name not in ("act_fn", "parallel_attn_mlp")}
        if model.get("rotary_dim") == model["d_head"]:
            model = model | {"rotary_dim": None}
        values = {
            "task": {"kind": CustomTaskConfig.model_fields["kind"].default, "name": self.title} | task,
            "model": {"input": "tokens", "output": "unembedding", "output_matrix": "trained", "biases": True} | model,
        }
        try:
            config = RunConfig.from_dict(values, source=f"a {self.title} of this form")
        except ConfigError as error:
            raise UnrecognisedNetwork(error) from None
        assert isinstance(config.model, TransformerConfig)
        return config


def activation(settings: Settings, name: str) -> str:
    """`act_fn` of an activation function's name in a setting; UnrecognisedNetwork for another function."""
    value = settings[name]
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise settings.refusal(name, f"known activation functions: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[value]


def split_heads(W: Tensor, n_heads: int) -> Tensor:
    """[head, d_model, d_head] of a map [d_model, head · d_head] to queries, keys or values."""
    return W.unflatten(1, (n_heads, -1)).transpose(0, 1)


def joined_heads(W: Tensor, n_heads: int) -> Tensor:
    """[head, d_head, d_model] of a map [head · d_head, d_model] from what heads read."""
    return W.unflatten(0, (n_heads, -1))
