"""The command: python -m benchmarks.faults {power,kills,errors,pauses,readers,fuzz,fuzz-sides}."""

import errno
import json
import shutil
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Annotated, Union

import numpy as np
import torch
import tyro

import mechinterp as mi
from benchmarks.faults import scenarios
from benchmarks.faults.disk import Disk, read_log
from benchmarks.faults.processes import Ended, Fault, Processes
from mechinterp.cli import run_command
from mechinterp.errors import MechinterpError

SCENARIOS = (
    *("train", "grow", "resume", "train_and_prolong"),
    *("overwrite", "densify", "keep_last", "analyse", "export"),
)


@dataclass
class Outcome:
    """Counts of what happened, and the first cases of each kind that must not be."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def add(self, scenario: str, case: str, *, bad: list[str], good: str) -> None:
        """Count a case as `good`, or as each of the `bad` things that happened."""
        for what in bad or [good]:
            self.counts[f"{scenario}: {what}"] += 1
            if bad:
                self.faults.setdefault(f"{scenario}: {what.split(' (')[0]}", []).append(case)

    def show(self, as_json: bool) -> int:
        """Print the counts; the exit code, 1 if anything was bad."""
        first = {what: cases[:3] for what, cases in self.faults.items()}
        lines = [f"{n:7,}  {what}" for what, n in sorted(self.counts.items())]
        lines += [f"   BAD   {what}: {'; '.join(cases)}" for what, cases in first.items()]
        print(json.dumps({"counts": self.counts, "bad": first}) if as_json else "\n".join(lines))
        return int(bool(self.faults))


@dataclass
class _Harness:
    json: bool = False
    """Print one JSON object."""


@dataclass
class Power(_Harness):
    """Cut the power at random moments of a training run that is then prolonged."""

    cuts: int = 600
    """Number of power losses, half of them with units of 512 bytes, half with 4,096."""
    seed: int = 0

    def execute(self) -> int:
        torch.set_num_threads(1)  # as in the process that was recorded
        outcome, rng = Outcome(), np.random.default_rng(self.seed)
        with tempfile.TemporaryDirectory() as name, Processes(Path(name)) as processes:
            for scenario in ("train_and_prolong", "grow"):
                path, log = Path(name) / scenario / "run.h5", Path(name) / f"{scenario}.log"
                path.parent.mkdir()
                ended = processes.run(scenario, path, Fault.LOG, log=log)
                assert (ended.error, ended.trace) == (None, None), ended
                expected = {step: mi.open_run(path).digest(step) for step in mi.open_run(path).steps}
                changes, disk, acknowledged = read_log(log), Disk(), list[int]()
                moments = sorted(int(m) for m in rng.integers(len(changes) + 1, size=self.cuts // 2))
                for at in range(len(changes) + 1):
                    for _ in range(moments.count(at)):
                        unit = (512, 4096)[int(rng.integers(2))]
                        files = disk.after_power_loss(rng, unit)
                        bad, good = _after_power_loss(files, path, acknowledged, expected)
                        outcome.add(f"power, {scenario}", f"change {at}, units of {unit}", bad=bad, good=good)
                    if at < len(changes):
                        if changes[at].kind == "A":
                            acknowledged.append(int(changes[at].data.split()[0]))
                        else:
                            disk.apply(changes[at])
                real = path.read_bytes()
                assert disk.files[disk.names[str(path)]].current == real, "the log is not all that was written"
        return outcome.show(self.json)


def _after_power_loss(
    files: dict[str, bytes], path: Path, acknowledged: list[int], expected: dict[int, str]
) -> tuple[list[str], str]:
    """What is wrong with the files that a power loss left, if anything, and what they are otherwise."""
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / Path(file).name).write_bytes(content)
        here = Path(name) / path.name
        if not here.exists():
            return (["acknowledged checkpoints lost"] if acknowledged else []), "no file yet"
        bad = _misread(here, acknowledged, expected)
        try:
            with redirect_stderr(StringIO()):
                run = scenarios.go_on(here, until=max(expected), progress=False)
            if any(run.digest(step) != digest for step, digest in expected.items() if step in run.steps):
                bad.append("resumed to other bits")
        except MechinterpError as error:
            if "stop rule" not in str(error):
                bad.append(f"resume refused ({error})".replace(name, "")[:150])
        except Exception as error:
            bad.append(f"resume failed ({type(error).__name__})")
        return bad, "all acknowledged checkpoints there, resumed to the same bits"


def _misread(path: Path, acknowledged: list[int], expected: dict[int, str]) -> list[str]:
    """What is wrong with a file that a run has left: checkpoints that are lost or wrong."""
    try:
        run = mi.open_run(path)
        steps = run.steps
        bad = [] if {*acknowledged} <= {*steps} else ["acknowledged checkpoints lost"]
        if any(scenarios.digest(run.weights(step)) != expected.get(step) for step in steps):
            bad.append("wrong weights")
        return bad
    except MechinterpError as error:
        return [f"unreadable ({error})".replace(str(path.parent), "")[:150]]
    except Exception as error:
        return [f"reading failed ({type(error).__name__})"]


@dataclass
class Kills(_Harness):
    """Kill the process at every change of a file, and tear every write, in every scenario."""

    every: int = 1
    """Only every so-manyth change."""
    scenarios: tuple[str, ...] = SCENARIOS

    def execute(self) -> int:
        return _strike(self, [(Fault.KILL, 0), (Fault.TEAR, 0)]).show(self.json)


@dataclass
class Errors(_Harness):
    """Fail every change of a file, once or from then on, with ENOSPC or EIO, and every sync."""

    every: int = 1
    """Only every so-manyth change."""
    scenarios: tuple[str, ...] = SCENARIOS

    def execute(self) -> int:
        kinds = [(Fault.FAIL_ON, errno.ENOSPC), (Fault.FAIL_ONCE, errno.EIO), (Fault.FAIL_ON, errno.EIO)]
        return _strike(self, [*kinds, (Fault.FAIL_SYNC, errno.EIO)]).show(self.json)


def _strike(harness: "Kills | Errors", kinds: list[tuple[Fault, int]]) -> Outcome:
    """Every scenario with every fault at every change."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name, Processes(Path(name)) as processes:
        folder, log = Path(name), Path(name) / "acknowledged"
        trained = folder / "trained" / "run.h5"
        trained.parent.mkdir()
        assert processes.run("train", trained).signal == 0
        for scenario in harness.scenarios:
            whole = folder / f"whole-{scenario}" / "run.h5"
            whole.parent.mkdir()
            scenarios.prepare(scenario, whole, trained)
            log.write_text("")
            n_changes = processes.run(scenario, whole, Fault.KILL, 1 << 40, log=log).changes
            assert n_changes > 0, scenario
            appends = scenario in ("train", "grow", "resume", "train_and_prolong", "overwrite")
            assert bool(log.read_text()) == appends, "what is acknowledged is not recorded"
            for fault, number in kinds:
                for at in range(1, n_changes + 1, harness.every):
                    here = folder / "case" / "run.h5"
                    here.parent.mkdir()
                    scenarios.prepare(scenario, here, trained)
                    log.write_text("")
                    ended = processes.run(scenario, here, fault, at, number, log=log)
                    acknowledged = {int(line.split()[0]) for line in log.read_text().splitlines()}
                    case = f"{fault.name} {errno.errorcode.get(number, '')} at change {at}"
                    what = f"{fault.name.lower()} {errno.errorcode.get(number, '')}".strip()
                    bad, good = _after_strike(processes, scenario, here, ended, fault, trained, whole, acknowledged)
                    outcome.add(f"{scenario}, {what}", case, bad=bad, good=good)
                    shutil.rmtree(here.parent)
    return outcome


