"""The state of a torch module and of its optimizer, as a run file stores it, and back.

Stored are all parameters, and those buffers that training may change, as the means of BatchNorm. Constants that a
module makes itself, as masks of attention, are left out. bfloat16 becomes float32, and truth values become bytes, which
loses nothing: loading converts them back.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from mechinterp.errors import MechinterpError
from mechinterp.store import Array
from mechinterp.torch_state import unwrapped

_CONSTANT = re.compile(r"(^|\.)(IGNORE|masked_bias|inv_freq|rotary_sin|rotary_cos|position_ids|freqs_cis)$")
"""Names of buffers that do not change: of HookedTransformer, GPT-2, GPT-NeoX and Llama."""
_MASK = re.compile(r"(^|\.)(mask|causal_mask|tril|attn\.bias|attention\.bias)$")
"""Names of buffers that are masks if they have the values 0 and 1, or −∞."""
_WIDER = {torch.bfloat16: torch.float32, torch.bool: torch.uint8, torch.int8: torch.int32, torch.int16: torch.int32}
_STORED = (torch.float16, torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8)


def constants_of(state: Mapping[str, Tensor], parameters: Collection[str] | None = None) -> tuple[str, ...]:
    """The entries of a state dict that a module makes itself: masks, tables of known names, and truth values.

    Where the names of the module's `parameters` are known, none of them is, and other entries that are not finite are.
    """
    return tuple(
        name
        for name, value in state.items()
        if isinstance(value, Tensor)
        and not (isinstance(value, UninitializedParameter | UninitializedBuffer) or value.is_meta)
        and (parameters is None or name not in parameters or value.numel() == 0)
        and (
            value.numel() == 0
            or value.dtype == torch.bool
            or _CONSTANT.search(name)
            or (_MASK.search(name) and _is_mask(value))
            or _is_causal(value)
            or (parameters is not None and not bool(torch.isfinite(value).all()))
        )
    )


def _is_mask(value: Tensor) -> bool:
    """Whether a tensor has two axes or more, and 0 and 1, or −∞, in it."""
    return value.ndim >= 2 and bool(((value == 0) | (value == 1) | (value == -torch.inf)).all())


def _is_causal(value: Tensor) -> bool:
    """Whether a tensor is a mask of what comes later, whatever its name: 1 and 0, or 0 and −∞, above the diagonal."""
    if value.ndim < 2 or value.shape[-1] != value.shape[-2] or value.shape[-1] < 2:
        return False
    later = torch.ones(value.shape[-2:], device=value.device).triu(1)
    return any(bool((value == mask).all()) for mask in (later, 1 - later, torch.where(later > 0, -torch.inf, 0.0)))


def stored_state(state: Mapping[str, Tensor], left_out: Collection[str]) -> dict[str, Tensor]:
    """The entries of a state dict but for those left out, on the CPU and in types that a run file has."""
    return {name: _stored(name, value) for name, value in state.items() if name not in left_out}


def layout_of(values: Mapping[str, Tensor]) -> dict[str, Array]:
    """Shapes and types of the rows of a run file for these values."""
    arrays = {}
    for name, value in values.items():
        if not name or "/" in name or not name.isprintable():
            raise MechinterpError(
                f"the parameter {name!r} cannot be stored: a name is printable text without '/'; rename it"
            )
        arrays[name] = Array(shape=tuple(value.shape), dtype=_dtype(value))
    return arrays


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], left_out: Collection[str], source: str) -> None:
    """Load stored weights into a module; MechinterpError unless they are those of its state, but for constants."""
    inner = unwrapped(module)
    state = inner.state_dict()
    if trained := sorted({*left_out} & {*parameter_names(inner).values()}):
        raise MechinterpError(
            f"{source}: {trained[0]} was left out as a mask, and is a parameter of the module; import the checkpoints"
            " anew with build=…"
        )
    needed = state.keys() - {*left_out, *constants_of(state, parameter_names(inner).values())}
    for odd, what in (
        (weights.keys() - state.keys(), "is not in the module"),
        (needed - weights.keys(), "is not stored"),
    ):
        if odd:
            raise MechinterpError(f"{source}: {min(odd)} {what}; build the network whose weights were stored")
    for name, value in weights.items():
        if state[name].shape != value.shape:
            raise MechinterpError(
                f"{source}: {name} is {tuple(value.shape)}, in the module {tuple(state[name].shape)};"
                " build the network whose weights were stored"
            )
    inner.load_state_dict(dict(weights), strict=False)


def optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """The state of an optimizer as tensors, by parameter and key, with the numbers of its parameter groups.

    `names` are the parameters' names by their `id`. ``present`` says of every parameter whether there is a state of it,
    and ``class`` has the name of the optimizer's class.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values = {
        "class": _class_of(optimizer),
        "present": torch.tensor([bool(optimizer.state.get(parameter)) for parameter in parameters]).byte(),
    }
    for number, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if isinstance(value, Tensor) or _is_number(value):
                values[f"param_group:{number}:{key}"] = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    for number, parameter in enumerate(parameters):
        name = names.get(id(parameter), f"parameter{number}")
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is None:
                continue
            if not isinstance(value, Tensor) and not _is_number(value):
                raise MechinterpError(
                    f"the optimizer's state {key!r} of {name} is a {type(value).__name__}, and only numbers and tensors"
                    " are stored; leave optimizer out of record()"
                )
            values[f"{name}.{key}"] = _stored(key, torch.as_tensor(value))
    return values


