"""Hooks without silent no-ops: what TransformerLens lets pass about them is an error here.

`CheckedHooks` is the base of hooked models: a hook name that does not exist raises with the nearest one, and a hook
that does not fire in `run_with_hooks` or `run_with_cache` raises too. This is the one place that imports
TransformerLens, and it silences what that says meanwhile.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformer_lens import FactoredMatrix as FactoredMatrix
    from transformer_lens import HookedTransformer as HookedTransformer
    from transformer_lens import HookedTransformerConfig as HookedTransformerConfig
    from transformer_lens.hook_points import HookedRootModule as HookedRootModule
    from transformer_lens.hook_points import HookPoint as HookPoint

from mechinterp.errors import MechinterpError, unknown_name

NamedHook = tuple[str | Callable[[str], bool], Callable[..., Any]]

_SELDOM = (
    "TransformerLens fires hook_result, hook_attn_in and hook_q_input (k, v) on request only (model.set_use_attn_result"
    " and so on), there is no MLP, and a run stopped at a layer ends there"
)


class CheckedHooks(HookedRootModule):
    """`hooks`, `run_with_hooks` and `run_with_cache` of a HookedRootModule, checked; put it before that class."""

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
                what = f"hook {name!r}" if isinstance(name, str) else "a hook given by a filter"
                raise MechinterpError(f"{what} did not fire in this run; {_SELDOM}")
        return result

    def run_with_cache(self, *inputs: Any, names_filter: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """As in TransformerLens; a hook that does not exist, or does not fire, raises."""
        result = super().run_with_cache(*inputs, names_filter=names_filter, **options)
        wanted = [names_filter] if isinstance(names_filter, str) else names_filter
        for name in wanted if isinstance(wanted, list) else ():
            if name not in result[1]:
                raise MechinterpError(f"hook {name!r} did not fire in this run; {_SELDOM}")
        return result

    def get_caching_hooks(self, names_filter: Any = None, *args: Any, **options: Any):  # type: ignore[override]
        """As in TransformerLens; an unknown hook name raises with the nearest one."""
        names = [names_filter] if isinstance(names_filter, str) else names_filter
        for name in names if isinstance(names, list) else ():
            self._require_hook(name)
        return super().get_caching_hooks(names_filter, *args, **options)

    def _require_hook(self, name: str | Callable[[str], bool]) -> None:
        if isinstance(name, str) and name not in self.hook_dict:
            raise unknown_name("hook", name, self.hook_dict)
        if callable(name) and not any(name(each) for each in self.hook_dict):
            raise MechinterpError("the hook filter matches no hook of this model")