def _after_strike(
    processes: Processes,
    scenario: str,
    path: Path,
    ended: Ended,
    fault: Fault,
    trained: Path,
    whole: Path,
    acknowledged: set[int],
) -> tuple[list[str], str]:
    """What is wrong with the files that a struck process has left, if anything, and what they are otherwise."""
    kills = fault in (Fault.KILL, Fault.TEAR)
    bad = [] if ended.trace is None else [f"traceback ({ended.trace.strip().splitlines()[-1][:120]})"]
    if ended.signal and not kills:
        bad.append(f"crash (signal {ended.signal})")
    if ended.error and ("\n" in ended.error or len(ended.error) > 500):
        bad.append(f"message of several lines ({ended.error[:80]})")
    before, after = _digests(trained) or {}, _digests(whole) or {}
    present = _digests(path) if path.exists() else {}
    if present is None:
        return [*bad, "unreadable"], ""
    starts_empty = scenario in ("train", "grow", "train_and_prolong")
    if scenario == "keep_last":
        whole_ones = present in (before, after) and mi.open_run(path).status == "complete"
    elif scenario == "overwrite":
        whole_ones = bool(present)
    else:
        whole_ones = starts_empty or before.items() <= present.items()
    if not (whole_ones and acknowledged <= present.keys()):
        bad.append("checkpoints lost")
    if present and not (present.items() <= after.items() or present.items() <= before.items()):
        bad.append("wrong weights")
    for file in path.parent.rglob("[!.]*"):
        there = whole.parent / file.relative_to(path.parent)
        if file.is_file() and file.suffix != ".h5" and file.read_bytes() != there.read_bytes():
            bad.append(f"another {file.suffix} file")
    try:
        again = processes.run("resume" if present else scenario, path)
    except ValueError as error:
        return [*bad, f"the next start failed ({error})"], ""
    if again.trace or again.error or again.signal:
        bad.append(
            f"the next start failed ({again.error or again.trace or again.signal})"[:160].replace(str(path.parent), "")
        )
    left = sorted(entry.name for entry in path.parent.iterdir() if entry.name.startswith(".run.h5"))
    if left:
        bad.append(f"left behind: {', '.join(left)}")
    return bad, "as it was or further, and goes on" if kills else "an error in one line, or none; goes on"


