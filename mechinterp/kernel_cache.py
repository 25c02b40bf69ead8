"""The user's folder of compiled functions: what one checkout has compiled, all others on the machine load.

A function's files are kept under a digest of all that its machine code follows from: the sources of its module and of
the modules of all compiled functions that it calls, the constants that these read, the options of compilation, and the
versions of Python, numba, llvmlite and NumPy. A file's name has the digest of the argument types and of the processor.
"""

import hashlib
import inspect
import os
import pickle
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import llvmlite
import numba
import numpy as np
from numba.core import config, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.dispatcher import Dispatcher
from numba.core.serialize import dumps

VARIABLE = "MECHINTERP_CACHE_DIR"
"""The environment variable that names the folder of what is kept for a user, in place of ``~/.cache/mechinterp``."""
VERSIONS_KEPT = 4
"""Versions of a function's code that are kept: those that were used last."""


def kernel_folder() -> Path:
    """The folder of compiled functions: ``kernels`` in $MECHINTERP_CACHE_DIR, else in ``mechinterp`` in
    $XDG_CACHE_HOME, else in ``~/.cache/mechinterp``. RuntimeError if there is no home."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser().absolute() / "kernels"
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # so the specification of XDG; an empty variable is as none
        base = Path.home() / ".cache"
    return base / "mechinterp" / "kernels"


_sources: WeakKeyDictionary[FunctionType, str] = WeakKeyDictionary()
"""The digest of the source of every compiled function's module, as it was when the function was defined."""


def remember_source(function: FunctionType) -> None:
    """Read the source of a function's module, which may be edited before the function is first called."""
    with suppress(OSError):
        source = Path(function.__code__.co_filename).read_bytes()
        _sources[function] = hashlib.sha256(source).hexdigest()


