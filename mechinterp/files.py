"""Files and folders that users name; their errors are MechinterpErrors of one line."""

import errno
import hashlib
import json
import math
import os
import time
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from mechinterp.errors import BusyError, ConfigError, MechinterpError

try:
    import fcntl
except ImportError:  # Windows
    fcntl: Any = None

_RUN = b"mechinterp-run "
"""The beginning of a run file."""
_SEALED = '{"sha256": "', '", "content": '


def require_path(path: Any) -> Path:
    """The path of a file; MechinterpError for what is none, such as a run in its place."""
    if isinstance(path, str | os.PathLike):
        return Path(path)
    hint = ": give its path" if hasattr(path, "path") else ""
    raise MechinterpError(f"expected the path of a file, got a {type(path).__name__}{hint}")


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    try:
        return tomllib.loads(read_regular(Path(path)).decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from None
    except UnicodeDecodeError:
        what = "a run file, whose config `mechinterp config show` prints" if is_run_file(Path(path)) else "no text"
        raise ConfigError(f"{path}: is {what}; give the path of a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None


def read_regular(path: Path) -> bytes:
    """The bytes of a file; OSError for anything else, for instance a named pipe, which would be waited for."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path.read_bytes()


def make_folder(path: Path) -> Path:
    """The folder, made if it does not exist."""
    try:
        make_durable(path)
    except FileExistsError:
        raise MechinterpError(f"{path}: is a file; give a folder") from None
    except OSError as error:
        raise MechinterpError(f"{path}: cannot be made ({error.strerror}); give another folder") from None
    return path


def require_folder(path: Path) -> None:
    """Refuse a path where no folder can be made, as `make_folder` would, without making it."""
    above = path
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise MechinterpError(f"{path}: {'' if above == path else f'{above} '}is a file; give a folder")
    if not os.access(above, os.W_OK):
        raise MechinterpError(f"{path}: the folder {above} cannot be written; give another folder")


def make_durable(folder: Path) -> None:
    """Make a folder, with those above it, if it does not exist, whose names are on the disk when this returns."""
    missing = [above for above in (folder, *folder.parents) if not above.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        sync_folder(made.parent)


def require_place(path: Path) -> Path:
    """The path, if a page, picture or table can be written there, in a folder that is made if need be.

    An existing one is replaced; a run file never is.
    """
    if path.is_dir():
        raise MechinterpError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        make_folder(path.parent)
    if (path.exists() and not path.is_file()) or not os.access(path.parent, os.W_OK):
        raise MechinterpError(f"{path}: cannot be written; choose another file")
    if path.is_file() and is_run_file(path):
        raise MechinterpError(f"{path}: is a run file, which is never replaced; choose another file")
    return path


def require_writable(path: Path, overwrite: bool) -> None:
    """Refuse a path that exists (unless `overwrite`), is a folder or no name, or whose folder cannot be written."""
    try:
        exists = path.exists()
    except OSError as error:
        raise MechinterpError(f"{path}: cannot be a file ({error.strerror}); choose another name") from None
    if path.is_dir():
        raise MechinterpError(f"{path}: is a folder; name a file in it")
    if exists and not overwrite:
        raise MechinterpError(f"{path}: exists already; choose another file or pass --overwrite (overwrite=True)")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise MechinterpError(f"{path}: {folder} is a file, not a folder; choose another place")
    if not os.access(folder, os.W_OK):
        raise MechinterpError(f"{path}: the folder {folder} cannot be written; choose another place")


def is_run_file(path: Path) -> bool:
    """Whether a file begins as a run file does, sound or damaged."""
    try:
        with path.open("rb") as file:
            return file.read(len(_RUN)) == _RUN
    except OSError:
        return False


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically and durably: no reader sees a part of it, nor does the system after a crash."""
    replace_bytes(path, text.encode(errors="surrogateescape"))


def replace_bytes(path: Path, content: bytes, *, patience: float = 3.0) -> None:
    """Write a file as `replace_text`; MechinterpError if it cannot be written, which leaves the old one.

    Another process that writes it is waited for, so many seconds.
    """
    path = path.resolve()  # a link stays a link
    try:
        with FileLock(path, patience=patience):
            temporary, descriptor = new_beside(path)
            try:
                write_at(descriptor, content, 0)
                sync(descriptor)
                os.replace(temporary, path)
                sync_folder(path.parent)
            except BaseException:
                discard(temporary)
                raise
            finally:
                os.close(descriptor)
    except OSError as error:
        raise MechinterpError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def write_sealed_json(path: Path, content: Any) -> str:
    """Write ``{"sha256": …, "content": …}`` as `replace_text`; the digest is that of the content's text."""
    text = json.dumps(content)
    seal = hashlib.sha256(text.encode()).hexdigest()
    replace_text(path, f"{_SEALED[0]}{seal}{_SEALED[1]}{text}}}\n")
    return seal


def read_sealed_json(path: Path) -> Any:
    """The content that `write_sealed_json` wrote; None if the file is missing, cut off or changed."""
    try:
        text = read_regular(path).decode()
        start, middle = _SEALED
        seal, content = text[len(start) : len(start) + 64], text[len(start) + 64 + len(middle) : -2]
        if text.startswith(start) and seal == hashlib.sha256(content.encode()).hexdigest():
            return json.loads(content)
    except (OSError, ValueError, RecursionError):
        pass
    return None


class FileLock:
    """The right to write a file, or another in its place, which one process has at a time; BusyError if another has it.

    It is a lock of the system on a hidden file beside it, which ends with the process, also if that is killed. The file
    itself is not locked: HDF5 could not read it then.
    """

    def __init__(self, path: Path, *, patience: float = 0.0):
        """Waits for so many seconds."""
        self._place = beside(path, "lock")
        self._descriptor, end = -1, time.monotonic() + patience
        if fcntl is None:
            raise MechinterpError(f"{path}: files are written on Linux and macOS only; here, run files can be read")
        while self._descriptor < 0:
            descriptor = os.open(self._place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_at(descriptor, self._place):  # else its last owner has just deleted it
                    self._descriptor = descriptor
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise BusyError(f"{path}: is being written by another process; wait for it to end") from None
                time.sleep(0.02)
            finally:
                if self._descriptor != descriptor:
                    os.close(descriptor)
        discard(beside(path, "part"))  # a killed process has left it behind

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor >= 0:
            discard(self._place)  # before it is unlocked: afterwards it may be another's
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "FileLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def is_being_written(path: Path) -> bool:
    """Whether a process has the right to write a file now (`FileLock`), which is not asked for."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(beside(path.resolve(), "lock"), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def require_ending(path: Path, *endings: str) -> Path:
    """The path, if its name ends with one of those that a command writes: ``.html``; in capitals too."""
    if path.suffix.lower() in endings:
        return path
    known = endings[0] if len(endings) == 1 else f"{', '.join(endings[:-1])} or {endings[-1]}"
    has = f"ends with {path.suffix}" if path.suffix else "has no ending"
    raise MechinterpError(f"{path}: {has}, and what is written there is {known}; give a name that ends so")


def beside(path: Path, ending: str) -> Path:
    """The path of a hidden file that belongs to the one at `path`."""
    name = path.name if len(os.fsencode(path.name)) < 240 else hashlib.sha256(os.fsencode(path.name)).hexdigest()
    return path.with_name(f".{name}.{ending}")


def new_beside(path: Path) -> tuple[Path, int]:
    """The path and descriptor of a new file that is to replace `path`, whose lock the caller has."""
    temporary = beside(path, "part")
    return temporary, os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def discard(path: Path) -> None:
    """Delete a file if it is there and can be deleted."""
    with suppress(OSError):
        path.unlink()


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that is at the path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def write_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write all of the content at an offset of a file."""
    view = memoryview(content).cast("B")
    while len(view):
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def sync(descriptor: int) -> None:
    """Return when the content of a file is on the disk."""
    if full := getattr(fcntl, "F_FULLFSYNC", None):  # macOS, whose fsync leaves it in the disk's cache
        try:
            fcntl.fcntl(descriptor, full)
        except OSError:  # a file system without it
            os.fsync(descriptor)
    else:
        os.fdatasync(descriptor)


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that keeps names by itself
            raise
    finally:
        os.close(descriptor)


def plain_json(value: Any) -> Any:
    """The value for JSON, which has no numbers that are not finite: they become null."""
    if isinstance(value, dict):
        return {key: plain_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
