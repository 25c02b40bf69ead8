"""Commands that bring in checkpoints of other programs, and give ours to them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mechinterp.cli.common import Json, RunPath, Step, print_result
from mechinterp.cli.own_task import OwnTask, own_task
from mechinterp.errors import MechinterpError


@dataclass
class Import:
    """Make a run file of checkpoints that another program saved."""

    files: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="FILE [FILE …]",
            help="Files of torch.save, safetensors, .npz, folders of Hugging Face, or a pattern in quotes.",
        ),
    ]
    out: Path
    """The run file."""
    step: str | None = None
    """A regular expression with one group for the step in the path; by default the last number in the name."""
    every: int | None = None
    """Of a file with a list of state dicts: the distance of their steps; by default 1."""
    weights: str | None = None
    """The key under which a file has the state dict, dotted where it is nested."""
    rename: tuple[str, ...] = ()
    """New names of parameters, as OLD=NEW."""
    metrics: tuple[str, ...] = ()
    """Keys of numbers to keep with every checkpoint."""
    network: Path | None = None
    """A JSON file of the network's settings, for circuit analyses; by default config.json of a folder."""
    overwrite: bool = False
    """Replace the run file if it exists."""
    json: Json = False

    def execute(self) -> None:
        import warnings

        from mechinterp.exchange.files import read_settings
        from mechinterp.exchange.importer import EqualWeightsWarning, import_checkpoints

        if self.step is not None and self.every is not None:
            raise MechinterpError("--step and --every exclude each other; the second is of lists in one file")
        pairs = [pair.partition("=") for pair in self.rename]
        for old, equals, new in pairs:
            if not (old and equals and new):
                raise MechinterpError(f"--rename {old}{equals}{new}: expected OLD=NEW")
        with warnings.catch_warnings(record=True) as caught, _options_in_messages():
            warnings.simplefilter("always", EqualWeightsWarning)
            run = import_checkpoints(
                self.files,
                self.out,
                step=self.step if self.every is None else self.every,
                weights=self.weights,
                rename={old: new for old, _, new in pairs} or None,
                metrics=self.metrics or None,
                network=None if self.network is None else read_settings(self.network),
                overwrite=self.overwrite,
            )
        told = [str(entry.message) for entry in caught if issubclass(entry.category, EqualWeightsWarning)]
        origin, steps = run.origin, run.steps
        known = f"network: {origin.network['format']}" if origin.network else f"no known network: {origin.unknown}"
        result: dict[str, Any] = {"run": str(run.path), "steps": steps, "left_out": list(origin.left_out)}
        result |= {"network": origin.network, "unknown": origin.unknown, "warnings": told}
        lines = [f"{len(steps)} checkpoints, step {steps[0]:,} to {steps[-1]:,}: {run.path}", known, *told]
        if origin.left_out:
            lines.append(f"left out, as constants of the module: {', '.join(origin.left_out[:6])}, …"[:300])
        print_result(result, self.json, "\n".join(lines))


@contextmanager
def _options_in_messages() -> Iterator[None]:
    """Context in which an error of the import names the command's options instead of the function's arguments."""
    try:
        yield
    except MechinterpError as error:
        text = re.sub(r"\b([Gg]ive|by|another) (step|weights|rename|metrics)\b", r"\1 --\2", str(error))
        text = text.replace("--step, a function of the path", "--step, a regular expression with one group")
        raise type(error)(re.sub(r", a function (of|to) [^;,.]*| \(None\)", "", text)) from None


@dataclass
class Export:
    """Write checkpoints of a run in another program's format, or its measures as a table."""

    run: RunPath
    out: Path
    """A file (.safetensors, .pt), a folder (for the Hugging Face hub), or a table (.csv, .parquet). With several steps,
    a name with {step}."""
    steps: tuple[Step, ...] = ()
    """Saved steps, also first and last; by default the last."""
    all: bool = False
    """Every saved step."""
    format: Literal["safetensors", "state_dict", "transformer_lens", "hub"] | None = None
    """By default, the ending of the name says which."""
    task: OwnTask = None
    overwrite: bool = False
    """Replace what is there."""
    json: Json = False

    def execute(self) -> None:
        from mechinterp.exchange.export import ENDINGS
        from mechinterp.files import require_writable
        from mechinterp.run import open_run

        if self.all and self.steps:
            raise MechinterpError("--steps and --all exclude each other; give one of them")
        run, table = open_run(self.run, task=own_task(self.task)), self.out.suffix.lower() in (".csv", ".parquet")
        if table:
            from mechinterp.exchange.tables import write_table
            from mechinterp.measures import measure

            if self.format:
                raise MechinterpError(f"{self.out}: a table has no --format; the ending says which")
            require_writable(self.out, self.overwrite)
            values = measure(run, steps=self.steps or None, progress=True)
            paths = [write_table(values, self.out)]
        elif not self.format and self.out.suffix.lower() not in ("", *ENDINGS):
            known = f"{', '.join(ENDINGS)}, .csv or .parquet, or none for a folder"
            raise MechinterpError(f"{self.out}: ends with {self.out.suffix}; expected {known}; or give --format")
        else:
            steps = None if self.all else self.steps if len(self.steps) > 1 else (*self.steps, "last")[0]
            paths = run.export(steps, self.out, format=self.format, overwrite=self.overwrite)
        result = {"run": str(run.path), "files": [str(path) for path in paths]}
        print_result(result, self.json, "\n".join(str(path) for path in paths))
