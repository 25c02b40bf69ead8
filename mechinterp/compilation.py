"""Functions that numba compiles to machine code, and that run without the interpreter's lock."""

from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, lru_cache
from inspect import unwrap
from typing import Any

from numba import njit
from numba.core import config
from numba.core.caching import NullCache
from numba.core.compiler import run_frontend
from numba.core.registry import cpu_target
from numba.core.typed_passes import type_inference_stage

from mechinterp.errors import MechinterpError
from mechinterp.kernel_cache import KernelCache, remember_source
from mechinterp.progress import announce


def compiler(*, cache: bool = False, **options: Any) -> Callable[..., Any]:
    """A decorator that compiles a function with options of numba's `njit`; with `cache`, the user's folder keeps it.

    It compiles the function without the checks of types that the test suite wraps around it. Where nothing can be kept
    (a read-only or full disk), it is compiled every time; what is damaged is compiled again (`kernel_cache`).
    """
    if config.DISABLE_JIT:  # pyright: ignore[reportAttributeAccessIssue]
        raise MechinterpError("NUMBA_DISABLE_JIT is set, and sequences are drawn by compiled code; unset it")

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher: Any = njit(unwrap(function), nogil=True, **options)
        remember_source(dispatcher.py_func)
        if cache:
            dispatcher._cache = _OptionalCache(dispatcher)
        return dispatcher

    return compiled


def is_missing(dispatcher: Any, signature: tuple[Any, ...]) -> bool:
    """Whether a function with a cache is yet to be compiled for these types of arguments, and can then be kept."""
    kept = dispatcher._cache._cache
    if kept is None or signature in dispatcher.overloads:
        return False
    return not kept.holds(signature) and kept.can_save()


def compile_called(function: Callable[..., Any], types: tuple[Any, ...]) -> None:
    """Compile the functions that a function, which is not compiled itself, calls with arguments of these types."""
    typing: Any = cpu_target.typing_context
    target: Any = cpu_target.target_context
    typing.refresh()
    target.refresh()
    type_inference_stage(typing, target, run_frontend(unwrap(function)), types, None)


@lru_cache
def say_once() -> None:
    """Say, the first time in a process, that functions are compiled, which takes a while."""
    announce("compiling kernels, up to half a minute; they are kept for the next time")


class _OptionalCache(NullCache):
    """The cache of one function, which is opened when the function is first called, as functions that it calls may be
    defined below it; its errors are no errors of the program."""

    def __init__(self, dispatcher: Any):
        self._dispatcher = dispatcher

    @cached_property
    def _cache(self) -> KernelCache | None:
        try:
            return KernelCache(self._dispatcher)
        except Exception:  # there is no source, or no home
            return None

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function; None if it is not there or cannot be read."""
        found = None
        with suppress(Exception):  # whatever a file that another program wrote raises
            found = self._cache and self._cache.load_overload(sig, target_context)
        if found is None:
            say_once()
        return found

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Keep a compiled function, if that is possible."""
        with suppress(Exception):
            if self._cache:
                self._cache.save_overload(sig, cres)
