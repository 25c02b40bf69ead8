"""The cache of computed tables, beside the run in ``RUN.cache/``.

The key of a table is the digest of the weights, with the analysis, its arguments and its code: a checkpoint is not
analysed twice, and tables of other weights or of changed code are not used.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pandas as pd

from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError
from mechinterp.files import make_durable, read_sealed_json, write_sealed_json


class TableCache:
    """Tables by the digest of the weights, for one analysis and its arguments: a JSON file beside the run."""

    def __init__(
        self, run: Path, config: RunConfig, analysis: str, home: str, arguments: Mapping[str, Any], *, keep: bool = True
    ):
        """Without `keep`, nothing is read or written; nor of a custom task, which the run's file does not contain."""
        self.tables: dict[str, pd.DataFrame] = {}
        self._changed, self._keep = False, keep and config.task.kind != "custom" and bool(_source(home))
        if not self._keep:
            return
        values = {name: value.name if isinstance(value, Enum) else value for name, value in arguments.items()}
        config_digest = hashlib.sha256(config.canonical_json().encode()).hexdigest()
        self._about = {"code": code_digest(home), "config": config_digest, "analysis": analysis, "arguments": values}
        key = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()[:12]
        self._path = run.with_name(run.name + ".cache") / f"{analysis}-{key}.json"
        content = read_sealed_json(self._path)  # a missing or damaged file is replaced
        if isinstance(content, dict) and content.get("about") == json.loads(json.dumps(self._about)):
            self.tables = {digest: pd.DataFrame(table) for digest, table in content["tables"].items()}

    def add(self, digest: str, table: pd.DataFrame) -> None:
        """Add the table of one checkpoint."""
        self.tables[digest], self._changed = table, True

    def save(self) -> None:
        """Replace the file atomically, if tables have been added."""
        if not (self._keep and self._changed):
            return
        with suppress(OSError, MechinterpError):  # the folder of the run may be read-only
            make_durable(self._path.parent)
            tables = {digest: table.to_dict("list") for digest, table in self.tables.items()}
            write_sealed_json(self._path, {"about": self._about, "tables": tables})


@cache
def code_digest(home: str) -> str:
    """A digest of the sources of `imported_modules`."""
    sources = "".join(_source(name) for name in sorted(imported_modules(home)))
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


_IMPORTS = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<home>[\w.]+)[ \t]+import[ \t]+(?P<names>\([^)]*\)|[^\n]*)"
    r"|import[ \t]+(?P<modules>[^\n]*))",
    re.MULTILINE,
)
"""A statement that imports. What only looks like one, in a docstring, does no harm: a digest then covers more code."""
_NAMES = re.compile(r"([\w.]+)(?:[ \t]+as[ \t]+\w+)?")


@cache
def imported_modules(home: str) -> frozenset[str]:
    """A module, or all modules of a package, and all that these import of their package and of mechinterp, directly or
    indirectly, by their sources: nothing is imported."""
    packages, reached, waiting = {home.partition(".")[0], "mechinterp"}, set[str](), [home]
    if (file := _file(home)) and file.name == "__init__.py":
        waiting += [f"{home}.{module.name}" for module in iter_modules([str(file.parent)])]
    while waiting:
        module = waiting.pop()
        if module in reached or not _source(module):
            continue
        reached.add(module)
        for found in _IMPORTS.finditer(_source(module)):
            names = _NAMES.findall(found["names"] or found["modules"] or "")
            if found["home"]:
                names = [found["home"], *(f"{found['home']}.{name}" for name in names)]
            waiting += [name for name in names if name.partition(".")[0] in packages]
    return frozenset(reached)


@cache
def _source(module: str) -> str:
    """The source text of a module; empty for a name that is no module."""
    file = _file(module)
    return file.read_text(encoding="utf-8") if file else ""


def _file(module: str) -> Path | None:
    """The file of a module, by its name; None for a name that is no module, as ``__main__`` of a notebook."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ModuleNotFoundError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    if not rest:
        return Path(spec.origin)
    place = Path(spec.origin).parent.joinpath(*rest)
    candidates = [place.with_name(f"{place.name}.py"), place / "__init__.py"]
    return next((file for file in candidates if spec.submodule_search_locations and file.is_file()), None)
