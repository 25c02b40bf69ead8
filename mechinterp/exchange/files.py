"""Reading of other people's checkpoint files, whose content may come from anywhere: no code of theirs is run.

Known are files of torch.save (``.pt .pth .tar .bin .ckpt``), safetensors, NumPy's ``.npz``, and folders of Hugging Face
(``checkpoint-N`` with config.json).
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechinterp.errors import MechinterpError
from mechinterp.files import is_run_file, read_regular

_TORCH = (".pt", ".pth", ".tar", ".bin", ".ckpt", ".pkl")
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
    np._core.multiarray.scalar,  # pyright: ignore[reportAttributeAccessIssue]
]
"""What checkpoints often have beside tensors and plain values, and whose construction runs no code of the file."""
_OF_FOLDER = ("model.safetensors", "pytorch_model.bin")


def read_checkpoint(path: Path) -> Any:
    """The content of a checkpoint file: tensors and plain values, nested; MechinterpError for any other file."""
    if not path.exists():
        raise MechinterpError(f"{path}: does not exist; give the path of a checkpoint")
    if path.is_dir():
        return _read_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors(path)
    if suffix == ".npz":
        return _read_npz(path)
    if suffix in _TORCH:
        return _read_torch(path)
    if is_run_file(path):
        raise MechinterpError(f"{path}: is a run file, which takes no import: mi.open_run opens it")
    known = ", ".join([*_TORCH, ".safetensors", ".npz"])
    raise MechinterpError(f"{path}: is no file of checkpoints by its name; known are {known}, and folders of them")


def settings_beside(path: Path) -> dict[str, Any] | None:
    """The settings of the network in the config.json of a folder of Hugging Face; None without one."""
    file = path / "config.json"
    if not path.is_dir() or not file.exists():
        return None
    return read_settings(file)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a network in a JSON file."""
    content = _json(path)
    if not isinstance(content, dict):
        raise MechinterpError(f"{path}: is no table of settings; give the network's settings by name")
    return content


def logged_numbers(path: Path, step: int) -> dict[str, float]:
    """The numbers that Hugging Face's Trainer logged last up to a step, from trainer_state.json; none without one."""
    file = path / "trainer_state.json"
    if not path.is_dir() or not file.exists():
        return {}
    content, numbers = _json(file), dict[str, float]()
    history = content.get("log_history") if isinstance(content, dict) else None
    for entry in history if isinstance(history, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("step"), int) and entry["step"] <= step:
            numbers |= {
                str(name): float(value)
                for name, value in entry.items()
                if name != "step" and isinstance(value, int | float) and re.fullmatch(r"[\w ]{1,80}", str(name))
            }
    return numbers


def is_state_dict(value: Any) -> bool:
    """Whether a value is a mapping of names to tensors."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(entry, Tensor) for entry in value.values())


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise MechinterpError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise MechinterpError(
                f"{path}: has an object of {found[1][:100]}, which only unpickling would rebuild, and that may run"
                " code: save the state dict alone, torch.save(model.state_dict(), …), and import that"
            ) from None
        raise MechinterpError(f"{path}: is no file of torch.save, or is damaged") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise MechinterpError(f"{path}: is no safetensors file, or is damaged ({str(error)[:100]})") from None


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
        raise MechinterpError(f"{path}: is no .npz file of numbers, or is damaged ({str(error)[:100]})") from None
    except Exception as error:  # zipfile.BadZipFile, zlib.error
        raise MechinterpError(f"{path}: is no .npz file, or is damaged ({type(error).__name__})") from None


def _read_folder(path: Path) -> dict[str, Tensor]:
    """The weights of a folder of Hugging Face, in one file or several."""
    for name in _OF_FOLDER:
        if (path / name).exists():
            return read_checkpoint(path / name)
        index = path / f"{name}.index.json"
        if index.exists():
            content = _json(index)
            parts = content.get("weight_map") if isinstance(content, dict) else None
            if not isinstance(parts, dict):
                raise MechinterpError(f"{index}: names no files of weights; save the model again")
            merged = dict[str, Tensor]()
            for part in sorted({str(part) for part in parts.values()}):
                if Path(part).name != part or not (path / part).is_file():
                    raise MechinterpError(
                        f"{index}: names {part[:80]!r}, which is no file beside it; save the model again"
                    )
                merged |= read_checkpoint(path / part)
            if merged.keys() != parts.keys():
                odd = min(merged.keys() ^ parts.keys())
                raise MechinterpError(f"{index}: {odd} is in the index or in the files alone; save the model again")
            return merged
    raise MechinterpError(f"{path}: is a folder without {' or '.join(_OF_FOLDER)}; give the files of checkpoints in it")


def _json(path: Path) -> Any:
    try:
        return json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        raise MechinterpError(f"{path}: is no JSON, or cannot be read; save the model again") from None
