"""A network of another library, recognised by its parameters and settings, as a config and a conversion of states."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mechinterp.config import CustomTaskConfig, RunConfig, TransformerConfig
from mechinterp.errors import ConfigError, RunFileError, UnrecognisedNetwork
from mechinterp.models.base import Shapes
from mechinterp.models.foreign.base import Format
from mechinterp.models.foreign.gpt2 import GPT2Format, NanoGPTFormat
from mechinterp.models.foreign.gpt_neox import GPTNeoXFormat
from mechinterp.models.foreign.hooked_transformer import HookedTransformerFormat
from mechinterp.models.foreign.settings import values_of
from mechinterp.models.registry import parameter_shapes
from mechinterp.torch_state import unwrapped

FORMATS: dict[str, Format] = {
    known.name: known for known in (HookedTransformerFormat(), GPT2Format(), NanoGPTFormat(), GPTNeoXFormat())
}
"""The formats, by name. To add one, write its file, and its name here."""
_MOST_NAMES = 4


@dataclass(frozen=True)
class ForeignNetwork:
    """A network that another library defines, as far as its training states do not say it."""

    format: str
    """A name of `FORMATS`."""
    config: RunConfig
    """Its dimensions, as a custom task, and its parts, as a transformer. Other sections have no meaning."""

    def parameters(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of `Network(config, …)`, float32, of a state dict; biases that it does not have are zero.

        UnrecognisedNetwork for a missing or unexpected parameter, or another shape.
        """
        known = FORMATS[self.format]
        names = known.own_names(state)
        own = {name: state[theirs] for name, theirs in names.items()}
        _require_fit(known, self.config, {name: tuple(value.shape) for name, value in own.items()}, names)
        with torch.no_grad():
            converted = known.converted(self.config, own)
            return {
                name: converted[name].detach().to("cpu", torch.float32, copy=True).contiguous()
                if name in converted
                else torch.zeros(shape, dtype=torch.float32)
                for name, shape in parameter_shapes(self.config).items()
            }

    def to_json(self) -> dict[str, Any]:
        """The format and the two sections of the config, as JSON values."""
        sections = {name: getattr(self.config, name).model_dump(mode="json") for name in ("task", "model")}
        return {"format": self.format, **sections}

    @classmethod
    def from_json(cls, values: object) -> "ForeignNetwork":
        """The network of `to_json`'s values; RunFileError for others."""
        if not isinstance(values, Mapping) or set(values) != {"format", "task", "model"}:
            raise RunFileError("network must be a table of format, task and model")
        if not isinstance(values["format"], str) or values["format"] not in FORMATS:
            raise RunFileError(f"network.format is {values['format']!r}; known: {', '.join(FORMATS)}")
        for name in ("task", "model"):
            if not isinstance(values[name], Mapping):
                raise RunFileError(f"network.{name} must be a table of settings")
        try:
            config = RunConfig.from_dict(
                {name: dict(values[name]) for name in ("task", "model")}, source="network of the run file"
            )
        except ConfigError as error:
            raise RunFileError(error) from None
        if not isinstance(config.task, CustomTaskConfig) or not isinstance(config.model, TransformerConfig):
            raise RunFileError("network.task.kind must be 'custom', and network.model.kind 'transformer'")
        if not config.model.answers_everywhere or config.model.input != "tokens":
            raise RunFileError("network.model must have input = 'tokens', and output = 'unembedding' or 'tied'")
        return cls(values["format"], config)


def recognise(shapes: Mapping[str, tuple[int, ...]], settings: object | None) -> ForeignNetwork:
    """The network with parameters of these names and shapes, and with these settings: its config, or a dict of it.

    UnrecognisedNetwork says which setting or parameter stands against it. Nothing is guessed that neither the settings
    nor the shapes determine.
    """
    for known in FORMATS.values():
        names = known.own_names(shapes)
        own: Shapes = {name: tuple(shapes[theirs]) for name, theirs in names.items()}
        if known.prefix(shapes) is None or not known.accepts(own):
            continue
        if settings is None:
            raise UnrecognisedNetwork(
                f"the parameters are named as those of a {known.title}, but their shapes do not tell"
                f" {known.undetermined}: give network=… (its config)"
            )
        config = known.config(own, settings)
        _require_fit(known, config, own, names)
        return ForeignNetwork(known.name, config)
    titles = ", ".join(known.title for known in FORMATS.values())
    raise UnrecognisedNetwork(
        f"parameters named {_listed(list(shapes))} are those of no network that is known here ({titles})"
    )


def settings_of(module: nn.Module) -> object | None:
    """The settings of a module: its ``cfg`` (HookedTransformer) or ``config``, of a wrapped module too; or None.

    Those of a nanoGPT are completed by the activation function of its first MLP, if that is a module.
    """
    settings = next((found for name in ("cfg", "config") if (found := getattr(module, name, None)) is not None), None)
    if settings is None and (inner := unwrapped(module)) is not module:
        return settings_of(inner)
    if settings is None or isinstance(settings, RunConfig):
        return None
    if hasattr(settings, "block_size") and not hasattr(settings, "activation_function"):
        function = _activation_function(module)
        return values_of(settings) | ({} if function is None else {"activation_function": function})
    return settings


def _activation_function(module: nn.Module) -> str | None:
    """The name of the activation function that is a submodule of the first MLP."""
    for name, part in module.named_modules():
        if "h.0.mlp." not in name:
            continue
        if isinstance(part, nn.GELU):
            return "gelu" if part.approximate == "none" else "gelu_new"
        by_class = {"ReLU": "relu", "SiLU": "silu", "NewGELU": "gelu_new"}
        if type(part).__name__ in by_class:
            return by_class[type(part).__name__]
    return None


def _require_fit(known: Format, config: RunConfig, own: Shapes, names: Mapping[str, str]) -> None:
    """UnrecognisedNetwork unless these are the parameters of such a network."""
    expected = known.expected(config, own)
    for what, odd in (("lacks", expected.keys() - own.keys()), ("also has", own.keys() - expected.keys())):
        if odd:
            prefix = known.prefix({theirs: None for theirs in names.values()}) or ""
            listed = _listed(sorted(names.get(name) or known.their_name(name, prefix) for name in odd))
            raise UnrecognisedNetwork(f"a {known.title} with these settings {what} the parameters {listed}")
    for name, shape in expected.items():
        if own[name] != shape:
            raise UnrecognisedNetwork(
                f"parameter {names[name]} has shape {own[name]}; a {known.title} with these settings has {shape}"
            )


def _listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
