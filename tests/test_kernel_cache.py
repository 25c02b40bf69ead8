"""The user's folder of compiled functions: what is loaded from it, and what is compiled again."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numba
import pytest

import mechinterp
from mechinterp.compilation import compile_called, is_missing
from mechinterp.kernel_cache import VERSIONS_KEPT, kernel_folder

CALLED = """
from factors import FACTOR, Pair, factor
from mechinterp.compilation import compiler

@compiler(cache=True)
def scaled(x):
    return factor() * FACTOR * x + later()

@compiler(cache=True)
def first(pair):
    return pair.a

@compiler()
def later():
    return 0
"""
FACTORS = """
from typing import NamedTuple
from mechinterp.compilation import compiler

FACTOR = 1

class Pair(NamedTuple):
    a: int
    b: int

@compiler()
def factor():
    return 2
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The user's folder of compiled functions."""
    monkeypatch.setenv("MECHINTERP_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def checkout(tmp_path, folder, monkeypatch):
    """Imports two modules of compiled functions from a new checkout, in which the text of the second one is changed."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = []

    def imported(old: str = "", new: str = "") -> ModuleType:
        path = tmp_path / f"checkout{len(made)}"
        path.mkdir()
        made.append(path)
        assert old in FACTORS
        (path / "called.py").write_text(CALLED)
        (path / "factors.py").write_text(FACTORS.replace(old, new))
        for name in ("called", "factors"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        monkeypatch.syspath_prepend(path)
        return importlib.import_module("called")

    yield imported
    for name in ("called", "factors"):
        sys.modules.pop(name, None)


def loaded(function) -> int:
    """How often a function was loaded rather than compiled."""
    return function._cache_hits.total()


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_another_checkout_compiles_nothing(checkout, folder):
    one, two = checkout(), checkout()
    assert (one.scaled(21), loaded(one.scaled)) == (42, 0)
    assert (two.scaled(21), loaded(two.scaled)) == (42, 1)
    assert len(files(folder)) == 1


def test_a_changed_function_or_constant_of_another_module_is_noticed(checkout):
    """Numba's own cache looks at the file of the function that is called from Python, and at no other."""
    assert checkout().scaled(21) == 42
    assert checkout("return 2", "return 3").scaled(21) == 63
    assert checkout("FACTOR = 1", "FACTOR = 2").scaled(21) == 84
    again = checkout()
    assert (again.scaled(21), loaded(again.scaled)) == (42, 1)


def test_fields_of_a_named_tuple_in_another_order_are_noticed(checkout):
    for module in (checkout(), checkout("a: int\n    b: int", "b: int\n    a: int")):
        assert module.first(module.Pair(a=1, b=2)) == 1


def test_a_source_that_is_edited_before_the_first_call_is_not_taken_for_the_code(checkout):
    module = checkout()
    source = Path(sys.modules["factors"].__file__ or "")
    source.write_text(FACTORS.replace("return 2", "return 3"))
    assert module.scaled(21) == 42
    assert checkout("return 2", "return 3").scaled(21) == 63


def test_other_types_of_arguments_are_kept_beside(checkout, folder):
    for hits in (0, 1):
        module = checkout()
        assert [module.scaled(x) for x in (21, 2.5, 3j)] == [42, 5, 6j]
        assert loaded(module.scaled) == 3 * hits
    assert len(files(folder)) == 3


def test_what_a_function_calls_is_compiled_without_it(checkout, folder):
    """So another process compiles the parts of a function before the function needs them."""
    module, types = checkout(), (numba.typeof(21),)

    def twice(x):
        return module.scaled(x) + module.scaled(x)

    assert is_missing(module.scaled, types)
    compile_called(twice, types)
    assert len(files(folder)) == 1
    assert not is_missing(module.scaled, types)
    other = checkout()
    assert not is_missing(other.scaled, types)
    assert is_missing(other.scaled, (numba.typeof(2.5),))
    assert (other.scaled(21), loaded(other.scaled)) == (42, 1)


@pytest.mark.parametrize("damage", ["half", "nothing", "one bit"])
def test_a_damaged_file_is_compiled_again(checkout, folder, damage):
    assert checkout().scaled(21) == 42
    (path,) = files(folder)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes({"half": content[: len(content) // 2], "nothing": b"", "one bit": flipped}[damage])
    for hits in (0, 1):
        module = checkout()
        assert (module.scaled(21), loaded(module.scaled)) == (42, hits)


@pytest.mark.parametrize("place", ["/proc/nowhere", "{tmp}/file"])
def test_where_nothing_can_be_written_it_is_compiled_every_time(checkout, tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MECHINTERP_CACHE_DIR", place.format(tmp=tmp_path))
    for _ in range(2):
        module = checkout()
        assert (module.scaled(21), loaded(module.scaled)) == (42, 0)


def test_a_folder_that_can_only_be_read_is_read(checkout, folder, monkeypatch):
    assert checkout().scaled(21) == 42

    def refuse(*_, **__):
        raise PermissionError("read-only")

    for name in ("mkstemp", "utime"):
        monkeypatch.setattr(f"mechinterp.kernel_cache.{'tempfile' if name == 'mkstemp' else 'os'}.{name}", refuse)
    module = checkout()
    assert (module.scaled(21), loaded(module.scaled)) == (42, 1)
    assert module.scaled(2.5) == 5
    assert len(files(folder)) == 1


def test_versions_that_were_not_used_for_longest_are_removed(checkout, folder):
    def version(n: int):
        return checkout("FACTOR = 1", f"FACTOR = {n}").scaled

    for n in range(1, VERSIONS_KEPT + 1):
        assert version(n)(21) == 42 * n
    assert loaded(version(1)) == 0
    again = version(1)
    assert (again(21), loaded(again)) == (42, 1)
    assert version(VERSIONS_KEPT + 1)(21) == 42 * (VERSIONS_KEPT + 1)
    assert len(files(folder)) == VERSIONS_KEPT
    recent, old = version(1), version(2)
    assert (recent(21), loaded(recent)) == (42, 1), "it was used a moment ago"
    assert (old(21), loaded(old)) == (84, 0), "all others were used after it"


def test_processes_that_compile_at_once_do_not_take_each_others_code(checkout, folder):
    """Also processors, of which one is a generic one, in whose place no other's code is taken."""
    module = checkout()
    package = str(Path(mechinterp.__file__).parents[1])
    paths = os.pathsep.join((str(Path(module.__file__ or "").parent), package))
    environment, running = os.environ | {"PYTHONPATH": paths}, []
    for value, more in (("21", {}), ("2.5", {}), ("21", {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""})):
        code = f"from called import scaled; print(scaled({value}), scaled._cache_hits.total())"
        command = [sys.executable, "-B", "-c", code]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment | more)
        running.append(process)
    assert [process.communicate()[0] for process in running] == ["42 0\n", "5.0 0\n", "42 0\n"]
    assert (module.scaled(21), module.scaled(2.5), loaded(module.scaled)) == (42, 5, 2)
    assert len(files(folder)) == 3


def test_the_folder(monkeypatch):
    for name in ("MECHINTERP_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    assert kernel_folder() == Path("/home/ada/.cache/mechinterp/kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert kernel_folder() == Path("/home/ada/.cache/mechinterp/kernels"), "XDG: relative paths are ignored"
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/cache")
    assert kernel_folder() == Path("/scratch/cache/mechinterp/kernels")
    monkeypatch.setenv("MECHINTERP_CACHE_DIR", "~/kept")
    assert kernel_folder() == Path("/home/ada/kept/kernels")


def test_where_nothing_can_be_kept_nothing_is_compiled_ahead(checkout, monkeypatch):
    monkeypatch.setenv("MECHINTERP_CACHE_DIR", "/proc/nowhere")
    assert not is_missing(checkout().scaled, (numba.typeof(21),))
