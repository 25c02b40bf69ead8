"""Files and folders that users name; their errors are MechinterpErrors of one line."""

import math
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from mechinterp.errors import ConfigError, MechinterpError


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None


def make_folder(path: Path) -> Path:
    """The folder, made if it does not exist."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise MechinterpError(f"{path}: is a file; give a folder") from None
    except OSError as error:
        raise MechinterpError(f"{path}: cannot be made ({error.strerror}); give another folder") from None
    return path


def require_place(path: Path) -> Path:
    """The path, if a page, picture or table can be written there. An existing one is replaced; a run file never is."""
    if (path.exists() and not path.is_file()) or not os.access(path.parent, os.W_OK):
        raise MechinterpError(f"{path}: cannot be written; choose another file")
    if path.is_file() and _begins(path, b"\x89HDF"):
        raise MechinterpError(f"{path}: is a run file, which is never replaced; choose another file")
    return path


def _begins(path: Path, start: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return False


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically: no reader sees a part of it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a new file beside `path`, which replaces `path` at the end, or is deleted on an error."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def plain_json(value: Any) -> Any:
    """The value for JSON, which has no numbers that are not finite: they become null."""
    if isinstance(value, dict):
        return {key: plain_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
