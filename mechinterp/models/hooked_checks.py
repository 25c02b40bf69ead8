"""Hooks that do not fail in silence: names that do not exist, and hooks that do not fire, raise.

TransformerLens ignores filters and lists of names that match nothing, and hooks of activations that are not computed.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Never

from torch import Tensor

from mechinterp.errors import MechinterpError, unknown_name
from mechinterp.models.hooked_lens import HookedRootModule

NamedHook = tuple[str | Callable[[str], bool], Callable[..., Any]]

_SELDOM = (
    "TransformerLens fires hook_result, hook_attn_in and hook_q_input (k, v) on request only (model.set_use_attn_result"
    " and so on), and a run stopped at a layer ends there"
)


class NamedActivations(dict[str, Tensor]):
    """Activations by hook name; a name that is not among them raises with the nearest one."""

    def __missing__(self, name: str) -> Never:
        raise unknown_name("activation", name, self)


class CheckedHooks(HookedRootModule):
    """`hooks`, `run_with_hooks` and `run_with_cache` of a HookedRootModule, with checks of hook names and firing."""

    def hooks(
        self, fwd_hooks: Sequence[NamedHook] = (), bwd_hooks: Sequence[NamedHook] = (), *options: Any, **named: Any
    ):  # type: ignore[override]
        """As in TransformerLens; an unknown hook name raises with the nearest one."""
        for name, _ in [*fwd_hooks, *bwd_hooks]:
            self._require_hook(name)
        return super().hooks(list(fwd_hooks), list(bwd_hooks), *options, **named)

    def run_with_hooks(self, *inputs: Any, fwd_hooks: Sequence[NamedHook] = (), **options: Any):  # type: ignore[override]
        """As in TransformerLens; a hook that does not exist, or does not fire, raises."""
        fired = [False] * len(fwd_hooks)

        def watched(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def call(*arguments: Any, **named: Any) -> Any:
                fired[number] = True
                return function(*arguments, **named)

            return call

        hooks = [(name, watched(number, function)) for number, (name, function) in enumerate(fwd_hooks)]
        result = super().run_with_hooks(*inputs, fwd_hooks=hooks, **options)
        for (name, _), has_fired in zip(fwd_hooks, fired, strict=True):
            if not has_fired:
                raise _silent(name)
        return result

    def run_with_cache(self, *inputs: Any, names_filter: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """As in TransformerLens; a hook that does not exist, or does not fire, raises, and so does one that is looked
        up in the cache and is not there. `remove_batch_dim` is of one sequence."""
        alone = options.pop("remove_batch_dim", False)  # which TransformerLens does to activations with positions only
        if alone and inputs and len(inputs[0]) != 1:
            raise MechinterpError(f"remove_batch_dim takes one sequence, and inputs has {len(inputs[0])}; leave it out")
        result = super().run_with_cache(*inputs, names_filter=names_filter, **options)
        cache = result[1] if isinstance(result[1], dict) else result[1].cache_dict
        named = NamedActivations({name: value[0] if alone else value for name, value in cache.items()})
        if isinstance(result[1], dict):
            result = result[0], named
        else:
            result[1].cache_dict, result[1].has_batch_dim = named, not alone
        if callable(names_filter) and not len(result[1]):
            raise _silent(names_filter)
        wanted = [names_filter] if isinstance(names_filter, str) else names_filter
        for name in wanted if isinstance(wanted, list) else ():
            if name not in result[1]:
                raise _silent(name)
        return result

    def get_caching_hooks(self, names_filter: Any = None, *args: Any, **options: Any):  # type: ignore[override]
        """As in TransformerLens; an unknown hook name raises with the nearest one."""
        self._require_filter(names_filter)
        cache, forward, backward = super().get_caching_hooks(names_filter, *args, **options)
        return cache, [(name, _of_a_copy(save)) for name, save in forward], backward

    def add_caching_hooks(self, names_filter: Any = None, *args: Any, **options: Any) -> dict:  # type: ignore[override]
        """As in TransformerLens; an unknown hook name raises with the nearest one."""
        self._require_filter(names_filter)
        return super().add_caching_hooks(names_filter, *args, **options)

    def add_hook(self, name: str | Callable[[str], bool], *arguments: Any, **options: Any) -> None:  # type: ignore[override]
        """As in TransformerLens; an unknown hook name raises with the nearest one."""
        self._require_hook(name)
        super().add_hook(name, *arguments, **options)

    def _require_filter(self, names_filter: Any) -> None:
        names = names_filter if isinstance(names_filter, list) else [names_filter]
        for name in names if names_filter is not None else ():
            if not isinstance(name, str) and not callable(names_filter):
                raise MechinterpError(f"names_filter {names_filter!r}: give a hook name, a list of them or a function")
            self._require_hook(name)

    def _require_hook(self, name: str | Callable[..., Any]) -> None:
        if isinstance(name, str) and name not in self.hook_dict:
            raise unknown_name("hook", name, self.hook_dict)
        if callable(name) and not any(name(known) for known in self.hook_dict):
            raise MechinterpError("the hook filter matches no hook of this model")


def _silent(name: str | Callable[..., Any]) -> MechinterpError:
    what = f"hook {name!r}" if isinstance(name, str) else "a hook given by a filter"
    return MechinterpError(f"{what} did not fire in this run; {_SELDOM}")


def _of_a_copy(save: Callable[..., None]) -> Callable[..., None]:
    """A caching hook that keeps a copy, which no later hook can change in place."""

    def hook(activation: Tensor, *arguments: Any, **options: Any) -> None:
        save(activation.clone(), *arguments, **options)

    return hook
