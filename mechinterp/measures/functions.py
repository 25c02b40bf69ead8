"""Measures of one's own: functions of the model at a checkpoint, or of two checkpoints.

A function of one argument takes the model, `run.model(step)`; a function of two takes the model and that of a reference
step. It returns a number, or several by name. `weight_drift`, `linear_cka` and `loss_barrier` are such functions, or
make them.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from mechinterp.errors import MechinterpError, require_integer, require_number, unknown_name
from mechinterp.measures.weights import relative_distance
from mechinterp.progress import tracked
from mechinterp.run import Run

Function = Callable[..., Any]


def measure_functions(
    run: Run,
    functions: Mapping[str, Function],
    steps: list[int],
    reference: int | str = "first",
    *,
    progress: bool = False,
) -> pd.DataFrame:
    """A table of functions of the model: step × name, or ``name_key`` where a function returns several numbers.

    The reference of a function of two models is the model at a step, or at the ``first``, ``last`` or ``previous``
    stored one; before the first, that is the first itself. Models are in evaluation mode, and built anew for every
    function and step.
    """
    if not functions:
        raise MechinterpError("name at least one measure: {'accuracy': f}")
    if odd := [name for name, function in functions.items() if not callable(function)]:
        given = type(functions[odd[0]]).__name__
        raise MechinterpError(f"the measure {odd[0]} is a {given}; expected a function of the model: f(model)")
    needs_two = {name: _takes_two(name, function) for name, function in functions.items()}
    stored = run.steps
    if isinstance(reference, str) and reference not in ("first", "last", "previous"):
        raise unknown_name("reference", reference, ("first", "last", "previous"))
    if not isinstance(reference, str):
        require_integer("reference", reference, 0)
    rows, columns = [], list[str]()
    for step in tracked(steps, "checkpoint", shown=progress):
        values, before = dict[str, float](), _reference_step(reference, step, stored)
        for name, function in functions.items():
            models = [run.model(at) for at in ([step, before] if needs_two[name] else [step])]
            for column, value in _named(name, _called(name, function, models, step)).items():
                if column in values:
                    raise MechinterpError(f"two measures have the column {column}; rename one of them")
                values[column] = value
        if rows and [*values] != columns:
            odd = sorted({*values} ^ {*columns})
            raise MechinterpError(
                f"the measure {odd[0]} is not there at every step; return the same names at all steps"
            )
        columns = [*values]
        rows.append(values)
    return pd.DataFrame(rows, index=pd.Index(steps, name="step"), columns=columns, dtype=float)


def _called(name: str, function: Function, models: list[Any], step: int) -> Any:
    """What a function returns of the models; its error says where it arose."""
    try:
        return function(*models)
    except Exception as error:
        error.add_note(f"in the measure {name!r} at step {step}")
        raise


def weight_drift(model: nn.Module, reference: nn.Module) -> float:
    """‖θ − θ'‖₂ / ‖θ'‖₂, over the parameters of two models."""
    return relative_distance(_parameters(model), _parameters(reference))


def linear_cka(activations: Callable[[Any], Tensor]) -> Callable[[Any, Any], float]:
    """A function of two models: linear centred kernel alignment of their activations, in [0, 1].

    With X, Y [n, d] what `activations` returns for the two, columns centred: ‖XᵀY‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F). It is 1 if
    the one is a rotated and scaled copy of the other. Source: Kornblith et al. 2019.
    """

    def cka(model: Any, reference: Any) -> float:
        with torch.no_grad():
            x, y = (_matrix(activations(each)) for each in (model, reference))
        if len(x) != len(y):
            raise MechinterpError(f"linear_cka: activations have {len(x)} and {len(y)} rows; use the same inputs")
        x, y = (values - values.mean(dim=0) for values in (x, y))
        scale = (x.T @ x).norm() * (y.T @ y).norm()
        return float((x.T @ y).norm() ** 2 / scale) if scale else float("nan")

    return cka


def loss_barrier(loss: Callable[[Any], float | Tensor], points: int = 11) -> Callable[[Any, Any], dict[str, float]]:
    """A function of two models: how far the loss rises on the straight line between their weights.

    All parameters and buffers lie on the line. ``barrier`` = max_α [L((1−α)θ + αθ') − (1−α)L(θ) − αL(θ')] over so many
    α from 0 to 1, at least 0, and ``at``, the α where it is. 0: the two are in one basin, as far as the points tell.
    Source: Frankle et al. 2020.
    """
    require_integer("points", points, 3)

    def barrier(model: Any, reference: Any) -> dict[str, float]:
        between, ends = copy.deepcopy(model), (_state(model), _state(reference))
        alphas = torch.linspace(0, 1, points).tolist()
        height, at = barrier_of(alphas, [_loss_at(between, ends, alpha, loss) for alpha in alphas])
        return {"barrier": height, "at": at}

    return barrier


def barrier_of(alphas: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    """The most by which losses at `alphas`, from 0 to 1, rise above the straight line between the first and the last,
    at least 0, and the α where it is."""
    pairs = zip(alphas, losses, strict=True)
    rises = [value - (1 - alpha) * losses[0] - alpha * losses[-1] for alpha, value in pairs]
    highest = max(range(len(rises)), key=lambda index: rises[index])
    return max(rises[highest], 0.0), alphas[highest]


def _loss_at(
    between: nn.Module, ends: tuple[dict[str, Tensor], dict[str, Tensor]], alpha: float, loss: Callable[[Any], Any]
) -> float:
    """The loss of a model with interpolated weights."""
    with torch.no_grad():
        for name, value in _state(between).items():
            value.copy_(torch.lerp(ends[0][name], ends[1][name], alpha))
    return require_number("the loss", loss(between))


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters()}


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, and buffers such as the means of BatchNorm."""
    state = {**_parameters(model), **dict(model.named_buffers())}
    return {name: value for name, value in state.items() if value.is_floating_point() and bool(value.isfinite().all())}


def _matrix(values: Tensor) -> Tensor:
    return values.detach().double().reshape(-1, values.shape[-1])


def _takes_two(name: str, function: Function) -> bool:
    """Whether a function takes two models."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function of C
        return False
    required = [
        parameter
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) > 2:
        raise MechinterpError(
            f"the measure {name!r} takes {len(required)} arguments; expected the model, or two models"
        )
    return len(required) == 2


def _reference_step(reference: int | str, step: int, stored: list[int]) -> int:
    if reference == "first":
        return stored[0]
    if reference == "last":
        return stored[-1]
    if reference == "previous":
        return max((before for before in stored if before < step), default=stored[0])
    return int(reference)


def _named(name: str, result: Any) -> dict[str, float]:
    """The numbers that a function returned, by column."""
    if isinstance(result, Mapping):
        return {f"{name}_{key}": require_number(f"the measure {name}_{key}", value) for key, value in result.items()}
    return {name: require_number(f"the measure {name}", result)}
