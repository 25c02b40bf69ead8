"""Functions that numba compiles to machine code, and that run without the interpreter's lock."""

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from inspect import unwrap
from typing import Any

from numba import njit
from numba.core import config

from mechinterp.errors import MechinterpError
from mechinterp.progress import announce


def compiler(*, cache: bool = False, **options: Any) -> Callable[..., Any]:
    """A decorator that compiles a function with options of numba's `njit`; with `cache`, the result is kept on disk.

    It compiles the function without the checks of types that the test suite wraps around it. Where nothing can be kept
    (a read-only or full disk), it is compiled every time; what is damaged is compiled again.
    """
    if config.DISABLE_JIT:  # pyright: ignore[reportAttributeAccessIssue]
        raise MechinterpError("NUMBA_DISABLE_JIT is set, and sequences are drawn by compiled code; unset it")

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            dispatcher: Any = njit(unwrap(function), nogil=True, cache=cache, **options)
        except RuntimeError:  # there is no folder that can be written
            return njit(unwrap(function), nogil=True, **options)
        if cache:
            dispatcher._cache = _OptionalCache(dispatcher._cache)
        return dispatcher

    return compiled


@lru_cache
def _say_once() -> None:
    """Say, the first time in a process, that functions are compiled, which takes a while."""
    announce("compiling kernels, up to a minute; they are kept for the next time")


class _OptionalCache:
    """Numba's cache of one function, whose errors are no errors of the program."""

    def __init__(self, cache: Any):
        self._numba_cache = cache

    def load_overload(self, signature: Any, context: Any) -> Any:
        """The compiled function; None if it is not there, or damaged, and then it is forgotten."""
        found = None
        try:
            found = self._numba_cache.load_overload(signature, context)
        except Exception:  # whatever a damaged pickle raises
            with suppress(Exception):
                self._numba_cache.flush()
        if found is None:
            _say_once()
        return found

    def save_overload(self, signature: Any, data: Any) -> None:
        """Keep a compiled function, if that is possible."""
        with suppress(Exception):
            self._numba_cache.save_overload(signature, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._numba_cache, name)
