"""All of what is fast, side by side with what else there is: ratios of interleaved runs, against those that were kept.

    python -m benchmarks [--only NAME …] [--rounds 5] [--keep]

Every row is a ratio of two times of the same round, ours over that of a reference: a loop of TransformerLens' model,
plain PyTorch, one call of `run_with_hooks` per cell, or the import of torch. A ratio that is 20 % worse than the kept
one (``benchmarks/ratios.json``) is marked, and says which change to look at: noise of a busy machine is less than that
where both take turns. `--keep` replaces the kept ratios. A run of `reddy2023-fast` is trained first, or given by --run.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyses._common import run_analysis
from benchmarks.timing import machine
from mechinterp.errors import unknown_name

KEPT = Path(__file__).with_name("ratios.json")
WORSE = 1.2
"""Times the kept ratio of one that is marked."""
RUN = "RUN"


@dataclass(frozen=True)
class Row:
    """A ratio that a benchmark prints."""

    benchmark: str
    """The module of `benchmarks`, with its arguments."""
    key: str
    """The keys of its JSON object to the number, with points between them."""
    what: str
    is_ours_over: bool = True
    """Whether the number is our time over the reference's; else it is the inverse."""


ROWS = (
    Row("step", "ratio", "training step / HookedTransformer's loop", False),
    Row("step", "ratio_autograd", "training step / autograd", False),
    Row("step", "share_of_matrix_products", "training step / its matrix products", False),
    *(
        Row("transformer", f"{case}.ours/plain", f"step of a network with {what} / plain PyTorch")
        for case, what in (("attention", "rotary positions"), ("mlp", "an MLP"), ("grokking", "full batches"))
    ),
    Row("transformer", "mlp.lens/ours", "step of a network with an MLP / HookedTransformer's", False),
    Row("transformer", "seeds_16.alone/together", "eight small networks in one batch / one after the other", False),
    Row("transformer", "patching_mlp.run_with_hooks/patch", "patching with an MLP / a loop of run_with_hooks", False),
    Row(f"patching {RUN}", "ratio", "patching / a loop of run_with_hooks", False),
    Row("recorder", "recorded_over_plain", "recorded loop / the loop alone"),
    *(
        Row(f"commands {RUN}", f"commands.{name}.over_torch", f"mechinterp {name} / import torch")
        for name in ("--help", "info", "emergence", "measure", "circuit --all", "patch --all", "paths --all")
    ),
    Row(f"commands {RUN}", "commands.ablate --all.over_torch", "mechinterp ablate --all / import torch"),
    Row(f"commands {RUN}", "commands.report.over_torch", "mechinterp report / import torch"),
)


@dataclass
class All:
    """Print every ratio beside the kept one."""

    only: tuple[str, ...] = ()
    """Benchmarks to run, as step; all by default."""
    run: Path | None = None
    """A run of reddy2023-fast; trained if none is given."""
    rounds: int = 5
    """Rounds of every benchmark."""
    keep: bool = False
    """Keep the ratios, with the machine."""
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> None:
        names = list(dict.fromkeys(row.benchmark.split()[0] for row in ROWS))
        for name in self.only:
            if name not in names:
                raise unknown_name("benchmark", name, names)
        rows = [row for row in ROWS if not self.only or row.benchmark.split()[0] in self.only]
        kept = json.loads(KEPT.read_text())["ratios"] if KEPT.is_file() else {}
        with tempfile.TemporaryDirectory() as folder:
            run = self.run or _trained(Path(folder) / "run.h5")
            results = {name: _result(name, run, self.rounds) for name in dict.fromkeys(row.benchmark for row in rows)}
        ratios = {row.what: round(_ratio(row, results[row.benchmark]), 3) for row in rows}
        if self.keep:
            KEPT.write_text(json.dumps({"machine": machine(), "ratios": kept | ratios}, indent=1) + "\n")
        print(json.dumps({"ratios": ratios, **machine()}) if self.json else table(ratios, kept))


def table(ratios: dict[str, float], kept: dict[str, float]) -> str:
    """A line for every ratio, with the kept one; those that are worse by `WORSE` are marked."""
    lines = [f"{'time over that of the reference':64}{'now':>9}{'kept':>9}"]
    for what, ratio in ratios.items():
        before = kept.get(what)
        mark = f"  {100 * (ratio / before - 1):+.0f} %: slower" if before and ratio > WORSE * before else ""
        lines.append(f"{what:64}{ratio:9.3f}{'' if before is None else f'{before:9.3f}'}{mark}")
    return "\n".join(lines)


def _trained(path: Path) -> Path:
    """A run of the preset, trained into a file."""
    command = [sys.executable, "-m", "mechinterp", "train", "--preset", "reddy2023-fast", "--out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def _result(benchmark: str, run: Path, rounds: int) -> dict[str, Any]:
    """What a benchmark prints."""
    name, *arguments = benchmark.replace(RUN, str(run)).split()
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--rounds", str(rounds), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def _ratio(row: Row, result: dict[str, Any]) -> float:
    """A row's number in a benchmark's result, as our time over the reference's."""
    value: Any = result
    keys = row.key.split(".") if row.key not in result else [row.key]
    for key in keys:
        value = value[key]
    return float(value) if row.is_ours_over else 1 / float(value)


if __name__ == "__main__":
    run_analysis(All)
