"""The importer: files of checkpoints that another program wrote, as a run file.

mi.import_checkpoints("runs/step_*.pt", "x.h5")
"""

import glob
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mechinterp.errors import MechinterpError, require_integer
from mechinterp.exchange.files import is_state_dict, logged_numbers, read_checkpoint, settings_beside
from mechinterp.exchange.modules import (
    constants_of,
    layout_of,
    load_weights,
    parameter_names,
    require_constant,
    stored_state,
)
from mechinterp.exchange.origin import new_header, origin_of
from mechinterp.files import require_writable
from mechinterp.progress import tracked
from mechinterp.run import RecordedRun
from mechinterp.store import Contents, RunWriter
from mechinterp.store.layout import digest

Content = Any
"""What a checkpoint file holds."""
_PREFIXES = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before names."""


class EqualWeightsWarning(UserWarning):
    """Warning that checkpoints of different steps have the same weights."""


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint that is to be imported."""

    step: int
    path: Path
    index: int | None
    """Its place in a file of several."""

    def __str__(self) -> str:
        return str(self.path) if self.index is None else f"{self.path} [{self.index}]"


def import_checkpoints(
    source: str | Path | Iterable[str | Path],
    path: str | Path,
    *,
    step: str | int | Sequence[int] | Callable[..., Any] | None = None,
    weights: str | Callable[[Content], Any] | None = None,
    rename: Mapping[str, str] | Callable[[str], str | None] | None = None,
    metrics: Sequence[str] | Callable[..., Mapping[str, float]] | None = None,
    network: object | None = None,
    build: Callable[[], nn.Module] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> RecordedRun:
    """Write checkpoints that another program saved to a run file at `path`; returns the opened run.

    `source` is a pattern of paths, a path, or several: files of torch.save, safetensors, ``.npz``, folders of Hugging
    Face (``checkpoint-N``), or one file with a list of state dicts. No code in them is run (`exchange.files`).

    * `step`: a regular expression with a group for the number in the path, or a function of the path, or of the path
      and the content; by default the number after "step", or the only number in which the names differ. Of a list in
      one file: the steps, such a function that returns them, their distance, or by default 0, 1, 2, ….
    * `weights`: where the state dict is in the content, as a key (``"model"``, dotted where it is nested) or a function
      of the content; by default the content, or its only entry that is a state dict.
    * `rename`: new names of parameters; a function may return None to leave one out.
    * `metrics`: numbers to keep with every checkpoint, as keys of the content, or a function of the content, or of the
      content and the step. A list beside a list of state dicts has one number for each. Those that Hugging Face's
      Trainer has logged are kept by themselves.
    * `network`: the settings of the network (`models.foreign`), which circuit analyses need; `build`: makes the module.
      By default config.json of a folder.

    Constants such as masks are left out. Names, shapes and types must be the same in all; weights that are not finite,
    and a step that occurs twice, raise, with the file. Equal weights at different steps give an EqualWeightsWarning.
    The file appears when all checkpoints are in it.
    """
    require_writable(Path(path), overwrite)
    module, sources = build() if build else None, _paths(source)
    reader = _Reader(weights, rename, metrics, module)
    if Path(path).resolve() in {source.resolve() for source in sources}:
        raise MechinterpError(f"{path}: is one of the files to import; choose another name for the run file")
    numbers: Any = step
    numbers = numbers.tolist() if hasattr(numbers, "tolist") else numbers  # of an array
    checkpoints = _ordered(_listed(sources, numbers, reader))
    first = checkpoints[0]
    state = reader.state(first)
    constants = constants_of(state, parameter_names(module).values() if module is not None else None)
    if not state.keys() - {*constants}:
        raise MechinterpError(f"{first}: no parameter is left to import; give weights, or another rename")
    values, left_out = stored_state(state, constants), {name: state[name] for name in constants}
    if module is not None:
        load_weights(module, values, constants, str(first))
    settings = settings_beside(first.path) if network is None and module is None else network
    origin = origin_of("imported", values, constants, module=module, settings=settings, given=network is not None)
    names = tuple(dict.fromkeys(name for checkpoint in checkpoints for name in reader.metrics(checkpoint)))
    contents = Contents.checked(Path(path), weights=layout_of(values), metrics=names)
    seen: dict[bytes, _Checkpoint] = {}
    equal: list[tuple[_Checkpoint, _Checkpoint]] = []
    with RunWriter(path, new_header(contents, origin, len(checkpoints)), overwrite=overwrite, live=False) as writer:
        for checkpoint in tracked(checkpoints, "checkpoint", shown=progress):
            state = reader.state(checkpoint)
            values = stored_state(state, constants)
            _require_same(checkpoint, values, first, contents)
            require_constant(left_out, state, str(checkpoint))
            for name, value in values.items():
                if not bool(value.isfinite().all()):
                    raise MechinterpError(
                        f"{checkpoint}: {name} is not finite; leave out this file, or the name, by rename (None)"
                    )
            writer.append(checkpoint.step, values, reader.metrics(checkpoint))
            key = digest(values)
            if key in seen:
                equal.append((seen[key], checkpoint))
            seen.setdefault(key, checkpoint)
    if equal:
        pairs = "; ".join(f"{one} (step {one.step}) and {two} (step {two.step})" for one, two in equal[:5])
        more = f"; and {len(equal) - 5} more" if len(equal) > 5 else ""
        message = f"{path}: has equal weights at different steps: {pairs}{more}. Were they saved as they should be?"
        warnings.warn(message, EqualWeightsWarning, stacklevel=2)
    return RecordedRun(path, build=build)


class _Reader:
    """Reads a checkpoint's state dict and numbers as the caller says; keeps the content of the last file."""

    def __init__(self, weights: Any, rename: Any, metrics: Any, module: nn.Module | None):
        self._weights, self._rename, self._metrics = weights, rename, metrics
        self._module_names = list(module.state_dict()) if module is not None else []
        self._path: Path | None = None
        self._content: Content = None
        self._selected: Any = None

    def content(self, path: Path) -> Content:
        """The content of a file."""
        if path != self._path:
            self._path, self._content, self._selected = path, read_checkpoint(path), None
        return self._content

    def selected(self, path: Path) -> Any:
        """The state dict in a file, or a list of several."""
        content = self.content(path)
        if self._selected is not None:
            return self._selected
        if not (self._weights is None or isinstance(self._weights, str) or callable(self._weights)):
            raise MechinterpError(f"weights is {self._weights!r}; give a key of the content, or a function of it")
        if callable(self._weights):
            found = self._weights(content)
        elif self._weights is not None:
            found = _entry(content, self._weights, path)
        else:
            found = _only_weights(content, path)
        if not (is_state_dict(found) or _is_list(found)):
            raise MechinterpError(
                f"{path}: weights gives a {type(found).__name__}; expected a state dict of tensors, or a list of them"
            )
        self._selected = found
        return found

    def state(self, checkpoint: _Checkpoint) -> dict[str, Tensor]:
        """The state dict of a checkpoint, renamed."""
        found = self.selected(checkpoint.path)
        state = {
            str(name): value for name, value in (found if checkpoint.index is None else found[checkpoint.index]).items()
        }
        for name, value in state.items():
            if not value.is_meta and value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise MechinterpError(f"{checkpoint}: {name} declares more numbers than the file has; save it again")
        while prefix := next((prefix for prefix in _PREFIXES if self._strips(prefix, state)), None):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
        if self._rename is None:
            return state
        if not (isinstance(self._rename, Mapping) or callable(self._rename)):
            raise MechinterpError(
                f"rename is {self._rename!r}; give new names by the old ones, or a function of the name"
            )
        if isinstance(self._rename, Mapping) and (odd := sorted({*self._rename} - {*state})):
            raise MechinterpError(f"{checkpoint}: rename has {odd[0]!r}, which is no name of a parameter there")
        renamed = dict[str, Tensor]()
        for name, value in state.items():
            new = self._rename.get(name, name) if isinstance(self._rename, Mapping) else self._rename(name)
            if new in renamed:
                raise MechinterpError(f"{checkpoint}: rename makes {new!r} of two parameters, the second is {name!r}")
            if new is not None:
                renamed[str(new)] = value
        return renamed

    def _strips(self, prefix: str, state: Mapping[str, Tensor]) -> bool:
        """Whether all names have a prefix that is not one of the module's own names."""
        own = bool(self._module_names) and all(name.startswith(prefix) for name in self._module_names)
        return not own and all(name.startswith(prefix) for name in state)

    def metrics(self, checkpoint: _Checkpoint) -> dict[str, float]:
        """The numbers that are kept with a checkpoint."""
        values: Any = logged_numbers(checkpoint.path, checkpoint.step)
        if callable(self._metrics):
            content = self.content(checkpoint.path)
            two = len(signature(self._metrics).parameters) > 1
            values = self._metrics(content, checkpoint.step) if two else self._metrics(content)
        elif self._metrics is not None:
            content = self.content(checkpoint.path)
            values = {name: _entry(content, name, checkpoint.path) for name in self._metrics}
        if not isinstance(values, Mapping):
            raise MechinterpError(f"{checkpoint}: metrics returns {str(values)[:80]!r}; expected numbers by name")
        if checkpoint.index is not None:
            values = {name: self._own(name, value, checkpoint) for name, value in values.items()}
        try:
            return {str(name): float(value) for name, value in values.items()}
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise MechinterpError(f"{checkpoint}: metrics are {str(values)[:100]}; expected numbers by name") from None

    def _own(self, name: str, value: Any, checkpoint: _Checkpoint) -> Any:
        """The value of a checkpoint in a list of one for each; another value as it is."""
        if checkpoint.index is None or not _is_long(value):
            return value
        if len(value) != (count := len(self.selected(checkpoint.path))):
            raise MechinterpError(
                f"{checkpoint.path}: {name} has {len(value)} numbers for {count} checkpoints; give metrics, a function"
                " of the content and the step, which picks that of a step"
            )
        return value[checkpoint.index]


def _paths(source: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files and folders that a source names."""
    named = [source] if isinstance(source, str | Path) else list(source)
    paths = list[Path]()
    for name in named:
        if Path(name).exists():
            folder = Path(name)
            steps = sorted(path for path in folder.glob("checkpoint-[0-9]*") if path.is_dir())
            paths += steps or [folder]
        else:
            found = sorted(glob.glob(str(name), recursive=True))
            if not found:
                raise MechinterpError(f"{name}: no file is there; give a path, or a pattern such as 'runs/step_*.pt'")
            paths += map(Path, found)
    if not paths:
        raise MechinterpError("there is nothing to import; give a path, or a pattern such as 'runs/step_*.pt'")
    return paths


def _listed(paths: list[Path], step: Any, reader: _Reader) -> Iterator[_Checkpoint]:
    """The checkpoints of the files."""
    if len(paths) == 1 and _is_list(found := reader.selected(paths[0])):
        count = len(found)
        steps = _called(step, paths[0], reader) if callable(step) else step
        if not isinstance(steps, Sequence) or isinstance(steps, str):
            if steps is not None and not isinstance(steps, int):
                raise MechinterpError(f"{paths[0]}: has a list of {count}; give their steps, or the distance of steps")
            steps = range(0, count * (steps or 1), steps or 1)
        if len(steps) != count:
            raise MechinterpError(f"{paths[0]}: has {count} checkpoints, and step names {len(steps)}")
        for index, number in enumerate(steps):
            yield _Checkpoint(require_integer("a step", number, 0), paths[0], index)
        return
    step = [step] if isinstance(step, int) and len(paths) == 1 else step
    if isinstance(step, int) or (isinstance(step, Sequence) and not isinstance(step, str)):
        if isinstance(step, int) or len(step) != len(paths):
            raise MechinterpError(f"step is {step!r} for {len(paths)} files; give a pattern or a function of the path")
        for path, number in zip(paths, step, strict=True):
            yield _Checkpoint(require_integer("a step", number, 0), path, None)
        return
    if step is None:
        yield from (_Checkpoint(number, path, None) for path, number in zip(paths, _numbers(paths), strict=True))
        return
    for path in paths:
        yield _Checkpoint(_step_of(path, step, reader), path, None)


def _numbers(paths: list[Path]) -> list[int]:
    """The steps in the names of files: the number after step or iter, or else the only one that differs between files.

    A single file has one number in its name.
    """
    names = [path.name if path.is_dir() else path.stem for path in paths]
    marked = [re.findall(r"(?:step|iter|iteration|checkpoint)[s=_-]*(\d+)", name, re.IGNORECASE) for name in names]
    if all(len(found) == 1 for found in marked):
        return [int(found[0]) for found in marked]
    numbers = [re.findall(r"\d+", name) for name in names]
    for path, found in zip(paths, numbers, strict=True):
        if not found:
            raise MechinterpError(f"{path}: has no number in its name; give step, a function of the path")
    columns = [*zip(*numbers, strict=True)] if len({len(found) for found in numbers}) == 1 else []
    varying = [column for column in columns if len(columns) == 1 or len({*column}) > 1]
    if len(varying) != 1:
        raise MechinterpError(
            f"{paths[0]}: which number of the names is the step? Give step, a regular expression such as 'step(\\d+)'"
        )
    return [int(number) for number in varying[0]]


def _called(step: Callable[..., Any], path: Path, reader: _Reader) -> Any:
    """What a function of the path, or of the path and the content, returns."""
    return step(path, reader.content(path)) if len(signature(step).parameters) > 1 else step(path)


def _step_of(path: Path, step: Any, reader: _Reader) -> int:
    """The step of a file with one checkpoint."""
    if callable(step):
        return require_integer(f"{path}: step", _called(step, path, reader), 0)
    try:
        found = re.search(step, str(path))
    except re.error as error:
        raise MechinterpError(f"step = {step!r} is no regular expression ({error})") from None
    if not found or not found.groups() or not (found[1] or "").isdecimal():
        raise MechinterpError(f"{path}: step = {step!r} finds no number; give a pattern with one group, as '_(\\d+)'")
    return int(found[1])


def _ordered(checkpoints: Iterable[_Checkpoint]) -> list[_Checkpoint]:
    """The checkpoints by ascending step, of which none occurs twice."""
    ordered = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
    if ordered[-1].step >= 1 << 60:
        raise MechinterpError(f"{ordered[-1]}: step {ordered[-1].step} is too large; give step")
    step, count = Counter(checkpoint.step for checkpoint in ordered).most_common(1)[0]
    if count > 1:
        both = " and ".join(str(checkpoint) for checkpoint in ordered if checkpoint.step == step)
        raise MechinterpError(
            f"{both[:300]} are both of step {step}; narrow the pattern, or give step, which tells them apart"
        )
    return ordered


def _only_weights(content: Content, path: Path) -> Any:
    """The content, if it is a state dict or a list of them, or the only entry of it that is."""
    if is_state_dict(content) or _is_list(content):
        return content
    if not isinstance(content, Mapping):
        raise MechinterpError(f"{path}: holds a {type(content).__name__}; give weights, a function to its state dict")
    found = [str(key) for key, value in content.items() if is_state_dict(value) or _is_list(value)]
    if len(found) != 1:
        keys = ", ".join(found or map(str, content))[:300]
        what = "several state dicts" if found else "no state dict at its top"
        raise MechinterpError(f"{path}: has {what}, under {keys}; name one by weights")
    return content[next(key for key in content if str(key) == found[0])]


def _entry(content: Content, key: str, path: Path) -> Any:
    """The entry of a nested mapping under a dotted key; a key that has dots itself is found first."""
    if isinstance(content, Mapping) and key in content:
        return content[key]
    first, dot, rest = key.partition(".")
    if not dot or not isinstance(content, Mapping) or first not in content:
        known = ", ".join(map(str, content))[:200] if isinstance(content, Mapping) else type(content).__name__
        raise MechinterpError(f"{path}: has no {key!r}; it has {known}")
    return _entry(content[first], rest, path)


def _require_same(
    checkpoint: _Checkpoint, values: Mapping[str, Tensor], first: _Checkpoint, contents: Contents
) -> None:
    """MechinterpError unless a checkpoint has the names, shapes and types of the first."""
    layout = layout_of(values)
    if odd := sorted(layout.keys() ^ contents.weights.keys()):
        where = (checkpoint, first) if odd[0] in layout else (first, checkpoint)
        raise MechinterpError(f"{where[0]} has {odd[0]}, and {where[1]} has not; import checkpoints of one network")
    for name, array in layout.items():
        if array != (before := contents.weights[name]):
            raise MechinterpError(
                f"{checkpoint}: {name} is {array.shape} {array.dtype}, in {first} {before.shape} {before.dtype};"
                " import checkpoints of one network"
            )


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(is_state_dict(entry) for entry in value)


def _is_long(value: Any) -> bool:
    return isinstance(value, Sequence) or (isinstance(value, torch.Tensor) and value.ndim == 1)
