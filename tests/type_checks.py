"""Annotations of types and shapes, enforced in every tenth call of a function that is called often.

jaxtyping binds and checks arguments for every call, which takes most of the time where small tensors pass through many
functions. So a function is checked at its first calls in every test, and then at every tenth one; ``--all-types``
checks every call (`make test-all`). What is checked is made at the first call, so that collecting tests is quick.

Imported before `mechinterp`: `jaxtyping.jaxtyped` is what its import hook decorates functions with.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping
from jaxtyping import _decorator

FIRST, EVERY = 20, 10
"""How many calls in a test are all checked, and which ones are after those."""
_jaxtyped = jaxtyping.jaxtyped


class Calls:
    """What all functions share: the test that runs, and whether every call is checked."""

    test: int = 0
    all_checked: bool = False


def jaxtyped(fn: Any = inspect.Parameter.empty, *, typechecker: Any) -> Any:
    """jaxtyping's decorator, whose functions are checked at some of their calls; it comes here for parts of classes."""
    if fn is inspect.Parameter.empty:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if not inspect.isfunction(fn):
        return _jaxtyped(fn, typechecker=typechecker)
    return sampled(fn, functools.cache(lambda: _jaxtyped(fn, typechecker=typechecker)))


def sampled(fn: Callable[..., Any], checked: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """A function that is checked in the first `FIRST` calls of a test, and in every one of `EVERY` after them."""
    test, count = -1, 0

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal test, count
        __tracebackhide__ = True
        if test != Calls.test:
            test, count = Calls.test, 0
        count += 1
        if count > FIRST and count % EVERY and not Calls.all_checked:
            return fn(*args, **kwargs)
        return checked()(*args, **kwargs)

    return call


jaxtyping.jaxtyped = _decorator.jaxtyped = jaxtyped
