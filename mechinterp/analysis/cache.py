"""The cache of computed tables, beside the run in ``RUN.cache/``.

The key of a table is the digest of the weights, with the analysis, its arguments and its code: a checkpoint is not
analysed twice, and tables of other weights or of changed code are not used.
"""

import ast
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
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


@cache
def imported_modules(home: str) -> frozenset[str]:
    """A module and all that it imports of its package and of mechinterp, directly or indirectly, by their sources."""
    packages, reached, waiting = {home.partition(".")[0], "mechinterp"}, set[str](), [home]
    while waiting:
        module = waiting.pop()
        if module in reached or not _source(module):
            continue
        reached.add(module)
        for node in ast.walk(ast.parse(_source(module))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in packages:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.split(".")[0] in packages]
    return frozenset(reached)


@cache
def _source(module: str) -> str:
    """The source text of a module; empty for a name that is no module.

    What a module contains is not looked for: that would import it, and with `models.hooked` TransformerLens.
    """
    try:
        above = find_spec(module.rpartition(".")[0]) if "." in module else None
        if above and above.submodule_search_locations is None:
            return ""
        spec = find_spec(module)
    except (ModuleNotFoundError, ValueError):  # __main__ of a notebook has no file
        return ""
    return Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