def code_digest(dispatcher: Dispatcher) -> str:
    """The digest of all that a compiled function's machine code follows from, but argument types and processor.

    KeyError, OSError or TypeError if the source of a module cannot be read.
    """
    functions, modules, constants = _reached(dispatcher)
    parts = [
        *sorted(f"{f.__qualname__} {_sources[f.py_func]} {_in_order(f.targetoptions)}" for f in functions),
        *(inspect.getsource(sys.modules[name]) for name in sorted(modules)),
        *sorted(constants),
        *(platform.python_implementation(), platform.python_version(), np.__version__),
        *(numba.__version__, llvmlite.__version__),
        *(
            f"{name}={getattr(config, name, None)}"
            for name in ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK")
        ),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _reached(dispatcher: Dispatcher) -> tuple[list[Dispatcher], set[str], list[str]]:
    """A compiled function and all that it calls; the modules of classes and other objects of their packages that these
    name; and the constants that they read, with their values."""
    functions, modules, constants = [dispatcher], set[str](), []
    packages = {name.partition(".")[0] for name in (__name__, dispatcher.py_func.__module__)}
    for function in functions:  # it grows
        for name, value in _named_values(function.py_func):
            home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(value, Dispatcher):
                functions += [value] if value not in functions else []
            elif not isinstance(home, str):
                constants.append(f"{function.py_func.__module__}.{name}={pickle.dumps(value, protocol=5).hex()}")
            elif home.partition(".")[0] in packages:
                modules.add(home)
    return functions, modules, constants


def _named_values(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The global and enclosed values that a function, or one defined in it, names."""
    if function.__closure__:
        yield from zip(
            function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__), strict=True
        )
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        yield from ((name, function.__globals__[name]) for name in code.co_names if name in function.__globals__)


def _in_order(options: dict[str, Any]) -> list[tuple[str, Any]]:
    """Options by name, and sets in order, which is not the same in every process."""
    return sorted((name, sorted(value) if isinstance(value, set) else value) for name, value in options.items())


class KernelCache(FunctionCache):
    """Numba's cache of one function, in the user's folder; an error of any class if it can have none."""

    def __init__(self, dispatcher: Dispatcher):
        folder = kernel_folder() / f"{dispatcher.py_func.__module__}.{dispatcher.py_func.__qualname__}".replace(
            "<locals>.", ""
        )
        digest = code_digest(dispatcher)

        class Implementation(CompileResultCacheImpl):
            _locator_classes = [_locator(folder / digest, digest)]  # noqa: RUF012

        self._impl_class = Implementation
        super().__init__(dispatcher.py_func)
        target: Any = dispatcher.targetctx
        self._codegen = target.codegen
        self._cache_file = _Files(folder / digest)  # pyright: ignore[reportAttributeAccessIssue]

    def can_save(self) -> bool:
        """Whether anything can be put into the function's folder, which is made."""
        with suppress(OSError):
            self._impl.locator.ensure_cache_path()
            return os.access(self._impl.locator.get_cache_path(), os.W_OK)
        return False

    def holds(self, signature: Any) -> bool:
        """Whether the function is kept for these types of arguments."""
        return self._cache_file.holds(self._index_key(signature, self._codegen()))


def _locator(folder: Path, digest: str) -> type[_CacheLocator]:
    """Numba's way to name a folder."""

    class Locator(_CacheLocator):
        def __init__(self, file: str):
            self._py_file = file

        def ensure_cache_path(self) -> None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

        def get_cache_path(self) -> Any:
            return str(folder)

        def get_source_stamp(self) -> Any:
            return digest

        def get_disambiguator(self) -> Any:
            return ""

        @classmethod
        def from_function(cls, py_func: Callable[..., Any], py_file: str) -> "Locator":
            return cls(py_file)

    return Locator


class _Files:
    """The compiled forms of one version of a function, a file for every key: types of the arguments and processor.

    Numba's own files are numbered in an index; two processes that compile for different types at once may give both
    the same number, and the machine code of one is then loaded for the other. These have no index. They begin with the
    SHA-256 of the rest, for damaged machine code ends the process.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def load(self, key: Any) -> Any:
        """What was saved under a key; None if it is missing or damaged."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if content[:32] != hashlib.sha256(content[32:]).digest():
            return None
        with suppress(OSError):  # the last use, by which old versions are told; the folder may be read-only
            os.utime(self._folder)
        stored, data = pickle.loads(content[32:])
        return data if stored == key else None

    def holds(self, key: Any) -> bool:
        """Whether anything was saved under a key."""
        return self._path(key).exists()

    def save(self, key: Any, data: Any) -> None:
        """Put data under a key, atomically; and remove the versions of the function that were not used for longest."""
        payload = dumps((key, data))
        descriptor, name = tempfile.mkstemp(prefix=".writing-", dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(payload).digest() + payload)
            Path(name).replace(self._path(key))
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        self._forget()

    def _path(self, key: Any) -> Path:
        signature, processor, code = key
        name = f"{signature}{list(_fields(signature))}{processor}{code}"
        return self._folder / hashlib.sha256(name.encode()).hexdigest()[:32]

    def _forget(self) -> None:
        """Remove all versions but the `VERSIONS_KEPT` that were used last."""

        def last_use(version: Path) -> int:
            try:
                return version.stat().st_mtime_ns
            except OSError:  # another process has removed it
                return 0

        versions = sorted(self._folder.parent.iterdir(), key=last_use)
        for version in versions[:-VERSIONS_KEPT]:
            shutil.rmtree(version, ignore_errors=True)


def _fields(signature: Iterable[Any]) -> Iterator[tuple[str, ...]]:
    """The names of the fields of the named tuples among types, which are not in the types' names."""
    for one in signature:
        if isinstance(one, types.BaseNamedTuple):
            yield getattr(one, "fields")  # noqa: B009  numba's types declare no attributes
        if isinstance(one, types.BaseTuple):
            yield from _fields(getattr(one, "types"))  # noqa: B009
