"""Functions that numba compiles to machine code, and that run without the interpreter's lock."""

from collections.abc import Callable
from inspect import unwrap
from typing import Any

from numba import njit


def compiler(**options: Any) -> Callable[..., Any]:
    """A decorator that compiles a function with options of numba's `njit`.

    It compiles the function without the checks of types that the test suite wraps around it.
    """
    return lambda function: njit(unwrap(function), nogil=True, **options)