def load_optimizer(
    optimizer: torch.optim.Optimizer, values: Mapping[str, Tensor], names: Mapping[int, str], source: str
) -> None:
    """Load the stored state of an optimizer; MechinterpError if it is another optimizer's."""
    state = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not torch.equal(values["class"], _class_of(optimizer)):
        name = bytes(values["class"].tolist()).decode(errors="replace").strip("\0 ")
        what = f"the stored state is that of {name}, the given optimizer" if name else "no state is stored of"
        raise MechinterpError(
            f"{source}: {what} {type(optimizer).__name__}; give the optimizer that was recorded, or resume without one"
        )
    if len(values["present"]) != len(parameters):
        raise MechinterpError(
            f"{source}: the stored optimizer has {len(values['present'])} parameters, the given one {len(parameters)};"
            " give the optimizer that was recorded"
        )
    for number, group in enumerate(state["param_groups"]):
        for key, value in group.items():
            stored = values.get(f"param_group:{number}:{key}")
            if stored is not None:
                setting = float(stored)
                is_whole = isinstance(value, int) and setting.is_integer()
                group[key] = stored if isinstance(value, Tensor) else int(setting) if is_whole else setting
    state["state"] = {}
    for number, parameter in enumerate(parameters):
        if not values["present"][number]:
            continue
        prefix = f"{names.get(id(parameter), f'parameter{number}')}."
        entries = {
            name.removeprefix(prefix): value
            for name, value in values.items()
            if name.startswith(prefix) and "." not in name.removeprefix(prefix)
        }
        if not entries:
            raise MechinterpError(f"{source}: has no optimizer state of {prefix[:-1]}; give the optimizer recorded")
        state["state"][number] = entries
    optimizer.load_state_dict(state)


def require_constant(left_out: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """MechinterpError if one of the constants that are not stored differs from its first value."""
    for name, value in left_out.items():
        if name not in state or not torch.equal(state[name].cpu(), value):
            raise MechinterpError(
                f"{source}: {name} was left out as a constant of the module, and has changed; make it a parameter"
                " without gradient, which is stored"
            )


def parameter_names(module: nn.Module) -> dict[int, str]:
    """The names of a module's parameters, by their `id`."""
    return {id(parameter): name for name, parameter in unwrapped(module).named_parameters()}


def _class_of(optimizer: torch.optim.Optimizer) -> Tensor:
    """The name of an optimizer's class, as 64 bytes."""
    return torch.tensor([*type(optimizer).__name__.encode()[:64].ljust(64)], dtype=torch.uint8)


def _stored(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise MechinterpError(f"{name} of the state is a {type(value).__name__}, and only tensors are stored")
    if isinstance(value, UninitializedParameter | UninitializedBuffer) or value.is_meta:
        raise MechinterpError(f"{name} has no values yet; run the module once before it is recorded")
    value = value.detach().cpu()
    value = value.to(_WIDER.get(value.dtype, value.dtype))
    if value.dtype not in _STORED:
        raise MechinterpError(f"{name} is {value.dtype}, which a run file does not store; convert it to float32")
    if value.layout != torch.strided or value.is_quantized:
        raise MechinterpError(f"{name} is sparse or quantized, which a run file does not store; make it dense")
    return value.contiguous()


def _dtype(value: Tensor) -> Any:
    kind = np.dtype(str(value.dtype).removeprefix("torch."))
    return kind.newbyteorder("<").str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
