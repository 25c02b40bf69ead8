"""How far long work is: a bar in a terminal or a notebook, and elsewhere a line now and then.

All of it goes to standard error, so that results alone are on standard output.
"""

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

SECONDS = 30.0
"""Time between two lines where no bar can be drawn."""


_quiet = False


def be_quiet(quiet: bool = True) -> None:
    """Show no progress in this process from now on, whatever asks for it; warnings are still said."""
    global _quiet
    _quiet = quiet


class _Display(Protocol):
    """What is shown of the progress."""

    def update(self, n: int = 1) -> Any: ...

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> Any: ...

    def close(self) -> Any: ...


class Progress:
    """The progress of some work, as a context manager: `advance` counts, `note` adds numbers to what is shown."""

    def __init__(self, unit: str, total: int | None = None, *, done: int = 0, shown: bool = True):
        """`unit` names one of the `total` parts of the work, of which `done` are done. Nothing is printed unless it is
        `shown`."""
        self._display: _Display | None = None
        if not shown or _quiet or sys.stderr is None:
            return
        if sys.stderr.isatty() or in_notebook():
            self._display = _bar()(total=total, initial=done, unit=unit, mininterval=0.5)
        else:
            self._display = Lines(unit, total, done)

    def advance(self, n: int = 1) -> None:
        """Count n more parts as done."""
        if self._display is not None:
            self._display.update(n)

    def note(self, **numbers: float) -> None:
        """Show numbers beside the progress, to three digits."""
        if self._display is not None:
            text = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
            self._display.set_postfix_str(text, refresh=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._display is not None:
            self._display.close()


class Lines:
    """Progress as a line every `SECONDS`, for a log: ``step 300 of 3,000, 1.8 steps/s, 25 min left``."""

    def __init__(self, unit: str, total: int | None, done: int):
        self._unit, self._total, self._done, self._first, self._note = unit, total, done, done, ""
        self._start = self._last = time.monotonic()

    def update(self, n: int = 1) -> None:
        """Count n more, and print a line if it is time."""
        is_first = self._done == self._first  # in whose time kernels may be compiled: it tells nothing of the others
        self._done += n
        if (now := time.monotonic()) - self._last >= SECONDS:
            self._last = now
            say(self.line(None if is_first else now - self._start))

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """The text that ends the next lines."""
        self._note = s

    def line(self, seconds: float | None) -> str:
        """The state after so many seconds of work; without them, no rate is given."""
        of = f" of {self._total:,}" if self._total else ""
        parts = [f"{self._unit} {self._done:,}{of}"]
        if rate := (self._done - self._first) / seconds if seconds else 0.0:
            parts.append(f"{rate:.1f} {self._unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s per {self._unit}")
            if self._total:
                parts.append(f"{_duration((self._total - self._done) / rate)} left")
        return ", ".join([*parts, *([self._note] if self._note else [])])

    def close(self) -> None:
        """Nothing is left to print: what was done says its own end."""


def tracked(items: Sequence[Item], unit: str, *, shown: bool = True) -> Iterator[Item]:
    """The items, one after the other, with the progress shown."""
    with Progress(unit, len(items), shown=shown) as progress:
        for item in items:
            yield item
            progress.advance()


def say(message: str) -> None:
    """Print a line on standard error, if there is one, above a bar."""
    if sys.stderr is not None:
        tqdm.write(message, file=sys.stderr)


def announce(message: str) -> None:
    """Say that something long begins, unless progress is not to be shown."""
    if not _quiet:
        say(message)


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, whose standard error shows a bar although it is no terminal."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython.get_ipython(), "kernel") if ipython else False


def _bar() -> Any:
    """The class of bars: a widget where the notebook has ipywidgets, else text.

    It is imported here, as it takes longer than tqdm itself.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a notebook has no ipywidgets: the bar is text then
        from tqdm.auto import tqdm as automatic
    return automatic


def _duration(seconds: float) -> str:
    """A time in the largest unit of which it has two."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