def _digests(path: Path) -> dict[int, str] | None:
    """The digests of all weights of a run, as read; None if it cannot be read."""
    try:
        run = mi.open_run(path)
        return {step: scenarios.digest(run.weights(step)) for step in run.steps}
    except MechinterpError:
        return None


@dataclass
class Pauses(_Harness):
    """Pause a writer at every change of a file, let another finish meanwhile, and then go on with the first."""

    every: int = 1
    """Only every so-manyth change."""

    def execute(self) -> int:
        outcome = Outcome()
        with tempfile.TemporaryDirectory() as name, Processes(Path(name)) as first, Processes(Path(name)) as second:
            trained, pause, runs = Path(name) / "trained" / "run.h5", Path(name) / "paused", list[dict[int, str]]()
            for steps in (("train", "overwrite", "resume", "densify"), ("train", "resume", "densify"), ("train",)):
                shutil.rmtree(trained.parent, ignore_errors=True)
                trained.parent.mkdir()
                assert all(first.run(scenario, trained).error is None for scenario in steps)
                runs.append(_digests(trained) or {})
            for paused, other in _RIVALS:
                at, reached = 0, True
                while reached:
                    at += self.every
                    here = Path(name) / "case" / "run.h5"
                    here.parent.mkdir()
                    scenarios.prepare(paused, here, trained)
                    first.start(paused, here, Fault.PAUSE, at, log=pause)
                    while not (pause.exists() or first.has_result()):
                        time.sleep(0.001)
                    if reached := pause.exists():
                        others = second.run(other, here)
                        pause.unlink()
                        ended = first.result()
                        bad = _after_pause(here, [(paused, ended), (other, others)], runs)
                        good = " / ".join(f"{one.error or 'done'}"[-30:] for one in (ended, others))
                        outcome.add(f"pause of {paused}, {other} meanwhile", f"change {at}", bad=bad, good=good)
                    else:
                        first.result()
                    shutil.rmtree(here.parent)
        return outcome.show(self.json)


_RIVALS = (
    *(("train", "train"), ("train", "overwrite"), ("resume", "resume"), ("resume", "overwrite")),
    *(("overwrite", "resume"), ("overwrite", "overwrite"), ("keep_last", "resume"), ("resume", "keep_last")),
    *(("densify", "densify"), ("densify", "overwrite"), ("overwrite", "densify")),
)


def _after_pause(path: Path, ended: list[tuple[str, Ended]], runs: list[dict[int, str]]) -> list[str]:
    """What is wrong with the file that two writers have left, each of which has succeeded or said why not.

    `runs` are the digests of the other run prolonged, of the run before prolonged, and of that run as it was.
    """
    another, same, before = runs
    bad = [f"traceback ({one.trace.strip().splitlines()[-1][:120]})" for _, one in ended if one.trace]
    bad += [f"crash (signal {one.signal})" for _, one in ended if one.signal]
    done = {name for name, one in ended if not (one.error or one.trace or one.signal)}
    present = _digests(path)
    if present is None:
        return [*bad, "unreadable"]
    if not (present.items() <= same.items() or present.items() <= another.items()):
        bad.append("wrong weights, or a mixture of two runs")
    if not done & {"overwrite", "keep_last"} and not before.items() <= present.items():
        bad.append("checkpoints lost")
    marks = {"train": {40}, "overwrite": {40}, "resume": {80}, "keep_last": set[int](), "densify": {3, 4, 5, 7, 8, 9}}
    if not any(marks[name] <= present.keys() for name in done):
        bad.append("neither has done its work")
    left = sorted(entry.name for entry in path.parent.iterdir() if entry.name.startswith(".run"))
    return bad + ([f"left behind: {', '.join(left)}"] if left else [])


