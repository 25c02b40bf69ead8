"""Commands that look at the runs of a folder: which there are, how two differ, what to do next."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mechinterp.cli.common import Json, Step, print_result
from mechinterp.cli.findings import kept_transitions
from mechinterp.cli.known import standing, trained
from mechinterp.cli.own_task import OwnTask, own_task
from mechinterp.config.dotted import differences
from mechinterp.errors import MechinterpError
from mechinterp.files import is_run_file

if TYPE_CHECKING:
    from mechinterp.run import Run

FOLDERS = (Path(), Path("checkpoints"))
"""Where runs are looked for if no folder is named."""
MOST_SHOWN = 12
"""So many runs are listed where nobody has asked for a list."""


@dataclass
class Start:
    """Say what to do next in this folder: the runs that there are, or the first command to type."""

    json: Json = False

    def execute(self) -> None:
        found = found_runs(FOLDERS)
        if not found:
            lines = [
                "No run is in this folder or in checkpoints/. Train one, measure it and write its page (some minutes):",
                "",
                "  mechinterp run",
                "",
                "mechinterp --help lists all commands; mechinterp run --dry-run says what it would cost.",
            ]
        else:
            sound = [entry for entry in found if entry["standing"] != "damaged"]
            newest = max(sound or found, key=lambda entry: Path(entry["run"]).stat().st_mtime)
            lines = [*table_of(found[:MOST_SHOWN])]
            if len(found) > MOST_SHOWN:
                lines.append(f"and {len(found) - MOST_SHOWN} more: mechinterp runs")
            lines += ["", "next:", *(f"  {command}" for command in next_commands(newest))]
            lines += ["", "mechinterp --help lists all commands."]
        print_result({"runs": found}, self.json, "\n".join(lines))


@dataclass
class Runs:
    """List the run files of a folder: what was trained, how far, where each stands, and its transition."""

    folder: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="DIR", help="By default this one and checkpoints/.")
    ] = None
    json: Json = False

    def execute(self) -> None:
        if self.folder is not None and not self.folder.is_dir():
            raise MechinterpError(f"{self.folder}: is no folder; give one with run files")
        folders = FOLDERS if self.folder is None else (self.folder,)
        found = found_runs(folders)
        where = " or ".join(str(folder.resolve()) for folder in folders)
        text = "\n".join(table_of(found)) if found else f"no run file is in {where}; train one: mechinterp run"
        print_result({"runs": found}, self.json, text)


@dataclass
class Compare:
    """Compare two runs: settings, transitions and final measures; or two steps of one run, by --steps."""

    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="A run file.")]
    second: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="Another; or two --steps of the first.")
    ] = None
    steps: tuple[Step, ...] = ()
    """Two saved steps of one run, or one of both runs; by default the last."""
    n_sequences: int = 1000
    """Sequences of each evaluation set."""
    task: OwnTask = None
    json: Json = False

    def execute(self) -> None:
        from mechinterp.run import open_run

        task = own_task(self.task)
        first = open_run(self.first, task=task)
        if self.second is None:
            if len(self.steps) != 2:
                raise MechinterpError("compare: name two runs, or one and two steps of it: --steps 1000 6000")
            self._print({}, [(first, first.numbered(self.steps[0])), (first, first.numbered(self.steps[1]))])
            return
        if len(self.steps) > 1:
            raise MechinterpError("--steps: of two runs, give one step, which both have, or none")
        second = open_run(self.second, task=task)
        differ: dict[str, Any] = {}
        if first.origin is None and second.origin is None:
            differ = {key: list(pair) for key, pair in differences(first.config, second.config).items()}
        self._print(differ, [(run, run.numbered((*self.steps, "last")[0])) for run in (first, second)])

    def _print(self, differ: dict[str, Any], sides: "list[tuple[Run, int]]") -> None:
        import pandas as pd

        from mechinterp.measures import measure

        names = [f"{run.path.stem}, step {step:,}" for run, step in sides]
        rows = [measure(run, steps=[step], n_sequences=self.n_sequences).iloc[0] for run, step in sides]
        table = pd.DataFrame({"first": rows[0], "second": rows[1]}).dropna(how="all")
        table["difference"] = table["second"] - table["first"]
        found = [kept_transitions(run) for run, _ in sides]
        lines = [f"first:  {names[0]}", f"second: {names[1]}"]
        if self.second is not None:
            settings = [f"  {key}: {one} | {other}" for key, (one, other) in differ.items()]
            lines += ["", "settings that differ:" if differ else "no setting differs", *settings, "", "transitions:"]
            lines += [
                f"  {side}: {transitions[0].text if transitions else f'not located: mechinterp emergence {run.path}'}"
                for side, transitions, (run, _) in zip(("first", "second"), found, sides, strict=True)
            ]
        lines += ["", table.round(4).to_string()]
        result = {"first": names[0], "second": names[1], "settings": differ}
        result |= {"transitions": [[vars(each) for each in one] for one in found]}
        print_result(result | {"measures": table.to_dict("index")}, self.json, "\n".join(lines))


def found_runs(folders: tuple[Path, ...]) -> list[dict[str, Any]]:
    """What is known of every run file in some folders, by folder and name; other files are passed over."""
    from mechinterp.store import Trajectory

    entries = []
    for folder in folders:
        for path in sorted(folder.glob("*.h5")):
            if path.name.endswith(".dense.h5"):
                continue
            try:
                run = Trajectory(path)
                steps, transitions = run.steps, kept_transitions(run)
                what = "trained elsewhere" if run.origin else f"{trained(run.config)}; seed {run.config.seed}"
                status = standing(run)
            except MechinterpError as error:
                if is_run_file(path):
                    entries.append(_damaged(path, error))
                continue
            first = transitions[0] if transitions else None
            entries.append(
                {
                    "run": str(path),
                    "trained": what,
                    "last_step": steps[-1] if steps else None,
                    "checkpoints": len(steps),
                    "standing": status,
                    "measure": first and first.measure,
                    "transition": first and first.step,
                }
            )
    return entries


def _damaged(path: Path, error: MechinterpError) -> dict[str, Any]:
    """The entry of a run file that cannot be read, with the reason in place of what was trained."""
    unknown = dict.fromkeys(("last_step", "checkpoints", "measure", "transition"))
    return {"run": str(path), "trained": str(error).removeprefix(f"{path}: "), "standing": "damaged", **unknown}


def table_of(entries: list[dict[str, Any]]) -> list[str]:
    """Lines of a table: the run, its last step, where it stands, its transition, what was trained."""
    rows = [("run", "last step", "stands", "transition", "trained")]
    for entry in entries:
        last = "–" if entry["last_step"] is None else f"{entry['last_step']:,}"
        rows.append((entry["run"], last, entry["standing"], _transition(entry), entry["trained"]))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows]


def _transition(entry: dict[str, Any]) -> str:
    if entry["measure"] is None:
        return "not located"
    return "none" if entry["transition"] is None else f"step {entry['transition']:,.0f}"


def next_commands(entry: dict[str, Any]) -> list[str]:
    """Three commands that go on with a run."""
    run = entry["run"]
    if entry["standing"] == "damaged":
        return [f"mechinterp verify {run}"]
    if entry["standing"] in ("killed", "interrupted", "failed") and entry["trained"] != "trained elsewhere":
        return [f"mechinterp resume {run}", f"mechinterp info {run}", f"mechinterp report {run}"]
    if entry["standing"] == "being written" or entry["measure"] is None:
        return [f"mechinterp emergence {run}", f"mechinterp report {run}", f"mechinterp info {run}"]
    return [f"mechinterp report {run}", f"mechinterp evidence {run}", f"mechinterp circuit {run}"]