@dataclass
class Readers(_Harness):
    """Let processes read a file while it is trained, resumed, exchanged, cut off, damaged and deleted."""

    changes: int = 300
    """Number of changes; an exchange, a cut, damage and a deletion are made ten or twenty times each."""
    readers: int = 5
    seed: int = 0

    def execute(self) -> int:
        from benchmarks.faults.readers import watched

        outcome = Outcome()
        scenarios.warm_up()
        with tempfile.TemporaryDirectory() as name:
            outcome.counts = watched(Path(name) / "run", self.changes, self.readers, self.seed)
        outcome.faults = {what: [str(n)] for what, n in outcome.counts.items() if what.startswith("BAD")}
        return outcome.show(self.json)


@dataclass
class Fuzz:
    """Change bytes and structure of a run file, and put it through what a user does with it (`fuzz`)."""

    byte_mutants: int = 10_000
    structure_mutants: int = 3_000
    thorough_every: int = 20
    """Every so-manyth mutant is also drawn and reported on; 0: none is."""
    seed: int = 0
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> int:
        from benchmarks.faults import fuzz

        outcome = Outcome()
        torch.set_num_threads(1)  # forked processes must not use a thread pool of their parent
        scenarios.warm_up()
        with tempfile.TemporaryDirectory() as name:
            path, good = Path(name) / "mutant.h5", Path(name) / "good.h5"
            run = mi.train(scenarios.CONFIG, good, progress=False)
            expected = {step: run.digest(step) for step in run.steps}
            content = good.read_bytes()
            thorough = bool(self.thorough_every)
            fuzz.use(good, expected, thorough=False)  # imports and compiles everything
            for module in ("report", "models.hooked"):  # not executed: autograd's threads do not survive a fork
                import_module(f"mechinterp.{module}")
            use = partial(fuzz.use, good, expected, thorough=thorough)
            assert (faults := fuzz.examine(use, 4 * fuzz.SECONDS)) == [], faults
            for kind, count in (("bytes", self.byte_mutants), ("structure", self.structure_mutants)):
                for number in range(count):
                    rng = np.random.default_rng([self.seed, number, kind == "bytes"])
                    path.write_bytes(fuzz.byte_mutant(content, rng) if kind == "bytes" else content)
                    what = fuzz.structure_mutant(path, rng) if kind == "structure" else ""
                    thorough = bool(self.thorough_every) and number % self.thorough_every == 0
                    use = partial(fuzz.use, path, expected, thorough=thorough)
                    bad = fuzz.examine(use, fuzz.SECONDS * (4 if thorough else 1))
                    outcome.add(
                        f"fuzz, {kind}", f"mutant {number} {what}", bad=bad, good="refused in a line, or read right"
                    )
        return outcome.show(self.json)


@dataclass
class FuzzSides:
    """Change bytes of the files beside runs: outcomes, tables, index and caches."""

    mutants: int = 2_000
    seed: int = 0
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> int:
        from benchmarks.faults import fuzz
        from benchmarks.faults.sides import Sides

        outcome = Outcome()
        torch.set_num_threads(1)  # forked processes must not use a thread pool of their parent
        with tempfile.TemporaryDirectory() as name:
            sides = Sides(Path(name))
            assert (faults := fuzz.examine(sides.use)) == [], faults
            for number in range(self.mutants):
                what = sides.change(np.random.default_rng([self.seed, number]))
                bad = fuzz.examine(sides.use)
                kind = f"cache{Path(what).suffix}" if what.startswith("cache") else what.partition(".")[2]
                outcome.add(f"fuzz, {kind}", f"mutant {number} of {what}", bad=bad, good="made again, or refused")
        return outcome.show(self.json)


COMMANDS = Union[  # noqa: UP007  (made at run time)
    Annotated[Power, tyro.conf.subcommand("power")],
    Annotated[Kills, tyro.conf.subcommand("kills")],
    Annotated[Errors, tyro.conf.subcommand("errors")],
    Annotated[Pauses, tyro.conf.subcommand("pauses")],
    Annotated[Readers, tyro.conf.subcommand("readers")],
    Annotated[Fuzz, tyro.conf.subcommand("fuzz")],
    Annotated[FuzzSides, tyro.conf.subcommand("fuzz-sides")],
]

if __name__ == "__main__":
    raise SystemExit(run_command(COMMANDS, prog="python -m benchmarks.faults", description=__doc__))
